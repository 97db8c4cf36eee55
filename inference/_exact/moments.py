"""What the E-step of a linear-Gaussian program finds: posteriors of some rows, and their sums over all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._exact.engine import Statistics
from inference._exact.linear_model import Sites
from inference._numerics.slices import slices

NOISE = 2**17  # random numbers at a time
SIXTEEN = 16  # of which torch makes so many together: in parts of such, they are those of one call


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

    def draw(
        self, draws: int, responsibilities: Tensor | None = None, into: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Assignments [draws, n] and z [draws, n, L], written `into` a tensor if one is given.

        `responsibilities` [n, A]: in place of the weights.
        """
        n, A, L = self.mean.shape
        chosen = torch.multinomial(self.weights if responsibilities is None else responsibilities, draws, True).mT
        z = self.mean.new_empty(draws, n, L) if into is None else into
        tril, index = self.tril(), torch.arange(n)
        if A == len(tril) == 1:  # one covariance for all: one product, of some draws at a time, which stay in the cache
            even = SIXTEEN // math.gcd(SIXTEEN, n * L)
            for some in slices(draws, even * max(1, NOISE // (even * n * L))):
                noise = torch.randn(some.stop - some.start, n, L, dtype=self.mean.dtype)
                torch.add(self.mean[:, 0], noise @ tril[0, 0].mT, out=z[some])
            return chosen, z
        noise = torch.randn(draws, n, L, dtype=self.mean.dtype)
        roots = tril.expand(n, A, L, L)[index, chosen]
        return chosen, torch.add(self.mean[index, chosen], (roots @ noise.unsqueeze(-1)).squeeze(-1), out=z)

    @classmethod
    def of_draws(cls, chosen: Tensor, z: Tensor, A: int) -> Posterior:
        """The weights, means and covariances of draws: assignments [draws, n] and z [draws, n, L]."""
        one = torch.nn.functional.one_hot(chosen, A).to(z)  # [draws, n, A]
        times = one.sum(0).clamp(min=1).unsqueeze(-1)
        mean = torch.einsum("sna,snl->nal", one, z) / times
        away = z.unsqueeze(2) - mean  # [draws, n, A, L]
        covariance = torch.einsum("sna,snal,snam->nalm", one, away, away) / times.unsqueeze(-1)
        return cls(one.mean(0).log(), mean, covariance)


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
