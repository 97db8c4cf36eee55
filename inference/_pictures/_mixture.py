"""The data in one, two or a few columns, coloured by p(z | x), with the density and the components."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import MaxNLocator

from inference._pictures._components import MOST_COMPONENTS, left_out
from inference._pictures._density import density_of, shade_regions
from inference._pictures._labels import MOST_LABELS, label_curves, label_means
from inference._pictures._oracle import Oracle
from inference._pictures._scene import Scene
from inference._pictures._style import FAINT, INK, QUIET, Look, blend, component_colors, new_figure, styled

MOST_SCREENED = 200  # columns among which the best pair is sought


def clusters(scene: Scene) -> Figure:
    """Two columns: the data by responsibility, the density's regions, the components."""
    oracle = scene.oracle
    assert oracle is not None
    pair = _pair(scene)
    more = "" if scene.x.shape[1] == 2 else f"the two of {scene.x.shape[1]} columns in which the components differ most"
    figure = new_figure(7.2, 5.4, scene.title("; ".join(t for t in (more, left_out(oracle)) if t)))
    axes, palette = styled(figure.add_subplot()), component_colors(oracle.A)
    regions = shade_regions(axes, density_of(oracle, pair, 180 if scene.x.shape[1] <= 50 else 110))
    _scatter(axes, oracle, pair, palette)
    _ellipses(axes, oracle, pair, palette)
    _limits(axes, oracle, pair)
    label_means(axes, oracle, pair, palette, (6.3, 4.3))
    axes.set(xlabel=scene.name(pair[0]), ylabel=scene.name(pair[1]))
    if regions:
        _legend(figure, oracle, pair, regions)
    return figure


