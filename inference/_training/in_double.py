"""A fit of float32 data that is worked out in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from inference._method.fit import Arrays, Fit, weighed
from inference._method.task import Task


def in_double(task: Task, refit: Callable[[Task], Fit]) -> Fit:
    """The fit in float64, because sums of squares in float32 keep no digits of a narrow cluster; its θ is rounded at the end.

    The claim is of the rounded θ, in float64.
    """
    dtype, found = task.x.dtype, refit(wide := task.doubled())
    task.program.assign({n: v.detach().to(dtype) for n, v in wide.program.values().items()})
    point = {n: torch.as_tensor(found.parameters[n]).to(dtype) for n in task.global_supports}
    per_datum = task.doubled().engine.per_datum(None, {n: v.double() for n, v in point.items()})
    assert found.claimed is not None
    kept = None if found.claimed.per_datum is None else per_datum.numpy()
    total = float(per_datum.sum()) if task.times is None else float(weighed(per_datum.numpy(), task.times).sum())
    claimed = replace(found.claimed, value=total, per_datum=kept).plus(task.outside(point))
    parameters = {n: v.numpy() for n, v in {**task.theta(), **point}.items()}
    draws, means = _single(found.draws), _single(found.means)
    found = replace(found, parameters=parameters, claimed=claimed, draws=draws, means=means)
    return replace(found, deviations=_single(found.deviations), probabilities=_single(found.probabilities))


def _single(arrays: Arrays) -> Arrays:
    return {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in arrays.items()}
