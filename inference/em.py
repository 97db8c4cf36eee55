"""Expectation-maximisation, exact by enumeration, with a closed-form M-step wherever the program allows one.

Dempster, Laird & Rubin 1977. With global latents it climbs log p(x, globals; θ): maximum a posteriori (MAP-EM). What it
claims is exact: log p(x; θ̂), given the globals at their mode where there are any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference._coordinates import Coordinates
from inference._family import Floor
from inference._fit import Evidence, Fit
from inference._start import FLOOR, Start, begin
from inference._task import Task
from zoo._options import Count, NotNegative, Positive
from zoo._structure import Structure

PLAIN_ITERATIONS = 20
MOST_NAMED = 3  # components in warnings: more get one line


def refusal(structure: Structure) -> str | None:
    """Why EM cannot serve the program, or None."""
    if structure.exact == "no":
        return f"em needs an exact posterior, and {structure.reason}"
    return None


def fit(
    task: Task,
    *,
    max_iter: Count = 1000,
    tol: NotNegative = 1e-10,
    restarts: Count = 1,
    start: Start = "auto",
    floor: Positive = FLOOR,
    accelerate: bool = True,
) -> Fit:
    """Climb the log-likelihood until it changes by less than `tol` of itself, `restarts` times; keep the best.

    `accelerate`: extrapolate when it is still climbing after 20 plain iterations; the log-likelihood never falls for it.
    `floor` is the smallest variance an M-step sets, as a share of the data's own. Raises `ArithmeticError` if the
    log-likelihood falls by more than rounding, which only a wrong M-step could make it do.
    """
    if not task.learn:
        return _result(task, _Climb(globals=task.global_start(), converged=True), [], floor)
    initial = {n: v.detach().clone() for n, v in task.program.values().items()}
    climbs = []
    with task.progress("em", max_iter * restarts) as step:
        for r in range(restarts):
            task.program.assign(initial)
            # the program's own values are one start: a second from the same place would add nothing
            again = r > 0 and (start == "program" or task.structure.assignments == 1)
            how = "random" if again else start
            climbs.append(_climb(task, how, task.seed + r, max_iter, tol, Floor(floor, set()), accelerate, step))
    best = max(climbs, key=lambda c: c.objective[-1])
    task.program.assign(best.parameters)
    return _result(task, best, climbs, floor)


@dataclass
class _Climb:
    globals: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    objective: list[float] = field(default_factory=list)  # log p(x, globals; θ) before each M-step and at the end
    counts: Tensor | None = None
    iterations: int = 0
    converged: bool = False
    floored: set[int] = field(default_factory=set)
    closed: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()


def _climb(
    task: Task, start: Start, seed: int, max_iter: int, tol: float, floor: Floor, accelerate: bool, step: Any
) -> _Climb:
    exact = task.exact
    globals = begin(task, start, seed, floor)
    how = task.plan(globals)
    views, _ = exact.views(None, globals)
    general = any(v.params is None for v in views)
    climb = _Climb(globals, closed=tuple(how.closed), numeric=how.numeric + tuple(globals))
    leap = _Leap(task)
    for i in range(max_iter + 1):
        stats, value = _e_step(task, globals, may_fail=leap.fresh > 0)
        if leap.fresh and not value >= climb.objective[-1]:
            globals = leap.back(climb.objective)
            stats, value = _e_step(task, globals)
        climb.objective.append(value)
        climb.iterations = i
        step(note=f"log p(x) {value:.4f}")
        if _stop(climb.objective, tol, task.x.dtype):
            climb.converged = True
            break
        if i == max_iter:
            break
        floor.reached.clear()
        weights = exact.responsibilities(None, globals) if general else None
        try:
            globals = task.m_step(how, stats, globals, floor, weights)
        except torch.linalg.LinAlgError:
            if not leap.fresh:
                raise
            # the leap went under the floor, where the log-likelihood of a matrix that is nearly singular means nothing
            climb.objective.pop()
            globals = leap.back(climb.objective)
            continue
        if accelerate and i >= PLAIN_ITERATIONS:
            globals = leap.after(globals, allowed=not floor.reached)
    climb.globals, climb.counts, climb.floored = globals, stats.counts, set(floor.reached)
    climb.parameters = {n: v.detach().clone() for n, v in task.program.values().items()}
    return climb


def _e_step(task: Task, globals: dict[str, Tensor], may_fail: bool = False) -> tuple[Any, float]:
    """The statistics, and log p(x, globals; θ); NaN where a leap went so far that a matrix cannot be factored there."""
    try:
        stats = task.sums.e_step(globals)
    except torch.linalg.LinAlgError:
        if not may_fail:
            raise
        return None, float("nan")
    return stats, float(stats.per_datum.sum()) + float(stats.log_prior)


class _Leap:
    """SQUAREM: from three points in a row, extrapolate where slow steps are heading (Varadhan & Roland 2008, scheme S3).

    Where the log-likelihood there is lower than it was, or falls at the next M-step (whose floor the leap went under),
    `back` takes the plain step instead, and the next leap is shorter.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.fresh, self.since = task, 0, 0
        self.points: list[Tensor] = []
        self.length, self.longest = 1.0, math.inf
        self.plain: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def after(self, globals: dict[str, Tensor], allowed: bool) -> dict[str, Tensor]:
        """Note the point that an M-step led to; on every third, move on from it. Returns the globals to go on with."""
        self.fresh, self.since = max(0, self.fresh - 1), self.since + 1
        theta = {n: v.detach().clone() for n, v in self.task.program.values().items()}
        supports = {**self.task.program.constraints, **self.task.global_supports}
        layout = Coordinates({**theta, **globals}, supports)
        self.points.append(layout.flatten({**theta, **globals}))
        if len(self.points) < 3:
            return globals
        first, second, third = self.points
        self.points = []
        step, bend = second - first, third - 2 * second + first
        if not allowed or not bool(third.isfinite().all()) or not float(bend.norm()) > 0:
            return globals
        if self.length >= self.longest:  # as long as was allowed, and it was not taken back
            self.longest *= 4
        length = self.length = min(max(1.0, float(step.norm() / bend.norm())), self.longest)
        values = layout.unflatten(first + 2 * length * step + length**2 * bend)
        if not all(bool(v.isfinite().all()) for v in values.values()):
            return globals
        self.plain, self.fresh, self.since = (theta, globals), 2, 0
        self.task.program.assign({n: values[n] for n in theta})
        return {n: values[n] for n in globals}

    def back(self, objective: list[float]) -> dict[str, Tensor]:
        """Undo the leap, and what it left in the list of log-likelihoods."""
        del objective[len(objective) - self.since :]
        self.fresh, self.points = 0, []
        self.longest, self.length = max(1.0, self.length / 4), 1.0
        self.task.program.assign(self.plain[0])
        return self.plain[1]


