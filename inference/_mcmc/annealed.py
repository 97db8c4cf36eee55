"""Annealing of discrete latents: each chain goes from prior to posterior by Gibbs moves, a sweep at each temperature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyro
import torch
from torch import Tensor

from inference._mcmc.entries import Entries
from inference._method.estimates import Estimates
from inference._method.fit import Arrays
from inference._method.progress import Step
from inference._method.task import Task
from inference._sampling import weights


class Annealed:
    """What weighted chains of all rows tell."""

    def __init__(self, task: Task, betas: Sequence[float], chains: int) -> None:
        """Walk `chains` chains of each row along the temperatures, from 0 to 1."""
        weights.check(task.program, task.structure, task.x)
        self.task, self.log_weights = task, list[Tensor]()
        self.alone, self.draws, self.probabilities = (
            list[Tensor](),
            list[dict[str, Tensor]](),
            list[dict[str, Tensor]](),
        )
        parts = list(weights.chunks(task.x, chains))
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            task.progress("ais", len(parts) * (len(betas) - 1)) as step,
        ):
            for rows in parts:
                walkers = Entries(task.program, task.structure, task.x[rows], chains)
                self._tell(walkers, forth(walkers, betas, step))

    def _tell(self, walkers: Entries, log_weights: Tensor) -> None:
        C, n, structure = *log_weights.shape, self.task.structure
        share = log_weights.softmax(0)
        share = torch.where(share.isfinite(), share, 1 / C)  # every chain of a row lost
        chosen = torch.multinomial(share.mT, self.task.draws, replacement=True).mT  # [draws, n]
        values = walkers.values(walkers.z)
        by_row = {s.name: structure.axes.by_datum(values[s.name], s) for s in walkers.sites}
        self.draws.append({name: v[chosen, torch.arange(n)] for name, v in by_row.items()})
        found = {}
        for site, K in zip(walkers.sites, walkers.counts, strict=True):
            at = torch.stack([by_row[site.name] == k for k in range(K)], -1).to(share.dtype)
            found[site.name] = torch.einsum("cn,cn...->n...", share, at)
        self.probabilities.append(found)
        self.log_weights.append(log_weights)
        self.alone.append(weights.lone_states(values, log_weights, structure, walkers.x))

    @property
    def told(self) -> Estimates:
        """What the weights say of each row."""
        found = Estimates.of(torch.cat(self.log_weights, 1), alone=torch.cat(self.alone))
        if self.task.structure.is_exact and bool(found.alone.any()):
            found = found.beside(self.task.engine.per_datum())
        return found

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Site → draws [draws, n, …], and probabilities [n, …, values]."""
        return _joined(self.draws, 1), _joined(self.probabilities, 0)


def forth(walkers: Entries, betas: Sequence[float], step: Step) -> Tensor:
    """Log-weights [C, n] of walkers that go from the prior to the posterior: exp of them is unbiased for p(x_i)."""
    log_weights = torch.zeros_like(walkers.latent)
    for before, beta in itertools.pairwise(betas):
        log_weights = log_weights + (beta - before) * walkers.given
        walkers.sweep(beta)
        step()
    return log_weights


def back(walkers: Entries, betas: Sequence[float], step: Step) -> Tensor:
    """Log-weights [C, n] of walkers at exact draws of the posterior that go back to the prior: unbiased for 1 / p(x_i).

    The steps of `forth` in the opposite order. A sweep in random order is as likely as one in the opposite order, so that it
    is reversible.
    """
    log_weights = torch.zeros_like(walkers.latent)
    for beta, before in itertools.pairwise(reversed(betas)):
        walkers.sweep(beta)
        log_weights = log_weights - (beta - before) * walkers.given
        step()
    return log_weights


def _joined(pieces: list[dict[str, Tensor]], dim: int) -> dict[str, np.ndarray]:
    return {k: torch.cat([p[k] for p in pieces], dim).cpu().numpy() for k in pieces[0]}
