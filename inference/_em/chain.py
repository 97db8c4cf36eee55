"""Stochastic EM: a Markov chain over θ, whose E-step completes the data by draws of the latents.

One draw a row is stochastic EM (Celeux & Diebolt 1985), several are Monte Carlo EM (Wei & Tanner 1990). θ does not converge: it
moves about a place near the maximum, the less the more draws and rows there are (Nielsen 2000). The mean of the iterates after
a burn-in is the estimate, where they move about one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inference._em.completed import Completion
from inference._method.progress import Step
from inference._method.task import Task
from inference._numerics.psis import agreement

BURN_IN = 0.5  # of the iterations
AGREE = 1.1  # R-hat, of the two halves of the iterates that are kept


@dataclass
class Chain:
    """What a chain over θ leaves. The program stands at `theta`."""

    trace: list[float] = field(default_factory=list)  # what is watched, after each iteration
    kept: int = 0  # iterates after the burn-in
    rhat: float = np.inf  # of what is watched
    rhat_of_theta: float = np.inf  # the largest of an entry of θ
    averaged: bool = False  # whether θ is the mean of the kept iterates; else the last of them

    @property
    def agrees(self) -> bool:
        """Whether the two halves of what is watched agree."""
        return self.rhat <= AGREE

    def notes(self, completion: Completion, draws: int) -> dict[str, object]:
        """Facts of the chain, JSON-ready."""
        return {
            "draws_per_e_step": draws,
            "latents_drawn": completion.how,
            "burn_in": len(self.trace) - self.kept,
            "theta": f"the mean of the last {self.kept} iterates" if self.averaged else "the last iterate",
            "rhat": {"watched": _finite(self.rhat), "of_theta": _finite(self.rhat_of_theta)},
        }

    def warnings(self) -> list[str]:
        """In words."""
        if self.agrees:
            return []
        return [
            f"em with e_step=sample did not settle: R-hat of the two halves of the last {self.kept} iterations is "
            f"{self.rhat:.2f}, above {AGREE}; raise max_iter."
        ]


def walk(task: Task, completion: Completion, iterations: int, step: Step) -> Chain:
    """So many iterations of the chain; θ is then the mean of the iterates after the burn-in, where that stands for them."""
    chain, halves = Chain(kept=max(1, iterations - int(BURN_IN * iterations))), (_Moments(), _Moments())
    for i in range(iterations):
        completion.step()
        chain.trace.append(completion.value())
        if (place := i - (iterations - chain.kept)) >= 0:
            halves[2 * place // chain.kept].add(_flat(task))
        step(note=f"{'log p(x)' if task.structure.is_exact else 'log p(x, z)'} {chain.trace[-1]:.4f}")
    kept = np.asarray(chain.trace[-chain.kept :])
    if chain.kept >= 8:  # no draw moves what stands still
        still = np.ptp(kept) <= np.finfo(float).eps * chain.kept * (1 + np.abs(kept).max())
        chain.rhat = 1.0 if still else float(agreement(kept[-(chain.kept // 2 * 2) :].reshape(1, 2, -1))[0][0])
    chain.rhat_of_theta = _rhat(*halves)
    _average(task, completion, chain, halves, float(kept.mean()))
    return chain


def _average(task: Task, completion: Completion, chain: Chain, halves: tuple[_Moments, _Moments], usual: float) -> None:
    """Put θ at the mean of the iterates, unless they move among places of which it is none.

    Exchanged labels or turned axes leave log p(x; θ) as it is, but at their mean it is lower than at the iterates. Where
    log p(x; θ) is not known, the two halves have to agree in each entry of θ.
    """
    first, second = halves
    if not second.n:
        return
    last = _flat(task)
    share = first.n / (first.n + second.n)
    _set(task, share * first.mean + (1 - share) * second.mean)
    chain.averaged = completion.value() >= usual if task.structure.is_exact else chain.rhat_of_theta <= AGREE
    if not chain.averaged:
        _set(task, last)


class _Moments:
    """Mean and sum of squares about it, of vectors one by one."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, value: Tensor) -> None:
        self.n += 1
        away = value - self.mean
        self.mean = self.mean + away / self.n
        self.squares = self.squares + away * (value - self.mean)


def _rhat(first: _Moments, second: _Moments) -> float:
    """The largest R-hat of an entry, of the two halves of a chain (Gelman & Rubin 1992)."""
    n = min(first.n, second.n)
    if n < 2:
        return np.inf
    within = (first.squares + second.squares) / (first.n + second.n - 2)
    between = (first.mean - second.mean).square() / 2
    still = between <= torch.finfo(between.dtype).eps * (1 + first.mean.square())
    found = torch.where(still, torch.ones_like(between), ((n - 1) / n + between / within).sqrt())
    return float(found.nan_to_num(torch.inf).max()) if found.numel() else 1.0


def _flat(task: Task) -> Tensor:
    """θ in unconstrained coordinates [d]."""
    parts = [p.detach().reshape(-1) for p in task.program.unconstrained().values()]
    return torch.cat(parts).clone() if parts else torch.zeros(0)


@torch.no_grad()
def _set(task: Task, flat: Tensor) -> None:
    parameters = list(task.program.unconstrained().values())
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.reshape(parameter.shape))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
