"""Gaussians beside a component of noise, uniform over a box: the Gaussians' own sums, without the rows that are noise."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from inference._families._family import Density, Family, Floor, Params, Pool
from inference._families._gaussian import Gaussian


class Noisy(Family):
    """An assignment of noise has a Gaussian's parameters too, which count for nothing there."""

    of: ClassVar[type[Gaussian]]
    location = "loc"

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.gaussian = self.of(x)

    def width(self, entries: int, assignments: int) -> int:
        return self.gaussian.width(entries, assignments)

    def density(self, params: Params) -> Density:
        inner, is_noise = self.gaussian.density(self._own(params)), _is_noise(params)
        low, high = params["low"][0], params["high"][0]
        sizes = (high - low).log()

        def density(x: Tensor) -> Tensor:
            seen = ~x.isnan()
            inside = ((x >= low) & (x <= high) | ~seen).all(1)
            uniform = torch.where(inside, -(seen * sizes).sum(1), -torch.inf)
            return torch.where(is_noise, uniform.unsqueeze(1), inner(self.gaussian.terms(x)))

        return density

    def statistics(self, x: Tensor, weights: Tensor, params: Params) -> dict[str, Tensor]:
        return self.gaussian.statistics(self.gaussian.terms(x), weights * ~_is_noise(params), self._own(params))

    def expected(self, stats: dict[str, Tensor], params: Params) -> Tensor:
        return self.gaussian.expected(stats, self._own(params))

    def maximise(self, name: str, pool: Pool, stats: dict[str, Tensor], params: Params, floor: Floor) -> Tensor:
        found = self.gaussian.maximise(name, pool, stats, self._own(params), floor)
        floor.reached.difference_update(_is_noise(params).nonzero()[:, 0].tolist())
        return found

    def smallest(self, params: Params) -> Tensor | None:
        return self.gaussian.smallest(self._own(params))

    def _own(self, params: Params) -> Params:
        return {name: value for name, value in params.items() if name in self.of.parameters}


def _is_noise(params: Params) -> Tensor:
    """Which assignments are noise [A]."""
    return params["noise"].reshape(-1) > 0.5
