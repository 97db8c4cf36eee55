"""The data in one column or two, coloured by p(z | x), with the density and the components."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from inference._pictures._views.density import density_of, shade_regions
from inference._pictures._views.labels import label_curves, label_means
from inference._pictures._views.mixture import bars, clustered, ellipses, left_out, legend, limits, scatter, ticks
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import FAINT, INK, QUIET, Look, blend, component_colors, new_figure, styled

MOST_SCREENED = 200  # columns among which the best pair is sought


def subject(run: Scene) -> Oracle | None:
    return clustered(run)


def draw(run: Scene, oracle: Oracle) -> Figure:
    return _histogram(run, oracle) if len(run.columns) == 1 else _plane(run, oracle)


def _plane(run: Scene, oracle: Oracle) -> Figure:
    """Two columns: the data by responsibility, the density's regions, the components."""
    pair = _pair(run, oracle)
    more = "" if run.x.shape[1] == 2 else f"the two of {run.x.shape[1]} columns in which the components differ most"
    figure = new_figure(7.2, 5.4, run.title("; ".join(t for t in (more, left_out(oracle)) if t)))
    axes, palette = styled(figure.add_subplot()), component_colors(oracle.A)
    regions = shade_regions(axes, density_of(oracle, pair, 180 if run.x.shape[1] <= 50 else 110))
    scatter(axes, oracle, pair, palette)
    ellipses(axes, oracle, pair, palette)
    limits(axes, oracle, pair)
    label_means(axes, oracle, pair, palette, (6.3, 4.3))
    axes.set(xlabel=run.name(pair[0]), ylabel=run.name(pair[1]))
    if regions:
        legend(figure, oracle, pair, regions)
    return figure


def _histogram(run: Scene, oracle: Oracle) -> Figure:
    """One column: its histogram, the density, and each component's weighted share of it."""
    column = run.columns[0]
    figure = new_figure(7.2, 4.4, run.title(left_out(oracle)))
    axes, palette = styled(figure.add_subplot()), component_colors(oracle.A)
    whole = bars(axes, oracle, column, palette)
    known = ~np.isnan(oracle.x[:, column])
    ticks(axes, oracle.x[known, column], blend(oracle.responsibilities[known], palette), 0, 0.03)
    limits(axes, oracle, [column])
    if whole:  # room for whole bars
        axes.set_xlim(np.nanmin(oracle.x[:, column]) - 0.6, np.nanmax(oracle.x[:, column]) + 0.6)
    axes.set(xlabel=run.name(column), ylabel="probability" if whole else "density")
    points: Look = {"marker": "o", "linestyle": ""} if oracle.is_binary(column) else {}
    key = [Line2D([], [], color=INK, linewidth=1.2, label="p(x)", **points), Patch(color=FAINT, label="data")]
    look: Look = {"frameon": False, "fontsize": 8, "labelcolor": QUIET, "handlelength": 1.2}
    figure.legend(handles=key, loc="outside lower right", ncols=2, **look)
    if oracle.A > 1:
        label_curves(axes, oracle, column, palette)
    return figure


def _pair(run: Scene, oracle: Oracle) -> tuple[int, int]:
    usable = run.columns
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