def _stop(objective: list[float], tol: float, dtype: torch.dtype) -> bool:
    if not np.isfinite(objective[-1]):
        raise ArithmeticError(f"em: the log-likelihood became {objective[-1]} at iteration {len(objective) - 1}.")
    if len(objective) < 2:
        return False
    before, now = objective[-2:]
    rounding = (1e-8 if dtype == torch.float64 else 1e-3) * (1 + abs(before))
    if now < before - rounding:
        raise ArithmeticError(
            f"em: the log-likelihood fell from {before!r} to {now!r} at iteration {len(objective) - 1}."
        )
    return abs(now - before) <= tol * abs(before)


def _result(task: Task, climb: _Climb, climbs: list[_Climb], floor: float) -> Fit:
    exact, globals = task.exact, climb.globals
    per_datum = exact.per_datum(None, globals)
    posterior = exact.responsibilities(None, globals)
    given = f"the posterior mode of {', '.join(globals)}" if globals else ""
    parameters = {n: v.detach().numpy() for n, v in {**task.program.values(), **globals}.items()}
    means, deviations = exact.summary(globals)
    notes = {
        "iterations": climb.iterations,
        "closed_form": list(climb.closed),
        "numeric": list(climb.numeric),
    }
    if climbs:
        notes |= {"restarts": [c.objective[-1] for c in climbs], "variance_floor": floor}
    return Fit(
        parameters=parameters,
        claimed=Evidence.from_per_datum(per_datum.numpy(), "exact", given=given).plus(task.outside(globals)),
        draws={n: v.numpy() for n, v in exact.draw(posterior, task.draws, globals).items()},
        means={n: v.numpy() for n, v in means.items()},
        deviations={n: v.numpy() for n, v in deviations.items()},
        probabilities={n: v.numpy() for n, v in exact.marginals(posterior).items()},
        trace={"log_joint" if globals else "log_likelihood": np.asarray(climb.objective)} if climbs else {},
        converged=climb.converged if climbs else None,
        warnings=_warnings(task, climb, floor),
        notes=notes,
    )


def _component(task: Task, assignment: int) -> str:
    return f"component {task.exact.label(assignment)}" if task.structure.assignments > 1 else "the one component"


def _warnings(task: Task, climb: _Climb, floor: float) -> list[str]:
    out = []
    components = not any(s.completes for s in task.structure.discrete_locals)
    states = task.structure.assignments
    if climb.counts is not None and states > 1 and components:
        empty = (climb.counts < 1).nonzero()[:, 0].tolist()
        if len(empty) > MOST_NAMED:
            out.append(
                f"{len(empty):,} of {states:,} components are empty: each holds less than one of {len(task.x)} data."
            )
        for a in empty if len(empty) <= MOST_NAMED else ():
            held = float(climb.counts[a])
            out.append(f"{_component(task, a)} is empty: it holds {held:.2g} of {len(task.x)} data.")
    rest = (
        f"a variance rests on the floor, {floor:g} of the data's own; ask for fewer components or latents, or priors."
    )
    if len(climb.floored) > MOST_NAMED:
        out.append(f"{len(climb.floored):,} of {states:,} components collapsed: in each {rest}")
    for a in sorted(climb.floored) if len(climb.floored) <= MOST_NAMED else ():
        out.append(f"{_component(task, a)} collapsed: {rest}")
    if climb.objective and not climb.converged:
        out.append(f"em did not converge in {climb.iterations} iterations; raise max_iter or tol.")
    return out
