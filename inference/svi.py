"""Stochastic variational inference: θ and a guide climb the ELBO together, by mini-batches.

Hoffman et al. 2013; Kingma & Welling 2014. The guide is derived from the structure, or given. Discrete local latents that
can be enumerated are summed out under it, so that their ELBO has no sampling noise; `particles=K` climbs the
importance-weighted bound (Burda, Grosse & Salakhutdinov 2016). What it claims is a lower bound. A program without latents
is learned by maximum likelihood, and its log p(x) is exact.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pyro
import torch
from torch import Tensor

import guides
from guides import at
from inference import _elbo, _weights
from inference._coordinates import Coordinates, bijection
from inference._fit import Evidence, Fit, GlobalGaussian
from inference._start import Start, begin
from inference._task import Task
from inference._training import History, Plan, Schedule, train, usual
from zoo._errors import Refusal
from zoo._latents import by_datum
from zoo._options import Count, Limits, Positive
from zoo._structure import Structure
from zoo._trace import local_log_prob

BOUND_DRAWS = 200


def refusal(structure: Structure) -> str | None:
    """Why SVI cannot serve the program, or None."""
    for site in structure.global_latents:
        if site.discrete:
            return f"svi has no guide for the discrete global latent '{site.name}'"
    return guides.refusal("amortized", structure)


def fit(
    task: Task,
    *,
    epochs: Count = 1000,
    batch: Count | None = None,
    lr: Positive | None = None,
    tol: Positive = 1e-4,
    particles: Count = 1,
    guide: str = "amortized",
    hidden: tuple[Count, ...] | None = None,
    guide_covariance: guides.Covariance = "diagonal",
    schedule: Schedule = "plateau",
    patience: Count = 10,
    held_out: Annotated[float, Limits(least=0, below=1)] = 0.0,
    clip: Positive = 1000.0,
    start: Start = "auto",
) -> Fit:
    """Climb the bound for `epochs` epochs, or until it stops rising by `tol` nats a datum.

    - `batch`, `lr`, `hidden`: when None 64, 0.02 and (64, 64); for data of 100 columns or more 128, 0.002 and (200, 200). A
      program with networks of its own is learned at 0.002.
      A batch larger than the data means all of them.
    - `particles`: draws a datum of the importance-weighted bound; 1 is the ELBO.
    - `guide`: `amortized`, `mean_field` or `file.py:callable`; `guide_covariance` and `hidden` are for the first two.
    - `schedule`: `plateau` halves the rate when progress stops and ends at 1/64 of it; `cosine`; `constant`.
    - `held_out`: the share of rows kept aside; the parameters that were best on them are kept, and `patience` counts there.
    - `clip`: the largest norm of a step's gradient (nats a datum).
    """
    batch, lr, hidden = usual(task, batch, lr, hidden)
    latents = bool(task.structure.local_latents or task.structure.global_latents)
    if particles > 1 and task.structure.global_latents:
        raise Refusal(
            "particles weigh each datum by itself, and the global latents belong to all of them: take particles=1"
        )
    if task.structure.exact != "enumerable":
        _weights.check(task.program, task.structure, task.x)
    globals = begin(task, start, task.seed) if task.learn else task.global_start()
    q = None
    if latents:
        bijections = {n: bijection(s) for n, s in task.global_supports.items()}
        options = {"hidden": hidden, "covariance": guide_covariance}
        q = task.guide or guides.make(guide, task.structure, task.x, globals, bijections, **options)
    objective = _elbo.objective(task, q, particles)
    modules: dict[str, torch.nn.Module] = ({"program": task.program} if task.learn else {}) | (
        {} if q is None else {"guide": q}
    )
    plan = Plan(epochs, batch, lr, tol, schedule, patience, clip, held_out)
    with task.progress("svi", epochs) as step, pyro.validation_enabled(False):
        history = train(
            task, modules, objective, plan, step=step, culprit=lambda rows, x: _elbo.culprit(task, q, rows, x)
        )
        claimed = _bound(task, q, particles, objective)
    return _result(task, q, claimed, particles, history, list(globals))


@torch.no_grad()
def _bound(task: Task, guide: Any, particles: int, objective: _elbo.Objective) -> Evidence:
    """The bound over all data: exact where all latents are enumerated, else the mean of draws with its standard error."""
    if guide is None:
        parts = [task.x[r] for r in _weights.chunks(task.x, 1)]
        data_dim = task.structure.data_dim
        exact = [local_log_prob(task.program.trace(x), data_dim, len(x)).reshape(len(x)) for x in parts]
        return Evidence.from_per_datum(torch.cat(exact).numpy(), "exact")
    if task.structure.global_latents:
        whole = range(BOUND_DRAWS)
        values = torch.tensor([float(objective(slice(None), task.x)) for _ in whole], dtype=torch.float64) * len(task.x)
        return Evidence(float(values.mean()), float(values.std() / BOUND_DRAWS**0.5), "lower bound")
    if task.structure.exact == "enumerable" and particles == 1:
        return Evidence.from_per_datum(enumerated_bound(task, guide).numpy(), "lower bound")
    times = max(10, _weights.affordable(task.x, BOUND_DRAWS, 10) // particles)
    value, se = (torch.empty(len(task.x), dtype=torch.float64) for _ in range(2))
    for rows in _weights.chunks(task.x, times * particles):
        x = task.x[rows]
        log_w = _weights.draw(task.program, task.structure, x, at(guide, rows), times * particles).log_weights
        bound = _weights.log_mean(log_w.reshape(particles, times, len(x)))[0]
        value[rows], se[rows] = bound.mean(0), bound.std(0) / times**0.5
    return Evidence.from_per_datum(value.numpy(), "lower bound", se.numpy())


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
    conditioned = pyro.poutine.condition(at(guide, rows), data=task.exact.assignments)
    with task.program.settings():
        trace = pyro.poutine.trace(conditioned).get_trace(task.x[rows])
    return local_log_prob(trace, task.structure.data_dim, rows.stop - rows.start).reshape(task.exact.A, -1).mT


def _global_gaussian(task: Task, guide: Any, names: list[str]) -> GlobalGaussian | None:
    if not names or not hasattr(guide, "bijections"):
        return None
    with torch.no_grad():
        values = {n: guide.bijections[n](guide.free[f"{n}_loc"]) for n in names}
        layout = Coordinates(values, task.global_supports)
        scale = torch.cat([guide.free[f"{n}_log_scale"].exp().reshape(-1) for n in names])
        return GlobalGaussian(layout, layout.flatten(values), scale.diag())


@torch.no_grad()
def _result(task: Task, guide: Any, claimed: Evidence, particles: int, history: History, names: list[str]) -> Fit:
    gaussian = None if guide is None else _global_gaussian(task, guide, names)
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
    warnings = [] if history.converged else ["svi did not converge: the bound was still rising; raise epochs or tol."]
    return Fit(
        parameters={n: v.numpy() for n, v in parameters.items()},
        claimed=claimed,
        draws=draws,
        probabilities=probabilities,
        trace=history.trace("elbo_per_datum" if guide is not None else "log_likelihood_per_datum"),
        converged=history.converged,
        warnings=warnings,
        notes={"epochs": len(history.objective), "particles": particles},
        guide=guide,
        global_gaussian=gaussian,
    )


def _local_draws(task: Task, guide: Any) -> dict[str, np.ndarray]:
    """Draws from q of each local site [draws, N, …]."""
    pieces = [
        _weights.guide_draws(task.program, task.structure, task.x[rows], at(guide, rows), task.draws)
        for rows in _weights.chunks(task.x, task.draws)
    ]
    return {
        s.name: torch.cat([by_datum(p[s.name], s, task.structure) for p in pieces], dim=1).numpy()
        for s in task.structure.local_latents
    }
