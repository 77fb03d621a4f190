"""The same weights, one epoch at a time."""
