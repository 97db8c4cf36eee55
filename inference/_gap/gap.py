"""log p(x) = ELBO + KL(q‖p), and the KL taken apart: what amortization loses, and what the family of q cannot reach.

Cremer, Li & Duvenaud 2018. For each row q is the guide's, and q* the best q of its family that a search for that row alone
finds, from several starts:

- amortization gap: ELBO(q*) − ELBO(q). Of a guide with a q of its own for each row, what its training left to gain;
- family gap: log p(x_i) − ELBO(q*) = KL(q* ‖ p(z | x_i)).

`left` says how much higher than q* another q of the family may still be: the mean of a few draws, at its maximum, is on average
no less than the maximum of the ELBO (Mak, Morton & Wood 1999), as far as the climbs found its maximum. It moves from the family
gap to the amortization gap, and is never more than the family gap.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from inference._answers.names import names_of
from inference._gap.bound import Moments, RowBounds
from inference._gap.own import Own
from inference._method.fit import Evidence, Fit
from inference._method.task import Task
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.result import Run
from inference._run.verify import verify
from zoo._errors import Refusal, UsageError

ROWS = 200  # that are taken apart, where no number is asked for
CHECK_DRAWS = 1000
FAR = 4.0  # standard errors
ROUNDING = 1e-6
PARTS = ("log_p", "elbo", "kl", "amortization", "family", "left")


@dataclass(frozen=True)
class Gap:
    """The parts of log p(x) for some rows, each with its kind and error, in total and for each row; nats."""

    model: str
    data: str
    method: str
    of: int  # rows of the run
    count: float  # how many rows those taken apart stand for
    rows: np.ndarray  # [n] those taken apart, from 0
    names: np.ndarray  # [n] of those
    labels: np.ndarray | None  # [n]
    family_of_q: str  # in words
    by_row: bool  # whether the guide has a q of its own for each row: then nothing is amortized
    log_p: Evidence
    elbo: Evidence
    kl: Evidence
    amortization: Evidence
    family: Evidence
    left: Evidence
    unconverged: int  # rows whose search did not converge
    check: (
        tuple[float, float] | None
    )  # what parts that were estimated apart differ from their sum by; its standard error
    warnings: tuple[str, ...]

    @property
    def worst(self) -> np.ndarray:
        """Places in `rows`, those of the largest KL first."""
        return np.argsort(-_each(self.kl), kind="stable")

    @property
    def title(self) -> str:
        """What is taken apart, in words."""
        n = len(self.rows)
        said = f"{n} of {self.of} rows, drawn at random" if n < self.of else f"all {n} rows"
        return f"{self.model} on {self.data} by {self.method}: {said}"

    @property
    def lost(self) -> str:
        """What the part that the guide loses to the best q is called."""
        return "optimization gap" if self.by_row else "amortization gap"

    @property
    def parts(self) -> dict[str, Evidence]:
        """What is shown, by name."""
        names = ("log p(x)", "ELBO(q)", "KL(q‖p)", self.lost, "family gap", "left to search")
        return {name: getattr(self, part) for name, part in zip(names, PARTS, strict=True)}

    def cells(self, i: int) -> list[str]:
        """The parts of the i-th of the rows."""
        out = []
        for part in self.parts.values():
            errors = part.se_per_datum
            out.append(f"{_each(part)[i]:.3f}" + ("" if errors is None else f" ± {errors[i]:.3f}"))
        return out

    @property
    def verdict(self) -> str:
        """Which part is larger, as far as it is known, in one or two sentences."""
        lost, family, left = self.amortization, self.family, self.left.value
        error = 2 * math.hypot(lost.se or 0.0, family.se or 0.0, self.left.se or 0.0)
        more = f"{self.unconverged} of the searches did not converge. " if self.unconverged else ""
        if family.kind == "lower bound":
            return (
                more
                + "log p(x) is known as a lower bound alone: the family gap is at least what is said, of the best q found."
            )
        if self.kl.value <= max(2 * (self.kl.se or 0.0), ROUNDING * abs(self.log_p.value)):
            return more + "No gap is seen: q is the posterior, as far as can be told."
        if lost.value > family.value + error:
            remedy = (
                "train longer" if self.by_row else "a larger network, longer training, or guide=mean_field would help"
            )
            return more + f"Most of the gap is the {self.lost}: {remedy}."
        if family.value - left > lost.value + left + error:
            return more + "Most of the gap is the family's: another family (guide_covariance=full, say) would help."
        return (
            more
            + f"Which part is larger is not certain: {self.lost} and family gap are equal within errors and what is left."
        )

    def name(self, i: int) -> str:
        """Of the i-th of the rows, with its label."""
        given = self.names[i] if isinstance(self.names[i], str) else f"row {self.names[i]}"
        return str(given) if self.labels is None else f"{given} ({self.labels[i]})"

    def to_json(self, worst: int = 10) -> dict[str, object]:
        """JSON-ready: the totals, and the worst rows."""
        parts = {name: getattr(self, name).to_json(self.count) for name in PARTS}
        return {
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "rows": len(self.rows),
            "of": self.of,
            "family_of_q": self.family_of_q,
            "by_row": self.by_row,
            **parts,
            "unconverged": self.unconverged,
            "check": None if self.check is None else {"difference": self.check[0], "se": self.check[1]},
            "worst": [self._row(int(i)) for i in self.worst[:worst]],
            "warnings": list(self.warnings),
        }

    def _row(self, i: int) -> dict[str, object]:
        name = self.names[i]
        out: dict[str, object] = {"row": int(self.rows[i]), "name": name if isinstance(name, str) else int(name)}
        out |= {} if self.labels is None else {"label": str(self.labels[i])}
        for part in PARTS:
            found = getattr(self, part)
            errors = found.se_per_datum
            out[part] = {"value": float(_each(found)[i]), "se": 0.0 if errors is None else float(errors[i])}
        return out


@entrance
def gap(run: Run, rows: int | None = None, seed: int | None = None) -> Gap:
    """Take the gap of a run with a guide apart.

    - `rows`: how many, drawn at random; 200 when None. `seed`: the run's own when None.

    Raises `Refusal` where the program or the guide has no such parts.
    """
    task = run.at_theta()
    if (why := _refusal(run, task)) is not None:
        raise Refusal(why)
    if rows is not None and rows < 1:
        raise UsageError(f"Expected at least 1 for rows, got {rows}.")
    seed = run.seed if seed is None else seed
    chosen = np.sort(np.random.default_rng(seed).permutation(len(task.x))[: rows or ROWS])
    with seeded(seed), in_words(run.model, "taking the gap apart"):
        return _taken_apart(run, task, torch.as_tensor(chosen), seed)


def _refusal(run: Run, task: Task) -> str | None:
    """Why a run's gap cannot be taken apart, or None."""
    if task.structure.global_latents:
        names = ", ".join(s.name for s in task.structure.global_latents)
        return f"zoo gap goes row by row, and the global latents ({names}) belong to all rows: take zoo compare, or no priors"
    if not task.structure.local_latents:
        return f"'{run.model}' has no latents: there is no q(z | x), and no gap"
    if task.guide is None:
        return f"zoo gap takes the gap of a guide q(z | x) apart, and {run.method} has none: run svi"
    return None


