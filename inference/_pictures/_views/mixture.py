"""A mixture over one column or two: the data by responsibility, the components, and their key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch

from inference._pictures._views.density import density_of
from inference._pictures._views.labels import MOST_LABELS
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import FAINT, INK, QUIET, Look, blend, counted, number_axis

MOST_COMPONENTS = 40  # ellipses, curves or profile rows in one picture
FEW_COLUMNS = 5  # of which every pair is drawn


def clustered(run: Scene) -> Oracle | None:
    """The program of a table's mixture, where clusters show: of two binary columns there are four points to see."""
    oracle, columns = run.oracle, run.columns
    if oracle is None or not run.is_table or run.image_shape is not None or not columns:
        return None
    return oracle if len(columns) == 1 or not all(map(oracle.is_binary, columns)) else None


def left_out(oracle: Oracle) -> str:
    """What was left out of a picture."""
    parts = []
    if len(oracle.rows) < len(oracle.task.x):
        parts.append(f"{counted(len(oracle.rows))} of {counted(len(oracle.task.x))} rows drawn")
    if oracle.A > MOST_COMPONENTS:
        parts.append(f"the {MOST_COMPONENTS} heaviest of {oracle.A} components drawn")
    return "; ".join(parts)


def scatter(axes: Axes, oracle: Oracle, pair: tuple[int, int], palette: np.ndarray, scale: float = 1.0) -> None:
    """The data in two columns, coloured by responsibility; those seen in one of them only as ticks along its axis."""
    x = oracle.x[:, list(pair)]
    shade = blend(oracle.responsibilities, palette)
    seen = ~np.isnan(x)
    both = seen.all(1)
    n = max(1, int(both.sum()))
    size = scale * float(np.clip(2600 / n, 2.0, 26.0))
    alpha = float(np.clip((1500 / n) ** 0.5, 0.15, 0.85))
    points, tint, times = _gathered(x[both], shade[both])
    order = np.random.default_rng(0).permutation(len(points))  # so that no component lies over another
    look: Look = {"alpha": alpha, "linewidths": 0, "rasterized": len(points) > 2000, "zorder": 2}
    axes.scatter(points[order, 0], points[order, 1], s=size * times[order], c=tint[order], **look)
    for d in (0, 1):
        alone = seen[:, d] & ~seen[:, 1 - d]
        ticks(axes, x[alone, d], shade[alone], d, 0.028 * scale**0.5)


