"""What a family is that is Gaussian: a location and a covariance, which linear programs and pictures ask for."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference._families._family import Family, Params
from zoo._data import blockwise


class Gaussian(Family):
    """x ~ N(location, covariance). `center` and `spread` [E] are the data's means and standard deviations.

    Data are centred and scaled first, or x² would cancel against x·μ far from the origin.
    """

    location: ClassVar[str]

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.center = blockwise.center(x)  # [E]
        self.spread = blockwise.spread(x, self.center)

    def weigh(self, x: Tensor, weights: Tensor) -> None:
        self.center = blockwise.center(x, weights)
        self.spread = blockwise.spread(x, self.center, weights=weights)

    @classmethod
    def root(cls, params: Params) -> Tensor:
        """Standard deviations [A, E], or of a `joint` family the Cholesky factor [A, E, E] of the covariance.

        `params` need not hold the location.
        """
        raise NotImplementedError

    @classmethod
    def covariance(cls, params: Params, entries: list[int]) -> Tensor:
        """The covariance [A, e, e] of some entries."""
        raise NotImplementedError

    @classmethod
    def in_form(cls, name: str, covariance: Tensor) -> Tensor:
        """The parameter `name` of a `joint` family with this covariance [A, E, E]."""
        raise NotImplementedError
