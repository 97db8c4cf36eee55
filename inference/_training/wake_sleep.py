"""What importance sampling learns from: the wake phases for θ and for the guide, and the sleep phase for the guide.

Reweighted wake-sleep (Bornschein & Bengio 2015; Le et al. 2019), with weights that are normalised row by row, whatever
else is in the batch: a batch weighed as a whole, as `pyro.infer.ReweightedWakeSleep` does it, has one weight left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pyro
import torch
from torch import Tensor

from guides import at
from inference._method.task import Task
from inference._sampling import sequential as _sequential
from inference._sampling import weights
from inference._training.elbo import Index
from zoo._errors import Refusal
from zoo._program.slots import slots
from zoo._program.structure import Structure
from zoo._program.trace import node_of

DREAMS = 30_000  # simulated data in a pool


@dataclass
class Phases:
    """How to draw, and what share of the guide's learning is awake.

    `guide`: what is drawn from, the prior when None; `filters`: of a particle filter, which is drawn from where there are
    any; `defensive`: the share of the guide's draws that comes from the prior.
    """

    task: Task
    guide: torch.nn.Module | None
    particles: int
    defensive: float = 0.0
    insomnia: float = 1.0
    filters: int | None = None

    def check(self) -> None:
        """Raise `Refusal` where the sleep phase cannot be simulated."""
        if self.insomnia == 1 or self.guide is None:
            return
        observed = self.task.structure.observed
        if getattr(self.guide, "by_row", False):
            raise Refusal("a separate q for each row learns nothing from simulated data: take insomnia=1")
        if len(observed) != 1 or observed[0].event_shape != self.task.x.shape[1:]:
            raise Refusal("simulated data are a draw of one observed site, and the program's x is not: take insomnia=1")

    def objective(self, rows: Index, x: Tensor) -> Tensor:
        """A scalar whose value is the importance-weighted bound, nats per row, and whose gradient is each phase's.

        Where nothing is learned awake, its value is log q(z | x) of what is dreamt.
        """
        task, q = self.task, None if self.guide is None else at(self.guide, rows)
        if self.filters is not None:
            return self._filtered(x)
        if q is not None and self.insomnia == 0 and not task.learn:
            return asleep(task, q, x, self._pool).mean()
        drawn = weights.draw(task.program, task.structure, x, q, self.particles, self.defensive)
        bound = weights.log_mean(drawn.log_weights)[0]
        if drawn.log_guide is None:
            return bound.mean()
        learn = self.insomnia * (drawn.log_weights.detach().softmax(0) * drawn.log_guide).sum(0)
        if self.insomnia < 1 and q is not None:
            learn = learn + (1 - self.insomnia) * asleep(task, q, x, self._pool)
        return (bound + learn - learn.detach()).mean()

    @cached_property
    def _pool(self) -> Tensor | None:
        """Simulated x [DREAMS, …] to sleep on, where θ stays as it is and they are all that is simulated.

        Entries that are drawn one by one cost as many steps for one x as for all.
        """
        latents = self.task.structure.local_latents
        if self.task.learn or any(s.completes is None for s in latents):
            return None
        return _simulated(self.task, DREAMS)[0]

    def _filtered(self, x: Tensor) -> Tensor:
        """By Fisher's identity, the gradient of log p(x) is the posterior mean of the log joint's."""
        task = self.task
        drawn = _sequential.draw(task.program, task.structure, x, self.particles, self.filters or 1)
        log_p = weights.log_joint(task.program, task.structure, x, drawn.values)
        learn = (drawn.log_weights.softmax(0) * log_p).sum(0)
        return (weights.log_mean(drawn.log_weights)[0] + learn - learn.detach()).mean()


def asleep(task: Task, guide: Callable[..., object], x: Tensor, pool: Tensor | None = None) -> Tensor:
    """log q(z | x) [n] of simulated pairs, with the entries hidden that are missing in x [n, …]; differentiable in φ.

    `pool`: x that were simulated before, to be drawn from.
    """
    with torch.no_grad():
        dreamt, values = _dream(task, x, pool)
    conditioned = pyro.poutine.condition(guide, data=values)
    with task.program.settings():
        trace = pyro.poutine.trace(conditioned).get_trace(dreamt)
    return weights.local_log_prob(trace, task.structure.data_dim, len(x)).reshape(len(x))


def _simulated(task: Task, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Simulated x [size, …], and the latents that they were simulated from."""
    structure: Structure = task.structure
    trace = task.program.trace(None, size=size)
    latents = {s.name: node_of(trace, s.name)["value"] for s in structure.local_latents if s.completes is None}
    return node_of(trace, structure.observed[0].name)["value"].to(task.x.dtype), latents


def _dream(task: Task, x: Tensor, pool: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Simulated data with the holes of x, and the latents that they were simulated from."""
    if pool is None:
        whole, values = _simulated(task, len(x))
    else:
        whole, values = pool[torch.randint(len(pool), (len(x),))], {}
    dreamt = whole.masked_fill(x.isnan(), torch.nan)
    for site in task.structure.local_latents:
        if site.completes is None:
            continue
        flat = dreamt.flatten(1)
        index, real = slots(flat, site.event_shape[0])
        noise = (
            torch.rand_like(index, dtype=x.dtype).round() if site.discrete else torch.randn_like(index, dtype=x.dtype)
        )
        values[site.name] = torch.where(real, whole.flatten(1).gather(-1, index), noise)
    return dreamt, values
