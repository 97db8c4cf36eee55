"""Markov chains: the density that they walk on, its gradient as a list of tensor operations, No-U-Turn trees, diagnostics."""
