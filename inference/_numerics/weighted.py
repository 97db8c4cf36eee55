"""Row weights: a row of weight w counts as w rows."""

from __future__ import annotations

import torch
from torch import Tensor


def weighed(values: Tensor, weights: Tensor | None, rows: slice | Tensor) -> Tensor:
    """What some rows give, [n] or [n, …], each times its row's weight; 0 for a row of weight 0, whatever it gives.

    `weights` [N] of all rows; None: every row counts once, and the values come back as they are.
    """
    if weights is None:
        return values
    mine = weights[rows].to(values)
    mine = mine.reshape(-1, *(1,) * (values.dim() - 1))
    return torch.where(mine == 0, torch.zeros_like(values), mine * values)


def count(weights: Tensor | None, rows: int) -> float:
    """How many rows they stand for: Σ w, or their number where each counts once."""
    return rows if weights is None else float(weights.sum())
