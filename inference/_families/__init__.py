"""Distributions with sufficient statistics, one a file."""
