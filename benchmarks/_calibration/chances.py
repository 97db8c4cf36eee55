"""Whether the probabilities given to models are right: a model given 0.8 has to be the true one 8 times in 10.

Where they are, the true model of each simulation is a draw from its probabilities, and nothing else is random. So every test is
exact: the statistic of the true models against that of models drawn from the probabilities themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

REPLICATES = 9_999
BINS = 10
POWER = 0.9
Array = np.ndarray


@dataclass(frozen=True)
class Test:
    """One test: what it looks at, its p-value, and how far the statistic is from what is expected, in standard deviations."""

    name: str
    p: float
    away: float


@dataclass(frozen=True)
class Curve:
    """Of the models given about the same probability: their mean, how often they were true, and between which shares 95% lie
    where all is right."""

    given: Array
    true: Array
    lower: Array
    upper: Array
    count: Array


def probabilities(log_evidence: Array) -> Array:
    """[n, K] of models that are equally probable beforehand."""
    return special.softmax(log_evidence, axis=1)


def tests(chances: Array, true: Array, names: list[str], seed: int) -> list[Test]:
    """Of probabilities [n, K] and the true models [n]: the log score, each model's share, and all bins of the curve."""
    drawn = _drawn(chances, seed)
    with np.errstate(divide="ignore"):
        scores = np.log(np.maximum(chances, 1e-300))
    rows = np.arange(len(true))
    out = [_two_sided("the truth's log probability", scores[rows, true].sum(), scores[rows, drawn].sum(1))]
    for k, name in enumerate(names[: len(names) if len(names) > 2 else 1]):  # of two models one share tells the other
        out.append(_two_sided(f"the share of {name}", float((true == k).sum()), (drawn == k).sum(1).astype(float)))
    where = _bins(chances)
    distance, replicates = (_distance(chances, where, d) for d in (true[None], drawn))
    p = float((replicates >= distance * (1 - 1e-12)).sum() + 1) / (len(drawn) + 1)
    away = float((distance[0] - replicates.mean()) / (replicates.std() or 1.0))
    return [*out, Test("the reliability curve", p, away)]


def curve(chances: Array, true: Array, seed: int = 0) -> Curve:
    """The reliability curve, over all models at once."""
    where = _bins(chances)
    count = np.bincount(where.ravel(), minlength=BINS)
    used = count > 0
    given = np.bincount(where.ravel(), chances.ravel(), BINS)[used] / count[used]
    seen, replicates = (_hits(where, d)[:, used] / count[used] for d in (true[None], _drawn(chances, seed)))
    lower, upper = np.quantile(replicates, [0.025, 0.975], axis=0)
    return Curve(given, seen[0], lower, upper, count[used])


def smallest_shift(chances: Array, level: float) -> float:
    """The error in nats, the same on all data, in one model's log evidence that a test of that level finds 9 times in 10.

    Of the model where it is found last; ∞ where none below 20 is.
    """
    threshold = stats.norm.isf(level / 2)
    sure = stats.norm.isf(1 - POWER)

    def found(k: int, nats: float) -> bool:
        log_p = np.log(np.maximum(chances, 1e-300))
        log_p[:, k] += nats
        right = special.softmax(log_p, axis=1)[:, k]
        away = abs((right - chances[:, k]).sum())
        claimed, real = (np.sqrt((q * (1 - q)).sum()) for q in (chances[:, k], right))
        return bool(away > threshold * claimed + sure * real and away > 0.5)

    grid = np.geomspace(0.01, 20, 150)
    worst = [next((d for d in grid if found(k, d) and found(k, -d)), np.inf) for k in range(chances.shape[1])]
    return float(max(worst))


def _drawn(chances: Array, seed: int) -> Array:
    """True models [replicates, n] as the probabilities have them."""
    uniform = np.random.default_rng(seed).uniform(size=(REPLICATES, len(chances)))
    below = chances.cumsum(1)[:, :-1]
    return (uniform[:, :, None] > below).sum(2)


def _two_sided(name: str, value: float, replicates: Array) -> Test:
    """An exact two-sided test by replicates."""
    least = min((replicates <= value + 1e-9).sum(), (replicates >= value - 1e-9).sum())
    spread = replicates.std() or 1.0
    return Test(
        name, min(1.0, 2 * float(least + 1) / (len(replicates) + 1)), float((value - replicates.mean()) / spread)
    )


def _bins(chances: Array) -> Array:
    """The bin of each probability [n, K]."""
    return np.minimum((chances * BINS).astype(int), BINS - 1)


def _hits(where: Array, models: Array) -> Array:
    """How often the true models [replicates, n] have a probability in each bin [replicates, bins]."""
    found = where[np.arange(len(where)), models]
    return np.stack([(found == b).sum(1) for b in range(BINS)], 1)


def _distance(chances: Array, where: Array, models: Array) -> Array:
    """Σ over bins of (how many were true − how many should have been)² / variance, [replicates]."""
    right, variance = (np.bincount(where.ravel(), w.ravel(), BINS) for w in (chances, chances * (1 - chances)))
    distance: Array = (np.square(_hits(where, models) - right) / np.maximum(variance, 1e-3)).sum(1)
    return distance
