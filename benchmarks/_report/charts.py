"""Charts as SVG for the page. They hold no colours: the page's style sheet gives them, for light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM, ROW = 62, 14, 14, 44, 26
MARKS = ("circle", "square", "diamond", "up", "down", "cross", "plus", "bar")


@dataclass
class Axis:
    """From data to a place: `low` and `high` are the ends in data, `start` and `end` in the drawing.

    `scale`: "linear", "log", or "both", which is linear within ±`unit` and logarithmic beyond, on both sides of 0.
    """

    low: float
    high: float
    start: float
    end: float
    scale: str = "linear"
    unit: float = 1.0

    def __call__(self, value: float) -> float:
        low, high, value = map(self._straight, (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def _straight(self, value: float) -> float:
        if self.scale == "log":
            return math.log10(value)
        return math.asinh(value / self.unit) if self.scale == "both" else value

    def ticks(self) -> list[float]:
        """Round numbers from low to high."""
        if self.scale == "linear":
            return _round_steps(self.low, self.high)
        if self.scale == "both":
            most = max(abs(self.low), abs(self.high))
            tens = _tens(self.unit, max(most, self.unit), 9)
            return [t for t in [*(-v for v in reversed(tens)), 0.0, *tens] if self.low <= t <= self.high]
        tens = _tens(self.low, self.high, 5)
        if len(tens) >= 3:
            return tens
        first = math.floor(math.log10(self.low))
        fine = [m * 10.0**e for e in range(first, first + 3) for m in (1, 2, 5)]
        fine = [t for t in fine if self.low <= t * (1 + 1e-9) and t <= self.high * (1 + 1e-9)]
        return fine if len(fine) >= 3 else _round_steps(self.low, self.high)


def _tens(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**e for e in range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))]


def _round_steps(low: float, high: float, count: int = 5) -> list[float]:
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _apart(axis: Axis, ticks: list[float], room: float = 38.0) -> list[float]:
    """Those of the ticks whose numbers do not run into each other; 0 and the largest come first."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda t: (t != 0, -abs(t))) if axis.scale == "both" else ticks:
        if all(abs(axis(tick) - axis(other)) >= room for other in kept):
            kept.append(tick)
    return kept


def limits(values: Sequence[float], log: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """Ends that leave a margin around the values."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) * margin or (0.3 if log else max(abs(high) * 0.05, 0.5))
    low, high = low - room, high + room
    return (10.0**low, 10.0**high) if log else (low, high)


@dataclass
class Chart:
    """A drawing area with two axes; what is put into it becomes one SVG."""

    x: Axis
    y: Axis
    title: str
    height: int = HEIGHT
    left: int = LEFT
    parts: list[str] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through data points."""
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        self.parts.append(f'<polyline class="{style}" points="{path}"/>')

    def segment(self, a: tuple[float, float], b: tuple[float, float], style: str) -> None:
        """A straight line between two places of the drawing."""
        self.parts.append(f'<line class="{style}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>')

    def mark(self, x: float, y: float, number: int, says: str, size: float = 5.0, style: str = "") -> None:
        """A marker at a place of the drawing, in the colour and shape of series `number`; `says` when pointed at."""
        shape = _shape(_form(number), x, y, size)
        self.parts.append(f'<g class="{colour(number)} mark {style}"><title>{escape(says)}</title>{shape}</g>')

    def text(self, x: float, y: float, words: str, style: str = "tick") -> None:
        """Words at a place of the drawing."""
        self.parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')

    def axes(self, x_label: str, y_label: str = "", number: Callable[[float], str] | None = None) -> None:
        """Ticks, thin lines across, labels."""
        say = number or short
        for tick in _apart(self.x, self.x.ticks()):
            at = self.x(tick)
            self.segment((at, TOP), (at, self.height - BOTTOM), "grid")
            self.text(at, self.height - BOTTOM + 16, say(tick), "tick middle")
        self.text((self.left + WIDTH - RIGHT) / 2, self.height - 8, x_label, "label middle")
        if not y_label:
            return
        for tick in _apart(self.y, self.y.ticks(), 14.0):
            at = self.y(tick)
            self.segment((self.left, at), (WIDTH - RIGHT, at), "grid")
            self.text(self.left - 7, at + 4, say(tick), "tick end")
        middle = (TOP + self.height - BOTTOM) / 2
        self.parts.append(
            f'<text class="label middle" transform="translate(13 {middle:.0f}) rotate(-90)">{escape(y_label)}</text>'
        )

    def svg(self) -> str:
        """The drawing, as one element."""
        head = f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(self.title)}">'
        return f"{head}<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>"


