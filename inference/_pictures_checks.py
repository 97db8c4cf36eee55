"""Whether a fit can be trusted: what was climbed, by iteration, and the importance weights' k-hat, by datum."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from inference._pictures_scene import Scene
from inference._pictures_style import INK, OKABE_ITO, QUIET, Look, counted, new_figure, plain, styled

_CLIMBED = {
    "log_likelihood": "log p(x; θ), nats",
    "log_joint": "log p(x, globals; θ), nats",
    "elbo_per_datum": "ELBO per datum, nats",
    "bound_per_datum": "importance-weighted bound per datum, nats",
}


def trace(scene: Scene) -> Figure:
    """What was climbed, and its distance to where it ended."""
    name = min((k for k in scene.trace if k != "lr"), key=lambda k: k not in _CLIMBED)
    values, noisy = scene.trace[name], "lr" in scene.trace
    label = _CLIMBED.get(name, plain(name.replace("_", " ")))
    figure = new_figure(8.4, 3.9, scene.title())
    left, right = (styled(axes) for axes in figure.subplots(1, 2))
    step = "epoch" if noisy else "evaluation" if "evaluations" in scene.json["notes"] else "iteration"
    iterations = np.arange(noisy, len(values) + noisy)
    for axes in (left, right):
        axes.set_xlabel(step)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if noisy:
            _rate_drops(axes, iterations, scene.trace["lr"])
    _climb(left, iterations, values, label, noisy)
    if name.endswith("per_datum"):
        _verified(left, scene.json)
    _restarts(left, scene.json["notes"].get("restarts") or [])
    _distance(right, iterations, values, noisy)
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running median over about a twentieth of the values, at least three: it keeps steps, and drops spikes."""
    half = max(1, len(values) // 40)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="edge"), 2 * half + 1)
    return np.median(windows, axis=1)


def _climb(axes: Axes, iterations: np.ndarray, values: np.ndarray, label: str, noisy: bool) -> None:
    raw: Look = {"color": OKABE_ITO[0], "linewidth": 0.8 if noisy else 1.6, "alpha": 0.35 if noisy else 1.0}
    axes.plot(iterations, values, **raw, marker="." if len(values) <= 40 else None)
    if noisy:
        axes.plot(iterations, _smooth(values), color=OKABE_ITO[0], linewidth=1.6)
    axes.set_title(label, loc="left", fontsize=9, color=INK)
    # a first step from far away would flatten all that follows
    low, high = float(values.min()), float(values.max())
    late = float(values[len(values) // 10 :].min())
    if high - low > 20 * (high - late) > 0:
        axes.set_ylim(high - 5 * (high - late), high + 0.4 * (high - late))


def _rate_drops(axes: Axes, iterations: np.ndarray, rates: np.ndarray) -> None:
    """A line wherever the learning rate was lowered."""
    drops = iterations[1:][rates[1:] < rates[:-1]]
    for i, at in enumerate(drops):
        label = "" if i else "learning rate lowered"
        axes.axvline(at, color=OKABE_ITO[4], linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label=label)


def _verified(axes: Axes, document: dict[str, Any]) -> None:
    """The verified evidence per datum: what a bound stays below."""
    verified = document.get("verified_log_evidence") or {}
    if verified.get("per_datum_mean") is not None:
        label = f"verified log p(x) / n ({verified['kind']})"
        axes.axhline(verified["per_datum_mean"], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label=label)
        axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=INK)


def _restarts(axes: Axes, finals: list[float]) -> None:
    """Where each restart ended, as ticks beside the axes."""
    if len(finals) < 2:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, min(finals)), high)
    tick: Look = {"color": OKABE_ITO[1], "transform": axes.get_yaxis_transform(), "clip_on": False}
    for value in finals:
        axes.plot([1.0, 1.035], [value, value], linewidth=1.2, **tick)
    reached = sum(v > max(finals) - 1e-6 * (1 + abs(max(finals))) for v in finals)
    text = f"ticks: where {len(finals)} restarts ended\n{reached} at the best"
    corner: Look = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
    axes.text(0.97, 0.05, text, fontsize=8, color=OKABE_ITO[1], **corner)


def _distance(axes: Axes, iterations: np.ndarray, values: np.ndarray, noisy: bool) -> None:
    """|value − final| on a log axis: a straight line is linear convergence, and its slope the rate."""
    if noisy:
        final = float(values[-max(1, len(values) // 10) :].mean())
        series = [(np.abs(values - final), 0.8, 0.35), (np.abs(_smooth(values) - final), 1.6, 1.0)]
        end = "the mean of the last tenth"
    else:
        final = float(values[-1])
        series = [(np.abs(values[:-1] - final), 1.6, 1.0)]
        end = "the final value"
    axes.set_title(f"distance to {end}, nats", loc="left", fontsize=9, color=INK)
    marker = "." if len(values) <= 40 else None
    for distance, width, alpha in series:
        kept = distance > 4 * np.finfo(float).eps * abs(final)  # below that it is rounding
        at = iterations[: len(distance)][kept]
        axes.plot(at, distance[kept], color=OKABE_ITO[2], linewidth=width, alpha=alpha, marker=marker)
        if kept.any():
            axes.set_yscale("log")


def khat_by_datum(scene: Scene) -> Figure:
    """k-hat and effective sample size, by datum and sorted."""
    khat = scene.stats["khat"]
    ess = scene.stats.get("ess")
    bad = int((~(khat <= 0.7)).sum())
    verdict = f"{counted(bad)} of {counted(len(khat))} data above 0.7: their estimates cannot be trusted"
    verdict = verdict if bad else "no datum above 0.7"
    figure = new_figure(8.4, 5.2 if ess is not None else 3.4, scene.title(verdict))
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
    grid[-1, 0].set_xlabel("datum (row, counting from 0)")
    grid[-1, 1].set_xlabel("share of the data below")
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
