"""Which result may rank above which.

What is exact is ranked by its value. An estimate, or an exact value that differs from seed to seed, is an interval: those that
overlap share a rank, and none ranks above a single exact value inside it. Lower bounds come after these, for any
value, and those whose intervals overlap share a rank. Upper bounds come last and share one rank: a higher one is not better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks._suite.documents import Evidence, Kind

ALIKE = 1e-6  # relative: exact values closer than this are the same
Z95 = 1.959964
FIRM: tuple[Kind, ...] = ("exact", "estimate")  # what is no bound
ORDER: tuple[Kind, ...] = ("exact", "estimate", "lower bound", "upper bound")  # from what says most to what says least


@dataclass(frozen=True)
class Standing:
    """A value with what is known of it: its kind, and the interval that holds it (for a bound: the bound)."""

    value: float
    low: float
    high: float
    kind: Kind

    @property
    def sharp(self) -> bool:
        """Whether it is one exact number."""
        return self.kind == "exact" and self.high - self.low <= ALIKE * max(1.0, abs(self.value))

    def widened(self) -> tuple[float, float]:
        """The interval, by half of what counts as alike wider at each end."""
        half = 0.5 * ALIKE * max(1.0, abs(self.value))
        return self.low - half, self.high + half


def standing(evidences: Iterable[Evidence | None]) -> Standing | None:
    """One standing of several runs: the median run's value, the weakest kind, an interval that holds every run's.

    Of an even number of runs, the lower of the middle two. None where a run has no finite evidence.
    """
    runs = []
    for e in evidences:
        if e is None or e["value"] is None:
            return None
        se = e["se"] or 0.0
        runs.append((e["value"], e["value"] - Z95 * se, e["value"] + Z95 * se, e["kind"]))
    if not runs:
        return None
    runs.sort()
    kind = max((r[3] for r in runs), key=ORDER.index)
    return Standing(runs[(len(runs) - 1) // 2][0], min(r[1] for r in runs), max(r[2] for r in runs), kind)


def ranks(standings: Sequence[Standing | None]) -> list[int | None]:
    """1 for the best; the same number for what cannot be told apart; None for None."""
    known = [(i, s) for i, s in enumerate(standings) if s is not None]
    above = [(i, s) for i, s in known if s.kind == "upper bound"]
    below = [(i, s) for i, s in known if s.kind == "lower bound"]
    others = [k for k in known if k[1].kind in FIRM]
    out: list[int | None] = [None] * len(standings)
    for i, _ in above:
        out[i] = 1 + len(others) + len(below)
    for members, before in ((others, 0), (below, len(others))):
        keys = _keys([s for _, s in members])
        for (i, _), key in zip(members, keys, strict=True):
            out[i] = 1 + before + sum(other > key for other in keys)
    return out


def _keys(standings: list[Standing]) -> list[float]:
    """A number for each: equal where the rank is shared, larger for a better rank."""
    sharp = _merged([s.widened() for s in standings if s.sharp])
    blunt = _merged([s.widened() for s in standings if not s.sharp])
    # a group of intervals stands with the lowest exact value that it reaches, or else by its lower end
    lowest = {group: min([s[0] for s in sharp if _meet(s, group)], default=group[0]) for group in blunt}
    keys = []
    for s in standings:
        group = next(g for g in (sharp if s.sharp else blunt) if _meet(g, s.widened()))
        keys.append(group[0] if s.sharp else lowest[group])
    return keys


def _merged(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping intervals joined, until none overlap."""
    out: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _meet(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) points that none beats: nothing is both cheaper and at least as good. By rising cost."""
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not out or points[i][1] > points[out[-1]][1]:
            out.append(i)
    return out
