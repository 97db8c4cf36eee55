"""k-hat and effective sample size of the importance weights, by row and sorted."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, Look, counted, new_figure, styled


def subject(run: Scene) -> np.ndarray | None:
    return run.stats.get("khat")


def draw(run: Scene, khat: np.ndarray) -> Figure:
    ess = run.stats.get("ess")
    bad = int((~(khat <= 0.7)).sum())
    verdict = f"{counted(bad)} of {counted(len(khat))} rows above 0.7: their estimates cannot be trusted"
    verdict = verdict if bad else "no row above 0.7"
    figure = new_figure(8.4, 5.2 if ess is not None else 3.4, run.title(verdict))
    rows = 1 if ess is None else 2
    grid = figure.subplots(rows, 2, squeeze=False, sharex="col", sharey="row", width_ratios=(3, 1))
    for axes in grid.ravel():
        styled(axes)
    top = float(np.clip(np.nanmax(khat[np.isfinite(khat)], initial=0.9), 0.9, 3.0)) * 1.08
    shown = np.minimum(np.where(np.isnan(khat), np.inf, khat), top)
    shown = np.maximum(shown, -0.5)
    shade = np.array(OKABE_ITO)[np.select([khat <= 0.5, khat <= 0.7], [0, 4], 1)]
    _by_datum(grid[0, 0], grid[0, 1], shown, shade)
    for axes in grid[0]:
        for level in (0.5, 0.7):
            axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    below = " (lower ones at −0.5)" if (khat < -0.5).any() else ""
    grid[0, 0].set(ylabel=f"k-hat{below}", ylim=(min(-0.05, float(shown.min()) - 0.05), top + 0.06))
    _label_worst(grid[0, 0], shown, khat)
    if ess is not None:
        _by_datum(grid[1, 0], grid[1, 1], np.maximum(ess, 0.5), shade)
        grid[1, 0].set(ylabel="effective sample size", yscale="log")
        grid[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        grid[1, 0].yaxis.set_minor_locator(NullLocator())
    grid[-1, 0].set_xlabel("row (counting from 0)")
    grid[-1, 1].set_xlabel("share of the rows below")
    return figure


def _by_datum(left: Axes, right: Axes, values: np.ndarray, shade: np.ndarray) -> None:
    n = len(values)
    points: Look = {"s": float(np.clip(3000 / n, 2, 16)), "linewidths": 0, "rasterized": n > 2000}
    left.scatter(np.arange(n), values, c=shade, alpha=float(np.clip((2000 / n) ** 0.5, 0.2, 0.85)), **points)
    right.step((np.arange(n) + 1) / n, np.sort(values), where="pre", color=INK, linewidth=1.3)
    right.set_xlim(-0.02, 1.02)


def _label_worst(axes: Axes, shown: np.ndarray, khat: np.ndarray) -> None:
    """The rows of the largest k-hat, five at most, by their index; what lies beyond the axis with its value."""
    worst = np.argsort(-np.where(np.isnan(khat), np.inf, khat), kind="stable")[:5]
    taken: list[tuple[float, float]] = []
    span = np.diff(axes.get_ylim())[0]
    for row in worst[~(khat[worst] <= 0.5)].tolist():
        at = (row / len(khat), (shown[row] - axes.get_ylim()[0]) / span)
        if any(abs(at[0] - u) < 0.07 and abs(at[1] - v) < 0.06 for u, v in taken):
            continue
        taken.append(at)
        value = f"{khat[row]:.1f}" if np.isfinite(khat[row]) else "∞"
        text = f"{row}" if khat[row] <= shown[row] else f"{row} ({value})"
        axes.annotate(text, (row, shown[row]), (4, 2), textcoords="offset points", fontsize=8, color=INK)
