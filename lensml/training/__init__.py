"""Data on the device, batches, the training loop, runs and recipes."""
