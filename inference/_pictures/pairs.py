"""Every pair of a few columns below the diagonal, each column's own density on it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from inference._pictures._views.density import density_of, shade_regions
from inference._pictures._views.mixture import (
    FEW_COLUMNS,
    bars,
    clustered,
    ellipses,
    key,
    left_out,
    legend,
    limits,
    scatter,
)
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import component_colors, new_figure, styled


def subject(run: Scene) -> Oracle | None:
    oracle = clustered(run)
    return oracle if oracle is not None and 3 <= run.x.shape[1] <= FEW_COLUMNS else None


def draw(run: Scene, oracle: Oracle) -> Figure:
    columns = run.columns
    count, palette = len(columns), component_colors(oracle.A)
    figure = new_figure(2.1 * count, 2.0 * count + 0.6, run.title(left_out(oracle)))
    grid = figure.subplots(count, count, squeeze=False)
    regions: list[Patch] = []
    for i, j in np.ndindex(count, count):
        axes: Axes = grid.flat[i * count + j]
        pair = (columns[j], columns[i])
        styled(axes)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if j > i:
            axes.set_axis_off()
            continue
        if i == j:
            bars(axes, oracle, columns[i], palette)
        else:
            regions = shade_regions(axes, density_of(oracle, pair, 64), 0.0) or regions
            scatter(axes, oracle, pair, palette, 0.4)
            ellipses(axes, oracle, pair, palette, 0.9)
        limits(axes, oracle, pair if i != j else pair[:1])
        axes.set_xlabel(run.name(columns[j]) if i == count - 1 else "")
        axes.set_ylabel(run.name(columns[i]) if j == 0 and i > 0 else "")
        axes.tick_params(labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
    key(grid[0, -1], oracle, palette)
    if regions:
        legend(figure, oracle, (columns[0], columns[1]), regions)
    return figure
