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

MOST_STEPS, STANDS = 5, 1e-4  # of a covariance to its most probable value; the relative change at which it is there


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


class Separated(TorchDistribution):
    """A covariance matrix by its variances and its correlations (Barnard, McCulloch & Meng 2000).

    Σ = diag(v)^½ C diag(v)^½ [D, D] with v_d ~ InverseGamma(`concentration`, `rate`_d) and C ~ LKJ(`lkj`).
    """

    arg_constraints = {"rate": constraints.independent(constraints.positive, 1)}
    support = constraints.positive_definite

    def __init__(self, concentration: float, rate: Tensor, lkj: float, validate_args: bool | None = None) -> None:
        self.concentration, self.rate, self.lkj = concentration, rate, lkj
        super().__init__(rate.shape[:-1], rate.shape[-1:] * 2, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Separated:
        """The same for a batch."""
        rate = self.rate.expand((*batch_shape, self.rate.shape[-1]))
        return Separated(self.concentration, rate, self.lkj, validate_args=False)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """A draw of the variances, and one of the correlations."""
        shape, D = torch.Size(sample_shape), self.rate.shape[-1]
        scales = dist.InverseGamma(self.concentration, self.rate).sample(shape).sqrt()
        if D == 1:
            return scales.unsqueeze(-1).square()
        size = torch.as_tensor(self.lkj).to(self.rate)
        root = scales.unsqueeze(-1) * dist.LKJCholesky(D, size).sample(shape + self.batch_shape)
        return root @ root.mT

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, nats; |∂Σ / ∂(v, C)| = ∏ v_d^((D − 1)/2)."""
        if self._validate_args:
            self._validate_sample(value)
        D, a = self.rate.shape[-1], self.concentration
        variances = value.diagonal(dim1=-2, dim2=-1)
        log_det = 2 * torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = a * self.rate.log() - math.lgamma(a) - self._power * variances.log() - self.rate / variances
        half, alpha = 0.5 * (D - 1), torch.tensor(self.lkj + 0.5 * (D - 1), dtype=torch.float64)
        volume = (
            half * math.log(math.pi) + torch.mvlgamma(alpha - 0.5, D - 1) - (D - 1) * alpha.lgamma() if D > 1 else 0.0
        )
        return each.sum(-1) + (self.lkj - 1) * log_det - float(volume)

    @property
    def _power(self) -> float:
        """Of 1/v_d in the density."""
        return self.concentration + self.lkj + 0.5 * (self.rate.shape[-1] - 1)

    def most_probable(self, value: Tensor, scatter: Tensor, n: Tensor) -> Tensor:
        """Σ of largest log p(Σ) − ½ (n log |Σ| + tr Σ⁻¹ S), for S = `scatter` of n [..., 1, 1] rows, by steps from `value`.

        With P = Σ⁻¹, 1/v_d is the least of uᵀ P u with u_d = 1, so that −b/v_d ≥ −b uᵀ P u with u the column d of Σ / v_d as
        it stands; and −log v ≥ −log v₀ − (v − v₀) / v₀. What is left, −½ (m log |Σ| + tr P T) − tr Σ E, has its top where
        T = m Σ + 2 Σ E Σ: with X = E^½ Σ E^½ a quadratic equation in X. No step lowers the density (Hunter & Lange 2004).
        """
        m = n - 2 * (self.lkj - 1)
        for _ in range(MOST_STEPS):
            variances, before = value.diagonal(dim1=-2, dim2=-1), value
            away = value / variances.unsqueeze(-2)
            total = scatter + 2 * (away * self.rate.unsqueeze(-2)) @ away.mT
            unit = (self._power / variances).sqrt()
            square = unit.unsqueeze(-1) * unit.unsqueeze(-2)
            lengths, vectors = torch.linalg.eigh(total * square)
            m_, root = m[..., 0], (m[..., 0].square() + 8 * lengths).sqrt()
            lengths = torch.where(m_ > 0, 2 * lengths / (m_ + root), (root - m_) / 4)
            value = (vectors * lengths.unsqueeze(-2)) @ vectors.mT / square
            if bool(((value - before).abs() <= STANDS * before.abs().amax((-2, -1), keepdim=True)).all()):
                break
        return value


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
