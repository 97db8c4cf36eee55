"""The discrete local latents of a task summed out before a method sees it, and drawn again for its fit."""

from __future__ import annotations

from dataclasses import replace

import torch

from guides import at, of_user
from inference._exact._sums.summed_out import SummedOut
from inference._method.fit import Fit
from inference._method.task import Task
from inference._sampling import weights
from zoo._program.program import Program

Values = dict[str, torch.Tensor]


def summed(task: Task, guide: object = None) -> Task:
    """The task with its discrete local latents summed out, given the others; itself where there is no such sum.

    So it is too where a guide of the user's own draws them all.
    """
    structure = task.structure.summed
    if structure is task.structure or isinstance(task.guide, Program) or (task.guide is None and of_user(guide)):
        return task
    return replace(task, program=SummedOut(task.program, task.structure, task.x), structure=structure)


def completed(task: Task, own: Task, fit: Fit) -> Fit:
    """The fit of `own`, made from `task` by `summed`, with draws and probabilities of what was summed out."""
    if own is task:
        return fit
    assert isinstance(own.program, SummedOut)
    wanted = [s.name for s in (*own.structure.local_latents, *own.structure.global_latents)]
    if not all(name in fit.draws for name in wanted):
        return fit
    drawn = {name: torch.as_tensor(fit.draws[name]).to(own.x.dtype) for name in wanted}
    states, probabilities = own.program.complete(task.structure, own.x, drawn)
    return replace(
        fit,
        draws={**fit.draws, **{k: v.numpy() for k, v in states.items()}},
        probabilities={**fit.probabilities, **{k: v.numpy() for k, v in probabilities.items()}},
    ).with_notes([], {"summed_out": list(states)})


@torch.no_grad()
def drawn_by(task: Task, guide: torch.nn.Module, rows: slice | torch.Tensor, draws: int) -> tuple[Values, Values]:
    """Site → draws of the local latents of some rows [draws, n, …] by a guide, what it does not draw given the rest; and the
    probabilities [n, values] of that."""
    own, x = summed(replace(task, guide=guide)), task.x[rows]
    found = weights.guide_draws(own.program, own.structure, x, at(guide, rows), draws)
    drawn = {s.name: own.structure.axes.by_datum(found[s.name], s) for s in own.structure.local_latents}
    if own is task or not isinstance(own.program, SummedOut):
        return drawn, {}
    states, probabilities = own.program.complete(task.structure, x, drawn)
    return drawn | states, probabilities
