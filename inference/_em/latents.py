"""Draws of the latents at the program's θ, each draw moved from the one before by steps that keep the posterior as it is.

Discrete latents move by a Gibbs sweep. Continuous ones are chosen, by their weights, from themselves and a few proposals:
Gaussians at the modes, and the prior (iterated sampling importance resampling; Andrieu, Lee & Vihola 2018). Whatever the
number of proposals, the posterior stays as it is under such a move, which plain resampling of weighted draws does not
achieve. Where the posterior is exact each draw is independent of the last.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from inference._density.local import LocalDensity
from inference._density.newton import Modes, modes
from inference._mcmc.entries import Entries
from inference._method.task import Task

PROPOSALS = 10  # for each draw
PRIOR = 0.2  # of the proposals: their weights are bounded wherever p(x | z) is
SETTLING = 10  # moves before the first draw that counts

Values = dict[str, Tensor]


class Latents(Protocol):
    """Where draws of the latents come from."""

    how: str  # in words

    def draw(self) -> Values:
        """Site → the next draws [M, N, inner plates, event], at the program's present θ."""


def latents(task: Task, draws: int) -> Latents:
    """So many draws of each row's latents at a time, by what the program has: its exact posterior, or moves."""
    if task.structure.is_exact:
        return Exact(task, draws)
    return Gibbs(task, draws) if not task.structure.continuous_locals else Resampled(task, draws)


class Exact:
    """Draws from the exact posterior."""

    how = "from the exact posterior"

    def __init__(self, task: Task, draws: int) -> None:
        self.task, self.draws = task, draws

    def draw(self) -> Values:
        return self.task.engine.draw(None, self.draws, {})


class Gibbs:
    """Chains of discrete latents that go on from where they were, by a sweep a draw."""

    how = "by Gibbs sweeps"

    def __init__(self, task: Task, draws: int) -> None:
        self.task, self.draws = task, draws
        self.chains: Entries | None = None

    @torch.no_grad()
    def draw(self) -> Values:
        task, before = self.task, self.chains
        chains = Entries(task.program, task.structure, task.x, self.draws)  # at this θ
        if before is not None:
            chains.place(before.values(before.z))
        for _ in range(1 if before is not None else SETTLING):
            chains.sweep()
        self.chains = chains
        values = chains.values(chains.z)
        return {s.name: task.structure.axes.by_datum(values[s.name], s) for s in chains.sites}


class Resampled:
    """Each draw chosen from itself and proposals, by their weights."""

    how = "by resampling from Gaussians at the modes, from the prior, and from the draws before"

    def __init__(self, task: Task, draws: int) -> None:
        self.task, self.draws = task, draws
        self.modes: Modes | None = None
        self.z: Tensor | None = None  # [M, N, L]

    @torch.no_grad()
    def draw(self) -> Values:
        density = LocalDensity(self.task.program, self.task.structure, self.task.x)
        q = modes(density) if self.modes is None else modes(density, start=self.modes.mean, tries=0)
        moves = 1 if self.z is not None else SETTLING
        z = density.prior(self.draws) if self.z is None else self.z
        for _ in range(moves):
            parts = [self._moved(density.rows(rows), q.rows(rows), z[:, rows]) for rows in self._chunks(density)]
            z = torch.cat(parts, 1)
        self.modes, self.z = q, z
        return density.values(z)

    def _chunks(self, density: LocalDensity) -> list[slice]:
        return list(density.chunks(self.draws * (PROPOSALS + 1), 1))

    def _moved(self, density: LocalDensity, q: Modes, z: Tensor) -> Tensor:
        """The next z [M, n, L]: one of the proposals [K, M, n, L] or itself, by p(x, z) over the density of the proposal."""
        M, n, L = z.shape
        of_prior = (
            torch.rand(PROPOSALS * M, n, 1) < PRIOR
        )  # each on its own: of fixed numbers the posterior would not stay
        new = torch.where(of_prior, density.prior(PROPOSALS * M), q.draw(PROPOSALS * M)[0])
        all = torch.cat([z, new])  # [(1 + K) M, n, L]
        latent, observed = density.terms(all)
        log_q = q.log_prob(all, torch.zeros(all.shape[:-1], dtype=torch.long))
        log_w = latent + observed - torch.logaddexp(latent + math.log(PRIOR), log_q + math.log1p(-PRIOR))
        log_w = log_w.nan_to_num(-torch.inf, -torch.inf, -torch.inf).unflatten(0, (-1, M))  # [1 + K, M, n]
        log_w[0] = torch.where(log_w.amax(0).isneginf(), torch.zeros_like(log_w[0]), log_w[0])
        chosen = torch.distributions.Categorical(logits=log_w.movedim(0, -1)).sample()  # [M, n]
        index = chosen[None, :, :, None].expand(1, M, n, L)
        return all.unflatten(0, (-1, M)).gather(0, index)[0]
