"""Where learning begins: for mixtures of vectors a k-means clustering and one M-step, else the program's own values."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

from inference._exact.compressed import Compressed
from inference._exact.engine import AnyEngine, Statistics
from inference._exact.linear import LinearGaussian
from inference._families._family import Floor
from inference._method.task import Task
from inference._numerics.slices import slices
from inference._numerics.weighted import count
from zoo._errors import UsageError

Start = Literal["auto", "kmeans", "random", "program"]
KMEANS_ROWS = 20_000  # a start needs no more
CLUSTERED = 2**16  # rows at a time
CONTEST_ROWS = 2000  # for choosing among starts
LINEAR_ROWS = 300  # the same for linear programs, whose every row may have holes of its own
AGAIN = 3  # further seeds of each clustering
CLUSTERINGS = ("kmeans", "seeds")
FAR = 100_003  # from one of them to the next: restarts have seeds next to each other
CHEAP = 2**21  # rows × joint values × columns, up to which they are tried
SHORT, LONGER = 4, 10  # EM steps from each start of a mixture, and where that costs little
IN_LINEAR = 8  # the same of a linear program
MANY = 20
SMALL = 2**14  # rows × joint values of the latents
NARROW = 1e-8  # a share of the data's variance: of a smaller one some sums have lost half of their digits
BLUR = 0.05  # of each cluster's counts, from all data alike
FLOOR = 1e-6


def begin(task: Task, start: Start, seed: int, floor: Floor | None = None) -> dict[str, Tensor]:
    """Put the program's θ at a start for learning and return point values of its global latents.

    - `kmeans`: k-means++ seeds and Lloyd's iterations on the data in units of their standard deviations, missing entries
      at their column's mean, then one M-step from that clustering (Arthur & Vassilvitskii 2007);
    - `random`: the same from random responsibilities;
    - `program`: the values the program brings;
    - `auto`: `kmeans` where the program has discrete local latents that can be enumerated and there are data enough.
    """
    globals = task.global_start()
    mixture = is_mixture(task)
    if start == "random" and not mixture:
        _jitter(task, seed)
    if start == "program" or not mixture or (start == "auto" and task.structure.assignments > len(task.x)):
        return globals
    exact = task.engine
    if start == "kmeans" and exact.A > exact.N:
        raise UsageError(
            f"start=kmeans needs a row for each of the {exact.A} joint values of the latents; there are {exact.N}."
        )
    return _from_clusters(task, globals, _random(exact, seed) if start == "random" else _kmeans(task, seed), floor)


def is_mixture(task: Task) -> bool:
    """Whether there are discrete local latents to cluster the rows by; missing entries are no clusters."""
    completes = any(s.completes for s in task.structure.discrete_locals)
    return task.structure.is_exact and task.structure.assignments > 1 and not completes


def usual_restarts(task: Task, start: Start) -> int:
    """How many climbs there are unless told otherwise: several of small data, where the model says it has many optima."""
    several = task.program.many_optima and start != "program" and is_mixture(task)
    return MANY if several and task.engine.size <= SMALL else 1


@dataclass
class _Trial:
    """A start that was tried: θ and the globals there, and log p(x, globals; θ) a few EM steps on."""

    name: str
    seed: int
    theta: dict[str, Tensor]
    globals: dict[str, Tensor]
    value: float = -np.inf


def contest(task: Task, seed: int, floor: Floor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Put θ at the best of several starts, judged by a few EM steps from each on at most `CONTEST_ROWS` rows.

    One start is known to fail for mixtures, and for linear programs with missing entries; for others, and where only one
    can be had, there is none to choose. Where the top is known without a climb, that is the start. Clusterings of a mixture
    differ by their seeds, so that several are tried where that costs little (Biernacki, Celeux & Govaert 2003).

    Returns the globals, and start → log p(x, globals; θ) after its few steps, the best of its seeds.
    """
    names = _candidates(task)
    known = isinstance(task.exact, Compressed) and not task.structure.global_latents
    if known and (point := task.engine.highest(task.plan({}), floor)) is not None:
        task.program.assign(point)
        return {}, {}
    if len(names) < 2:
        return begin(task, "auto", seed, floor), {}
    few = _some_rows(task, seed)
    initial = task.theta()
    trials: list[_Trial] = []
    cheap = _cheap(few)
    again = [(name, (seed + FAR * k) % 2**32) for k in range(1, AGAIN + 1) for name in names if name in CLUSTERINGS]
    for name, other in [(name, seed) for name in names] + again * cheap:
        task.program.assign(initial)
        with contextlib.suppress(ValueError, RuntimeError):  # this start leads out of the program's domain
            _try(few, name, other, Floor(floor.share, set(), floor.strict), trials, LONGER if cheap else SHORT)
    task.program.assign(initial)
    found = {name: max(t.value for t in trials if t.name == name) for name in {t.name: None for t in trials}}
    if not any(np.isfinite(value) for value in found.values()):
        return begin(task, "auto", seed, floor), {}
    best = max(trials, key=lambda t: t.value)
    if few is not task and best.seed == seed:
        return CANDIDATES[best.name](task, seed, floor), found
    task.program.assign(best.theta)  # of some rows, where it is another seed's: all rows would make other clusters
    return best.globals, found


