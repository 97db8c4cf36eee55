"""Sides timed alternately in one process. Where they end at different log-likelihoods there is no ratio of times, but an error.

A peer is one file here. Its `measure` runs `turns` on two sides or more, ours first, and returns what they took with a few
words of its own (`what` is compared, and who was `skipped`). `zoo bench peers/NAME` shows it: `measure`'s options are its own.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from json import dumps
from typing import Any, TypedDict

from benchmarks._report.peers import OURS
from benchmarks._suite.documents import Document
from inference._numerics.threads import one_thread
from zoo import _show

AGREEMENT = 1e-6  # the largest relative difference between log-likelihoods at which times can be compared

Side = Callable[[], tuple[float, float | None]]  # seconds, and the log-likelihood at the end (nats) where it has one


class Ratio(TypedDict):
    """Our time over a peer's, over the rounds."""

    median: float
    min: float
    max: float


class Turns(TypedDict):
    """What the sides took. A peer whose log-likelihood is another has a sentence in `errors`, and no ratio."""

    seconds: dict[str, float]  # side → the median round
    log_likelihood: dict[str, float]  # of the sides that have one
    ratios: dict[str, Ratio]  # by peer
    errors: list[str]
    rounds: int


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """In here the process has one core, where the system can say so, and torch one thread.

    XLA takes as many threads as there are cores when it begins, whatever its flags ask for.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        with one_thread():
            yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def turns(
    sides: Mapping[str, Side],
    rounds: int,
    agree: Callable[[float, float], bool] | None = None,
    warm_up: Sequence[Callable[[], object]] | None = None,
) -> Turns:
    """Run all sides `rounds` times, one after the other, ours first; how our time compares with each other's.

    - `agree`: whether two log-likelihoods, ours and theirs, are equal; to one part in a million when None.
    - `warm_up`: what is run once before the first round, and not timed: first calls compile and allocate. Each side once
      when None.
    """
    for first in sides.values() if warm_up is None else warm_up:
        first()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    ends: dict[str, float] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            spent, end = side()
            seconds[name].append(spent)
            if end is not None:
                ends[name] = end
    middle = {name: statistics.median(spent) for name, spent in seconds.items()}
    out: Turns = {"seconds": middle, "log_likelihood": ends, "ratios": {}, "errors": [], "rounds": rounds}
    for name in sides:
        if name == OURS:
            continue
        if ends and not (agree or _agree)(ends[OURS], ends[name]):
            out["errors"].append(
                f"the log-likelihoods differ, {ends[OURS]!r} (ours) and {ends[name]!r} ({name}): no ratio of times."
            )
            continue
        pairs = [ours / theirs for ours, theirs in zip(seconds[OURS], seconds[name], strict=True)]
        out["ratios"][name] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    return out


def _agree(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= AGREEMENT * abs(theirs)


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `work` takes, by `clock`."""
    began = clock()
    work()
    return clock() - began


def table(out: Mapping[str, Any]) -> str:
    """The document of a benchmark as text. Raises `ArithmeticError` where log-likelihoods differ."""
    if out["errors"]:
        raise ArithmeticError(" ".join(out["errors"]))
    lines = [out["what"], "", f"{'':22}{'seconds':>10}{'log-likelihood':>22}{'ours / theirs':>16}"]
    for name, spent in out["seconds"].items():
        ratio, end = out["ratios"].get(name), out["log_likelihood"].get(name)
        shown = "" if ratio is None else f"{ratio['median']:>16.3f}   ({ratio['min']:.3f} to {ratio['max']:.3f})"
        lines.append(f"{name:22}{spent:>10.4g}{'' if end is None else format(end, '.4f'):>22}{shown}".rstrip())
    return "\n".join([*lines, *(f"skipped: {why}" for why in out.get("skipped", []))])


def show(out: Document, json: bool) -> Document:
    """Print a document, as JSON or as a table, and return it."""
    text = table(out)  # which raises where there is nothing to compare
    if json:
        print(dumps(out, indent=2))
    else:
        _show.console().print(text, soft_wrap=True, markup=False)
    return out
