"""Convolutional guide: the amortized guide with an encoder of square images, by two convolutions.

Radford, Metz & Chintala 2016. A column after the image's, such as a label, goes to the last layer as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guides import amortized
from guides._heads import refusal
from zoo._errors import UsageError
from zoo._nets.layers import for_pyro, image_shape

__all__ = ["Guide", "refusal"]
CHANNELS = 32


class Guide(amortized.Guide):
    """As the amortized guide; `hidden`: its last width is that of the layer after the convolutions."""

    def make_encoder(self, planes: int, hidden: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `amortized.Guide`. Raises `UsageError` where x is no square image, with a label or without one."""
        if not hidden:
            raise UsageError("guide=convolutional expects a width for its last layer, got hidden without any.")
        return _Encoder(self.entries, planes, hidden[-1]), hidden[-1]


class _Encoder(nn.Module):
    def __init__(self, entries: int, planes: int, width: int) -> None:
        super().__init__()
        rest = int(int(entries**0.5) ** 2 == entries - 1)  # a label after the image
        self.shape, self.planes, self.entries = image_shape(entries - rest, "guide=convolutional"), planes, entries
        self.see = nn.Sequential(
            nn.Conv2d(planes, CHANNELS, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(CHANNELS, 2 * CHANNELS, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
        )
        height, across = (side // 2 // 2 for side in self.shape)
        self.last = nn.Linear(2 * CHANNELS * height * across + planes * rest, width)
        for_pyro(self)

    def forward(self, flat: Tensor) -> Tensor:
        """[n, planes · entries] to [n, width]."""
        height, across = self.shape
        each = flat.unflatten(-1, (self.planes, self.entries))
        seen = self.see(each[..., : height * across].unflatten(-1, self.shape))
        return self.last(torch.cat([seen, each[..., height * across :].flatten(-2)], -1)).tanh()
