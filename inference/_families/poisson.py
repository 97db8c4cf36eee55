"""Poisson: each entry is a count."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise
from inference._families._family import Params, tiny


class Poisson(Elementwise):
    distribution = dist.Poisson
    parameters = {"rate": constraints.positive}
    priors = {"rate": (dist.Gamma,)}
    bordered = True

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [params["rate"].clamp(min=tiny(params["rate"])).log()], params["rate"]

    def log_base(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x + 1).nansum(1)