def pairs(scene: Scene) -> Figure:
    """Every pair of a few columns below the diagonal, each column's own density on it."""
    oracle, columns = scene.oracle, scene.columns
    assert oracle is not None
    count, palette = len(columns), component_colors(oracle.A)
    figure = new_figure(2.1 * count, 2.0 * count + 0.6, scene.title(left_out(oracle)))
    grid = figure.subplots(count, count, squeeze=False)
    regions: list[Patch] = []
    for i, j in np.ndindex(count, count):
        axes: Any = grid[i, j]
        pair = (columns[j], columns[i])
        styled(axes)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if j > i:
            axes.set_axis_off()
            continue
        if i == j:
            _bars(axes, oracle, columns[i], palette)
        else:
            regions = shade_regions(axes, density_of(oracle, pair, 64), 0.0) or regions
            _scatter(axes, oracle, pair, palette, 0.4)
            _ellipses(axes, oracle, pair, palette, 0.9)
        _limits(axes, oracle, pair if i != j else pair[:1])
        axes.set_xlabel(scene.name(columns[j]) if i == count - 1 else "")
        axes.set_ylabel(scene.name(columns[i]) if j == 0 and i > 0 else "")
        axes.tick_params(labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
    _key(grid[0, -1], oracle, palette)
    if regions:
        _legend(figure, oracle, (columns[0], columns[1]), regions)
    return figure


def histogram(scene: Scene) -> Figure:
    """One column: its histogram, the density, and each component's weighted share of it."""
    oracle, column = scene.oracle, scene.columns[0]
    assert oracle is not None
    figure = new_figure(7.2, 4.4, scene.title(left_out(oracle)))
    axes, palette = styled(figure.add_subplot()), component_colors(oracle.A)
    whole = _bars(axes, oracle, column, palette)
    known = ~np.isnan(oracle.x[:, column])
    _ticks(axes, oracle.x[known, column], blend(oracle.responsibilities[known], palette), 0, 0.03)
    _limits(axes, oracle, [column])
    axes.set(xlabel=scene.name(column), ylabel="probability" if whole else "density")
    key = [Line2D([], [], color=INK, linewidth=1.2, label="p(x)"), Patch(color=FAINT, label="data")]
    axes.legend(handles=key, loc="center left", frameon=False, fontsize=8, labelcolor=QUIET, handlelength=1.2)
    if oracle.A > 1:
        label_curves(axes, oracle, column, palette)
    return figure


def _pair(scene: Scene) -> tuple[int, int]:
    oracle, usable = scene.oracle, scene.columns
    assert oracle is not None
    if len(usable) == 2:
        return usable[0], usable[1]
    few = slice(None, None, max(1, len(oracle.x) // 5000))
    i, j = telling_pair(oracle.x[few][:, usable], oracle.responsibilities[few])
    return usable[i], usable[j]


def telling_pair(x: np.ndarray, responsibilities: np.ndarray) -> tuple[int, int]:
    """The two columns of x [n, D] in which the components differ most.

    That is the least Wilks's Λ = det W / det T, where T = W + B are the total, within and between scatter of the two:
    the product, over their two directions, of the share of the variance that the components leave unexplained.
    """
    seen = ~np.isnan(x)
    center = np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    residual = np.where(seen, x - center, 0.0)
    spread = np.sqrt(np.square(residual).sum(0) / np.maximum(seen.sum(0), 1))
    residual = residual / np.where(spread > 0, spread, 1.0)
    weight = responsibilities.T @ seen  # [A, D]
    means = responsibilities.T @ residual / np.maximum(weight, 1e-300)
    share = weight / np.maximum(weight.sum(0), 1e-300)
    one = np.where(spread > 0, (share * means**2).sum(0), -1.0)  # a constant column tells nothing
    best = np.sort(np.argsort(-one, kind="stable")[:MOST_SCREENED])
    seen, residual, means, share = seen[:, best].astype(float), residual[:, best], means[:, best], share[:, best]
    total = residual.T @ residual / np.maximum(seen.T @ seen, 1.0)
    np.fill_diagonal(total, 1.0)
    between = (np.sqrt(share) * means).T @ (np.sqrt(share) * means)
    within = total - between

    def log_det(m: np.ndarray) -> np.ndarray:  # of each pair's 2 × 2 block; missing entries can make one indefinite
        d = np.diagonal(m)
        return np.log(np.maximum(np.outer(d, d) - m**2, 1e-9))

    score = log_det(total) - log_det(within)
    score[(one[best] < 0)] = -1.0
    score[:, (one[best] < 0)] = -1.0
    score[np.tril_indices(len(best))] = -np.inf
    i, j = np.unravel_index(int(score.argmax()), score.shape)
    return int(best[i]), int(best[j])


def _scatter(axes: Axes, oracle: Oracle, pair: tuple[int, int], palette: np.ndarray, scale: float = 1.0) -> None:
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
        _ticks(axes, x[alone, d], shade[alone], d, 0.028 * scale**0.5)


def _gathered(points: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [m, 2], their colours, and how many data each stands for: counts often fall on the same spot."""
    spots, inverse, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if len(spots) > 0.6 * len(points):
        return points, shade, np.ones(len(points))
    tint = np.zeros((len(spots), 3))
    np.add.at(tint, inverse.ravel(), shade)
    return spots, tint / times[:, None], times.astype(float)


def _ticks(axes: Axes, at: np.ndarray, shade: np.ndarray, dimension: int, length: float) -> None:
    """Ticks of a length in shares of the axes, inside the axis of one dimension."""
    if not len(at):
        return
    near = np.stack([at, np.zeros_like(at)], 1)
    far = np.stack([at, np.full_like(at, length)], 1)
    segments = np.stack([near, far], 1)[:, :, [0, 1] if dimension == 0 else [1, 0]]
    transform = axes.get_xaxis_transform() if dimension == 0 else axes.get_yaxis_transform()
    lines = LineCollection(list(segments), colors=shade, transform=transform, linewidths=0.9, zorder=2, alpha=0.9)
    axes.add_collection(lines, autolim=False)


def _ellipses(axes: Axes, oracle: Oracle, pair: tuple[int, int], palette: np.ndarray, width: float = 1.6) -> None:
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


def _limits(axes: Axes, oracle: Oracle, pair: Sequence[int]) -> None:
    """Room for the data and, within reason, for the components."""
    setters: list[Callable[..., Any]] = [axes.set_xlim, axes.set_ylim]
    for column, set_limits in zip(pair, setters, strict=False):
        low, high = np.nanmin(oracle.x[:, column]), np.nanmax(oracle.x[:, column])
        span = (high - low) or max(1.0, abs(low))
        lows, highs = [low], [high]
        covariance = oracle.covariance([column])
        if covariance is not None:
            reach = 2.5 * np.sqrt(covariance[:, 0, 0])
            lows, highs = [*lows, *(oracle.means[:, column] - reach)], [*highs, *(oracle.means[:, column] + reach)]
        set_limits(max(min(lows), low - 0.25 * span) - 0.06 * span, min(max(highs), high + 0.25 * span) + 0.06 * span)


def _bars(axes: Axes, oracle: Oracle, column: int, palette: np.ndarray) -> bool:
    """A histogram with p(x) and its components; returns whether the column holds whole numbers."""
    values = oracle.x[:, column]
    values = values[~np.isnan(values)]
    density = density_of(oracle, [column], 400)
    whole = oracle.is_whole(column)
    axes.hist(
        values, _edges(values, whole).tolist(), density=True, color=FAINT, edgecolor="white", linewidth=0.5, zorder=0
    )
    if density is not None:
        marker = "." if whole else None
        for a in oracle.order[:MOST_COMPONENTS] if oracle.A > 1 else []:
            height = np.exp(density.joint[:, a])
            axes.plot(density.axes[0], height, color=palette[a], linewidth=1.4, marker=marker, zorder=2)
            axes.fill_between(density.axes[0], height, color=palette[a], alpha=0.12, linewidth=0, zorder=1)
        axes.plot(density.axes[0], np.exp(density.log_density), color=INK, linewidth=1.2, marker=marker, zorder=3)
    axes.set_ylim(bottom=0)
    return whole


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Edges of about √n bars, of up to 60 for counts; of whole numbers, each bar holds as many as the next."""
    bars = 60 if whole else int(np.clip(math.sqrt(len(values)), 8, 60))
    if np.ptp(values) < 2 or (values != np.round(values)).any():
        return np.histogram_bin_edges(values, bars)
    width = max(1, round(np.ptp(values) / bars))
    return np.arange(values.min() - 0.5, values.max() + width, width)


def _legend(figure: Figure, oracle: Oracle, pair: tuple[int, int], regions: list[Patch]) -> None:
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


def _key(axes: Axes, oracle: Oracle, palette: np.ndarray) -> None:
    """Which colour is which component, and its weight."""
    if oracle.A > 1:
        handles = [Patch(color=palette[a], label=oracle.caption(a)) for a in oracle.order[:MOST_LABELS]]
        axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9, handlelength=1.0, labelcolor=INK)
