"""The inverse Wishart, the conjugate prior of a covariance matrix (Bishop 2006, §2.3.6); neither torch nor Pyro has one."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class InverseWishart(TorchDistribution):
    """Σ ~ W⁻¹(Ψ, ν) [D, D]: p(Σ) ∝ |Σ|^−(ν+D+1)/2 exp(−½ tr Ψ Σ⁻¹), for ν > D − 1 and a positive definite `scale` Ψ."""

    arg_constraints = {"df": constraints.positive, "scale": constraints.positive_definite}
    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, df: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df, self.scale = df.expand(batch), scale.expand((*batch, *scale.shape[-2:]))
        super().__init__(batch, self.scale.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> InverseWishart:
        """The same for a batch."""
        scale = self.scale.expand((*batch_shape, *self.event_shape))
        return InverseWishart(self.df.expand(batch_shape), scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Ψ / (ν − D − 1); infinite where ν is no larger than D + 1."""
        over = (self.df - self.event_shape[-1] - 1).clamp(min=0)
        return self.scale / over[..., None, None]

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """C (A Aᵀ)⁻¹ Cᵀ for Ψ = C Cᵀ and A Aᵀ ~ W(I, ν) by Bartlett's decomposition."""
        shape, D = self._extended_shape(sample_shape), self.event_shape[-1]
        freedom = self.df.unsqueeze(-1) - torch.arange(D).to(self.df)
        diagonal = torch.distributions.Chi2(freedom.expand(shape[:-1])).rsample().sqrt()
        bartlett = torch.randn(shape).to(self.scale).tril(-1) + diagonal.diag_embed()
        root = torch.linalg.solve_triangular(bartlett, torch.linalg.cholesky(self.scale).mT, upper=False)
        return root.mT @ root

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, nats."""
        if self._validate_args:
            self._validate_sample(value)
        D, root = self.event_shape[-1], torch.linalg.cholesky(value)
        half = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # ½ log |Σ|
        prior = torch.linalg.cholesky(self.scale).diagonal(dim1=-2, dim2=-1).log().sum(-1)  # ½ log |Ψ|
        trace = torch.cholesky_solve(self.scale.expand(value.shape), root).diagonal(dim1=-2, dim2=-1).sum(-1)
        known = self.df * prior - 0.5 * self.df * D * math.log(2.0) - torch.mvlgamma(self.df / 2, D)
        return known - (self.df + D + 1) * half - 0.5 * trace
