"""x beside its mean at the posterior means of the latents."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.decoder import Decoder
from inference._pictures._views.fits import explained, fits
from inference._pictures._views.images import few_images, grey_range, montage, show
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, taller_figure, three_digits


def subject(run: Scene) -> Decoder | None:
    return run.decoder if run.decoder is not None and run.decoder.reconstructs else None


def draw(run: Scene, decoder: Decoder) -> Figure:
    shape = run.image_shape
    made = decoder.reconstructed(decoder.rows)
    assert made is not None
    x = decoder.x[:, decoder.columns]
    what = f"mean of x at the posterior mean of {decoder.names}"
    if not run.decodes_images or shape is None:
        return fits(run, x, made, decoder.columns, f"observed against the {what}")
    kept = explained(x.reshape(-1, 1), made.reshape(-1, 1))[0]
    score = f"; R² over all pixels {three_digits(float(kept))}" if np.isfinite(kept) else ""
    few = few_images(len(x), run.labels_of(decoder.rows), 30)
    blocks = [few[i : i + 10] for i in range(0, len(few), 10)]
    tall = 0.83 * shape[0] / shape[1]
    figure = taller_figure(
        8.8, (2 * tall + 0.15) * len(blocks), run.title(f"originals above the {what}{score}{run.tint}")
    )
    made = run.tinted(made)
    for axes, block in zip(figure.subplots(len(blocks), 1, squeeze=False)[:, 0], blocks, strict=True):
        show(axes, montage(np.concatenate([x[block], made[block]]), shape, len(block), grey_range(run, x)))
        axes.set_anchor("W")
        axes.set_yticks([shape[0] / 2, 1.5 * shape[0] + 1], ["original", "mean of x"], fontsize=9, color=INK)
        axes.tick_params(left=False)
    return figure
