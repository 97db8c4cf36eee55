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

NUMBERS = 2**19  # in the matrices of the rows that are worked on at once


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
        n, D = self.observed.shape
        size = max(1, NUMBERS // (D * D))
        pieces = [self._log_prob(value, slice(first, first + size)) for first in range(0, n, size)]
        return torch.cat(pieces, -1)

    def _log_prob(self, value: Tensor, rows: slice) -> Tensor:
        seen = self.observed[rows]
        # the identity in the place of what was not seen: it adds nothing to the determinant or to the distance
        both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
        covariance = self.fn.covariance_matrix[..., rows, :, :]
        factor = torch.linalg.cholesky(torch.where(both, covariance, torch.eye(seen.shape[1]).to(covariance)))
        difference = torch.where(seen, value[..., rows, :] - self.fn.loc[..., rows, :], 0.0).unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, difference, upper=False).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum(-1) - log_det - 0.5 * math.log(2 * math.pi) * seen.sum(-1).to(white)
