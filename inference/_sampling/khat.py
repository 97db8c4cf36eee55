"""PSIS k-hat in words: the shape of the tail of importance weights, and when they cannot be trusted.

A sample's largest weights are fitted by a generalised Pareto distribution of shape k (Vehtari et al. 2024). Below 0.5 the
weights have a variance; above 0.7 no practical number of draws makes their mean reliable.
"""

from __future__ import annotations

import numpy as np

LIMIT = 0.7
EVEN = 0.9  # effective draws, as a share of all: weights so nearly equal have no tail whose shape would mean anything


def count_above(khat: np.ndarray, but: np.ndarray | bool = False) -> int:
    """How many are above the limit, or not a number; without those that `but` marks."""
    return int((~(khat <= LIMIT) & ~np.asarray(but)).sum())


def of_rows(bad: int, n: int) -> str:
    """The first half of a sentence about rows."""
    return f"k-hat is above {LIMIT} for {bad} of {n} rows"


def of_globals(khat: float) -> str:
    """The first half of a sentence about the approximation of the global latents."""
    return f"k-hat of the Gaussian over the global latents is {khat:.2f}"
