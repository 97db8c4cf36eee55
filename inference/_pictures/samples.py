"""Data that the program simulates from its prior, beside those that it was fitted to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from inference._pictures._views.decoder import Decoder
from inference._pictures._views.images import grey_range, montage, show
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import (
    INK,
    OKABE_ITO,
    QUIET,
    Look,
    color_bar,
    counted,
    is_binary,
    new_figure,
    number_axis,
    percent,
    side_by_side,
    styled,
    taller_figure,
    wrapped,
)

ACROSS = 6  # images in a row of a block
MOST_PAIRED = 5  # columns of a grid of pairs
MOST_POINTS = 1000  # simulated, and as many of the data
HEAT_ROWS = 60
MOST_CORRELATED = 200  # columns
COLORS = {"observed": OKABE_ITO[0], "simulated": OKABE_ITO[1]}


def subject(run: Scene) -> Decoder | np.ndarray | None:
    """The program, where it has continuous latents and simulates; without such, the images that it simulates."""
    if run.decoder is not None:
        return run.decoder if run.decoder.simulated(2) is not None else None
    return simulated_images(run) if run.image_shape is not None else None


def draw(run: Scene, subject: Decoder | np.ndarray) -> Figure:
    if isinstance(subject, np.ndarray):
        return _beside(run, subject)
    return _images(run, subject) if run.decodes_images else _table(run, subject)


def _table(run: Scene, decoder: Decoder) -> Figure:
    n = min(len(decoder.x), MOST_POINTS)
    found = decoder.simulated(n)
    assert found is not None
    rows = np.sort(np.random.default_rng(0).choice(len(decoder.x), n, replace=False))
    kept = [k for k, c in enumerate(decoder.columns) if not np.isnan(decoder.x[rows, c]).all()]
    observed, simulated = decoder.x[rows][:, decoder.columns[kept]], found[0][:, kept]
    names = [run.name(c) for c in decoder.columns[kept].tolist()]
    return (_pairs if len(kept) <= MOST_PAIRED else _heat)(run, names, observed, simulated)


def _images(run: Scene, decoder: Decoder) -> Figure:
    """Blocks of images: data, means of x given draws of the latents, and draws of x at the same."""
    count = ACROSS**2
    found = decoder.simulated(count)
    assert found is not None
    drawn, means = found
    rows = np.random.default_rng(0).permutation(len(decoder.x))[:count]
    names = decoder.names
    blocks = [("data", decoder.x[rows])]
    blocks += [] if means is None else [(f"mean of x given {names} drawn from the prior", means)]
    blocks += [("x drawn from the prior" if means is None else f"x drawn at the same {names}", drawn)]
    return _blocks(run, blocks)


def _blocks(run: Scene, blocks: list[tuple[str, np.ndarray]]) -> Figure:
    """Blocks of images side by side, the first of them data."""
    shape, (_, data) = run.image_shape, blocks[0]
    assert shape is not None
    title = run.title(f"what the program simulates from its prior, beside the data{run.tint}")
    figure = taller_figure(max(6.4, 8.8 / 3 * len(blocks)), 2.62 * shape[0] / shape[1] + 0.2, title)
    for axes, (name, images) in zip(figure.subplots(1, len(blocks)), blocks, strict=True):
        show(axes, montage(run.tinted(images), shape, ACROSS, grey_range(run, data)), name)
        axes.set_anchor("N")
    return figure


def simulated_images(run: Scene) -> np.ndarray | None:
    """Images [count, D] that the program simulates; None where it does not."""
    task = run.task
    if (
        task is None
        or task.structure.global_latents
        or math.prod(task.structure.observed[0].event_shape) != run.x[0].size
    ):
        return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            trace: Any = task.program.trace(None, size=ACROSS**2)
        except Exception:  # whatever a user's program makes of x=None
            return None
        return trace.nodes[task.structure.observed[0].name]["value"].reshape(ACROSS**2, -1).numpy()


def _beside(run: Scene, drawn: np.ndarray) -> Figure:
    """Data, and images that a program simulates which has no continuous latents."""
    x = run.x.reshape(len(run.x), -1)
    rows = np.random.default_rng(0).permutation(len(x))[: ACROSS**2]
    return _blocks(run, [("data", x[rows]), ("x that the program simulates", drawn)])


# ---- tables ----------------------------------------------------------------------------------------------


def _pairs(run: Scene, names: list[str], observed: np.ndarray, simulated: np.ndarray) -> Figure:
    """Every pair of a few columns: data and simulated data over each other, each column's histograms on the diagonal."""
    count = observed.shape[1]
    limits = [_limits(observed[:, d]) for d in range(count)]
    low, high = np.array(limits).T
    outside = float(((simulated < low) | (simulated > high)).any(1).mean())
    note = f"; {percent(outside)} of the simulated rows lie outside the axes" if outside else ""
    title = run.title(f"data, and as many rows that the program simulates from its prior{note}")
    size = 2.0 if count > 2 else 2.8
    figure = new_figure(max(5.6, size * count), max(4.4, size * count) + 0.6, title)
    grid: Any = figure.subplots(count, count, squeeze=False)
    both = {"observed": _apart(observed, observed), "simulated": _apart(simulated, observed)}
    for i, j in np.ndindex(count, count):
        axes = styled(grid[i, j])
        number_axis(axes.xaxis, observed[:, j])
        number_axis(axes.yaxis, observed[:, i])
        if j > i:
            axes.set_axis_off()
            continue
        axes.set_xlim(*limits[j])
        if i == j:
            _histograms(axes, observed[:, i], simulated[:, i], limits[i])
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        else:
            for name, values in both.items():
                look: Look = {"s": float(np.clip(1800 / len(values), 2, 12)), "linewidths": 0, "color": COLORS[name]}
                axes.scatter(values[:, j], values[:, i], alpha=0.5, rasterized=True, **look)
            axes.set_ylim(*limits[i])
        axes.set_xlabel(wrapped(names[j], 0.8 * size) if i == count - 1 else "")
        axes.set_ylabel(wrapped(names[i], 0.8 * size) if j == 0 and i > 0 else "")
        axes.tick_params(labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
    dot: Look = {"marker": "o", "linestyle": "", "markersize": 5}
    handles = [Line2D([], [], color=c, label=k, **dot) for k, c in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=8, labelcolor=QUIET)
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The range of the data and a third of it on either side."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = (high - low) or max(1.0, abs(low))
    return low - span / 3, high + span / 3


def _apart(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Values [n, D], whole numbers set a little apart: else many points are one."""
    whole = np.array([bool((c[~np.isnan(c)] % 1 == 0).all()) for c in observed.T])
    return values + np.random.default_rng(0).uniform(-0.25, 0.25, values.shape) * whole


def _histograms(axes: Axes, observed: np.ndarray, simulated: np.ndarray, limits: tuple[float, float]) -> None:
    bins = np.linspace(*limits, int(np.clip(1.5 * len(observed) ** 0.5, 12, 40)) + 1).tolist()
    if is_binary(observed):
        bins = [-0.25, 0.25, 0.75, 1.25]
    for name, values in (("observed", observed), ("simulated", simulated)):
        kept = values[~np.isnan(values)]
        weights = np.full(len(kept), 1 / max(1, len(kept)))
        axes.hist(kept, bins, weights=weights, histtype="step", color=COLORS[name], linewidth=1.2)


def _heat(run: Scene, names: list[str], observed: np.ndarray, simulated: np.ndarray) -> Figure:
    """Rows of data and of simulated data as heat maps, and the correlations of the columns in the one against the other."""
    D = observed.shape[1]
    center, spread = np.nanmean(observed, 0), np.nanstd(observed, 0)
    spread = np.where(spread > 0, spread, 1.0)
    both = {"observed": (observed - center) / spread, "simulated": (simulated - center) / spread}
    shown = min(HEAT_ROWS, len(observed))
    note = f"{counted(shown)} rows each, sorted along the data's first principal axis"
    title = run.title(f"data, and rows that the program simulates from its prior; {note}")
    figure = new_figure(9.6, 4.4 + 0.3 * (D <= 40), title)
    grid = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    axis = np.linalg.svd(np.nan_to_num(both["observed"]), full_matrices=False)[2][0]
    image: AxesImage | None = None
    for axes, (name, values) in zip(grid, both.items(), strict=False):
        few = values[np.linspace(0, len(values) - 1, shown).round().astype(int)]
        few = few[np.argsort(np.nan_to_num(few) @ axis, kind="stable")]
        look: Look = {"aspect": "auto", "interpolation": "nearest", "cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5}
        image = styled(axes).imshow(few, **look)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        if D <= 40:
            labels, how = side_by_side(names, 2.6)
            axes.set_xticks(range(D), labels, **how)
            axes.tick_params(axis="x", labelsize=7 if D > 12 else 8)
        else:
            axes.set_xlabel(f"{D} columns, in their order")
    bar = color_bar(figure, image, grid[:2].tolist(), location="bottom", shrink=0.5, aspect=24, pad=0.02, extend="both")
    bar.set_label("in standard deviations from the column's mean in the data", fontsize=8, color=INK)
    _correlations(styled(grid[2]), both["observed"], both["simulated"])
    return figure


def _correlations(axes: Axes, observed: np.ndarray, simulated: np.ndarray) -> None:
    """Of each pair of columns, the correlation in the simulated data against that in the data."""
    few = np.linspace(0, observed.shape[1] - 1, min(observed.shape[1], MOST_CORRELATED)).round().astype(int)
    i, j = np.triu_indices(len(few), 1)
    pair = [correlations(values[:, few])[i, j] for values in (observed, simulated)]
    look: Look = {"s": float(np.clip(900 / len(i), 1.5, 12)), "linewidths": 0, "color": OKABE_ITO[2]}
    axes.scatter(*pair, alpha=float(np.clip((400 / len(i)) ** 0.5, 0.15, 0.8)), rasterized=True, **look)
    axes.plot([-1, 1], [-1, 1], color=QUIET, linewidth=0.8, zorder=0)
    reach = min(1.0, 1.1 * float(np.nanmax(np.abs(pair), initial=0.1)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="in the data", ylabel="in the simulated")
    axes.set_title("correlations of pairs of columns", loc="left", fontsize=9, color=INK)
    axes.set_box_aspect(1)


def correlations(x: np.ndarray) -> np.ndarray:
    """Correlations [D, D] of the columns of x [n, D], over the rows in which both are observed; NaN where one is constant."""
    seen = ~np.isnan(x)
    filled, w = np.where(seen, x, 0.0), seen.astype(float)
    n = np.maximum(w.T @ w, 1.0)
    first, second = filled.T @ w / n, np.square(filled).T @ w / n  # of the row's column where the other is observed
    covariance = filled.T @ filled / n - first * first.T
    variance = second - first**2
    with np.errstate(divide="ignore", invalid="ignore"):
        out = covariance / np.sqrt(variance * variance.T)
    return np.where((variance > 1e-12) & (variance.T > 1e-12), out, np.nan)
