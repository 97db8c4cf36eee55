"""Torch without threads of its own, where they cost more than they save; and Python's threads, each with torch on one."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Part = TypeVar("Part")
Found = TypeVar("Found")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch runs on one thread in here, and so does what Python's own threads start meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
    """`work` of each part, in their order: the first here, each other one in a thread of its own, torch on one in all."""
    with one_thread():
        others = [_pool().submit(work, part) for part in parts[1:]]
        try:
            first = [work(part) for part in parts[:1]]
        finally:
            wait(others)
        return [*first, *(other.result() for other in others)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: to start one for each pass over small data would take longer than the pass."""
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of its parent's threads
