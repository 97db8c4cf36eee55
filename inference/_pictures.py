"""The pictures of a run: clusters, profiles, traces, k-hat, missing entries.

Which of them a run gets follows from its program's structure and its data, never from a model's name. Densities and
colours come from the exact engine at the run's own θ, whatever method found it. A marginal density over one or two
columns is log p of rows in which every other column is unobserved: the program itself integrates them out.

Contours are highest-density regions (Hyndman 1996, "Computing and graphing highest density regions"): the smallest
regions that hold a given share of the probability. Colours are Okabe & Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import colormaps, colors, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from inference import _families, _store
from inference._exact import Enumeration, View
from inference._runner import reopen, task_of
from inference._task import Task
from zoo._errors import UsageError
from zoo._program import blame

Format = Literal["png", "pdf", "svg"]
Inches = tuple[float, float]
Look = dict[str, Any]  # keywords of a matplotlib artist
Draw = Callable[["_Scene"], Figure]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
INK, QUIET, FAINT = "#222222", "#777777", "#DDDDDD"
SHADES = ("#F1F1F1", "#E3E3E3", "#D2D2D2", "#BEBEBE")  # outermost region first
SHARES = (0.25, 0.5, 0.75, 0.95)  # of the probability, in the density's regions
DRAWN_ROWS = 20_000  # more points say no more
NUMBERS = 2**22  # numbers in one block of rows: bounds the memory
MOST_LABELS = 12  # labels of components in one picture
MOST_COMPONENTS = 40  # ellipses, curves or profile rows in one picture
MOST_PAIRED = 5  # columns of a grid of pairs
MOST_SCREENED = 200  # columns among which the best pair is sought


def plot(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    format: Format = "png",
    dpi: float = 150,
) -> list[Path]:
    """Draw the pictures that belong to a saved run, into `out` (its own folder `plots` when None); returns their paths.

    - `clusters`: the data coloured by p(z | x), with the density's regions; `pairs`: the same for 3 to 5 columns
    - `components`: each component's mean, as an image or as a row of a heat map
    - `trace`: what was climbed, by iteration; `khat`: the weights' quality by datum; `missing`: what was unobserved

    Raises `UsageError` when `run` is not a run, nothing can be drawn of it, or `out` cannot be written.
    """
    if format not in ("png", "pdf", "svg"):
        raise UsageError(f"format is '{format}'; known: png, pdf, svg.")
    if not 10 <= dpi <= 2400:
        raise UsageError(f"dpi is {dpi:g}; give a number from 10 to 2400.")
    stored = _store.load(run)
    scene = _scene(stored)
    folder = stored.folder / "plots" if out is None else Path(out)
    # all are drawn before the first is written: a failure leaves no half set
    figures = [(name, draw(scene)) for name, draw in _belonging(scene).items()]
    return [_write(figure, folder, f"{name}.{format}", dpi) for name, figure in figures]


def _belonging(scene: _Scene) -> dict[str, Draw]:
    """Name → how to draw it, for each picture that the run has something to show in."""
    pictures: dict[str, Draw] = {}
    if scene.oracle is not None:
        pictures |= _of_the_program(scene)
    if any(len(values) for name, values in scene.trace.items() if name != "lr"):
        pictures["trace"] = _trace
    if "khat" in scene.stats:
        pictures["khat"] = _khat
    if np.isnan(scene.x).any():
        pictures["missing"] = _missing
    if not pictures:
        raise UsageError(
            f"there is nothing to draw of '{scene.folder}': its posterior is not exact, nothing was iterated, no k-hat "
            f"was taken and no entry is missing.{' ' + scene.obstacle if scene.obstacle else ''}"
        )
    if scene.obstacle:
        warnings.warn(f"no picture of the clusters or components: {scene.obstacle}", stacklevel=3)
    return pictures


def _of_the_program(scene: _Scene) -> dict[str, Draw]:
    pictures: dict[str, Draw] = {}
    oracle, image = scene.oracle, scene.image_shape
    assert oracle is not None
    several = oracle.A > 1
    if scene.is_table and image is None:
        columns = scene.columns
        if len(columns) == 1:
            pictures["clusters"] = _histogram
        elif len(columns) > 1 and not all(map(oracle.is_binary, columns)):
            pictures["clusters"] = _clusters  # of two binary columns there are four points to see, and no clusters
        if 3 <= scene.x.shape[1] <= MOST_PAIRED and "clusters" in pictures:
            pictures["pairs"] = _pairs
    wide = scene.x[0].size > MOST_PAIRED
    if image is not None:
        pictures["components"] = _images
    elif several and scene.is_table and len(scene.columns) > 1 and (wide or not oracle.gaussian):
        pictures["components"] = _profiles
    return pictures


def _write(figure: Figure, folder: Path, name: str, dpi: float) -> Path:
    """Save under a temporary name, then rename: a reader never sees half a picture."""
    path, temporary = folder / name, folder / f".{name}.{os.getpid()}"
    kind = path.suffix[1:]
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format=kind, dpi=dpi, facecolor="white", metadata=undated)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


# ---- what is drawn ---------------------------------------------------------------------------------------


@dataclass
class _Scene:
    """A run as the pictures see it."""

    folder: Path
    json: dict[str, Any]
    x: np.ndarray  # [n, …], NaN where unobserved
    stats: dict[str, np.ndarray]  # per datum
    trace: dict[str, np.ndarray]  # over the iterations
    oracle: _Oracle | None  # where the posterior is exact
    obstacle: str = ""  # why there is no oracle although there could be one

    @property
    def is_table(self) -> bool:
        return self.x.ndim == 2

    @property
    def image_shape(self) -> tuple[int, int] | None:
        shape = self.json.get("image_shape")
        return tuple(shape) if shape and math.prod(shape) == self.x[0].size else None

    @cached_property
    def columns(self) -> list[int]:
        """The columns with anything observed, in the rows that are drawn."""
        x = self.x.reshape(len(self.x), -1) if self.oracle is None else self.oracle.x
        return np.flatnonzero(~np.isnan(x).all(0)).tolist()

    def name(self, column: int) -> str:
        names = self.json.get("columns") or ()
        return _plain(names[column] if column < len(names) else f"x{column}")

    def title(self, what: str = "") -> str:
        """Model, data and method; the evidence with its kind; what else is to be said."""
        chosen = self.json["options"]["model"]
        options = ", ".join(k if v is True else f"{k} = {v}" for k, v in chosen.items())
        model = _plain(Path(self.json["model"]).name, 60) + (f" ({_plain(options, 60)})" if options else "")
        prepared = {k: v for k, v in self.json["options"]["data"].items() if k not in ("source", "seed")}
        how = ", ".join(k if v is True else f"{k} {v}" for k, v in prepared.items())
        data = _plain(self.json["data"]) + (f" ({_plain(how)})" if how else "")
        lines = [f"{model} · {data} · {self.json['method']}", _evidence(self.json), what]
        return "\n".join(line for line in lines if line)


def _scene(stored: _store.Run) -> _Scene:
    def group(name: str) -> dict[str, np.ndarray]:
        return {str(k): v.values for k, v in stored.tree[name].data_vars.items()} if name in stored.tree else {}

    oracle, obstacle = None, ""
    try:
        prepared = reopen(stored)
        if prepared.structure.exact == "enumerable":
            oracle = _Oracle(task_of(prepared, stored))
    except UsageError as error:  # its file is gone, say: what the folder itself holds can still be drawn
        obstacle = str(error)
    return _Scene(stored.folder, stored.json, stored.x, group("sample_stats"), group("trace"), oracle, obstacle)


class _Oracle:
    """The program of a run at the run's own point: log p(x, a) of whatever rows are asked about, exactly."""

    def __init__(self, task: Task) -> None:
        self.task, self.globals = task, task.global_start()
        index = np.arange(len(task.x))
        if len(index) > DRAWN_ROWS:
            index = np.sort(np.random.default_rng(0).choice(index, DRAWN_ROWS, replace=False))
        self.rows = index  # those that are drawn
        self.x = task.x.numpy().reshape(len(task.x), -1)[index]  # [drawn, D]
        self.exact = self._engine(task.x[index])
        self.A = self.exact.A

    def _engine(self, x: torch.Tensor) -> Enumeration:
        with blame(self.task.program.name), torch.no_grad():
            return Enumeration(self.task.program, self.task.structure, x)

    @torch.no_grad()
    def joint(self, x: np.ndarray) -> np.ndarray:
        """log p(x_i, a) [rows, A] of rows [rows, D], nats. Raises `UsageError` where the program cannot say."""
        out = []
        most = max(2, NUMBERS // (x.shape[1] * self.A))
        for rows in torch.as_tensor(x).reshape(len(x), *self.task.x.shape[1:]).split(most):
            exact = self._engine(rows)
            with blame(self.task.program.name):
                views, _ = exact.views(None, self.globals)
                out.append(exact.log_joint(slice(0, len(rows)), views, None, self.globals).detach())
        return torch.cat(out).numpy()

    @cached_property
    def responsibilities(self) -> np.ndarray:
        """p(a | x_i) [drawn, A]."""
        return self.exact.responsibilities(None, self.globals).numpy()

    def marginal(self, points: np.ndarray, columns: Sequence[int]) -> np.ndarray:
        """log p(x, a) [points, A] of points [points, c] in a few columns, the others unobserved; nats."""
        covariance, prior = self.covariance(columns), self._log_prior
        if covariance is not None and prior is not None and len(columns) < self.x.shape[1]:
            # a normal's marginal is known: hundreds of columns need not be integrated out for each point
            means = torch.as_tensor(self.means[:, list(columns)])
            with blame(self.task.program.name):
                normal = torch.distributions.MultivariateNormal(means, torch.as_tensor(covariance))
                return prior + normal.log_prob(torch.as_tensor(points).unsqueeze(1)).numpy()
        rows = np.full((len(points), self.x.shape[1]), np.nan)
        rows[:, list(columns)] = points
        return self.joint(rows)

    @cached_property
    def _log_prior(self) -> np.ndarray | None:
        """log p(a) [A]: the joint of a row with nothing observed. None where it depends on the row's own data."""
        try:
            prior = self.joint(np.full((2, self.x.shape[1]), np.nan))[0]
        except UsageError:
            return None
        return prior if abs(np.exp(prior).sum() - 1) < 1e-6 else None

    @cached_property
    def weights(self) -> np.ndarray:
        """p(a) [A], or the share of the data where a program has none that is the same for all rows."""
        return self.responsibilities.mean(0) if self._log_prior is None else np.exp(self._log_prior)

    @cached_property
    def order(self) -> np.ndarray:
        """The components, the heaviest first."""
        return np.argsort(-self.weights, kind="stable")

    def label(self, a: int) -> str:
        """ "z = 1"; "" for a program without latents."""
        return _plain(re.sub(r"(\d)\.0(?!\d)", r"\1", self.exact.label(a)).replace("=", " = "))

    def caption(self, a: int) -> str:
        """ "z = 1, 36 %"."""
        return f"{self.label(a)}, {_percent(self.weights[a])}"

    def at(self, a: int, columns: Sequence[int]) -> tuple[float, float]:
        """A component's mean in two columns."""
        x, y = self.means[a, list(columns)].tolist()
        return x, y

    @cached_property
    def _views(self) -> list[View]:
        with torch.no_grad():
            return self.exact.views(None, self.globals)[0]

    @cached_property
    def _sites(self) -> dict[str, tuple[Any, np.ndarray]]:
        """Observed site → (its distribution on two rows under all assignments, the column of x of each entry or −1)."""
        seen = np.argsort(np.isnan(self.x).sum(1), kind="stable")[:200]
        few = self.task.x[self.rows[np.sort(seen)]]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), blame(self.task.program.name):
            plain = self.task.program.trace(few, latents=self.globals, raw=True)
            latents = {**self.exact.assignments, **self.globals}
            probe = self.task.program.trace(few[[0, -1]].nan_to_num(0.0), latents=latents, raw=True)
        x = few.reshape(len(few), -1)
        out: dict[str, tuple[Any, np.ndarray]] = {}
        for site in self.task.structure.observed:
            value: Any = plain.nodes[site.name]["value"]
            if site.scope == "local" and value.shape[:1] == x.shape[:1]:
                out[site.name] = (probe.nodes[site.name]["fn"], _columns_of(value.reshape(len(x), -1), x))
        return out

    @cached_property
    def means(self) -> np.ndarray:
        """E[x | a] [A, D]: the site's own mean, or the data's by responsibility where it has none."""
        seen = ~np.isnan(self.x)
        counts = self.responsibilities.T @ seen
        means = self.responsibilities.T @ np.where(seen, self.x, 0.0) / np.maximum(counts, 1e-300)
        means[counts < 1e-9] = np.nan
        for fn, columns in self._sites.values():
            own = _mean_of(fn, self.A)
            if own is not None and own.shape[1] == len(columns):
                use = (columns >= 0) & np.isfinite(own).all(0)
                means[:, columns[use]] = own[:, use]
        return means

    def support(self, column: int) -> Any | None:
        """The constraint on a column's values, or None where its site has none entry by entry."""
        for fn, columns in self._sites.values():
            if column in columns:
                support = fn.support
                while hasattr(support, "base_constraint"):
                    support = support.base_constraint
                return None if support.event_dim else support
        return None

    def is_whole(self, column: int) -> bool:
        """Whether a column's values are counts or categories."""
        return bool(getattr(self.support(column), "is_discrete", False))

    def is_binary(self, column: int) -> bool:
        values = self.x[:, column]
        return self.is_whole(column) and bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())

    @cached_property
    def gaussian(self) -> bool:
        """Whether every column is Gaussian given the component."""
        return self.covariance(list(range(self.x.shape[1]))[:2]) is not None and all(
            isinstance(self.exact.families.get(n), _families.Normal | _families.MultivariateNormal) for n in self._sites
        )

    def covariance(self, columns: Sequence[int]) -> np.ndarray | None:
        """Cov(x | a) [A, c, c] of a few columns, where they are Gaussian given the component; else None."""
        out, known = np.zeros((self.A, len(columns), len(columns))), set()
        for view in self._views:
            entries = self._sites[view.name][1].tolist() if view.name in self._sites else []
            place = [i for i, c in enumerate(columns) if c in entries]
            if place:
                block = _block(self.exact.families.get(view.name), view, [entries.index(columns[i]) for i in place])
                if block is None:
                    return None
                out[np.ix_(range(self.A), place, place)] = block
                known |= set(place)
        return out if len(known) == len(columns) else None

    def spread(self, columns: Sequence[int]) -> np.ndarray:
        """About how far each component reaches in a few columns: standard deviations [A, c]."""
        covariance = self.covariance(columns)
        if covariance is not None:
            return np.sqrt(np.diagonal(covariance, 0, 1, 2))
        x, seen = self.x[:, list(columns)], ~np.isnan(self.x[:, list(columns)])
        squares = [
            r @ np.where(seen, x - m, 0.0) ** 2
            for r, m in zip(self.responsibilities.T, self.means[:, list(columns)], strict=True)
        ]
        return np.sqrt(np.array(squares) / np.maximum(self.responsibilities.T @ seen, 1e-300))


