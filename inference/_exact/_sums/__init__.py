"""Discrete latents that are summed out one by one: orders, tables, sums, and the engine made of them."""
