"""Factor analysis: a few shared causes, and a noise variance for every column.

Generative story (Rubin & Thayer 1982; Bishop 2006, §12.2.4):

    z_i ~ N(0, I_L)                               the factors
    x_i | z_i ~ N(W z_i + μ, Ψ),  Ψ diagonal      the linear Gaussian model

Unlike PCA it does not depend on the columns' units: rescaling a column rescales its row of W and its noise.

With `priors=True`, for columns of mean m_d and standard deviation s_d,

    W_dl ~ N(0, s_d²),  μ_d ~ N(m_d, (2 s_d)²),  Ψ_dd ~ InverseGamma(2, s_d²)

so that no noise goes to 0 (a Heywood case; Martin & McDonald 1975).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Count, positive


class Model(PyroModule):
    """`Model(x, latents=2, priors=False)` for data x [n, D].

    - `latents`: how many factors, L; fewer than the columns.
    - `priors`: draw the parameters from weak priors, so that they have a posterior, and no noise collapses.

    Parameters (constrained shapes): `loadings` W [D, L], `mean` μ [D], `noise` the standard deviations √Ψ [D]. With priors
    they are the sites `loadings`, `mean` and `variances` Ψ [D].

    Raises `UsageError` for latents ≥ columns, where the model is not identified, or data that are not a 2-D table.
    """

    def __init__(self, x: Tensor, *, latents: Count = 2, priors: bool = False) -> None:
        super().__init__()
        positive("latents", latents)
        if x.dim() != 2:
            raise UsageError(f"factor_analysis expects a 2-D table (n × D), got shape {tuple(x.shape)}.")
        D = x.shape[1]
        if latents >= D:
            raise UsageError(
                f"factor_analysis expects fewer latents than columns, got latents={latents} for {D} columns."
            )
        self.L, self.priors = latents, priors
        center = blockwise.center(x)
        spread = blockwise.spread(x, center)
        loadings = spread.unsqueeze(1) * torch.randn(D, latents) / (2 * latents) ** 0.5
        if priors:
            self.register_buffer("center", center)  # [D]
            self.register_buffer("spread", spread)  # [D]
            self.register_buffer(
                "start", loadings
            )  # [D, L]: at the prior's mean, 0, nothing would tell the factors apart
            return
        self.loadings = PyroParam(loadings, constraints.real)
        self.mean = PyroParam(center, constraints.real)
        self.noise = PyroParam(spread, constraints.positive)

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
        m, s = self.center, self.spread
        prior = dist.Normal(torch.zeros_like(self.start), s.unsqueeze(1)).to_event(2)
        W = pyro.sample("loadings", prior, infer={"init": self.start})  # [D, L]
        mean = pyro.sample("mean", dist.Normal(m, 2 * s).to_event(1))  # [D]
        variances = pyro.sample("variances", dist.InverseGamma(torch.full_like(s, 2.0), s**2).to_event(1))  # [D]
        return W, mean, variances.sqrt()