def _columns_of(value: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    """For each entry of a site's value [rows, E], the column of x [rows, D] that it is, or −1."""
    if value.shape == x.shape and torch.equal(value.nan_to_num(0.0), x.nan_to_num(0.0)):
        return np.arange(x.shape[1])
    same = [
        [bool(torch.equal(v.nan_to_num(0.0).to(c.dtype), c.nan_to_num(0.0))) for c in x.unbind(1)]
        for v in value.unbind(1)
    ]
    return np.array([row.index(True) if True in row else -1 for row in same], dtype=int)


def _mean_of(fn: Any, assignments: int) -> np.ndarray | None:
    """The mean [A, E] of a distribution over two rows, or None where it has none or differs from row to row."""
    try:
        mean = fn.mean
        mean = mean.expand(assignments, 2, *fn.event_shape).reshape(assignments, 2, -1)
    except (NotImplementedError, RuntimeError, AttributeError):
        return None
    return mean[:, 0].detach().numpy() if torch.equal(mean[:, 0], mean[:, 1]) else None


def _block(family: Any, view: View, entries: list[int]) -> np.ndarray | None:
    """The covariance [A, e, e] of some entries of a Gaussian site, or None for another family."""
    if view.params is None:
        return None
    p = {k: v.detach() for k, v in view.params.items()}
    if isinstance(family, _families.Normal):
        return torch.diag_embed(p["scale"][:, entries].square()).numpy()
    if not isinstance(family, _families.MultivariateNormal):
        return None
    if "scale_tril" in p:
        part = p["scale_tril"][:, entries]
        return (part @ part.mT).numpy()
    full = p["covariance_matrix"] if "covariance_matrix" in p else torch.linalg.inv(p["precision_matrix"])
    return full[:, entries][:, :, entries].numpy()


# ---- colours, densities, columns -------------------------------------------------------------------------


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


def hdr_levels(
    log_density: np.ndarray, cell: np.ndarray | float, shares: Sequence[float] = SHARES
) -> dict[float, float]:
    """Share → the log density on the border of the smallest region that holds that share of the probability.

    `log_density` on a grid, with the size of each grid point's `cell`. A share that the grid does not hold is left out.
    """
    flat = log_density.ravel()
    order = np.argsort(-flat)
    mass = np.cumsum(np.exp(flat[order]) * np.broadcast_to(cell, log_density.shape).ravel()[order])
    return {q: float(np.interp(q, mass, flat[order])) for q in shares if q < mass[-1]}


def cells(axis: np.ndarray) -> np.ndarray:
    """The width that each point of an ascending axis stands for (the trapezoid rule)."""
    gaps = np.diff(axis)
    return np.concatenate([gaps[:1], gaps[:-1] + gaps[1:], gaps[-1:]]) / 2


def telling_pair(x: np.ndarray, responsibilities: np.ndarray) -> tuple[int, int]:
    """The two columns of x [n, D] in which the components differ most.

    That is the least Wilks's Λ = det W / det T, where T = W + B are the total, within and between scatter of the two:
    the product, over their two directions, of the share of the variance that the components leave unexplained.
    """
    seen = ~np.isnan(x)
    center = np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    residual = np.where(seen, x - center, 0.0)
    spread = np.sqrt(np.square(residual).sum(0) / np.maximum(seen.sum(0), 1))
    residual = residual / np.where(spread > 0, spread, 1.0)
    weight = responsibilities.T @ seen  # [A, D]
    means = responsibilities.T @ residual / np.maximum(weight, 1e-300)
    share = weight / np.maximum(weight.sum(0), 1e-300)
    one = np.where(spread > 0, (share * means**2).sum(0), -1.0)  # a constant column tells nothing
    best = np.sort(np.argsort(-one, kind="stable")[:MOST_SCREENED])
    seen, residual, means, share = seen[:, best].astype(float), residual[:, best], means[:, best], share[:, best]
    total = residual.T @ residual / np.maximum(seen.T @ seen, 1.0)
    np.fill_diagonal(total, 1.0)
    between = (np.sqrt(share) * means).T @ (np.sqrt(share) * means)
    within = total - between

    def log_det(m: np.ndarray) -> np.ndarray:  # of each pair's 2 × 2 block; missing entries can make one indefinite
        d = np.diagonal(m)
        return np.log(np.maximum(np.outer(d, d) - m**2, 1e-9))

    score = log_det(total) - log_det(within)
    score[(one[best] < 0)] = -1.0
    score[:, (one[best] < 0)] = -1.0
    score[np.tril_indices(len(best))] = -np.inf
    i, j = np.unravel_index(int(score.argmax()), score.shape)
    return int(best[i]), int(best[j])


def _axis(oracle: _Oracle, column: int, count: int) -> tuple[np.ndarray, bool]:
    """Values of a column to evaluate the density at, ascending, within its support; and whether they are whole numbers."""
    values = oracle.x[:, column]
    low, high = np.nanmin(values), np.nanmax(values)
    support = oracle.support(column)
    whole = oracle.is_whole(column)
    span = (high - low) or max(1.0, abs(low))
    if whole:
        axis = np.arange(math.floor(low - 0.3 * span), math.ceil(high + 0.3 * span) + 1, dtype=float)
    else:  # fine where it is seen; coarse beyond, where the rest of the probability is
        beyond = np.linspace(0.36, 1.5, 14) * span
        parts = [low - beyond, np.linspace(low - 0.33 * span, high + 0.33 * span, count), high + beyond]
        covariance = oracle.covariance([column])
        if covariance is not None:  # a component narrower than the steps would slip through, a wide one reach further
            scale, step = np.sqrt(covariance[:, 0, 0]), parts[1][1] - parts[1][0]
            odd = [a for a in oracle.order if scale[a] < 3 * step or scale[a] > 0.3 * span][:6]
            parts += [oracle.means[a, column] + scale[a] * np.linspace(-4, 4, 33) for a in odd]
        axis = np.unique(np.concatenate(parts))
    return (axis if support is None else _within(axis, support, whole)), whole


def _within(axis: np.ndarray, support: Any, whole: bool) -> np.ndarray:
    """The points of an axis inside a support, and more of them towards its borders, where densities may be steep."""
    inside = torch.as_tensor(support.check(torch.as_tensor(axis))).numpy()
    if inside.shape != axis.shape or inside.sum() < 2:
        return axis
    kept = axis[inside]
    more = [kept]
    for first, step in ((kept[0], kept[0] - kept[1]), (kept[-1], kept[-1] - kept[-2])):
        if not whole and not inside[0 if step < 0 else -1]:
            shares = np.linspace(0, 1, 2**12, endpoint=False)  # of a step towards the border
            reached = torch.as_tensor(support.check(torch.as_tensor(first + shares * step))).numpy()
            border = first + shares[reached].max() * step
            more.append(border + (first - border) * 0.6 ** np.arange(16))
    return np.unique(np.concatenate(more))


@dataclass
class _Density:
    """log p(x, a) over one or two columns, the others unobserved."""

    axes: list[np.ndarray]
    joint: np.ndarray  # [points of the axes …, A], nats
    cell: np.ndarray  # [points of the axes …]
    whole: bool  # on whole numbers

    @property
    def log_density(self) -> np.ndarray:
        return np.logaddexp.reduce(self.joint, axis=-1)


def _density(oracle: _Oracle, columns: Sequence[int], count: int) -> _Density | None:
    """The density over these columns, or None where the program gives none that could be drawn."""
    made = [_axis(oracle, c, count) for c in columns]
    axes = [axis for axis, _ in made]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(columns))
    try:
        joint = oracle.marginal(points, columns).reshape(*map(len, axes), oracle.A)
    except UsageError:  # a family of which nothing can be left out
        return None
    cell: Any = 1.0
    for axis, whole in made:
        cell = np.multiply.outer(cell, np.ones_like(axis) if whole else cells(axis))
    density = _Density(axes, joint, cell, any(whole for _, whole in made))
    with np.errstate(over="ignore", invalid="ignore"):
        mass = (np.exp(density.log_density) * cell).sum()
    # what does not come to one is no density of these columns: one given others, or too sharp for the grid
    return density if 0.5 < mass < 1.05 else None