def _taken_apart(run: Run, task: Task, chosen: Tensor, seed: int) -> Gap:
    generator = torch.Generator().manual_seed(seed)
    small = _in_double(task.some(chosen))
    bounds = _bounds(small, task, chosen)
    climbs, draws = bounds.draws()
    noise = bounds.independent(climbs, generator)
    best = bounds.best(noise, generator)
    most = bounds.moments(best.at, noise)  # on the draws that it was found on: too high on average
    fresh = [bounds.independent(draws, generator) for _ in range(4)]
    start = torch.zeros_like(best.at)
    better = (bounds.each(best.at, fresh[0]) - bounds.each(start, fresh[0])).mean(0) > 0  # else the guide's own q stays
    found = torch.where(better.unsqueeze(1), best.at, start)
    elbo, reached = bounds.moments(start, fresh[1]), bounds.moments(found, fresh[2])
    gained = bounds.gained(start, found, fresh[3])
    check = _checked(bounds, elbo, reached, gained, start, generator)
    bounds.own.numbers = found
    fit, log_p = verify(small, Fit({}, None, guide=bounds.own))
    assert log_p is not None and log_p.per_datum is not None
    said = [*fit.warnings]
    if log_p.kind == "estimate" and _far_below(log_p, reached, small):
        log_p = replace(log_p, kind="lower bound")
        said.append(
            "the estimate of log p(x) lies below an ELBO: it is a lower bound, and so are the family gap and the KL."
        )
    whole, bound, kl, lost, family, left = _parts(small, log_p, bounds.exact, elbo, reached, gained, most, best.left)
    rows = chosen.numpy()
    return Gap(
        model=run.model,
        data=run.data,
        method=run.method,
        of=len(task.x),
        count=small.count,
        rows=rows,
        names=names_of(run.dataset)[rows],
        labels=None if run.labels is None else np.asarray(run.labels)[rows],
        family_of_q=", ".join(f"{kind} {site}" for site, kind in bounds.own.families.items()),
        by_row=bool(getattr(task.guide, "by_row", False)),
        log_p=whole,
        elbo=bound,
        kl=kl,
        amortization=lost,
        family=family,
        left=left,
        unconverged=int((~best.converged).sum()),
        check=check,
        warnings=tuple(said),
    )


