"""Missing pixels: an autoregressive model of binary images, whose unobserved pixels are the latents.

Generative story, over the D pixels of an image in a fixed order:

    x_i1 ~ Bernoulli(f_1),   x_it | x_i,<t ~ Bernoulli(f_t(x_i,<t))       t = 2 … D

The program does not mention missing pixels: where x is NaN they become the latent `x_missing`, and
p(x_obs) = Σ p(x_obs, x_missing) has 2^M terms. f is, by option `net`:

- `made`: one network with masks, all D conditionals in one pass (Germain, Gregor, Murray & Larochelle 2015, with the
  direct connections of their §4);
- `logistic`: D logistic regressions, the fully visible belief net (Neal 1992; Frey 1998);
- `mixture`: z_i ~ Categorical(π), x_i | z_i = k ~ ∏ Bernoulli(p_k), the mixture of independent Bernoullis that both are
  measured against (its pixels can be left out one by one, and everything about it is exact).

The order of the pixels is row by row (`raster`), the same backwards (`reversed`), or the pixels that every image has first
(`observed-first`). Where all that was seen comes before all that was not (with `reversed`, when the top is missing),
p(x_obs) and p(x_missing | x_obs) are products of conditionals, known exactly.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from pyro.nn.auto_reg_nn import MaskedLinear, create_mask
from torch import Tensor, nn
from torch.distributions import constraints

from zoo._errors import UsageError
from zoo._options import Count, Used
from zoo._program.autoregressive import AutoregressiveBernoulli

_Masked: Any = PyroModule[MaskedLinear]
_List: Any = PyroModule[nn.ModuleList]


class Model(PyroModule):
    """`Model(x, net="made", hidden=(500,), components=10, order="raster")` for binary images x [n, D].

    - `net`: what gives each pixel's probability: `made`, a masked network of the pixels before it; `logistic`, a logistic
      regression on them; or `mixture`, the component of a mixture of Bernoullis.
    - `hidden`: widths of MADE's layers.
    - `components`: of the mixture.
    - `order`: of the pixels: `raster`, row by row; `reversed`; or `observed-first`, those first that every
      image has.

    Raises `UsageError` for data that are not a table of 0 and 1, and for more components than images.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        net: Literal["made", "logistic", "mixture"] = "made",
        hidden: Annotated[tuple[Count, ...], Used(net="made")] = (500,),
        components: Annotated[Count, Used(net="mixture")] = 10,
        order: Annotated[Literal["raster", "reversed", "observed-first"], Used(net=("made", "logistic"))] = "raster",
    ) -> None:
        super().__init__()
        _check(x, net, hidden, components)
        self.net, self.D = net, x.shape[1]
        observed = ~x.isnan()
        seen, on = observed.sum(0), x.nansum(0)
        overall = on.sum() / seen.sum().clamp(min=1)
        share = torch.where(seen > 0, on / seen.clamp(min=1), overall).clamp(
            0.01, 0.99
        )  # of images with a pixel on [D]
        if net == "mixture":
            rows = torch.linspace(0, len(x) - 1, components).round().long()
            self.weights = PyroParam(torch.full((components,), 1.0 / components), constraints.simplex)
            mine = torch.where(observed[rows], x[rows], share)
            self.probs = PyroParam(0.75 * share + 0.25 * mine, constraints.unit_interval)  # [K, D]
            return
        self.register_buffer("order", _order(observed, order))  # [D]
        widths = tuple(hidden) if net == "made" else ()
        masks, before = create_mask(self.D, 0, list(widths or (1,)), self.order, 1)
        sizes = (self.D, *widths, self.D)
        masks = masks if widths else [before]
        layers = [_Masked(i, o, m) for i, o, m in zip(sizes[:-1], sizes[1:], masks, strict=True)]
        self.layers = _List(layers)
        self.direct = _Masked(self.D, self.D, before, bias=False) if widths else None
        with torch.no_grad():
            layers[-1].bias.copy_(share.logit())
            layers[-1].weight.mul_(0.1)
            if self.direct is not None:
                self.direct.weight.zero_()

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """The program: x [n, D] or None to simulate `size` images. Returns x [n, D]."""
        with pyro.plate("data", size if x is None else len(x)):
            if self.net == "mixture":
                z = pyro.sample("z", dist.Categorical(self.weights))  # [n]
                return pyro.sample("x", dist.Bernoulli(self.probs[z]).to_event(1), obs=x)  # [n, D]
            return pyro.sample("x", self.distribution(), obs=x)  # [n, D]

    def distribution(self) -> AutoregressiveBernoulli:
        """p(x) of one image."""
        layers = [(layer.weight * layer.mask, layer.bias) for layer in self.layers]
        direct = None if self.direct is None else self.direct.weight * self.direct.mask
        return AutoregressiveBernoulli(self.order, layers, direct)


def _order(observed: Tensor, order: str) -> Tensor:
    """Which pixel comes first, second, …"""
    pixels = torch.arange(observed.shape[1])
    if order != "observed-first":
        return pixels if order == "raster" else pixels.flip(0)
    everywhere = observed[observed.any(1)].all(0)  # without the images of which nothing is seen
    return torch.cat([pixels[everywhere], pixels[~everywhere]])


def _check(x: Tensor, net: str, hidden: tuple[int, ...], components: int) -> None:
    if x.dim() != 2:
        raise UsageError(
            f"missing_pixels expects a 2-D table with an image in each row (n × D), got shape {tuple(x.shape)}."
        )
    grey = ~((x == 0) | (x == 1) | x.isnan())
    if grey.any():
        image, pixel = grey.nonzero()[0].tolist()
        raise UsageError(
            f"missing_pixels expects pixels of 0 and 1, got {float(x[image, pixel]):g} at pixel {pixel} of image {image} "
            "(counting from 0). Binarise them (--binarize fixed, dynamic or a threshold)."
        )
    if net == "made" and not hidden:
        raise UsageError("missing_pixels expects a hidden layer for net=made, got none. Use net=logistic instead.")
    if net == "mixture" and components > len(x):
        raise UsageError(
            f"missing_pixels expects at most as many components as images, got {components} for {len(x)} images."
        )
