"""What stands beside a tensor while a program is read: for every entry, the sources it comes from and its degree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

BRANCHES = (list, tuple, dict)


@dataclass
class Shadow:
    """Beside a tensor, entry by entry: what it depends on (int64 bits), and its degree in the continuous latents (int8)."""

    mask: Tensor
    degree: Tensor
    flat: bool = False  # whether all degrees are known to be 0
    _union: tuple[int, int] | None = field(default=None, repr=False)

    def union(self) -> tuple[int, int]:
        """All bits, and the highest degree."""
        if self._union is None:
            bits = high = 0
            if self.mask.numel():
                bits = int(np.bitwise_or.reduce(self.mask.numpy(), axis=None))
                high = 0 if self.flat else int(self.degree.numpy().max())
            self._union = bits, high
        return self._union


@dataclass
class Operation:
    """An operation that a program ran: what went into it, what came out, and how to ask for the shadow of an argument."""

    name: str  # without the underscore of an operation in place
    func: OpOverload
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outs: list[Tensor]
    of: Callable[[Tensor], Shadow]

    def tensors(self, first: int = 0) -> list[Tensor]:
        """All tensors among the arguments, but for so many first ones."""
        return tensors((self.args[first:], self.kwargs))

    def argument(self, wanted: str, default: object = None) -> Any:
        """The value of the argument called `wanted`."""
        for i, a in enumerate(self.func._schema.arguments):
            if a.name == wanted:
                return self.args[i] if i < len(self.args) else self.kwargs.get(wanted, a.default_value)
        return default


def tensors(tree: object) -> list[Tensor]:
    """All tensors among arguments."""
    if isinstance(tree, Tensor):
        return [tree]
    out = list[Tensor]()
    for branch in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, BRANCHES) else ():
        if isinstance(branch, Tensor):
            out.append(branch)
        elif isinstance(branch, BRANCHES) and branch:
            out += tensors(branch)
    return out


NOTHING, NO_DEGREE = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int8)


def constant(like: Tensor) -> Shadow:
    """The shadow of numbers that depend on nothing."""
    return Shadow(NOTHING.expand(like.shape), NO_DEGREE.expand(like.shape), True, (0, 0))
