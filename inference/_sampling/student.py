"""Mixtures of multivariate Student-t distributions that follow weighted draws (Cappé et al. 2008, "Adaptive importance sampling
in general mixture classes"; Peel & McLachlan 2000 for the t)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._numerics import definite

FREEDOM = 5.0  # degrees of it: tails that a posterior seldom exceeds
LEAST_SHARE = 0.01  # of a component
SHRINK = 1e-6


@dataclass(frozen=True)
class Mixture:
    """J components: shares [J], centers [J, d], scale factors [J, d, d] (lower-triangular)."""

    shares: Tensor
    centers: Tensor
    factors: Tensor
    freedom: float = FREEDOM

    @classmethod
    def of(cls, centers: Tensor, covariances: Tensor) -> Mixture:
        """Components in equal shares."""
        J = len(centers)
        return cls(torch.full((J,), 1 / J, dtype=centers.dtype), centers, factor(covariances))

    def _each(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """log share · t density, and Mahalanobis distances, each [B, J]."""
        away = (flat.unsqueeze(1) - self.centers).movedim(1, 0).mT  # [J, d, B]
        distance = torch.linalg.solve_triangular(self.factors, away, upper=False).square().sum(1).mT
        log_det = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_t(distance, flat.shape[1], self.freedom) - log_det + self.shares.log(), distance

    def log_prob(self, flat: Tensor) -> Tensor:
        """[B] of the points flat [B, d]."""
        return self._each(flat)[0].logsumexp(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, d]."""
        which = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.centers.shape[1], 1, generator=generator, dtype=self.centers.dtype)
        away = (self.factors[which] @ noise).squeeze(-1) / chi((count,), self.freedom, generator).unsqueeze(1)
        return self.centers[which] + away

    def marginal(self, places: Tensor) -> Mixture:
        """Of some of the coordinates."""
        whole = self.factors @ self.factors.mT
        return Mixture(self.shares, self.centers[:, places], factor(whole[:, places][:, :, places]), self.freedom)

    def beside(self, other: Mixture, share: float) -> Mixture:
        """This and another, which gets a share of the draws."""
        return Mixture(
            torch.cat([(1 - share) * self.shares, share * other.shares]),
            torch.cat([self.centers, other.centers]),
            torch.cat([self.factors, other.factors]),
            self.freedom,
        )

    def follow(self, flat: Tensor, weights: Tensor, steps: int = 5) -> Mixture:
        """The mixture moved by EM to draws flat [B, d] with weights [B] that sum to 1."""
        new, d = self, flat.shape[1]
        prior = _moments(flat, weights)[1]
        for _ in range(steps):
            each, distance = new._each(flat)
            mine = each.softmax(1) * weights.unsqueeze(1)  # [B, J]
            shares = mine.sum(0)
            kept = shares >= LEAST_SHARE
            mine, distance, shares = mine[:, kept], distance[:, kept], shares[kept]
            pull = mine * (new.freedom + d) / (new.freedom + distance)
            centers = (pull.mT @ flat) / pull.sum(0).unsqueeze(1)
            away = flat.unsqueeze(1) - centers
            covariance = torch.einsum("bj,bjd,bje->jde", pull, away, away) / shares[:, None, None]
            # a component of few effective draws leans on the covariance of all
            few = d / (d + mine.sum(0).square() / mine.square().sum(0))
            covariance = torch.lerp(covariance, prior, (0.5 * few)[:, None, None])
            new = Mixture(shares / shares.sum(), centers, factor(covariance), new.freedom)
        return new


def log_t(distance: Tensor, d: int, freedom: float) -> Tensor:
    """The log-density of a standard Student t in d dimensions, at squared distances from its center."""
    v = freedom
    constant = math.lgamma((v + d) / 2) - math.lgamma(v / 2) - 0.5 * d * math.log(v * math.pi)
    return constant - 0.5 * (v + d) * torch.log1p(distance / v)


def chi(shape: tuple[int, ...], freedom: float, generator: torch.Generator) -> Tensor:
    """√(χ²_v / v) of a shape, of a whole number v."""
    noise = torch.randn(*shape, int(freedom), generator=generator, dtype=torch.float64)
    return noise.square().mean(-1).sqrt()


def _moments(flat: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean [d] and covariance [d, d]."""
    mean = weights @ flat
    away = flat - mean
    return mean, (weights.unsqueeze(1) * away).mT @ away


def moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of draws."""
    return _moments(flat, torch.full((len(flat),), 1 / len(flat), dtype=flat.dtype))


def normal(flat: Tensor) -> torch.distributions.MultivariateNormal:
    """The normal distribution with the mean and covariance of draws [S, d]."""
    mean, covariance = moments(flat)
    return torch.distributions.MultivariateNormal(mean, scale_tril=factor(covariance))


def factor(covariances: Tensor) -> Tensor:
    """Cholesky factors of [..., d, d], with eigenvalues kept off 0."""
    found: Tensor = torch.linalg.cholesky(definite.raised(covariances, SHRINK)[0])
    return found
