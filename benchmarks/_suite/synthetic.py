"""Data made up for measuring costs: clusters with a low-rank shape, any number of rows and columns."""

from __future__ import annotations

import numpy as np

CLUSTERS, FACTORS = 8, 4


def table(n: int, d: int, seed: int = 0) -> np.ndarray:
    """n rows of d columns: 8 overlapping clusters, each spread along 4 directions of its own and noise [n, d]."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(CLUSTERS, d))
    shapes = rng.normal(size=(CLUSTERS, FACTORS, d)) / FACTORS**0.5
    z = rng.integers(CLUSTERS, size=n)
    x = rng.normal(size=(n, d))
    factors = rng.normal(size=(n, FACTORS))
    for k in range(CLUSTERS):
        mine = z == k
        x[mine] += centers[k] + factors[mine] @ shapes[k]
    return x
