"""Mean, standard deviation and quantiles of a mixture of distributions: of one number given weighted values of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from inference._families._registry import base_of

HALVINGS = 60
WIDTH = 7.0  # standard deviations from the mean within which all quantiles from 2.5 % to 97.5 % lie, by Cantelli's inequality


@dataclass(frozen=True)
class Mixture:
    """Components `fn` for J · n rows, each of E independent numbers or of one, with weights [J, n]."""

    fn: Distribution
    weights: Tensor

    @classmethod
    def of(cls, fn: Distribution, weights: Tensor) -> Mixture:
        """Of an observed site's distribution for J · n rows."""
        base = base_of(fn)
        if isinstance(base, dist.MultivariateNormal):
            base = dist.Normal(base.loc, base.variance.sqrt())
        return cls(base, weights)

    def _apart(self, value: Tensor) -> Tensor:
        """[J n, E, …], or [J n, …] of a single number, as [J, n, E, …]."""
        value = value if len(self.fn.batch_shape) > 1 else value.unsqueeze(1)
        return value.reshape(*self.weights.shape, *value.shape[1:])

    def _mean(self, value: Tensor) -> Tensor:
        return torch.einsum("jn,jn...->n...", self.weights, self._apart(value))

    @property
    def shares(self) -> Tensor | None:
        """The probability of each category [n, E, C]; None of numbers."""
        return self._mean(self.fn.probs) if isinstance(self.fn, dist.Categorical) else None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [n, E]."""
        mean = self._mean(self.fn.mean)
        apart = self._apart(self.fn.mean) - mean
        return mean, torch.einsum("jn,jn...->n...", self.weights, self._apart(self.fn.variance) + apart.square()).sqrt()

    def quantile(self, p: float) -> Tensor | None:
        """The smallest value [n, E] up to which lies a probability of p; None of a family without a distribution function."""
        return Average([self]).quantile(p)

    def below(self, value: Tensor) -> Tensor | None:
        """P(X ≤ value) [n, E]."""
        value = value.repeat(len(self.weights), 1).reshape(self.fn.batch_shape)
        if isinstance(self.fn, dist.Poisson):
            found = torch.special.gammaincc(value.floor().clamp(min=0) + 1, self.fn.rate) * (value >= 0)
        elif isinstance(self.fn, dist.Bernoulli):
            found = torch.where(value < 1, 1 - self.fn.probs, 1.0) * (value >= 0)
        else:
            support = self.fn.support  # outside it `cdf` may be NaN: of log x, say
            inside = torch.ones_like(value, dtype=torch.bool) if support is None else support.check(value)
            try:
                found = self.fn.cdf(torch.where(inside, value, self.fn.mean))
            except NotImplementedError:
                return None
            found = torch.where(inside, found, (value > self.fn.mean).to(found.dtype))
        return self._mean(found)


@dataclass(frozen=True)
class Average:
    """Mixtures of the same numbers, one of them with equal probabilities."""

    parts: Sequence[Mixture]

    @property
    def shares(self) -> Tensor | None:
        """See `Mixture`."""
        found = [shares for part in self.parts if (shares := part.shares) is not None]
        return torch.stack(found).mean(0) if found else None

    def moments(self) -> tuple[Tensor, Tensor]:
        """See `Mixture`."""
        means, deviations = (torch.stack(v) for v in zip(*(part.moments() for part in self.parts), strict=True))
        return means.mean(0), (deviations.square() + (means - means.mean(0)).square()).mean(0).sqrt()

    def quantile(self, p: float) -> Tensor | None:
        """See `Mixture`."""
        mean, sd = self.moments()
        low, high = mean - WIDTH * sd - 1, mean + WIDTH * sd + 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = [below for part in self.parts if (below := part.below(middle)) is not None]
            if not found:
                return None
            below = torch.stack(found).mean(0)
            low, high = torch.where(below < p, middle, low), torch.where(below < p, high, middle)
        support = self.parts[0].fn.support
        return high.round() if support is not None and support.is_discrete else high