# ---- the parts of a picture ------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06))
    FigureCanvasAgg(figure)
    lines = [textwrap.fill(line, int(13 * width), subsequent_indent="    ") for line in title.split("\n")]
    figure.suptitle("\n".join(lines), x=0.012, ha="left", fontsize=10, color=INK, linespacing=1.4)
    return figure


def _style(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(size=10, color=INK)
    axes.yaxis.label.set(size=10, color=INK)
    return axes


def _bar(figure: Figure, image: Any, axes: Any, **how: Any) -> Any:
    bar: Any = figure.colorbar(image, ax=axes, **how)
    bar.ax.tick_params(labelsize=8, colors=QUIET)
    bar.outline.set_visible(False)
    return bar


def _turned(labels: int) -> Look:
    """How to write so many labels side by side."""
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if labels > 6 else {}


def _plain(text: Any, most: int = 40) -> str:
    """A user's own words: shortened, and without the dollar signs' meaning to matplotlib."""
    words = str(text)
    words = words if len(words) <= most else words[: most - 1] + "…"
    return words.replace("$", r"\$")


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")  # a narrow space


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _evidence(document: dict[str, Any]) -> str:
    """ "log p(x) = −1130.264 nats (exact)": what was verified, or else what was claimed."""
    evidence = document.get("verified_log_evidence") or document["log_evidence"]
    if evidence["value"] is None:
        return f"log p(x) is not finite ({evidence['kind']})"
    se, sign = evidence.get("se"), "≥" if evidence["kind"] == "lower bound" else "="
    digits = 3 if not se else int(np.clip(1 - math.floor(math.log10(se)), 0, 6))
    spread = f" ± {se:.{digits}f}" if se else ""
    given = f", given {_plain(evidence['given'], 70)}" if evidence.get("given") else ""
    sign = "≈" if evidence["kind"] == "estimate" else sign
    return f"log p(x) {sign} {_number(evidence['value'], digits)}{spread} nats ({evidence['kind']}{given})"


def _scatter(axes: Axes, oracle: _Oracle, pair: tuple[int, int], palette: np.ndarray, scale: float = 1.0) -> None:
    """The data in two columns, coloured by responsibility; those seen in one of them only as ticks along its axis."""
    x = oracle.x[:, list(pair)]
    shade = blend(oracle.responsibilities, palette)
    seen = ~np.isnan(x)
    both = seen.all(1)
    n = max(1, int(both.sum()))
    size = scale * float(np.clip(2600 / n, 2.0, 26.0))
    alpha = float(np.clip((1500 / n) ** 0.5, 0.15, 0.85))
    points, tint, times = _gathered(x[both], shade[both])
    order = np.random.default_rng(0).permutation(len(points))  # so that no component lies over another
    look: Look = {"alpha": alpha, "linewidths": 0, "rasterized": len(points) > 2000, "zorder": 2}
    axes.scatter(points[order, 0], points[order, 1], s=size * times[order], c=tint[order], **look)
    for d in (0, 1):
        alone = seen[:, d] & ~seen[:, 1 - d]
        _ticks(axes, x[alone, d], shade[alone], d, 0.028 * scale**0.5)


def _gathered(points: np.ndarray, shade: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [m, 2], their colours, and how many data each stands for: counts often fall on the same spot."""
    spots, inverse, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if len(spots) > 0.6 * len(points):
        return points, shade, np.ones(len(points))
    tint = np.zeros((len(spots), 3))
    np.add.at(tint, inverse.ravel(), shade)
    return spots, tint / times[:, None], times.astype(float)


def _ticks(axes: Axes, at: np.ndarray, shade: np.ndarray, dimension: int, length: float) -> None:
    """Ticks of a length in shares of the axes, inside the axis of one dimension."""
    if not len(at):
        return
    near = np.stack([at, np.zeros_like(at)], 1)
    far = np.stack([at, np.full_like(at, length)], 1)
    segments = np.stack([near, far], 1)[:, :, [0, 1] if dimension == 0 else [1, 0]]
    transform = axes.get_xaxis_transform() if dimension == 0 else axes.get_yaxis_transform()
    lines = LineCollection(list(segments), colors=shade, transform=transform, linewidths=0.9, zorder=2, alpha=0.9)
    axes.add_collection(lines, autolim=False)


def _regions(axes: Axes, density: _Density | None, line: float = 0.6) -> list[Patch]:
    """Shade the highest-density regions; returns their legend."""
    if density is None or (density.whole and min(map(len, density.axes)) < 8):
        return []  # on a few whole numbers there are no contours
    log_density = density.log_density
    levels = hdr_levels(log_density, density.cell)
    shares = sorted(levels, reverse=True)
    heights = [levels[q] for q in shares]
    if not shares or (np.diff(heights) <= 0).any():
        return []
    floor = heights[0] - 50
    field = np.where(np.isfinite(log_density), np.maximum(log_density, floor), floor).T
    shades = SHADES[-len(shares) :]
    top = max(float(field.max()), heights[-1]) + 1
    axes.contourf(*density.axes, field, levels=[*heights, top], colors=shades, zorder=0)
    axes.contour(*density.axes, field, levels=heights, colors="#A0A0A0", linewidths=line, linestyles="solid", zorder=1)
    return [
        Patch(facecolor=s, edgecolor="#A0A0A0", linewidth=0.6, label=f"{q:.0%}".replace("%", " %"))
        for q, s in zip(shares, shades, strict=True)
    ][::-1]


def _ellipses(axes: Axes, oracle: _Oracle, pair: tuple[int, int], palette: np.ndarray, width: float = 1.6) -> None:
    """Each component's mean and, where it is Gaussian, its ellipses of one and two standard deviations."""
    covariance = oracle.covariance(pair)
    cross: Look = {"markersize": 5.5 * width, "markeredgecolor": "white", "markeredgewidth": 0.55 * width, "zorder": 4}
    for a in oracle.order[:MOST_COMPONENTS]:
        at = oracle.at(a, pair)
        if covariance is not None:
            values, vectors = np.linalg.eigh(covariance[a])
            angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
            for k in (1, 2):
                long, short = (2 * k * np.sqrt(np.maximum(values[::-1], 0.0))).tolist()
                line: Look = {"edgecolor": palette[a], "facecolor": "none", "linewidth": width / k**0.5, "zorder": 3}
                axes.add_patch(Ellipse(at, long, short, angle=angle, **line))
        axes.plot(*at, "P", color=palette[a], **cross)


def _limits(axes: Axes, oracle: _Oracle, pair: Sequence[int]) -> None:
    """Room for the data and, within reason, for the components."""
    setters: list[Callable[..., Any]] = [axes.set_xlim, axes.set_ylim]
    for column, set_limits in zip(pair, setters, strict=False):
        low, high = np.nanmin(oracle.x[:, column]), np.nanmax(oracle.x[:, column])
        span = (high - low) or max(1.0, abs(low))
        lows, highs = [low], [high]
        covariance = oracle.covariance([column])
        if covariance is not None:
            reach = 2.5 * np.sqrt(covariance[:, 0, 0])
            lows, highs = [*lows, *(oracle.means[:, column] - reach)], [*highs, *(oracle.means[:, column] + reach)]
        set_limits(max(min(lows), low - 0.25 * span) - 0.06 * span, min(max(highs), high + 0.25 * span) + 0.06 * span)


def _label_means(axes: Axes, oracle: _Oracle, pair: tuple[int, int], palette: np.ndarray, inches: Inches) -> None:
    """ "z = 0, 64 %" beside each mean, each where it covers the fewest data, means and other labels.

    `inches`: about how large the axes are; good enough to tell what is in the way without drawing first.
    """
    if oracle.A == 1:
        return
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    columns = list(pair)

    def on_page(values: np.ndarray) -> np.ndarray:  # in points
        return (values - low) / (high - low) * np.array(inches) * 72

    shown = [a for a in oracle.order[:MOST_LABELS] if np.isfinite(oracle.means[a, columns]).all()]
    means = on_page(oracle.means[shown][:, columns])
    edges = on_page(low + 2.5 * oracle.spread(pair)[shown])  # from the mean to beyond the outer ellipse
    points = on_page(oracle.x[:, columns][:2000])
    points = points[np.isfinite(points).all(1)]
    boxes: list[np.ndarray] = []
    for a, mean, edge in zip(shown, means, edges, strict=True):
        text = oracle.caption(a)
        half = np.array([0.29 * 9 * len(text), 6.5])
        offsets = _around(edge, half)
        candidates = [np.concatenate([mean + o - half, mean + o + half]) for o in offsets]
        costs = [
            _cost(box, boxes, means, points, inches) + 0.02 * math.hypot(*offset) + (2 if i >= 12 else 0)
            for i, (box, offset) in enumerate(zip(candidates, offsets, strict=True))
        ]
        best = int(np.argmin(costs))
        boxes.append(candidates[best])
        place: Look = {"xytext": offsets[best], "textcoords": "offset points", "ha": "center", "va": "center"}
        far = oracle.A > 4 and math.hypot(*offsets[best]) > 75  # points: it takes a line to see whose label it is
        line: Look = {"arrowstyle": "-", "color": palette[a], "linewidth": 0.7, "alpha": 0.7, "shrinkB": 4}
        axes.annotate(text, oracle.at(a, pair), arrowprops=line if far else None, **place, **_bold(palette[a]))


def _bold(color: np.ndarray) -> Look:
    """A label in a component's colour, darker, that can be read over anything."""
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    return {"fontsize": 9, "fontweight": "bold", "color": 0.8 * color, "path_effects": halo, "zorder": 5}


def _around(edge: np.ndarray, half: np.ndarray) -> list[tuple[float, float]]:
    """Where a label of half size `half` may go from a mean: 12 places beyond the ellipse's `edge`, then 4 inside it."""
    (x, y), width = edge, half[0]
    places = [(0.0, y + 9), (0.0, -y - 9), (x + width + 5, 0.0), (-x - width - 5, 0.0)]
    places += [(k * x, t * (y + 9)) for k in (0.5, -0.5, 1.0, -1.0) for t in (1, -1)]
    return [*places, (0.0, 15.0), (0.0, -15.0), (width + 9, 0.0), (-width - 9, 0.0)]


def _cost(box: np.ndarray, boxes: list[np.ndarray], means: np.ndarray, points: np.ndarray, inches: Inches) -> float:
    """How much a label's box [left, bottom, right, top] would cover, in points of the page."""

    def inside(p: np.ndarray) -> int:
        return int(((p > box[:2]) & (p < box[2:])).all(1).sum())

    size = np.array(inches) * 72
    outside = float(np.maximum(-box[:2], 0).sum() + np.maximum(box[2:] - size, 0).sum())
    clash = sum(bool((box[:2] < b[2:]).all() and (b[:2] < box[2:]).all()) for b in boxes)
    return inside(points) * min(1.0, 300 / max(1, len(points))) + 15 * inside(means) + 40 * clash + 5 * outside


def _short(value: float) -> str:
    """Three digits, and no exponent up to a million."""
    return (f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}").replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def _note(oracle: _Oracle) -> str:
    """What was left out of a picture."""
    parts = []
    if len(oracle.rows) < len(oracle.task.x):
        parts.append(f"{_count(len(oracle.rows))} of {_count(len(oracle.task.x))} rows drawn")
    if oracle.A > MOST_COMPONENTS:
        parts.append(f"the {MOST_COMPONENTS} heaviest of {oracle.A} components drawn")
    return "; ".join(parts)


# ---- clusters --------------------------------------------------------------------------------------------


def _clusters(scene: _Scene) -> Figure:
    """Two columns: the data by responsibility, the density's regions, the components."""
    oracle = scene.oracle
    assert oracle is not None
    pair = _pair(scene)
    more = "" if scene.x.shape[1] == 2 else f"the two of {scene.x.shape[1]} columns in which the components differ most"
    figure = _figure(7.2, 5.4, scene.title("; ".join(t for t in (more, _note(oracle)) if t)))
    axes, palette = _style(figure.add_subplot()), component_colors(oracle.A)
    regions = _regions(axes, _density(oracle, pair, 180 if scene.x.shape[1] <= 50 else 110))
    _scatter(axes, oracle, pair, palette)
    _ellipses(axes, oracle, pair, palette)
    _limits(axes, oracle, pair)
    _label_means(axes, oracle, pair, palette, (6.3, 4.3))
    axes.set(xlabel=scene.name(pair[0]), ylabel=scene.name(pair[1]))
    if regions:
        _legend(figure, oracle, pair, regions)
    return figure


def _legend(figure: Figure, oracle: _Oracle, pair: tuple[int, int], regions: list[Patch]) -> None:
    gaussian = oracle.covariance(pair) is not None
    title = ("Ellipses: 1 and 2 standard deviations.  " if gaussian else "") + "Shaded: the smallest regions that hold"
    figure.legend(
        handles=[Patch(alpha=0, label=title), *regions],
        loc="outside lower right",
        ncols=1 + len(regions),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.0,
        handletextpad=0.5,
        labelcolor=QUIET,
    )


def _pair(scene: _Scene) -> tuple[int, int]:
    oracle, usable = scene.oracle, scene.columns
    assert oracle is not None
    if len(usable) == 2:
        return usable[0], usable[1]
    few = slice(None, None, max(1, len(oracle.x) // 5000))
    i, j = telling_pair(oracle.x[few][:, usable], oracle.responsibilities[few])
    return usable[i], usable[j]


def _pairs(scene: _Scene) -> Figure:
    """Every pair of a few columns below the diagonal, each column's own density on it."""
    oracle, columns = scene.oracle, scene.columns
    assert oracle is not None
    count, palette = len(columns), component_colors(oracle.A)
    figure = _figure(2.1 * count, 2.0 * count + 0.6, scene.title(_note(oracle)))
    grid = figure.subplots(count, count, squeeze=False)
    regions: list[Patch] = []
    for i, j in np.ndindex(count, count):
        axes: Any = grid[i, j]
        pair = (columns[j], columns[i])
        _style(axes)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if j > i:
            axes.set_axis_off()
            continue
        if i == j:
            _bars(axes, oracle, columns[i], palette)
        else:
            regions = _regions(axes, _density(oracle, pair, 64), 0.0) or regions
            _scatter(axes, oracle, pair, palette, 0.4)
            _ellipses(axes, oracle, pair, palette, 0.9)
        _limits(axes, oracle, pair if i != j else pair[:1])
        axes.set_xlabel(scene.name(columns[j]) if i == count - 1 else "")
        axes.set_ylabel(scene.name(columns[i]) if j == 0 and i > 0 else "")
        axes.tick_params(labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
    _key(grid[0, -1], oracle, palette)
    if regions:
        _legend(figure, oracle, (columns[0], columns[1]), regions)
    return figure


def _key(axes: Axes, oracle: _Oracle, palette: np.ndarray) -> None:
    """Which colour is which component, and its weight."""
    if oracle.A > 1:
        handles = [Patch(color=palette[a], label=oracle.caption(a)) for a in oracle.order[:MOST_LABELS]]
        axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=9, handlelength=1.0, labelcolor=INK)


def _histogram(scene: _Scene) -> Figure:
    """One column: its histogram, the density, and each component's weighted share of it."""
    oracle, column = scene.oracle, scene.columns[0]
    assert oracle is not None
    figure = _figure(7.2, 4.4, scene.title(_note(oracle)))
    axes, palette = _style(figure.add_subplot()), component_colors(oracle.A)
    whole = _bars(axes, oracle, column, palette)
    known = ~np.isnan(oracle.x[:, column])
    _ticks(axes, oracle.x[known, column], blend(oracle.responsibilities[known], palette), 0, 0.03)
    _limits(axes, oracle, [column])
    axes.set(xlabel=scene.name(column), ylabel="probability" if whole else "density")
    key = [Line2D([], [], color=INK, linewidth=1.2, label="p(x)"), Patch(color=FAINT, label="data")]
    axes.legend(handles=key, loc="center left", frameon=False, fontsize=8, labelcolor=QUIET, handlelength=1.2)
    if oracle.A > 1:
        _label_curves(axes, oracle, column, palette)
    return figure


def _label_curves(axes: Axes, oracle: _Oracle, column: int, palette: np.ndarray) -> None:
    """ "z = 0, 64 %" above the curves at each component's mean, in as many lines as keep them apart."""
    (left, right), top = axes.get_xlim(), axes.get_ylim()[1]
    shown = sorted(oracle.order[:MOST_LABELS], key=lambda a: oracle.means[a, column])
    ends: list[float] = []  # where the last label of each line ends
    for a in shown:
        text, at = oracle.caption(a), oracle.means[a, column]
        half = 0.0065 * len(text) * (right - left)
        line = next((i for i, end in enumerate(ends) if at - half > end), len(ends))
        ends[line : line + 1] = [at + half]
        height = (1.04 + 0.075 * line) * top
        axes.plot([at, at], [0, height - 0.01 * top], color=palette[a], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.text(at, height, text, ha="center", va="bottom", **_bold(palette[a]))
    axes.set_ylim(0, (1.06 + 0.075 * len(ends)) * top)


def _bars(axes: Axes, oracle: _Oracle, column: int, palette: np.ndarray) -> bool:
    """A histogram with p(x) and its components; returns whether the column holds whole numbers."""
    values = oracle.x[:, column]
    values = values[~np.isnan(values)]
    density = _density(oracle, [column], 400)
    whole = oracle.is_whole(column)
    axes.hist(
        values, _edges(values, whole).tolist(), density=True, color=FAINT, edgecolor="white", linewidth=0.5, zorder=0
    )
    if density is not None:
        marker = "." if whole else None
        for a in oracle.order[:MOST_COMPONENTS] if oracle.A > 1 else []:
            height = np.exp(density.joint[:, a])
            axes.plot(density.axes[0], height, color=palette[a], linewidth=1.4, marker=marker, zorder=2)
            axes.fill_between(density.axes[0], height, color=palette[a], alpha=0.12, linewidth=0, zorder=1)
        axes.plot(density.axes[0], np.exp(density.log_density), color=INK, linewidth=1.2, marker=marker, zorder=3)
    axes.set_ylim(bottom=0)
    return whole


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Edges of about √n bars, of up to 60 for counts; of whole numbers, each bar holds as many as the next."""
    bars = 60 if whole else int(np.clip(math.sqrt(len(values)), 8, 60))
    if np.ptp(values) < 2 or (values != np.round(values)).any():
        return np.histogram_bin_edges(values, bars)
    width = max(1, round(np.ptp(values) / bars))
    return np.arange(values.min() - 0.5, values.max() + width, width)


# ---- components ------------------------------------------------------------------------------------------


def _images(scene: _Scene) -> Figure:
    """Each component's mean image, the heaviest first."""
    oracle, shape = scene.oracle, scene.image_shape
    assert oracle is not None and shape is not None
    shown = oracle.order[:100]
    down = -(-len(shown) // min(len(shown), 12, math.ceil(math.sqrt(2.2 * len(shown)))))
    across = -(-len(shown) // down)
    note = "mean images, the heaviest first" if oracle.A > 1 else "mean image"
    note += f"; {len(shown)} of {oracle.A} components" if len(shown) < oracle.A else ""
    note += "; tinted: never observed" if len(scene.columns) < scene.x[0].size else ""
    figure = _figure(7.2, (6.3 / max(3, across) * shape[0] / shape[1] + 0.25) * down + 0.8, scene.title(note))
    means = oracle.means[shown]
    unseen = np.setdiff1d(np.arange(means.shape[1]), scene.columns)
    means[:, unseen] = np.nan  # nothing was learned about them
    cmap = colormaps["gray_r"].with_extremes(bad="#F3DFC8")
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    low, high = (0.0, 1.0) if low >= 0 and 0.5 < high <= 1 else (low, high)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, a, mean in zip(grid, shown, means, strict=False):
        image = axes.imshow(mean.reshape(shape), cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
        axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=FAINT, linewidth=0.8, transform=axes.transAxes, clip_on=False)
        if oracle.A > 1:
            weight = _percent(oracle.weights[a])
            axes.set_title(weight if across > 8 else f"{oracle.label(a)}, {weight}", fontsize=8, color=INK, pad=3)
    _bar(figure, image, grid.tolist(), shrink=0.6, aspect=18, pad=0.02)
    return figure


def _profiles(scene: _Scene) -> Figure:
    """Components × columns: the means, relative to each column's own mean and spread unless all are shares."""
    oracle, columns = scene.oracle, scene.columns
    assert oracle is not None
    shown = oracle.order[:MOST_COMPONENTS]
    means, x = oracle.means[shown][:, columns], oracle.x[:, columns]
    binary = all(map(oracle.is_binary, columns))
    center, spread = np.nanmean(x, 0), np.nanstd(x, 0)
    field = means if binary else (means - center) / np.where(spread > 0, spread, 1.0)
    reach = float(np.nanquantile(np.abs(field), 0.99)) or 1.0
    scale: Look = (
        {"cmap": "Blues", "vmin": 0, "vmax": 1} if binary else {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    )
    width = float(np.clip(2.2 + 0.62 * len(columns), 6.4, 9.6))
    figure = _figure(width, 1.9 + 0.34 * len(shown) + (0.5 if len(columns) <= 40 else 0), scene.title(_note(oracle)))
    axes = _style(figure.add_subplot())
    image = axes.imshow(field, aspect="auto", interpolation="nearest", **scale)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks(range(len(shown)), [oracle.caption(a) for a in shown])
    if len(columns) <= 40:
        names = [_plain(scene.name(c), 24) for c in columns]
        axes.set_xticks(range(len(columns)), names, **_turned(len(columns)))
    else:
        axes.set_xlabel(f"{len(columns)} columns, in their order")
    if field.size <= 150 and width / len(columns) > 0.45:
        for (i, j), value in np.ndenumerate(field):
            dark = value > 0.6 if binary else abs(value) > 0.65 * reach
            axes.text(j, i, _short(means[i, j]), ha="center", va="center", fontsize=8, color="white" if dark else INK)
    bar = _bar(figure, image, axes, pad=0.015, extend="neither" if binary else "both")
    bar.set_label("mean" if binary else "mean, in standard deviations\nfrom the column's", fontsize=8, color=INK)
    return figure


# ---- trace -----------------------------------------------------------------------------------------------

_CLIMBED = {
    "log_likelihood": "log p(x; θ), nats",
    "log_joint": "log p(x, globals; θ), nats",
    "elbo_per_datum": "ELBO per datum, nats",
    "bound_per_datum": "importance-weighted bound per datum, nats",
}


def _trace(scene: _Scene) -> Figure:
    """What was climbed, and its distance to where it ended."""
    name = min((k for k in scene.trace if k != "lr"), key=lambda k: k not in _CLIMBED)
    values, noisy = scene.trace[name], "lr" in scene.trace
    label = _CLIMBED.get(name, _plain(name.replace("_", " ")))
    figure = _figure(8.4, 3.9, scene.title())
    left, right = (_style(axes) for axes in figure.subplots(1, 2))
    step = "epoch" if noisy else "evaluation" if "evaluations" in scene.json["notes"] else "iteration"
    iterations = np.arange(noisy, len(values) + noisy)
    for axes in (left, right):
        axes.set_xlabel(step)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if noisy:
            _rate_drops(axes, iterations, scene.trace["lr"])
    _climb(left, iterations, values, label, noisy)
    if name.endswith("per_datum"):
        _verified(left, scene.json)
    _restarts(left, scene.json["notes"].get("restarts") or [])
    _distance(right, iterations, values, noisy)
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running median over about a twentieth of the values, at least three: it keeps steps, and drops spikes."""
    half = max(1, len(values) // 40)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="edge"), 2 * half + 1)
    return np.median(windows, axis=1)


def _climb(axes: Axes, iterations: np.ndarray, values: np.ndarray, label: str, noisy: bool) -> None:
    raw: Look = {"color": OKABE_ITO[0], "linewidth": 0.8 if noisy else 1.6, "alpha": 0.35 if noisy else 1.0}
    axes.plot(iterations, values, **raw, marker="." if len(values) <= 40 else None)
    if noisy:
        axes.plot(iterations, _smooth(values), color=OKABE_ITO[0], linewidth=1.6)
    axes.set_title(label, loc="left", fontsize=9, color=INK)
    # a first step from far away would flatten all that follows
    low, high = float(values.min()), float(values.max())
    late = float(values[len(values) // 10 :].min())
    if high - low > 20 * (high - late) > 0:
        axes.set_ylim(high - 5 * (high - late), high + 0.4 * (high - late))


def _rate_drops(axes: Axes, iterations: np.ndarray, rates: np.ndarray) -> None:
    """A line wherever the learning rate was lowered."""
    drops = iterations[1:][rates[1:] < rates[:-1]]
    for i, at in enumerate(drops):
        label = "" if i else "learning rate lowered"
        axes.axvline(at, color=OKABE_ITO[4], linewidth=0.8, linestyle=(0, (2, 2)), zorder=0, label=label)


def _verified(axes: Axes, document: dict[str, Any]) -> None:
    """The verified evidence per datum: what a bound stays below."""
    verified = document.get("verified_log_evidence") or {}
    if verified.get("per_datum_mean") is not None:
        label = f"verified log p(x) / n ({verified['kind']})"
        axes.axhline(verified["per_datum_mean"], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label=label)
        axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=INK)


def _restarts(axes: Axes, finals: list[float]) -> None:
    """Where each restart ended, as ticks beside the axes."""
    if len(finals) < 2:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, min(finals)), high)
    tick: Look = {"color": OKABE_ITO[1], "transform": axes.get_yaxis_transform(), "clip_on": False}
    for value in finals:
        axes.plot([1.0, 1.035], [value, value], linewidth=1.2, **tick)
    reached = sum(v > max(finals) - 1e-6 * (1 + abs(max(finals))) for v in finals)
    text = f"ticks: where {len(finals)} restarts ended\n{reached} at the best"
    corner: Look = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
    axes.text(0.97, 0.05, text, fontsize=8, color=OKABE_ITO[1], **corner)


def _distance(axes: Axes, iterations: np.ndarray, values: np.ndarray, noisy: bool) -> None:
    """|value − final| on a log axis: a straight line is linear convergence, and its slope the rate."""
    if noisy:
        final = float(values[-max(1, len(values) // 10) :].mean())
        series = [(np.abs(values - final), 0.8, 0.35), (np.abs(_smooth(values) - final), 1.6, 1.0)]
        end = "the mean of the last tenth"
    else:
        final = float(values[-1])
        series = [(np.abs(values[:-1] - final), 1.6, 1.0)]
        end = "the final value"
    axes.set_title(f"distance to {end}, nats", loc="left", fontsize=9, color=INK)
    marker = "." if len(values) <= 40 else None
    for distance, width, alpha in series:
        kept = distance > 4 * np.finfo(float).eps * abs(final)  # below that it is rounding
        at = iterations[: len(distance)][kept]
        axes.plot(at, distance[kept], color=OKABE_ITO[2], linewidth=width, alpha=alpha, marker=marker)
        if kept.any():
            axes.set_yscale("log")


# ---- k-hat -----------------------------------------------------------------------------------------------


def _khat(scene: _Scene) -> Figure:
    """k-hat and effective sample size, by datum and sorted."""
    khat = scene.stats["khat"]
    ess = scene.stats.get("ess")
    bad = int((~(khat <= 0.7)).sum())
    verdict = f"{_count(bad)} of {_count(len(khat))} data above 0.7: their estimates cannot be trusted"
    verdict = verdict if bad else "no datum above 0.7"
    figure = _figure(8.4, 5.2 if ess is not None else 3.4, scene.title(verdict))
    rows = 1 if ess is None else 2
    grid = figure.subplots(rows, 2, squeeze=False, sharex="col", sharey="row", width_ratios=(3, 1))
    for axes in grid.ravel():
        _style(axes)
    top = float(np.clip(np.nanmax(khat[np.isfinite(khat)], initial=0.9), 0.9, 3.0)) * 1.08
    shown = np.minimum(np.where(np.isnan(khat), np.inf, khat), top)
    shown = np.maximum(shown, -0.5)
    shade = np.array(OKABE_ITO)[np.select([khat <= 0.5, khat <= 0.7], [0, 4], 1)]
    _by_datum(grid[0, 0], grid[0, 1], shown, shade)
    for axes in grid[0]:
        for level in (0.5, 0.7):
            axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    below = " (lower ones at −0.5)" if (khat < -0.5).any() else ""
    grid[0, 0].set(ylabel=f"k-hat{below}", ylim=(min(-0.05, float(shown.min()) - 0.05), top + 0.06))
    _label_worst(grid[0, 0], shown, khat)
    if ess is not None:
        _by_datum(grid[1, 0], grid[1, 1], np.maximum(ess, 0.5), shade)
        grid[1, 0].set(ylabel="effective sample size", yscale="log")
        grid[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[1, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        grid[1, 0].yaxis.set_minor_locator(NullLocator())
    grid[-1, 0].set_xlabel("datum (row, counting from 0)")
    grid[-1, 1].set_xlabel("share of the data below")
    return figure


def _by_datum(left: Axes, right: Axes, values: np.ndarray, shade: np.ndarray) -> None:
    n = len(values)
    points: Look = {"s": float(np.clip(3000 / n, 2, 16)), "linewidths": 0, "rasterized": n > 2000}
    left.scatter(np.arange(n), values, c=shade, alpha=float(np.clip((2000 / n) ** 0.5, 0.2, 0.85)), **points)
    right.step((np.arange(n) + 1) / n, np.sort(values), where="pre", color=INK, linewidth=1.3)
    right.set_xlim(-0.02, 1.02)


def _label_worst(axes: Axes, shown: np.ndarray, khat: np.ndarray) -> None:
    """The rows of the largest k-hat, five at most, by their index; what lies beyond the axis with its value."""
    worst = np.argsort(-np.where(np.isnan(khat), np.inf, khat), kind="stable")[:5]
    taken: list[tuple[float, float]] = []
    span = np.diff(axes.get_ylim())[0]
    for row in worst[~(khat[worst] <= 0.5)].tolist():
        at = (row / len(khat), (shown[row] - axes.get_ylim()[0]) / span)
        if any(abs(at[0] - u) < 0.07 and abs(at[1] - v) < 0.06 for u, v in taken):
            continue
        taken.append(at)
        value = f"{khat[row]:.1f}" if np.isfinite(khat[row]) else "∞"
        text = f"{row}" if khat[row] <= shown[row] else f"{row} ({value})"
        axes.annotate(text, (row, shown[row]), (4, 2), textcoords="offset points", fontsize=8, color=INK)


# ---- missing ---------------------------------------------------------------------------------------------


def _missing(scene: _Scene) -> Figure:
    """Rows × columns, the rows sorted by which entries they miss, with how many rows and how much of each column."""
    missing = np.isnan(scene.x.reshape(len(scene.x), -1))
    order, bands = _bands(missing)
    n, D = missing.shape
    share = f"{_percent(missing.mean())} of {_count(n)} × {_count(D)} entries unobserved, {_count(len(bands))} pattern"
    figure = _figure(7.2, 5.0, scene.title(share + "s" * (len(bands) != 1)))
    image = scene.image_shape
    panels = figure.subplots(1, 2, width_ratios=(1.3, 1)) if image else [figure.add_subplot()]
    axes = _style(panels[0])
    few = order[np.linspace(0, n - 1, min(n, 2000)).round().astype(int)]
    two = colors.ListedColormap(["#CFE0EC", OKABE_ITO[1]])
    look: Look = {"cmap": two, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(missing[few], extent=(-0.5, D - 0.5, n, 0), **look)
    axes.set_ylabel("rows, sorted by pattern")
    if D <= 30:
        for d in range(D - 1):
            axes.axvline(d + 0.5, color="white", linewidth=1.5)
        names = [f"{scene.name(d)}\n{_percent(missing[:, d].mean())}" for d in range(D)]
        axes.set_xticks(range(D), names, **_turned(D))
    else:
        axes.set_xlabel(f"{D} columns, in their order")
    _count_bands(axes, bands, n, D - 0.5)
    if image:
        _missing_map(figure, panels[1], missing.mean(0).reshape(image))
    handles = [Patch(color=two(i), label=w) for i, w in enumerate(("observed", "unobserved"))]
    look = {"frameon": False, "fontsize": 8, "labelcolor": QUIET, "handlelength": 1.0}
    figure.legend(handles=handles, loc="outside lower right", ncols=2, **look)
    return figure


def _count_bands(axes: Axes, bands: list[tuple[int, int]], n: int, right: float) -> None:
    """Set the patterns apart, and write beside the common ones how many rows they have."""
    if len(bands) == n > 1:
        return  # every row has a pattern of its own
    for start, stop in bands:
        if start > 0 and len(bands) <= 60:
            axes.axhline(start, color="white", linewidth=0.8)
        if stop - start >= 0.035 * n:
            text = f"  {_count(stop - start)} row" + "s" * (stop - start > 1)
            axes.text(right, (start + stop) / 2, text, va="center", fontsize=8, color=INK, clip_on=False)


def _bands(missing: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The rows [n] in order of their pattern, the commonest first, and where each pattern starts and stops in it."""
    packed = np.packbits(missing, axis=1)
    _, first, inverse, counts = np.unique(packed, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    amount = np.bincount(inverse, missing.sum(1))
    place = np.empty(len(counts), dtype=int)
    ranked = np.lexsort((first, amount / counts, -counts))
    place[ranked] = np.arange(len(counts))
    stops = np.cumsum(counts[ranked])
    bands = list(zip((stops - counts[ranked]).tolist(), stops.tolist(), strict=True))
    return np.argsort(place[inverse], kind="stable"), bands


def _missing_map(figure: Figure, axes: Axes, share: np.ndarray) -> None:
    """The share of the images that miss each pixel."""
    image = axes.imshow(share, cmap="Oranges", vmin=0, vmax=min(1.0, 2 * float(share.max())), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("share unobserved, by pixel", fontsize=9, color=INK)
    _bar(figure, image, axes, shrink=0.6, pad=0.02)
