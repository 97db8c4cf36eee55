"""Deep latent Gaussian model: a few Gaussian causes, and a network that turns them into data.

Generative story (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014):

    z_i ~ N(0, I_L)
    x_i | z_i ~ N(μ_θ(z_i), diag σ²_θ(z_i))       or Bernoulli with logits from the network, for binary data

and, by option:

- `prior=mixture`: z_i ~ Σ_k π_k N(m_k, diag s_k²), all learned (Dilokthanakul et al. 2016; Jiang et al. 2017);
  `prior=autoregressive` and `prior=flow`: a learned density by networks (Chen et al. 2017; Huang et al. 2017);
- `layers=2`: z2_i ~ N(0, I_L), z1_i | z2_i ~ N(μ(z2), σ²(z2)) of 2L numbers, x_i | z1_i (Burda et al. 2016, figure 1);
- `classes=C`: the last column of x is a label 0 … C − 1 that enters the decoder: p(x | z, label), the conditional
  variational autoencoder (Sohn, Lee & Yan 2015);
- `decoder=linear`: μ = W z + b with noise of its own for every column: factor analysis (Rubin & Thayer 1982), or for binary
  data a logistic latent trait model (Bartholomew 1987); `decoder=conv`: an image by convolutions; `decoder=pixelcnn`: binary
  pixels one after the other, each given z and those before it (Gulrajani et al. 2017);
- `priors=true`: weights ~ N(0, 1 / inputs) and biases ~ N(0, 1) (Neal 1996); of logits, 2.5 times as wide, about the share
  of ones (Gelman et al. 2008). The linear decoder's noise is half-normal of the columns' standard deviations; π ~
  Dirichlet(2, …, 2), m ~ N(0, 1), s half-normal of 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import one_hot, softplus

from zoo._errors import UsageError
from zoo._nets.drawn import LOGITS, Drawn, Network, drawn
from zoo._nets.layers import Deconvolution, begin_at, image_shape, perceptron
from zoo._nets.pixels import PixelNet, Pixels
from zoo._nets.priors import AutoregressivePrior, FlowPrior
from zoo._options import Count, Limits, Used
from zoo._program.parameters import WithPriors

PRIORS = {"autoregressive": AutoregressivePrior, "flow": FlowPrior}
NETS = ("mlp", "pixelcnn")  # decoders with hidden layers
IMAGES = ("conv", "pixelcnn")  # decoders of images
LEAST_SCALE = 0.01  # of a column's own spread: a pixel that never changes would have an infinite density


class Model(WithPriors):
    """`Model(x, latents=10, hidden=(200, 200), likelihood="gaussian", …)` for data x [n, D] (with a label: [n, D + 1]).

    - `latents`: how many, L.
    - `hidden`: widths of the decoder from z to x; between two stochastic layers they are halved.
    - `likelihood`: of each entry: `bernoulli`, or `gaussian`, whose standard deviations are at least 0.01 of their columns'
      own.
    - `prior`: of z: `standard`, N(0, I), or learned: a `mixture` of Gaussians, `autoregressive`, or a `flow`.
    - `components`: of that mixture.
    - `layers`: how many stochastic layers.
    - `decoder`: a network (`mlp`), a `linear` map, transposed convolutions to square images (`conv`), or `pixelcnn`, which
      draws binary pixels one by one.
    - `channels`: of the convolutions.
    - `activation`: between the layers of the network.
    - `classes`: how many labels the decoder is told: those of the data (`--labels`), else the last column of x; 0: none.
    - `priors`: draw the weights and all else that is learned from priors, so that they have a posterior.

    Raises `UsageError` for data that are not a table, are not binary where `likelihood` is `bernoulli`, or whose last
    column does not hold labels where `classes` is given.
    """

    LABELS = "classes"  # the option with which the labels of the data are the last column of x

    def __init__(
        self,
        x: Tensor,
        *,
        latents: Count = 10,
        hidden: Annotated[tuple[Count, ...], Used(decoder=NETS, layers=2)] = (200, 200),
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        prior: Literal["standard", "mixture", "autoregressive", "flow"] = "standard",
        components: Annotated[Count, Used(prior="mixture")] = 10,
        layers: Literal[1, 2] = 1,
        decoder: Literal["mlp", "linear", "conv", "pixelcnn"] = "mlp",
        channels: Annotated[Count, Used(decoder=IMAGES)] = 32,
        activation: Annotated[
            Literal["tanh", "relu", "softplus", "silu"], Used(decoder=("mlp", *IMAGES), layers=2)
        ] = "silu",
        classes: Annotated[int, Limits(least=0)] = 0,
        priors: bool = False,
    ) -> None:
        super().__init__()
        _check(x, likelihood, classes)
        _check_options(likelihood, prior, layers, decoder, priors)
        pixels = x[:, : x.shape[1] - (classes > 0)]
        D, L = pixels.shape[1], latents
        self.L, self.D, self.likelihood, self.layers, self.classes = L, D, likelihood, layers, classes
        self.mixture, self.linear, self.priors = prior == "mixture", decoder == "linear", priors
        center = pixels.nanmean(0).nan_to_num(0.0)
        spread = (pixels - center).square().nanmean(0).nan_to_num(0.0).sqrt()
        self.register_buffer("center", center)  # [D]
        self.register_buffer("spread", torch.where(spread > 0, spread, spread.mean() if spread.any() else 1.0))  # [D]
        self._networks(decoder, tuple(hidden), channels, activation)
        self.learned_prior: AutoregressivePrior | FlowPrior | None = PRIORS[prior](L) if prior in PRIORS else None
        if likelihood == "gaussian" and self.linear:
            self.begin("noise", self.spread.clone(), constraints.positive)  # [D]
        if self.mixture:
            self.begin("weights", torch.full((components,), 1.0 / components), constraints.simplex)
            self.begin("locs", torch.randn(components, L), constraints.real)
            self.begin("scales", torch.ones(components, L), constraints.positive)

    def _networks(self, decoder: str, hidden: tuple[int, ...], channels: int, activation: str) -> None:
        gaussian = self.likelihood == "gaussian"
        wide = self.layers * self.L  # numbers in the latent next to x
        inputs, maps = wide + self.classes, 2 if gaussian and not self.linear else 1
        shape = image_shape(self.D, "deep_latent_gaussian") if decoder in IMAGES else (1, self.D)
        if decoder == "conv":
            self.decoder = Deconvolution(inputs, shape, maps, channels, activation)
        else:
            net = perceptron(inputs, () if self.linear else hidden, maps * self.D, activation)
            self.decoder = Drawn(net, 1.0 if gaussian else LOGITS) if self.priors else net
        self.pixel_net = PixelNet(shape, channels, activation) if decoder == "pixelcnn" else None
        if not gaussian:
            begin_at(self.decoder, self.center.clamp(0.001, 0.999).logit())
        if self.layers == 2:
            net = perceptron(self.L, tuple(max(1, h // 2) for h in hidden), 2 * wide, activation)
            self.between = Drawn(net) if self.priors else net

    def prior(self, name: str, start: Tensor) -> dist.TorchDistribution:
        if name == "weights":
            return dist.Dirichlet(torch.full_like(start, 2.0))
        if name == "locs":
            return dist.Normal(torch.zeros_like(start), 1.0).to_event(2)
        return dist.HalfNormal(self.spread if name == "noise" else torch.ones_like(start)).to_event(start.dim())

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] (or [n, D + 1]), or None to simulate `size` data. Returns x [n, D]."""
        n, theta = size if x is None else len(x), self.theta()
        decoder = drawn(self.decoder, "decoder")
        between = drawn(self.between, "between") if self.layers == 2 else None
        label = self._label(x, n)
        observed = None if x is None else x[:, : self.D]
        with pyro.plate("data", n):
            z = self._draw_latents(theta, between)  # [n, L], or [n, 2L] with two layers
            if self.classes:
                z = torch.cat([z, label.expand(*z.shape[:-1], self.classes)], -1)
            return pyro.sample("x", self._observation(decoder(z), theta), obs=observed)

    def _draw_latents(self, theta: dict[str, Tensor], between: Network | None) -> Tensor:
        if self.mixture:
            parts = dist.Normal(theta["locs"], theta["scales"]).to_event(1)
            return pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(theta["weights"]), parts))
        if self.learned_prior is not None:
            return pyro.sample("z", self.learned_prior.distribution())
        top = dist.Normal(self.center.new_zeros(self.L), 1.0).to_event(1)
        if between is None:
            return pyro.sample("z", top)
        loc, scale = between(pyro.sample("z2", top)).chunk(2, -1)
        return pyro.sample("z1", dist.Normal(loc, softplus(scale) + LEAST_SCALE).to_event(1))

    def _observation(self, out: Tensor, theta: dict[str, Tensor]) -> dist.TorchDistribution:
        if self.pixel_net is not None:
            return Pixels(self.pixel_net, out)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out).to_event(1)
        if self.linear:
            return dist.Normal(self.center + self.spread * out, theta["noise"]).to_event(1)
        loc, scale = out.chunk(2, -1)
        return dist.Normal(self.center + self.spread * loc, self.spread * (softplus(scale) + LEAST_SCALE)).to_event(1)

    def _label(self, x: Tensor | None, n: int | None) -> Tensor:
        """[n, classes], one-hot; 0, 1, …, C − 1, 0, 1, … where data are simulated."""
        if not self.classes:
            return self.center.new_zeros(0)
        label = torch.arange(n or 0) % self.classes if x is None else x[:, -1].long()
        return one_hot(label, self.classes).to(self.center.dtype)


