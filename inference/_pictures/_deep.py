"""The latents of a program whose posterior is not exact: what they keep of the data, their plane, and the ways through it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._decoder import Decoder, Latents
from inference._pictures._fits import explained, fits
from inference._pictures._images import few_images, grey_range, montage, show
from inference._pictures._plane import one_latent, points, spreads
from inference._pictures._scene import Scene
from inference._pictures._style import (
    INK,
    QUIET,
    counted,
    new_figure,
    percent,
    plain,
    styled,
    taller_figure,
    three_digits,
)

STEPS = 9  # of an interpolation, ends included
MOST_PAIRS = 6
GRID = 15  # quantiles of each of two latents


# ---- reconstructions -------------------------------------------------------------------------------------


def reconstructions(scene: Scene) -> Figure:
    """x beside its mean at the posterior means of the latents."""
    decoder, shape = _decoder(scene), scene.image_shape
    made = decoder.reconstructed(decoder.rows)
    assert made is not None
    x = decoder.x[:, decoder.columns]
    what = f"mean of x at the posterior mean of {_names(decoder)}"
    if not scene.decodes_images or shape is None:
        return fits(scene, x, made, decoder.columns, f"observed against the {what}")
    kept = explained(x.reshape(-1, 1), made.reshape(-1, 1))[0]
    score = f"; R² over all pixels {three_digits(float(kept))}" if np.isfinite(kept) else ""
    few = few_images(len(x), _labels(scene, decoder.rows), 30)
    blocks = [few[i : i + 10] for i in range(0, len(few), 10)]
    tall = 0.83 * shape[0] / shape[1]
    figure = taller_figure(
        8.8, (2 * tall + 0.15) * len(blocks), scene.title(f"originals above the {what}{score}{scene.tint}")
    )
    made = scene.tinted(made)
    for axes, block in zip(figure.subplots(len(blocks), 1, squeeze=False)[:, 0], blocks, strict=True):
        show(axes, montage(np.concatenate([x[block], made[block]]), shape, len(block), grey_range(x)))
        axes.set_anchor("W")
        axes.set_yticks([shape[0] / 2, 1.5 * shape[0] + 1], ["original", "mean of x"], fontsize=9, color=INK)
        axes.tick_params(left=False)
    return figure


def _decoder(scene: Scene) -> Decoder:
    assert scene.decoder is not None
    return scene.decoder


def _labels(scene: Scene, rows: np.ndarray) -> np.ndarray | None:
    return None if scene.labels is None else scene.labels[rows]


def _names(decoder: Decoder) -> str:
    return ", ".join(plain(s.name) for s in decoder.sites)


def _drawn(scene: Scene, rows: np.ndarray) -> str:
    n = len(scene.x)
    return "" if len(rows) == n else f"; {counted(len(rows))} of {counted(n)} rows drawn"


# ---- the plane of the latents ----------------------------------------------------------------------------


def principal(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred points [n, L] on their two leading principal axes: [n, 2], the axes [L, 2], their shares of the variance [2].

    The largest entry of each axis is positive.
    """
    away = means - means.mean(0)
    variances, axes = np.linalg.eigh(away.T @ away)
    axes = axes[:, :-3:-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1.0, 1.0)
    return away @ axes, axes, variances[:-3:-1].clip(min=0) / max(float(variances.sum()), 1e-300)


def latent_plane(scene: Scene) -> Figure:
    """The posterior means of the topmost latent, coloured by label: two numbers as they are, of more the principal axes."""
    decoder = _decoder(scene)
    assert decoder.plane is not None
    mean, covariance = decoder.plane
    labels, name = _labels(scene, decoder.rows), plain(decoder.top.name)
    what, note = f"posterior means of {name}", _drawn(scene, decoder.rows)
    if mean.shape[1] == 1:
        return one_latent(scene, mean[:, 0], np.sqrt(covariance[:, 0, 0]), labels, what + note, name)
    ends = [f"{name}[0]", f"{name}[1]"]
    if mean.shape[1] > 2:
        L = mean.shape[1]
        mean, turn, shares = principal(mean)
        covariance = turn.T @ covariance @ turn
        what += f" on their two leading principal axes of {L}: {percent(shares.sum())} of their variance"
        ends = [f"principal axis {k + 1} ({percent(share)})" for k, share in enumerate(shares)]
    figure = new_figure(7.2, 6.4, scene.title(what + note))
    axes = styled(figure.add_subplot())
    axes.set_aspect("equal", adjustable="datalim")
    points(figure, axes, mean, labels)
    few = np.linspace(0, len(mean) - 1, min(len(mean), 12)).round().astype(int)
    if covariance[few].any():
        spreads(axes, mean[few], covariance[few])
    axes.set(xlabel=ends[0], ylabel=ends[1])
    return figure


# ---- ways through it -------------------------------------------------------------------------------------


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


def interpolation(scene: Scene) -> Figure:
    """Rows of images: two originals, and between them the mean of x along the line of their latents' means."""
    decoder, shape = _decoder(scene), scene.image_shape
    assert shape is not None
    pairs = image_pairs(decoder.x, _labels(scene, decoder.rows))
    what = f"mean of x along the line between the posterior means of {_names(decoder)} of two images"
    title = scene.title(what + scene.tint)
    tall = (8.3 / (STEPS + 2.6)) * shape[0] / shape[1]
    figure = taller_figure(8.8, tall * len(pairs) + 0.25, title)
    grey = grey_range(decoder.x)
    lines = []
    for a, b in pairs:
        made = between(decoder, (int(decoder.rows[a]), int(decoder.rows[b])), STEPS)
        assert made is not None
        gap = np.ones((shape[0] + 2, max(2, shape[1] // 4), 3))
        ends = [montage(decoder.x[[row]], shape, 1, grey) for row in (a, b)]
        lines.append(np.hstack([ends[0], gap, montage(scene.tinted(made), shape, STEPS, grey), gap, ends[1]]))
    picture, w = np.vstack(lines), shape[1]
    axes = figure.add_subplot()
    show(axes, picture)
    at = [w / 2, picture.shape[1] / 2, picture.shape[1] - w / 2]
    axes.set_xticks(at, ["original", "mean of x", "original"], fontsize=9, color=INK)
    axes.tick_params(bottom=False, labelbottom=False, labeltop=True, length=0)
    return figure


def decoder_grid(scene: Scene) -> Figure:
    """The mean of x over a grid of quantiles of the prior of two latents."""
    decoder, shape = _decoder(scene), scene.image_shape
    shares = (np.arange(GRID) + 0.5) / GRID
    found = decoder.over_prior(shares)
    assert found is not None and shape is not None
    quantiles, made = found
    name = plain(decoder.top.name)
    title = f"mean of x over quantiles of the prior of {name}, {percent(shares[0])} to {percent(shares[-1])}"
    figure = taller_figure(7.6, 6.6 * shape[0] / shape[1], scene.title(title))
    axes = figure.add_subplot()
    show(axes, montage(scene.tinted(made[::-1].reshape(GRID**2, -1)), shape, GRID, grey_range(decoder.x)))
    ticks = np.arange(0, GRID, 2)
    for set_ticks, size, k in ((axes.set_xticks, shape[1], 0), (axes.set_yticks, shape[0], 1)):
        at = (ticks if k == 0 else GRID - 1 - ticks) * (size + 1) + (size + 1) / 2
        set_ticks(at, [f"{q:.2f}".replace("-", "−") for q in quantiles[k, ticks]])
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    axes.set_xlabel(f"{name}[0]", fontsize=9, color=INK)
    axes.set_ylabel(f"{name}[1]", fontsize=9, color=INK)
    return figure