def _try(few: Task, name: str, seed: int, floor: Floor, trials: list[_Trial], steps: int) -> None:
    """Try a start, unless it is the same as one before."""
    globals = CANDIDATES[name](few, seed, floor)
    theta = few.theta()
    if any(_same(theta | globals, t.theta | t.globals) for t in trials):
        return
    trial = _Trial(name, seed, theta, globals)
    value = _short(few, globals, floor, steps if is_mixture(few) else IN_LINEAR)
    # what has collapsed after a few steps is the likelihood's own fault, and no reason to prefer it
    trial.value = -np.inf if floor.reached else value
    trials.append(trial)


def _cheap(few: Task) -> bool:
    """Whether short runs of a mixture cost little: their steps are in closed form, and of few numbers."""
    if not is_mixture(few) or few.engine.size * few.x[0].numel() > CHEAP:
        return False
    return not few.plan(globals := few.global_start()).by_steps(globals)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(value, other[name]) for name, value in one.items())


def _candidates(task: Task) -> list[str]:
    if is_mixture(task):
        return ["kmeans", "seeds", "program"] if task.structure.assignments <= len(task.x) else []
    holes = isinstance(task.exact, LinearGaussian) and task.exact.data.missing and not task.exact.assignments
    return ["program", "eigenvectors", "random"] if holes else []


def _some_rows(task: Task, seed: int) -> Task:
    """The same program on some of its rows, some for each joint value of the discrete latents."""
    rows = max(CONTEST_ROWS, 20 * task.structure.assignments) if is_mixture(task) else LINEAR_ROWS
    if len(task.x) <= rows:
        return task
    among = np.arange(len(task.x)) if task.weights is None else task.weights.nonzero()[:, 0].numpy()
    size = min(rows, len(among))
    some = torch.as_tensor(np.sort(np.random.default_rng(seed).choice(among, size, replace=False)))
    weights = None if task.weights is None else task.weights[some]
    return Task(task.program, task.structure, task.x[some], weights=weights, seed=seed, quiet=True, limit=task.limit)


def _short(task: Task, globals: dict[str, Tensor], floor: Floor, iterations: int) -> float:
    """log p(x, globals; θ) after a few EM steps."""
    exact, how = task.engine, task.plan(globals)
    if how.by_steps(globals):
        iterations = 1  # which is many steps
    value = -np.inf
    for i in range(iterations + 1):
        stats = exact.e_step(globals)
        before, value = value, stats.log_joint
        if not floor.fell and not exact.broken(how, stats):
            check_rise(task, stats, before, value, i)
        if i < iterations:
            floor.clear()
            weights = exact.responsibilities(None, globals) if stats.need_responsibilities else None
            globals = task.m_step(how, stats, globals, floor, weights)
    return value


