"""The posterior means of the two leading factors of a linear program, coloured by label."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference._pictures._views.factors import Factors
from inference._pictures._views.plane import one_latent, points, spreads
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, Look, bold, new_figure, percent, plain, styled

MOST_ARROWED = 15  # columns in a biplot


def subject(run: Scene) -> Factors | None:
    """Factors that are the same for all rows."""
    return run.factors if run.factors is not None and run.factors.A == 1 else None


def draw(run: Scene, factors: Factors) -> Figure:
    mean, covariance = factors.scores()
    note, labels = run.drawn(factors.rows), run.labels_of(factors.rows)
    block = factors.loadings(0)
    if factors.L == 1:
        name = f"factor 1 ({percent(block.shares[0])} of the variance)"
        title = f"posterior means of the only factor{note}"
        return one_latent(run, mean[:, 0], np.sqrt(covariance[:, 0, 0]), labels, title, name)
    figure = new_figure(7.2, 6.0, run.title(f"posterior means on principal axes (B is known up to a rotation){note}"))
    axes = styled(figure.add_subplot())
    axes.set_aspect("equal", adjustable="datalim")
    points(figure, axes, mean[:, :2], labels)
    few = np.linspace(0, len(mean) - 1, min(len(mean), 12)).round().astype(int)
    spreads(axes, mean[few, :2], covariance[few, :2, :2])
    if len(factors.columns) <= MOST_ARROWED and run.image_shape is None:
        _arrows(axes, block.correlations[:, :2], [run.name(c) for c in factors.columns], mean[:, :2])
    axes.set_xlabel(f"factor 1 ({percent(block.shares[0])} of the variance)")
    axes.set_ylabel(f"factor 2 ({percent(block.shares[1])})")
    return figure


def _arrows(axes: Axes, loads: np.ndarray, names: list[str], points: np.ndarray) -> None:
    """The columns that the two factors move most, as arrows in their plane."""
    length = np.hypot(*loads.T)
    strongest = [k for k in np.argsort(-length)[:8] if length[k] > 0.3 * length.max()]
    factor = 0.8 * float(np.quantile(np.hypot(*points.T), 0.98)) / length.max()
    span = float(np.ptp(points, axis=0).max())
    taken: list[tuple[float, float, float]] = []  # left, right and height of each label
    for k in strongest:
        tip = factor * loads[k]
        arrow: Look = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "alpha": 0.8}
        axes.annotate("", tip, (0, 0), arrowprops=arrow, zorder=4)
        text = plain(names[k], 24)
        (x, y), width = 1.06 * tip, 0.02 * span * len(text)
        left = x if tip[0] > 0 else x - width
        for step in sorted(np.arange(-12, 13), key=abs):  # as near to the tip as other labels let it
            y = 1.06 * tip[1] + 0.015 * step * span
            if not any(left < u and v < left + width and abs(y - h) < 0.04 * span for v, u, h in taken):
                break
        taken.append((left, left + width, y))
        axes.text(
            x, y, text, ha="left" if tip[0] > 0 else "right", va="center", **bold(np.full(3, 0.2)) | {"fontsize": 8}
        )
    axes.update_datalim([(u, h) for v, w, h in taken for u in (v, w)])
    axes.autoscale_view()
