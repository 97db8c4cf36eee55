"""Python's search for unreachable objects, put off while programs of many sites run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

FEWEST = 50_000  # new objects between two searches, in place of Python's 700


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """In here garbage is looked for seldom, and among new objects alone.

    A run of a thousand sites makes a million objects and holds them, and Python goes through all of them, and all of torch's
    own, again and again: a quarter of the time that it takes to read a program.
    """
    before, fresh = gc.get_threshold(), not gc.get_freeze_count()
    if before[0]:  # 0: somebody has turned it off
        gc.set_threshold(max(FEWEST, before[0]), *before[1:])
    if fresh:
        gc.freeze()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if fresh:
            gc.unfreeze()
