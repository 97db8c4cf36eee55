"""Whether numbers in [0, 1] are uniform: how far their distribution function strays, its exact p-value, and the power.

At each point z = i/n the number of values up to z is binomial. The deviation is the smallest probability of either tail over
all points; a band of the same level everywhere holds the whole function with a given probability (Säilynoja, Bürkner & Vehtari
2022). That probability is computed, not simulated: the counts at the points are those of a Poisson process that ends at n, so
the chance to stay within a band is a convolution from point to point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy import special, stats

POWER = 0.9  # the chance at which a deviation counts as one that would be found
ROUNDING = 1e-9
LEAST = 1e-12  # p-values below are rounding
Array = np.ndarray


def p_value(values: Array) -> float:
    """The chance that n uniform values stray as far as these anywhere."""
    n = len(values)
    z = _points(n)
    counts = np.searchsorted(np.sort(values), z, side="right")
    tail = np.minimum(special.bdtr(counts, n, z), stats.binom.sf(counts - 1, n, z)).min()
    return max(LEAST, 1 - _inside(*_limits(n, float(tail) * (1 + ROUNDING)), np.full(n, 1 / n)))


@functools.lru_cache(maxsize=32)
def band(n: int, level: float) -> tuple[Array, Array, Array]:
    """Points [n − 1], and the shares of values up to each between which all n lie with at least that probability."""
    low, high = -40.0, np.log(0.5)
    for _ in range(40):
        middle = (low + high) / 2
        enough = _inside(*_limits(n, float(np.exp(middle))), np.full(n, 1 / n)) >= level
        low, high = (middle, high) if enough else (low, middle)
    lower, upper = _limits(n, float(np.exp(low)))
    return _points(n), lower / n, upper / n


def power(n: int, level: float, distribution: Callable[[Array], Array]) -> float:
    """The chance that n values of that distribution function leave the band of `level`."""
    z, lower, upper = band(n, level)
    increments = np.diff(distribution(np.concatenate([[0.0], z, [1.0]])))
    return 1 - _inside(np.rint(lower * n).astype(int), np.rint(upper * n).astype(int), increments)


def narrowed(ratio: float) -> Callable[[Array], Array]:
    """The ranks' distribution function where a normal posterior's sd is `ratio` times the right one."""
    return lambda z: special.ndtr(ratio * special.ndtri(z))


def shifted(distance: float) -> Callable[[Array], Array]:
    """The same where its mean lies that many of its sds too low."""
    return lambda z: special.ndtr(special.ndtri(z) - distance)


@functools.lru_cache(maxsize=32)
def found(n: int, tests: int, level: float) -> tuple[float, float, float]:
    """What n values show with probability 0.9 in one of so many quantities, where posteriors are normal.

    The largest ratio of sds below 1, the smallest above 1, and the smallest shift in sds; 0 and ∞ where nothing would.
    """
    each = 1 - level / tests

    def least(family: Callable[[float], Callable[[Array], Array]]) -> float:
        """The smallest effect x > 0 of a family that is found."""
        low, high = 0.0, 4.0
        if power(n, each, family(high)) < POWER:
            return np.inf
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if power(n, each, family(middle)) >= POWER else (middle, high)
        return high

    narrow, wide = (least(lambda x, s=sign: narrowed(np.exp(s * x))) for sign in (-1, 1))  # type: ignore[misc]
    return float(np.exp(-narrow)), float(np.exp(wide)), least(shifted)


def holm(p: Array) -> Array:
    """p-values adjusted for their number [k] (Holm 1979), whatever their dependence."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = steps.clip(max=1.0)
    return out


def _points(n: int) -> Array:
    return np.arange(1, n) / n


def _limits(n: int, tail: float) -> tuple[Array, Array]:
    """The least and the largest count at each point of which both tails hold at least that probability."""
    z = _points(n)
    return stats.binom.ppf(tail, n, z).astype(int), n - stats.binom.ppf(tail, n, 1 - z).astype(int)


def _inside(lower: Array, upper: Array, increments: Array) -> float:
    """The chance that the counts of n values at n − 1 points stay within these limits; `increments` [n]: between the points."""
    n = len(increments)
    if (lower > upper).any():
        return 0.0
    chances, first = np.ones(1), 0
    factorials = special.gammaln(np.arange(n + 2) + 1.0)
    for low, high, mean in zip([*lower, n], [*upper, n], n * increments, strict=True):
        k = np.arange(high - first + 1)
        poisson = np.exp(special.xlogy(k, mean) - mean - factorials[k])
        chances, first = np.convolve(chances, poisson)[low - first : high - first + 1], low
    return float(min(1.0, chances[0] / stats.poisson.pmf(n, n)))
