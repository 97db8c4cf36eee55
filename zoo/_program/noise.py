"""Distributions that Pyro lacks: Gaussians beside a uniform for outliers (Banfield & Raftery 1993), and some priors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import ImproperUniform
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from zoo._errors import UsageError
from zoo._program.masked_normal import MarginalNormal
from zoo._program.trace import Node, Shape


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


class InverseWishart(TorchDistribution):
    """The conjugate prior of a covariance matrix (Bishop 2006, §2.3.6).

    Σ ~ W⁻¹(Ψ, ν) [D, D]: p(Σ) ∝ |Σ|^−(ν+D+1)/2 exp(−½ tr Ψ Σ⁻¹), for ν > D − 1 and a positive definite `scale` Ψ."""

    arg_constraints = {"df": constraints.positive, "scale": constraints.positive_definite}
    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, df: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df, self.scale = df.expand(batch), scale.expand((*batch, *scale.shape[-2:]))
        super().__init__(batch, self.scale.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> InverseWishart:
        """The same for a batch."""
        scale = self.scale.expand((*batch_shape, *self.event_shape))
        return InverseWishart(self.df.expand(torch.Size(batch_shape)), scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Ψ / (ν − D − 1); infinite where ν is no larger than D + 1."""
        over = (self.df - self.event_shape[-1] - 1).clamp(min=0)
        return self.scale / over[..., None, None]

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """C (A Aᵀ)⁻¹ Cᵀ for Ψ = C Cᵀ and A Aᵀ ~ W(I, ν) by Bartlett's decomposition."""
        shape, D = self._extended_shape(torch.Size(sample_shape)), self.event_shape[-1]
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


class Begin(Messenger):
    """Where the prior of a latent is improper (`ImproperUniform`), it begins at the site's `infer={"init": value}`, else in
    the middle of its support: nothing can be drawn. `simulated`: new data are asked for, which need a draw.
    """

    def __init__(self, simulated: bool) -> None:
        super().__init__()
        self.simulated = simulated

    def _pyro_sample(self, msg: Node) -> None:
        if not msg["is_observed"] and not msg["done"]:
            msg["fn"] = self._of(msg["fn"], msg["name"], (msg["infer"] or {}).get("init"))

    def _of(self, fn: TorchDistribution, name: str, init: object) -> TorchDistribution:
        if type(fn) is ImproperUniform:
            return Flat(fn, name, None if self.simulated else init, self.simulated)
        base = getattr(fn, "__dict__", {}).get("base_dist")
        inner = base if base is None else self._of(base, name, init)
        if inner is base:
            return fn
        fn = copy.copy(fn)
        fn.__dict__["base_dist"] = inner
        return fn


class Flat(ImproperUniform):
    """An improper prior whose one draw is where the latent begins."""

    def __init__(self, fn: ImproperUniform, name: str, init: object, simulated: bool) -> None:
        super().__init__(fn.support, fn.batch_shape, fn.event_shape)
        self.name, self.init, self.simulated = name, init, simulated

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Flat:
        """The same for a batch."""
        fn = ImproperUniform(self.support, torch.Size(batch_shape), self.event_shape)
        return Flat(fn, self.name, self.init, self.simulated)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """The value to begin at."""
        if self.simulated:
            raise UsageError(
                f"The prior of '{self.name}' is improper (ImproperUniform): no new data can be drawn from it. Fit the program "
                "first, or give it a proper prior."
            )
        shape = self._extended_shape(torch.Size(sample_shape))
        if self.init is not None:
            return torch.as_tensor(self.init, dtype=torch.get_default_dtype()).expand(shape)
        way = biject_to(self.support)
        return way(torch.zeros(way.inverse_shape(shape)))
