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
STARTS, FEW_STARTS = 20, 4  # of a mixture, and of a program that has priors or no discrete latents
SHORT = 15  # iterations that every start gets
CLIMBS = 5  # starts that go on from there to the end
AGREED = 6  # starts that have converged to one maximum, after which no more are tried
Options = Mapping[str, object]
Starts = list[tuple[int, dict[str, object]]]


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


def best_of(
    prepared: Prepared, method: str, options: Options, seed: int, most: int | None, verified: bool = True
) -> Found:
    """The best fit from `most` starts.

    A method that trains nothing begins in several ways: a few iterations from each start, then to the end from those that
    are highest by then (Biernacki, Celeux & Govaert 2003). Any other is run from `most` seeds, one when None. Raises the
    error of the first start where none has a result.
    """
    starts = _starts(prepared, method, options, seed, most)
    climbs = _Climbs(prepared, method)
    own = _options.schema(method_module(method).fit)
    if len(starts) > CLIMBS and "max_iter" in own and "max_iter" not in options:
        starts = climbs.screened(starts)
    for other, start in starts:
        climbs.climb(other, start)
    best = climbs.best()
    run = runner.run_prepared(prepared, method, best.options, seed=best.seed) if verified else best.run
    hits = len([t for t in climbs.done if _same(t, best)])
    return Found(run, best.options, best.seed, best.ended, hits, len(climbs.done), best.collapsed, list(run.warnings))


class _Climbs:
    """The fits of one program from several starts."""

    def __init__(self, prepared: Prepared, method: str) -> None:
        self.prepared, self.method = prepared, method
        self.done: list[Found] = []
        self.first: Exception | None = None

    def climb(self, seed: int, options: dict[str, object], most: int | None = None) -> Found | None:
        """One fit, of at most so many iterations; it counts as done unless those were too few. None where it fails."""
        given = options if most is None else {**options, "max_iter": most}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = runner.run_prepared(self.prepared, self.method, given, seed=seed, verified=False)
        except (Refusal, UsageError, ArithmeticError) as error:
            self.first = self.first or error
            return None
        found = Found(run, options, seed, _ended(run), 0, 0, _collapsed(run))
        if most is None or found.ended == "ok":
            self.done.append(found)
        return found

    def screened(self, starts: Starts) -> Starts:
        """Those starts that are the highest after a few iterations, and have not come to their end yet."""
        short: list[tuple[Found, tuple[int, dict[str, object]]]] = []
        for start in starts:
            found = self.climb(*start, most=SHORT)
            if found is not None and found.ended != "ok":
                short.append((found, start))
            if not short and len(self.done) >= AGREED and all(_same(t, self.done[0]) for t in self.done):
                return []
        short.sort(key=lambda pair: (pair[0].ended == "collapsed", -_value(pair[0])))
        return [start for _, start in short[:CLIMBS]]

    def best(self) -> Found:
        """The highest of those that ended well; of others where none did."""
        if not self.done:
            assert self.first is not None
            raise self.first
        order = ("ok", "unknown", "not converged", "collapsed")
        return min(self.done, key=lambda t: (order.index(t.ended), -_value(t)))


def _starts(prepared: Prepared, method: str, options: Options, seed: int, most: int | None) -> Starts:
    """Seed and options of each start: the method's own choice first, then clusterings and random ones in turn."""
    own, structure = _options.schema(method_module(method).fit), prepared.structure
    cheap = structure.is_exact and "start" in own and "guide" not in own  # nothing is trained
    usual = STARTS if structure.assignments > 1 and not structure.global_latents else FEW_STARTS
    count = most or (usual if cheap and "restarts" not in options else 1)
    turns = ("kmeans", "random") if "start" in own and "start" not in options else ()
    return [(seed + i, {**options, **({"start": turns[i % 2]} if i and turns else {})}) for i in range(count)]


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
