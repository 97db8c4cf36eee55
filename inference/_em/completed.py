"""The M-step on completed data: closed forms where the exact engine has statistics of draws, else L-BFGS on log p(x, z; θ)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from inference._em.latents import Latents, Values
from inference._exact.engine import Plan, Rows, Statistics
from inference._exact.numeric import climb_numerically
from inference._families._family import Floor
from inference._method.task import Task
from inference._numerics.weighted import weighed
from zoo._program.trace import local_log_prob

Parameters = Mapping[str, Tensor]


class Completion(Protocol):
    """A way to complete the data and to maximise over θ."""

    how: str  # where the latents come from, in words

    @property
    def numeric(self) -> tuple[str, ...]:
        """The parameters that have no closed form."""

    def step(self) -> None:
        """Complete the data at the program's θ, and put θ at its best, or nearer, for them."""

    def value(self) -> float:
        """What is watched, at the θ of now, nats."""


class ByStatistics:
    """Draws of an exact engine as the statistics of its own M-step."""

    how = "from the exact posterior"

    def __init__(self, task: Task, draws: int, floor: Floor) -> None:
        self.task, self.draws, self.floor = task, draws, floor
        self.plan: Plan = task.plan({})

    @property
    def numeric(self) -> tuple[str, ...]:
        return self.plan.by_steps({})

    def step(self) -> None:
        found = self.task.engine.sampled(self.draws)
        assert found is not None
        self.maximise(*found)

    def maximise(self, stats: Statistics, shares: Rows) -> None:
        """The M-step; `shares` [N, A] of each row's assignments, where a site needs them."""
        if wrong := self.task.engine.broken(
            self.plan, stats
        ):  # these θ are no longer the copies that they were taken for
            self.task.numeric.update(wrong)
            self.plan = self.task.plan({})
        self.floor.clear()
        self.task.m_step(self.plan, stats, {}, self.floor, shares if stats.need_responsibilities else None)

    @torch.no_grad()
    def value(self) -> float:
        return float(self.task.engine.log_evidence()[0])


class ByDensity:
    """Draws of the latents as data: the program's own log p(x, z; θ), averaged over them."""

    def __init__(self, task: Task, latents: Latents) -> None:
        self.task, self.latents, self.how = task, latents, latents.how
        learnable = {p.name for p in task.structure.parameters if p.learnable}
        self._numeric = tuple(n for n in task.program.values() if n in learnable)
        self.drawn: Values = {}

    @property
    def numeric(self) -> tuple[str, ...]:
        return self._numeric

    def step(self) -> None:
        self.drawn = self.latents.draw()
        climb_numerically(
            self.task.program, self.numeric, {}, {}, lambda theta, _: self._joint(theta), self.task.count, iterations=10
        )

    @torch.no_grad()
    def value(self) -> float:
        if self.task.structure.is_exact:
            return float(self.task.engine.log_evidence()[0])
        return float(self._joint(None))

    def _joint(self, theta: Parameters | None) -> Tensor:
        """log p(x, z; θ), the mean over the draws; nats."""
        structure, x = self.task.structure, self.task.x
        M = len(next(iter(self.drawn.values())))
        sites = {s.name: s for s in structure.local_latents}
        latents = {n: structure.axes.as_program(v.flatten(0, 1), sites[n]) for n, v in self.drawn.items()}
        trace = self.task.program.joint_trace(x.repeat(M, *(1,) * (x.dim() - 1)), parameters=theta, latents=latents)
        each = local_log_prob(trace, structure.data_dim, M * len(x)).reshape(M, len(x)).mean(0)
        return weighed(each, self.task.weights, slice(None)).sum()
