"""The local latents of each row: all joint values of the discrete ones, and the continuous ones as one flat vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo._program.axes import Axes
from zoo._program.trace import DATA_PLATE, Node, plates


def joint_values(nodes: Mapping[str, Node], names: Sequence[str], axes: Axes) -> dict[str, Tensor]:
    """Discrete site → its value under every joint assignment, [A, 1, …, 1, event] (inner plates in full).

    `nodes` are the sites of a trace.
    """
    if not names:
        return {}
    keys, supports = [], {}
    for name in names:
        node = nodes[name]
        supports[name] = support_values(node["fn"])
        inner = math.prod(p.size for p in plates(node) if p.name != DATA_PLATE)
        keys += [(name, i) for i in range(inner)]
    counts = [range(len(supports[name])) for name, _ in keys]
    choices = torch.tensor(list(itertools.product(*counts)), dtype=torch.long)  # [A, keys]
    out = {}
    for name in names:
        event = tuple(nodes[name]["fn"].event_shape)
        columns = [i for i, (owner, _) in enumerate(keys) if owner == name]
        sizes = plate_sizes(nodes[name], axes.depth)
        sizes[axes.data_dim] = 1
        values = supports[name].reshape(-1, *event)[choices[:, columns]]
        out[name] = values.reshape(len(choices), *sizes, *event)
    return out


def plate_sizes(node: Node, depth: int) -> list[int]:
    """The size of each of `depth` plate dimensions at a site; 1 for the plates that it does not stand in."""
    sizes = [1] * depth
    for plate in plates(node):
        sizes[plate.dim] = plate.size
    return sizes


def cardinality(fn: dist.TorchDistribution) -> int | None:
    """How many values a discrete site's distribution has, known without making them; None where they cannot be listed."""
    if getattr(fn, "cardinality", None) is not None:
        return int(fn.cardinality)
    base, entries = fn, 1
    while isinstance(base, dist.Independent):
        entries *= math.prod(base.event_shape[: base.reinterpreted_batch_ndims])
        base = base.base_dist
    try:
        values = len(base.enumerate_support(expand=False))
    except (NotImplementedError, ValueError, RuntimeError):
        return None
    return values ** (entries if base is not fn else 1)


def support_values(fn: dist.TorchDistribution) -> Tensor:
    """All values of a discrete site's distribution [K, 1, …, event]; of a vector of independent entries all joint ones."""
    base, entries = fn, 1
    while isinstance(base, dist.Independent):
        entries *= math.prod(base.event_shape[: base.reinterpreted_batch_ndims])
        base = base.base_dist
    if base is fn or hasattr(fn, "cardinality"):
        return fn.enumerate_support(expand=False)
    each = base.enumerate_support(expand=False)
    each = each.reshape(len(each), -1, *base.event_shape)[:, 0]
    index = torch.tensor(list(itertools.product(range(len(each)), repeat=entries)), dtype=torch.long)
    values = each[index.reshape(len(index), entries)]
    return values.reshape(len(index), *(1,) * len(fn.batch_shape), *fn.event_shape)


class Layout:
    """The continuous local latents of one row as a flat vector of L numbers, and back."""

    def __init__(self, nodes: Mapping[str, Node], names: Sequence[str], axes: Axes) -> None:
        self.axes = axes
        self.plates: dict[str, tuple[int, ...]] = {}  # the other plates' sizes, left to right
        self.events: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, slice] = {}
        self.L = 0
        for name in names:
            sizes = plate_sizes(nodes[name], axes.depth)
            del sizes[axes.position]
            self.plates[name], self.events[name] = tuple(sizes), tuple(nodes[name]["fn"].event_shape)
            size = math.prod(sizes) * math.prod(self.events[name])
            self.places[name] = slice(self.L, self.L + size)
            self.L += size

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """z [T, n, L] → site → its value [T, plates with n among them, event]; differentiable."""
        out = {}
        for name, place in self.places.items():
            full = z[..., place].reshape(*z.shape[:2], *self.plates[name], *self.events[name])
            out[name] = full.movedim(1, 1 + self.axes.position)
        return out

    def flatten(self, nodes: Mapping[str, Node], n: int) -> Tensor:
        """Site → its node in a trace of n rows, as z [n, L]."""
        parts = []
        for name in self.places:
            others, events = self.plates[name], self.events[name]
            shape = (*others[: self.axes.position], n, *others[self.axes.position :], *events)
            parts.append(self.axes.datum_first(nodes[name]["value"].expand(shape), len(events)).reshape(n, -1))
        return torch.cat(parts, -1)

    def natural(self, z: Tensor) -> dict[str, Tensor]:
        """z [T, n, L] → site → its value with the data dimension first, [T, n, inner plates, event]."""
        out = {}
        for name, place in self.places.items():
            inner = tuple(s for s in self.plates[name] if s != 1)
            out[name] = z[..., place].reshape(*z.shape[:2], *inner, *self.events[name])
        return out
