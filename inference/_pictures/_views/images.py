"""Images in rows and blocks: originals, reconstructions, what was filled in."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure, SubFigure

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import FAINT, INK, UNSEEN, taller_figure


def few_images(n: int, labels: np.ndarray | None, count: int = 10) -> np.ndarray:
    """`count` of n rows: as many of each class where there are at most ten, else evenly spaced."""
    if labels is not None and 2 <= len(np.unique(labels)) <= 10:
        first = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        turns = [rows[i] for i in range(count) for rows in first if i < len(rows)]
        return np.array(sorted(turns[:count], key=lambda row: (labels[row], row)))
    return np.linspace(0, n - 1, min(n, count)).round().astype(int)


def grey_range(scene: Scene, x: np.ndarray) -> tuple[float, float]:
    """White and black of the data's images x: numbers are ink, or the light of photographs."""
    seen = x[~np.isnan(x)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    low, high = (0.0, 1.0) if low >= 0 and 0.5 < high <= 1 else (low, high if high > low else low + 1.0)
    return (high, low) if scene.of_light else (low, high)


def greys(scene: Scene) -> Colormap:
    """From the least number of the data's images to the largest."""
    return colormaps["gray" if scene.of_light else "gray_r"].with_extremes(bad=UNSEEN)


def montage(images: np.ndarray, shape: tuple[int, int], across: int, grey: tuple[float, float]) -> np.ndarray:
    """Images [k, D] as one, sRGB, in rows of `across`, a pixel of frame around each; tinted where unobserved."""
    (h, w), white, black = shape, *grey
    down = -(-len(images) // across)
    cmap = colormaps["gray_r"].with_extremes(bad=UNSEEN)
    out = np.ones((down * (h + 1) + 1, across * (w + 1) + 1, 3))
    for k, image in enumerate(images):
        top, left = (k // across) * (h + 1), (k % across) * (w + 1)
        out[top : top + h + 2, left : left + w + 2] = to_rgb(FAINT)
        out[top + 1 : top + h + 1, left + 1 : left + w + 1] = cmap((image.reshape(shape) - white) / (black - white))[
            ..., :3
        ]
    return out


def show(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    """An sRGB picture, pixel by pixel, without axes."""
    axes.imshow(picture, interpolation="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=9, color=INK)


def image_rows(scene: Scene, title: str, named: list[tuple[str, np.ndarray]]) -> Figure:
    """A figure of rows of images [images, D] under each other."""
    shape = scene.image_shape
    assert shape is not None
    figure = taller_figure(8.8, (0.8 * shape[0] / shape[1] + 0.06) * len(named) + 0.1, title)
    draw_image_rows(figure, scene, named)
    return figure


def draw_image_rows(figure: Figure | SubFigure, scene: Scene, named: list[tuple[str, np.ndarray]]) -> None:
    """Rows of images on one grey scale, the first row's; tinted where unobserved."""
    shape, across = scene.image_shape, len(named[0][1])
    assert shape is not None
    cmap = greys(scene)
    low, high = float(np.nanmin(named[0][1])), float(np.nanmax(named[0][1]))
    grid = figure.subplots(len(named), across, squeeze=False)
    for (name, images), line in zip(named, grid, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.reshape(shape), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            framed(axes)
        line[0].set_ylabel(name, fontsize=9, color=INK)


def framed(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
