"""A table of one column, x [n, 1], under a program that observes scalars: `pyro.sample("x", Normal(loc, scale), obs=x)`.

Such a program has a density for each entry of [n]. Pyro would broadcast [n, 1] against it to [n, n].
So the program is tried on [n, 1], the contract, and then on [n].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.trace import is_local, sample_nodes, shape_fits

TRIED_ROWS = 3


def column_or_scalars(build: Callable[[bool], Program], x: Tensor) -> Program:
    """`build(False)`, the program that takes x [n, 1]; or `build(True)`, which takes it as [n], where only that fits."""
    try:
        column = build(False)
    except UsageError:
        scalar = _scalars(build, x)
        if scalar is None:
            raise
        return scalar
    return column if _fits(column, x) else _scalars(build, x) or column


def _scalars(build: Callable[[bool], Program], x: Tensor) -> Program | None:
    try:
        program = build(True)
    except UsageError:
        return None
    return program if _fits(program, x) else None


@torch.no_grad()
def _fits(program: Program, x: Tensor) -> bool:
    """Whether the program runs on a few rows, and every observed value has the shape of its distribution."""
    try:
        with torch.random.fork_rng(devices=[]):
            trace = program.trace(x[:TRIED_ROWS], raw=True)
    except Exception:
        return False  # `describe` raises it again, with its place
    observed = [n for n in sample_nodes(trace) if n["is_observed"] and isinstance(n["value"], Tensor)]
    rows = [n for n in observed if is_local(n)]
    if program.scalar and any(n["fn"].event_shape or n["value"].shape != n["fn"].batch_shape for n in rows):
        return False
    return all(shape_fits(n) for n in observed)
