"""The way from a guide to the posterior: log q(z | x), and what is left of log p(x, z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from guides import at
from inference._density.local import LocalDensity
from zoo._program.trace import is_local, sample_nodes


class Guided:
    """A density to anneal from q(z | x) instead of the prior: f_β = q^(1 − β) p(x, z)^β (Wu et al. 2017, section 3).

    Discrete latents are summed out in p(x, z) = Σ_a p(x, a, z). `rows`: which rows of the guide's data the density's are.
    """

    A = 1

    def __init__(self, density: LocalDensity, guide: Any, rows: slice) -> None:
        self.density, self.guide, self.index = density, guide, torch.arange(rows.start, rows.stop)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.density.n

    def terms(self, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
        """log q(z | x) and log p(x, z) − log q(z | x), each [1, C, n]."""
        first = self.density.log_guide(z[0], self._of(len(z[0])))
        many = z.expand(self.density.A, *z.shape[1:])
        every = torch.arange(len(many)).reshape(-1, 1, 1).expand(many.shape[:-1])
        return first[None], (self.density.log_joint(many, every).logsumexp(0) - first)[None]

    @torch.no_grad()
    def prior(self, draws: int) -> Tensor:
        """Draws of the guide [draws, n, L]."""
        x = self.density.x.repeat(draws, *(1,) * (self.density.x.dim() - 1))
        with self.density.program.settings():
            q = pyro.poutine.trace(self._of(draws)).get_trace(x)
        values = {n["name"]: n["value"] for n in sample_nodes(q) if is_local(n)}
        return self.density.coordinates(values, draws)

    def _of(self, draws: int) -> Callable[[Tensor], object]:
        return at(self.guide, self.index.repeat(draws))
