"""Whether a fit can be trusted: what was climbed, by iteration, and the importance weights' k-hat, by datum."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from inference._pictures._images import grey_range, montage, show
from inference._pictures._scene import Scene
from inference._pictures._style import (
    INK,
    OKABE_ITO,
    QUIET,
    Look,
    counted,
    new_figure,
    plain,
    styled,
    taller_figure,
)

MOST_IMAGES = 10  # with the worst k-hat, and as many with the best

_CLIMBED = {
    "log_likelihood": "log p(x; θ), nats",
    "log_joint": "log p(x, globals; θ), nats",
    "elbo_per_datum": "ELBO per datum, nats",
    "bound_per_datum": "importance-weighted bound per datum, nats",
    "log_likelihood_per_datum": "log p(x; θ) per datum, nats",
    "log_evidence_per_datum": "estimated log p(x; θ) per datum, nats",
}
_HELD_OUT = "_held_out"


def trace(scene: Scene) -> Figure:
    """What was climbed, and its distance to where it ended; with rows held out, what it came to on them, and the end of it."""
    name = min((k for k in scene.trace if k != "lr" and not k.endswith(_HELD_OUT)), key=lambda k: k not in _CLIMBED)
    watched = scene.trace.get(name + _HELD_OUT)
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
    if watched is not None:
        _both(left, right, iterations, values, watched, label)
    else:
        _climb(left, iterations, values, label, noisy)
    for axes in (left,) if watched is None else (left, right):
        if name.endswith("per_datum"):
            _verified(axes, scene.json, legend=axes is left)
    _restarts(left, scene.json["notes"].get("restarts") or [])
    if watched is None:
        _distance(right, iterations, values, noisy)
    return figure


def _both(left: Axes, right: Axes, iterations: np.ndarray, values: np.ndarray, watched: np.ndarray, label: str) -> None:
    """Training rows and rows held out, all epochs and the later ones, with the best epoch: its parameters were kept."""
    best, late = len(watched) - 1 - int(np.argmax(watched[::-1])), len(values) // 3
    marker = "." if len(values) <= 40 else None
    for axes, first in ((left, 0), (right, late)):
        for name, series, color in (("training rows", values, OKABE_ITO[0]), ("held out", watched, OKABE_ITO[1])):
            axes.plot(
                iterations[first:], series[first:], color=color, linewidth=1.4, marker=marker, markersize=4, label=name
            )
        if best >= first:
            look: Look = {"marker": "o", "markersize": 6, "markerfacecolor": "white", "linestyle": ""}
            text = f"best on the rows held out (epoch {iterations[best]}): kept"
            axes.plot(iterations[best], watched[best], color=OKABE_ITO[1], zorder=4, label=text, **look)
    left.set_title(label, loc="left", fontsize=9, color=INK)
    right.set_title(f"from epoch {iterations[late]}", loc="left", fontsize=9, color=INK)
    left.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=INK)


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
    """A line wherever the learning rate was lowered after it had stood: one that falls all the time gets none."""
    stood = np.concatenate([[True], rates[1:-1] == rates[:-2]]) if len(rates) > 1 else np.zeros(0, dtype=bool)
    drops = iterations[1:][(rates[1:] < rates[:-1]) & stood]
    drops = drops if (rates[1:] == rates[:-1]).any() else drops[:0]
    for i, at in enumerate(drops):
        label = "" if i else "learning rate lowered"
        axes.axvline(at, color=OKABE_ITO[4], linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label=label)


def _verified(axes: Axes, document: dict[str, Any], legend: bool) -> None:
    """The verified evidence per datum: what a bound stays below."""
    verified = document.get("verified_log_evidence") or {}
    if verified.get("per_datum_mean") is not None:
        label = f"verified log p(x) / n ({verified['kind']})"
        axes.axhline(verified["per_datum_mean"], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label=label)
        if legend:
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


def worst_khat(scene: Scene) -> Figure:
    """The images with the largest k-hat, and those with the smallest; below each what the latents keep of it."""
    khat, shape = scene.stats["khat"], scene.image_shape
    assert shape is not None
    order = np.argsort(np.where(np.isnan(khat), np.inf, khat), kind="stable")
    count = min(MOST_IMAGES, len(khat) // 2)
    x = scene.x.reshape(len(scene.x), -1)
    grey = grey_range(x[np.concatenate([order[:count], order[-count:]])])
    what = f"the images with the worst and the best k-hat of their importance weights{scene.tint}"
    figure = taller_figure(8.8, 0.0, scene.title(what))
    parts, blocks = [], (("worst", order[::-1][:count].copy()), ("best", order[:count]))
    for name, rows in blocks:
        lines = [x[rows]]
        made = scene.decoder.reconstructed(rows) if scene.decodes_images and scene.decoder is not None else None
        lines += [] if made is None else [scene.tinted(made)]
        parts.append((name, rows, montage(np.concatenate(lines), shape, count, grey)))
    lines_each = (parts[0][2].shape[0] - 1) // (shape[0] + 1)
    tall = 2 * (lines_each * 0.8 * shape[0] / shape[1] + 0.38)
    figure.set_size_inches(8.8, figure.get_figheight() + tall)
    for axes, (name, rows, picture) in zip(figure.subplots(2, 1), parts, strict=True):
        show(axes, picture)
        axes.set_anchor("W")
        at = np.arange(count) * (shape[1] + 1) + (shape[1] + 1) / 2
        axes.set_xticks(at, [f"row {row}\n{_khat_text(khat[row])}" for row in rows.tolist()], fontsize=8, color=INK)
        axes.tick_params(labelbottom=False, labeltop=True, length=0)
        labels = [name, "mean of x"][:lines_each]
        axes.set_yticks((np.arange(lines_each) + 0.5) * (shape[0] + 1), labels, fontsize=9, color=INK)
    return figure


def _khat_text(khat: float) -> str:
    return f"{khat:.2f}".replace("-", "−") if np.isfinite(khat) else "∞"
