"""Which random programs there are: a few latents, a mean of terms in them, observed sites, and at most two oddities.

`build(pick)` makes a program; `pick(options)` chooses one of them, by a random generator or by hypothesis, for which the
first option is the simplest. All constants are exact in float32, for a tensor made at module level is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from soundness_programs import (
    BERNOULLI,
    BERNOULLI_LOGITS,
    BETA,
    BINOMIAL,
    BIVARIATE,
    CATEGORICAL3,
    CATEGORICAL_LOGITS,
    GAMMA,
    NORMAL,
    PAIR,
    POISSON,
    Expr,
    Global,
    Latent,
    Let,
    Observed,
    Outside,
    Param,
    Program,
    combine,
    const,
    plus,
    simulate,
    times,
    var,
)

T = TypeVar("T")
Pick = Callable[[Sequence[Any]], Any]

# maps of a standardised latent s: source, NumPy, where it has a kink or a jump
CURVES: dict[str, tuple[str, Callable[[Any], Any], tuple[float, ...]]] = {
    "square": ("{0} ** 2", lambda s: s**2, ()),
    "weak tanh": ("8.0 * torch.tanh(0.125 * {0})", lambda s: 8 * np.tanh(0.125 * s), ()),
    "abs": ("{0}.abs()", np.abs, (0.0,)),
    "relu": ("torch.relu({0})", lambda s: np.maximum(s, 0), (0.0,)),
    "clamp near": ("{0}.clamp(max=0.5)", lambda s: np.minimum(s, 0.5), (0.5,)),
    "clamp at 2 sd": ("{0}.clamp(max=2.0)", lambda s: np.minimum(s, 2.0), (2.0,)),
    "clamp far away": ("{0}.clamp(-64.0, 64.0)", lambda s: np.clip(s, -64, 64), ()),
    "step": ("torch.where({0} > 0.5, 2.0, -1.0)", lambda s: np.where(s > 0.5, 2.0, -1.0), (0.5,)),
    "where": ("torch.where({0} > 1.0, {0}, 2 * {0} - 1)", lambda s: np.where(s > 1, s, 2 * s - 1), (1.0,)),
    "rare where": ("torch.where({0} > 2.5, {0} + 3, {0})", lambda s: np.where(s > 2.5, s + 3, s), (2.5,)),
    "round": ("torch.round({0})", np.round, tuple(k + 0.5 for k in range(-9, 9))),
    "floor": ("torch.floor({0})", np.floor, tuple(float(k) for k in range(-9, 10))),
    "sign": ("torch.sign({0})", np.sign, (0.0,)),
    "heaviside": ("torch.heaviside({0}, torch.zeros_like({0}))", lambda s: (s > 0) * 1.0, (0.0,)),
    "compare": ("2.0 * ({0} > 0.25)", lambda s: 2.0 * (s > 0.25), (0.25,)),
    "cast": ("({0} * 2).long() * 1.0", lambda s: np.trunc(s * 2), tuple(k / 2 for k in range(-18, 19))),
    "index": (
        "torch.tensor([-1.0, 0.5, 2.0])[({0} > 0).long() + ({0} > 1).long()]",
        lambda s: np.select([s > 1, s > 0], [2.0, 0.5], -1.0),
        (0.0, 1.0),
    ),
    "bucketize": (
        "torch.bucketize({0}.contiguous(), torch.tensor([-0.5, 0.75], dtype={0}.dtype)) * 1.0",
        lambda s: np.where(s > 0.75, 2.0, np.where(s > -0.5, 1.0, 0.0)),
        (-0.5, 0.75),
    ),
    "detached": ("{0}.detach()", lambda s: s, ()),
    "exp": ("torch.exp(0.5 * {0})", lambda s: np.exp(0.5 * s), ()),
    "sin": ("torch.sin({0})", np.sin, ()),
}
JOINS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "the row before": (
        "torch.cat([torch.zeros_like({0}[..., :1]), {0}[..., :-1]], -1)",
        lambda v: np.concatenate([0 * v[:1], v[:-1]]),
    ),
    "the row after": (
        "torch.cat([{0}[..., 1:], torch.zeros_like({0}[..., :1])], -1)",
        lambda v: np.concatenate([v[1:], 0 * v[:1]]),
    ),
    "roll": ("{0}.roll(1, -1)", lambda v: np.roll(v, 1, 0)),
    "cumsum": ("0.5 * {0}.cumsum(-1)", lambda v: 0.5 * np.cumsum(v, 0)),
    "mean of the batch": ("{0}.mean(-1, keepdim=True)", lambda v: v.mean(0, keepdims=True)),
    "centring": ("({0} - {0}.mean(-1, keepdim=True))", lambda v: v - v.mean(0, keepdims=True)),
    "flip": ("{0}.flip(-1)", lambda v: v[::-1]),
    "sort": ("{0}.sort(-1).values", lambda v: np.sort(v, 0)),
    "softmax over rows": (
        "3.0 * torch.softmax({0}, -1)",
        lambda v: 3 * np.exp(v - v.max(0)) / np.exp(v - v.max(0)).sum(0),
    ),
    "the first row": ("{0}[..., :1]", lambda v: v[:1]),
    "the maximum": ("{0}.amax(-1, keepdim=True)", lambda v: v.max(0, keepdims=True)),
}
PLACES = {
    "plate index": (" as i", "(i * 0.25)", lambda e: e["i"] * 0.25),
    "arange": ("", "(torch.arange(n) * 0.25)", lambda e: e["i"] * 0.25),
    "closed-over array": ("", "U[:n]", lambda e: e["U"]),
    "number of rows": ("", "(4.0 / n)", lambda e: 4.0 / e["n"]),
}
ODDITIES = (
    "curve",
    "product of latents",
    "join of latents",
    "join of a covariate",
    "join of data",
    "row number",
    "if on data",
    "if on a draw",
    "where on a covariate",
    "scaled latent",
    "scaled site",
    "masked site",
    "masked latent",
    "obs_mask",
    "scaled global",
    "masked global",
    "observed outside",
    "factor outside",
    "missing parent",
    "missing covariate",
    "count of a latent",
    "delta",
    "latent scale",
    "gamma latent",
    "beta latent",
    "poisson latent",
    "other likelihood",
)
LATENTS = (("z",), ("k",), ("z", "w"), ("z", "k"), ("c",), ("v",), ("k", "z"), ("p",), ("k", "k2"))
WIDE = {"w", "v"}  # of two continuous coordinates


@dataclass
class Builder:
    """What of a program is decided so far."""

    pick: Pick
    odd: tuple[str, ...]
    n: int = 5
    unit: float = 1.0
    centre: float = 0.0
    head: list[Any] = field(default_factory=list)
    body: list[Any] = field(default_factory=list)
    lets: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    covariates: list[Expr] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    plate: str = 'pyro.plate("data", n)'
    latents: dict[str, Expr] = field(default_factory=dict)  # standardised
    continuous: set[str] = field(default_factory=set)

    def some(self, *options: T) -> T:
        return self.pick(options)

    def has(self, oddity: str) -> bool:
        if oddity in self.odd:
            self.labels.append(oddity)
            return True
        return False


def build(pick: Pick, ordinary: bool | None = None) -> Program:
    """A program whose data are drawn from itself."""
    plain = pick((True, False, False, False)) if ordinary is None else ordinary
    odd = () if plain else tuple(sorted({pick(ODDITIES), *((pick(ODDITIES),) if pick((False, True)) else ())}))
    b = Builder(pick, odd)
    b.n = b.some(5, 3, 7)
    _covariates(b)
    _globals(b)
    _latents(b)
    _observations(b, _mean(b))
    return _finished(b, plain)


def _covariates(b: Builder) -> None:
    wanted = {
        "join of a covariate",
        "where on a covariate",
        "missing covariate",
        "masked site",
        "obs_mask",
        "if on data",
    }
    if wanted & set(b.odd) or b.some(False, True):
        b.columns.append("u")
        b.lets.append(f"u = torch.zeros(n) if x is None else x[:, {len(b.columns) - 1}]")
        b.covariates.append(var("x0", "u"))


def _globals(b: Builder) -> None:
    special = {"scaled global": (2.0, False), "masked global": (1.0, True)}
    kinds = [special[o] for o in b.odd if o in special]
    b.labels += [o for o in b.odd if o in special]
    if kinds:
        scale, mask = kinds[0]
        b.head.append(Global("g", NORMAL, (0.5, 2.0), scale, mask))
    elif not any("join" in o for o in b.odd):
        what = b.some("none", "none", "none", "none", "normal", "parameter", "parameter")
        if what == "normal":
            b.head.append(Global("g", NORMAL, b.some((0.0, 1.0), (1.0, 8.0))))
        if what == "parameter":
            b.head.append(Param("g", 0.25))
    if b.has("observed outside"):
        if b.head:
            b.head.append(_outside_of("g"))
        else:
            b.head.append(
                Outside('pyro.sample("known", dist.Normal(0.0, 2.0), obs=torch.tensor(3.0))', lambda e: _n(3, 2))
            )
    if b.has("factor outside"):
        if b.head and not isinstance(b.head[0], Outside):
            b.head.append(Outside('pyro.factor("penalty", -3.0 * g**2)', lambda e: -3.0 * e["g"] ** 2))
        else:
            b.head.append(Outside('pyro.factor("penalty", torch.tensor(-2.5))', lambda e: -2.5))


def _n(x: Any, s: float) -> float:
    return float(NORMAL.logpdf(x, 0.0, s))


def _outside_of(name: str) -> Outside:
    line = f'pyro.sample("known", dist.Normal({name}, 0.5), obs=torch.tensor(2.0))'
    return Outside(line, lambda e: NORMAL.logpdf(2.0, e[name], 0.5))


# ---- latents ---------------------------------------------------------------------------------------------------------


def _latents(b: Builder) -> None:
    names = b.some(*LATENTS)
    joined = any(o in b.odd for o in ("join of latents", "if on a draw"))
    if joined:
        names = b.some(("k",), ("z",), ("c",))
        b.n = 3 if names == ("z",) else 4
    if "product of latents" in b.odd:
        names = ("z", "w")
    if "curve" in b.odd:
        names = b.some(("z",), ("z", "k"))
    if {"scaled latent", "delta", "latent scale"} & set(b.odd) and not joined:
        names = ("z",)
    if "count of a latent" in b.odd:
        names = ("k",)
    if "masked latent" in b.odd:
        names = b.some(("k",), ("k", "z"))
    for oddity, only in (("gamma latent", "gamma"), ("beta latent", "beta"), ("poisson latent", "poisson")):
        if oddity in b.odd and not joined:
            names = (only,)
    if any(isinstance(s, Global) for s in b.head) and WIDE & set(names):
        names = ("z",)  # the truth integrates over the global too
    if "curve" in b.odd or b.some(False, False, True):
        b.centre, b.unit = b.some((0.0, 1.0), (6.0, 1.0), (6.0, 64.0), (0.0, 0.0625))
        if (b.centre, b.unit) != (0.0, 1.0):
            b.labels.append(f"prior N({b.centre * b.unit:g}, {b.unit:g})")
    for name in names:
        _LATENT[name](b)
    if any(s.name == "k" and s.family is BERNOULLI for s in b.body) and b.has("count of a latent"):
        total = combine("(1 + 3 * {0})", lambda k: 1 + 3 * k, var("k"))
        b.body.append(Latent("m", BINOMIAL, (total, const(0.5))))
        b.latents["m"] = var("m")


def _add_z(b: Builder) -> None:
    scale = 0.5 if b.has("scaled latent") else 1.0
    loc = b.centre * b.unit
    prior = const(loc)
    if "k" in b.latents:  # a mixture: its mean hangs on k
        prior = plus(prior, times(const(2.0 * b.unit), var("k")))
    b.body.append(Latent("z", NORMAL, (prior, const(b.unit)), scale))
    b.latents["z"] = _standardised(b, "z")
    b.continuous.add("z")


def _standardised(b: Builder, name: str) -> Expr:
    if (b.centre, b.unit) == (0.0, 1.0):
        return var(name)
    return combine(
        f"(({{0}} - {b.centre * b.unit!r}) / {b.unit!r})", lambda z: (z - b.centre * b.unit) / b.unit, var(name)
    )


def _add_w(b: Builder) -> None:
    how = b.some("alone", "on z")
    loc = const(0.0) if how == "alone" else times(const(0.5), b.latents["z"])
    b.body.append(Latent("w", NORMAL, (loc, const(b.some(1.0, 0.5)))))
    b.latents["w"] = var("w")
    b.continuous.add("w")


def _add_k(b: Builder) -> None:
    rare = b.some(0.5, 0.25, 0.03125)
    b.body.append(Latent("k", BERNOULLI, (const(rare),), mask=b.has("masked latent")))
    b.latents["k"] = var("k")


def _add_k2(b: Builder) -> None:
    p = combine("torch.where({0} == 1, 0.75, 0.25)", lambda k: np.where(k == 1, 0.75, 0.25), var("k"))
    b.body.append(Latent("k2", BERNOULLI, (p,)))
    b.latents["k2"] = var("k2")


def _add_c(b: Builder) -> None:
    b.body.append(Latent("c", CATEGORICAL3, ()))
    how = b.some("index", "number")
    table = np.array([-1.0, 0.5, 2.0])
    if how == "index":
        b.latents["c"] = combine("torch.tensor([-1.0, 0.5, 2.0])[{0}]", lambda c: table[c.astype(int)], var("c"))
    else:
        b.latents["c"] = var("c")


def _add_v(b: Builder) -> None:
    code = ('v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))',)
    b.body.append(Latent("v0", NORMAL, (const(0.0), const(1.0)), code=code))
    b.body.append(Latent("v1", NORMAL, (const(0.0), const(1.0)), code=()))
    b.latents["v"] = combine(
        "(v @ torch.tensor([1.0, -0.5]))", lambda p, q: p - 0.5 * q, var("v0", "v[..., 0]"), var("v1", "v[..., 1]")
    )
    b.continuous.add("v")


def _add_p(b: Builder) -> None:
    """Two copies of a latent in a plate inside each row."""
    code = ('with pyro.plate("inner", 2, dim=-2):', '    p = pyro.sample("p", dist.Bernoulli(0.25))')
    b.body.append(Latent("p0", BERNOULLI, (const(0.25),), code=code))
    b.body.append(Latent("p1", BERNOULLI, (const(0.25),), code=()))
    both = frozenset({"p0", "p1"})
    b.latents["p"] = Expr("p.sum(-2, keepdim=True)", lambda e: e["p0"] + e["p1"], both)


def _add_gamma(b: Builder) -> None:
    b.has("gamma latent")
    b.body.append(Latent("z", GAMMA, (const(2.0), const(2.0))))
    b.latents["z"] = var("z")


def _add_beta(b: Builder) -> None:
    b.has("beta latent")
    b.body.append(Latent("z", BETA, (const(2.0), const(3.0))))
    b.latents["z"] = var("z")


def _add_poisson(b: Builder) -> None:
    b.has("poisson latent")
    b.body.append(Latent("k", POISSON, (const(1.5),)))
    b.latents["k"] = times(const(0.5), var("k"))


_LATENT = {
    "z": _add_z,
    "w": _add_w,
    "k": _add_k,
    "k2": _add_k2,
    "c": _add_c,
    "v": _add_v,
    "p": _add_p,
    "gamma": _add_gamma,
    "beta": _add_beta,
    "poisson": _add_poisson,
}


# ---- the mean --------------------------------------------------------------------------------------------------------


def _mean(b: Builder) -> Expr:
    terms = [_term(b, name, e) for name, e in b.latents.items()]
    if {"z", "w"} <= set(b.latents) and b.has("product of latents"):
        terms.append(times(b.latents["z"], b.latents["w"]))
    if "k" in b.latents and "z" in b.latents and b.some(False, True):
        terms.append(times(var("k"), b.latents["z"]))  # linear in z for either k
    if b.head and not isinstance(b.head[0], Outside):
        terms.append(var("g"))
    terms += [_of_covariate(b, u) for u in b.covariates if b.some(True, False) or len(b.odd)]
    if b.has("row number"):
        name = b.some(*PLACES)
        suffix, torch, numpy = PLACES[name]
        b.labels.append(name)
        b.plate += suffix
        terms.append(Expr(torch, numpy))
        b.constants["U"] = np.random.default_rng(7).integers(-16, 17, b.n) / 8
    mean = terms[0]
    for t in terms[1:]:
        mean = plus(mean, t)
    return mean


def _term(b: Builder, name: str, e: Expr) -> Expr:
    if name == "z" and b.has("delta"):
        b.body.append(Let("d", times(const(2.0), e), delta=True))
        e = replace(var("d"), names=frozenset({"d"}))
    if name in ("z", "k", "c") and b.has("join of latents"):
        kind = b.some(*JOINS)
        b.labels.append(kind)
        torch, numpy = JOINS[kind]
        e = (
            plus(e, combine(torch, lambda v: numpy(v), e, joins=True))
            if b.some(True, False)
            else combine(torch, numpy, e, joins=True)
        )
    if name == "z" and b.has("curve"):
        kind = b.some(*CURVES)
        b.labels.append(kind)
        torch, curve, breaks = CURVES[kind]
        e = replace(combine(f"({torch})", curve, e), breaks=_at(b, breaks))
    return times(const(b.some(1.0, 2.0, -1.0)), e)


def _at(b: Builder, places: tuple[float, ...]) -> tuple[tuple[str, float], ...]:
    """Kinks of a map of the standardised z in its coordinate t: the same, unless its prior mean moves with another latent."""
    fixed = any(isinstance(s, Latent) and s.name == "z" and not s.args[0].names for s in b.body)
    return tuple(("z", t) for t in places) if fixed else ()


def _of_covariate(b: Builder, u: Expr) -> Expr:
    if b.has("join of a covariate"):
        kind = b.some(*JOINS)
        b.labels.append(kind)
        torch, numpy = JOINS[kind]
        u = combine(torch, numpy, u, joins=True)
    if b.has("where on a covariate"):
        z = b.latents.get("z", const(0.5))
        kind = b.some("line", "square", "clamp")
        b.labels.append(kind)
        curve = {
            "line": ("torch.where({0} > 0.5, 2.0 * {1}, {1})", lambda v, s: np.where(v > 0.5, 2 * s, s)),
            "square": ("torch.where({0} > 0.5, {1} * {1}, {1})", lambda v, s: np.where(v > 0.5, s * s, s)),
            "clamp": (
                "torch.where({0} > 0.5, ({1} + 0.0 * {0}).clamp(max=0.5), {1})",
                lambda v, s: np.where(v > 0.5, np.minimum(s, 0.5), s),
            ),
        }[kind]
        return replace(combine(curve[0], curve[1], u, z), breaks=_at(b, (0.5,) if kind == "clamp" else ()))
    if "missing covariate" in b.odd and b.some(False, True):
        return combine("torch.where({0} > 0, 1.0, -1.0)", lambda v: np.where(v > 0, 1.0, -1.0), u)
    return times(const(0.5), u)


# ---- observations ----------------------------------------------------------------------------------------------------


def _observations(b: Builder, mean: Expr) -> None:
    noise = const(b.some(1.0, 0.5, 2.0))
    if any("join" in o or "draw" in o for o in b.odd):
        noise = const(1.0)
    if b.has("latent scale") and "z" in b.latents:
        noise = combine("torch.exp(0.25 * {0})", lambda z: np.exp(0.25 * z), b.latents["z"])
    if b.has("if on data"):
        test = combine(
            "(2.0 if x is not None and bool(({0} > 0.75).any()) else 1.0)",
            lambda u: np.where((u > 0.75).any(), 2.0, 1.0),
            b.covariates[0],
            joins=True,
        )
        noise = times(noise, test)
    first = next(iter(b.latents.values()))
    if b.has("if on a draw"):
        test = combine(
            "(2.0 if float({0}.reshape(-1)[0]) > 0.5 else 1.0)",
            lambda v: np.where(v[:1] > 0.5, 2.0, 1.0),
            first,
            joins=True,
        )
        test = replace(test, breaks=_at(b, (0.5,)))
        noise = times(noise, test)
    if b.has("join of data"):
        kind = b.some("the row before", "centring", "roll")
        b.labels.append(kind)
        _site(b, "a", NORMAL, (times(const(0.5), first), const(1.0)))
        torch, numpy = JOINS[kind]
        mean = plus(mean, times(const(0.5), combine(torch, numpy, var("a"), joins=True)))
    if b.has("missing parent"):
        kind = b.some("normal", "bernoulli", "categorical", "read from x")
        b.labels.append(kind)
        mean = plus(mean, _parent(b, kind, first))
    gaussian = not (b.has("other likelihood") or (not b.continuous and b.some(False, True)))
    kinds = ("normal", "two", "pair", "bivariate") if gaussian else ("bernoulli", "poisson", "categorical")
    _likelihood(b, b.some(*kinds), mean, noise)


def _parent(b: Builder, kind: str, first: Expr) -> Expr:
    if kind == "bernoulli":
        _site(b, "a", BERNOULLI, (const(0.25),))
        return combine("torch.where({0} == 1, 2.0, -1.0)", lambda a: np.where(a == 1, 2.0, -1.0), var("a"))
    if kind == "categorical":
        _site(b, "a", CATEGORICAL3, ())
        table = np.array([-1.0, 0.5, 2.0])
        return combine(
            "torch.tensor([-1.0, 0.5, 2.0])[{0}.long()]", lambda a: table[np.nan_to_num(a).astype(int)], var("a")
        )
    _site(b, "a", NORMAL, (times(const(0.5), first), const(1.0)))
    if kind == "read from x":
        column = len(b.columns) - 1
        return var("a", f"(0.0 if x is None else x[:, {column}])")
    return var("a")


def _site(b: Builder, name: str, family: Any, args: tuple[Expr, ...], width: int = 1, **more: Any) -> None:
    columns = tuple(range(len(b.columns), len(b.columns) + width))
    b.columns += [name] if width == 1 else [f"*{name}"] + [""] * (width - 1)
    b.body.append(Observed(name, family, args, columns, **more))


def _likelihood(b: Builder, kind: str, mean: Expr, noise: Expr) -> None:
    more: dict[str, Any] = {"scale": 0.5} if b.has("scaled site") else {}
    if b.has("masked site"):
        more["mask"] = combine("({0} > 0)", lambda u: u > 0, b.covariates[0])
    if b.has("obs_mask"):
        more["obs_mask"] = combine("({0} > 0)", lambda u: u > 0, b.covariates[0])
    other = plus(times(const(-0.5), mean), const(1.0))
    flat = combine("({0} + torch.zeros(n))", lambda m: m, mean)
    if kind in ("normal", "two") or "obs_mask" in more or "mask" in more:
        _site(b, "y", NORMAL, (mean, noise), **more)
        if kind == "two":
            _site(b, "y2", NORMAL, (other, const(1.0)))
    elif kind == "pair":
        _site(b, "y", PAIR, (flat, other, _column(noise)), 2, **more)
    elif kind == "bivariate":
        _site(b, "y", BIVARIATE, (flat, other, const(1.0)), 2, **more)
    elif kind == "bernoulli":
        _site(b, "y", BERNOULLI_LOGITS, (flat,), **more)
    elif kind == "poisson":
        rate = combine("(torch.nn.functional.softplus({0}) + 0.125)", lambda m: np.logaddexp(0, m) + 0.125, flat)
        _site(b, "y", POISSON, (rate,), **more)
    else:
        _site(b, "y", CATEGORICAL_LOGITS, (flat,), **more)


def _column(e: Expr) -> Expr:
    """A scale of every row, beside the two columns of a site."""
    return replace(e, torch=f"torch.as_tensor({e.torch}).unsqueeze(-1)")


# ---- data ------------------------------------------------------------------------------------------------------------


def _finished(b: Builder, ordinary: bool) -> Program:
    seed = b.some(0, 1, 2, 3)
    rng = np.random.default_rng(100 + seed)
    x = np.zeros((b.n, len(b.columns)))
    if b.covariates:
        x[:, 0] = rng.integers(-16, 17, b.n) / 8
        if b.some(False, True):
            x[:, 0].sort()
    program = Program(
        tuple(b.head),
        tuple(b.body),
        tuple(c for c in b.columns if c),
        x,
        b.constants,
        tuple(b.lets),
        tuple(dict.fromkeys(b.labels)),
        ordinary,
        plate=b.plate,
    )
    x = simulate(program, seed)
    holes = rng.random(x.shape) < 0.3
    hole_kind = {o for o in b.odd if "missing" in o}
    if not (hole_kind or (b.some(False, True) and not any("join" in o or "mask" in o for o in b.odd))):
        return replace(program, x=x)
    parents = {c for p in program.parents() for c in p.columns}
    covariates = {0} if b.covariates else set()
    for c in range(x.shape[1]):
        allowed = c not in parents or "missing parent" in b.odd
        if c in covariates:
            allowed = "missing covariate" in b.odd
        if not allowed:
            holes[:, c] = False
    if "missing covariate" in b.odd:
        holes[0, 0] = True
        b.has("missing covariate")
    if "missing parent" in b.odd:
        holes[1, list(parents)] = True
    labels = tuple(dict.fromkeys([*b.labels, *(["holes"] if holes.any() else [])]))
    read = {n for s in program.body for e in s.exprs() for n in e.names}
    lost = bool("x0" in read and covariates and holes[:, 0].any())
    return replace(program, x=np.where(holes, np.nan, x), labels=labels, must_refuse=lost)
