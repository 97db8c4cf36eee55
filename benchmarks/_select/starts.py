"""One fit from several starts: the best that converged without collapsing, and how often it was found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference._run import runner
from inference._run.prepare import Prepared, method_module
from inference._run.result import Run
from zoo import _options
from zoo._errors import Refusal, UsageError

SAME = 1e-2  # nats: two starts that end this close have found the same maximum
DEFAULT = 10  # starts of a method that trains nothing
ENOUGH = 3  # starts that end in the best maximum, after which no more are tried
Options = Mapping[str, object]


@dataclass(frozen=True)
class Found:
    """The best of several starts. `ended`: "ok", "collapsed", "not converged", or "unknown" where the method does not say."""

    run: Run
    options: dict[str, object]  # of the method, with the start
    seed: int
    ended: str
    hits: int  # starts that ended in the same maximum
    tried: int
    collapsed: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


def best_of(prepared: Prepared, method: str, options: Options, seed: int, most: int | None, verified: bool = True) -> Found:
    """The best fit from at most `most` starts: fewer where the best has come up several times.

    A method that has no starts to choose from is run once, unless `most` says more. Raises the error of the first start
    where none has a result.
    """
    tries, first = list[Found](), None
    for other, start in _starts(prepared, method, options, seed, most):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = runner.run_prepared(prepared, method, start, seed=other, verified=False)
        except (Refusal, UsageError, ArithmeticError) as error:
            first = first or error
            continue
        tries.append(Found(run, start, other, _ended(run), 0, 0, _collapsed(run)))
        if len([t for t in tries if _same(t, _best(tries))]) >= ENOUGH:
            break
    if not tries:
        assert first is not None
        raise first
    best = _best(tries)
    run = best.run
    if verified:
        run = runner.run_prepared(prepared, method, best.options, seed=best.seed)
    hits = len([t for t in tries if _same(t, best)])
    return Found(run, best.options, best.seed, best.ended, hits, len(tries), best.collapsed, list(run.warnings))


def _starts(
    prepared: Prepared, method: str, options: Options, seed: int, most: int | None
) -> list[tuple[int, dict[str, object]]]:
    """Seed and options of each start: the method's own choice first, then clusterings and random ones in turn."""
    own = _options.schema(method_module(method).fit)
    cheap = prepared.structure.is_exact and "start" in own and "guide" not in own  # nothing is trained
    count = most or (DEFAULT if cheap and "restarts" not in options else 1)
    turns = ("random", "kmeans") if "start" in own and "start" not in options else ()
    return [(seed + i, {**options, **({"start": turns[i % 2]} if i and turns else {})}) for i in range(count)]


def _best(tries: list[Found]) -> Found:
    """The highest of those that ended well; of others where none did."""
    order = ("ok", "unknown", "not converged", "collapsed")
    return min(tries, key=lambda t: (order.index(t.ended), -_value(t)))


def _same(one: Found, other: Found) -> bool:
    return one.ended == other.ended and abs(_value(one) - _value(other)) <= SAME


def _value(found: Found) -> float:
    claimed = found.run.claimed
    return float("-inf") if claimed is None else claimed.value


def _collapsed(run: Run) -> tuple[str, ...]:
    named = run.notes.get("collapsed", ())
    return tuple(map(str, named)) if isinstance(named, list | tuple) else ()


def _ended(run: Run) -> str:
    if _collapsed(run):
        return "collapsed"
    return {True: "ok", False: "not converged", None: "unknown"}[run.converged]
