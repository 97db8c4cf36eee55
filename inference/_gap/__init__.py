"""The gap between log p(x) and the ELBO of a fit with a guide, taken apart row by row."""
