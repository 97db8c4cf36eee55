"""A network whose weights have priors: global latents of the program, one site for each layer's matrix and one for its bias.

    w ~ N(0, 1 / inputs),  b ~ N(b₀, 1)           of each layer; b₀ is the bias that the network begins with

So the sums over a layer's inputs neither grow nor shrink with its width, and a wide network tends to a Gaussian process
(Neal 1996, §2.1). At weights of 0, their prior's mean, all hidden units are alike and a climb would leave them so: the sites
begin at the random weights that the network has without priors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Network = Callable[[Tensor], Tensor]  # [..., inputs] ↦ [..., outputs]
LOGITS = 2.5  # width of a network of logits (Gelman et al. 2008)


class Drawn(nn.Module):
    """A linear layer, or layers one after the other, whose weights are drawn before it is used.

    `width` multiplies the standard deviations of the last layer's weights and bias.

    >>> drawn = Drawn(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2))).draw("decoder")
    >>> drawn(torch.zeros(5, 1)).shape
    torch.Size([5, 2])
    """

    def __init__(self, net: nn.Module, width: float = 1.0) -> None:
        super().__init__()
        layers = {"": net} if isinstance(net, nn.Linear) else {f".{k}": layer for k, layer in net.named_children()}
        self.places, self.width = list(layers), width
        self.last = max(k for k, layer in enumerate(layers.values()) if isinstance(layer, nn.Linear))
        for k, layer in enumerate(layers.values()):
            if isinstance(layer, nn.Linear):
                self.register_buffer(f"weight_{k}", layer.weight.detach().clone())  # [to, from]
                self.register_buffer(f"bias_{k}", layer.bias.detach().clone())  # [to]
            else:
                self.add_module(f"layer_{k}", layer)

    @property
    def bias(self) -> Tensor:
        """Where the last layer's bias begins, which is its prior's mean too."""
        last: Tensor = getattr(self, f"bias_{self.last}")
        return last

    def draw(self, name: str) -> Network:
        """The network with weights from their priors, at the sites `name.0.weight`, `name.0.bias`, …"""
        layers = [self._layer(k, name + place) for k, place in enumerate(self.places)]

        def network(inputs: Tensor) -> Tensor:
            for layer in layers:
                inputs = layer(inputs)
            return inputs

        return network

    def _layer(self, k: int, name: str) -> Network:
        if hasattr(self, f"layer_{k}"):
            activation: nn.Module = getattr(self, f"layer_{k}")
            return activation
        W, b, wide = getattr(self, f"weight_{k}"), getattr(self, f"bias_{k}"), self.width if k == self.last else 1.0
        weight = dist.Normal(torch.zeros_like(W), wide / W.shape[1] ** 0.5).to_event(2)
        bias = dist.Normal(b, torch.full_like(b, wide)).to_event(1)
        starts: list[Any] = [{"init": W}, {"init": b}]
        W = pyro.sample(f"{name}.weight", weight, infer=starts[0])
        return partial(linear, weight=W, bias=pyro.sample(f"{name}.bias", bias, infer=starts[1]))


def drawn(net: nn.Module, name: str) -> Network:
    """The network as it is, or with weights from their priors where it has any."""
    return net.draw(name) if isinstance(net, Drawn) else net
