"""Exponential: each entry is a waiting time."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise
from inference._families._family import Params, tiny


class Exponential(Elementwise):
    distribution = dist.Exponential
    parameters = {"rate": constraints.positive}

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [-params["rate"]], -params["rate"].log()

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return 1 / mean.clamp(min=tiny(mean))
