"""Weighted draws: importance weights and particles."""
