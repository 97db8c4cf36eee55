"""A budget for a piece of work: seconds and memory. It ends at the next step of Python after it is spent.

A single call into a library is not cut short: the work ends when that call returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

MEGABYTE = 2**20
T = TypeVar("T")


class OutOfTime(Exception):
    """The time of a piece of work is over."""


class _Stop(BaseException):
    """Raised inside the work: no `except Exception` of a library may swallow it."""


def within(seconds: float | None, memory_mb: float | None, work: Callable[[], T]) -> T:
    """What `work` returns.

    Raises `OutOfTime` after `seconds`; allocating more than `memory_mb` beyond what there is now fails, on Linux.
    """
    with _memory(memory_mb):
        return work() if seconds is None else _in_time(seconds, work)


def _in_time(seconds: float, work: Callable[[], T]) -> T:
    """A second thread raises in this one: unlike a signal, that works in the threads of a cluster's workers too.

    All of it is in one function: the exception may be raised at any step, and must not be raised outside of it.
    """
    mine, lock, over = threading.get_ident(), threading.Lock(), threading.Event()
    working, fired = True, False

    def wait() -> None:
        nonlocal fired
        if over.wait(seconds):
            return
        with lock:
            if working:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(mine), ctypes.py_object(_Stop))

    arrived = False
    try:
        threading.Thread(target=wait, daemon=True).start()
        try:
            result = work()
        except _Stop:
            arrived = True
            raise
        finally:
            with lock:
                working = False
            over.set()
            if fired and not arrived:
                time.sleep(0.1)  # it comes at one of the next steps
    except _Stop:
        pass
    if fired:  # even where something has swallowed it
        raise OutOfTime(f"not done within {seconds:g} s")
    return result


@contextlib.contextmanager
def _memory(megabytes: float | None) -> Iterator[None]:
    held = _data_bytes()
    if megabytes is None or held is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(megabytes * MEGABYTE), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """What counts for the limit now: the data segment and private writable mappings."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return None


def resident_mb() -> float | None:
    """What the process holds in memory now."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


def give_back() -> None:
    """Return freed memory to the system, so that what the next piece of work takes can be seen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
