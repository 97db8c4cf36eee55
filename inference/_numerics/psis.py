"""What importance weights and chains say of themselves: PSIS k-hat, effective sample size, R-hat.

ArviZ computes them. Importing it takes two seconds, so the functions that need it import it.

References: Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling", JMLR 25(72);
Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization, folding, and localization: an improved
R-hat", Bayesian Analysis 16(2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 4_000_000  # numbers worked on at once, 32 MB an array: bounds the memory
ROUNDING = 32  # units in the last place within which log weights count as equal
RELATIVE_SE = 0.1  # the Monte Carlo error of the mean weight that counts as reliable
SAME = 3  # decimals of a nat to which log-densities count as equal


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSIS k-hat [n] and effective sample size [n] of importance log weights [draws, n], nats, unnormalised.

    k-hat is the shape of the generalised Pareto distribution fitted to the largest weights of each row
    (Vehtari et al. 2024); above 0.7 the importance sampling estimate of that row is not to be trusted.
    ESS = (Σw)² / Σw² of the raw weights. Neither can see a region that the proposal never visited.
    Where a Pareto tail has no meaning:

    - fewer than 25 draws (a tail of under five): k-hat = inf, since it cannot be checked;
    - every weight zero, or one that is NaN or infinite: k-hat = inf, ESS = 0;
    - the largest weight is shared by more draws than the tail is long, as when all weights are equal (the
      proposal is exact, to rounding): the ratios are seen to be bounded there, k-hat = 0;
    - a tail of a few distinct values (discrete latents): such ratios have all their moments, and what is left
      of the error is in ESS; see `_khat_of_ess`.
    """
    log_weights = np.asarray(log_weights)
    if log_weights.ndim != 2:
        raise ValueError(f"log_weights has shape {log_weights.shape}; it must be [draws, n]")
    draws, n = log_weights.shape
    khat, ess = np.full(n, np.inf), np.zeros(n)
    for rows in blocks(draws, n):
        block = np.ascontiguousarray(log_weights[:, rows].T, dtype=np.float64)
        khat[rows], ess[rows] = _psis_block(block, resolution_of(log_weights.dtype))
    return khat, ess


