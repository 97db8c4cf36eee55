"""The charts of the page, made of results. Each is one SVG with a caption."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks._report import rank
from benchmarks._report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    chart,
    colour,
    limits,
    row_at,
    rows,
    short,
)
from benchmarks._report.fits import FitRow, Group
from benchmarks._report.tables import plain
from benchmarks._suite.documents import Kind

FLOOR = 1e-3  # nats: less than this below the best counts as equal to it
UNIT = 0.01  # nats: a gap axis is linear within, and logarithmic beyond
ENOUGH = 0.7  # k-hat above which weights cannot be trusted


@dataclass(frozen=True)
class Figure:
    """A chart and what it shows."""

    svg: str
    caption: str


def of_fits(group: Group) -> list[Figure]:
    """What can be drawn of fits side by side."""
    drawn = [_front(group), _gaps(group), _khats(group)]
    return [f for f in drawn if f is not None]


def _front(group: Group) -> Figure | None:
    """How good against how long; the line joins what nothing else beats in both."""
    if group.by != "verified_log_evidence":
        return None  # at one θ there is nothing to be better at
    points = [(r, r.verified, r.seconds) for r in group.rows if r.verified and r.seconds]
    points = [p for p in points if p[1].kind in rank.FIRM]
    if len(points) < 2 or len(group.boards) > 1:
        return None
    best = max(s.value for _, s, _ in points)

    def below(value: float) -> float:
        return max(best - value, FLOOR)

    times = [run["seconds"] for r, _, _ in points for run in r.runs]
    ends = [below(v) for _, s, _ in points for v in (s.value, s.low, s.high)]
    low, high = limits(ends, log=True)
    x = Axis(*limits(times, log=True), LEFT, WIDTH - RIGHT, "log")
    out = Chart(
        x, Axis(low, max(high, 10 * FLOOR), TOP, HEIGHT - BOTTOM, "log"), f"Accuracy against time: {group.title}"
    )
    out.axes("seconds", "nats below the best", lambda v: f"≤ {v:g}" if v == FLOOR else short(v))
    line = [(points[i][2], below(points[i][1].value)) for i in rank.front([(t, s.value) for _, s, t in points])]
    out.line(line, "front")
    for row, standing, time in points:
        for run in row.runs:
            evidence = run["verified_log_evidence"] or run["log_evidence"]
            if evidence is not None and evidence["value"] is not None:
                at = x(max(run["seconds"], 1e-4))
                out.mark(at, out.y(below(evidence["value"])), row.series, row.name, 2.2, "faint")
        at = x(time)
        out.segment(
            (at, out.y(below(standing.low))), (at, out.y(below(standing.high))), f"{colour(row.series)} whisker"
        )
        says = f"{row.name}: {plain(best - standing.value, 3)} nats below the best in {time:.3g} s"
        out.mark(at, out.y(below(standing.value)), row.series, says)
    return Figure(out.svg(), "Accuracy against time. The line joins what nothing beats in both; small marks are seeds.")


def _gaps(group: Group) -> Figure | None:
    """Claims as distances from what was verified at the same θ."""
    shown = [(row, *found) for row in group.rows if (found := _gap(row))]
    if not shown:
        return None
    most = max([abs(g) + e for _, g, e, _ in shown] + [UNIT])
    low, high = min(g - e for _, g, e, _ in shown), max(g + e for _, g, e, _ in shown)
    ends = (min(1.6 * low, -0.12 * most), max(1.6 * high, 0.12 * most))
    out = rows(ends, [r.short for r, *_ in shown], f"Claimed minus verified: {group.title}", "both", UNIT)
    out.axes("claimed minus verified log p(x), nats")
    out.segment((out.x(0), TOP), (out.x(0), out.height - BOTTOM), "zero")
    for i, (row, gap, error, kind) in enumerate(shown):
        at, y = out.x(gap), row_at(i)
        if error > 0:
            out.segment((out.x(gap - error), y), (out.x(gap + error), y), f"{colour(row.series)} whisker")
        if kind == "lower bound" and out.x(0) - at > 14:
            out.segment((at, y), (out.x(0) - 1, y), f"{colour(row.series)} bound")
        out.mark(at, y, row.series, f"{row.name} claims {gap:+.3f} ± {error:.3f} nats, {kind}")
    text = "What each method claims, from what was verified at the same θ (0); bars are 95%, dashes the gap of a bound."
    return Figure(out.svg(), text)


def _gap(row: FitRow) -> tuple[float, float, Kind] | None:
    """The median seed's claim less what was verified, half of the widest 95% interval, and the weakest kind."""
    gaps, errors, kinds = list[float](), list[float](), list[Kind]()
    for run in row.runs:
        claimed, verified = run["log_evidence"], run["verified_log_evidence"]
        if claimed is None or verified is None or claimed["value"] is None:
            continue
        if verified["value"] is None:
            return None
        gaps.append(claimed["value"] - verified["value"])
        errors.append(math.hypot(claimed["se"] or 0.0, verified["se"] or 0.0))
        kinds.append(claimed["kind"])
    if not gaps:
        return None
    return sorted(gaps)[(len(gaps) - 1) // 2], rank.Z95 * max(errors), max(kinds, key=rank.ORDER.index)


def _khats(group: Group) -> Figure | None:
    """Quantiles over the data of the weights' k-hat."""
    shown = [(r, [x["khat_quantiles"] for x in r.runs if "khat_quantiles" in x]) for r in group.rows]
    shown = [(r, q) for r, q in shown if q]
    if not shown:
        return None
    ends = [v for _, every in shown for q in every for v in (q[0], q[-1])]
    low, high = min(0.0, *ends), max(1.0, *ends)
    out = rows((low - 0.05, min(high, 3.0) + 0.05), [r.short for r, _ in shown], f"k-hat: {group.title}")
    out.axes("k-hat of each data point's weights")
    out.segment((out.x(ENOUGH), TOP), (out.x(ENOUGH), out.height - BOTTOM), "limit")
    for i, (row, every) in enumerate(shown):
        q = [min(sorted(v)[(len(v) - 1) // 2], 3.0) for v in zip(*every, strict=True)]
        y = row_at(i)
        out.segment((out.x(q[0]), y), (out.x(q[-1]), y), f"{colour(row.series)} thin")
        out.segment((out.x(q[1]), y), (out.x(q[-2]), y), f"{colour(row.series)} whisker")
        out.segment((out.x(q[2]), y), (out.x(q[-3]), y), f"{colour(row.series)} box")
        out.mark(out.x(q[3]), y, row.series, f"{row.name}: median {q[3]:.2f}, 95% {q[5]:.2f}, largest {q[6]:.2f}", 4.0)
    text = (
        "k-hat over the data: median, middle half, middle 90%, all. Right of the line (0.7) weights cannot be trusted."
    )
    return Figure(out.svg(), text)


# ---- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A series: x → the values there, one a seed."""

    name: str
    series: int
    points: Mapping[float, Sequence[float]]


def curves(
    found: Sequence[Curve],
    title: str,
    x_label: str,
    y_label: str,
    caption: str,
    x_scale: str = "linear",
    y_scale: str = "linear",
    level: float | None = None,
) -> Figure | None:
    """Lines through the means, with whiskers from the lowest to the highest seed; `level` is a line to compare with."""
    found = [c for c in found if c.points]
    if not found:
        return None
    x = [v for c in found for v in c.points]
    y = [v for c in found for values in c.points.values() for v in values] + ([] if level is None else [level])
    if y_scale == "both" and max(y) - min(y) < 20:
        y_scale = "linear"
    out = chart(x, y, title, x_scale, y_scale)
    out.axes(x_label, y_label)
    if level is not None:
        out.segment((LEFT, out.y(level)), (WIDTH - RIGHT, out.y(level)), "limit")
    for c in found:
        points = [(at, sum(values) / len(values)) for at, values in sorted(c.points.items())]
        out.line(points, f"{colour(c.series)} curve")
        for at, mean in points:
            values = c.points[at]
            if len(values) > 1:
                a, b = (out.x(at), out.y(min(values))), (out.x(at), out.y(max(values)))
                out.segment(a, b, f"{colour(c.series)} whisker")
            out.mark(out.x(at), out.y(mean), c.series, f"{c.name}, {x_label} {at:g}: {mean:.4g}", 4.0)
    return Figure(out.svg(), caption)


def ratios(found: Sequence[tuple[str, float, float, float]], title: str) -> Figure | None:
    """(name, median, lowest, highest) of times over times: left of 1 this package is faster."""
    if not found:
        return None
    ends = [v for _, *values in found for v in values] + [1.0]
    out = rows(limits(ends, log=True, margin=0.12), [name for name, *_ in found], title, "log")
    out.axes("our time over theirs")
    out.segment((out.x(1.0), TOP), (out.x(1.0), out.height - BOTTOM), "zero")
    for i, (name, middle, low, high) in enumerate(found):
        series = 0 if high < 1 else 1 if low > 1 else 2
        out.segment((out.x(low), row_at(i)), (out.x(high), row_at(i)), f"{colour(series)} whisker")
        out.mark(out.x(middle), row_at(i), series, f"{name}: {middle:.3f} ({low:.3f} to {high:.3f})", 4.5)
    return Figure(out.svg(), "Our time over theirs for the same work; left of 1 ours is less. Bars span all rounds.")
