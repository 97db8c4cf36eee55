"""Bounds from both sides on log p(x) of simulated data: bidirectional Monte Carlo.

Grosse, Ghahramani & Adams 2015; for decoders Wu, Burda, Salakhutdinov & Grosse 2017. Chains that go forwards have weights
whose mean is unbiased for p(x): its logarithm is a lower bound in expectation. Chains that begin at the z that made x, an exact
draw of the posterior, and go the same way backwards have weights whose mean is unbiased for 1 / p(x): minus its logarithm is an
upper bound in expectation.

By Markov's inequality neither is off by b nats to the wrong side with a probability above exp(−b), whatever the chains do. That
holds for the total over any number of rows, since the rows' weights are independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

from benchmarks._sandwich.simulated import Simulated
from inference import ais
from inference._density.guided import Guided
from inference._density.local import LocalDensity
from inference._density.peaks import Peaks
from inference._mcmc import annealed, hamiltonian
from inference._mcmc.entries import Entries
from inference._method.fit import Evidence, Fit
from inference._method.summed import summed
from inference._method.task import Task
from inference._run._own.disagreement import Disagreement
from inference._run.verify import verify
from inference._sampling import weights
from zoo._errors import Refusal

SURE = 8.0  # nats: what a bound is off by to the wrong side with a probability below exp(−8), or 1 in 2981
NATS_95 = math.log(40)  # by which both bounds together hold with a probability of 95 %


@dataclass(frozen=True)
class Sandwich:
    """Two bounds on log p(x) of the same rows, by paths of so many steps."""

    steps: int
    lower: Evidence
    upper: Evidence

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self._gaps)

    @property
    def _gaps(self) -> np.ndarray:
        assert self.upper.per_datum is not None and self.lower.per_datum is not None
        return self.upper.per_datum - self.lower.per_datum

    @property
    def width(self) -> float:
        """From the lower to the upper bound, nats a row."""
        return float(self._gaps.mean())

    @property
    def width_se(self) -> float | None:
        """Its standard error, from how much it differs between rows."""
        return float(self._gaps.std(ddof=1) / self.n**0.5) if self.n > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """What holds log p(x) of all rows with a probability of 95 % at least."""
        return self.lower.value - NATS_95, self.upper.value + NATS_95

    def contains(self, exact: Evidence, errors: float = 3.0) -> bool:
        """Whether an exact value lies between the bounds, but for so many standard errors of each."""
        near = 1e-9 * max(1.0, abs(exact.value))
        above = exact.value - self.upper.value <= errors * (self.upper.se or 0.0) + near
        return above and self.lower.value - exact.value <= errors * (self.lower.se or 0.0) + near

    def part(self, rows: slice) -> Sandwich:
        """That of some of the rows. The error of the upper bound comes from how much all rows differ."""
        assert self.lower.per_datum is not None and self.upper.per_datum is not None
        assert self.lower.se_per_datum is not None
        low = Evidence.from_per_datum(self.lower.per_datum[rows], "lower bound", self.lower.se_per_datum[rows])
        share = len(low.per_datum if low.per_datum is not None else ()) / self.n
        se = None if self.upper.se is None else self.upper.se * share**0.5
        each = self.upper.per_datum[rows]
        return Sandwich(self.steps, low, Evidence(float(each.sum()), se, "upper bound", each))

    def check(self, exact: Evidence | None) -> None:
        """Raise `Disagreement` where the bounds cross, or an exact value lies outside them, beyond what chance allows."""
        pairs = [("lower bound", self.lower, "upper bound", self.upper)]
        if exact is not None:
            pairs += [
                ("lower bound", self.lower, "exact value", exact),
                ("exact value", exact, "upper bound", self.upper),
            ]
        for one, low, other, high in pairs:
            if not low.value - high.value <= SURE:
                raise Disagreement(
                    f"the {one} of log p(x) ({low.value:.3f} nats) lies {low.value - high.value:.4g} nats above the {other} "
                    f"({high.value:.3f} nats), which chance allows once in {math.exp(SURE):,.0f} runs. Either what the program "
                    "simulates is not drawn from its density, or one of the two is wrong."
                )


def refusal(task: Task, start: str) -> str | None:
    """Why there is no sandwich for the program, or None."""
    structure = task.structure
    if structure.global_latents:
        names = ", ".join(f"'{s.name}'" for s in structure.global_latents)
        return f"a sandwich takes θ as it is, and the program has global latents: {names}. zoo check serves those"
    if (reason := ais.refusal(structure)) is not None:
        return reason
    if start == "guide" and (task.guide is None or not structure.continuous_locals):
        return (
            "start=guide needs a guide of continuous latents: fit one by svi (method=svi, or the folder of such a run)"
        )
    if start == "guide" and getattr(task.guide, "by_row", False):
        return (
            "start=guide needs a guide that serves new rows, and this one holds a q of its own for each row of its data"
        )
    return None


@torch.no_grad()
def exact_evidence(task: Task) -> Evidence | None:
    """log p(x) where the program has it exactly, verified by the runner."""
    if not task.structure.is_exact:
        return None
    theta = {name: value.numpy() for name, value in task.theta().items()}
    return verify(task, Fit(theta, None))[1]


@torch.no_grad()
def sandwiches(found: Simulated, steps: Sequence[int], chains: int, leapfrog: int, start: str) -> list[Sandwich]:
    """A sandwich for each number of steps, on the same data, `chains` chains of each row in each direction."""
    task = found.task
    if (reason := refusal(task, start)) is not None:
        raise Refusal(reason)
    walks = _by_gibbs if not task.structure.continuous_locals else _by_hamiltonian
    out = {count: ([], []) for count in steps}  # type: dict[int, tuple[list[Tensor], list[Tensor]]]
    for count, forth, back in walks(found, steps, chains, leapfrog, start):
        for kept, log_weights in zip(out[count], (forth, back), strict=True):
            kept.append(log_weights.double())
    return [_sandwich(count, torch.cat(forth, 1), torch.cat(back, 1)) for count, (forth, back) in out.items()]


def _sandwich(steps: int, forth: Tensor, back: Tensor) -> Sandwich:
    (low, low_se), (minus_high, high_se) = weights.log_mean(forth), weights.log_mean(back)
    if not bool(minus_high.isfinite().all()):
        raise Refusal(
            "the latents that were simulated have no density given their own data, so that there is no upper bound"
        )
    lower = Evidence.from_per_datum(low.numpy(), "lower bound", low_se.numpy())
    each, n = -minus_high.numpy(), len(low)
    # all chains of a row begin at one draw, which differs from row to row: so do their gaps, and their errors are not smaller
    gaps = each - low.numpy()
    apart = n * float(gaps.var(ddof=1)) if n > 1 else math.nan
    se = math.sqrt(max(apart, float(high_se.square().sum()))) if math.isfinite(apart) else None
    return Sandwich(steps, lower, Evidence(float(each.sum()), se, "upper bound", each))


Walks = Iterator[tuple[int, Tensor, Tensor]]  # steps, log-weights [C, rows] forwards and backwards


def _by_hamiltonian(found: Simulated, steps: Sequence[int], chains: int, leapfrog: int, start: str) -> Walks:
    task = summed(found.task)
    density = LocalDensity(task.program, task.structure, task.x)
    if start == "guide" and density.A > 1:
        raise Refusal("start=guide needs a program whose discrete latents can be summed out")
    z = density.coordinates({s.name: found.of(s, 1)[0] for s in found.task.structure.local_latents})  # [1, n, L]
    parts, most = list(density.chunks(chains * density.A, ais.COPIES)), max(steps)
    total = len(parts) * (hamiltonian.pilots(most) + 2 * sum(steps))
    with task.progress("sandwich", total) as step:
        for rows in parts:
            here, end = _from(start, density.rows(rows), z[:, rows], task, rows)
            sizes = hamiltonian.pilot(here, chains, most, leapfrog, step)
            for count in steps:
                forth = hamiltonian.anneal(here, chains, count, leapfrog, sizes, step).log_weights
                begin = end.expand(chains, -1, -1).contiguous()
                yield count, forth, hamiltonian.back(here, begin, count, leapfrog, sizes, step)


def _from(start: str, density: LocalDensity, z: Tensor, task: Task, rows: slice) -> tuple[hamiltonian.Tempered, Tensor]:
    """What some rows' chains walk on from that start, and where there the z is that made x, [1, n, L]."""
    if start == "guide":
        return Guided(density, task.guide, rows), z
    if start == "prior":
        return density, z
    peaks = Peaks(density)
    return peaks, peaks.placed(z)


def _by_gibbs(found: Simulated, steps: Sequence[int], chains: int, leapfrog: int, start: str) -> Walks:
    task = found.task
    weights.check(task.program, task.structure, task.x)
    parts = list(weights.chunks(task.x, chains))
    with pyro.validation_enabled(False), task.progress("sandwich", len(parts) * 2 * sum(steps)) as step:
        for rows in parts:
            walkers = Entries(task.program, task.structure, task.x[rows], chains)
            for count in steps:
                betas = hamiltonian.schedule(count).tolist()
                walkers.begin(chains)
                forth = annealed.forth(walkers, betas, step)
                walkers.place({s.name: found.of(s, chains, rows) for s in task.structure.local_latents})
                yield count, forth, annealed.back(walkers, betas, step)
