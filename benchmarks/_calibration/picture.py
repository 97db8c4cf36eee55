"""Pictures of calibration: where ranks leave the band of uniform ones; how often models of a probability are true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from benchmarks._calibration import uniform
from inference._pictures._views.style import FAINT, OKABE_ITO, QUIET, new_figure, plain, styled

if TYPE_CHECKING:
    from benchmarks._calibration.chances import Curve
    from benchmarks._calibration.quantity import Quantity

MOST_SHOWN, ACROSS = 16, 4  # panels


def ranks(quantities: Sequence[Quantity], level: float, title: str) -> Figure:
    """A panel for each quantity, the worst first: the share of ranks up to z, less z, and the band of `level` for one alone."""
    shown = sorted(quantities, key=lambda q: q.p)[:MOST_SHOWN]
    names = [q.name for q in quantities if q in shown]
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    hidden = "" if len(shown) == len(quantities) else f"\nthe {len(shown)} of {len(quantities)} with the smallest p"
    figure = new_figure(2.5 * across + 0.6, 2.1 * down + 0.7, title + hidden)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    each = level / len(quantities)
    for axes, q in zip(panels, sorted(shown, key=lambda q: names.index(q.name)), strict=False):
        z, lower, upper = uniform.band(len(q.ranks), 1 - each)
        axes = styled(axes)
        axes.fill_between(z, lower - z, upper - z, color=FAINT, linewidth=0, step="mid")
        axes.axhline(0, color=QUIET, linewidth=0.8)
        share = np.searchsorted(np.sort(q.ranks), z, side="right") / len(q.ranks)
        axes.plot(z, share - z, color=OKABE_ITO[1 if q.fails else 0], linewidth=1.6, drawstyle="steps-mid")
        axes.set_title(plain(f"{q.name}: {q.verdict}"), fontsize=8, loc="left")
    figure.supxlabel("rank of the truth among posterior draws, 0 to 1", fontsize=9)
    figure.supylabel("ECDF less uniform", fontsize=9)
    return figure


def reliability(curve: Curve, title: str) -> Figure:
    """How often models were true against the probability that they were given."""
    figure = new_figure(4.6, 4.4, title)
    axes = styled(figure.add_subplot())
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    axes.vlines(curve.given, curve.lower, curve.upper, color=FAINT, linewidth=9, zorder=1)
    axes.scatter(curve.given, curve.true, s=14 + 60 * curve.count / curve.count.max(), color=OKABE_ITO[0], zorder=3)
    axes.set(xlabel="probability given to a model", ylabel="share in which it was the true one")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    return figure
