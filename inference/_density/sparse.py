"""Hessians from few products, where the graph of a program says which of their entries are 0.

The entry of two latents that no density has both of is 0. Columns that share no row can be had together, by one product of the
Hessian with the sum of their unit vectors (Curtis, Powell & Reid 1974): three products give all of a chain, however long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from zoo._program.structure import Site, Structure
from zoo._reading.elimination import neighbours


class Placed(Protocol):
    """A site's place among the L numbers."""

    @property
    def site(self) -> Site: ...

    @property
    def part(self) -> slice: ...


@dataclass(frozen=True)
class Pattern:
    """Which entries of a Hessian [L, L] may differ from 0, and how to read them off products."""

    seeds: Tensor  # [products, L] of 0 and 1
    product: Tensor  # [L] the product that holds a column
    filled: Tensor  # [L, L] bool

    def read(self, products: Tensor) -> Tensor:
        """The Hessian [n, L, L] from its products with the seeds [n, products, L]; differentiable."""
        return torch.where(self.filled, products[:, self.product], 0.0).mT


def pattern(structure: Structure, places: Sequence[Placed]) -> Pattern | None:
    """That of the log joint in the continuous latents, or None where it takes at least half as many products as columns."""
    numbers = {p.site.name: range(p.part.start, p.part.stop) for p in places}
    scopes = {s.name: [n for n in {*s.parents, s.name} if n in numbers] for s in structure.sites}
    near = {k: v | {k} for k, v in neighbours(dict.fromkeys(numbers, 1), scopes).items()}
    colour: dict[str, int] = {}
    for name in numbers:
        used = {colour[far] for other in near[name] for far in near[other] if far in colour}
        colour[name] = next(c for c in count() if c not in used)
    width = max((len(r) for r in numbers.values()), default=0)
    L, products = sum(map(len, numbers.values())), width * (1 + max(colour.values(), default=0))
    if products > L // 2:
        return None
    seeds, filled = torch.zeros(products, L), torch.zeros(L, L, dtype=torch.bool)
    product = torch.zeros(L, dtype=torch.long)
    for name, mine in numbers.items():
        for k, column in enumerate(mine):
            product[column] = colour[name] * width + k
            seeds[product[column], column] = 1.0
            for other in near[name]:
                filled[column, numbers[other].start : numbers[other].stop] = True
    return Pattern(seeds, product, filled)
