"""Classification EM: each row is given the most probable value of its discrete latents, and θ is at its best for these.

Celeux & Govaert 1992. It climbs Σ log p(x_i, a_i; θ) over θ and the assignments a, not log p(x; θ), and ends in finitely many
steps. With equal weights and one spherical variance it is k-means (Lloyd 1982).
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference._em.completed import ByStatistics
from inference._method.progress import Step
from inference._method.task import Task
from inference._numerics.weighted import weighed

STILL = 1e-12  # a share of log p(x, a; θ), by which no step changes it


def classify(task: Task, completion: ByStatistics, iterations: int, step: Step) -> tuple[list[float], bool]:
    """Put θ at a fixed point. Returns Σ log p(x_i, a_i; θ) before each M-step, and whether an M-step changed neither this nor
    an assignment: one that is itself a few steps may leave θ short of its best."""
    trace: list[float] = []
    before: Tensor | None = None
    for _ in range(iterations):
        shares = task.engine.responsibilities()
        top, chosen = shares.max(1)
        trace.append(float(weighed(task.engine.per_datum() + top.log(), task.weights, slice(None)).sum()))
        if (
            before is not None
            and torch.equal(chosen, before)
            and abs(trace[-1] - trace[-2]) <= STILL * (1 + abs(trace[-2]))
        ):
            return trace, True
        before = chosen
        hard = torch.nn.functional.one_hot(chosen, shares.shape[1]).to(shares)
        completion.maximise(task.engine.e_step(None, hard), hard)
        step(note=f"log p(x, a) {trace[-1]:.4f}")
    return trace, False
