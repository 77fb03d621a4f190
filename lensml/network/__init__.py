"""A light curve in, P(binary) at every epoch out."""
