"""The picture of a gap: the KL as the area between log p(x) and the ELBO, row by row, and its parts in the worst rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference._gap.gap import Gap
from inference._pictures._views.style import FAINT, INK, OKABE_ITO, QUIET, new_figure, plain, styled, three_digits
from zoo import _atomic
from zoo._errors import UsageError

BARS = 12
FORMATS = (".png", ".svg", ".pdf")
FAMILY, LOST = OKABE_ITO[1], OKABE_ITO[0]


def place(out: Path | None, folder: Path) -> Path:
    """Where the picture goes: the run's own folder of pictures where None. Raises `UsageError` where it cannot."""
    path = folder / "plots" / "gap.png" if out is None else out
    if path.suffix not in FORMATS:
        raise UsageError(f"Expected a .png, .svg or .pdf for the picture, got '{path.name}'.")
    if out is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder '{path.parent}' to write '{path.name}' into.")
    return path


def write(gap: Gap, path: Path) -> None:
    """Write the picture, whole or not at all."""
    content = io.BytesIO()
    path.parent.mkdir(exist_ok=True)
    draw(gap).savefig(content, format=path.suffix[1:], dpi=150, facecolor="white")
    _atomic.write(path, content.getvalue())


def draw(gap: Gap) -> Figure:
    """Both panels."""
    n = gap.count
    kl, se = gap.kl.value / n, (gap.kl.se or 0.0) / n
    sign = "≥" if gap.kl.kind == "lower bound" else "=" if gap.kl.kind == "exact" else "≈"
    spread = f" ± {three_digits(se)}" if se else ""
    title = (
        f"{plain(gap.title, 120)}\n"
        f"q: {plain(gap.family_of_q)}. Mean KL(q‖p) {sign} {three_digits(kl)}{spread} nats a row"
    )
    figure = new_figure(9.6, 4.6, title)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _areas(styled(left), gap)
    _bars(styled(right), gap)
    return figure


def _parts(gap: Gap) -> tuple[np.ndarray, np.ndarray]:
    """What the family cannot reach and what is lost to the best q found [n], as areas: nothing negative."""
    family, lost = gap.family.per_datum, gap.amortization.per_datum
    assert family is not None and lost is not None
    return family.clip(min=0), lost.clip(min=0)


def _areas(axes: Axes, gap: Gap) -> None:
    """Below log p(x_i), at 0, first the best ELBO of the family and then the ELBO; the rows in the order of their KL."""
    family, lost = _parts(gap)
    order = np.argsort(family + lost, kind="stable")
    best, bottom = -family[order], -(family + lost)[order]
    at = (np.arange(len(order)) + 0.5) / len(order)
    axes.fill_between(at, 0, best, color=FAMILY, alpha=0.35, linewidth=0, label="family gap: log p(x) − ELBO(q*)")
    axes.fill_between(at, best, bottom, color=LOST, alpha=0.35, linewidth=0, label=f"{gap.lost}: ELBO(q*) − ELBO(q)")
    axes.axhline(0, color=INK, linewidth=1.2)
    axes.plot(at, best, color=FAMILY, linewidth=1.2)
    axes.plot(at, bottom, color=LOST, linewidth=1.2)
    bound = " (a lower bound)" if gap.log_p.kind == "lower bound" else ""
    axes.annotate(f"log p(x){bound}", (0.0, 0), (2, 4), textcoords="offset points", fontsize=9, color=INK, va="bottom")
    axes.set(xlim=(0, 1), xlabel="rows, in the order of their KL (share)", ylabel="nats below log p(x) of the row")
    lowest = float(bottom.min()) or -1e-6
    axes.set_ylim(1.05 * lowest, -0.07 * lowest)
    axes.legend(
        loc="lower left",
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        title="KL(q‖p), the area between:",
        title_fontsize=9,
    )
    axes.get_legend()._legend_box.align = "left"  # type: ignore[union-attr]


def _bars(axes: Axes, gap: Gap) -> None:
    """The rows with the largest KL: a bar of its parts, and two standard errors of the whole."""
    worst = gap.worst[:BARS][::-1]
    family, lost = _parts(gap)
    at = np.arange(len(worst))
    axes.barh(at, family[worst], color=FAMILY, alpha=0.75, height=0.72)
    axes.barh(at, lost[worst], left=family[worst], color=LOST, alpha=0.75, height=0.72)
    errors = gap.kl.se_per_datum
    if errors is not None:
        axes.errorbar(
            (family + lost)[worst], at, xerr=2 * errors[worst], fmt="none", ecolor=INK, elinewidth=0.9, capsize=2
        )
    axes.set_yticks(at, [plain(gap.name(int(i)), 24) for i in worst])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set(xlabel="nats")
    axes.set_title("the rows with the largest KL", fontsize=10, color=INK, loc="left")
    axes.spines["left"].set_color(QUIET)
