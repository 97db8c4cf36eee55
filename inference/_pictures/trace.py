"""The objective by iteration, and its distance from the final value."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, OKABE_ITO, Look, new_figure, plain, styled

_CLIMBED = {
    "log_likelihood": "log p(x; θ), nats",
    "log_joint": "log p(x, globals; θ), nats",
    "complete_log_joint": "log p(x, z; θ) at draws of z, nats",
    "classification_log_likelihood": "log p(x, a; θ) at the most probable a, nats",
    "elbo_per_datum": "ELBO per row, nats",
    "bound_per_datum": "importance-weighted bound per row, nats",
    "log_likelihood_per_datum": "log p(x; θ) per row, nats",
    "log_evidence_per_datum": "estimated log p(x; θ) per row, nats",
}
_HELD_OUT = "_held_out"


def subject(run: Scene) -> str | None:
    """The name of what was climbed."""
    if not any(len(values) for name, values in run.trace.items() if name != "lr"):
        return None
    return min((k for k in run.trace if k != "lr" and not k.endswith(_HELD_OUT)), key=lambda k: k not in _CLIMBED)


def draw(run: Scene, name: str) -> Figure:
    """With rows held out, what it came to on them, and the end of it."""
    watched = run.trace.get(name + _HELD_OUT)
    values, noisy = run.trace[name], "lr" in run.trace
    label = _CLIMBED.get(name, plain(name.replace("_", " ")))
    figure = new_figure(8.4, 3.9, run.title())
    left, right = (styled(axes) for axes in figure.subplots(1, 2))
    step = "epoch" if noisy else "evaluation" if "evaluations" in run.json["notes"] else "iteration"
    iterations = np.arange(noisy, len(values) + noisy)
    for axes in (left, right):
        axes.set_xlabel(step)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if noisy:
            _rate_drops(axes, iterations, run.trace["lr"])
    if watched is not None:
        _both(left, right, iterations, values, watched, label)
    else:
        _climb(left, iterations, values, label, noisy)
    for axes in (left,) if watched is None else (left, right):
        if name.endswith("per_datum"):
            _verified(axes, run.json, legend=axes is left)
    _restarts(left, run.json["notes"].get("restarts") or [])
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
    """The verified evidence per row: what a bound stays below."""
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
