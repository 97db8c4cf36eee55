"""Bidirectional Monte Carlo: log p(x) of simulated data between a lower and an upper bound."""
