"""NaN in the data means "not observed": one effect handler, around any program (`Unobserved`).

- entries that are independent given the latents are masked out of the density;
- a multivariate normal is replaced by its marginal over the observed sub-block, pattern by pattern;
- a row with nothing observed drops out, whatever the family: its density is the empty product, 0 nats.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from zoo._errors import UsageError


class Unobserved(Messenger):
    """Replaces, at each observed site with NaN entries, the distribution by its marginal over what was observed."""

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        missing = value.isnan()
        if missing.any():
            msg["fn"], msg["value"] = marginal(msg["fn"], value, missing, msg["name"])


def marginal(fn: Any, value: Tensor, missing: Tensor, site: str) -> tuple[Any, Tensor]:
    """The distribution of the observed entries, and the value with harmless numbers where `missing` is true.

    Raises `UsageError` where a row is partly missing and the family cannot be marginalised.
    """
    event_dims = tuple(range(value.dim() - len(fn.event_shape), value.dim()))
    row_missing = missing.all(dim=event_dims) if event_dims else missing
    partly = (missing.any(dim=event_dims) if event_dims else missing) & ~row_missing
    base, independent = _unwrap(fn)
    filled = torch.where(missing, torch.full_like(value, _harmless(base)), value)
    if not base.event_shape:
        observed = ~missing
        masked = base.mask(observed)
        return (masked.to_event(independent) if independent else masked), filled
    if partly.any():
        if isinstance(base, dist.MultivariateNormal) and not independent:
            return MarginalNormal(fn, ~missing), filled
        raise UsageError(
            f"site '{site}': entries of a {type(base).__name__} cannot be left out one by one, and row "
            f"{int(partly.nonzero()[0, 0])} is partly missing; use a family with independent entries or a normal."
        )
    return fn.mask(~row_missing), filled


def _unwrap(fn: Any) -> tuple[Any, int]:
    """The base distribution of nested Independents, and how many dimensions they made into one event."""
    count = 0
    while isinstance(fn, dist.Independent):
        count += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return fn, count


def _harmless(base: Any) -> float:
    """A number inside the support, to stand where nothing was observed."""
    support = base.support
    for candidate in (0.0, 1.0, 0.5):
        probe = torch.full(base.batch_shape + base.event_shape, candidate)
        if bool(torch.as_tensor(support.check(probe)).all()):
            return candidate
    return 0.0


class MarginalNormal(TorchDistribution):
    """A multivariate normal's density over the observed entries of each row.

    `fn` has batch shape [..., n] and event shape [D]; `observed` is a boolean [n, D].
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, fn: Any, observed: Tensor) -> None:
        self.fn, self.observed = fn, observed
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MarginalNormal:
        return MarginalNormal(self.fn.expand(batch_shape), self.observed)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        return self.fn.sample(sample_shape)

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
