"""How near a guide is to the posterior: k-hat of its draws' weights, for each row and for the global latents.

Yao et al. 2018. A bound holds at any k-hat; means and draws are only as good as q.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyro
import torch
from torch import Tensor

from guides import at
from inference._method.task import Task
from inference._numerics.psis import psis
from inference._sampling import weights
from inference._sampling.khat import EVEN, LIMIT, count_above, of_rows
from inference._sampling.khat import of_globals as khat_of_globals
from inference._training.fixed_draws import FixedDraws

DRAWS = 200
LEAST = 50  # draws from which a tail can be fitted
INNER = 20  # draws of the local latents for each of the globals
CHEAP = 2**22  # numbers that take no time
SHARE = 0.1  # of the fit's own effort


@dataclass
class Nearness:
    """PSIS k-hat and effective sample size of each row [n], and k-hat of the globals; None where they were not estimated."""

    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    of_globals: float | None = None
    draws: int = 0  # for each row

    def add(self, log_weights: Tensor) -> None:
        """The weights [draws, rows] of the next rows."""
        self.draws = len(log_weights)
        if len(log_weights) >= LEAST:
            self.parts.append(psis(log_weights.detach().numpy()))

    @property
    def khat(self) -> np.ndarray | None:
        """[n]."""
        return np.concatenate([k for k, _ in self.parts]) if self.parts else None

    @property
    def ess(self) -> np.ndarray | None:
        """[n]."""
        return np.concatenate([e for _, e in self.parts]) if self.parts else None

    def warnings(self, verified: bool) -> list[str]:
        """In words; `verified`: the verification of the evidence reports k-hat of the globals."""
        out = []
        khat, ess = self.khat, self.ess
        if khat is not None and ess is not None and (bad := count_above(khat, but=ess >= EVEN * self.draws)):
            out.append(
                f"{of_rows(bad, len(khat))}: the bound holds, but q is not close to their posteriors, and the draws of "
                "their latents are draws from q."
            )
        if self.of_globals is not None and not self.of_globals <= LIMIT and not verified:
            out.append(
                f"{khat_of_globals(self.of_globals)}, above {LIMIT}: the bound holds, but "
                "their posterior is not close to q."
            )
        return out


def of_assignments(joint: Tensor, log_q: Tensor, draws: int = DRAWS) -> Tensor:
    """Log weights [draws, rows] of joint values drawn from q, both densities given for all of them [rows, A]."""
    drawn = torch.multinomial(log_q.exp(), draws, replacement=True)
    return (joint - log_q).gather(1, drawn).mT


@torch.no_grad()
def of_locals(task: Task, guide: torch.nn.Module, globals: dict[str, Tensor], effort: float, into: Nearness) -> None:
    """k-hat of each row's latents given the globals, where it takes little of the fit's `effort` (runs on all data)."""
    numbers = task.x.numel()
    draws = DRAWS if DRAWS * numbers <= CHEAP else min(DRAWS, int(SHARE * effort))
    if draws < LEAST or not task.structure.local_latents:
        return
    for rows in weights.chunks(task.x, draws):
        with pyro.poutine.condition(data=globals):
            drawn = weights.draw(task.program, task.structure, task.x[rows], at(guide, rows), draws)
        into.add(drawn.log_weights)


@torch.no_grad()
def of_globals(task: Task, guide: torch.nn.Module, log_weights: Tensor, effort: float, into: Nearness) -> None:
    """k-hat of the globals: from their log weights, known where there are no local latents; else with the local latents
    summed out, or nearly, by weighted draws of their own."""
    if task.structure.local_latents:
        inner = _inner(task, effort)
        if not inner:
            return
        try:
            fixed = FixedDraws(task, guide, inner)
        except NotImplementedError:
            return
        noise = fixed.draw(DRAWS, torch.Generator().manual_seed(task.seed + 3), plain=True)
        log_weights = fixed.all_values(noise)
    into.of_globals = float(psis(log_weights.double().unsqueeze(1).numpy())[0][0])


def _inner(task: Task, effort: float) -> int:
    """Draws of the local latents that are affordable for each of the globals, at least 5; else 0."""
    few = max(CHEAP / max(1, task.x.numel()), SHARE * effort) / DRAWS
    if task.structure.discrete_locals:
        return 2 if few >= 1 else 0  # their sum is exact, and costs what a step does
    return 0 if few < 5 else min(INNER, int(few))
