"""Posterior moments by importance sampling with NumPy alone: densities written again, draws of a Student t at the mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

from benchmarks._references import programs
from benchmarks._references.moments import Moments, numbered

Density = Callable[[np.ndarray], np.ndarray]  # u [B, d] ↦ log-densities [B]
DEGREES = 10.0  # of freedom, of the proposal
FEWEST = 2000.0  # effective draws


def known(name: str, draws: int = 40_000) -> Moments | None:
    """Of the programs that are written here; None for the others, or where the weights are worth too little."""
    if name not in FOUND:
        return None
    density, values, d = FOUND[name]()
    u, weight = _weighed(density, d, draws)
    if 1 / (weight**2).sum() < FEWEST:
        return None
    names, numbers = numbered({n: v[None] for n, v in values(u).items()})
    return _moments(names, numbers[:, 0], weight)


def _weighed(density: Density, d: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    found = optimize.minimize(lambda u: -density(u[None])[0], np.zeros(d), method="BFGS", options={"gtol": 1e-4})
    step, eye = 1e-3, np.eye(d)
    pairs = [
        found.x + step * (a * eye[i] + b * eye[j]) for i in range(d) for j in range(d) for a in (1, -1) for b in (1, -1)
    ]
    value = -density(np.stack(pairs)).reshape(d, d, 4)
    hessian = (value[..., 0] - value[..., 1] - value[..., 2] + value[..., 3]) / (4 * step**2)
    proposal = stats.multivariate_t(found.x, np.linalg.inv((hessian + hessian.T) / 2), DEGREES, seed=0)
    u = proposal.rvs(draws)
    log_w = np.concatenate([density(part) for part in np.array_split(u, 40)]) - proposal.logpdf(u)
    return u, special.softmax(log_w)


def _moments(names: list[str], values: np.ndarray, weight: np.ndarray) -> Moments:
    """Of values [m, S] with normalised weights, errors by the delta method."""

    def mean_of(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = v @ weight
        return mean, (((v - mean[:, None]) ** 2) @ weight**2) ** 0.5

    mean, of_mean = mean_of(values)
    square, of_square = mean_of(values**2)
    variance, of_variance = mean_of((values - mean[:, None]) ** 2)
    sd = variance**0.5
    return Moments(names, mean, of_mean, square, of_square, sd, of_variance / (2 * sd))


def _hmm() -> tuple[Density, Callable[[np.ndarray], dict[str, np.ndarray]], int]:
    """Coordinates: the logits of `stay`, `low`, and the logarithms of `gap` and `sd`."""
    x = programs.DATA["hmm"]()

    def values(u: np.ndarray) -> dict[str, np.ndarray]:
        return {"stay": special.expit(u[:, :2]), "low": u[:, 2], "gap": np.exp(u[:, 3]), "sd": np.exp(u[:, 4])}

    def density(u: np.ndarray) -> np.ndarray:
        v = values(u)
        stay = v["stay"]
        prior = (stats.beta(4, 2).logpdf(stay) + np.log(stay * (1 - stay))).sum(1) + stats.norm.logpdf(u[:, 2], -1, 1)
        prior = prior + stats.norm.logpdf(u[:, 3], 0.5, 0.5) + stats.norm.logpdf(u[:, 4], 0, 0.5)
        table = np.stack([stay[:, 0], 1 - stay[:, 0], 1 - stay[:, 1], stay[:, 1]], 1).reshape(-1, 1, 2, 2)
        mean = np.stack([v["low"], v["low"] + v["gap"]], 1)[:, None]
        chance, total = np.full((len(u), len(x), 2), 0.5), prior
        for t in range(x.shape[1]):
            chance = chance if t == 0 else (chance[..., None] * table).sum(2)
            chance = chance * stats.norm.pdf(x[None, :, t, None], mean, v["sd"][:, None, None])
            whole = chance.sum(2, keepdims=True)
            total, chance = total + np.log(whole[..., 0]).sum(1), chance / whole
        return total

    return density, values, 5


def _rasch() -> tuple[Density, Callable[[np.ndarray], dict[str, np.ndarray]], int]:
    """Coordinates: log spread and the difficulties; abilities by quadrature, by persons' scores alone."""
    x = programs.DATA["rasch"]()
    score, of_item = x.sum(1), x.sum(0)
    nodes, weight = np.polynomial.hermite_e.hermegauss(40)
    log_weight = np.log(weight / weight.sum())

    def values(u: np.ndarray) -> dict[str, np.ndarray]:
        return {"spread": np.exp(u[:, 0]), "difficulty": u[:, 1:]}

    def density(u: np.ndarray) -> np.ndarray:
        spread, difficulty = np.exp(u[:, 0]), u[:, 1:]
        prior = stats.halfnorm.logpdf(spread, 0, 2) + u[:, 0] + stats.norm.logpdf(difficulty, 0, 2).sum(1)
        at = spread[:, None] * nodes
        none = -np.logaddexp(0, at[..., None] - difficulty[:, None]).sum(2) + log_weight
        kinds, counts = np.unique(score, return_counts=True)
        each = special.logsumexp(none[:, None] + kinds[:, None] * at[:, None], axis=2)
        return prior - difficulty @ of_item + each @ counts

    return density, values, 21


FOUND: dict[str, Callable[[], tuple[Density, Callable[[np.ndarray], dict[str, np.ndarray]], int]]] = {
    "hmm": _hmm,
    "rasch": _rasch,
}
