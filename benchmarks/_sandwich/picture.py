"""The picture of a sandwich: both bounds against the number of steps, and the exact value."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks._sandwich.bounds import Sandwich
from inference._method.fit import Evidence
from inference._pictures._views.style import INK, OKABE_ITO, new_figure, styled


def draw(found: Sequence[Sandwich], exact: Evidence | None, title: str) -> Figure:
    """Nats a row, with two standard errors."""
    figure = new_figure(6.0, 3.8, title)
    axes = styled(figure.add_subplot())
    steps, n = [s.steps for s in found], found[0].n
    sides = [("upper bound: from exact draws, backwards", [s.upper for s in found], OKABE_ITO[1], "v")]
    sides += [("lower bound: from the start, forwards", [s.lower for s in found], OKABE_ITO[0], "^")]
    for name, bounds, color, marker in sides:
        errors = [2 * (b.se or 0.0) / n for b in bounds]
        axes.errorbar(
            steps, [b.value / n for b in bounds], yerr=errors, color=color, marker=marker, ms=5, capsize=2, label=name
        )
    axes.fill_between(
        steps, [s.lower.value / n for s in found], [s.upper.value / n for s in found], color=OKABE_ITO[5], alpha=0.18
    )
    if exact is not None:
        axes.axhline(exact.value / n, color=INK, lw=1, ls="--", label="exact")
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(s) for s in steps])
    axes.minorticks_off()
    axes.set_xlabel("steps from one end to the other")
    axes.set_ylabel("log p(x) a row, nats (± 2 se)")
    axes.legend(frameon=False, fontsize=9)
    return figure
