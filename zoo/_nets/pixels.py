"""A distribution of binary images with p(x) = ∏ p(x_t | x_<t), row by row, by masked convolutions (van den Oord et al. 2016).

All conditionals of a given image come from one pass; drawing takes one pass a pixel. What an image is conditional on comes in
as logits of each pixel, to which the convolutions of the image's own pixels are added (Gulrajani et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from zoo._nets.layers import ACTIVATIONS, Shape, for_pyro

SIZE = 5  # of a kernel


class MaskedConvolution(nn.Conv2d):
    """A convolution that sees the pixels before its own, and with `itself` its own too."""

    def __init__(self, inputs: int, outputs: int, itself: bool) -> None:
        super().__init__(inputs, outputs, SIZE, padding=SIZE // 2)
        mask = torch.zeros(SIZE * SIZE)
        mask[: SIZE * SIZE // 2 + itself] = 1.0
        self.mask: Tensor
        self.register_buffer("mask", mask.reshape(SIZE, SIZE))

    def forward(self, image: Tensor) -> Tensor:
        return conv2d(image, self.weight * self.mask, self.bias, padding=SIZE // 2)


class PixelNet(nn.Module):
    """Images [m, D] and the context's logits [m, D] ↦ the logit of each pixel given those before it [m, D]."""

    def __init__(self, shape: Shape, channels: int, activation: str) -> None:
        super().__init__()
        self.shape, act = shape, ACTIVATIONS[activation]
        self.own = MaskedConvolution(1, channels, itself=False)
        self.given = nn.Conv2d(1, channels, SIZE, padding=SIZE // 2)
        self.rest = nn.Sequential(
            act(), MaskedConvolution(channels, channels, itself=True), act(), nn.Conv2d(channels, 1, 1)
        )
        nn.init.zeros_(cast(Tensor, self.rest[-1].weight))  # at first the pixels are independent given the context
        nn.init.zeros_(cast(Tensor, self.rest[-1].bias))
        for_pyro(self)

    def forward(self, image: Tensor, given: Tensor) -> Tensor:
        x, context = (v.reshape(-1, 1, *self.shape) for v in (image, given))
        return given + self.rest(self.own(x) + self.given(context)).reshape(given.shape)


class Pixels(TorchDistribution):
    """Binary images [D], conditional on logits `given` [..., D], by a `PixelNet`."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, net: PixelNet, given: Tensor) -> None:
        self.net, self.given = net, given
        super().__init__(given.shape[:-1], given.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Pixels:
        return Pixels(self.net, self.given.expand(*batch_shape, -1))

    def logits(self, value: Tensor) -> Tensor:
        """Of each pixel of value [..., D] given those before it [..., D]."""
        value, given = torch.broadcast_tensors(value.to(self.given), self.given)
        flat = self.net(value.reshape(-1, value.shape[-1]), given.reshape(-1, value.shape[-1]))
        return flat.reshape(value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] nats."""
        logits = self.logits(value)
        return -binary_cross_entropy_with_logits(logits, value.to(logits).expand_as(logits), reduction="none").sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[sample_shape, batch_shape, D], one pixel after the other."""
        given = self.given.expand(*sample_shape, *self.given.shape)
        value = torch.zeros_like(given)
        for t in range(value.shape[-1]):
            value[..., t] = torch.bernoulli(Pixels(self.net, given).logits(value)[..., t].sigmoid())
        return value
