"""The picture of a dependency graph: circles for sites, those that are observed shaded, boxes for plates.

Sites stand in layers, parents above children; the steps of a chain stand side by side. Where Graphviz is installed (its command
`dot`), it says where the sites of graphs without chains stand.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from inference._pictures._views.style import FAINT, INK, QUIET, new_figure
from inference._run.prepare import Prepared
from zoo._errors import UsageError, unknown
from zoo._program.graph import Graph, Vertex, of_parameters
from zoo._program.graph import graph as graph_of

FORMATS = ("svg", "png", "pdf")
ACROSS, DOWN, RADIUS = 1.25, 1.35, 0.36  # inches
SMALL = {"parameter": 0.14, "more": 0.2}  # the radius of what is no circle
MARGIN = 0.22  # of a box
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
SWEEPS = 12
CROWD = 10  # children of a parameter, from which on its arrows are faint
ROWS = 3  # of the data, on which parameters are looked up
WIDEST = 24.0  # inches

Places = dict[str, tuple[float, float]]


def check(path: Path) -> None:
    """Refuse a picture that could not be written, before any work."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise unknown("format", path.suffix.lstrip(".") or path.name, FORMATS)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder '{path.parent}' to write '{path.name}' into.")


def describe(prepared: Prepared, path: Path) -> None:
    """Write the picture of a program on data."""
    structure = prepared.structure
    shown = graph_of(structure, of_parameters(prepared.program(), prepared.x[:ROWS]))
    draw(shown, path, f"{structure.program} on {prepared.data.name}")


def draw(graph: Graph, path: Path, title: str) -> None:
    """Write the picture of a graph."""
    places = laid_out(graph)
    wide = max((x for x, _ in places.values()), default=0.0) + ACROSS
    high = max((y for _, y in places.values()), default=0.0) + DOWN
    shrink = min(1.0, WIDEST / wide)
    figure = new_figure(max(4.0, shrink * wide + 0.5), shrink * high + 0.4, title)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal")
    _boxes(axes, graph, places)
    for parent, child in sorted(graph.edges):
        _arrow(axes, graph, places, parent, child)
    for v in graph.vertices:
        _node(axes, v, *places[v.name], shrink)
    axes.set_xlim(-ACROSS * 0.75, wide - ACROSS * 0.25)
    axes.set_ylim(high - DOWN * 0.45, -DOWN * 0.4)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------ layout


def laid_out(graph: Graph) -> Places:
    """Where each vertex stands, in inches from the left and from the top."""
    if not any(v.series for v in graph.vertices) and (found := _by_dot(graph)):
        return found
    layer = _layers(graph)
    slots = {n: k for k, n in enumerate(sorted({v.number for v in graph.vertices if v.series}))}
    fixed = {v.name: float(slots[v.number]) for v in graph.vertices if v.series}
    rows = [[v.name for v in graph.vertices if layer[v.name] == k] for k in range(max(layer.values(), default=0) + 1)]
    across = _spread(graph, rows, fixed)
    return {name: (ACROSS * across[name], DOWN * layer[name]) for name in layer}


def _layers(graph: Graph) -> dict[str, int]:
    """Parents above children; parameters above all, or below where they belong to the last layer."""
    by_name = {v.name: v for v in graph.vertices}

    def counts(parent: str, child: str) -> bool:
        a, b = by_name[parent], by_name[child]
        along = bool(a.series and b.series and a.number != b.number)
        return not along and a.kind != "parameter"

    edges = [e for e in graph.edges if counts(*e)]
    layer = {v.name: 0 for v in graph.vertices if v.kind != "parameter"}
    for _ in layer:
        before = dict(layer)
        for parent, child in edges:
            layer[child] = max(layer[child], layer[parent] + 1)
        if layer == before:
            break
    for series in {by_name[n].series for n in layer} - {""}:  # one that others lead to only in places
        deepest = max(layer[n] for n in layer if by_name[n].series == series)
        layer |= {n: deepest for n in layer if by_name[n].series == series}
    shared = [layer[v.name] for v in graph.vertices if v.name in layer and "data" not in v.plates]
    layer = {n: k + (max(shared) + 1 if shared and "data" in by_name[n].plates else 0) for n, k in layer.items()}
    last = max(layer.values(), default=0)
    for v in graph.vertices:
        if v.kind == "parameter":
            below = [layer[c] for p, c in graph.edges if p == v.name]
            layer[v.name] = last + 1 if below and min(below) == last and last > 0 else -1
    used = sorted(set(layer.values()))
    return {name: used.index(k) for name, k in layer.items()}


