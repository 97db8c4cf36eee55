"""Distributions with sufficient statistics, one a file: each serves the E- and M-step of every model that has it."""