def _psis_block(log_weights: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """k-hat and ESS, each [rows], of log weights [rows, draws]."""
    rows, draws = log_weights.shape
    khat, ess = np.full(rows, np.inf), np.zeros(rows)
    with np.errstate(all="ignore"):  # weights that underflow to zero are meant to
        proper = np.isfinite(log_weights.max(axis=1))  # not so with a NaN, a +inf, or all -inf
        log_weights = log_weights[proper]
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        ess[proper] = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
        if tail_length(draws) >= 5:
            equal = _equal_to_rounding(log_weights, resolution)
            khat[proper] = np.where(equal, 0.0, _khat(log_weights, weights, ess[proper]))
    return khat, ess


def _khat(log_weights: np.ndarray, weights: np.ndarray, ess: np.ndarray) -> np.ndarray:
    """k-hat [rows] of weights [rows, draws] with a maximum of 1, by the kind of tail that each row has."""
    tail = _tail(weights)
    above = (tail > tail[:, :1]).sum(axis=1)  # draws strictly above the cutoff
    distinct = (np.diff(tail, axis=1) > 0).sum(axis=1)  # values strictly above the cutoff
    continuous = (above >= 5) & (2 * distinct > above)
    direct = continuous & _fittable(tail)
    khat = _khat_of_ess(ess, weights.shape[1])
    khat[direct] = _khat_of_tail(log_weights[direct])
    for row in np.flatnonzero(continuous & ~direct):  # a continuous tail, but on top of ties
        khat[row] = max(khat[row], _khat_of_tail(_shorten(log_weights[row], int(above[row])))[0])
    khat[above == 0] = 0.0
    return np.where(np.isnan(khat), np.inf, khat)


def smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Shares [S] of weights whose tail is Pareto-smoothed, where it can be; zero for those that have none."""
    from arviz_stats.base import array_stats

    log_weights = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_weights).any() or not np.isfinite(log_weights.max()):
        return np.full(len(log_weights), 1 / len(log_weights))
    shares = np.exp(log_weights - log_weights.max())
    if _fittable(_tail(shares[None]))[0] and tail_length(len(shares)) >= 5:
        some = np.isfinite(log_weights)
        with np.errstate(all="ignore"):
            shares[some] = np.exp(array_stats.psislw(-log_weights[some][None], axis=-1)[0][0])
    total: np.ndarray = shares / shares.sum()
    return total


def _khat_of_tail(log_weights: np.ndarray) -> np.ndarray:
    """ArviZ's k-hat [rows] of log weights [rows, draws].

    By `psislw`, which takes log likelihoods: ratios with the sign turned. (`pareto_khat(log_weights=True)` of
    arviz-stats 0.8 fits the tail of the log weights themselves, which is another number.)
    """
    if not len(log_weights):
        return np.empty(0)
    from arviz_stats.base import array_stats

    khat: np.ndarray = array_stats.psislw(-log_weights, axis=-1)[1]
    return khat


def _khat_of_ess(ess: np.ndarray, draws: int) -> np.ndarray:
    """A k-hat [rows] for weights that take finitely many values, from their effective sample size [rows].

    The mean of S such weights has a relative variance of (draws/ESS − 1) / S, so a relative standard error of
    10 % takes S = 100 (draws/ESS − 1). A tail of shape k takes S = 10^(1/(1 − max(0, k))) (Vehtari et al.
    2024). This is the k that takes as many: 0 for weights that are nearly equal, above 0.7 where ESS is below
    about 4 % of the draws.
    """
    needed = (draws / ess - 1) / RELATIVE_SE**2
    return 1 - 1 / np.log10(np.maximum(10.0, needed))


def _shorten(log_weights: np.ndarray, above: int) -> np.ndarray:
    """Of log weights [draws], a row [1, fewer] whose tail is just the `above` draws over the tied cutoff.

    k-hat is a function of the exceedances over the cutoff alone. Where the cutoff is tied they are not a
    whole tail, so they are given to ArviZ with as many draws at the cutoff as make them one.
    """
    draws = 5 * above if above <= 45 else -(-(above**2) // 9)
    index = np.maximum(np.arange(draws) - draws + above + 1, 0)
    return np.sort(log_weights)[-above - 1 :][None, index]


def _tail(weights: np.ndarray) -> np.ndarray:
    """The cutoff and then the tail, ascending, [rows, 1 + tail], of weights [rows, draws]."""
    first = weights.shape[1] - tail_length(weights.shape[1]) - 1
    return np.sort(np.partition(weights, first, axis=1)[:, first:], axis=1)


def tail_length(draws: int) -> int:
    """How many of the largest weights make the tail (Vehtari et al. 2024, with independent draws)."""
    return int(3 * draws**0.5) if draws > 225 else draws // 5


def _fittable(tail: np.ndarray) -> np.ndarray:
    """[rows] whether ArviZ can fit a tail [rows, 1 + tail]: some spread, no quarter of it at the cutoff."""
    quartile = int((tail.shape[1] - 1) / 4 + 0.5)
    return (tail[:, quartile] > tail[:, 0]) & (tail[:, -1] > tail[:, 1])


def _equal_to_rounding(values: np.ndarray, resolution: float) -> np.ndarray:
    """[rows] whether the values of a row [rows, draws] are finite and differ by rounding at most."""
    low, high = values.min(axis=1), values.max(axis=1)
    return np.isfinite(low) & (high - low <= resolution * np.maximum(1.0, np.abs(high)))


def resolution_of(dtype: np.dtype) -> float:
    """The relative difference within which numbers of this dtype count as equal."""
    return ROUNDING * float(np.finfo(dtype if np.issubdtype(dtype, np.floating) else np.float64).eps)


def blocks(draws: int, n: int) -> Iterator[slice]:
    """Slices of the n data of an array [draws, n], of at most `BLOCK` numbers each; none without draws."""
    step = max(1, BLOCK // max(1, draws))
    yield from (slice(start, min(start + step, n)) for start in range(0, n if draws else 0, step))


def too_alike(log_ratios: np.ndarray, resolution: float) -> np.ndarray:
    """[rows] whether log ratios [rows, draws] are all finite, and too much alike for ArviZ to fit a tail."""
    finite = np.isfinite(log_ratios).all(axis=1)
    log_ratios = np.where(finite[:, None], log_ratios, 0.0)
    with np.errstate(under="ignore"):
        ratios = np.exp(log_ratios - log_ratios.max(axis=1, keepdims=True))
    return finite & (_equal_to_rounding(log_ratios, resolution) | ~_fittable(_tail(ratios)))


# ---- chains ----------------------------------------------------------------------------------------------


def mixing(log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank-normalised split R-hat [n] and bulk ESS [n] of log-densities along chains [chains, draws, n], nats.

    Chains that all stand at one value agree: R-hat = 1, and every draw counts. Where a value is not finite, or
    each chain stands at a value of its own: R-hat = inf. Values are rounded first: where a state has many chains
    in it, ranks would tell its chains apart by their rounding errors.
    """
    chains, draws, n = log_density.shape
    rhat, ess = np.full(n, np.inf), np.zeros(n)
    values = np.moveaxis(np.round(log_density.astype(np.float64), SAME), -1, 0)
    finite = np.isfinite(values).all(axis=(1, 2))
    still = finite & (values == values[:, :1, :1]).all(axis=(1, 2))
    rhat[still], ess[still] = 1.0, chains * draws
    moving = finite & (values != values[:, :, :1]).any(axis=(1, 2))
    if moving.any():
        from arviz_stats.base import array_stats

        with np.errstate(all="ignore"):  # halves of chains may stand still
            rhat[moving] = np.nan_to_num(array_stats.rhat(values[moving]), nan=np.inf, posinf=np.inf)
            ess[moving] = np.nan_to_num(array_stats.ess(values[moving]), nan=0.0)
    return rhat, ess


def agreement(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank-normalised split R-hat, bulk and tail ESS, each [m], of m numbers along chains [m, chains, draws]."""
    from arviz_stats.base import array_stats

    with np.errstate(all="ignore"):
        rhat = np.nan_to_num(array_stats.rhat(values), nan=np.inf, posinf=np.inf)
        bulk = np.nan_to_num(array_stats.ess(values, method="bulk"), nan=0.0)
        tail = np.nan_to_num(array_stats.ess(values, method="tail", prob=(0.05, 0.95)), nan=0.0)
    return rhat, bulk, tail


def mean_ess(values: np.ndarray, of_constants: float) -> np.ndarray:
    """How many independent draws the means of m numbers along chains [m, chains, draws] are worth [m]; `of_constants` of what
    does not vary."""
    from arviz_stats.base import array_stats

    with np.errstate(all="ignore"):
        return np.nan_to_num(array_stats.ess(values, method="mean"), nan=of_constants)
