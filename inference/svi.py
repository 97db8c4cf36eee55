"""Stochastic variational inference: θ and a guide climb the ELBO together, by mini-batches.

Hoffman et al. 2013; Kingma & Welling 2014. The guide is derived from the structure; discrete local latents are summed
out exactly under it (Pyro's TraceEnum_ELBO), so their ELBO has no sampling noise. What it claims is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from guides import amortized
from inference import _weights
from inference._coordinates import Coordinates, bijection
from inference._fit import Evidence, Fit, GlobalGaussian
from inference._start import Start, begin
from inference._task import Task
from inference._training import train
from zoo._latents import by_datum
from zoo._options import Count, Positive
from zoo._structure import Structure
from zoo._trace import DATA_PLATE

BOUND_DRAWS = 200


def refusal(structure: Structure) -> str | None:
    """Why SVI cannot serve the program, or None."""
    if not structure.local_latents and not structure.global_latents:
        return "svi needs a latent to approximate, and the program has none"
    for site in structure.global_latents:
        if site.discrete:
            return f"svi has no guide for the discrete global latent '{site.name}'"
    return amortized.refusal(structure)


def fit(
    task: Task,
    *,
    epochs: Count = 1000,
    batch: Count = 64,
    lr: Positive = 0.02,
    tol: Positive = 1e-4,
    hidden: tuple[Count, ...] = (64, 64),
    start: Start = "auto",
) -> Fit:
    """Climb the ELBO until its smoothed value rises by less than `tol` nats a datum, or for `epochs` epochs.

    A batch larger than the data means all of them.
    """
    if task.structure.exact != "enumerable":
        _weights.check(task.program, task.structure, task.x)
    globals = begin(task, start, task.seed) if task.learn else task.global_start()
    guide = task.guide or amortized.Guide(
        task.structure, task.x, globals, {n: bijection(s) for n, s in task.global_supports.items()}, hidden=hidden
    )
    elbo = TraceEnum_ELBO(max_plate_nesting=task.structure.max_plate_nesting)
    enumerated = config_enumerate(guide, "parallel", expand=False)
    N = len(task.x)

    def objective(rows: Tensor) -> Tensor:
        with task.program.settings(), _scaled(N / len(rows)):
            return -elbo.differentiable_loss(task.program, enumerated, rows) / N

    parameters = [*guide.parameters(), *(task.program.parameters() if task.learn else ())]
    with task.progress("svi", epochs) as step, pyro.validation_enabled(False):
        history = train(
            parameters, objective, task.x, epochs=epochs, batch=min(batch, N), lr=lr, tol=tol, seed=task.seed, step=step
        )
        claimed = _bound(task, guide, lambda: -_loss(elbo, task, enumerated))
    return _result(task, guide, claimed, history, list(globals))


def _loss(elbo: TraceEnum_ELBO, task: Task, guide: Any) -> float:
    with task.program.settings():
        return elbo.loss(task.program, guide, task.x)


@contextmanager
def _scaled(factor: float) -> Iterator[None]:
    """Each local site counts `factor` times: a batch stands for all the data."""
    with _ScaleLocal(factor):
        yield


class _ScaleLocal(Messenger):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if any(f.name == DATA_PLATE for f in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


@torch.no_grad()
def _bound(task: Task, guide: Any, draw_elbo: Callable[[], float]) -> Evidence:
    """The ELBO over all data: exact where all latents are enumerated, else the mean of draws with its standard error."""
    if task.structure.global_latents:
        values = torch.tensor([draw_elbo() for _ in range(BOUND_DRAWS)], dtype=torch.float64)
        return Evidence(float(values.mean()), float(values.std() / BOUND_DRAWS**0.5), "lower bound")
    if task.structure.exact == "enumerable":
        return Evidence.from_per_datum(enumerated_bound(task, guide).numpy(), "lower bound")
    means, errors = [], []
    for rows in _weights.chunks(task.x, BOUND_DRAWS):
        log_w = _weights.draw(task.program, task.structure, rows, guide, BOUND_DRAWS).log_weights
        means.append(log_w.mean(0))
        errors.append(log_w.std(0) / BOUND_DRAWS**0.5)
    return Evidence.from_per_datum(torch.cat(means).numpy(), "lower bound", torch.cat(errors).numpy())


def enumerated_bound(task: Task, guide: Any) -> Tensor:
    """Σ_a q(a | x_i) [log p(x_i, a) − log q(a | x_i)] [N], nats: no sampling noise."""
    exact = task.exact
    views, _ = exact.views()
    out = []
    for rows in exact.chunks():
        joint, log_q = exact.log_joint(rows, views), log_guide(task, guide, rows)
        out.append(torch.where(log_q.exp() > 0, log_q.exp() * (joint - log_q), torch.zeros_like(joint)).sum(1))
    return torch.cat(out)


def log_guide(task: Task, guide: Any, rows: slice) -> Tensor:
    """log q(a | x_i) [rows, A] for every joint assignment."""
    from zoo._trace import local_log_prob

    conditioned = pyro.poutine.condition(guide, data=task.exact.assignments)
    with pyro.settings.context(module_local_params=True):
        trace = pyro.poutine.trace(conditioned).get_trace(task.x[rows])
    return local_log_prob(trace, task.structure.data_dim, rows.stop - rows.start).reshape(task.exact.A, -1).mT


def _global_gaussian(task: Task, guide: Any, names: list[str]) -> GlobalGaussian | None:
    if not names:
        return None
    with torch.no_grad():
        values = {n: guide.bijections[n](guide.free[f"{n}_loc"]) for n in names}
        layout = Coordinates(values, task.global_supports)
        scale = torch.cat([guide.free[f"{n}_log_scale"].exp().reshape(-1) for n in names])
        return GlobalGaussian(layout, layout.flatten(values), scale.diag())


@torch.no_grad()
def _result(task: Task, guide: Any, claimed: Evidence, history: Any, names: list[str]) -> Fit:
    gaussian = _global_gaussian(task, guide, names)
    draws: dict[str, np.ndarray] = {}
    parameters = {n: v.detach() for n, v in task.program.values().items()}
    if gaussian is not None:
        noise = torch.randn(task.draws, gaussian.coordinates.d, dtype=task.x.dtype)
        drawn = gaussian.coordinates.unflatten(gaussian.mean + noise @ gaussian.scale_tril.mT)
        draws |= {n: v.numpy() for n, v in drawn.items()}
        parameters |= gaussian.coordinates.unflatten(gaussian.mean)
    probabilities = {}
    if task.structure.local_latents:
        draws |= _local_draws(task, guide)
        if task.structure.exact == "enumerable":
            log_q = torch.cat([log_guide(task, guide, rows) for rows in task.exact.chunks()])
            probabilities = {n: v.numpy() for n, v in task.exact.marginals(log_q.exp()).items()}
    warnings = [] if history.converged else ["svi did not converge: the ELBO was still rising; raise epochs or tol."]
    return Fit(
        parameters={n: v.numpy() for n, v in parameters.items()},
        claimed=claimed,
        draws=draws,
        probabilities=probabilities,
        trace={"elbo_per_datum": history.objective, "lr": history.lr},
        converged=history.converged,
        warnings=warnings,
        notes={"epochs": len(history.objective)},
        guide=guide,
        global_gaussian=gaussian,
    )


def _local_draws(task: Task, guide: Any) -> dict[str, np.ndarray]:
    """Draws from q of each local site [draws, N, …]."""
    pieces = [
        _weights.guide_draws(task.structure, rows, guide, task.draws) for rows in _weights.chunks(task.x, task.draws)
    ]
    return {
        s.name: torch.cat([by_datum(p[s.name], s, task.structure) for p in pieces], dim=1).numpy()
        for s in task.structure.local_latents
    }
