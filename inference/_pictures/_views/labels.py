"""Labels of components, each where it covers the least."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from inference._pictures._views.oracle import Oracle
from inference._pictures._views.style import Look, bold

Inches = tuple[float, float]

MOST_LABELS = 12  # labels of components in one picture


def label_means(axes: Axes, oracle: Oracle, pair: tuple[int, int], palette: np.ndarray, inches: Inches) -> None:
    """ "z = 0, 64 %" beside each mean, each where it covers the fewest data, means and other labels.

    `inches`: about how large the axes are; good enough to tell what is in the way without drawing first.
    """
    if oracle.A == 1:
        return
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    columns = list(pair)

    def on_page(values: np.ndarray) -> np.ndarray:  # in points
        return (values - low) / (high - low) * np.array(inches) * 72

    shown = [a for a in oracle.order[:MOST_LABELS] if np.isfinite(oracle.means[a, columns]).all()]
    means = on_page(oracle.means[shown][:, columns])
    edges = on_page(low + 2.5 * oracle.spread(pair)[shown])  # from the mean to beyond the outer ellipse
    points = on_page(oracle.x[:, columns][:2000])
    points = points[np.isfinite(points).all(1)]
    boxes: list[np.ndarray] = []
    for a, mean, edge in zip(shown, means, edges, strict=True):
        text = oracle.caption(a)
        half = np.array([0.29 * 9 * len(text), 6.5])
        offsets = _around(edge, half)
        candidates = [np.concatenate([mean + o - half, mean + o + half]) for o in offsets]
        costs = [
            _cost(box, boxes, means, points, inches) + 0.02 * math.hypot(*offset) + (2 if i >= 12 else 0)
            for i, (box, offset) in enumerate(zip(candidates, offsets, strict=True))
        ]
        best = int(np.argmin(costs))
        boxes.append(candidates[best])
        place: Look = {"xytext": offsets[best], "textcoords": "offset points", "ha": "center", "va": "center"}
        far = oracle.A > 4 and math.hypot(*offsets[best]) > 75  # points: it takes a line to see whose label it is
        line: Look = {"arrowstyle": "-", "color": palette[a], "linewidth": 0.7, "alpha": 0.7, "shrinkB": 4}
        axes.annotate(text, oracle.at(a, pair), arrowprops=line if far else None, **place, **bold(palette[a]))


def _around(edge: np.ndarray, half: np.ndarray) -> list[tuple[float, float]]:
    """Where a label of half size `half` may go from a mean: 12 places beyond the ellipse's `edge`, then 4 inside it."""
    (x, y), width = edge, half[0]
    places = [(0.0, y + 9), (0.0, -y - 9), (x + width + 5, 0.0), (-x - width - 5, 0.0)]
    places += [(k * x, t * (y + 9)) for k in (0.5, -0.5, 1.0, -1.0) for t in (1, -1)]
    return [*places, (0.0, 15.0), (0.0, -15.0), (width + 9, 0.0), (-width - 9, 0.0)]


def _cost(box: np.ndarray, boxes: list[np.ndarray], means: np.ndarray, points: np.ndarray, inches: Inches) -> float:
    """How much a label's box [left, bottom, right, top] would cover, in points of the page."""

    def inside(p: np.ndarray) -> int:
        return int(((p > box[:2]) & (p < box[2:])).all(1).sum())

    size = np.array(inches) * 72
    outside = float(np.maximum(-box[:2], 0).sum() + np.maximum(box[2:] - size, 0).sum())
    clash = sum(bool((box[:2] < b[2:]).all() and (b[:2] < box[2:]).all()) for b in boxes)
    return inside(points) * min(1.0, 300 / max(1, len(points))) + 15 * inside(means) + 40 * clash + 5 * outside


def label_curves(axes: Axes, oracle: Oracle, column: int, palette: np.ndarray) -> None:
    """ "z = 0, 64 %" above the curves at each component's mean, in as many lines as keep them apart."""
    (left, right), top = axes.get_xlim(), axes.get_ylim()[1]
    shown = sorted(oracle.order[:MOST_LABELS], key=lambda a: oracle.means[a, column])
    ends: list[float] = []  # where the last label of each line ends
    for a in shown:
        text, at = oracle.caption(a), oracle.means[a, column]
        half = 0.0065 * len(text) * (right - left)
        line = next((i for i, end in enumerate(ends) if at - half > end), len(ends))
        ends[line : line + 1] = [at + half]
        height = (1.04 + 0.075 * line) * top
        axes.plot([at, at], [0, height - 0.01 * top], color=palette[a], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.text(at, height, text, ha="center", va="bottom", **bold(palette[a]))
    axes.set_ylim(0, (1.06 + 0.075 * len(ends)) * top)
