"""What each method is held against: the exact posterior, or else long chains, or importance sampling that can be trusted.

Methods that learn θ end at different ones, so each is held against the reference at its own θ. Where θ is the same for several
runs the reference is found once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from inference._compare.moments import Posterior, posterior_of, supports_of
from inference._method.fit import Evidence, Fit
from inference._method.task import Task
from inference._run.entrance import seeded
from inference._run.prepare import method_module
from inference._run.result import Run
from inference._sampling import sequential
from zoo._errors import Refusal
from zoo._program.structure import Structure

SAMPLES = 2000  # of importance sampling
BY_PROPOSAL = "importance with proposal="  # of its own, and not of the run's
BY_ITS_GUIDE = "importance by its own guide"  # whose draws cannot tell what the guide never reaches
ITSELF = "itself"  # a method that is the reference has nothing to be held against
SEED = 77  # other draws than those of the method that is held against it
FAR = 4.0  # standard errors
ROUNDING = 1e-6
GOOD_ROWS = 0.99  # the share of rows whose weights must be trusted, for importance sampling to be a reference


@dataclass
class References:
    """References at the θ of runs, each found once."""

    tried: list[tuple[Mapping[str, np.ndarray], str, Posterior | None]] = field(default_factory=list)

    def at(self, run: Run) -> tuple[str, Posterior] | None:
        """The reference at the θ of a run, and what it is: "the exact posterior", "nuts", "importance", `BY_PROPOSAL` and its
        name, `BY_ITS_GUIDE`, or `ITSELF`. None: there is none."""
        task = run.at_theta()
        theta = {name: np.asarray(value) for name, value in task.theta().items()}
        for known, what, posterior in self.tried:  # noqa: B007
            if all(np.array_equal(known[name], value) for name, value in theta.items()):
                break
        else:
            what, posterior = _reference(run, task)
            self.tried.append((theta, what, posterior))
        return None if posterior is None else (ITSELF if what == run.method else what, posterior)

    def after(self, runs: Sequence[Run]) -> dict[int, tuple[str, Posterior] | None]:
        """The reference of each run, by its place; those that can be a reference themselves are looked at first."""
        ways = {i: way_of(run.at_theta().structure) for i, run in enumerate(runs)}
        order = sorted(ways, key=lambda i: ways[i] != runs[i].method)
        return {i: self.at(runs[i]) for i in order}


def way_of(structure: Structure) -> str:
    """The method whose posterior is the reference for a program."""
    if structure.is_exact and (not structure.global_latents or structure.integrable):
        return "em"
    return "nuts" if structure.global_latents else "importance"


def _reference(run: Run, task: Task) -> tuple[str, Posterior | None]:
    way = way_of(task.structure)
    if way == run.method and way != "em":  # the method itself may have the reference's draws
        trusted = can_be_trusted(run.fit, run)
        if trusted or way == "nuts":
            return way, posterior_of(run.fit, supports_of(task)) if trusted else None
    module = method_module(way)
    if module.refusal(task.structure) is not None:
        return way, None
    what, guide, options = _settings(way, task)
    kept = replace(task, guide=guide, quiet=True, draws=max(task.draws, 500), seed=SEED)
    try:
        with seeded(SEED):
            fit: Fit = module.fit(kept, **options)
    except (Refusal, ArithmeticError):
        return what, None
    return what, posterior_of(fit, supports_of(task)) if way == "em" or can_be_trusted(fit, run) else None


def _settings(way: str, task: Task) -> tuple[str, Any, dict[str, object]]:
    """What the reference is called, the guide that it draws from, and its options.

    Importance sampling draws from Gaussians at the modes. Discrete latents have none: there a particle filter draws, or else
    the run's guide.
    """
    if way != "importance":
        return "the exact posterior" if way == "em" else way, None, {}
    proposal, guide = "laplace", None
    if not task.structure.summed.continuous_locals and task.guide is not None:
        walks = sequential.refusal(task.program, task.structure, task.x) is None
        proposal, guide = ("sequential", None) if walks else ("guide", task.guide)
    what = BY_ITS_GUIDE if proposal == "guide" else BY_PROPOSAL + proposal
    return what, guide, {"proposal": proposal, "samples": SAMPLES}


def can_be_trusted(fit: Fit, run: Run) -> bool:
    """Whether draws at the θ of a run can stand for the posterior: chains that converged, or weights of nearly all rows that
    are no gamble, and of particles as many lines as draws; and no part of log p(x) that the verifier sees is missing."""
    lines = fit.notes.get("fewest_lines")
    few = isinstance(lines, int) and any(len(v) > lines for v in fit.draws.values())
    if few or _misses(fit.claimed, run.verified):
        return False
    return untrusted(fit) <= 1 - GOOD_ROWS if fit.khat is not None else fit.converged is True


def _misses(claimed: Evidence | None, verified: Evidence | None) -> bool:
    """Whether a claim lies below a verified value of the same, by more than chance."""
    if claimed is None or verified is None or claimed.given != verified.given or verified.kind == "upper bound":
        return False
    away = verified.value - claimed.value - ROUNDING * abs(verified.value)
    return away > FAR * math.hypot(claimed.se or 0.0, verified.se or 0.0)


def untrusted(fit: Fit) -> float:
    """The share of rows whose weights cannot be trusted; 0 where there are none."""
    bad = fit.untrusted()
    return float(bad.mean()) if len(bad) else 0.0
