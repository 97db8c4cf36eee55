"""What the E-step of a linear-Gaussian program finds: posteriors of some rows, and their sums over all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Posterior:
    """q(a, z | x) of some rows: weights [n, A], means [n, A, L], and covariances [n or 1, A, L, L]."""

    log_evidence: Tensor  # [n, A] log p(x, a)
    mean: Tensor
    covariance: Tensor
    root: Tensor | None = None  # S with S Sᵀ = the covariance, where its Cholesky factor would lose digits

    @property
    def weights(self) -> Tensor:
        return self.log_evidence.softmax(1)

    def tril(self) -> Tensor:
        """S with S Sᵀ = the covariance."""
        return torch.linalg.cholesky(self.covariance) if self.root is None else self.root


@dataclass
class Moments:
    """What an E-step leaves for the M-step."""

    counts: Tensor  # [A]
    per_datum: Tensor  # [N] log p(x_i), or of large data their sums over chunks
    log_prior: Tensor  # of the globals
    seen: Any  # what the engine's `sites` returned, or None for the general way
    zz: Tensor  # [A, L+1, L+1] Σ w E[z̃ z̃ᵀ], z̃ = [z, 1]
    sites: dict[str, dict[str, Tensor]]  # observed site → its moments with z̃, or its family's statistics
    posterior: list[Posterior] | None = None  # of each chunk, where sites have no moments

    def add(self, site: str, new: dict[str, Tensor]) -> None:
        """Add what some more rows give to the sums of a site."""
        old = self.sites.get(site)
        self.sites[site] = new if old is None else {k: old[k] + v for k, v in new.items()}
