"""Mixture of Gaussians: which of K bumps did each datum come from?

Generative story (Bishop 2006, §9.2):

    z_i ~ Categorical(π)                          which component
    x_i | z_i = k ~ N(μ_k, Σ_k)                   where in it

Σ_k is `full`, `tied` (one Σ for all), `diagonal` or `spherical` (σ_k² I). With `priors=True` the parameters become
global latents with weakly informative priors centred on the data's mean m and standard deviations s:

    π ~ Dirichlet(2, …, 2)
    μ_kd ~ N(m_d, (2 s_d)²)
    Σ_k = diag(v_k)^½ C_k diag(v_k)^½,   v_kd ~ InverseGamma(2, s_d²),   C_k ~ LKJ(2)

(the inverse gamma is conjugate to a variance; the LKJ for correlations is Lewandowski et al. 2009, and separating the two
follows Barnard et al. 2000). Dirichlet(2) and LKJ(2) keep the posterior mode off the border.
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
from zoo._options import Count, positive


class Model(PyroModule):
    """`Model(x, components=2, covariance="full", priors=False)` for data x [n, D] (or [n] values of one variable).

    - `components`: how many, K.
    - `covariance`: `full`, a matrix for each component; `tied`, one for all; `diagonal`; or `spherical`, the same variance in
      all directions.
    - `priors`: draw the parameters from weak priors, so that they have a posterior, and no component can collapse.

    Parameters (constrained shapes): `weights` [K]; `locs` [K, D]; `scale_tril` [K, D, D] (full), [D, D] (tied);
    `scales` [K, D] (diagonal), [K] (spherical). With priors they are the sites `weights`, `locs`, `variances`,
    `correlations`.

    Raises `UsageError` for more components than rows, or data that are not a 2-D table.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        components: Count = 2,
        covariance: Literal["full", "tied", "diagonal", "spherical"] = "full",
        priors: bool = False,
    ) -> None:
        super().__init__()
        positive("components", components)
        if x.dim() != 2:
            raise UsageError(f"gmm expects a 2-D table (n × D), got shape {tuple(x.shape)}.")
        if components > len(x):
            raise UsageError(
                f"gmm expects at most as many components as rows, got components={components} for {len(x)} rows."
            )
        K, D = components, x.shape[1]
        self.K, self.D, self.covariance, self.priors = K, D, covariance, priors
        center = blockwise.center(x)
        spread = blockwise.spread(x, center)
        self.register_buffer("center", center)  # [D]
        self.register_buffer("spread", spread)  # [D]
        if not priors:
            self._parameters_from(x, center, spread)

    def _parameters_from(self, x: Tensor, center: Tensor, spread: Tensor) -> None:
        K = self.K
        rows = x[torch.linspace(0, len(x) - 1, K).round().long().clamp(max=len(x) - 1)]
        self.weights = PyroParam(torch.full((K,), 1.0 / K), constraints.simplex)
        self.locs = PyroParam(0.5 * (center + torch.where(rows.isnan(), center, rows)), constraints.real)
        if self.covariance == "full":
            self.scale_tril = PyroParam(spread.diag().repeat(K, 1, 1), constraints.lower_cholesky)
        elif self.covariance == "tied":
            self.scale_tril = PyroParam(spread.diag(), constraints.lower_cholesky)
        elif self.covariance == "diagonal":
            self.scales = PyroParam(spread.repeat(K, 1), constraints.positive)
        else:
            self.scales = PyroParam(spread.square().mean().sqrt().repeat(K), constraints.positive)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` data. Returns x [n, D]."""
        if self.priors:
            weights, locs, scale = self._draw_parameters()
        else:
            weights, locs = self.weights, self.locs
            scale = self.scale_tril if self.covariance in ("full", "tied") else self.scales
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights))  # [n]
            return pyro.sample("x", self._component(z, locs, scale), obs=x)  # [n, D]

    def _component(self, z: Tensor, locs: Tensor, scale: Tensor) -> dist.TorchDistribution:
        if self.covariance == "full":
            return dist.MultivariateNormal(locs[z], scale_tril=scale[z])
        if self.covariance == "tied":
            return dist.MultivariateNormal(locs[z], scale_tril=scale)
        if self.covariance == "diagonal":
            return dist.Normal(locs[z], scale[z]).to_event(1)
        return dist.Normal(locs[z], scale[z].unsqueeze(-1)).to_event(1)

    def _draw_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        K, D, m, s = self.K, self.D, self.center, self.spread
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))  # [K]
        locs = pyro.sample("locs", dist.Normal(m, 2 * s).expand([K, D]).to_event(2))  # [K, D]
        if self.covariance == "spherical":
            rate = s.square().mean()
            variances = pyro.sample("variances", dist.InverseGamma(2.0, rate).expand([K]).to_event(1))  # [K]
            return weights, locs, variances.sqrt()
        shape = [D] if self.covariance == "tied" else [K, D]
        prior = dist.InverseGamma(torch.full((D,), 2.0), s.square()).expand(shape).to_event(len(shape))
        scales = pyro.sample("variances", prior).sqrt()  # [K, D] or [D]
        if self.covariance == "diagonal":
            return weights, locs, scales
        if D == 1:
            return weights, locs, scales.unsqueeze(-1)
        lkj = dist.LKJCholesky(D, torch.tensor(2.0))
        lkj = lkj if self.covariance == "tied" else lkj.expand([K]).to_event(1)
        correlations = pyro.sample("correlations", lkj)  # [K, D, D] or [D, D], Cholesky factors
        return weights, locs, scales.unsqueeze(-1) * correlations