def check_rise(task: Task, stats: Statistics, before: float, now: float, iteration: int) -> bool:
    """Whether the log-likelihood did not fall, but for rounding.

    Raises `ArithmeticError` where it fell and no variance is near 0, whose last digits could be to blame.
    """
    if now >= before - 1e-8 * (1 + abs(before)):
        return True
    if np.isfinite(now) and np.isfinite(before) and task.engine.smallest(stats) > NARROW:
        raise ArithmeticError(f"em: the log-likelihood fell from {before!r} to {now!r} at iteration {iteration}.")
    return False


def _from_clusters(
    task: Task, globals: dict[str, Tensor], weights: Clusters | Tensor, floor: Floor | None
) -> dict[str, Tensor]:
    """θ and globals after one M-step from responsibilities [N, A].

    Statistics of counts are blurred a little, and so are the responsibilities of sites that have no statistics: from a
    probability of 0 no E-step would ever move.
    """
    exact = task.engine
    stats = exact.e_step(globals, weights)
    exact.blur(stats, BLUR)
    soft = Blurred(weights)
    start = task.theta(), globals
    for _ in range(2):
        how = task.plan(globals)
        found = task.m_step(how, stats, start[1], floor or Floor(FLOOR, set(), strict=False), soft, iterations=100)
        wrong = exact.broken(how, exact.look(found)) if how.closed else []
        if not wrong:
            break
        task.numeric.update(wrong)  # where the closed form led, θ is no longer what it was taken for
        task.program.assign(start[0])
    return found