def _gathered(points: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [m, 2], their colours, and how many data each stands for: counts often fall on the same spot."""
    spots, inverse, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if len(spots) > 0.6 * len(points):
        return points, shade, np.ones(len(points))
    tint = np.zeros((len(spots), 3))
    np.add.at(tint, inverse.ravel(), shade)
    return spots, tint / times[:, None], times.astype(float)


def ticks(axes: Axes, at: np.ndarray, shade: np.ndarray, dimension: int, length: float) -> None:
    """Ticks of a length in shares of the axes, inside the axis of one dimension."""
    if not len(at):
        return
    near = np.stack([at, np.zeros_like(at)], 1)
    far = np.stack([at, np.full_like(at, length)], 1)
    segments = np.stack([near, far], 1)[:, :, [0, 1] if dimension == 0 else [1, 0]]
    transform = axes.get_xaxis_transform() if dimension == 0 else axes.get_yaxis_transform()
    lines = LineCollection(list(segments), colors=shade, transform=transform, linewidths=0.9, zorder=2, alpha=0.9)
    axes.add_collection(lines, autolim=False)


def ellipses(axes: Axes, oracle: Oracle, pair: tuple[int, int], palette: np.ndarray, width: float = 1.6) -> None:
    """Each component's mean and, where it is Gaussian, its ellipses of one and two standard deviations."""
    covariance = oracle.covariance(pair)
    cross: Look = {"markersize": 5.5 * width, "markeredgecolor": "white", "markeredgewidth": 0.55 * width, "zorder": 4}
    for a in oracle.order[:MOST_COMPONENTS]:
        at = oracle.at(a, pair)
        if covariance is not None:
            values, vectors = np.linalg.eigh(covariance[a])
            angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
            for k in (1, 2):
                long, short = (2 * k * np.sqrt(np.maximum(values[::-1], 0.0))).tolist()
                line: Look = {"edgecolor": palette[a], "facecolor": "none", "linewidth": width / k**0.5, "zorder": 3}
                axes.add_patch(Ellipse(at, long, short, angle=angle, **line))
        axes.plot(*at, "P", color=palette[a], **cross)


def limits(axes: Axes, oracle: Oracle, pair: Sequence[int]) -> None:
    """Room for the data and, within reason, for the components."""
    setters: list[Callable[..., object]] = [axes.set_xlim, axes.set_ylim]
    for column, set_limits in zip(pair, setters, strict=False):
        low, high = np.nanmin(oracle.x[:, column]), np.nanmax(oracle.x[:, column])
        span = (high - low) or max(1.0, abs(low))
        lows, highs = [low], [high]
        covariance = oracle.covariance([column])
        if covariance is not None:
            reach = 2.5 * np.sqrt(covariance[:, 0, 0])
            lows, highs = [*lows, *(oracle.means[:, column] - reach)], [*highs, *(oracle.means[:, column] + reach)]
        set_limits(max(min(lows), low - 0.25 * span) - 0.06 * span, min(max(highs), high + 0.25 * span) + 0.06 * span)


def bars(axes: Axes, oracle: Oracle, column: int, palette: np.ndarray) -> bool:
    """A histogram with p(x) and its components; returns whether the column holds whole numbers."""
    values = oracle.x[:, column]
    values = values[~np.isnan(values)]
    density = density_of(oracle, [column], 400)
    whole = oracle.is_whole(column)
    look: Look = {"color": FAINT, "edgecolor": "white", "linewidth": 0.5, "zorder": 0}
    axes.hist(values, _edges(values, whole).tolist(), density=True, rwidth=0.8 if np.ptp(values) < 3 else None, **look)
    if density is not None:
        line: Look = {"marker": "." if whole else None}
        line |= {"marker": "o", "linestyle": ""} if len(density.axes[0]) == 2 else {}  # nothing lies between 0 and 1
        for a in oracle.order[:MOST_COMPONENTS] if oracle.A > 1 else []:
            height = np.exp(density.joint[:, a])
            axes.plot(density.axes[0], height, color=palette[a], linewidth=1.4, zorder=2, **line)
            if "linestyle" not in line:
                axes.fill_between(density.axes[0], height, color=palette[a], alpha=0.12, linewidth=0, zorder=1)
        axes.plot(density.axes[0], np.exp(density.log_density), color=INK, linewidth=1.2, zorder=3, **line)
    axes.set_ylim(bottom=0)
    if whole:
        number_axis(axes.xaxis, values, 9)
    return whole


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Edges of about √n bars, of up to 60 for counts; of whole numbers, each bar holds as many as the next."""
    bars = 60 if whole else int(np.clip(math.sqrt(len(values)), 8, 60))
    if (not whole and np.ptp(values) < 2) or (values != np.round(values)).any():
        return np.histogram_bin_edges(values, bars)
    width = max(1, round(np.ptp(values) / bars))
    return np.arange(values.min() - 0.5, values.max() + width, width)


def legend(figure: Figure, oracle: Oracle, pair: tuple[int, int], regions: list[Patch]) -> None:
    gaussian = oracle.covariance(pair) is not None
    title = ("Ellipses: 1 and 2 standard deviations.  " if gaussian else "") + "Shaded: the smallest regions that hold"
    figure.legend(
        handles=[Patch(alpha=0, label=title), *regions],
        loc="outside lower right",
        ncols=1 + len(regions),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.5,
        labelcolor=QUIET,
    )


def key(axes: Axes, oracle: Oracle, palette: np.ndarray) -> None:
    """Which colour is which component, and its weight."""
    if oracle.A > 1:
        handles = [Patch(color=palette[a], label=oracle.caption(a)) for a in oracle.order[:MOST_LABELS]]
        axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9, handlelength=1.0, labelcolor=INK)
