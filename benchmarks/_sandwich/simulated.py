"""Data that a program simulates, with the latents that made them: exact draws of the posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference._method.task import Task
from inference._run.predictive import simulate_jointly
from zoo._errors import Refusal
from zoo._program.describe import describe
from zoo._program.structure import Site


@dataclass(frozen=True)
class Simulated:
    """A task on simulated data, and the latents that made them: site → value, [n, inner plates, event]."""

    task: Task
    latents: dict[str, Tensor]

    def of(self, site: Site, chains: int, rows: slice = slice(None)) -> Tensor:
        """A latent's value in some rows as often as there are chains, [chains, plates with those rows among them, event]."""
        axes, value = self.task.structure.axes, self.latents[site.name][rows]
        return axes.expand(axes.as_program(value, site), site, len(value), chains)


def simulate(task: Task, n: int) -> Simulated:
    """n rows from the program at the θ of a task.

    Raises `Refusal` where what it simulates is not drawn from its own density p(x, z): then its latents are no draws of the
    posterior.
    """
    program, structure = task.program, task.structure
    if program.completes:
        raise Refusal(
            f"'{program.name}' was built on data whose missing entries are latents; a sandwich needs data without missing "
            "entries."
        )
    if outside := [s.name for s in structure.sites if s.scope != "local"]:
        raise Refusal(
            f"a sandwich looks at one row at a time, and '{outside[0]}' of '{program.name}' is outside the plate 'data'."
        )
    rows, latents = simulate_jointly(task, n)
    x = torch.as_tensor(rows)
    found = replace(task, structure=describe(program, x, task.limit), x=x, weights=None)
    return Simulated(found, {name: torch.as_tensor(value) for name, value in latents.items()})
