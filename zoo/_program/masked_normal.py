"""A multivariate normal of which each row sees some entries: the density is that of what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from zoo._program.trace import Shape


class MarginalNormal(TorchDistribution):
    """A multivariate normal's density over the observed entries of each row.

    `fn` has batch shape [..., n] and event shape [D]; `observed` is a boolean [n, D].
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, fn: dist.MultivariateNormal, observed: Tensor) -> None:
        self.fn, self.observed = fn, observed
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> MarginalNormal:
        return MarginalNormal(self.fn.expand(batch_shape), self.observed)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., n] log-density of the observed entries, nats."""
        seen = self.observed.to(self.fn.loc.dtype)  # [n, D]
        covariance = self.fn.scale_tril @ self.fn.scale_tril.mT
        # the identity in the place of what was not seen: it adds nothing to the determinant or to the distance
        covariance = covariance * seen.unsqueeze(-1) * seen.unsqueeze(-2) + torch.diag_embed(1 - seen)
        factor = torch.linalg.cholesky(covariance)
        difference = ((value - self.fn.loc) * seen).unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, difference, upper=False).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * seen.sum(-1)
