"""What a method returned, checked before anything is said of it: a fit of this program, on these data, that can be kept."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch

from inference._method.fit import Evidence, Fit, Kind, weighed
from inference._method.task import Task
from zoo._errors import UsageError

PLAIN = (str, int, float, bool, type(None), np.generic, np.ndarray)


def checked(fit: object, task: Task, method: str, version: int) -> Fit:
    """The fit; `version`: of the data's tensor before the method ran, which counts the writes into it.

    Raises `UsageError` where it is no fit, the data were changed, or what it says cannot be so.
    """
    if not isinstance(fit, Fit):
        raise _wrong(method, f"returned {type(fit).__name__}, not a Fit")
    if task.x._version != version:
        raise _wrong(method, "changed the data (task.x) in place; work on a copy")
    theta = {name: value.detach().cpu().numpy() for name, value in task.program.values().items()}
    for name, value in theta.items():
        if name not in fit.parameters:
            raise _wrong(method, f"returned no value of the parameter '{name}'; put all of task.theta() into the fit")
        said, near = np.asarray(fit.parameters[name]), 1e-5 if value.dtype == np.float32 else 1e-9
        if said.shape != value.shape or not np.allclose(said, value, rtol=near, atol=near, equal_nan=True):
            raise _wrong(method, f"returned another value of the parameter '{name}' than the program holds")
    if fit.claimed is not None:
        _check_claim(fit.claimed, len(task.x), method)
        if task.times is not None:
            _check_total(fit, task, method)
    if isinstance(fit.warnings, str) or not all(isinstance(w, str) for w in fit.warnings):
        raise _wrong(method, "returned warnings that are not a list of sentences")
    for name, note in fit.notes.items():
        if not _is_plain(note):
            raise _wrong(
                method, f"returned the note '{name}' of type {type(note).__name__}; notes are numbers and text"
            )
    return fit


def _check_claim(claimed: object, n: int, method: str) -> None:
    if not isinstance(claimed, Evidence):
        raise _wrong(method, f"claimed {type(claimed).__name__}, not Evidence")
    if claimed.kind not in get_args(Kind):
        raise _wrong(method, f"claimed evidence of kind '{claimed.kind}'; kinds are {', '.join(get_args(Kind))}")
    if np.isnan(claimed.value):
        raise _wrong(method, "claimed evidence that is not a number")
    if claimed.per_datum is not None and np.shape(claimed.per_datum) != (n,):
        raise _wrong(method, f"claimed evidence for {np.shape(claimed.per_datum)} rows, and the data have {n}")


def _check_total(fit: Fit, task: Task, method: str) -> None:
    """Each row counts as often as its weight says: an exact total is the weighted sum of its rows."""
    claimed, times = fit.claimed, task.times
    if claimed is None or claimed.per_datum is None or times is None or claimed.kind != "exact":
        return
    point = {s.name: torch.as_tensor(fit.parameters[s.name]) for s in task.structure.global_latents}
    total = float(weighed(claimed.per_datum, times).sum()) + task.outside(point)
    near = 1e-4 if task.x.dtype == torch.float32 else 1e-8
    if np.isfinite(total) and abs(claimed.value - total) > near * max(1.0, abs(total)):
        raise _wrong(method, f"claimed {claimed.value:.6f} nats for rows whose weighted sum is {total:.6f}")


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return isinstance(value, PLAIN) and not isinstance(value, torch.Tensor)


def _wrong(method: str, what: str) -> UsageError:
    return UsageError(f"the method '{method}' {what}. Nothing is reported.")
