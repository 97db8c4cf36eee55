"""The missing entries of a row as one value of M slots: which entry each stands for, and a distribution of all of them.

Slot j of a row stands for its j-th missing entry, in the flat order of the event; a row with fewer than M missing entries has
unused slots.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor


def slots(value: Tensor, count: int, parent: bool = False) -> tuple[Tensor, Tensor]:
    """Which entries of value [..., E], NaN where missing, the `count` = M slots of each row stand for.

    Returns their places among the E entries [..., M] (0 for an unused slot), and which slots are used [..., M].
    A row with nothing observed uses none, except at a parent site. Raises `ValueError` where a row misses more than M.
    """
    missing, place = _places(value, parent)
    most = int(missing.sum(-1).max()) if missing.numel() else 0
    if most > count:
        raise ValueError(f"Expected rows with at most {count} missing entries, got one with {most}.")
    index = torch.zeros(*value.shape[:-1], count + 1, dtype=torch.long, device=value.device)
    entries = torch.arange(value.shape[-1], device=value.device).expand(missing.shape)
    index.scatter_(-1, torch.where(missing, place, count), entries)  # observed entries go to an extra slot
    real = torch.arange(count, device=value.device) < missing.sum(-1, keepdim=True)
    return torch.where(real, index[..., :-1], 0), real


def complete(value: Tensor, given: Tensor, parent: bool = False) -> Tensor:
    """value [..., E] with its missing entries taken from the slots given [..., M]; leading dimensions broadcast.

    A row with nothing observed is left as it is, except at a parent site. Differentiable in both.
    """
    missing, place = _places(value, parent)
    shape = torch.broadcast_shapes(value.shape[:-1], given.shape[:-1])
    if not given.shape[-1]:
        return value.expand(*shape, -1)
    given, place = given.to(value.dtype).expand(*shape, -1), (place * missing).expand(*shape, -1)
    return torch.where(missing, given.gather(-1, place), value)


def most_missing(value: Tensor, parent: bool = False) -> int:
    """The most entries that a row of value [..., E] misses; unless at a parent site, of the rows that are seen in part."""
    missing = value.isnan().sum(-1)
    missing = missing if parent else missing[missing < value.shape[-1]]
    return int(missing.max()) if missing.numel() else 0


def _places(value: Tensor, parent: bool = False) -> tuple[Tensor, Tensor]:
    """What is missing of the rows that are seen in part (at a parent site of all), and the slot of each missing entry, both
    [..., E]."""
    missing = value.isnan()
    if not parent:
        missing = missing & ~missing.all(-1, keepdim=True)
    return missing, missing.cumsum(-1) - 1


def flattened(value: Tensor, fn: dist.TorchDistribution) -> Tensor:
    """[batch…, event] → [batch…, E]; a number is an event of one entry."""
    if not len(fn.event_shape):
        return value.unsqueeze(-1)
    return value.flatten(value.dim() - len(fn.event_shape)) if len(fn.event_shape) > 1 else value


class Slots(dist.Independent):
    """M independent entries as one value. Of 0/1 entries all 2^M joint values can be enumerated; `cardinality` is 2^M.

    `Slots(Bernoulli(logits), 1)` is a q for a latent `x_missing` that Pyro can enumerate.
    """

    @property
    def cardinality(self) -> int | None:
        """How many values there are, known without making them; None where they are real."""
        return 2 ** math.prod(self.event_shape) if self.has_enumerate_support else None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return isinstance(self.base_dist, dist.Bernoulli)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """[2^M, 1, …, M], the first entry changing slowest."""
        if not self.has_enumerate_support:
            raise NotImplementedError
        values = joint_bits(math.prod(self.event_shape)).to(self.base_dist.mean)
        values = values.reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, *self.event_shape) if expand else values


def joint_bits(size: int) -> Tensor:
    """All values of so many bits [2^size, size], the first bit changing slowest."""
    return torch.arange(2**size).unsqueeze(-1) >> torch.arange(size - 1, -1, -1) & 1
