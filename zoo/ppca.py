"""Probabilistic PCA: a few shared causes and the same noise in every direction.

Generative story (Tipping & Bishop 1999):

    z_i ~ N(0, I_L)                               where the datum lies in the latent plane
    x_i | z_i ~ N(W z_i + μ, σ² I_D)

As σ² → 0 it becomes principal component analysis, and EM becomes two alternating least-squares steps: a linear autoencoder
with tied pseudo-inverse weights (Roweis 1998). `noise=0` fixes σ at a millionth of the data's standard deviation.

Bayesian PCA (Bishop 1999) is `priors=True`: for data of mean m and standard deviation s over all columns

    α_l ~ Gamma(1, s² / 1000),  W_dl ~ N(0, 1 / α_l)     relevance: a latent that the data do not need is shrunk to nothing
    μ_d ~ N(m_d, (2s)²),        σ² ~ InverseGamma(2, s²)
"""

from __future__ import annotations

from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Count, NotNegative, positive


class Model(PyroModule):
    """`Model(x, latents=2, noise=None, init="random", priors=False)` for data x [n, D].

    - `latents`: how many, L; fewer than the columns.
    - `noise`: a fixed σ, in the units of the data; 0 gives principal component analysis; when None, σ is learned.
    - `init`: where W and σ start: `random`, or `eigenvectors`, the maximum of the likelihood in closed form (Tipping & Bishop
      1999, eq. 7-8).
    - `priors`: draw the parameters from weak priors, with a relevance for each latent: ask for more latents than are needed.

    Parameters (constrained shapes): `loadings` W [D, L], `mean` μ [D], `noise` σ [] (unless `noise` fixes it). With priors
    they are the sites `relevance` α [L], `loadings`, `mean`, `variance` σ² [].

    Raises `UsageError` for latents ≥ columns, where W and σ are not both identified, or data that are not a 2-D table.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        latents: Count = 2,
        noise: NotNegative | None = None,
        init: Literal["random", "eigenvectors"] = "random",
        priors: bool = False,
    ) -> None:
        super().__init__()
        positive("latents", latents)
        if x.dim() != 2:
            raise UsageError(f"ppca expects a 2-D table (n × D), got shape {tuple(x.shape)}.")
        D = x.shape[1]
        if latents >= D:
            raise UsageError(f"ppca expects fewer latents than columns, got latents={latents} for {D} columns.")
        self.L, self.D, self.priors = latents, D, priors
        center = blockwise.center(x)
        spread = blockwise.spread(x, center, rows_only=False)
        if init == "eigenvectors":
            loadings, sigma = _eigenvectors(x, center, latents)
        else:
            loadings, sigma = spread * torch.randn(D, latents) / latents**0.5, spread
        self.fixed = noise is not None
        if noise is not None:
            positive("noise", noise, zero=True)
            self.register_buffer("noise", torch.as_tensor(noise or 1e-6 * float(spread), dtype=x.dtype))
        if priors:
            self.register_buffer("center", center)  # [D]
            self.register_buffer("spread", spread)  # []
            self.register_buffer(
                "start", loadings
            )  # [D, L]: at the priors' mean, 0, nothing would tell the latents apart
            return
        self.loadings = PyroParam(loadings, constraints.real)
        self.mean = PyroParam(center, constraints.real)
        if noise is None:
            self.noise = PyroParam(sigma.clamp(min=1e-6 * spread), constraints.positive)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` data. Returns x [n, D]."""
        if self.priors:
            W, mean, noise = self._draw_parameters()
        else:
            W, mean, noise = self.loadings, self.mean, self.noise
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.L), 1.0).to_event(1))  # [n, L]
            return pyro.sample("x", dist.Normal(z @ W.mT + mean, noise).to_event(1), obs=x)  # [n, D]

    def _draw_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        D, L, m, s = self.D, self.L, self.center, self.spread
        known = D / self.start.square().sum(0).clamp(min=1e-3 * s**2)
        gamma = dist.Gamma(torch.ones(L), 1e-3 * s**2).to_event(1)
        relevance = pyro.sample("relevance", gamma, infer={"init": known})  # [L]
        prior = dist.Normal(torch.zeros(D, L), relevance.rsqrt()).to_event(2)
        W = pyro.sample("loadings", prior, infer={"init": self.start})  # [D, L]
        mean = pyro.sample("mean", dist.Normal(m, 2 * s).to_event(1))  # [D]
        if self.fixed:
            noise: Tensor = self.noise
            return W, mean, noise
        return W, mean, pyro.sample("variance", dist.InverseGamma(torch.tensor(2.0), s**2)).sqrt()


def _eigenvectors(x: Tensor, center: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    """W and σ of largest likelihood, missing entries at their column's mean."""
    values, vectors = torch.linalg.eigh(torch.cov((x - center).nan_to_num(0.0).mT, correction=0))
    variance = values[:-latents].mean()
    kept = values[-latents:].flip(0), vectors[:, -latents:].flip(1)
    return kept[1] * (kept[0] - variance).clamp(min=0).sqrt(), variance.sqrt()
