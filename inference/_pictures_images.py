"""Rows of images under each other: originals, reconstructions, what was filled in."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference._pictures_scene import Scene
from inference._pictures_style import FAINT, INK, UNSEEN, taller_figure


def few_images(n: int, labels: np.ndarray | None) -> np.ndarray:
    """Ten of n rows: one of each of ten classes where there are so many, else evenly spaced."""
    if labels is not None and 2 <= len(np.unique(labels)) <= 10:
        first = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        turns = [rows[i] for i in range(10) for rows in first if i < len(rows)]
        return np.array(sorted(turns[:10], key=lambda row: (labels[row], row)))
    return np.linspace(0, n - 1, min(n, 10)).round().astype(int)


def image_rows(scene: Scene, title: str, named: list[tuple[str, np.ndarray]]) -> Figure:
    """A figure of rows of images [images, D] under each other."""
    shape = scene.image_shape
    assert shape is not None
    figure = taller_figure(8.8, (0.8 * shape[0] / shape[1] + 0.06) * len(named) + 0.1, title)
    draw_image_rows(figure, scene, named)
    return figure


def draw_image_rows(figure: Any, scene: Scene, named: list[tuple[str, np.ndarray]]) -> None:
    """Rows of images on one grey scale, the first row's; tinted where unobserved."""
    shape, across = scene.image_shape, len(named[0][1])
    assert shape is not None
    cmap = colormaps["gray_r"].with_extremes(bad=UNSEEN)
    low, high = float(np.nanmin(named[0][1])), float(np.nanmax(named[0][1]))
    grid: Any = figure.subplots(len(named), across, squeeze=False)
    for (name, images), line in zip(named, grid, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.reshape(shape), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            framed(axes)
        line[0].set_ylabel(name, fontsize=9, color=INK)


def framed(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
