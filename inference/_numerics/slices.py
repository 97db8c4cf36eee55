"""A range of rows in slices small enough for memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator


def slices(n: int, size: int) -> Iterator[slice]:
    """0 … n − 1 in slices of `size`, the last one shorter: `slices(5, 2)` gives 0:2, 2:4, 4:5."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def evenly(first: int, last: int, size: int, parts: int) -> list[list[slice]]:
    """first … last − 1 in `parts` lists of slices of at most `size`, all nearly as long as each other.

    `evenly(0, 10, 4, 2)` gives [[0:2, 2:5], [5:7, 7:10]].
    """
    each = -(-(last - first) // (size * parts))
    ends = [first + (last - first) * i // (each * parts) for i in range(each * parts + 1)]
    every = list(itertools.starmap(slice, itertools.pairwise(ends)))
    return [every[i : i + each] for i in range(0, len(every), each)]


def fitting(numbers: int, each: int, least: int = 1, most: int | None = None) -> int:
    """How many rows of `each` numbers make at most `numbers` in all; at least `least`, at most `most`."""
    size = numbers // max(1, each)
    return max(least, size if most is None else min(most, size))
