"""Each component's mean, as an image or as a row of a heat map."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.images import greys
from inference._pictures._views.mixture import FEW_COLUMNS, MOST_COMPONENTS, left_out
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import (
    FAINT,
    INK,
    Look,
    color_bar,
    new_figure,
    percent,
    side_by_side,
    styled,
    three_digits,
)


def subject(run: Scene) -> Oracle | None:
    """Images, or several components of more columns than their clusters show."""
    oracle = run.oracle
    if oracle is None or run.image_shape is not None:
        return oracle
    table = oracle.A > 1 and run.is_table and len(run.columns) > 1
    return oracle if table and (run.x[0].size > FEW_COLUMNS or not oracle.gaussian) else None


def draw(run: Scene, oracle: Oracle) -> Figure:
    shape = run.image_shape
    return _profiles(run, oracle) if shape is None else _images(run, oracle, shape)


def _images(run: Scene, oracle: Oracle, shape: tuple[int, int]) -> Figure:
    """Each component's mean image, the heaviest first."""
    shown = oracle.order[:100]
    down = -(-len(shown) // min(len(shown), 12, math.ceil(math.sqrt(2.2 * len(shown)))))
    across = -(-len(shown) // down)
    note = "mean images, the heaviest first" if oracle.A > 1 else "mean image"
    note += f"; {len(shown)} of {oracle.A} components" if len(shown) < oracle.A else ""
    note += "; tinted: never observed" if len(run.columns) < run.x[0].size else ""
    figure = new_figure(7.2, (6.3 / max(3, across) * shape[0] / shape[1] + 0.25) * down + 0.8, run.title(note))
    means = oracle.means[shown]
    unseen = np.setdiff1d(np.arange(means.shape[1]), run.columns)
    means[:, unseen] = np.nan  # nothing was learned about them
    cmap = greys(run)
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    low, high = (0.0, 1.0) if low >= 0 and 0.5 < high <= 1 else (low, high)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, a, mean in zip(grid, shown, means, strict=False):
        image = axes.imshow(mean.reshape(shape), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=FAINT, linewidth=0.8, transform=axes.transAxes, clip_on=False)
        if oracle.A > 1:
            weight = percent(oracle.weights[a])
            axes.set_title(weight if across > 8 else f"{oracle.label(a)}, {weight}", fontsize=8, color=INK, pad=3)
    color_bar(figure, image, grid.tolist(), shrink=0.6, aspect=18, pad=0.02)
    return figure


def _profiles(run: Scene, oracle: Oracle) -> Figure:
    """Components × columns: the means, relative to each column's own mean and spread unless all are shares."""
    columns = run.columns
    shown = oracle.order[:MOST_COMPONENTS]
    means, x = oracle.means[shown][:, columns], oracle.x[:, columns]
    binary = all(map(oracle.is_binary, columns))
    center, spread = np.nanmean(x, 0), np.nanstd(x, 0)
    field = means if binary else (means - center) / np.where(spread > 0, spread, 1.0)
    reach = float(np.nanquantile(np.abs(field), 0.99)) or 1.0
    scale: Look = (
        {"cmap": "Blues", "vmin": 0, "vmax": 1} if binary else {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    )
    each = 1.2 if len(columns) <= 6 and max(len(run.name(c)) for c in columns) > 12 else 0.62  # inches
    width = float(np.clip(2.2 + each * len(columns), 6.4, 9.6))
    figure = new_figure(
        width, 1.9 + 0.34 * len(shown) + (0.5 if len(columns) <= 40 else 0), run.title(left_out(oracle))
    )
    axes = styled(figure.add_subplot())
    image = axes.imshow(field, aspect="auto", interpolation="nearest", **scale)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks(range(len(shown)), [oracle.caption(a) for a in shown])
    if len(columns) <= 40:
        names, look = side_by_side([run.name(c) for c in columns], width - 2.4)
        axes.set_xticks(range(len(columns)), names, **look)
    else:
        axes.set_xlabel(f"{len(columns)} columns, in their order")
    if field.size <= 150 and width / len(columns) > 0.45:
        for (i, j), value in np.ndenumerate(field):
            dark = value > 0.6 if binary else abs(value) > 0.65 * reach
            axes.text(
                j, i, three_digits(means[i, j]), ha="center", va="center", fontsize=8, color="white" if dark else INK
            )
    bar = color_bar(figure, image, axes, pad=0.015, extend="neither" if binary else "both")
    bar.set_label(
        "probability of 1" if binary else "mean, in standard deviations\nfrom the column's", fontsize=8, color=INK
    )
    return figure
