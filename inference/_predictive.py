"""What ArviZ wants of a fit besides its draws: log p(x_i | draw of θ), and data simulated at draws.

A fit whose θ is one point has no pointwise log-likelihood here. ArviZ's `loo` would take it for the training likelihood of
every draw and find nothing to correct: such a figure always prefers the larger model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference._fit import Fit
from inference._task import Task
from zoo import _program
from zoo._errors import UsageError
from zoo._latents import by_datum, for_program

DRAW_NUMBERS = 4_000_000  # numbers in the draws of one site
MOST_SIMULATED = 50  # data sets
WHOLE = "x"  # the name of all data, in `observed_data` and `posterior_predictive`


@torch.no_grad()
def complete(task: Task, fit: Fit) -> None:
    """Add the pointwise log-likelihood where θ or the global latents have draws, and posterior predictive data."""
    at = _Draws(task, fit)
    fit.observed = _observed(task)
    if at.theta_varies and task.structure.exact != "no":
        try:
            rows = [task.exact.per_datum(at.theta(d), at.globals(d)).numpy() for d in range(at.count)]
            fit.log_likelihood = np.stack(rows)
        except (ValueError, torch.linalg.LinAlgError):
            fit.warnings.append(
                "some draws of θ lie where the program has no density: the data hardly identify it, and its standard "
                "errors mean little. No pointwise log-likelihood and no posterior predictive data are given."
            )
            return
    if not at.count:
        return
    width = task.x.numel() + sum(v.size for v in fit.observed.values())
    try:
        with _program.blame(fit.model):
            drawn = [
                _simulate(task, at, d) for d in range(max(1, min(at.count, MOST_SIMULATED, DRAW_NUMBERS // width)))
            ]
        fit.predictive = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
    except UsageError as error:
        fit.warnings.append(f"no posterior predictive data: model(None, size=n) does not simulate ({error}).")


class _Draws:
    """A fit's draws, as a program takes them; what has no draws stays at its point value."""

    def __init__(self, task: Task, fit: Fit) -> None:
        self._task = task
        self._draws = {k: torch.as_tensor(v) for k, v in fit.draws.items()}
        self._point = {k: torch.as_tensor(v) for k, v in fit.parameters.items()}
        self._theta = [k for k in self._draws if k in task.program.constraints]
        self._globals = [s.name for s in task.structure.global_latents]
        self.count = len(next(iter(self._draws.values()))) if self._draws else 0
        # a θ that is kept may be no mode of these data: its draws then say nothing of how sure they are
        names = [*(self._theta if task.learn else ()), *(k for k in self._globals if k in self._draws)]
        self.theta_varies = any(bool((self._draws[k] != self._draws[k][:1]).any()) for k in names)

    def theta(self, d: int) -> dict[str, Tensor]:
        return {k: self._draws[k][d] for k in self._theta}

    def globals(self, d: int) -> dict[str, Tensor]:
        return {k: self._draws[k][d] if k in self._draws else self._point[k] for k in self._globals}

    def locals(self, d: int) -> dict[str, Tensor]:
        structure = self._task.structure
        sites = [s for s in structure.local_latents if s.name in self._draws]
        return {s.name: for_program(self._draws[s.name][d], s, structure) for s in sites}


def _simulate(task: Task, at: _Draws, d: int) -> dict[str, np.ndarray]:
    """Data at draw d: each observed site [n, …] under its own name, and all of them together as `x`."""
    latents = at.globals(d) | at.locals(d)
    trace: Any = task.program.trace(None, size=len(task.x), parameters=at.theta(d), latents=latents)
    sites = _values(task, trace)
    whole = _whole(task, trace.nodes["_RETURN"]["value"], list(sites.values()))
    named = {_name(k): v for k, v in sites.items()}
    return {k: v.numpy() for k, v in (named if whole is None else named | {WHOLE: whole}).items()}


def _observed(task: Task) -> dict[str, np.ndarray]:
    """Each observed site's own part of the data, NaN where unobserved; none for a single site that is `x` itself."""
    only = task.structure.observed[0] if len(task.structure.observed) == 1 else None
    if only is not None and only.name == WHOLE and math.prod(only.event_shape) * only.inner == task.x[0].numel():
        return {}
    with torch.random.fork_rng(devices=[]):
        values = _values(task, task.program.trace(task.x, raw=True))
    return {_name(k): v.numpy() for k, v in values.items()}


def _name(site: str) -> str:
    """`x` is the whole data: a site of that name that observes a part of them goes by another."""
    return "x_site" if site == WHOLE else site


def _values(task: Task, trace: Any) -> dict[str, Tensor]:
    """Observed site → its value in the trace, [n, inner plates, event]; as it is outside the plate `data`."""
    structure, out = task.structure, {}
    for site in structure.observed:
        value = torch.as_tensor(trace.nodes[site.name]["value"]).detach()
        if site.scope == "local":
            plates = [1] * structure.max_plate_nesting
            for dim, size in [*site.inner_dims, (structure.data_dim, len(task.x))]:
                plates[dim] = size
            value = by_datum(value.expand(1, *plates, *site.event_shape), site, structure)[0]
        out[site.name] = value
    return out


def _whole(task: Task, returned: Any, sites: list[Tensor]) -> Tensor | None:
    """The simulated data in the shape of x: what the program returned, or the one site that observes all of it.

    Only where each row of what was returned holds the numbers of the observed sites and no others: a program may as well
    return a mean, or nothing.
    """
    if any(v.shape[:1] != (len(task.x),) for v in sites):
        return None
    numbers = torch.cat([v.to(task.x.dtype).reshape(len(task.x), -1) for v in sites], 1)
    if numbers.shape[1] != task.x[0].numel():
        return None
    if isinstance(returned, Tensor) and returned.numel() == task.x.numel() and len(returned) == len(task.x):
        found = returned.detach().to(task.x.dtype).reshape(len(task.x), -1)
        if torch.equal(found.sort(1).values, numbers.sort(1).values):
            return found.reshape(task.x.shape)
    return numbers.reshape(task.x.shape) if len(sites) == 1 else None