def _in_double(task: Task) -> Task:
    """The task in float64, with a guide of its own."""
    assert task.guide is not None
    return replace(task.doubled(), guide=copy.deepcopy(task.guide).double(), quiet=True)


def _bounds(small: Task, task: Task, chosen: Tensor) -> RowBounds:
    assert small.guide is not None
    try:
        return RowBounds(small, Own(small, small.guide, chosen))
    except NotImplementedError as error:
        raise Refusal(
            f"zoo gap needs a bound that has a derivative in each row's own q, and cannot have one: {error}. It takes guides "
            "that draw from normals, and discrete latents that can be summed out"
        ) from error


def _checked(
    bounds: RowBounds, elbo: Moments, reached: Moments, gained: Moments, start: Tensor, generator: torch.Generator
) -> tuple[float, float] | None:
    """What parts that were estimated apart lack of their sum, and its error: ELBO(q) + gain − ELBO(q*), or, where these are
    exact, ELBO(q) by draws less ELBO(q). Raises `ArithmeticError` where it is more than errors explain."""
    if bounds.exact and not bounds.shapes:
        return None
    errors = [elbo[1], reached[1], gained[1]]
    away = elbo[0] + gained[0] - reached[0]
    if bounds.exact:
        plain = bounds.each(start, bounds.draw(CHECK_DRAWS, generator, plain=True))
        away, errors = plain.mean(0) - elbo[0], [plain.std(0) / len(plain) ** 0.5]
    difference, se = float(away.sum()), float(torch.stack(errors).square().sum().sqrt())
    if abs(difference) > FAR * se + ROUNDING * max(1.0, float(elbo[0].abs().sum())):
        raise ArithmeticError(
            f"the parts of the gap do not add up: they differ from the whole by {difference:.3g} nats, with a standard error "
            f"of {se:.2g}. The guide's draws may have too heavy tails: nothing is reported."
        )
    return difference, se


def _far_below(log_p: Evidence, reached: Moments, task: Task) -> bool:
    """Whether log p(x) lies below an ELBO by more than the errors explain."""
    best = _evidence(reached, False, task)
    return log_p.value < best.value - FAR * float(math.hypot(log_p.se or 0.0, best.se or 0.0)) - ROUNDING * abs(
        best.value
    )


def _parts(
    task: Task,
    log_p: Evidence,
    exact: bool,
    elbo: Moments,
    reached: Moments,
    gained: Moments,
    most: Moments,
    decrement: Tensor,
) -> tuple[Evidence, Evidence, Evidence, Evidence, Evidence, Evidence]:
    """The evidences of a `Gap`, in the order of `PARTS`."""
    kl, family = (_less(log_p, part, exact, task) for part in (elbo, reached))
    left = most[0] - reached[0] + decrement.clamp(min=0.0)
    whole = _evidence((left, torch.hypot(most[1], reached[1])), False, task)
    of_left = replace(
        whole,
        value=min(max(whole.value, 0.0), max(family.value, 0.0)),
        per_datum=np.minimum(_each(whole).clip(min=0.0), _each(family).clip(min=0.0)),
    )
    return log_p, _evidence(elbo, exact, task), kl, _evidence(gained, exact, task), family, of_left


def _evidence(part: Moments, exact: bool, task: Task) -> Evidence:
    errors = None if exact else part[1].numpy()
    return Evidence.from_per_datum(part[0].numpy(), "exact" if exact else "estimate", errors, weights=task.times)


def _less(log_p: Evidence, part: Moments, exact: bool, task: Task) -> Evidence:
    """log p(x_i) less a part that is subtracted, with both errors; a lower bound where log p(x) is one."""
    kind = "estimate" if log_p.kind == "exact" and not exact else log_p.kind
    mine = log_p.se_per_datum if log_p.se_per_datum is not None else np.zeros(len(task.x))
    errors = None if kind == "exact" else np.hypot(mine, part[1].numpy())
    out = Evidence.from_per_datum(_each(log_p) - part[0].numpy(), kind, errors, weights=task.times)
    return replace(out, se=float(math.hypot(log_p.se or 0.0, _evidence(part, exact, task).se or 0.0)))


def _each(part: Evidence) -> np.ndarray:
    """Of each row [n]."""
    assert part.per_datum is not None
    return part.per_datum
