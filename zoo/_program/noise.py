"""Gaussian components beside one of noise: a uniform over a box, for outliers (Banfield & Raftery 1993)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from zoo._program.masked_normal import MarginalNormal
from zoo._program.trace import Shape


class Noisy(TorchDistribution):
    """A Gaussian of D entries, or, where `noise` [...] is true, a uniform over the box from `low` to `high` [D].

    `loc` [..., D]; `spread` is the Gaussian's own second parameter. `observed` [..., D]: which entries count, all where None;
    the density is that of those.
    """

    spread: ClassVar[str]  # the name of the second parameter
    sides: ClassVar[int]  # its dimensions
    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self, loc: Tensor, spread: Tensor, noise: Tensor, low: Tensor, high: Tensor, observed: Tensor | None = None
    ) -> None:
        batch = torch.broadcast_shapes(loc.shape[:-1], spread.shape[: -self.sides], noise.shape)
        D = loc.shape[-1:]
        self.loc, self.low, self.high = (value.expand(batch + D) for value in (loc, low, high))
        self.noise, self.observed = noise.expand(batch), observed
        setattr(self, self.spread, spread.expand(batch + D * self.sides))
        super().__init__(batch, D, validate_args=False)

    def _given(self) -> tuple[Tensor, ...]:
        return self.loc, getattr(self, self.spread), self.noise, self.low, self.high

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Noisy:
        batch = torch.Size(batch_shape)
        loc, spread, *rest = self._given()
        wide = spread.expand(batch + spread.shape[-self.sides :])
        return type(self)(loc.expand(batch + self.event_shape), wide, *rest, self.observed)  # type: ignore[call-arg]

    def observing(self, observed: Tensor) -> Noisy:
        """The density of the `observed` entries [..., D] alone."""
        return type(self)(*self._given(), observed)  # type: ignore[call-arg]

    def gaussian(self) -> TorchDistribution:
        """The Gaussian, of the entries that count."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] nats; −∞ for noise outside the box."""
        seen = torch.ones_like(value, dtype=torch.bool) if self.observed is None else self.observed
        inside = ((value >= self.low) & (value <= self.high) | ~seen).all(-1)
        uniform = -((self.high - self.low).log() * seen).sum(-1)
        uniform = torch.where(inside, uniform, torch.full_like(uniform, -torch.inf))
        return torch.where(self.noise, uniform, self.gaussian().log_prob(value))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        drawn = self.low + (self.high - self.low) * torch.rand(shape + self.loc.shape).to(self.loc)
        return torch.where(self.noise.unsqueeze(-1), drawn, self.gaussian().sample(shape)).detach()

    @property
    def mean(self) -> Tensor:
        return torch.where(self.noise.unsqueeze(-1), (self.low + self.high) / 2, self.loc)

    @property
    def variance(self) -> Tensor:
        return torch.where(self.noise.unsqueeze(-1), (self.high - self.low).square() / 12, self.gaussian().variance)


class NoisyNormal(Noisy):
    """With independent entries: `scale` [..., D]."""

    spread, sides = "scale", 1
    scale: Tensor

    def gaussian(self) -> TorchDistribution:
        fn = dist.Normal(self.loc, self.scale)
        return (fn if self.observed is None else fn.mask(self.observed)).to_event(1)


class NoisyMultivariateNormal(Noisy):
    """With a covariance: `scale_tril` [..., D, D]."""

    spread, sides = "scale_tril", 2
    scale_tril: Tensor

    def gaussian(self) -> TorchDistribution:
        fn = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        return fn if self.observed is None else MarginalNormal(fn, self.observed)
