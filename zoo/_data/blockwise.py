"""Means, spreads and gaps of large data, a block of rows at a time: no temporary is as large as the data.

Data of one block, which is most data, give the very numbers that torch gives for the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 2**21  # numbers in a block, 16 MB in float64


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    """The rows of x [n, …] in blocks, without a copy."""
    return x.split(max(1, BLOCK // max(1, x[:1].numel())))


def any_missing(x: Tensor) -> bool:
    """Whether an entry of x is NaN."""
    return x.is_floating_point() and any(bool(rows.isnan().any()) for rows in blocks(x))


def missing_in_rows(x: Tensor) -> Tensor:
    """How many entries of each row of x [n, …] are NaN [n]."""
    return torch.cat([rows.isnan().flatten(1).sum(1, dtype=torch.int32) for rows in blocks(x)])


def any_above(x: Tensor, limit: float) -> bool:
    """Whether an entry of x is further from 0 than `limit`."""
    return any(bool((rows.abs() > limit).any()) for rows in blocks(x))


def mean(
    x: Tensor,
    of: Callable[[Tensor], Tensor] = lambda rows: rows,
    rows_only: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean of `of` at the seen entries of x [n, …]: one for each column, or (not `rows_only`) one in all; NaN for none.

    `weights` [n]: how many times each row counts; None: once each.
    """
    if weights is not None:
        return _weighted_mean(x, of, rows_only, weights)
    parts = blocks(x)
    total, count = _sums(of(parts[0]), rows_only)
    for part in parts[1:]:
        more = _sums(of(part), rows_only)
        total, count = total + more[0], count + more[1]
    return total / count


def _sums(value: Tensor, rows_only: bool) -> tuple[Tensor, Tensor | int]:
    """The sum of what is seen, of each column or in all, and how many that is."""
    total = value.sum(0) if rows_only else value.sum()
    if bool(total.isfinite().all()):  # nothing is missing: a fifth of the time, and the same bits
        return total, len(value) if rows_only else value.numel()
    seen = ~value.isnan()
    return (value.nansum(0), seen.sum(0)) if rows_only else (value.nansum(), seen.sum())


def _weighted_mean(x: Tensor, of: Callable[[Tensor], Tensor], rows_only: bool, weights: Tensor) -> Tensor:
    parts = blocks(x)
    shape = x.shape[1:] if rows_only else ()
    total, counted = x.new_zeros(shape), x.new_zeros(shape)
    for part, mine in zip(parts, weights.split(len(parts[0])), strict=True):
        value = of(part)
        times = mine.to(value).reshape(-1, *(1,) * (value.dim() - 1)).expand_as(value).masked_fill(value.isnan(), 0.0)
        value = torch.where(times > 0, times * value, torch.zeros_like(value))
        total += value.sum(0) if rows_only else value.sum()
        counted += times.sum(0) if rows_only else times.sum()
    return total / counted


def center(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of each column of x [n, …], 0 where nothing is seen."""
    return mean(x, weights=weights).nan_to_num(0.0)


def spread(x: Tensor, about: Tensor, rows_only: bool = True, weights: Tensor | None = None) -> Tensor:
    """The standard deviation of each column (or of all entries) about `about`; 1 where nothing varies."""
    found = mean(x, lambda rows: (rows - about).square(), rows_only, weights).sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))  # NaN > 0 is false: an unobserved column


def bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest seen value of each column of x [n, D]; ∞ and −∞ where nothing is seen."""
    low, high = x.new_full(x.shape[1:], torch.inf), x.new_full(x.shape[1:], -torch.inf)
    for rows in blocks(x):
        low = torch.minimum(low, rows.nan_to_num(torch.inf).amin(0))
        high = torch.maximum(high, rows.nan_to_num(-torch.inf).amax(0))
    return low, high


def constant_columns(x: Tensor) -> list[int]:
    """The columns of x [n, …] in which no two seen values differ, by number in the flat order of a row."""
    low, high = bounds(x.flatten(1))
    return (low >= high).nonzero()[:, 0].tolist()
