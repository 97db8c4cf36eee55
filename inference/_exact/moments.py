"""What the E-step of a linear-Gaussian program finds: posteriors of some rows, and their sums over all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference._exact.engine import Statistics
from inference._exact.linear_model import Sites


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
class Posteriors(Statistics):
    """What an E-step leaves where sites have no moments: the posterior of each chunk of rows."""

    posterior: list[Posterior]


@dataclass
class Moments(Statistics):
    """What an E-step leaves: in `sites` each observed site's moments with z̃ = [z, 1], or its family's statistics."""

    seen: Sites  # the sites at the θ of the E-step
    zz: Tensor  # [A, L+1, L+1] Σ w E[z̃ z̃ᵀ]

    def add(self, site: str, new: dict[str, Tensor]) -> None:
        """Add what some more rows give to the sums of a site."""
        old = self.sites.get(site)
        self.sites[site] = new if old is None else {k: old[k] + v for k, v in new.items()}
