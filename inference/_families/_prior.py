"""Priors with which the most probable value of a parameter has a closed form: what they add to sums, and modes of spreads."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from inference._families._family import Pool
from zoo._program.noise import InverseWishart, Separated

OF_SPREADS: dict[str, tuple[type[Distribution], ...]] = {
    "scale": (dist.HalfNormal, dist.HalfCauchy),
    "variance": (dist.InverseGamma,),
    "precision": (dist.Gamma,),
}
VANISHED = 1e-30  # of its prior's own scale: a spread that is smaller is on its way to 0


def has_mode(prior: Distribution) -> bool:
    """Whether the prior's own density is bounded, so that what an M-step adds to sums is never negative."""
    if isinstance(prior, dist.Dirichlet):
        return bool((prior.concentration >= 1).all())
    if isinstance(prior, dist.Beta):
        return bool((prior.concentration1 >= 1).all() and (prior.concentration0 >= 1).all())
    if type(prior) is dist.Gamma:
        return bool((prior.concentration >= 1).all())
    if isinstance(prior, dist.Wishart):
        return bool((prior.df >= prior.event_shape[-1] + 1).all())
    return not isinstance(prior, Separated) or prior.lkj >= 1


def added(pool: Pool) -> tuple[Tensor | float, Tensor | float]:
    """What a prior adds to the number of rows and to the sum of x, for each entry of θ.flat."""
    if isinstance(pool.prior, dist.Beta):
        ones = pool.hyper("concentration1") - 1
        return ones + pool.hyper("concentration0") - 1, ones
    if isinstance(pool.prior, dist.Gamma):
        return pool.hyper("rate"), pool.hyper("concentration") - 1
    return 0.0, 0.0


def precision_of(pool: Pool) -> tuple[Tensor | float, Tensor | float]:
    """A normal prior's precision, and that times its mean, for each entry of θ.flat."""
    if pool.prior is None:
        return 0.0, 0.0
    precision = pool.hyper("scale") ** -2
    return precision, precision * pool.hyper("loc")


def spread_mode(pool: Pool, squares: Tensor, n: Tensor) -> Tensor:
    """The most probable scale (or its variance or precision: `pool.form`), for each entry of θ.flat.

    `squares`: Σ w (x − μ)² of n rows, so that the log-density is −n log σ − squares / 2σ² and the log prior.
    """
    prior = pool.prior
    if isinstance(prior, dist.InverseGamma):
        return (0.5 * squares + pool.hyper("rate")) / (0.5 * n + pool.hyper("concentration") + 1)
    if isinstance(prior, dist.Gamma):
        return (0.5 * n + pool.hyper("concentration") - 1) / (0.5 * squares + pool.hyper("rate"))
    if isinstance(prior, dist.HalfNormal):  # v²/s² + n v − squares = 0 for v = σ²
        unit = pool.hyper("scale") ** 2
        return (2 * squares / (n + (n**2 + 4 * squares / unit).sqrt())).sqrt()
    unit = pool.hyper("scale") ** 2  # HalfCauchy: (n + 2) v² + (n s² − squares) v − s² squares = 0
    middle, last = n * unit - squares, unit * squares
    root = (middle**2 + 4 * (n + 2) * last).sqrt()
    way = torch.where(middle > 0, 2 * last / (middle + root), (root - middle) / (2 * (n + 2)))
    return way.sqrt()


def smallest_spread(prior: Distribution) -> Tensor | float:
    """Below it a spread is as good as 0, where its prior allows that."""
    return VANISHED * prior.scale if isinstance(prior, dist.HalfNormal | dist.HalfCauchy) else 0.0


def covariance_mode(pool: Pool, scatter: Tensor, n: Tensor) -> Tensor:
    """The most probable covariance or precision matrices, given Σ w (x − μ)(x − μ)ᵀ [G, D, D] of n [G] rows."""
    D, n, prior = scatter.shape[-1], n[:, None, None], pool.prior
    if isinstance(prior, Separated):
        value = pool.value.reshape(-1, D, D)
        every = prior.expand(pool.value.shape[:-2])
        return Separated(prior.concentration, every.rate.to(n).reshape(-1, D), prior.lkj).most_probable(
            value, scatter, n
        )
    assert isinstance(prior, InverseWishart | dist.Wishart)  # `priors` says so
    df = prior.df.to(n).expand(pool.value.shape[:-2]).reshape(-1, 1, 1)
    scale = prior.scale if isinstance(prior, InverseWishart) else prior.precision_matrix
    total = (scatter + scatter.mT) / 2 + scale.to(n).expand(pool.value.shape).reshape(-1, D, D)
    if isinstance(prior, InverseWishart):
        return total / (n + df + D + 1)
    return (n + df - D - 1) * torch.cholesky_inverse(torch.linalg.cholesky(total))