def _spread(graph: Graph, rows: Sequence[list[str]], fixed: dict[str, float]) -> dict[str, float]:
    """How far to the right each stands: near its neighbours, beside the others of its layer and its plates."""
    above: dict[str, list[str]] = {v.name: [] for v in graph.vertices}
    below: dict[str, list[str]] = {v.name: [] for v in graph.vertices}
    layer = {name: k for k, row in enumerate(rows) for name in row}
    for a, b in sorted(graph.edges):
        a, b = (a, b) if layer[a] < layer[b] else (b, a)
        above[b].append(a)
        below[a].append(b)
    plates = {v.name: v.plates for v in graph.vertices}
    across = {name: fixed.get(name, float(k)) for row in rows for k, name in enumerate(row)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0  # and up at last: parents above the middle of their children
        for row in rows if down else reversed(rows):
            free = [n for n in row if n not in fixed]
            near = {n: (above if down else below)[n] or (below if down else above)[n] for n in free}
            wanted = {n: _mean([across[m] for m in near[n]], across[n]) for n in free}
            free.sort(key=lambda n: (plates[n], wanted[n]))
            across |= _apart(free, wanted, max((fixed[n] for n in row if n in fixed), default=None))
    least = min(across.values(), default=0.0)
    return {n: x - least for n, x in across.items()}


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _apart(names: Sequence[str], wanted: dict[str, float], beyond: float | None) -> dict[str, float]:
    """Places in that order, at least 1 apart and near what is wanted; to the right of `beyond`."""
    blocks: list[tuple[float, list[str]]] = []  # the mean of where its first would stand, and its names
    for name in names:
        start, members = wanted[name], [name]
        while blocks and blocks[-1][0] + len(blocks[-1][1]) > start:
            other, before = blocks.pop()
            shift = start - len(before)
            start = (other * len(before) + shift * len(members)) / (len(before) + len(members))
            members = before + members
        blocks.append((start, members))
    out = {n: start + k for start, members in blocks for k, n in enumerate(members)}
    if beyond is not None and out and (short := beyond + 1 - min(out.values())) > 0:
        out = {n: x + short for n, x in out.items()}
    return out


def _by_dot(graph: Graph) -> Places | None:
    """Where Graphviz puts the vertices; None where it is not installed, or fails."""
    command = shutil.which("dot")
    if command is None:
        return None
    number = {v.name: k for k, v in enumerate(graph.vertices)}
    clusters: dict[tuple[str, ...], list[int]] = {}
    for v in graph.vertices:
        clusters.setdefault(v.plates, []).append(number[v.name])
    lines = [f"node [shape=circle fixedsize=true width={2 * RADIUS}]; nodesep=0.5; ranksep=0.55"]
    for plates, members in clusters.items():
        opened = "".join(f'subgraph "cluster_{k}_{number_of}" {{ ' for k, number_of in enumerate(plates))
        lines.append(opened + "; ".join(map(str, members)) + " }" * len(plates))
    lines += [f"{number[a]} -> {number[b]}" for a, b in sorted(graph.edges)]
    text = "digraph {\n" + "\n".join(lines) + "\n}\n"
    try:
        done = subprocess.run([command, "-Tplain"], input=text, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    words = [line.split() for line in done.stdout.splitlines()]
    found = {int(w[1]): (float(w[2]), -float(w[3])) for w in words if w[0] == "node"}
    if found.keys() != set(number.values()):
        return None
    left, top = min(x for x, _ in found.values()), min(y for _, y in found.values())
    return {name: (found[k][0] - left, found[k][1] - top) for name, k in number.items()}


# ----------------------------------------------------------------------------------------------------------- drawing


def _boxes(axes: Axes, graph: Graph, places: Places) -> None:
    """A box around the sites of each plate, outer plates first."""
    around = {v.plates[: k + 1] for v in graph.vertices for k in range(len(v.plates))}
    for plates in sorted(around, key=len):
        inside = [v for v in graph.vertices if v.plates[: len(plates)] == plates]
        deeper = max(len(v.plates) for v in inside) - len(plates)
        more = RADIUS + MARGIN * (0.7 + deeper)
        xs, ys = zip(*(places[v.name] for v in inside), strict=True)
        x, y = min(xs) - more, min(ys) - more
        wide, high = max(xs) - min(xs) + 2 * more, max(ys) - min(ys) + 2 * more + 0.2
        axes.add_patch(
            FancyBboxPatch((x, y), wide, high, "round,pad=0,rounding_size=0.12", fill=False, ec=QUIET, lw=1.0)
        )
        label = f"{plates[-1]}: {graph.sizes.get(plates[-1], 0):,}"
        axes.text(
            x + wide - 0.08,
            y + high - 0.06,
            label,
            fontsize=8,
            color=QUIET,
            ha="right",
            va="bottom",
            bbox=CLEAR,
            zorder=3,
        )


def _node(axes: Axes, v: Vertex, x: float, y: float, shrink: float) -> None:
    if v.kind == "more":
        axes.text(x, y, "…", fontsize=16 * shrink, color=INK, ha="center", va="center")
        return
    if v.kind == "parameter":
        axes.text(x, y, v.name, fontsize=_size(v.name, 8, shrink), color=INK, ha="center", va="center")
        return
    shaded = "#D5D5D5" if v.kind == "observed" else "white"
    axes.add_patch(Circle((x, y), RADIUS, facecolor=shaded, edgecolor=INK, linewidth=1.1, zorder=2))
    axes.text(x, y - 0.05, v.name, fontsize=_size(v.name, 10, shrink), color=INK, ha="center", va="center")
    axes.text(x, y + 0.16, v.family, fontsize=_size(v.family, 5.5, shrink), color=QUIET, ha="center", va="center")


def _size(text: str, points: float, shrink: float) -> float:
    """A size of letters at which a text fits in its circle, or between two."""
    return shrink * min(points, 80 / max(1, len(text)))


def _arrow(axes: Axes, graph: Graph, places: Places, parent: str, child: str) -> None:
    """An arrow from border to border; bent where it would go through another vertex."""
    kinds = {v.name: v.kind for v in graph.vertices}
    thin = kinds[parent] == "parameter"
    (x0, y0), (x1, y1) = places[parent], places[child]
    length = math.hypot(x1 - x0, y1 - y0)
    if length == 0:
        return
    in_the_way = min(abs(x1 - x0), abs(y1 - y0)) < 0.1 and any(
        name not in (parent, child) and _distance(place, (x0, y0), (x1, y1)) < RADIUS for name, place in places.items()
    )
    from_, to = (SMALL.get(kinds[name], RADIUS) / length for name in (parent, child))
    start = x0 + from_ * (x1 - x0), y0 + from_ * (y1 - y0)
    end = x1 + to * (x0 - x1), y1 + to * (y0 - y1)
    bend = "arc3,rad=0.35" if in_the_way else "arc3"
    crowd = thin and sum(a == parent for a, _ in graph.edges) > CROWD
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, connectionstyle=bend, shrinkA=0, shrinkB=0)
    arrow.set(color=FAINT if crowd else QUIET if thin else INK, linewidth=0.7 if thin else 1.0, zorder=0 if thin else 1)
    axes.add_patch(arrow)


def _distance(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    """Of a point from a stretch."""
    (px, py), (ax, ay), (bx, by) = p, a, b
    along = (px - ax) * (bx - ax) + (py - ay) * (by - ay)
    share = min(1.0, max(0.0, along / ((bx - ax) ** 2 + (by - ay) ** 2)))
    return math.hypot(px - ax - share * (bx - ax), py - ay - share * (by - ay))
