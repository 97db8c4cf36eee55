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

from inference._compare.elsewhere import unvisited
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
EXACT = "the exact posterior"
ITSELF = "itself"  # a method that is the reference has nothing to be held against
SEED = 77  # other draws than those of the method that is held against it
FAR = 4.0  # standard errors
ROUNDING = 1e-6
GOOD_ROWS = 0.99  # the share of rows whose weights must be trusted, for importance sampling to be a reference


@dataclass(frozen=True)
class Reference:
    """What runs of one θ are held against.

    - `what`: `EXACT`, "nuts", "importance", `BY_PROPOSAL` and its name, `BY_ITS_GUIDE`, or `ITSELF`.
    - `fit`: None where it cannot be trusted.
    - `doubt`: what another run's draws say against it; "" for nothing.
    """

    theta: Mapping[str, np.ndarray]
    what: str
    fit: Fit | None
    doubt: str = ""


@dataclass
class References:
    """References at the θ of runs, each found once."""

    runs: Sequence[Run]
    tried: list[Reference] = field(default_factory=list)

    def held(self) -> list[Reference]:
        """What each run is held against. Those that can be a reference themselves are looked at first."""
        ways = [way_of(run.at_theta().structure) for run in self.runs]
        found = {
            i: self._at(self.runs[i]) for i in sorted(range(len(ways)), key=lambda i: ways[i] != self.runs[i].method)
        }
        of = [(run, self.tried[found[i]]) for i, run in enumerate(self.runs)]
        return [replace(known, what=ITSELF) if known.what == run.method else known for run, known in of]

    def _at(self, run: Run) -> int:
        """The place of the reference at the θ of a run."""
        task = run.at_theta()
        theta = {name: np.asarray(value) for name, value in task.theta().items()}
        for i, known in enumerate(self.tried):
            if all(np.array_equal(known.theta[name], value) for name, value in theta.items()):
                if known.fit is not None and known.what != EXACT and _misses(known.fit.claimed, run.verified):
                    self.tried[i] = replace(known, fit=None)
                return i
        what, fit = _reference(run, task)
        doubt = ""
        if fit is not None and what == "nuts":
            doubt = unvisited(task, fit, [(r.method, r.fit) for r in self.runs if r.fit is not fit])
        self.tried.append(Reference(theta, what, fit, doubt))
        return len(self.tried) - 1


def way_of(structure: Structure) -> str:
    """The method whose posterior is the reference for a program."""
    if structure.is_exact and (not structure.global_latents or structure.integrable):
        return "em"
    return "nuts" if structure.global_latents else "importance"


def _reference(run: Run, task: Task) -> tuple[str, Fit | None]:
    way = way_of(task.structure)
    if way == run.method and way != "em":  # the method itself may have the reference's draws
        trusted = can_be_trusted(run.fit, run)
        if trusted or way == "nuts":
            return way, run.fit if trusted else None
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
    return what, fit if way == "em" or can_be_trusted(fit, run) else None


def _settings(way: str, task: Task) -> tuple[str, Any, dict[str, object]]:
    """What the reference is called, the guide that it draws from, and its options.

    Importance sampling draws from Gaussians at the modes. Discrete latents have none: there a particle filter draws, or else
    the run's guide.
    """
    if way != "importance":
        return EXACT if way == "em" else way, None, {}
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
