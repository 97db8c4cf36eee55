"""Exponential: each entry is a waiting time."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from inference._families._elementwise import Elementwise
from inference._families._family import Floor, Params, Pool, tiny


class Exponential(Elementwise):
    distribution = dist.Exponential
    parameters = {"rate": constraints.positive}
    priors = {"rate": (dist.Gamma,)}

    def natural(self, params: Params) -> tuple[list[Tensor], Tensor]:
        return [-params["rate"]], -params["rate"].log()

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        if pool.prior is None:
            return super().maximise(name, pool, stats, params, floor)
        rate = (pool.total(stats["S0"]) + pool.hyper("concentration") - 1) / (
            pool.total(stats["S1"]) + pool.hyper("rate")
        )
        return rate.reshape(pool.value.shape)

    def mean_to(self, name: str, mean: Tensor) -> Tensor:
        return 1 / mean.clamp(min=tiny(mean))
