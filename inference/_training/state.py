"""What a program's Python remembers from one call to the next: counters, caches, random generators, clocks.

A record of tensor operations never calls the program, so that a counter in it would stand still, and what is to happen at its
1000th call never would. `fingerprint` is taken before and after a call: where the two differ, the program has a state.
"""

from __future__ import annotations

import gc
import random
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

CLOCKS = ("time", "datetime")  # modules
LIBRARIES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"], "site-packages")
OURS = ("pyro", "torch", "inference", "guides")  # whose objects change at a call, but not what the program computes
MANY, LARGE = 20_000, 2**26  # things that are looked at, at most, and bytes of an array


@dataclass
class Fingerprint:
    """Whether two are alike tells whether a state changed between them."""

    found: list[object]
    held: list[object] = field(compare=False)  # so that no two things have had one id


def fingerprint(objects: Iterable[object]) -> Fingerprint | None:
    """All that can be reached from these objects and may change; None where it cannot be told: a clock, an iterator, or
    too much to look at."""
    found: list[object] = [random.getstate(), *map(str, np.random.get_state())]  # noqa: NPY002
    seen: dict[int, object] = {}
    left = list(objects)
    while left:
        value = left.pop()
        large = len(seen) > MANY or (isinstance(value, np.ndarray) and value.nbytes > LARGE)
        if large or _reads_clock(value) or _is_iterator(value):
            return None
        if isinstance(value, int | float | complex | str | bytes | None):
            found.append((type(value), repr(value)))
            continue
        found.append(id(value))
        if id(value) not in seen:
            seen[id(value)] = value
            found.extend(_content(value))
            left.extend(_parts(value))
    return Fingerprint(found, list(seen.values()))


def _reads_clock(value: object) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "")
    return isinstance(value, types.ModuleType | types.BuiltinFunctionType | type) and name in CLOCKS


def _is_iterator(value: object) -> bool:
    """Whether each use of it gives another thing: where it stands, most iterators do not say."""
    return not isinstance(value, type) and hasattr(type(value), "__next__")


def _content(value: object) -> Iterator[object]:
    """What of a thing itself may change."""
    if isinstance(value, Tensor):
        yield 0 if value.is_inference() else value._version
    elif isinstance(value, np.ndarray):
        yield hash(value.tobytes()) if value.dtype != object else repr(value)
    elif isinstance(value, np.random.Generator):
        yield str(value.bit_generator.state)
    elif isinstance(value, random.Random):
        yield value.getstate()
    elif isinstance(value, torch.Generator):
        yield value.get_state().numpy().tobytes()


def _parts(value: object) -> Iterable[object]:
    """What can be reached from a thing in one step; nothing from what is a library's."""
    if isinstance(value, types.FunctionType):
        return () if _of_library(value) else _of_function(value)
    if isinstance(value, types.ModuleType):
        return () if _is_library(value.__name__) else [v for n, v in vars(value).items() if n != "__builtins__"]
    if isinstance(value, type):
        return () if _is_library(value.__module__) else [*vars(value).values(), *value.__bases__]
    if isinstance(value, Tensor | np.ndarray) or (
        _is_ours(type(value).__module__) and not isinstance(value, nn.Module)
    ):
        return ()
    return gc.get_referents(value)  # also what stands in slots, in a deque, in a partial function, in a property


def _of_function(function: types.FunctionType) -> Iterator[object]:
    """What a function reads beside its arguments."""
    yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty still
            continue
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_library(function: types.FunctionType) -> bool:
    return _is_ours(function.__module__ or "") or any(part in function.__code__.co_filename for part in LIBRARIES)


def _is_library(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    built_in = file is None and module != "__main__"
    return built_in or _is_ours(module) or any(part in str(file) for part in LIBRARIES)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS or module.startswith("zoo._")
