"""Benchmarks, one a file, and suites of them."""

__distribution__ = "latent-zoo"
