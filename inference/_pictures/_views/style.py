"""What all pictures share: colours, the figure and its title, axes, and numbers as text.

Colours are Okabe & Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colors, patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

Look = dict[str, Any]  # keywords of a matplotlib artist

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
LETTER = 0.08  # inches: the width of a letter of a label
SIGNS = {"exact": "=", "estimate": "≈", "lower bound": "≥", "upper bound": "≤"}
INK, QUIET, FAINT = "#222222", "#777777", "#DDDDDD"
UNSEEN = "#F3DFC8"  # a pixel that was not observed


def component_colors(count: int) -> np.ndarray:
    """`count` colours [count, 3], sRGB in [0, 1]: Okabe & Ito's, then lighter and darker ones of the same hues."""
    base = np.array([colors.to_rgb(c) for c in OKABE_ITO])
    rounds = [base, 0.5 * base + 0.5, 0.6 * base]
    return np.concatenate([rounds[i % 3] for i in range(-(-count // len(base)))])[:count]


def blend(responsibilities: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The mixture of the colours [A, 3] in the shares [n, A], as light mixes; sRGB [n, 3]."""
    linear = np.where(palette <= 0.04045, palette / 12.92, ((palette + 0.055) / 1.055) ** 2.4)
    mixed = np.clip(responsibilities @ linear, 0.0, 1.0)
    return np.clip(np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055), 0.0, 1.0)


def new_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06))
    FigureCanvasAgg(figure)
    lines = [textwrap.fill(line, int(13 * width), subsequent_indent="    ") for line in title.split("\n")]
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=10, color=INK, linespacing=1.4)
    return figure


def taller_figure(width: float, height: float, title: str) -> Figure:
    """A figure with room for its title above `height`."""
    return new_figure(width, height + 0.22 * (2 + title.count("\n")), title)


def styled(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(size=10, color=INK)
    axes.yaxis.label.set(size=10, color=INK)
    return axes


def color_bar(
    figure: Figure | SubFigure, image: ScalarMappable | None, axes: Axes | list[Axes], **how: Any
) -> Colorbar:
    assert image is not None
    bar = figure.colorbar(image, ax=axes, **how)
    bar.ax.tick_params(labelsize=8, colors=QUIET)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def side_by_side(names: Sequence[str], inches: float, more: Sequence[str] = ()) -> tuple[list[str], Look]:
    """Labels of columns over so many inches, and how to write them: a few in lines, many aslant. `more`: a last line each."""
    ends = [f"\n{line}" for line in more] or [""] * len(names)
    if len(names) <= 6:
        return [wrapped(n, inches / len(names) - 0.1) + end for n, end in zip(names, ends, strict=True)], {}
    return [plain(n, 24) + end for n, end in zip(names, ends, strict=True)], turned(len(names))


def turned(labels: int) -> Look:
    """How to write so many labels side by side."""
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if labels > 6 else {}


def wrapped(text: object, inches: float, lines: int = 3) -> str:
    """A user's own words in lines of so many inches."""
    most = max(6, int(inches / LETTER))
    return textwrap.fill(plain(text, most * lines), most)


def number_axis(axis: Axis, values: np.ndarray, most: int = 4) -> None:
    """Ticks for values: at 0 and 1 where they are nothing else, at whole numbers where they are such."""
    seen = values[~np.isnan(values)]
    whole = bool((seen % 1 == 0).all())
    if is_binary(values):
        axis.set_ticks([0, 1])
    else:
        axis.set_major_locator(MaxNLocator(most, integer=whole))


def is_binary(values: np.ndarray) -> bool:
    """Whether all observed values are 0 or 1."""
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def bold(color: np.ndarray) -> Look:
    """A label in a component's colour, darker, that can be read over anything."""
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    return {"fontsize": 9, "fontweight": "bold", "color": 0.8 * color, "path_effects": halo, "zorder": 5}


def plain(text: object, most: int = 40) -> str:
    """A user's own words: shortened, and without the dollar signs' meaning to matplotlib."""
    words = str(text)
    words = words if len(words) <= most else words[: most - 1] + "…"
    return words.replace("$", r"\$")


def counted(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")  # a narrow space


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def three_digits(value: float) -> str:
    """Three digits, and no exponent up to a million."""
    return (f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}").replace("-", "−")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def evidence_line(document: dict[str, Any]) -> str:
    """ "log p(x) = −1130.264 nats (exact)": what was verified, or else what was claimed."""
    evidence = document.get("verified_log_evidence") or document["log_evidence"]
    if evidence["value"] is None:
        return f"log p(x) is not finite ({evidence['kind']})"
    se, sign = evidence.get("se"), SIGNS[evidence["kind"]]
    digits = 3 if not se else int(np.clip(1 - math.floor(math.log10(se)), 0, 6))
    spread = f" ± {se:.{digits}f}" if se else ""
    given = f", given {plain(evidence['given'], 70)}" if evidence.get("given") else ""
    return f"log p(x) {sign} {_number(evidence['value'], digits)}{spread} nats ({evidence['kind']}{given})"
