"""The folder is the registry: the family of a distribution is the class in a public file here that names it."""

from __future__ import annotations

import functools
import importlib
import math
from pathlib import Path

import pyro.distributions as dist
import torch
from torch.distributions import Distribution

from inference._families._family import Family, Params


@functools.cache
def families() -> dict[type[Distribution], type[Family]]:
    """The distribution that each family serves → the family."""
    out: dict[type[Distribution], type[Family]] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for family in vars(module).values():
            if not (isinstance(family, type) and issubclass(family, Family) and family.__module__ == module.__name__):
                continue
            if (other := out.setdefault(family.distribution, family)) is not family:
                names = f"{other.__module__} and {module.__name__}"
                raise TypeError(f"Expected one family of {family.distribution.__name__}, got {names}.")
    return out


def family_of(fn: Distribution | None) -> type[Family] | None:
    """The family that serves this distribution, or None."""
    return None if fn is None else families().get(type(base_of(fn)))


def base_of(fn: Distribution) -> Distribution:
    """The distribution inside nested Independents."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn


def parameters_of(fn: Distribution, assignments: int, dtype: torch.dtype | None = None) -> Params | None:
    """The parameters a distribution was given, [A, E] and so on, or None where they differ from row to row.

    With `dtype` they are brought to it: a constant that a user's file makes when it is imported is float32.

    `fn` has batch shape [A, rows], [1, rows] or [rows]. Pyro expands parameters to the plate, so that a constant one has
    stride 0 along it: the shape says nothing.
    """
    family, base = family_of(fn), base_of(fn)
    if family is None or len(fn.batch_shape) > 2:
        return None
    axis = len(fn.batch_shape) - 1
    out = {}
    for name, constraint in family.parameters.items():
        value = base.__dict__.get(name)
        if value is None:
            continue
        if value.shape[axis] > 1 and value.stride(axis) != 0:
            return None
        value = value.select(axis, 0)
        value = value if axis == 1 else value.unsqueeze(0)
        value = value.expand(assignments, *value.shape[1:])
        if not family.joint:
            trailing = value.dim() - constraint.event_dim
            value = value.reshape(assignments, math.prod(value.shape[1:trailing]), *value.shape[trailing:])
        out[name] = value if dtype is None else value.to(dtype)
    return out if family.given(out) else None
