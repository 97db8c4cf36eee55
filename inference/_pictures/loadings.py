"""The loadings, rotated: the share of the variance that each factor explains, and what is left as noise."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from inference._pictures._views.factors import Factors, Loadings
from inference._pictures._views.images import framed
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, OKABE_ITO, Look, color_bar, percent, plain, styled, taller_figure

MOST_FACTORS = 24  # of loadings in one picture
MOST_BLOCKS = 4  # joint values of the discrete latents whose loadings are drawn
MOST_NAMED = 40  # columns with their names beside them
TURNED = "factors on principal axes (B is known up to a rotation), strongest signal first"


def subject(run: Scene) -> Factors | None:
    return run.factors


def draw(run: Scene, factors: Factors) -> Figure:
    shape = run.image_shape
    if shape is not None and len(factors.columns) == math.prod(shape):
        return _images(run, factors, shape)
    return _table(run, factors)


def _blocks(factors: Factors) -> list[tuple[str, Loadings]]:
    """The loadings of the heaviest joint values of the discrete latents, each with its name."""
    if factors.A == 1:
        return [("", factors.loadings(0))]
    heaviest = np.argsort(-factors.weights, kind="stable")[:MOST_BLOCKS]
    return [(f"{plain(factors.exact.label(a))}, {percent(factors.weights[a])}", factors.loadings(a)) for a in heaviest]


def _table(run: Scene, factors: Factors) -> Figure:
    blocks, columns = _blocks(factors), factors.columns
    D, L = len(columns), min(factors.L, MOST_FACTORS)
    named = D <= MOST_NAMED
    cell = 0.72 if L <= 6 else 0.42
    widths = [max(1.0, cell * L), 1.7] * len(blocks) + [1.6 + 0.16 * L] * (len(blocks) == 1)
    height = float(np.clip(1.5 + 0.3 * D, 3.6, 9.0))
    figure = taller_figure(max(6.4, 2.0 + sum(widths)), height, run.title(TURNED))
    grid = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    image: AxesImage | None = None
    for i, (name, block) in enumerate(blocks):
        heat, left = _style_pair(grid[2 * i], grid[2 * i + 1])
        image = _heat(heat, block.correlations[:, :L], height / D > 0.2 and L <= 8)
        heat.set_title(name or "correlation with\nthe factor", loc="left", fontsize=9, color=INK)
        _noise_bars(left, block)
        left.set_ylim(heat.get_ylim())
        heat.set_yticks(range(D) if named else [], [run.name(c) if i == 0 else "" for c in columns] if named else [])
        if not named and i == 0:
            heat.set_ylabel(f"{D} columns, in their order")
    if len(blocks) == 1:
        _scree(styled(grid[-1]), blocks[0][1])
    color_bar(figure, image, grid[0], location="bottom", shrink=0.9, aspect=18, pad=0.02)
    return figure


def _style_pair(heat: Axes, bars: Axes) -> tuple[Axes, Axes]:
    styled(heat).spines[["left", "bottom"]].set_visible(False)
    styled(bars).tick_params(left=False, labelleft=False)
    return heat, bars


def _heat(axes: Axes, field: np.ndarray, written: bool) -> AxesImage:
    """Correlations [D, L] from −1 to 1, in colours and, where there is room, in numbers."""
    image = axes.imshow(field, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-1, vmax=1)
    L = field.shape[1]
    axes.set_xticks(
        range(L) if L <= 12 else range(0, L, 5), [str(k + 1) for k in (range(L) if L <= 12 else range(0, L, 5))]
    )
    axes.set_xlabel("factor")
    for (i, j), value in np.ndenumerate(field) if written else ():
        text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.65 else INK)
    return image


def _noise_bars(axes: Axes, block: Loadings) -> None:
    axes.barh(range(len(block.noise)), block.noise_shares, color="#BBBBBB", height=0.7)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_title("noise, of the\ncolumn's variance", loc="left", fontsize=9, color=INK)


def _scree(axes: Axes, block: Loadings) -> None:
    """Each factor's share of the total variance, and the noise's."""
    shares = block.shares
    L = len(shares)
    at = range(1, L + 1)
    axes.bar(at, shares, color=OKABE_ITO[0], width=0.7)
    axes.bar(L + 1, 1 - shares.sum(), color="#BBBBBB", width=0.7)
    ticks = list(at) if L <= 6 else list(at)[:: max(2, L // 5)]
    ticks = [k for k in ticks if L <= 6 or L + 1 - k > 0.15 * L]  # room for the noise's own
    axes.set_xticks([*ticks, L + 1], [*map(str, ticks), "noise"])
    if L <= 8:
        for k, share in zip([*at, L + 1], [*shares, 1 - shares.sum()], strict=True):
            axes.text(k, share, percent(share), ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_title("share of the\ntotal variance", loc="left", fontsize=9, color=INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("factor")


def _images(run: Scene, factors: Factors, shape: tuple[int, int]) -> Figure:
    """Each rotated column of B as an image; for a program without discrete latents also the noise and the scree."""
    blocks = _blocks(factors)
    order = np.argsort(factors.columns)
    L = min(factors.L, MOST_FACTORS if len(blocks) == 1 else 8)
    across = min(L, 5 if L <= 10 else 6) if len(blocks) == 1 else L
    down = -(-L // across) if len(blocks) == 1 else len(blocks)
    more = f"; {L} of {factors.L}" if factors.L > L else ""
    tall = (0.3 + 1.05 * shape[0] / shape[1]) * down
    figure = taller_figure(8.8, max(tall, 3.4 if len(blocks) == 1 else 0) + 0.4, run.title(TURNED + more))
    outer = figure.add_gridspec(1, 2, width_ratios=(3, 1.15)) if len(blocks) == 1 else figure.add_gridspec(1, 1)
    inner = outer[0, 0].subgridspec(down, across)
    pictures = [(f"{k + 1}:  {percent(b.shares[k])}", b.coefficients[order, k]) for _, b in blocks for k in range(L)]
    reach = float(np.quantile(np.abs([p for _, p in pictures]), 0.998)) or 1.0
    panels = [figure.add_subplot(inner[divmod(i, across)]) for i in range(len(pictures))]
    image: AxesImage | None = None
    for i, (axes, (text, picture)) in enumerate(zip(panels, pictures, strict=True)):
        look: Look = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach, "interpolation": "nearest"}
        image = axes.imshow(picture.reshape(shape), **look)
        name = f"{blocks[i // L][0]}\n" if len(blocks) > 1 and i % L == 0 else ""
        axes.set_title(name + text, fontsize=8, color=INK, pad=3)
        framed(axes)
    color_bar(figure, image, panels, shrink=0.6, aspect=22, pad=0.02)
    if len(blocks) == 1:
        noise = blocks[0][1].noise[order]
        varies = bool(np.ptp(noise) > 1e-9 * noise.max())
        side = outer[0, 1].subgridspec(1 + varies, 1)
        _scree(styled(figure.add_subplot(side[0])), blocks[0][1])
        if varies:
            _noise_image(figure, figure.add_subplot(side[1]), noise.reshape(shape))
    return figure


def _noise_image(figure: Figure, axes: Axes, noise: np.ndarray) -> None:
    image = axes.imshow(np.sqrt(noise), cmap="Greys", vmin=0, interpolation="nearest")
    axes.set_title("noise, standard deviation", loc="left", fontsize=9, color=INK)
    framed(axes)
    color_bar(figure, image, axes, shrink=0.8, aspect=12, pad=0.02)
