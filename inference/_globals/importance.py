"""Importance sampling of global latents, jointly with what of the rows is not exact given them."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from inference._globals import target as _target
from inference._globals.adaptive import Adaptive, mislabelled
from inference._globals.result import fit_of
from inference._globals.starts import starts
from inference._globals.target import Target
from inference._method.fit import Fit
from inference._method.summed import completed, summed
from inference._method.task import Task, keeps_theta
from zoo._errors import Refusal
from zoo._program.structure import Structure
from zoo._program.trace import node_of

FROM_GUIDE = 400  # draws of an earlier fit's guide
REMEDY = "Take more samples, or nuts, whose bridge needs no such weights."


def refusal(structure: Structure) -> str | None:
    """Why importance sampling cannot serve a program with global latents, or None."""
    reason = _target.refusal(structure)
    return None if reason is None else f"importance weighs draws of all latents by their density, and {reason}"


def fit(task: Task, proposal: str, samples: int) -> Fit:
    """Adaptive importance sampling at the program's θ, from proposals at the modes or at the `guide` of an earlier fit."""
    if task.learn and task.structure.learnable:
        raise Refusal(keeps_theta("importance, for a program with global latents,", task.program.name))
    if proposal not in ("auto", "guide", "laplace"):
        raise Refusal(
            f"with global latents importance proposes from 'laplace', or from the 'guide' of an svi run "
            f"(zoo infer RUN --method importance), and proposal={proposal} looks at one row at a time"
        )
    if proposal == "guide" and task.guide is None:
        raise Refusal("proposal=guide needs the guide of an earlier fit: zoo run … --method svi, then zoo infer RUN")
    whole, task = task, summed(task)
    target = Target(task)
    drawn = None if proposal == "laplace" or task.guide is None else _from_guide(target, task.guide)
    if proposal == "guide" and drawn is None:
        raise Refusal("the guide does not draw all latents that importance weighs: take proposal=laplace")
    adaptive = Adaptive(target, starts(target), drawn)
    with task.progress("importance") as step:
        found = adaptive.run(samples, step)
    if mislabelled(found):
        raise Refusal(
            f"the labels of '{task.program.name}' can be exchanged at some points and not at others: order its components"
        )
    notes: dict[str, object] = {
        "proposal": "laplace" if drawn is None else "guide",
        "samples": samples,
        "rounds": found.rounds,
        "modes": found.modes,
    }
    if found.nested:
        notes["nested"] = found.nested
    weighed = found.flat, found.log_weights, found.labels, found.told
    fit = fit_of(whole, target, *weighed, REMEDY, notes, beyond=found.beyond)
    return completed(whole, task, fit)


@torch.no_grad()
def _from_guide(target: Target, guide: torch.nn.Module) -> Tensor | None:
    """Draws of all coordinates from a guide [S, d]; None where it has not all of them."""
    names = [p.site.name for p in target.posterior.places]
    found: list[dict[str, Tensor]] = []
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), target.program.settings():
        torch.manual_seed(target.task.seed)
        for _ in range(FROM_GUIDE):
            trace = pyro.poutine.trace(guide).get_trace(target.task.x)
            if not set(names) <= set(trace.nodes):
                return None
            found.append({n: node_of(trace, n)["value"].double() for n in names})
    flat = target.flat_of({n: torch.stack([f[n] for f in found]) for n in names})
    flat = flat[flat.isfinite().all(1)]
    return flat if len(flat) > FROM_GUIDE / 2 else None
