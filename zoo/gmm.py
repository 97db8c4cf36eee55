"""Mixture of Gaussians: which of K bumps did each datum come from?

Generative story (Bishop 2006, §9.2):

    z_i ~ Categorical(π)                          which component
    x_i | z_i = k ~ N(μ_k, Σ_k)                   where in it

Σ_k is `full`, `tied` (one Σ for all), `diagonal` or `spherical` (σ_k² I); or it is made of a volume, a shape and an
orientation, Σ_k = λ_k D_k A_k D_kᵀ with det A_k = 1 (Banfield & Raftery 1993, Celeux & Govaert 1995), and named as in mclust
by a letter for each of the three: E, equal in all components; V, varying; I, of a sphere. EII, VII, EEI, VEI, EVI, VVI, EEE,
VEE, EVE, VVE, EEV, VEV, EVV, VVV; full is VVV, tied EEE, diagonal VVI, spherical VII.

With `noise=uniform` there is one component more, z_i = K, for outliers: x_i is uniform over the box that the data fill
(Banfield & Raftery 1993); beyond that box, in new rows, its density is 0. With `priors=True` the parameters become
global latents with weakly informative priors centred on the data's mean m and standard deviations s:

    π ~ Dirichlet(α, …, α)                        α = 2, or the `concentration`
    μ_kd ~ N(m_d, (2 s_d)²)
    Σ_k = diag(v_k)^½ C_k diag(v_k)^½,   v_kd ~ InverseGamma(2, s_d²),   C_k ~ LKJ(2)

(the inverse gamma is conjugate to a variance; the LKJ for correlations is Lewandowski et al. 2009, and separating the two
follows Barnard et al. 2000). A Dirichlet(2) and an LKJ(2) keep the posterior mode off the border. `priors=conjugate` has
Σ_k ~ InverseWishart(D + 2, diag(s²)), of the same mean, in their place.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from zoo._data import blockwise
from zoo._errors import UsageError
from zoo._options import Count, Positive, Used, positive
from zoo._program import covariances
from zoo._program.covariances import LETTERS, WHOLE, Covariance
from zoo._program.noise import InverseWishart, NoisyMultivariateNormal, NoisyNormal, Separated


class Model(PyroModule):
    """`Model(x, components=2, covariance="full", priors=False, concentration=2.0, noise="none")` for data x [n, D] (or
    [n] values of one).

    - `components`: how many, K.
    - `covariance`: `full`, a matrix for each component; `tied`, one for all; `diagonal`; `spherical`, the same variance in all
      directions; or one of the fourteen names of mclust, for equal (E), varying (V) or no (I) volume, shape and orientation.
    - `priors`: draw the parameters from weak priors, or `conjugate` ones, so that they have a posterior and none collapses.
    - `concentration`: α, of the prior of the weights. A small one (0.1) empties components that the data do not need (Rousseau
      & Mengersen 2011). Below 1 em may find no posterior mode; nuts and svi need none.
    - `noise`: `uniform` adds a component of outliers, uniform over the box of the data.

    Parameters (constrained shapes): `weights` [K], or [K + 1] with noise; `locs` [K, D]; `scale_tril` [K, D, D] (full),
    [D, D] (tied); `scales` [K, D] (diagonal), [D] (EEI), [K] (spherical), [1] (EII). The other shapes have `volume` λ [K], or
    [1] where it is equal; `shape` [K, D] or [D], which A is proportional to; and for D the `angles` [K, D(D−1)/2] or
    [D(D−1)/2] of a rotation. With priors the sites are `weights`, `locs`, and `covariances` or `variances`.

    Raises `UsageError` for more components than rows, data that are not a 2-D table, or priors for a covariance without.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        components: Count = 2,
        covariance: Covariance = "full",
        priors: Literal["conjugate"] | bool = False,
        concentration: Annotated[Positive, Used(priors=("true", "conjugate"))] = 2.0,
        noise: Literal["none", "uniform"] = "none",
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
        self.K, self.D, self.priors, self.conjugate = K, D, bool(priors), priors == "conjugate"
        self.concentration = concentration
        self.letters = LETTERS.get(covariance, covariance)
        self._check(covariance)
        center = blockwise.center(x)
        spread = blockwise.spread(x, center)
        self.register_buffer("center", center)  # [D]
        self.register_buffer("spread", spread)  # [D]
        self.noise = noise == "uniform"
        if self.noise:
            self._box(x)
        if not priors:
            self._parameters_from(x, center, spread)

    def _check(self, covariance: str) -> None:
        names = [*LETTERS, *LETTERS.values()]
        if self.priors and covariance not in names:
            raise UsageError(
                f"gmm has no priors for covariance={covariance}. Take one of {', '.join(names)}, or leave out priors."
            )
        if self.D == 1 and self.letters not in WHOLE:
            raise UsageError(
                f"covariance={covariance} expects two columns or more, got one, which has no shape and no orientation: take "
                "spherical (VII) or EII."
            )

    def _box(self, x: Tensor) -> None:
        if constant := blockwise.constant_columns(x):
            raise UsageError(
                f"noise=uniform expects columns that vary; column {constant[0]} (counting from 0) does not."
            )
        low, high = blockwise.bounds(x)
        self.register_buffer("low", low)  # [D]
        self.register_buffer("high", high)  # [D]

    def _parameters_from(self, x: Tensor, center: Tensor, spread: Tensor) -> None:
        K = self.K
        rows = x[torch.linspace(0, len(x) - 1, K).round().long().clamp(max=len(x) - 1)]
        self.weights = PyroParam(torch.full((K + self.noise,), 1.0 / (K + self.noise)), constraints.simplex)
        self.locs = PyroParam(0.5 * (center + torch.where(rows.isnan(), center, rows)), constraints.real)
        if self.letters in WHOLE:
            self._covariances_whole(spread)
        else:
            self._covariances_in_parts(spread)

    def _covariances_whole(self, spread: Tensor) -> None:
        K, (volume, shape, orientation) = self.K, tuple(self.letters)
        if orientation != "I":
            tril = spread.diag() if volume == "E" else spread.diag().repeat(K, 1, 1)
            self.scale_tril = PyroParam(tril, constraints.lower_cholesky)
        elif shape != "I":
            self.scales = PyroParam(spread if volume == "E" else spread.repeat(K, 1), constraints.positive)
        else:
            scale = spread.square().mean().sqrt()
            self.scales = PyroParam(scale.repeat(1 if volume == "E" else K), constraints.positive)

    def _covariances_in_parts(self, spread: Tensor) -> None:
        K, (volume, shape, orientation) = self.K, tuple(self.letters)
        variances = spread.square()
        size = variances.log().mean().exp()
        proportions = variances / variances.sum()
        self.volume = PyroParam(size.repeat(1 if volume == "E" else K), constraints.positive)
        self.shape = PyroParam(proportions if shape == "E" else proportions.repeat(K, 1), constraints.simplex)
        if orientation != "I":
            zero = spread.new_zeros(covariances.angles(self.D))
            self.angles = PyroParam(zero if orientation == "E" else zero.repeat(K, 1), constraints.real)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` data. Returns x [n, D]."""
        if self.priors:
            weights, locs, scale = self._draw_parameters()  # or Σ in place of scale
        else:
            weights, locs, scale = self.weights, self.locs, self._scale()
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights))  # [n]
            return pyro.sample("x", self._component(z, locs, scale), obs=x)  # [n, D]

    def _scale(self) -> Tensor:
        """Standard deviations, or Cholesky factors, of each component or of all."""
        if self.letters in WHOLE:
            return getattr(self, "scales" if self.letters[2] == "I" else "scale_tril")
        axes = covariances.axes(self.volume, self.shape)  # [K, D] or [D]
        if self.letters[2] == "I":
            return axes
        return covariances.scale_tril(axes, covariances.rotation(self.angles, self.D))  # [K, D, D]

    def _component(self, z: Tensor, locs: Tensor, scale: Tensor) -> dist.TorchDistribution:
        is_noise, z = z == self.K, z.clamp(max=self.K - 1)
        scale = scale if self.letters in ("EEE", "EEI", "EII") else scale[z]
        if self.letters[2] != "I":
            if self.noise:
                return NoisyMultivariateNormal(locs[z], scale, is_noise, self.low, self.high)
            form = "covariance_matrix" if self.priors else "scale_tril"
            return dist.MultivariateNormal(locs[z], **{form: scale})
        scale = scale.unsqueeze(-1) if self.letters == "VII" else scale
        if self.noise:
            return NoisyNormal(locs[z], scale, is_noise, self.low, self.high)
        return dist.Normal(locs[z], scale).to_event(1)

    def _draw_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        K, D, m, s = self.K, self.D, self.center, self.spread
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((K + self.noise,), self.concentration)))  # [K]
        locs = pyro.sample("locs", dist.Normal(m, 2 * s).expand([K, D]).to_event(2))  # [K, D]
        if self.letters == "VII":
            rate = s.square().mean()
            variances = pyro.sample("variances", dist.InverseGamma(2.0, rate).expand([K]).to_event(1))  # [K]
            return weights, locs, variances.sqrt()
        if self.letters == "VVI":
            prior = dist.InverseGamma(torch.full((D,), 2.0), s.square()).expand([K, D]).to_event(2)
            return weights, locs, pyro.sample("variances", prior).sqrt()  # [K, D]
        each = [] if self.letters == "EEE" else [K]
        prior = (
            InverseWishart(torch.tensor(D + 2.0), s.square().diag()) if self.conjugate else Separated(2.0, s**2, 2.0)
        )
        covariances = pyro.sample("covariances", prior.expand(each).to_event(len(each)))  # [K, D, D] or [D, D]
        return weights, locs, torch.linalg.cholesky(covariances) if self.noise else covariances
