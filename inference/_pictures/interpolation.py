"""Rows of images: two originals, and between them the mean of x along the line of their latents' means."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.decoder import Decoder, Latents
from inference._pictures._views.images import few_images, grey_range, montage, show
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, taller_figure

STEPS = 9  # of an interpolation, ends included
MOST_PAIRS = 6


def subject(run: Scene) -> Decoder | None:
    """A decoder of images, two of which were seen at least in part."""
    decoder = run.decoder
    if decoder is None or not run.decodes_images or not decoder.reconstructs:
        return None
    return decoder if (~np.isnan(decoder.x)).any(1).sum() > 1 else None


def draw(run: Scene, decoder: Decoder) -> Figure:
    shape = run.image_shape
    assert shape is not None  # it decodes images
    pairs = image_pairs(decoder.x, run.labels_of(decoder.rows))
    what = f"mean of x along the line between the posterior means of {decoder.names} of two images"
    title = run.title(what + run.tint)
    tall = (8.3 / (STEPS + 2.6)) * shape[0] / shape[1]
    figure = taller_figure(8.8, tall * len(pairs) + 0.25, title)
    grey = grey_range(run, decoder.x)
    lines = []
    for a, b in pairs:
        made = between(decoder, (int(decoder.rows[a]), int(decoder.rows[b])), STEPS)
        assert made is not None
        gap = np.ones((shape[0] + 2, max(2, shape[1] // 4), 3))
        ends = [montage(decoder.x[[row]], shape, 1, grey) for row in (a, b)]
        lines.append(np.hstack([ends[0], gap, montage(run.tinted(made), shape, STEPS, grey), gap, ends[1]]))
    picture, w = np.vstack(lines), shape[1]
    axes = figure.add_subplot()
    show(axes, picture)
    at = [w / 2, picture.shape[1] / 2, picture.shape[1] - w / 2]
    axes.set_xticks(at, ["original", "mean of x", "original"], fontsize=9, color=INK)
    axes.tick_params(bottom=False, labelbottom=False, labeltop=True, length=0)
    return figure


def image_pairs(x: np.ndarray, labels: np.ndarray | None) -> list[tuple[int, int]]:
    """Pairs of the rows of x [n, D] that have something observed: of different labels where there are such."""
    seen = np.flatnonzero(~np.isnan(x).all(1))
    few = seen[few_images(len(seen), None if labels is None else labels[seen], 2 * MOST_PAIRS)]
    if labels is not None:
        few = few[np.argsort(labels[few], kind="stable")]
    half = len(few) // 2
    return list(zip(few[:half].tolist(), few[len(few) - half :].tolist(), strict=True))


def between(decoder: Decoder, pair: tuple[int, int], steps: int) -> np.ndarray | None:
    """E[x | z] [steps, columns] along the line between the posterior means of two rows of the data."""
    rows = np.array(pair)
    centers = decoder.centers(rows)
    if centers is None:
        return None
    discrete = {s.name for s in decoder.sites if s.discrete}
    near = [round(t) for t in np.linspace(0, 1, steps)]  # of what cannot be mixed, the nearer end's
    line: Latents = {}
    for name, ends in centers.items():
        shares = ends.new_tensor(np.linspace(0, 1, steps)).reshape(-1, *(1,) * (ends.dim() - 1))
        line[name] = ends[near] if name in discrete else (1 - shares) * ends[:1] + shares * ends[1:]
    return decoder.decoded(line, rows[near])
