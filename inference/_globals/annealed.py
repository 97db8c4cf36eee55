"""Annealed importance sampling of global latents, jointly with what of the rows is not exact given them (Neal 2001).

The path is p(u) [p(x, u) / p(u)]^β, from the prior to the posterior of all coordinates u. A pilot walks it as a population,
each temperature so near the last that the weights stay even (Jasra et al. 2011), and learns step sizes and scales. The chains
that are weighed go by these, fixed in advance, each by itself: so their weights are independent, and unbiased for p(x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference._globals import target as _target
from inference._globals.labels import POINTS, Labels
from inference._globals.result import fit_of
from inference._globals.starts import starts
from inference._globals.target import Target
from inference._mcmc.recorded import Gradient
from inference._method.estimates import Estimates
from inference._method.fit import Fit
from inference._method.task import Task
from inference._sampling.nested import settled
from zoo._errors import Refusal
from zoo._program.structure import Structure

ACCEPTANCE, GAIN, JITTER = 0.8, 0.5, 0.2  # of trajectories; of log sizes, in what acceptance is off by; of sizes
EVEN = 0.9  # effective share of the pilot's weights from one temperature to the next
MOVES = 3  # of the pilot at each temperature
MOST = 300  # temperatures of the pilot
REMEDY = "Raise temperatures, leapfrog, or chains."


def refusal(structure: Structure) -> str | None:
    """Why annealing cannot serve a program with global latents, or None."""
    reason = _target.refusal(structure)
    return None if reason is None else f"ais walks on the density of all latents, and {reason}"


@dataclass
class _State:
    u: Tensor  # [C, d]
    prior: Tensor  # log p(u) [C]
    given: Tensor  # log p(x | u) [C], −∞ where there is no density
    slope: Tensor  # of log f at β [C, d]

    def log_f(self, beta: float) -> Tensor:
        return settled(self.prior + beta * self.given) if beta > 0 else settled(self.prior)


@dataclass(frozen=True)
class _Stage:
    """What the pilot found for the way to a temperature."""

    beta: float
    size: float
    scale: Tensor  # [d]


class _Path:
    """Chains side by side on one recorded density of (u, β), whose derivative in β is log p(x | u)."""

    def __init__(self, target: Target, chains: int, leapfrog: int) -> None:
        self.target, self.leapfrog, self.generator = target, leapfrog, target.generator
        begin, again = target.prior(chains), target.prior(chains)
        if begin is None or again is None:
            raise Refusal("ais begins at draws from the prior, and the program cannot draw them")
        self.begin, self.again = begin, again

        def density(points: Tensor) -> Tensor:
            u, beta = points[:, :-1], points[:, -1]
            prior = target.log_prior(u)
            return prior + beta * (target.posterior.log_density(u) - prior)

        middle = torch.full((chains, 1), 0.5, dtype=torch.float64)
        self.gradient = Gradient(density, torch.cat([self.begin, middle], 1))

    def look(self, u: Tensor, beta: float) -> _State:
        """Densities and slopes at u [C, d]."""
        points = torch.cat([u, torch.full((len(u), 1), beta, dtype=torch.float64)], 1)
        with np.errstate(all="ignore"):
            value, slope = map(torch.as_tensor, self.gradient(points.numpy()))
        given = settled(slope[:, -1])
        return _State(u, settled(value - beta * given), given, slope[:, :-1].nan_to_num(0.0, 0.0, 0.0))

    def move(self, state: _State, beta: float, size: float, scale: Tensor) -> tuple[_State, float]:
        """One Hamiltonian trajectory of each chain at β, `state` looked at there; and the share accepted."""
        jitter = 1 + JITTER * (2 * torch.rand(len(state.u), 1, generator=self.generator, dtype=torch.float64) - 1)
        step = size * jitter * scale
        momentum = torch.randn(state.u.shape, generator=self.generator, dtype=torch.float64)
        before = state.log_f(beta) - 0.5 * momentum.square().sum(1)
        new = state
        momentum = momentum + 0.5 * step * new.slope
        for k in range(self.leapfrog):
            new = self.look(new.u + step * momentum, beta)
            momentum = momentum + (0.5 if k == self.leapfrog - 1 else 1.0) * step * new.slope
        after = new.log_f(beta) - 0.5 * momentum.square().sum(1)
        accept = (after - before).nan_to_num(-torch.inf, torch.inf, -torch.inf).clamp(max=0).exp()
        taken = torch.rand(len(accept), generator=self.generator, dtype=torch.float64) < accept
        at = taken.unsqueeze(1)
        chosen = _State(
            torch.where(at, new.u, state.u),
            torch.where(taken, new.prior, state.prior),
            torch.where(taken, new.given, state.given),
            torch.where(at, new.slope, state.slope),
        )
        return chosen, float(accept.mean())

    def pilot(self, step: Callable[..., object]) -> list[_Stage]:
        """A population that is resampled from one temperature to the next."""
        state, beta, size, stages = self.look(self.begin, 0.0), 0.0, 0.3, list[_Stage]()
        while beta < 1:
            beta = 1.0 if len(stages) == MOST else _next(state.given, beta)
            share = ((beta - (stages[-1].beta if stages else 0.0)) * state.given).softmax(0).nan_to_num(0.0)
            chosen = torch.multinomial(share + 1e-300, len(share), replacement=True, generator=self.generator)
            scale = state.u[chosen].std(0).clamp(min=1e-8)
            state = self.look(state.u[chosen], beta)
            for _ in range(MOVES):
                state, accepted = self.move(state, beta, size, scale)
                size = float(np.clip(size * np.exp(GAIN * (accepted - ACCEPTANCE)), 1e-6, 3.0))
            stages.append(_Stage(beta, size, scale))
            step(note=f"pilot, temperature {beta:.3g}")
        return stages

    def anneal(self, stages: list[_Stage], each: int, step: Callable[..., object]) -> tuple[Tensor, Tensor, float]:
        """Where the chains end [C, d], their log-weights [C], and how often moves were accepted."""
        state, log_weights, before, rate = self.look(self.again, 0.0), torch.zeros(len(self.again)), 0.0, []
        log_weights = log_weights.double()
        for stage in stages:
            for beta in np.linspace(before, stage.beta, each + 1)[1:].tolist():
                log_weights = settled(log_weights + (beta - before) * state.given)
                state, accepted = self.move(self.look(state.u, beta), beta, stage.size, stage.scale)
                rate.append(accepted)
                before = beta
            step(note=f"temperature {before:.3g}")
        return state.u, log_weights, float(np.mean(rate))


def _next(given: Tensor, beta: float) -> float:
    """The furthest temperature at which the weights of log-likelihoods [C] are as even as they should be."""

    def even(rise: float) -> bool:
        share = (rise * given).softmax(0).nan_to_num(0.0)
        return float(1 / share.square().sum().clamp(min=1e-300)) >= EVEN * len(given)

    if even(1 - beta):
        return 1.0
    low, high = 0.0, 1 - beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if even(middle) else (low, middle)
    return min(1.0, beta + max(low, 1e-12))


def fit(task: Task, temperatures: int, chains: int, leapfrog: int) -> Fit:
    """Weighted chains over at least so many temperatures."""
    target = Target(task)
    if not target.posterior.side_by_side:
        raise Refusal(
            f"ais evaluates many draws at once, and '{task.program.name}' takes one at a time. Methods for that: nuts, "
            "importance"
        )
    path = _Path(target, chains, leapfrog)
    with task.progress("ais") as step:
        stages = path.pilot(step)
        each = max(1, -(-temperatures // len(stages)))
        flat, log_weights, accepted = path.anneal(stages, each, step)
    if path.gradient.recorded is not None:
        ends = torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)
        if not path.gradient.keep_if_right(ends):
            raise Refusal(
                f"ais recorded the density of '{task.program.name}', which is another one where the chains ended: the "
                "program decides by its latents' values. Write such choices as torch.where."
            )
    told = Estimates.of(log_weights.unsqueeze(1))
    labels = Labels(target, starts(target)[:POINTS])
    notes = {"temperatures": each * len(stages), "chains": chains, "acceptance": accepted}
    return fit_of(task, target, flat, log_weights, labels, told, REMEDY, notes, every_label=True)
