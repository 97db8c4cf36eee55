"""One case a family: a program of `user_programs`, data, parameters, and SciPy's word for the density of each component."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import user_programs as user
from scipy import special, stats

K, D = user.K, user.D
Theta = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    program: Callable[..., Any]
    theta: Callable[[np.random.Generator], Theta]  # without the weights
    data: Callable[[np.random.Generator, int], np.ndarray]  # n ↦ [n, D]
    log_density: Callable[[Theta, int, np.ndarray], np.ndarray]  # θ, k, one row without gaps, see `columns` ↦ nats
    closed: frozenset[str] = frozenset()  # the parameters, besides the weights, with a closed-form update

    def draw_theta(self, seed: int) -> Theta:
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.full(K, 3.0))
        named = {"weight_logits": np.log(weights)} if self.program is user.categorical_logits else {"weights": weights}
        return {**named, **self.theta(rng)}

    def log_joint(self, theta: Theta, x: np.ndarray) -> np.ndarray:
        """log p(x_i, z = k) [n, K] over the entries that are not NaN, row by row."""
        weights = special.softmax(theta["weight_logits"]) if "weight_logits" in theta else theta["weights"]
        out = np.empty((len(x), K))
        for i, row in enumerate(x):
            seen = np.flatnonzero(~np.isnan(row))
            for k in range(K):
                out[i, k] = np.log(weights[k]) + (np.sum(self.log_density(theta, k, row, seen)) if len(seen) else 0.0)
        return out

    def log_evidence(self, theta: Theta, x: np.ndarray) -> np.ndarray:
        return special.logsumexp(self.log_joint(theta, x), axis=1)


def _positive(*names: str, low: float = 0.4, high: float = 3.0):
    return lambda rng: {n: rng.uniform(low, high, (K, D)) for n in names}


def _spd(rng: np.random.Generator) -> np.ndarray:
    a = rng.normal(size=(D, D + 2))
    return a @ a.T / D + 0.3 * np.eye(D)


def _gaussian(rng: np.random.Generator, n: int) -> np.ndarray:
    return 1.0 + rng.normal(size=(n, D)) @ rng.normal(size=(D, D))


def _counts(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.poisson(rng.choice([1.0, 6.0], (n, 1)), (n, D)).astype(float)


def _bursts(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.poisson(rng.gamma(1.0, rng.choice([1.0, 6.0], (n, 1)), (n, D))).astype(float)


def _bits(rng: np.random.Generator, n: int) -> np.ndarray:
    return (rng.random((n, D)) < rng.choice([0.2, 0.8], (n, 1))).astype(float)


def _waits(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.gamma(2.0, rng.choice([0.5, 3.0], (n, 1)), (n, D))


def _classes(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.minimum(rng.integers(0, 4, (n, D)), rng.integers(1, 5, (n, 1))).astype(float)


def _angles(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.vonmises(rng.choice([-1.5, 1.0], (n, 1)), 3.0, (n, D))


def _mvn(covariance: Callable[[Theta, int], np.ndarray], loc: Callable[[Theta, int], np.ndarray]):
    def log_density(theta: Theta, k: int, row: np.ndarray, seen: np.ndarray) -> np.ndarray:
        block = covariance(theta, k)[np.ix_(seen, seen)]
        return stats.multivariate_normal(loc(theta, k)[seen], block).logpdf(row[seen])

    return log_density


def _each(log_density: Callable[..., Any]):
    """Entries that are independent given the component: `log_density(θ of component k and these columns)(values)`."""
    return lambda theta, k, row, seen: log_density(theta, k, row[seen], seen)


def _locs(theta: Theta, k: int) -> np.ndarray:
    return theta["locs"][k]


def _trils(rng: np.random.Generator) -> np.ndarray:
    return np.stack([np.linalg.cholesky(_spd(rng)) for _ in range(K)])


CASES: dict[str, Case] = {
    "poisson": Case(
        user.poisson,
        _positive("rates", high=8.0),
        _counts,
        _each(lambda t, k, v, c: stats.poisson.logpmf(v, t["rates"][k, c])),
        frozenset({"rates"}),
    ),
    "bernoulli": Case(
        user.bernoulli,
        lambda rng: {"probs": rng.uniform(0.05, 0.95, (K, D))},
        _bits,
        _each(lambda t, k, v, c: stats.bernoulli.logpmf(v, t["probs"][k, c])),
        frozenset({"probs"}),
    ),
    "bernoulli_logits": Case(
        user.bernoulli_logits,
        lambda rng: {"logits": rng.normal(size=(K, D))},
        _bits,
        _each(lambda t, k, v, c: stats.bernoulli.logpmf(v, special.expit(t["logits"][k, c]))),
        frozenset({"logits"}),
    ),
    "exponential": Case(
        user.exponential,
        _positive("rates"),
        _waits,
        _each(lambda t, k, v, c: stats.expon.logpdf(v, scale=1 / t["rates"][k, c])),
        frozenset({"rates"}),
    ),
    "categorical": Case(
        user.categorical,
        lambda rng: {"probs": rng.dirichlet(np.full(4, 2.0), (K, D))},
        _classes,
        _each(lambda t, k, v, c: np.log(t["probs"][k, c, v.astype(int)])),
        frozenset({"probs"}),
    ),
    "categorical_logits": Case(
        user.categorical_logits,
        lambda rng: {"logits": rng.normal(size=(K, D, 4))},
        _classes,
        _each(lambda t, k, v, c: special.log_softmax(t["logits"][k, c], axis=-1)[np.arange(len(c)), v.astype(int)]),
        frozenset({"logits", "weight_logits"}),
    ),
    "normal": Case(
        user.normal,
        lambda rng: {"locs": rng.normal(size=(K, D)), "scales": rng.uniform(0.5, 2, (K, D))},
        _gaussian,
        _each(lambda t, k, v, c: stats.norm.logpdf(v, t["locs"][k, c], t["scales"][k, c])),
        frozenset({"locs", "scales"}),
    ),
    "normal_one_scale": Case(
        user.normal_one_scale,
        lambda rng: {"locs": rng.normal(size=(K, D)), "scale": rng.uniform(0.5, 2)},
        _gaussian,
        _each(lambda t, k, v, c: stats.norm.logpdf(v, t["locs"][k, c], t["scale"])),
        frozenset({"locs", "scale"}),
    ),
    "normal_one_loc": Case(
        user.normal_one_loc,
        lambda rng: {"loc": rng.normal(size=D), "scales": rng.uniform(0.5, 2, (K, D))},
        _gaussian,
        _each(lambda t, k, v, c: stats.norm.logpdf(v, t["loc"][c], t["scales"][k, c])),
        frozenset({"loc", "scales"}),
    ),
    "mvn_tril": Case(
        user.mvn_tril,
        lambda rng: {"locs": rng.normal(size=(K, D)), "trils": _trils(rng)},
        _gaussian,
        _mvn(lambda t, k: t["trils"][k] @ t["trils"][k].T, _locs),
        frozenset({"locs", "trils"}),
    ),
    "mvn_covariance": Case(
        user.mvn_covariance,
        lambda rng: {"locs": rng.normal(size=(K, D)), "covariances": np.stack([_spd(rng) for _ in range(K)])},
        _gaussian,
        _mvn(lambda t, k: t["covariances"][k], _locs),
        frozenset({"locs", "covariances"}),
    ),
    "mvn_precision": Case(
        user.mvn_precision,
        lambda rng: {"locs": rng.normal(size=(K, D)), "precisions": np.stack([_spd(rng) for _ in range(K)])},
        _gaussian,
        _mvn(lambda t, k: np.linalg.inv(t["precisions"][k]), _locs),
        frozenset({"locs", "precisions"}),
    ),
    "mvn_tied": Case(
        user.mvn_tied,
        lambda rng: {"locs": rng.normal(size=(K, D)), "tril": np.linalg.cholesky(_spd(rng))},
        _gaussian,
        _mvn(lambda t, k: t["tril"] @ t["tril"].T, _locs),
        frozenset({"locs", "tril"}),
    ),
    "mvn_one_loc": Case(
        user.mvn_one_loc,
        lambda rng: {"loc": rng.normal(size=D), "trils": _trils(rng)},
        _gaussian,
        _mvn(lambda t, k: t["trils"][k] @ t["trils"][k].T, lambda t, k: t["loc"]),
        frozenset({"loc", "trils"}),
    ),
    "student": Case(
        user.student,
        lambda rng: {"locs": rng.normal(size=(K, D)), "scales": rng.uniform(0.5, 2, (K, D))},
        _gaussian,
        _each(lambda t, k, v, c: stats.t.logpdf(v, 4.0, t["locs"][k, c], t["scales"][k, c])),
    ),
    "gamma": Case(
        user.gamma,
        _positive("shapes", "rates"),
        _waits,
        _each(lambda t, k, v, c: stats.gamma.logpdf(v, t["shapes"][k, c], scale=1 / t["rates"][k, c])),
    ),
    "negative_binomial": Case(
        user.negative_binomial,
        lambda rng: {"counts": rng.uniform(0.5, 5, (K, D)), "probs": rng.uniform(0.1, 0.9, (K, D))},
        _bursts,
        _each(lambda t, k, v, c: stats.nbinom.logpmf(v, t["counts"][k, c], 1 - t["probs"][k, c])),
    ),
    "von_mises": Case(
        user.von_mises,
        lambda rng: {"locs": rng.uniform(-3, 3, (K, D)), "concentrations": rng.uniform(0.5, 4, (K, D))},
        _angles,
        _each(lambda t, k, v, c: stats.vonmises.logpdf(v, t["concentrations"][k, c], t["locs"][k, c])),
    ),
}
CLOSED = [n for n, c in CASES.items() if c.closed]
