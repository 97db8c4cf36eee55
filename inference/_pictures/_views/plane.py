"""Latents in a plane or on a line: points coloured by label, and how sure they are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import (
    INK,
    OKABE_ITO,
    QUIET,
    Look,
    bold,
    color_bar,
    component_colors,
    new_figure,
    plain,
    styled,
)

MOST_CLASSES = 20  # labels with a colour each


def points(figure: Figure, axes: Axes, at: np.ndarray, labels: np.ndarray | None) -> None:
    n = len(at)
    look: Look = {"s": float(np.clip(3500 / n, 4.5, 26)), "linewidths": 0, "rasterized": n > 2000, "zorder": 2}
    look["alpha"] = float(np.clip((1500 / n) ** 0.5, 0.25, 0.85))
    if labels is None:
        axes.scatter(at[:, 0], at[:, 1], color=OKABE_ITO[0], **look)
        return
    classes, which = np.unique(labels, return_inverse=True)
    if len(classes) > MOST_CLASSES:
        color_bar(figure, axes.scatter(at[:, 0], at[:, 1], c=labels, cmap="viridis", **look), axes, pad=0.02).set_label(
            "label"
        )
        return
    palette, order = component_colors(len(classes)), np.random.default_rng(0).permutation(n)
    axes.scatter(at[order, 0], at[order, 1], c=palette[which[order]], **look)
    if len(classes) > 7:  # more than can be told apart by colour alone
        for k, name in enumerate(classes):
            x, y = np.median(at[which == k], 0).tolist()
            axes.text(x, y, plain(name, 20), ha="center", va="center", **bold(palette[k]))
    _legend(figure, classes, palette)


def _legend(figure: Figure, classes: np.ndarray, palette: np.ndarray) -> None:
    dot: Look = {"marker": "o", "linestyle": "", "markersize": 5}
    handles = [Line2D([], [], color=c, label=plain(k, 20), **dot) for k, c in zip(classes, palette, strict=True)]
    look: Look = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handletextpad": 0.1, "columnspacing": 1.0}
    figure.legend(
        handles=[Line2D([], [], alpha=0, label="label:"), *handles], loc="outside lower left", ncols=11, **look
    )


def spreads(axes: Axes, means: np.ndarray, covariances: np.ndarray) -> None:
    """Ellipses of one posterior standard deviation around a few data."""
    for mean, covariance in zip(means, covariances, strict=True):
        values, vectors = np.linalg.eigh(covariance)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        long, short = (2 * np.sqrt(np.maximum(values[::-1], 0.0))).tolist()
        look: Look = {"facecolor": "#00000010", "edgecolor": "#999999", "linewidth": 0.6, "zorder": 3}
        axes.add_patch(Ellipse(tuple(mean), long, short, angle=angle, **look))
    text = f"ellipses: posterior standard deviation, of {len(means)} rows"
    axes.text(0.0, 1.01, text, transform=axes.transAxes, fontsize=8, color=QUIET)


def one_latent(
    scene: Scene, at: np.ndarray, sd: np.ndarray, labels: np.ndarray | None, title: str, name: str
) -> Figure:
    """A histogram of the only latent, and the posterior's width."""
    figure = new_figure(7.2, 4.2, scene.title(title))
    axes = styled(figure.add_subplot())
    classes = np.unique(labels) if labels is not None else np.zeros(0)
    bins = np.histogram_bin_edges(at, int(np.clip(1.5 * math.sqrt(len(at)), 10, 60))).tolist()
    if 2 <= len(classes) <= MOST_CLASSES:
        palette = component_colors(len(classes))
        groups = [at[labels == k] for k in classes]
        axes.hist(groups, bins, stacked=True, color=list(palette), edgecolor="white", linewidth=0.5)
        _legend(figure, classes, palette)
    else:
        axes.hist(at, bins, color=OKABE_ITO[0], edgecolor="white", linewidth=0.5)
    top = 1.08 * axes.get_ylim()[1]
    center = float(np.median(at))
    axes.errorbar([center], [top], xerr=[float(np.median(sd))], color=QUIET, capsize=3, linewidth=1, marker="o", ms=3)
    width = "  posterior standard deviation" + (", the median" if np.ptp(sd) > 1e-9 else "")
    axes.text(center + float(np.median(sd)), top, width, va="center", fontsize=8, color=QUIET)
    axes.set(xlabel=name, ylabel="data")
    return figure
