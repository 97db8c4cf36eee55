"""The entrance of a public call: one at a time, and isolated from the user's settings in both directions.

Pyro and torch keep much of their state in one place for the whole process: the stack of effect handlers, the default dtype,
the random state. `entrance` decorates what users call. It takes a lock, sets all of that state to the values of a fresh
process, and restores it afterwards. A call inside another of the same thread, such as `run` calling `run_prepared`, goes
straight through. The number of torch's threads is a resource, not a setting: it stays as the user chose it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import numpy as np
import pyro
import torch
from pyro.poutine import runtime

from zoo._program import source

P = ParamSpec("P")
T = TypeVar("T")

SETTINGS = {  # Pyro's, as a fresh process has them
    "binomial_approx_log_prob_tol": 0.0,
    "binomial_approx_sample_thresh": float("inf"),
    "cholesky_relative_jitter": 4.0,
    "module_local_params": False,
    "validate_distributions_pyro": __debug__,
    "validate_distributions_torch": __debug__,
    "validate_infer": __debug__,
    "validate_poutine": __debug__,
}
_LOCK = threading.RLock()
_inside = False  # whether the thread that holds the lock is within an entrance already


def _new_lock() -> None:
    """In a forked child: the thread that held the lock does not exist, so a new lock is needed."""
    global _LOCK, _inside
    _LOCK, _inside = threading.RLock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def entrance(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, one call at a time in this process, with settings of its own."""

    @functools.wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> T:
        global _inside
        with _LOCK:
            if _inside:
                return function(*args, **kwargs)
            _inside = True
            try:
                with own_settings():
                    return function(*args, **kwargs)
            finally:
                _inside = False

    return entered


def alone(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, one call at a time in this process, among `entrance`s too."""

    @functools.wraps(function)
    def waited(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOCK:
            return function(*args, **kwargs)

    return waited


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Everything that the process has for all as a fresh process has it; afterwards as it was."""
    with contextlib.ExitStack() as stack:
        for each in (_warnings(), _torch(), _pyro(), seeded(0), source.once()):
            stack.enter_context(each)
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random state set from `seed` inside, and as it was before afterwards."""
    with _random():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


@contextlib.contextmanager
def _random() -> Iterator[None]:
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - Pyro seeds this one
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # only then: it costs a little time in every operation
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            torch.set_default_dtype(torch.float32)
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_default_dtype(dtype)
            if precision != "highest":
                torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _pyro() -> Iterator[None]:
    """No handlers and plates from outside, and Pyro's settings its own."""
    handlers, plates, dims = runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack, runtime._ENUM_ALLOCATOR
    before = handlers[:], plates[:], copy.deepcopy(vars(dims))
    handlers[:], plates[:] = [], []
    settings = pyro.settings.get()
    pyro.settings.set(**{k: v for k, v in SETTINGS.items() if k in settings and settings[k] != v})
    try:
        yield
    finally:
        handlers[:], plates[:] = before[0], before[1]
        vars(dims).clear()
        vars(dims).update(before[2])
        pyro.settings.set(**settings)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Warnings are collected inside, whatever the user's filters, and given to those filters afterwards.

    A filter that makes an error of a warning must not change what a fit does in the middle; it raises at its end.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for w in caught:  # where an exception was raised, that is said and nothing else
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno, source=w.source)
