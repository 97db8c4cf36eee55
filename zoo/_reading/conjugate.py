"""Which latents are conjugate to what is observed: their posterior is of their prior's family, whatever the data.

A rate z ~ Gamma under counts x ~ Poisson(c z), say: log p(x, z) = k + (a − 1 + x) log z − (b + c) z for every z. Two things are
asked. The program's operations must show that z enters each site only as a parameter that its prior is conjugate to (`powers`);
and log p(x, z), evaluated at random points near and far, must be that function of z to rounding.

An exponential family in natural form: p(z) ∝ exp(Σ_t c_t T_t(z)). Diaconis & Ylvisaker 1979, "Conjugate priors for
exponential families".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo._program.latents import Layout
from zoo._reading.powers import (
    ITSELF,
    ONE_MINUS,
    TIMES,
    TIMES_INVERSE,
    TIMES_INVERSE_ROOT,
    TIMES_ROOT,
    WHOLE,
)

_RATE, _CHANCE = frozenset({ITSELF, TIMES}), frozenset({ITSELF, ONE_MINUS})
Children = Mapping[tuple[str, str], frozenset[int]]  # (family of a site, its parameter) → what the parameter may be


class Conjugate(ABC):
    """A family of priors on positive numbers or shares. Entries of one value are separate, but for those of a simplex.

    `coefficients` c [..., m] are those of the statistics T(z) [..., m]; `events`: how many last dimensions of z are one value.
    """

    children: Children
    events = 0

    @abstractmethod
    def first(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two points to look at first, in the shape of `like`."""

    @abstractmethod
    def near(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Two points around the middle of the distribution with the coefficients c."""

    @abstractmethod
    def statistics(self, z: Tensor) -> Tensor:
        """T(z) [..., m]."""

    @abstractmethod
    def coefficients(self, one: Tensor, slope: Tensor, other: Tensor, other_slope: Tensor) -> Tensor:
        """c from the derivatives of Σ_t c_t T_t at two points."""

    @abstractmethod
    def distribution(self, c: Tensor) -> dist.TorchDistribution:
        """The member with the coefficients c; where c is that of no member, its parameters are NaN."""

    @abstractmethod
    def expected(self, c: Tensor) -> Tensor:
        """E[T(z)] [..., m]."""

    @abstractmethod
    def proper(self, c: Tensor) -> Tensor:
        """Where c [..., m] are the coefficients of a distribution."""


class _Gamma(Conjugate):
    """T = (log z, z)."""

    children = {
        ("Poisson", "rate"): _RATE,
        ("Exponential", "rate"): _RATE,
        ("Gamma", "rate"): _RATE,
        ("Normal", "scale"): frozenset({TIMES_INVERSE_ROOT}),
    }

    def first(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(like), torch.full_like(like, 2.0)

    def near(self, c: Tensor) -> tuple[Tensor, Tensor]:
        mean = (c[..., 0] + 1) / -c[..., 1]
        return mean / 1.5, mean * 1.5

    def statistics(self, z: Tensor) -> Tensor:
        return torch.stack([z.log(), z], -1)

    def coefficients(self, one: Tensor, slope: Tensor, other: Tensor, other_slope: Tensor) -> Tensor:
        shape = (slope - other_slope) / (1 / one - 1 / other)
        return torch.stack([shape, slope - shape / one], -1)

    def distribution(self, c: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(c[..., 0] + 1, -c[..., 1], validate_args=False)

    def expected(self, c: Tensor) -> Tensor:
        a, b = c[..., 0] + 1, -c[..., 1]
        return torch.stack([a.digamma() - b.log(), a / b], -1)

    def proper(self, c: Tensor) -> Tensor:
        return (c[..., 0] > -1) & (c[..., 1] < 0) & c.isfinite().all(-1)


class _InverseGamma(_Gamma):
    """T = (log z, 1/z)."""

    children = {
        ("Normal", "scale"): frozenset({TIMES_ROOT}),
        ("Exponential", "rate"): frozenset({TIMES_INVERSE}),
        ("Gamma", "rate"): frozenset({TIMES_INVERSE}),
    }

    def near(self, c: Tensor) -> tuple[Tensor, Tensor]:
        middle = c[..., 1] / c[..., 0]  # the mode: b / (a + 1)
        return middle / 1.5, middle * 1.5

    def statistics(self, z: Tensor) -> Tensor:
        return torch.stack([z.log(), 1 / z], -1)

    def coefficients(self, one: Tensor, slope: Tensor, other: Tensor, other_slope: Tensor) -> Tensor:
        # the derivative is c₀/z − c₁/z²: times z, the line c₀ − c₁/z
        rate = -(one * slope - other * other_slope) / (1 / one - 1 / other)
        return torch.stack([one * slope + rate / one, rate], -1)

    def distribution(self, c: Tensor) -> dist.TorchDistribution:
        return dist.InverseGamma(-c[..., 0] - 1, -c[..., 1], validate_args=False)

    def expected(self, c: Tensor) -> Tensor:
        a, b = -c[..., 0] - 1, -c[..., 1]
        return torch.stack([b.log() - a.digamma(), a / b], -1)

    def proper(self, c: Tensor) -> Tensor:
        return (c[..., 0] < -1) & (c[..., 1] < 0) & c.isfinite().all(-1)


class _Beta(Conjugate):
    """T = (log z, log(1 − z))."""

    children = {
        ("Bernoulli", "probs"): _CHANCE,
        ("Binomial", "probs"): _CHANCE,
        ("Geometric", "probs"): _CHANCE,
        ("NegativeBinomial", "probs"): _CHANCE,
    }

    def first(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(like, 0.3), torch.full_like(like, 0.7)

    def near(self, c: Tensor) -> tuple[Tensor, Tensor]:
        middle = (c[..., 0] + 1).log() - (c[..., 1] + 1).log()
        return torch.sigmoid(middle - 0.5), torch.sigmoid(middle + 0.5)

    def statistics(self, z: Tensor) -> Tensor:
        return torch.stack([z.log(), torch.log1p(-z)], -1)

    def coefficients(self, one: Tensor, slope: Tensor, other: Tensor, other_slope: Tensor) -> Tensor:
        # the derivative is c₀/z − c₁/(1 − z): times z (1 − z), the line c₀ − (c₀ + c₁) z
        line, further = slope * one * (1 - one), other_slope * other * (1 - other)
        fall = (line - further) / (other - one)
        start = line + fall * one
        return torch.stack([start, fall - start], -1)

    def distribution(self, c: Tensor) -> dist.TorchDistribution:
        return dist.Beta(c[..., 0] + 1, c[..., 1] + 1, validate_args=False)

    def expected(self, c: Tensor) -> Tensor:
        return (c + 1).digamma() - (c + 1).sum(-1, keepdim=True).digamma()

    def proper(self, c: Tensor) -> Tensor:
        return ((c > -1) & c.isfinite()).all(-1)


class _Dirichlet(_Beta):
    """T_k = log z_k."""

    children = {
        ("Categorical", "probs"): frozenset({WHOLE}),
        ("OneHotCategorical", "probs"): frozenset({WHOLE}),
        ("Multinomial", "probs"): frozenset({WHOLE}),
    }
    events = 1

    def first(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.near(torch.zeros_like(like))

    def near(self, c: Tensor) -> tuple[Tensor, Tensor]:
        tilt = torch.linspace(-0.5, 0.5, c.shape[-1], dtype=c.dtype)
        return (c + 1).log().add(tilt).softmax(-1), (c + 1).log().sub(tilt).softmax(-1)

    def statistics(self, z: Tensor) -> Tensor:
        return z.log()

    def coefficients(self, one: Tensor, slope: Tensor, other: Tensor, other_slope: Tensor) -> Tensor:
        # a program may divide by the sum of z, so a derivative is c_k / z_k + d with the same d for all k: the d for which
        # c_k = z_k (slope_k − d) is the same at both points
        line, further, away = one * slope, other * other_slope, one - other
        d = (away * (line - further)).sum(-1, keepdim=True) / away.square().sum(-1, keepdim=True)
        return line - d * one

    def distribution(self, c: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(c + 1, validate_args=False)


FAMILIES: dict[str, Conjugate] = {
    "Gamma": _Gamma(), "Exponential": _Gamma(), "Chi2": _Gamma(), "InverseGamma": _InverseGamma(), "Beta": _Beta(),
    "Dirichlet": _Dirichlet(),
}  # fmt: skip


NO_SLOPE = (
    "log p(x, z) has no derivative in some row, as where an exposure is exactly 0 and nothing was counted: such a row says "
    "nothing, leave it out"
)


@dataclass(frozen=True)
class Parts:
    """Where the values of each latent stand among the numbers z [L] of a row, their event shape, and their family."""

    places: Mapping[str, slice]
    events: Mapping[str, tuple[int, ...]]
    families: Mapping[str, Conjugate]

    @classmethod
    def of(cls, layout: Layout, families: Mapping[str, str]) -> Parts:
        """`families`: site → the name of its family."""
        return cls(layout.places, layout.events, {site: FAMILIES[family] for site, family in families.items()})

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """z [..., L] → site → [..., copies] or [..., copies, event]: one entry a value."""
        out = {}
        for name, place in self.places.items():
            event = self.events[name][-1:] if self.families[name].events else ()
            out[name] = z[..., place].reshape(*z.shape[:-1], -1, *event)
        return out

    def joined(self, values: Mapping[str, Tensor]) -> Tensor:
        """The opposite of `split`."""
        each = []
        for name, place in self.places.items():
            value = values[name]
            lead = value.shape[: value.dim() - 1 - self.families[name].events]
            each.append(value.reshape(*lead, place.stop - place.start))
        return torch.cat(each, -1)

    def first(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two points [..., L] to look at first."""
        pairs = {k: self.families[k].first(v) for k, v in self.split(like).items()}
        return self.joined({k: p[0] for k, p in pairs.items()}), self.joined({k: p[1] for k, p in pairs.items()})

    def near(self, c: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Two points [..., L] in the midst of the distributions with the coefficients c."""
        pairs = {k: self.families[k].near(v) for k, v in c.items()}
        return self.joined({k: p[0] for k, p in pairs.items()}), self.joined({k: p[1] for k, p in pairs.items()})

    def coefficients(
        self, joint: Callable[[Tensor], Tensor], one: Tensor, other: Tensor, keep: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """log p(x, z) at the point `one` [..., L], and site → the coefficients of its statistics; `keep`: differentiable."""
        values, slopes = list[Tensor](), list[dict[str, Tensor]]()
        with torch.enable_grad():
            for point in (one, other):
                z = point.detach().requires_grad_()
                value = joint(z)
                (slope,) = torch.autograd.grad(value.sum(), z, create_graph=keep, materialize_grads=True)
                values.append(value if keep else value.detach())
                slopes.append(self.split(slope if keep else slope.detach()))
            here, there = self.split(one.detach()), self.split(other.detach())
            c = {
                k: family.coefficients(here[k], slopes[0][k], there[k], slopes[1][k])
                for k, family in self.families.items()
            }
        return values[0], c

    def log_density(self, c: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """log q(z) [...] of the distributions with the coefficients c."""
        total = torch.zeros((), dtype=z.dtype)
        for name, value in self.split(z).items():
            total = total + self.families[name].distribution(c[name]).log_prob(value).sum(-1)
        return total

    def sum_of(self, c: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> Tensor:
        """Σ c · T [...]."""
        dims = dict.fromkeys(c, (-2, -1))
        return sum(((c[k] * statistics[k]).sum(dims[k]) for k in c), torch.zeros(()))

    def statistics(self, z: Tensor) -> dict[str, Tensor]:
        return {k: self.families[k].statistics(v) for k, v in self.split(z).items()}