@torch.no_grad()
def _jitter(task: Task, seed: int) -> None:
    """Move each free parameter by about its own size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in task.program.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.add_(0.5 * parameter.square().mean().sqrt() * noise)


@dataclass
class Clusters:
    """Responsibilities [N, A] of a clustering, 0 or 1, made for the rows that are asked for."""

    labels: Tensor  # [N] of small integers
    A: int
    dtype: torch.dtype
    weights: Tensor | None = None  # [N] how many times each row counts

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.nn.functional.one_hot(self.labels[rows].long(), self.A).to(self.dtype)

    def mean(self, dim: int) -> Tensor:
        """The share of each cluster [A]."""
        parts = self.labels.split(CLUSTERED)
        times = [None] * len(parts) if self.weights is None else self.weights.split(CLUSTERED)
        counts = sum(torch.bincount(p.long(), w, minlength=self.A) for p, w in zip(parts, times, strict=True))
        return torch.as_tensor(counts).to(self.dtype) / count(self.weights, len(self.labels))


@dataclass
class Blurred:
    """Responsibilities [N, A] with a share `BLUR` of their mean in each row."""

    weights: Clusters | Tensor

    def __post_init__(self) -> None:
        self.mean = self.weights.mean(0)

    def __getitem__(self, rows: slice) -> Tensor:
        return (1 - BLUR) * self.weights[rows] + BLUR * self.mean


def _random(exact: AnyEngine, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    out = torch.rand(exact.N, exact.A, generator=generator, dtype=torch.float64).to(exact.x.dtype)
    for rows in out.split(CLUSTERED):
        rows.copy_(rows.softmax(1))
    return out


def _kmeans(task: Task, seed: int, lloyd: bool = True) -> Clusters:
    """Responsibilities of a k-means clustering, the largest cluster first; or of k-means++ seeds alone.

    Where a parameter or global latent is an ordered vector the clusters are in order too, the one of the lowest values first.
    """
    from sklearn.cluster import KMeans

    exact = task.engine
    x = exact.x.reshape(exact.N, -1)
    standard, some, times = _Standard(x, exact.weights), x, exact.weights
    if exact.N > KMEANS_ROWS:
        chosen = np.random.default_rng(seed).choice(exact.N, KMEANS_ROWS, replace=False)
        some, times = x[chosen], None if times is None else times[chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than clusters: the empty ones are reported by the method
        fitted = KMeans(exact.A, n_init=1, random_state=seed, max_iter=300 if lloyd else 1)
        fitted.fit(standard(some), sample_weight=None if times is None else times.numpy())
    labels = torch.empty(exact.N, dtype=torch.int16 if exact.A < 2**15 else torch.int32)
    for mine, rows in zip(labels.split(CLUSTERED), x.split(CLUSTERED), strict=True):
        mine.copy_(torch.as_tensor(fitted.predict(standard(rows))))
    counts = Clusters(labels, exact.A, torch.float64, exact.weights).mean(0)
    if any(_ordered(c) for c in (*task.program.constraints.values(), *task.global_supports.values())):
        place = torch.as_tensor(fitted.cluster_centers_.sum(1)).argsort().argsort().to(labels.dtype)
    else:
        place = counts.argsort(descending=True, stable=True).argsort().to(labels.dtype)
    for mine in labels.split(CLUSTERED):
        mine.copy_(place[mine.long()])
    return Clusters(labels, exact.A, exact.x.dtype, exact.weights)


def _ordered(constraint: Constraint) -> bool:
    return type(getattr(constraint, "base_constraint", constraint)) is type(constraints.ordered_vector)


class _Standard:
    """Rows in units of their columns' standard deviations over all data [N, D], missing entries at their column's mean."""

    def __init__(self, x: Tensor, weights: Tensor | None = None) -> None:
        self.center = np.nan_to_num(_quiet_mean(x, lambda rows: rows, weights))
        spread = np.sqrt(_quiet_mean(x, lambda rows: (rows - self.center) ** 2, weights))
        self.spread = np.where(spread > 0, spread, 1.0)

    def __call__(self, rows: Tensor) -> np.ndarray:
        x = rows.double().numpy()
        return np.where(np.isnan(x), 0.0, (x - self.center) / self.spread)


@torch.no_grad()
def _eigenvectors(task: Task, seed: int, floor: Floor) -> dict[str, Tensor]:
    """One M-step from latents that are the leading principal components of the filled-in data."""
    exact, globals = task.engine, task.global_start()
    assert isinstance(exact, LinearGaussian)  # `_candidates` said so
    x = exact.x.reshape(exact.N, -1)
    standard = torch.as_tensor(_Standard(x, exact.weights)(x), dtype=exact.x.dtype)
    root = None if exact.weights is None else exact.weights.sqrt().unsqueeze(1)  # rows of the weighted scatter
    scatter = standard if root is None else root * standard
    left = torch.linalg.svd(scatter, full_matrices=False).U[:, : exact.L]
    left = left * count(exact.weights, exact.N) ** 0.5  # of unit variance
    if left.shape[1] < exact.L:
        raise ValueError("fewer columns than latents")
    if root is not None:
        left = torch.where(root > 0, left / root, torch.zeros_like(left))
    moments = exact.moments_about(left, 0.1, globals)
    return task.m_step(task.plan(globals), moments, globals, floor)


CANDIDATES: dict[str, Callable[[Task, int, Floor], dict[str, Tensor]]] = {
    "kmeans": lambda task, seed, floor: begin(task, "kmeans", seed, floor),
    "seeds": lambda task, seed, floor: _from_clusters(
        task, task.global_start(), _kmeans(task, seed, lloyd=False), floor
    ),
    "program": lambda task, seed, floor: begin(task, "program", seed, floor),
    "random": lambda task, seed, floor: begin(task, "random", seed, floor),
    "eigenvectors": _eigenvectors,
}


def _quiet_mean(x: Tensor, of: Callable[[np.ndarray], np.ndarray], weights: Tensor | None) -> np.ndarray:
    """The mean of `of` over the seen entries of each column of x [N, D], 0 where there are none."""
    total: np.ndarray | float = 0.0
    many: np.ndarray | int | float = 0
    for some in slices(len(x), CLUSTERED):
        value = of(x[some].double().numpy())
        seen = ~np.isnan(value)
        if weights is None:
            total, many = total + np.where(seen, value, 0.0).sum(0), many + seen.sum(0)
            continue
        times = np.where(seen, weights[some].double().numpy()[:, None], 0.0)
        total, many = total + (times * np.where(seen, value, 0.0)).sum(0), many + times.sum(0)
    if weights is not None:
        return np.asarray(np.divide(total, many, out=np.zeros(x.shape[1]), where=np.asarray(many) > 0))
    return np.asarray(total / np.maximum(many, 1))
