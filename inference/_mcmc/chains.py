"""Chains side by side: each walks at its own pace, and one evaluation serves the present question of every chain.

Warm-up is Stan's (Carpenter et al. 2017): dual averaging of each chain's step (Nesterov 2009; Hoffman & Gelman 2014), and the
metric learned in windows that double. The metric is one for all chains, from the covariances within each of them, so that a
window holds several times as many draws as one chain's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from inference._mcmc.tree import Answer, Point, Told, first_step, transition

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # [C, d] ↦ log-densities [C], gradients [C, d]
Mass = Literal["auto", "diagonal", "dense"]
FIRST, BASE, LAST = 75, 25, 50  # transitions: before the windows, of the first window, after the windows
TIED = 10.0  # of correlations, the largest eigenvalue by the smallest, from which on mass=auto learns them all
EACH = 20  # draws for each coordinate, without which it cannot tell
LONG = 100  # transitions of a window that tells whether steps are too long
DIVERGING = 0.002  # the share of its trajectories that diverge, from which they are
HIGHEST = 0.99  # acceptance rate that steps are tuned to
T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """What C chains of S draws each leave."""

    flat: np.ndarray  # [C, S, d]
    log_p: np.ndarray  # [C, S]
    diverging: np.ndarray  # bool [C, S]
    energy: np.ndarray
    tree_depth: np.ndarray
    acceptance_rate: np.ndarray
    step_size: np.ndarray  # [C]

    def followed_by(self, more: Drawn) -> Drawn:
        """The same chains with the draws that came next."""
        joined = {
            name: np.concatenate([value, getattr(more, name)], 1)
            for name, value in vars(self).items()
            if value.ndim > 1
        }
        return replace(self, **joined)

    def kept(self, draws: int) -> np.ndarray:
        """Which of each chain's draws to keep, evenly over the chain, for so many of all chains at most."""
        C, S = self.log_p.shape
        each = max(1, min(S, draws // C))
        return ((np.arange(each) + 1) * S) // each - 1

    def told(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """What the sampler says of some of each chain's draws: name → [C, kept]."""
        return {
            "diverging": self.diverging[:, kept],
            "energy": self.energy[:, kept],
            "tree_depth": self.tree_depth[:, kept],
            "acceptance_rate": self.acceptance_rate[:, kept],
            "step_size": np.repeat(self.step_size[:, None], len(kept), 1),
            "lp": self.log_p[:, kept],
        }


@dataclass
class _DualAveraging:
    """The logarithm of a step, pulled to where the acceptance rate is the target."""

    begin: float
    target: float
    count: int = 0
    gap: float = 0.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        self.now = self.begin
        self.center = math.log(10) + self.begin

    def update(self, acceptance: float) -> None:
        self.count += 1
        rate = 1 / (self.count + 10)
        self.gap += rate * (self.target - acceptance - self.gap)
        self.now = self.center - self.gap * self.count**0.5 / 0.05
        weight = self.count**-0.75
        self.mean += weight * (self.now - self.mean)


@dataclass
class _Chain:
    """One chain, in scaled coordinates."""

    generator: np.random.Generator
    point: Point
    step: float = 1.0
    draws: list[np.ndarray] = field(default_factory=list)  # since the last window began
    log_p: list[float] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    def begin(self) -> Generator[np.ndarray, Answer, None]:
        self.step = yield from first_step(self.point, self.generator)

    def walk(
        self, count: int, max_depth: int, adapt: _DualAveraging | None, done: Callable[[], None]
    ) -> Generator[np.ndarray, Answer, None]:
        for _ in range(count):
            step = self.step if adapt is None else math.exp(adapt.now)
            self.point, told = yield from transition(self.point, step, self.generator, max_depth)
            self.draws.append(self.point.q)
            self.log_p.append(self.point.log_p)
            self.told.append(told)
            if adapt is not None:
                adapt.update(told.acceptance)
            done()


class Chains:
    """C chains from `starts` [C, d]; `scale` is what scaled coordinates are multiplied by: [d], or lower-triangular [d, d]."""

    def __init__(
        self, evaluate: Evaluate, starts: np.ndarray, seed: int, target: float, max_depth: int, mass: Mass
    ) -> None:
        self.evaluate, self.target, self.max_depth, self.mass = evaluate, target, max_depth, mass
        self.scale = np.ones(starts.shape[1])
        seeds = np.random.SeedSequence(seed).spawn(len(starts))
        nowhere = Point(np.zeros(0), 0.0, np.zeros(0))
        self.chains = [_Chain(np.random.default_rng(s), nowhere) for s in seeds]
        self._put(starts)

    @property
    def used(self) -> Mass:
        """The kind of metric that was learned."""
        return "diagonal" if self.scale.ndim == 1 else "dense"

    def _put(self, flat: np.ndarray) -> None:
        """Set every chain at its place [C, d]."""
        scaled = flat / self.scale if self.scale.ndim == 1 else np.linalg.solve(self.scale, flat.T).T
        log_p, gradient = self._at(scaled)
        for c, chain in enumerate(self.chains):
            chain.point = Point(scaled[c], float(log_p[c]), gradient[c])

    def _at(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p, gradient = self.evaluate(self._flat(scaled))
        return log_p, gradient * self.scale if self.scale.ndim == 1 else gradient @ self.scale

    def _flat(self, scaled: np.ndarray) -> np.ndarray:
        return scaled * self.scale if self.scale.ndim == 1 else scaled @ self.scale.T

    def _drive(self, walks: Sequence[Generator[np.ndarray, Answer, None]]) -> None:
        """Answer all walks until the last has ended."""
        places = np.stack([chain.point.q for chain in self.chains])
        going = []
        for c, walk in enumerate(walks):
            places[c] = next(walk)
            going.append((c, walk))
        while going:
            log_p, gradient = self._at(places)
            still = []
            for c, walk in going:
                try:
                    places[c] = walk.send((float(log_p[c]), gradient[c]))
                    still.append((c, walk))
                except StopIteration:
                    places[c] = self.chains[c].point.q
            going = still

    def warm_up(self, count: int, done: Callable[[], None]) -> None:
        """Find steps and metric in `count` transitions of each chain."""
        for length, window in windows(count):
            self._drive([chain.begin() for chain in self.chains])
            adapt = [_DualAveraging(math.log(chain.step), self.target) for chain in self.chains]
            self._walk(length, adapt, done)
            for chain, averaging in zip(self.chains, adapt, strict=True):
                chain.step = math.exp(averaging.mean)
            if window:
                self._shorten(length)
                flat = self._flat(np.stack([chain.draws for chain in self.chains]))
                self.scale = self._learned(flat)
                self._put(flat[:, -1])

    def _shorten(self, length: int) -> None:
        """Tune to shorter steps where trajectories of a window still diverge: halfway to accepting all."""
        share = np.mean([told.diverging for chain in self.chains for told in chain.told])
        if length >= LONG and share > DIVERGING:
            self.target = max(self.target, min(HIGHEST, 0.5 + 0.5 * self.target))

    def _walk(self, count: int, adapt: Sequence[_DualAveraging | None], done: Callable[[], None]) -> None:
        for chain in self.chains:
            chain.draws, chain.log_p, chain.told = [], [], []
        pairs = zip(self.chains, adapt, strict=True)
        self._drive([chain.walk(count, self.max_depth, averaging, done) for chain, averaging in pairs])

    def _learned(self, flat: np.ndarray) -> np.ndarray:
        """A root of the covariance within the chains' draws [C, S, d], drawn a little towards 0.001 (Stan's way)."""
        C, S, d = flat.shape
        away = (flat - flat.mean(1, keepdims=True)).reshape(C * S, d)
        count = C * (S - 1)
        share = count / (count + 5)
        root: np.ndarray = np.sqrt(share * (away**2).sum(0) / count + 1e-3 * (1 - share))
        if self.mass == "diagonal" or (self.mass == "auto" and not _tied(away)):
            return root
        covariance = share * (away.T @ away) / count + 1e-3 * (1 - share) * np.eye(d)
        return np.linalg.cholesky(covariance)

    def draw(self, count: int, done: Callable[[], None]) -> Drawn:
        """`count` draws of each chain, with steps and metric as they are."""
        self._walk(count, [None] * len(self.chains), done)

        def each(of: Callable[[Told], float]) -> np.ndarray:
            return np.array([[of(told) for told in chain.told] for chain in self.chains])

        return Drawn(
            flat=self._flat(np.stack([chain.draws for chain in self.chains])),
            log_p=np.array([chain.log_p for chain in self.chains]),
            diverging=each(lambda t: t.diverging).astype(bool),
            energy=each(lambda t: t.energy),
            tree_depth=each(lambda t: t.depth).astype(int),
            acceptance_rate=each(lambda t: t.acceptance),
            step_size=np.array([chain.step for chain in self.chains]),
        )


def _tied(away: np.ndarray) -> bool:
    """Whether the coordinates of centred draws [S, d] go together so much that steps along each alone are short.

    A trajectory takes about √(largest / smallest eigenvalue) steps, of the correlations where each has a scale of its own.
    """
    S, d = away.shape
    spread = np.sqrt((away**2).mean(0))
    if EACH * d > S or not np.isfinite(away).all() or not (spread > 0).all():
        return False
    scaled = away / spread
    values = np.linalg.eigvalsh(scaled.T @ scaled / S)
    return bool(0 < values[0] < values[-1] / TIED)


def windows(count: int) -> list[tuple[int, bool]]:
    """The stretches of a warm-up, and whether the metric is learned from each: 75, 25, 50, 100, … 50 as in Stan."""
    if count < 20:
        return [(count, False)] if count else []
    first, base, last = FIRST, BASE, LAST
    if first + base + last > count:
        first, last = int(0.15 * count), int(0.1 * count)
        base = count - first - last
    out, left = [(first, False)], count - first - last
    while left:
        length = left if left < 3 * base else base
        out.append((length, True))
        left -= length
        base *= 2
    return [*out, (last, False)]
