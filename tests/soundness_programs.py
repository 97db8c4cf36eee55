"""Random small Pyro programs from a grammar, each with its density written a second time in NumPy.

A program is a list of statements. Every statement gives its own lines of Pyro source, and its own log density over arrays
[rows, points], where the points are all joint values of the discrete latents and the nodes of a quadrature over the
continuous ones. Nothing of the project takes part in that: the truth of a program is a sum over the points.

- Rows that do not meet: one set of points serves every row, and the truth is Σ_rows log Σ_points.
- Rows that do: a point holds the latents of all rows at once, and the truth is log Σ_points Π_rows.

Continuous latents are integrated by Gauss-Legendre panels in a coordinate t (for a normal, standard deviations from its
mean), split where the program has a kink or a jump in t. The error is what a second rule with more nodes changes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special, stats

Env = dict[str, np.ndarray]
POINTS = 600_000  # the most points of one sum
Breaks = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Expr:
    """An expression: its Pyro source, and its value from an `Env` of arrays that broadcast to [rows, points]."""

    torch: str
    numpy: Callable[[Env], Any]
    names: frozenset[str] = frozenset()  # what it reads
    joins: frozenset[str] = frozenset()  # those of which one row's value reaches other rows
    breaks: tuple[tuple[str, float], ...] = ()  # (latent, t): where it has a kink or a jump


def const(value: float) -> Expr:
    return Expr(repr(float(value)), lambda e: np.asarray(float(value)))


def var(name: str, torch: str | None = None, names: frozenset[str] | None = None) -> Expr:
    return Expr(torch or name, lambda e: e[name], frozenset({name}) if names is None else names)


def combine(template: str, function: Callable[..., Any], *args: Expr, joins: bool = False) -> Expr:
    """An operation on expressions: its source with {0}, {1}, … for theirs, and its NumPy twin."""
    names = frozenset().union(*(a.names for a in args))
    met = frozenset().union(*(a.joins for a in args)) | (names if joins else frozenset())
    breaks = tuple(b for a in args for b in a.breaks)
    return Expr(
        template.format(*(a.torch for a in args)), lambda e: function(*(a.numpy(e) for a in args)), names, met, breaks
    )


def plus(a: Expr, b: Expr) -> Expr:
    return combine("({0} + {1})", lambda x, y: x + y, a, b)


def times(a: Expr, b: Expr) -> Expr:
    return combine("({0} * {1})", lambda x, y: x * y, a, b)


# ---- families --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A distribution: source, log density, draws, and the points that it is summed over."""

    torch: str
    logpdf: Callable[..., Any]  # (value, *args)
    sample: Callable[..., Any]  # (rng, *args)
    support: Callable[..., Any] | None = None  # values, where it is discrete
    span: tuple[float, float] = (-9.0, 9.0)  # of t
    value: Callable[..., Any] | None = None  # (t, *args) -> (value, log |dvalue/dt|)


def _bernoulli_logits(v: Any, m: Any) -> Any:
    return -np.logaddexp(0, np.where(v == 1, -m, m))


def _categorical(v: Any, *logits: Any) -> Any:
    table = np.stack(np.broadcast_arrays(*logits))
    table = table - special.logsumexp(table, axis=0)
    shape = np.broadcast_shapes(np.shape(v), table.shape[1:])
    table, v = np.broadcast_to(table, (len(table), *shape)), np.broadcast_to(v, shape)
    return np.take_along_axis(table, np.nan_to_num(v).astype(int)[None], 0)[0]


def _draw_categorical(rng: Any, *logits: Any) -> Any:
    table = np.stack(np.broadcast_arrays(*logits))
    return (table + rng.gumbel(size=table.shape)).argmax(0) * 1.0


def _normal(v: Any, m: Any, s: Any) -> Any:
    return -0.5 * np.square((v - m) / s) - np.log(s) - 0.5 * np.log(2 * np.pi)


