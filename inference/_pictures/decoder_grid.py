"""The mean of x over a grid of quantiles of the prior of two latents."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.decoder import Decoder
from inference._pictures._views.images import grey_range, montage, show
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, QUIET, percent, plain, taller_figure

GRID = 15  # quantiles of each of two latents


def subject(run: Scene) -> Decoder | None:
    """A decoder of images from a latent of two numbers."""
    decoder = run.decoder
    if decoder is None or not run.decodes_images:
        return None
    return decoder if decoder.over_prior(np.array([0.5])) is not None else None


def draw(run: Scene, decoder: Decoder) -> Figure:
    shape = run.image_shape
    shares = (np.arange(GRID) + 0.5) / GRID
    found = decoder.over_prior(shares)
    assert found is not None and shape is not None
    quantiles, made = found
    name = plain(decoder.top.name)
    title = f"mean of x over quantiles of the prior of {name}, {percent(shares[0])} to {percent(shares[-1])}"
    figure = taller_figure(7.6, 6.6 * shape[0] / shape[1], run.title(title))
    axes = figure.add_subplot()
    show(axes, montage(run.tinted(made[::-1].reshape(GRID**2, -1)), shape, GRID, grey_range(run, decoder.x)))
    ticks = np.arange(0, GRID, 2)
    for set_ticks, size, k in ((axes.set_xticks, shape[1], 0), (axes.set_yticks, shape[0], 1)):
        at = (ticks if k == 0 else GRID - 1 - ticks) * (size + 1) + (size + 1) / 2
        set_ticks(at, [f"{q:.2f}".replace("-", "−") for q in quantiles[k, ticks]])
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    axes.set_xlabel(f"{name}[0]", fontsize=9, color=INK)
    axes.set_ylabel(f"{name}[1]", fontsize=9, color=INK)
    return figure
