"""The local latents of a program as one table a datum: all joint values of the discrete, one flat vector of the continuous."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo._program.trace import DATA_PLATE


def joint_values(nodes: Mapping[str, Any], names: Sequence[str], data_dim: int, depth: int) -> dict[str, Tensor]:
    """Discrete site → its value under every joint assignment, [A, 1, …, 1, event] (inner plates in full).

    `nodes` are the sites of a trace; `depth` is the number of batch dimensions that plates take.
    """
    if not names:
        return {}
    keys, supports = [], {}
    for name in names:
        node = nodes[name]
        supports[name] = support_values(node["fn"])
        inner = math.prod(f.size for f in node["cond_indep_stack"] if f.name != DATA_PLATE)
        keys += [(name, i) for i in range(inner)]
    sizes = [range(len(supports[name])) for name, _ in keys]
    choices = torch.tensor(list(itertools.product(*sizes)), dtype=torch.long)  # [A, keys]
    out = {}
    for name in names:
        event = tuple(nodes[name]["fn"].event_shape)
        columns = [i for i, (owner, _) in enumerate(keys) if owner == name]
        plates = [1] * depth
        for frame in nodes[name]["cond_indep_stack"]:
            if frame.dim is not None and frame.dim != data_dim:
                plates[frame.dim] = frame.size
        values = supports[name].reshape(-1, *event)[choices[:, columns]]
        out[name] = values.reshape(len(choices), *plates, *event)
    return out


def cardinality(fn: Any) -> int | None:
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


def support_values(fn: Any) -> Tensor:
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
    """The continuous local latents of one datum as a flat vector of L numbers, and back."""

    def __init__(self, nodes: Mapping[str, Any], names: Sequence[str], data_dim: int, depth: int) -> None:
        self.depth, self.position = depth, depth + data_dim  # of the plates; of the data dimension among them
        self.plates: dict[str, tuple[int, ...]] = {}  # the other plates' extents, left to right
        self.events: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, slice] = {}
        self.L = 0
        for name in names:
            extents = [1] * depth
            for frame in nodes[name]["cond_indep_stack"]:
                if frame.dim is not None:
                    extents[frame.dim] = frame.size
            del extents[self.position]
            self.plates[name], self.events[name] = tuple(extents), tuple(nodes[name]["fn"].event_shape)
            size = math.prod(extents) * math.prod(self.events[name])
            self.places[name] = slice(self.L, self.L + size)
            self.L += size

    def unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """z [T, n, L] → site → its value [T, plates with n among them, event]; differentiable."""
        out = {}
        for name, place in self.places.items():
            full = z[..., place].reshape(*z.shape[:2], *self.plates[name], *self.events[name])
            out[name] = full.movedim(1, 1 + self.position)
        return out

    def flatten(self, nodes: Mapping[str, Any], n: int) -> Tensor:
        """Site → its node in a trace of n rows, as z [n, L]."""
        parts = []
        for name in self.places:
            value, others = nodes[name]["value"], self.plates[name]
            shape = [*others[: self.position], n, *others[self.position :], *self.events[name]]
            parts.append(value.expand(shape).movedim(self.position, 0).reshape(n, -1))
        return torch.cat(parts, -1)

    def natural(self, z: Tensor) -> dict[str, Tensor]:
        """z [T, n, L] → site → its value with the data dimension first, [T, n, inner plates, event]."""
        out = {}
        for name, place in self.places.items():
            inner = tuple(s for s in self.plates[name] if s != 1)
            out[name] = z[..., place].reshape(*z.shape[:2], *inner, *self.events[name])
        return out


def by_datum(value: Tensor, site: Any, structure: Any) -> Tensor:
    """A local site's value in a program, [draws, plates with n among them, event], as [draws, n, inner plates, event]."""
    moved = value.movedim(1 + structure.max_plate_nesting + structure.data_dim, 1)
    return moved.reshape(*moved.shape[:2], *(size for _, size in site.inner_dims), *site.event_shape)


def for_program(value: Tensor, site: Any, structure: Any) -> Tensor:
    """One value of a local site, [n, inner plates, event], in the shape that the program gives it."""
    sizes = dict(site.inner_dims)
    others = [sizes.get(d, 1) for d in range(-structure.max_plate_nesting, 0) if d != structure.data_dim]
    full = value.reshape(len(value), *others, *site.event_shape)
    return full.movedim(0, structure.max_plate_nesting + structure.data_dim)
