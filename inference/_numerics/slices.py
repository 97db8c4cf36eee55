"""A range of rows in slices small enough for memory."""

from __future__ import annotations

from collections.abc import Iterator


def slices(n: int, size: int) -> Iterator[slice]:
    """0 … n − 1 in slices of `size`, the last one shorter: `slices(5, 2)` gives 0:2, 2:4, 4:5."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def fitting(numbers: int, each: int, least: int = 1, most: int | None = None) -> int:
    """How many rows of `each` numbers make at most `numbers` in all; at least `least`, at most `most`."""
    size = numbers // max(1, each)
    return max(least, size if most is None else min(most, size))
