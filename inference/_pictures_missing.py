"""Which entries were unobserved."""

from __future__ import annotations

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from inference._pictures_scene import Scene
from inference._pictures_style import (
    INK,
    OKABE_ITO,
    QUIET,
    Look,
    color_bar,
    counted,
    new_figure,
    percent,
    styled,
    turned,
)


def missing_entries(scene: Scene) -> Figure:
    """Rows × columns, the rows sorted by which entries they miss, with how many rows and how much of each column."""
    missing = np.isnan(scene.x.reshape(len(scene.x), -1))
    order, bands = _bands(missing)
    n, D = missing.shape
    share = (
        f"{percent(missing.mean())} of {counted(n)} × {counted(D)} entries unobserved, {counted(len(bands))} pattern"
    )
    figure = new_figure(7.2, 5.0, scene.title(share + "s" * (len(bands) != 1)))
    image = scene.image_shape
    panels = figure.subplots(1, 2, width_ratios=(1.3, 1)) if image else [figure.add_subplot()]
    axes = styled(panels[0])
    few = order[np.linspace(0, n - 1, min(n, 2000)).round().astype(int)]
    two = colors.ListedColormap(["#CFE0EC", OKABE_ITO[1]])
    look: Look = {"cmap": two, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(missing[few], extent=(-0.5, D - 0.5, n, 0), **look)
    axes.set_ylabel("rows, sorted by pattern")
    if D <= 30:
        for d in range(D - 1):
            axes.axvline(d + 0.5, color="white", linewidth=1.5)
        names = [f"{scene.name(d)}\n{percent(missing[:, d].mean())}" for d in range(D)]
        axes.set_xticks(range(D), names, **turned(D))
    else:
        axes.set_xlabel(f"{D} columns, in their order")
    _count_bands(axes, bands, n, D - 0.5)
    if image:
        _missing_map(figure, panels[1], missing.mean(0).reshape(image))
    handles = [Patch(color=two(i), label=w) for i, w in enumerate(("observed", "unobserved"))]
    look = {"frameon": False, "fontsize": 8, "labelcolor": QUIET, "handlelength": 1.0}
    figure.legend(handles=handles, loc="outside lower right", ncols=2, **look)
    return figure


def _count_bands(axes: Axes, bands: list[tuple[int, int]], n: int, right: float) -> None:
    """Set the patterns apart, and write beside the common ones how many rows they have."""
    if len(bands) == n > 1:
        return  # every row has a pattern of its own
    for start, stop in bands:
        if start > 0 and len(bands) <= 60:
            axes.axhline(start, color="white", linewidth=0.8)
        if stop - start >= 0.035 * n:
            text = f"  {counted(stop - start)} row" + "s" * (stop - start > 1)
            axes.text(right, (start + stop) / 2, text, va="center", fontsize=8, color=INK, clip_on=False)


def _bands(missing: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The rows [n] in order of their pattern, the commonest first, and where each pattern starts and stops in it."""
    packed = np.packbits(missing, axis=1)
    _, first, inverse, counts = np.unique(packed, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    amount = np.bincount(inverse, missing.sum(1))
    place = np.empty(len(counts), dtype=int)
    ranked = np.lexsort((first, amount / counts, -counts))
    place[ranked] = np.arange(len(counts))
    stops = np.cumsum(counts[ranked])
    bands = list(zip((stops - counts[ranked]).tolist(), stops.tolist(), strict=True))
    return np.argsort(place[inverse], kind="stable"), bands


def _missing_map(figure: Figure, axes: Axes, share: np.ndarray) -> None:
    """The share of the images that miss each pixel."""
    image = axes.imshow(share, cmap="Oranges", vmin=0, vmax=min(1.0, 2 * float(share.max())), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("share unobserved, by pixel", fontsize=9, color=INK)
    color_bar(figure, image, axes, shrink=0.6, pad=0.02)