def chart(
    x: Sequence[float], y: Sequence[float], title: str, x_scale: str = "linear", y_scale: str = "linear"
) -> Chart:
    """An empty chart that has room for these values."""
    across = Axis(*limits(x, x_scale == "log"), LEFT, WIDTH - RIGHT, x_scale)
    return Chart(across, Axis(*limits(y, y_scale == "log"), HEIGHT - BOTTOM, TOP, y_scale), title)


def rows(
    ends: tuple[float, float], names: Sequence[str], title: str, scale: str = "linear", unit: float = 1.0
) -> Chart:
    """A chart from one end to the other, with a row for each name; `row_at` gives its height."""
    height, left = TOP + BOTTOM + ROW * len(names), min(230, 24 + round(6.6 * max(map(len, names))))
    out = Chart(Axis(*ends, left, WIDTH - RIGHT, scale, unit), Axis(0, 1, height - BOTTOM, TOP), title, height, left)
    for i, name in enumerate(names):
        out.segment((left, row_at(i)), (WIDTH - RIGHT, row_at(i)), "grid")
        out.text(left - 10, row_at(i) + 4, name, "name end")
    return out


def row_at(i: int) -> float:
    """The height of row i in a chart of rows."""
    return TOP + ROW * (i + 0.5)


def short(value: float) -> str:
    """A tick's number: 0.001, 25, 4k, 2M."""
    if value == 0:
        return "0"
    size = abs(value)
    sign = "−" if value < 0 else ""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= 10 * unit or (size >= unit and float(f"{size / unit:.4g}") == round(size / unit, 1)):
            return f"{sign}{size / unit:.6g}{letter}"
    return f"{sign}{size:.6g}" if size >= 1e-3 else f"{sign}{size:.0e}".replace("e-0", "e−").replace("e-", "e−")


def _shape(kind: str, x: float, y: float, r: float) -> str:
    def polygon(*points: tuple[float, float]) -> str:
        return f'<polygon points="{" ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in points)}"/>'

    def strokes(*lines: tuple[float, float, float, float]) -> str:
        path = " ".join(f"M{x + a * r:.1f} {y + b * r:.1f}L{x + c * r:.1f} {y + d * r:.1f}" for a, b, c, d in lines)
        return f'<path class="stroke" d="{path}"/>'

    shapes: dict[str, Callable[[], str]] = {
        "circle": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>',
        "square": lambda: polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": lambda: polygon((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "up": lambda: polygon((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        "down": lambda: polygon((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
        "cross": lambda: strokes((-1, -1, 1, 1), (-1, 1, 1, -1)),
        "plus": lambda: strokes((-1.2, 0, 1.2, 0), (0, -1.2, 0, 1.2)),
        "bar": lambda: strokes((0, -1.3, 0, 1.3)),
    }
    return shapes[kind]()


def swatch(number: int) -> str:
    """A series' marker by itself, for a legend."""
    mark = f'<g class="{colour(number)} mark">{_shape(_form(number), 7, 7, 5)}</g>'
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>'


def colour(number: int) -> str:
    """The class of a series: eight colours."""
    return f"s{number % len(MARKS)}"


def _form(number: int) -> str:
    """The shape of a series: another one when the colours come round again."""
    return MARKS[(number + 3 * (number // len(MARKS))) % len(MARKS)]
