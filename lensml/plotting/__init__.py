"""Numbers in, figure out."""
