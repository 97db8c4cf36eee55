"""The way to the posterior from Gaussians at each row's modes: short, where the posterior is nearly Gaussian."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from inference._density.local import LocalDensity
from inference._density.modes import all_modes

WIDER = 1.25  # than the Gaussians at the modes, in standard deviations: tails are mostly heavier


class Peaks:
    """A density to anneal from the Gaussians q at the modes of log p(x, z): f_β = q^(1 − β) p(x, z)^β.

    Chains walk in u, z = m + S u, with m and S Sᵀ the mean and covariance of the row's highest Gaussian. In u all directions
    are about equally wide, so that one step size serves them. The modes are found from x alone: q knows nothing of the z that
    made x, and any q keeps the weights unbiased.
    """

    A = 1

    def __init__(self, density: LocalDensity) -> None:
        self.density = density
        found = all_modes(density)
        self.q = replace(found, scale_tril=WIDER * found.scale_tril)
        index, best = torch.arange(density.n, device=density.x.device), found.log_evidence_each.argmax(1)
        self.middle, self.tril = self.q.mean[index, best], self.q.scale_tril[index, best]
        self.log_det = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # of ∂z / ∂u [n]

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.density.n

    def terms(self, u: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
        """log q(u) and log p(x, z) − log q(z), each [1, C, n], the discrete latents summed out of both."""
        z = self.middle + torch.einsum("nij,acnj->acni", self.tril, u)
        many = z.expand(self.density.A, *z.shape[1:])
        every = torch.arange(len(many), device=z.device).reshape(-1, 1, 1).expand(many.shape[:-1])
        log_q = self.q.log_prob(many, every).logsumexp(0)
        left = self.density.log_joint(many, every).logsumexp(0) - log_q
        return (log_q + self.log_det)[None], left[None]

    def prior(self, draws: int) -> Tensor:
        """Draws of q, as u [draws, n, L]."""
        return self.placed(self.q.draw(draws)[0])

    def placed(self, z: Tensor) -> Tensor:
        """The u of z, each [C, n, L]."""
        return torch.linalg.solve_triangular(self.tril, (z - self.middle).unsqueeze(-1), upper=False).squeeze(-1)
