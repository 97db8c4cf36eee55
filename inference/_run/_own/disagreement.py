"""When two values that should both be exact are not the same."""

from __future__ import annotations

import torch


class Disagreement(ArithmeticError):
    """Two values of log p(x) that should both be exact differ by more than rounding."""


def tolerance(dtype: torch.dtype) -> float:
    """What two exact values may differ by, relative to their size (1 nat at least)."""
    return 2e-3 if dtype == torch.float32 else 1e-6
