"""Where the rows of the data are among the dimensions of a value; the only file that counts plate dimensions.

A value in a program is [draws…, plates, event]. Plate dimensions count from the right: −1 is the one before the event. Take a
plate `parts` of size 3 at dim −2 around the plate `data` of n = 5 rows at dim −1. A site of event [4] in both has the value
[3, 5, 4], one in `data` alone [5, 4] or, in full, [1, 5, 4]. With the datum first they are [5, 3, 4] and [5, 4].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Placed(Protocol):
    """The place of a local site: its event, and the batch dimension and size of each plate other than `data`."""

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    @property
    def inner_dims(self) -> tuple[tuple[int, int], ...]: ...


@dataclass(frozen=True)
class Axes:
    """The plates of a program: how many dimensions they take, and which of them, counted from the right, is `data`."""

    depth: int = 1
    data_dim: int = -1

    @property
    def position(self) -> int:
        """Of the rows among the plate dimensions, from the left."""
        return self.depth + self.data_dim

    def row_dim(self, events: int) -> int:
        """The dimension along which the rows lie, from the right, in a value whose event has `events` dimensions."""
        return self.data_dim - events

    def datum_first(self, value: Tensor, events: int, to: int = 0) -> Tensor:
        """`value` with its rows as the dimension `to`, and all others in their order."""
        return value.movedim(self.row_dim(events), to)

    def sizes(self, site: Placed, n: int) -> tuple[int, ...]:
        """The size of each plate dimension of a local site for n rows; 1 for the plates that it does not stand in."""
        plates = [1] * self.depth
        for dim, size in (*site.inner_dims, (self.data_dim, n)):
            plates[dim] = size
        return tuple(plates)

    def expand(self, value: Tensor, site: Placed, n: int, *lead: int) -> Tensor:
        """A local site's value in full: [lead, plates with n among them, event]."""
        return value.expand(*lead, *self.sizes(site, n), *site.event_shape)

    def by_datum(self, value: Tensor, site: Placed) -> Tensor:
        """A local site's value in full, [draws, plates with n among them, event], as [draws, n, inner plates, event]."""
        moved = self.datum_first(value, len(site.event_shape), 1)
        return moved.reshape(*moved.shape[:2], *(size for _, size in site.inner_dims), *site.event_shape)

    def as_program(self, value: Tensor, site: Placed) -> Tensor:
        """One value of a local site, [n, inner plates, event], in the shape that the program gives it."""
        others = list(self.sizes(site, 1))
        del others[self.position]
        return value.reshape(len(value), *others, *site.event_shape).movedim(0, self.position)

    def in_plates(self, values: Tensor) -> Tensor:
        """[n, k] with the rows where the program has them, [n, 1, …, k]: inner plates stand right of `data`."""
        if self.data_dim == -1:
            return values
        return values.reshape(len(values), *(1,) * (-1 - self.data_dim), -1)