def _log(p: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(p)


NORMAL = Family(
    "dist.Normal({0}, {1})",
    lambda v, m, s: _normal(v, m, s),
    lambda rng, m, s: rng.normal(m, s),
    value=lambda t, m, s: (m + s * t, np.log(s) + 0 * t),
)
GAMMA = Family(
    "dist.Gamma({0}, {1})",
    lambda v, a, b: stats.gamma.logpdf(v, a, scale=1 / b),
    lambda rng, a, b: rng.gamma(a, 1 / b),
    span=(-16.0, 4.5),
    value=lambda t, a, b: (np.exp(t) / b, t - np.log(b)),
)
BETA = Family(
    "dist.Beta({0}, {1})",
    lambda v, a, b: stats.beta.logpdf(v, a, b),
    lambda rng, a, b: rng.beta(a, b),
    span=(-16.0, 16.0),
    value=lambda t, a, b: (special.expit(t), special.log_expit(t) + special.log_expit(-t)),
)
BERNOULLI = Family(
    "dist.Bernoulli({0})",
    lambda v, p: np.where(v == 1, _log(p), _log(1 - p)),
    lambda rng, p: (rng.random(np.shape(p)) < p) * 1.0,
    support=lambda: (0.0, 1.0),
)
BERNOULLI_LOGITS = Family(
    "dist.Bernoulli(logits={0})",
    _bernoulli_logits,
    lambda rng, m: (rng.random(np.shape(m)) < special.expit(m)) * 1.0,
    support=lambda: (0.0, 1.0),
)
CATEGORICAL3 = Family(
    "dist.Categorical(torch.tensor([0.25, 0.25, 0.5]))",
    lambda v: np.log(np.where(v == 2, 0.5, 0.25)),
    lambda rng: 1.0 * rng.choice(3, p=[0.25, 0.25, 0.5]),
    support=lambda: (0.0, 1.0, 2.0),
)
CATEGORICAL_LOGITS = Family(
    "dist.Categorical(logits=torch.stack([{0}, torch.zeros_like({0}), -{0}], -1))",
    lambda v, m: _categorical(v, m, 0 * m, -m),
    lambda rng, m: _draw_categorical(rng, m, 0 * m, -m),
    support=lambda: (0.0, 1.0, 2.0),
)
BINOMIAL = Family(
    "dist.Binomial({0}, {1})",
    lambda v, k, p: stats.binom.logpmf(v, k, p),
    lambda rng, k, p: 1.0 * rng.binomial(np.asarray(k).astype(int), p),
    support=lambda: tuple(map(float, range(5))),
)
POISSON = Family(
    "dist.Poisson({0})",
    lambda v, r: stats.poisson.logpmf(v, r),
    lambda rng, r: 1.0 * rng.poisson(r),
    support=lambda: tuple(map(float, range(40))),
)


def _bivariate(v: Any, m1: Any, m2: Any, s: Any) -> Any:
    """Covariance s² [[1, ½], [½, 1]] of a pair v = (a, b), each of which may be missing."""
    a, b = v
    u, w = (a - m1) / s, (b - m2) / s
    both = -(u * u - u * w + w * w) / 1.5 - 0.5 * np.log(0.75) - 2 * np.log(s) - np.log(2 * np.pi)
    one = _normal(np.where(np.isnan(a), w, u), 0.0, 1.0) - np.log(s)
    return np.where(np.isnan(a) & np.isnan(b), 0, np.where(np.isnan(a) | np.isnan(b), one, both))


def _draw_bivariate(rng: Any, m1: Any, m2: Any, s: Any) -> Any:
    e = rng.normal(size=(2, *np.broadcast_shapes(np.shape(m1), np.shape(m2), np.shape(s))))
    return m1 + s * e[0], m2 + s * (0.5 * e[0] + 0.75**0.5 * e[1])


def _pair(v: Any, m1: Any, m2: Any, s: Any) -> Any:
    return sum(np.nan_to_num(_normal(a, m, s)) for a, m in zip(v, (m1, m2), strict=True))


BIVARIATE = Family(
    "dist.MultivariateNormal(torch.stack(torch.broadcast_tensors({0}, {1}), -1), "
    "{2}**2 * torch.tensor([[1.0, 0.5], [0.5, 1.0]]))",
    _bivariate,
    _draw_bivariate,
)
PAIR = Family(
    "dist.Normal(torch.stack(torch.broadcast_tensors({0}, {1}), -1), {2}).to_event(1)",
    _pair,
    lambda rng, m1, m2, s: (rng.normal(m1 + 0 * m2, s), rng.normal(m2 + 0 * m1, s)),
)


# ---- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Let:
    """name = expr: with `delta`, as a `Delta` site."""

    name: str
    expr: Expr
    delta: bool = False

    def lines(self) -> list[str]:
        if self.delta:
            return [f'{self.name} = pyro.sample("{self.name}", dist.Delta({self.expr.torch}))']
        return [f"{self.name} = {self.expr.torch}"]

    def exprs(self) -> tuple[Expr, ...]:
        return (self.expr,)


@dataclass(frozen=True)
class Latent:
    """A latent site of every row; `code` replaces its lines of source, where several latents are one site."""

    name: str
    family: Family
    args: tuple[Expr, ...]
    scale: float = 1.0
    mask: bool = False  # its density is masked out
    code: tuple[str, ...] | None = None

    def lines(self) -> list[str]:
        if self.code is not None:
            return list(self.code)
        site = f'{self.name} = pyro.sample("{self.name}", {self.family.torch.format(*(a.torch for a in self.args))})'
        return handled([site], self.scale, "False" if self.mask else None)

    def exprs(self) -> tuple[Expr, ...]:
        return self.args

    def log_p(self, value: Any, args: Sequence[Any]) -> Any:
        return 0 * value if self.mask else self.scale * self.family.logpdf(value, *args)


@dataclass(frozen=True)
class Observed:
    """An observed site in one or two columns of x."""

    name: str
    family: Family
    args: tuple[Expr, ...]
    columns: tuple[int, ...]
    scale: float = 1.0
    mask: Expr | None = None
    obs_mask: Expr | None = None

    def lines(self) -> list[str]:
        first, last = self.columns[0], self.columns[-1]
        part = f"x[:, {first}]" if first == last else f"x[:, {first}:{last + 1}]"
        extra = "" if self.obs_mask is None else f", obs_mask={self.obs_mask.torch}"
        made = self.family.torch.format(*(a.torch for a in self.args))
        site = f'{self.name} = pyro.sample("{self.name}", {made}, obs=None if x is None else {part}{extra})'
        return handled([site], self.scale, None if self.mask is None else self.mask.torch)

    def exprs(self) -> tuple[Expr, ...]:
        return (*self.args, *(e for e in (self.mask, self.obs_mask) if e is not None))

    def log_p(self, value: Any, env: Env) -> Any:
        """log p of the observed entries [rows, points]: 0 where one is missing, masked or unobserved."""
        found = self.family.logpdf(value, *(a.numpy(env) for a in self.args))
        if len(self.columns) == 1:
            found = np.where(np.isnan(value), 0, found)
        for mask in (self.mask, self.obs_mask):
            if mask is not None:
                found = np.where(mask.numpy(env), found, 0)
        return self.scale * found


@dataclass(frozen=True)
class Global:
    """A latent site outside the plate."""

    name: str
    family: Family
    args: tuple[float, ...]
    scale: float = 1.0
    mask: bool = False

    def lines(self) -> list[str]:
        site = f'{self.name} = pyro.sample("{self.name}", {self.family.torch.format(*map(repr, self.args))})'
        return handled([site], self.scale, "False" if self.mask else None)

    def log_p(self, value: Any) -> Any:
        return 0 * value if self.mask else self.scale * self.family.logpdf(value, *self.args)


@dataclass(frozen=True)
class Outside:
    """An observation of `value`, or a factor, outside the plate: log density by `numpy`."""

    line: str
    numpy: Callable[[Env], Any]

    def lines(self) -> list[str]:
        return [self.line]


@dataclass(frozen=True)
class Param:
    """A parameter θ without a prior."""

    name: str
    value: float
    positive: bool = False

    def lines(self) -> list[str]:
        how = ", constraint=dist.constraints.positive" if self.positive else ""
        return [f'{self.name} = pyro.param("{self.name}", torch.tensor({self.value!r}){how})']


def handled(lines: list[str], scale: float, mask: str | None) -> list[str]:
    """Lines inside the handlers that scale or mask them."""
    if scale != 1.0:
        lines = [f"with pyro.poutine.scale(scale={scale!r}):", *("    " + line for line in lines)]
    if mask is not None:
        lines = [f"with pyro.poutine.mask(mask={mask}):", *("    " + line for line in lines)]
    return lines


# ---- programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """log p(x) in nats, and how far it may be off."""

    value: float
    error: float


@dataclass(frozen=True, repr=False)
class Program:
    """A program of the grammar, its data, and its truth."""

    head: tuple[Any, ...]  # Param, Global, Outside
    body: tuple[Any, ...]  # Let, Latent, Observed, in the plate
    columns: tuple[str, ...]  # of x: what each is, in the words of the program's return
    x: np.ndarray  # [n, D]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)  # name → [n], closed over
    lets: tuple[str, ...] = ()  # lines at the start of the plate
    labels: tuple[str, ...] = ()
    ordinary: bool = False
    must_refuse: bool = False  # NaN in a covariate: there is no log p(x)
    plate: str = 'pyro.plate("data", n)'

    def __repr__(self) -> str:
        return f"Program({', '.join(self.labels) or 'plain'})"

    @property
    def source(self) -> str:
        head = [line for s in self.head for line in s.lines()]
        body = [*self.lets, *(line for s in self.body for line in s.lines())]
        parts = ", ".join(f"{c}.unsqueeze(-1)" if not c.startswith("*") else c[1:] for c in self.columns)
        constants = [f"{k} = torch.tensor({v.tolist()})" for k, v in self.constants.items()]
        return "\n".join(
            [
                f'"""{", ".join(self.labels)}"""',
                "import pyro",
                "import pyro.distributions as dist",
                "import torch",
                "",
                *constants,
                "",
                "",
                "def model(x=None, size=None):",
                "    n = size if x is None else len(x)",
                *("    " + line for line in head),
                f"    with {self.plate}:",
                *("        " + line for line in body),
                f"    return torch.cat([{parts}], -1) if x is None else x",
                "",
            ]
        )

    @property
    def globals(self) -> list[Global]:
        return [s for s in self.head if isinstance(s, Global)]

    @property
    def params(self) -> list[Param]:
        return [s for s in self.head if isinstance(s, Param)]

    def given(self, values: Mapping[str, Any]) -> Truth:
        """log p(x) at values of the parameters and of the globals."""
        coarse, fine = (self._total(values, extra) for extra in (0, 3))
        return Truth(fine, abs(fine - coarse) + 1e-12 * abs(fine))

    def log_joint(self, values: Mapping[str, Any]) -> float:
        """log p(x, globals)."""
        return self._total(values, 0) + sum(float(g.log_p(np.asarray(values[g.name]))) for g in self.globals)

    def evidence(self, values: Mapping[str, Any]) -> Truth:
        """log p(x) at values of the parameters, the globals integrated out (one at the most)."""
        if not self.globals:
            return self.given(values)
        (g,) = self.globals
        low, high = g.family.span
        wide = 1 if g.mask else max(1.0, g.scale**-0.5)
        t = np.linspace(low * wide, high * wide, 121)
        heights = self._heights(values, g, t)
        (inside,) = np.nonzero(heights > heights.max() - 40)
        if g.mask and (inside[0] == 0 or inside[-1] == len(t) - 1):
            raise NoTruth("the posterior of a global without a prior has no end")
        first, last = t[max(0, inside[0] - 1)], t[min(len(t) - 1, inside[-1] + 1)]
        found = []
        for nodes in (6, 8):
            points, log_w = panels(first, last, (last - first) / 8, nodes, ())
            found.append(float(special.logsumexp(self._heights(values, g, points) + log_w)))
        return Truth(found[1], abs(found[1] - found[0]) + 1e-10 * abs(found[1]))

    def _heights(self, values: Mapping[str, Any], g: Global, t: np.ndarray) -> np.ndarray:
        out = []
        for at in t:
            assert g.family.value is not None
            value, log_det = g.family.value(np.asarray(at), *g.args)
            out.append(self._total({**values, g.name: value}, 0) + float(g.log_p(value)) + float(log_det))
        return np.asarray(out)

    # ---- the sum -----------------------------------------------------------------------------------------------------

    def _sites(self) -> list[Any]:
        return [s for s in self.body if isinstance(s, Latent)]

    def _depends(self) -> dict[str, frozenset[str]]:
        """For each name, the latents and observed sites that its value depends on through deterministic lines."""
        out: dict[str, frozenset[str]] = {}
        for s in self.body:
            if isinstance(s, Let):
                out[s.name] = frozenset().union(*(out.get(n, frozenset({n})) for n in s.expr.names))
        return out

    @property
    def joined(self) -> bool:
        """Whether the latents of one row reach another's densities."""
        latents, through = {s.name for s in self._sites()}, self._depends()
        met = [n for s in self.body for e in s.exprs() for n in e.joins]
        return any(latents & through.get(n, frozenset({n})) for n in met)

    def parents(self) -> list[Observed]:
        """Observed sites that something else is computed from."""
        read = {n for s in self.body for e in s.exprs() for n in e.names}
        return [s for s in self.body if isinstance(s, Observed) and s.name in read]

    def _total(self, values: Mapping[str, Any], extra: int) -> float:
        env: Env = {k: np.asarray(v, dtype=float) for k, v in values.items()}
        outside = sum(float(s.numpy(env)) for s in self.head if isinstance(s, Outside))
        n, parents = len(self.x), self.parents()
        if self.joined:
            return outside + float(special.logsumexp(self._points(env, np.arange(n), [], True, extra)))
        missing = np.stack([np.isnan(self.x[:, p.columns[0]]) for p in parents], 1) if parents else np.zeros((n, 0))
        total = 0.0
        for pattern in np.unique(missing, axis=0):
            rows = np.nonzero((missing == pattern).all(1))[0]
            latent = [p for p, hidden in zip(parents, pattern, strict=True) if hidden]
            total += float(special.logsumexp(self._points(env, rows, latent, False, extra), axis=1).sum())
        return outside + total

    def _points(self, env: Env, rows: np.ndarray, holes: list[Observed], joint: bool, extra: int) -> np.ndarray:
        """log p(rows, latents) + log weights [rows, points], or of all rows at once [points]; `holes` are latents too."""
        latents = [s for s in self.body if isinstance(s, Latent) or s in holes]
        places = self._axes(latents, joint, len(rows), extra)
        env = dict(env)
        env |= {f"x{c}": self.x[rows, c][:, None] for c in range(self.x.shape[1])}
        env |= {name: values[rows][:, None] for name, values in self.constants.items()}
        env |= {"i": rows[:, None] * 1.0, "n": np.asarray(float(len(self.x)))}
        log_p = np.zeros((len(rows), 1))
        for s in self.body:
            if isinstance(s, Let):
                env[s.name] = s.expr.numpy(env)
            elif s in latents:
                t, log_w = places[s.name]
                args = [a.numpy(env) for a in s.args]
                value, more = t, log_w
                if s.family.value is not None:
                    value, log_det = s.family.value(t, *args)
                    more = log_w + log_det
                env[s.name] = value
                own = s.log_p(value, args) if isinstance(s, Latent) else s.log_p(value, env)
                log_p = log_p + own + more
            else:
                seen = tuple(self.x[rows, c][:, None] for c in s.columns)
                env[s.name] = seen[0]
                log_p = log_p + s.log_p(seen[0] if len(seen) == 1 else seen, env)
        return log_p.sum(0) if joint else log_p

    def _axes(self, latents: list[Any], joint: bool, rows: int, extra: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Site → its points and their log weights, each [1 or rows, points]."""
        copies = rows if joint else 1
        smooth = sum(s.family.support is None for s in latents) * copies
        each = [self._axis(s, smooth, extra) for s in latents]
        sizes = [len(points) for points, _ in each for _ in range(copies)]
        count = int(np.prod(sizes))
        if count > POINTS:
            raise NoTruth(f"{count} points")
        index = np.indices(sizes).reshape(len(sizes), count)
        out = {}
        for k, (s, (points, log_w)) in enumerate(zip(latents, each, strict=True)):
            mine = index[k * copies : (k + 1) * copies]
            out[s.name] = (points[mine], log_w[mine])
        return out

    def _axis(self, site: Any, smooth: int, extra: int) -> tuple[np.ndarray, np.ndarray]:
        if site.family.support is not None:
            values = np.asarray(site.family.support())
            return values, np.zeros(len(values))
        wide = max(1.0, getattr(site, "scale", 1.0) ** -0.5)
        low, high = (wide * e for e in site.family.span)
        breaks = {t for s in self.body for e in s.exprs() for name, t in e.breaks if name == site.name}
        if smooth == 1:
            return panels(low, high, 0.5, 8 + extra, breaks)
        if smooth == 2:
            return panels(low, high, 1.0, 8 + extra, breaks)
        low, high = max(low, -7.0), min(high, 7.0)
        return panels(low, high, 7 / 3, 10 + extra if smooth == 3 else 6 + extra, breaks)


class NoTruth(Exception):
    """A sum of more points than are worth their time, or one without an end."""


@functools.cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)


def panels(low: float, high: float, width: float, nodes: int, breaks: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes in panels of at most `width`, split at `breaks`; and log weights."""
    edges = sorted({low, high, *(b for b in breaks if low < b < high)})
    g, w = _legendre(nodes)
    points, weights = [], []
    for a, b in itertools.pairwise(edges):
        inner = np.linspace(a, b, max(1, int(np.ceil((b - a) / width - 1e-9))) + 1)
        for c, d in itertools.pairwise(inner):
            points.append((c + d) / 2 + (d - c) / 2 * g)
            weights.append((d - c) / 2 * w)
    return np.concatenate(points), np.log(np.concatenate(weights))


def simulate(program: Program, seed: int) -> np.ndarray:
    """x [n, D] drawn from a program whose covariate columns are filled in already."""
    rng, x = np.random.default_rng(seed), program.x.copy()
    env: Env = {p.name: np.asarray(p.value) for p in program.params}
    env |= {g.name: np.asarray(g.family.sample(rng, *g.args)) for g in program.globals}
    env |= {f"x{c}": x[:, c][:, None] for c in range(x.shape[1])}
    env |= {name: values[:, None] for name, values in program.constants.items()}
    env |= {"i": np.arange(len(x))[:, None] * 1.0, "n": np.asarray(float(len(x)))}
    for s in program.body:
        if isinstance(s, Let):
            env[s.name] = s.expr.numpy(env)
            continue
        args = [np.broadcast_to(a.numpy(env), (len(x), 1)) for a in s.args]
        if not args:
            value: Any = np.stack([s.family.sample(rng) for _ in x])[:, None]
        else:
            value = s.family.sample(rng, *args)
        env[s.name] = value
        if isinstance(s, Observed):
            for c, v in zip(s.columns, value if len(s.columns) > 1 else (value,), strict=True):
                x[:, c] = np.asarray(v)[:, 0]
                env[f"x{c}"] = x[:, c][:, None]
    return x
