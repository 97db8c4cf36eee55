"""Learned priors of a vector z: normals of each number given those before, and a flow of couplings. Both begin at N(0, I)."""

from __future__ import annotations

from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive, AffineCoupling, Permute
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from zoo._errors import UsageError
from zoo._nets.layers import for_pyro

UNITS = 64
COUPLINGS = 4


class _Prior(nn.Module):
    def __init__(self, latents: int) -> None:
        if latents < 2:
            raise UsageError(
                "a learned prior by networks ties latents to each other: take latents=2 or more, or prior=mixture."
            )
        super().__init__()
        self.register_buffer("zero", torch.zeros(latents))

    def normal(self) -> dist.TorchDistribution:
        return dist.Normal(cast(Tensor, self.zero), 1.0).to_event(1)


class AutoregressivePrior(_Prior):
    """z_d | z_<d ~ N(μ_d(z_<d), σ_d²(z_<d)), by a masked network: all of them in one pass (Papamakarios et al. 2017)."""

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.net = AutoRegressiveNN(
            latents, [UNITS], permutation=cast(torch.LongTensor, torch.arange(latents)), nonlinearity=nn.Tanh()
        )
        _nothing(self.net.layers[-1])
        for_pyro(self)

    def distribution(self) -> dist.TorchDistribution:
        """p(z)."""
        return dist.TransformedDistribution(self.normal(), [AffineAutoregressive(self.net).inv])


class FlowPrior(_Prior):
    """z = f(ε), ε ~ N(0, I), f of affine couplings that move one half given the other (Dinh, Sohl-Dickstein & Bengio 2017)."""

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        fixed = latents // 2
        nets = [DenseNN(fixed, [UNITS], [latents - fixed] * 2, nonlinearity=nn.Tanh()) for _ in range(COUPLINGS)]
        for net in nets:
            _nothing(net.layers[-1])
        self.nets, self.fixed = nn.ModuleList(nets), fixed
        for_pyro(self)

    def distribution(self) -> dist.TorchDistribution:
        """p(z)."""
        turned = torch.arange(len(cast(Tensor, self.zero)) - 1, -1, -1)
        parts = [t for net in self.nets for t in (AffineCoupling(self.fixed, net), Permute(turned))]
        return dist.TransformedDistribution(self.normal(), parts)


def _nothing(layer: nn.Module) -> None:
    """Make a layer's output 0, so that a shift is 0 and the logarithm of a scale too."""
    nn.init.zeros_(cast(Tensor, layer.weight))
    nn.init.zeros_(cast(Tensor, layer.bias))
