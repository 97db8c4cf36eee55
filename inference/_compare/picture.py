"""Accuracy against time: how far each method's posterior, or its evidence, is from the reference, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from inference._compare.judge import EVIDENCE, LABELS, MEANS, Judgement
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, new_figure, styled

LEAST = 1e-4  # errors below are drawn here


def draw(judgements: Sequence[Judgement]) -> Figure | None:
    """A panel for the posterior and one for the evidence, as far as something is known of them; None where nothing is."""
    panels = [p for p in (_posterior(judgements), _evidence(judgements)) if p is not None]
    if not panels:
        return None
    first = judgements[0].run
    figure = new_figure(4.6 * len(panels) + 0.6, 4.4, f"{first.model} on {first.data}: accuracy against time")
    for axes, (errors, label, limit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, judgements, errors, label, limit)
    return figure


Panel = tuple[list[float | None], str, float]


def _posterior(judgements: Sequence[Judgement]) -> Panel | None:
    far = [j.distance for j in judgements]
    means = [None if d is None else d.mean for d in far]
    if any(v is not None for v in means):
        return means, "error of posterior means (sd of the reference)", MEANS
    labels = [None if d is None else d.labels for d in far]
    return (
        (labels, "error of label probabilities (total variation)", LABELS)
        if any(v is not None for v in labels)
        else None
    )


def _evidence(judgements: Sequence[Judgement]) -> Panel | None:
    gaps = [None if j.gap is None else abs(j.gap) for j in judgements]
    return (gaps, "claimed less verified log p(x) (nats a row)", EVIDENCE) if any(v is not None for v in gaps) else None


def _panel(
    axes: Axes, judgements: Sequence[Judgement], errors: Sequence[float | None], label: str, limit: float
) -> None:
    styled(axes)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel=label)
    known = [(j, max(e, LEAST)) for j, e in zip(judgements, errors, strict=True) if e is not None]
    top = max([limit * 3, *(e for _, e in known)]) * 3
    axes.axhspan(LEAST / 3, limit, color=OKABE_ITO[2], alpha=0.12, linewidth=0)
    axes.axhline(limit, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    for place, (j, error) in enumerate(sorted(known, key=lambda pair: pair[0].run.seconds)):
        color = {True: OKABE_ITO[2], False: OKABE_ITO[5], None: QUIET}[j.good]
        axes.plot(j.run.seconds, error, "o", color=color, markersize=8)
        axes.annotate(
            j.run.method, (j.run.seconds, error), (6, (6, -15)[place % 2]), textcoords="offset points", color=INK
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v > LEAST else f"≤ {v:g}"))
    seconds = np.array([j.run.seconds for j, _ in known])
    axes.set(ylim=(LEAST / 3, top), xlim=(seconds.min() / 3, seconds.max() * 6))
    axes.text(
        0.99,
        limit,
        "good enough below ",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="top",
        color=QUIET,
        fontsize=9,
    )
