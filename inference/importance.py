"""Importance sampling: log p(x) of each datum from weighted draws, with standard error, k-hat and effective sample size.

Proposals: `prior` (naive Monte Carlo) and `guide` (an amortized q). θ is learned by the importance-weighted bound (Burda,
Grosse & Salakhutdinov 2016), the guide by the wake phase of reweighted wake-sleep (Bornschein & Bengio 2015). What it
claims is an estimate; k-hat above 0.7 says that it cannot be trusted (Vehtari et al. 2024).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor

import guides
from guides import at
from inference import _elbo, _weights
from inference._fit import Evidence, Fit
from inference._start import Start, begin
from inference._task import Task
from inference._training import History, Plan, train
from zoo._errors import Refusal
from zoo._latents import by_datum
from zoo._options import Count, Limits, Positive
from zoo._structure import Structure

WIDE = 100  # columns from which the defaults are those for images
NO_HISTORY = History(np.zeros(0), np.zeros(0), True)


def refusal(structure: Structure) -> str | None:
    """Why importance sampling cannot serve the program, or None."""
    if structure.global_latents:
        names = ", ".join(f"'{s.name}'" for s in structure.global_latents)
        return f"importance weighs each datum by itself, and the global latents {names} belong to all of them"
    if not structure.local_latents:
        return "importance needs a latent to draw, and the program has none"
    return None


def fit(
    task: Task,
    *,
    proposal: Literal["guide", "prior"] = "guide",
    samples: Annotated[int, Limits(least=2)] = 1000,
    particles: Count = 20,
    defensive: Annotated[float, Limits(least=0, below=1)] = 0.1,
    epochs: Annotated[int, Limits(least=0)] | None = None,
    batch: Count | None = None,
    lr: Positive | None = None,
    tol: Positive = 1e-3,
    guide: str = "amortized",
    hidden: tuple[Count, ...] | None = None,
    guide_covariance: guides.Covariance = "diagonal",
    start: Start = "auto",
) -> Fit:
    """Learn θ (and the guide) with `particles` draws a datum, then estimate log p(x) with `samples` draws a datum.

    - `epochs`: when None 500, and 0 where nothing has to be learned: θ is kept, and the guide came with it.
    - `defensive`: the share of the guide's draws that comes from the prior (Hesterberg 1995).
    - `batch`, `lr`, `hidden`: when None 64, 0.02 and (64, 64); for data of 100 columns or more 128, 0.002 and (200, 200).
    """
    if proposal == "guide" and task.guide is None and (reason := guides.refusal(guide, task.structure)) is not None:
        raise Refusal(f"{reason}, or take proposal=prior")
    _weights.check(task.program, task.structure, task.x)
    if task.learn:
        begin(task, start, task.seed)
    wide = task.x[0].numel() >= WIDE
    hidden = hidden or ((200, 200) if wide else (64, 64))
    ready = proposal == "prior" or task.guide is not None
    q = task.guide
    if not ready:
        q = guides.make(guide, task.structure, task.x, hidden=hidden, covariance=guide_covariance)
    q = None if proposal == "prior" else q
    modules: dict[str, torch.nn.Module] = ({"program": task.program} if task.learn else {}) | (
        {} if q is None else {"guide": q}
    )
    if epochs is None:
        epochs = 0 if ready and not task.learn else 500
    plan = Plan(max(1, epochs), min(batch or (128 if wide else 64), len(task.x)), lr or (0.002 if wide else 0.02), tol)
    history = NO_HISTORY
    if epochs:
        with task.progress("importance", epochs) as step, pyro.validation_enabled(False):
            history = train(
                task,
                modules,
                lambda rows, x: _objective(task, q, rows, x, particles, defensive),
                plan,
                step=step,
                culprit=lambda rows, x: _elbo.culprit(task, q, rows, x),
            )
    with torch.no_grad(), pyro.validation_enabled(False), task.progress("importance: estimating", len(task.x)) as step:
        return _estimate(task, q, proposal, samples, defensive, history, step)


def _objective(task: Task, guide: Any | None, rows: Any, x: Tensor, particles: int, defensive: float) -> Tensor:
    """The importance-weighted bound for θ plus the wake-phase objective for the guide, whose value is taken off again."""
    q = None if guide is None else at(guide, rows)
    drawn = _weights.draw(task.program, task.structure, x, q, particles, defensive)
    bound = _weights.log_mean(drawn.log_weights)[0]
    if drawn.log_guide is None:
        return bound.mean()
    wake = (drawn.log_weights.detach().softmax(0) * drawn.log_guide).sum(0)
    return (bound + wake - wake.detach()).mean()


def _estimate(
    task: Task, guide: Any | None, proposal: str, samples: int, defensive: float, history: History, step: Any
) -> Fit:
    from inference._arviz import psis

    estimates, errors, khats, sizes = [], [], [], []
    kept: dict[str, list[Tensor]] = {s.name: [] for s in task.structure.local_latents}
    for rows in _weights.chunks(task.x, samples):
        q = None if guide is None else at(guide, rows)
        drawn = _weights.draw(task.program, task.structure, task.x[rows], q, samples, defensive)
        log_w = drawn.log_weights
        estimate, error = _weights.log_mean(log_w)
        khat, ess = psis(log_w.numpy())
        estimates.append(estimate)
        errors.append(error)
        khats.append(torch.as_tensor(khat))
        sizes.append(torch.as_tensor(ess))
        chosen = torch.multinomial(log_w.softmax(0).mT, task.draws, replacement=True).mT  # [draws, rows]
        for site in task.structure.local_latents:
            values = by_datum(drawn.values[site.name], site, task.structure)
            kept[site.name].append(values[chosen, torch.arange(len(estimate))])
        step(len(estimate))
    khat = torch.cat(khats).numpy()
    warnings = []
    if bad := int((~(khat <= 0.7)).sum()):
        warnings.append(
            f"k-hat is above 0.7 for {bad} of {len(task.x)} data: with proposal={proposal} their estimates "
            "cannot be trusted."
        )
    if not history.converged:
        warnings.append("importance did not converge: the bound was still rising; raise epochs or tol.")
    return Fit(
        parameters={n: v.detach().numpy() for n, v in task.program.values().items()},
        claimed=Evidence.from_per_datum(torch.cat(estimates).numpy(), "estimate", torch.cat(errors).numpy()),
        draws={n: torch.cat(v, 1).numpy() for n, v in kept.items()},
        khat=khat,
        ess=torch.cat(sizes).numpy(),
        trace=history.trace("bound_per_datum"),
        converged=history.converged,
        warnings=warnings,
        notes={"proposal": proposal, "samples": samples, "epochs": len(history.objective)},
        guide=guide,
    )
