"""Priors that torch and Pyro do not have: the inverse Wishart, and improper ones that a latent can begin at."""

from __future__ import annotations

import copy
import math

import torch
from pyro.distributions import ImproperUniform, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from zoo._errors import UsageError
from zoo._program.trace import Node

Shape = torch.Size | list[int] | tuple[int, ...]


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

    def expand(self, batch_shape: Shape, _instance: object = None) -> InverseWishart:
        """The same for a batch."""
        scale = self.scale.expand((*batch_shape, *self.event_shape))
        return InverseWishart(self.df.expand(batch_shape), scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Ψ / (ν − D − 1); infinite where ν is no larger than D + 1."""
        over = (self.df - self.event_shape[-1] - 1).clamp(min=0)
        return self.scale / over[..., None, None]

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
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

    def expand(self, batch_shape: Shape, _instance: object = None) -> Flat:
        """The same for a batch."""
        fn = ImproperUniform(self.support, torch.Size(batch_shape), self.event_shape)
        return Flat(fn, self.name, self.init, self.simulated)

    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
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
