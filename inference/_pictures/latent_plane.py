"""Posterior means of the top latent layer in the plane of its two leading axes, coloured by label."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.decoder import Decoder
from inference._pictures._views.plane import one_latent, points, spreads
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import new_figure, percent, plain, styled


def subject(run: Scene) -> Decoder | None:
    return run.decoder if run.decoder is not None and run.decoder.plane is not None else None


def draw(run: Scene, decoder: Decoder) -> Figure:
    """Two numbers as they are, of more the principal axes."""
    assert decoder.plane is not None  # `subject` said so
    mean, covariance = decoder.plane
    labels, name = run.labels_of(decoder.rows), plain(decoder.top.name)
    what, note = f"posterior means of {name}", run.drawn(decoder.rows)
    if mean.shape[1] == 1:
        return one_latent(run, mean[:, 0], np.sqrt(covariance[:, 0, 0]), labels, what + note, name)
    ends = [f"{name}[0]", f"{name}[1]"]
    if mean.shape[1] > 2:
        L = mean.shape[1]
        mean, turn, shares = principal(mean)
        covariance = turn.T @ covariance @ turn
        what += f" on their two leading principal axes of {L}: {percent(shares.sum())} of their variance"
        ends = [f"principal axis {k + 1} ({percent(share)})" for k, share in enumerate(shares)]
    figure = new_figure(7.2, 6.4, run.title(what + note))
    axes = styled(figure.add_subplot())
    axes.set_aspect("equal", adjustable="datalim")
    points(figure, axes, mean, labels)
    few = np.linspace(0, len(mean) - 1, min(len(mean), 12)).round().astype(int)
    if covariance[few].any():
        spreads(axes, mean[few], covariance[few])
    axes.set(xlabel=ends[0], ylabel=ends[1])
    return figure


def principal(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred points [n, L] on their two leading principal axes: [n, 2], the axes [L, 2], their shares of the variance [2].

    The largest entry of each axis is positive.
    """
    away = means - means.mean(0)
    variances, axes = np.linalg.eigh(away.T @ away)
    axes = axes[:, :-3:-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), [0, 1]] < 0, -1.0, 1.0)
    return away @ axes, axes, variances[:-3:-1].clip(min=0) / max(float(variances.sum()), 1e-300)
