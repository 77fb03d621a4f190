"""From priors to light-curve sets."""
