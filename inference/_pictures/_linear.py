"""The factors of a linear-Gaussian program: their loadings, the data in their plane, and what they keep of the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from inference._pictures._factors import Factors, Loadings
from inference._pictures._fits import explained, fits
from inference._pictures._images import few_images, framed, image_rows
from inference._pictures._plane import one_latent, points, spreads
from inference._pictures._scene import Scene
from inference._pictures._style import (
    INK,
    OKABE_ITO,
    Look,
    bold,
    color_bar,
    counted,
    new_figure,
    percent,
    plain,
    styled,
    taller_figure,
    three_digits,
)

MOST_FACTORS = 24  # of loadings in one picture
MOST_BLOCKS = 4  # joint values of the discrete latents whose loadings are drawn
MOST_NAMED = 40  # columns with their names beside them
MOST_ARROWED = 15  # columns in a biplot
TURNED = "factors on principal axes (B is known up to a rotation), strongest signal first"


# ---- loadings --------------------------------------------------------------------------------------------


def loadings(scene: Scene) -> Figure:
    """The rotated B, the share of the variance that each factor explains, and the share that is left as noise."""
    factors = scene.factors
    assert factors is not None
    if scene.image_shape is not None and len(factors.columns) == math.prod(scene.image_shape):
        return _loading_images(scene, factors)
    return _loading_table(scene, factors)


def _blocks(factors: Factors) -> list[tuple[str, Loadings]]:
    """The loadings of the heaviest joint values of the discrete latents, each with its name."""
    if factors.A == 1:
        return [("", factors.loadings(0))]
    heaviest = np.argsort(-factors.weights, kind="stable")[:MOST_BLOCKS]
    return [(f"{plain(factors.exact.label(a))}, {percent(factors.weights[a])}", factors.loadings(a)) for a in heaviest]


def _loading_table(scene: Scene, factors: Factors) -> Figure:
    blocks, columns = _blocks(factors), factors.columns
    D, L = len(columns), min(factors.L, MOST_FACTORS)
    named = D <= MOST_NAMED
    cell = 0.72 if L <= 6 else 0.42
    widths = [max(1.0, cell * L), 1.7] * len(blocks) + [1.6 + 0.16 * L] * (len(blocks) == 1)
    height = float(np.clip(1.5 + 0.3 * D, 3.6, 9.0))
    figure = taller_figure(max(6.4, 2.0 + sum(widths)), height, scene.title(TURNED))
    grid = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    image: Any = None
    for i, (name, block) in enumerate(blocks):
        heat, left = _style_pair(grid[2 * i], grid[2 * i + 1])
        image = _heat(heat, block.correlations[:, :L], height / D > 0.2 and L <= 8)
        heat.set_title(name or "correlation with\nthe factor", loc="left", fontsize=9, color=INK)
        _noise_bars(left, block)
        left.set_ylim(heat.get_ylim())
        heat.set_yticks(range(D) if named else [], [scene.name(c) if i == 0 else "" for c in columns] if named else [])
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


def _heat(axes: Axes, field: np.ndarray, written: bool) -> Any:
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


def _loading_images(scene: Scene, factors: Factors) -> Figure:
    """Each rotated column of B as an image; for a program without discrete latents also the noise and the scree."""
    shape, blocks = scene.image_shape, _blocks(factors)
    assert shape is not None
    order = np.argsort(factors.columns)
    L = min(factors.L, MOST_FACTORS if len(blocks) == 1 else 8)
    across = min(L, 5 if L <= 10 else 6) if len(blocks) == 1 else L
    down = -(-L // across) if len(blocks) == 1 else len(blocks)
    more = f"; {L} of {factors.L}" if factors.L > L else ""
    tall = (0.3 + 1.05 * shape[0] / shape[1]) * down
    figure = taller_figure(8.8, max(tall, 3.4 if len(blocks) == 1 else 0) + 0.4, scene.title(TURNED + more))
    outer = figure.add_gridspec(1, 2, width_ratios=(3, 1.15)) if len(blocks) == 1 else figure.add_gridspec(1, 1)
    inner = outer[0, 0].subgridspec(down, across)
    pictures = [(f"{k + 1}:  {percent(b.shares[k])}", b.coefficients[order, k]) for _, b in blocks for k in range(L)]
    reach = float(np.quantile(np.abs([p for _, p in pictures]), 0.998)) or 1.0
    panels = [figure.add_subplot(inner[divmod(i, across)]) for i in range(len(pictures))]
    image: Any = None
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


# ---- latents ---------------------------------------------------------------------------------------------


def latents(scene: Scene) -> Figure:
    """The posterior means of the two leading factors, coloured by label."""
    factors = scene.factors
    assert factors is not None
    mean, covariance = factors.scores()
    note = "" if len(mean) == len(scene.x) else f"; {counted(len(mean))} of {counted(len(scene.x))} rows drawn"
    labels = None if scene.labels is None else scene.labels[factors.rows]
    block = factors.loadings(0)
    if factors.L == 1:
        name = f"factor 1 ({percent(block.shares[0])} of the variance)"
        title = f"posterior means of the only factor{note}"
        return one_latent(scene, mean[:, 0], np.sqrt(covariance[:, 0, 0]), labels, title, name)
    figure = new_figure(7.2, 6.0, scene.title(f"posterior means on principal axes (B is known up to a rotation){note}"))
    axes = styled(figure.add_subplot())
    axes.set_aspect("equal", adjustable="datalim")
    points(figure, axes, mean[:, :2], labels)
    few = np.linspace(0, len(mean) - 1, min(len(mean), 12)).round().astype(int)
    spreads(axes, mean[few, :2], covariance[few, :2, :2])
    if len(factors.columns) <= MOST_ARROWED and scene.image_shape is None:
        _arrows(axes, block.correlations[:, :2], [scene.name(c) for c in factors.columns], mean[:, :2])
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


# ---- reconstruction --------------------------------------------------------------------------------------


def reconstruction(scene: Scene) -> Figure:
    """What the factors make of each datum, against the datum."""
    factors = scene.factors
    assert factors is not None
    x = scene.x.reshape(len(scene.x), -1)[factors.rows][:, factors.columns]
    if scene.image_shape is not None and len(factors.columns) == math.prod(scene.image_shape):
        order = np.argsort(factors.columns)
        return _image_rows(scene, x[:, order], factors.signal[:, order], factors.rows)
    title = "observed against B E[z | x] + b, what the factors keep of each datum"
    return fits(scene, x, factors.signal, factors.columns, title)


def _image_rows(scene: Scene, x: np.ndarray, made: np.ndarray, rows: np.ndarray) -> Figure:
    """Ten images, their reconstructions below them."""
    labels = None if scene.labels is None else scene.labels[rows]
    few = few_images(len(x), labels)
    kept = three_digits(float(explained(x.reshape(-1, 1), made.reshape(-1, 1))[0]))
    title = scene.title(f"originals above B E[z | x] + b, what the factors keep of them; R² over all pixels {kept}")
    return image_rows(scene, title, [("original", x[few]), ("reconstruction", made[few])])
