"""Large .npy files mapped into memory, so that data larger than the free memory need no copy.

A map here is private (copy on write): a program that writes into its data changes neither the file nor the caller's array.
Only C-ordered float64 is mapped; other arrays are copied. The file must not change while a fit uses it: where a mapped file is
truncated the system ends the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

MAPPED = 64 << 20  # bytes: larger .npy files are mapped, smaller ones are read
ALIGNED = 64  # bytes: on such a border torch's products give the same last bits as on memory of its own
BLOCK = 2**21  # numbers that are compared at once


class _Private(np.memmap):
    """A map that was made here."""


def worth_mapping(path: Path) -> bool:
    """Whether this is a .npy file that is large enough to be mapped."""
    return path.suffix.lower() == ".npy" and os.path.getsize(path) >= MAPPED


def open_private(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped privately. Raises what `numpy.load` raises."""
    found = np.load(path, mmap_mode="c", allow_pickle=False)
    order: Literal["C", "F"] = "C" if found.flags.c_contiguous else "F"
    return _Private(path, found.dtype, "c", found.offset, found.shape, order)


def private(x: np.ndarray) -> np.ndarray | None:
    """The entries of the caller's map x, mapped privately; None where x is not a map, or has to be copied."""
    root = _root(x)
    if root is None or x.nbytes < MAPPED or not _usable(x) or root.filename is None:
        return None
    if isinstance(root, _Private):
        return x
    away = x.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    try:
        out = _Private(root.filename, np.float64, "c", root.offset + away, x.shape)
    except (OSError, ValueError):  # the file has been removed or cut short since
        return None
    return out if _equal(out, x) else None  # unequal: the file was replaced since, or x was changed in memory


def is_private(x: np.ndarray) -> bool:
    """Whether x is such a private map, usable without a copy."""
    return isinstance(_root(x), _Private) and _usable(x)


def _root(x: np.ndarray) -> np.memmap | None:
    """The map that x is a view of."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x if isinstance(x, np.memmap) else None


def _usable(x: np.ndarray) -> bool:
    return x.dtype == np.float64 and x.flags.c_contiguous and x.__array_interface__["data"][0] % ALIGNED == 0


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all entries are the same, to the last bit."""
    step = max(1, BLOCK // max(1, one[:1].size))
    bits = one.view(np.int64), other.view(np.int64)
    return all(np.array_equal(bits[0][i : i + step], bits[1][i : i + step]) for i in range(0, len(one), step))
