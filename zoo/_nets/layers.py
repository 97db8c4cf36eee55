"""Networks from a vector to a vector: layers of units, and transposed convolutions that end in an image."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from zoo._errors import UsageError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "silu": nn.SiLU}
Shape = tuple[int, int]  # height and width of an image
N = TypeVar("N", bound=nn.Module)


def for_pyro(net: N) -> N:
    """The same network as `PyroModule`s: each layer's parameters are then one statement of the program, and read at no cost."""
    to_pyro_module_(net)
    return net


def perceptron(inputs: int, hidden: tuple[int, ...], outputs: int, activation: str) -> nn.Sequential:
    """Layers of `hidden` units (Glorot & Bengio 2010); a linear map without any."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), ACTIVATIONS[activation]()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return for_pyro(nn.Sequential(*layers))


def image_shape(pixels: int, model: str) -> Shape:
    """Of a square image. Raises `UsageError` where the number of pixels is no square."""
    side = math.isqrt(pixels)
    if side**2 != pixels or side < 4:
        raise UsageError(
            f"{model} expects square images of 4 × 4 pixels or more for its convolutions, got {pixels} pixels."
        )
    return side, side


class Deconvolution(nn.Module):
    """z [..., L] ↦ images [..., maps · height · width], by two transposed convolutions (Radford, Metz & Chintala 2016)."""

    def __init__(self, inputs: int, shape: Shape, maps: int, channels: int, activation: str) -> None:
        super().__init__()
        self.shape, self.maps = shape, maps
        self.small = tuple(-(-side // 4) for side in shape)
        act = ACTIVATIONS[activation]
        self.into = nn.Linear(inputs, 2 * channels * math.prod(self.small))
        self.up = nn.Sequential(
            act(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            act(),
            nn.ConvTranspose2d(channels, maps, 4, stride=2, padding=1),
        )
        self.bias = nn.Parameter(torch.zeros(maps * math.prod(shape)))
        for_pyro(self)

    def forward(self, z: Tensor) -> Tensor:
        height, width = self.shape
        small = self.into(z).reshape(-1, self.into.out_features // math.prod(self.small), *self.small)
        image = self.up(small)[..., :height, :width]
        return image.reshape(*z.shape[:-1], -1) + self.bias


@torch.no_grad()
def begin_at(net: nn.Module, outputs: Tensor) -> None:
    """Set the bias that a network's output has at the end."""
    cast(Tensor, (net[-1] if isinstance(net, nn.Sequential) else net).bias).copy_(outputs)
