"""The picture of a selection: a criterion against a number of the grid, a line for each of the other options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._select.criteria import SMALLER, SPOKEN, Entry, error_of_difference
from inference._pictures._views.style import QUIET, component_colors, new_figure, plain, styled, turned
from inference._run.request import written

MARKERS = "osD^vP*Xph<>"
MOST_NAMED = 14  # lines that a legend can name


def draw(
    entries: Sequence[Entry], grid: Mapping[str, Sequence[object]], by: str, winners: Sequence[Entry], title: str
) -> Figure:
    """A line for each combination of the other options; fits that cannot win are crossed out, the best are circled."""
    along = _axis_of(grid)
    groups: dict[str, list[Entry]] = {}
    for e in entries:
        rest = [k for k in grid if len(grid[k]) > 1 and k != along]
        groups.setdefault(", ".join(f"{k}={written(e.options[k])}" for k in rest), []).append(e)
    figure = new_figure(6.4, 4.2, title)
    axes = styled(figure.add_subplot())
    values: list[object] = list(grid[along]) if along else [None]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    top = winners[0].values.get(by) if winners else None
    for i, (name, members) in enumerate(groups.items()):
        color, marker = component_colors(len(groups))[i], MARKERS[i % len(MARKERS)]
        shown = [e for e in members if by in e.values]
        places = [_place(e, along, values, numeric) for e in shown]
        sound = [(p, e.values[by].value) for p, e in zip(places, shown, strict=True) if e.stands(by)]
        errors = [
            0.0 if top is None or not e.stands(by) else error_of_difference(e.values[by], top)
            for e in shown
            if e.stands(by)
        ]
        label = plain(name) or None
        axes.plot(
            *zip(*sound, strict=True) if sound else ([], []), color=color, marker=marker, ms=5, lw=1.4, label=label
        )
        if any(errors):
            xs, ys = zip(*sound, strict=True)
            axes.errorbar(xs, ys, yerr=errors, color=color, fmt="none", capsize=2, lw=1)
        for p, e in zip(places, shown, strict=True):
            if not e.stands(by):
                axes.plot([p], [e.values[by].value], color=color, marker="x", ms=7, ls="none")
    for e in winners:
        if by in e.values:
            spot = _place(e, along, values, numeric), e.values[by].value
            axes.plot(*([v] for v in spot), marker="o", ms=13, mfc="none", mec="#222222", mew=1.4, ls="none")
    _labelled(axes, along, values, numeric, by, entries, len(groups))
    return figure


def _axis_of(grid: Mapping[str, Sequence[object]]) -> str | None:
    """The option along which the picture runs: the one with the most numbers, else with the most values."""
    several = [k for k in grid if len(grid[k]) > 1]
    numbers = [k for k in several if all(isinstance(v, int | float) and not isinstance(v, bool) for v in grid[k])]
    return max(numbers or several, key=lambda k: len(grid[k]), default=None)


def _place(e: Entry, along: str | None, values: list[object], numeric: bool) -> float:
    if along is None:
        return 0.0
    value = e.options[along]
    return float(value) if numeric and isinstance(value, int | float) else float(values.index(value))


def _labelled(
    axes: Axes, along: str | None, values: list[object], numeric: bool, by: str, entries: Sequence[Entry], lines: int
) -> None:
    axes.set_xlabel(along or "")
    if not numeric or (len(values) <= 15 and all(isinstance(v, int) for v in values)):
        places = [float(v) if numeric and isinstance(v, int | float) else float(i) for i, v in enumerate(values)]
        axes.set_xticks(places, [plain(written(v)) if v is not None else "" for v in values], **turned(len(values) - 6))
    better = "smaller" if by in SMALLER else "larger"
    axes.set_ylabel(f"{SPOKEN[by]} ({better} is better)")
    if lines > 1 and lines <= MOST_NAMED:
        axes.legend(frameon=False, fontsize=8)
    kinds = {e.values[by].kind for e in entries if by in e.values} - {"exact"}
    crossed = any(by in e.values and not e.stands(by) for e in entries)
    said = (["×: did not converge, or collapsed"] if crossed else []) + ([", ".join(sorted(kinds))] if kinds else [])
    if said:
        axes.text(0.99, 0.01, "; ".join(said), transform=axes.transAxes, ha="right", fontsize=8, color=QUIET)