def _check_options(likelihood: str, prior: str, layers: int, decoder: str, priors: bool) -> None:
    if prior != "standard" and layers == 2:
        raise UsageError(f"deep_latent_gaussian expects layers=1 with prior={prior}, got layers=2.")
    if decoder == "pixelcnn" and likelihood != "bernoulli":
        raise UsageError("decoder=pixelcnn draws binary pixels: take likelihood=bernoulli, or decoder=conv.")
    if priors and (decoder in IMAGES or prior in PRIORS):
        got = f"decoder={decoder}, prior={prior}"
        raise UsageError(f"priors=true goes with decoder=mlp or linear and prior=standard or mixture, got {got}.")


def _check(x: Tensor, likelihood: str, classes: int) -> None:
    if x.dim() != 2:
        raise UsageError(f"deep_latent_gaussian expects a 2-D table (n × D), got shape {tuple(x.shape)}.")
    if classes and (x.shape[1] < 2 or not bool(((x[:, -1] >= 0) & (x[:, -1] < classes) & (x[:, -1] % 1 == 0)).all())):
        raise UsageError(
            f"deep_latent_gaussian expects a label from 0 to {classes - 1} in the last column of every row, as classes="
            f"{classes} says. Recode the labels, and leave out rows without one."
        )
    pixels = x[:, :-1] if classes else x
    if likelihood == "bernoulli" and not bool(((pixels == 0) | (pixels == 1) | pixels.isnan()).all()):
        raise UsageError(
            f"likelihood=bernoulli expects data of 0 and 1, got data from {float(pixels.nan_to_num(0).min()):g} to "
            f"{float(pixels.nan_to_num(0).max()):g}. Binarise them (--binarize fixed, dynamic or a threshold), or use "
            "likelihood=gaussian."
        )
