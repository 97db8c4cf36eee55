"""Posterior moments and log p(x) by closed form or quadrature to many digits, without any code of the methods.

What is normal given one or two numbers is integrated in closed form, and those numbers by Gauss–Legendre quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from benchmarks._references import programs

Pair = tuple[np.ndarray, np.ndarray]  # E[v], E[v²]


@dataclass(frozen=True)
class Exact:
    """log p(x) in nats, and of each site E[v] and E[v²]."""

    log_evidence: float
    moments: dict[str, Pair]
    how: str


def known(name: str) -> Exact | None:
    """Of the programs that have it; None for the others."""
    return FOUND[name]() if name in FOUND else None


def _averaged(log_weight: np.ndarray, moments: dict[str, Pair], how: str) -> Exact:
    """Moments [K, …] given each of K nodes, averaged over the nodes."""
    total = float(special.logsumexp(log_weight))
    share = np.exp(log_weight - total)
    return Exact(
        total, {n: (np.tensordot(share, a, 1), np.tensordot(share, b, 1)) for n, (a, b) in moments.items()}, how
    )


def _legendre(nodes: int, low: float, high: float) -> Pair:
    at, weight = np.polynomial.legendre.leggauss(nodes)
    return (high - low) / 2 * at + (high + low) / 2, (high - low) / 2 * weight


def _schools(effect: str) -> Callable[[], Exact]:
    """Normal given tau = 5 tan(πu/2), u uniform; `effect`: which of eta and theta is asked for."""

    def found() -> Exact:
        y, error = programs.DATA["eight_schools"]().T
        u, weight = _legendre(400, 0.0, 1.0)
        log_p, rows = np.empty(len(u)), []
        for k, tau in enumerate(5 * np.tan(np.pi * u / 2)):
            to_y = np.column_stack([np.ones(8), tau * np.eye(8)])  # of (mu, eta)
            prior = np.diag([25.0, *np.ones(8)])
            of_y = to_y @ prior @ to_y.T + np.diag(error**2)
            log_p[k] = stats.multivariate_normal(np.zeros(8), of_y).logpdf(y)
            gain = np.linalg.solve(of_y, to_y @ prior).T
            mean, covariance = gain @ y, prior - gain @ to_y @ prior
            shown = np.eye(9) if effect == "eta" else np.vstack([np.eye(9)[:1], to_y])
            mean, variance = shown @ mean, np.diag(shown @ covariance @ shown.T)
            rows.append((tau, mean, mean**2 + variance))
        tau, mean, square = (np.array(v) for v in zip(*rows, strict=True))
        moments = {"mu": (mean[:, 0], square[:, 0]), "tau": (tau, tau**2), effect: (mean[:, 1:], square[:, 1:])}
        return _averaged(log_p + np.log(weight), moments, "quadrature over tau, all else in closed form")

    return found


def _intercepts(location: float, scale: float) -> Callable[[], Exact]:
    """Quadrature over mu, tau, and of each group's intercept b over its prior."""

    def found() -> Exact:
        x = programs.DATA["logistic_intercepts"]().sum(1).astype(int)
        b, of_b = np.polynomial.hermite_e.hermegauss(100)
        mu, of_mu = _legendre(100, -3.0, 4.0)
        tau, of_tau = _legendre(140, 0.0, 7.0)
        at_mu, at_tau = (v.ravel() for v in np.meshgrid(mu, tau, indexing="ij"))
        log_w = np.add.outer(np.log(of_mu), np.log(of_tau)).ravel()
        log_w = log_w + stats.norm.logpdf(at_mu, 0, location) + stats.halfnorm.logpdf(at_tau, 0, scale)
        logits = at_mu[:, None] + at_tau[:, None] * b
        first, second = np.empty((len(log_w), 60)), np.empty((len(log_w), 60))
        for k in range(6):
            each = k * special.log_expit(logits) + (5 - k) * special.log_expit(-logits) + np.log(of_b / of_b.sum())
            whole = special.logsumexp(each, axis=1)
            share = np.exp(each - whole[:, None])
            first[:, x == k], second[:, x == k] = (share @ b)[:, None], (share @ b**2)[:, None]
            log_w = log_w + (x == k).sum() * whole
        moments = {"mu": (at_mu, at_mu**2), "tau": (at_tau, at_tau**2), "b": (first, second)}
        return _averaged(log_w, moments, "quadrature over mu, tau and each intercept")

    return found


def _rats() -> Exact:
    """Days are centred, so a rat's own intercept and slope by least squares are independent given the noise.

    Either is N(line, noise²/S), and normal around the rats' mean. Quadrature over the noise, and given it over each spread.
    """
    x = programs.DATA["rats"]()
    days = np.arange(-14.0, 15.0, 7.0)
    fits = np.stack([x.mean(1), x @ days / (days @ days)])
    left = float(((x - fits[0][:, None] - fits[1][:, None] * days) ** 2).sum())
    noise, weight = _legendre(120, 3.0, 12.0)
    n, size = len(x), np.array([5.0, days @ days])
    log_w = np.log(weight) + stats.halfnorm.logpdf(noise, 0, 20)
    log_w = log_w - left / (2 * noise**2) - 3 * n / 2 * np.log(2 * np.pi * noise**2) - n / 2 * np.log(size.prod())
    sites: dict[str, list[Pair]] = {"mean": [], "spread": [], "line": []}
    for k, (prior_mean, prior_sd, top) in enumerate(((250.0, 50.0, 50.0), (6.0, 3.0, 3.0))):
        part, moments = _given_noise(fits[k], noise**2 / size[k], prior_mean, prior_sd, top)
        log_w = log_w + part
        for site, pair in moments.items():
            sites[site].append(pair)
    joined = {n: (np.stack([p[0] for p in v], -1), np.stack([p[1] for p in v], -1)) for n, v in sites.items()}
    joined["noise"] = (noise, noise**2)
    return _averaged(log_w, joined, "quadrature over the noise and the spreads, all else in closed form")


def _given_noise(
    fit: np.ndarray, variance: np.ndarray, prior_mean: float, prior_sd: float, top: float
) -> tuple[np.ndarray, dict[str, Pair]]:
    """Of one coefficient, given each noise: log p(fits), and the moments of mean, spread and each rat's own [noises, …]."""
    spread, weight = _legendre(200, 0.0, top)
    n = len(fit)
    between = (spread**2 + variance[:, None])[..., None]  # of a fit around the mean [noises, spreads, 1]
    precision = n / between[..., 0] + 1 / prior_sd**2
    mean = (fit.sum() / between[..., 0] + prior_mean / prior_sd**2) / precision
    log_p = stats.norm.logpdf(fit, mean[..., None], between**0.5).sum(-1) + stats.norm.logpdf(
        mean, prior_mean, prior_sd
    )
    log_p = log_p + 0.5 * np.log(2 * np.pi / precision) + np.log(weight) + stats.halfnorm.logpdf(spread, 0, top)
    total = special.logsumexp(log_p, axis=1)
    share = np.exp(log_p - total[:, None])
    pull = variance[:, None, None] / between  # of a rat's own towards the mean
    own = pull * mean[..., None] + (1 - pull) * fit
    own_variance = pull**2 / precision[..., None] + pull * (spread**2)[:, None]
    every = np.broadcast_to(spread, share.shape)

    def pair(value: np.ndarray, square: np.ndarray) -> Pair:
        return np.einsum("ks,ks...->k...", share, value), np.einsum("ks,ks...->k...", share, square)

    moments = {
        "mean": pair(mean, mean**2 + 1 / precision),
        "spread": pair(every, every**2),
        "line": pair(own, own**2 + own_variance),
    }
    return total, moments


def _beta() -> Exact:
    x = programs.DATA["beta_binomial"]()[:, 0]
    a, b = 2 + x.sum(), 3 + (10 - x).sum()
    value = special.betaln(a, b) - special.betaln(2, 3) + np.log(special.comb(10, x)).sum()
    mean, variance = stats.beta(a, b).stats("mv")
    return Exact(float(value), {"p": (np.array(mean), np.array(variance + mean**2))}, "closed form")


def _normal() -> Exact:
    x = programs.DATA["normal_normal"]()[:, 0]
    precision = 1 / 9 + len(x) / 4
    mean = (1 / 9 + x.sum() / 4) / precision
    of_x = 4 * np.eye(len(x)) + 9.0
    value = stats.multivariate_normal(np.full(len(x), 1.0), of_x).logpdf(x)
    return Exact(float(value), {"mu": (np.array(mean), np.array(mean**2 + 1 / precision))}, "closed form")


FOUND: dict[str, Callable[[], Exact]] = {
    "eight_schools": _schools("eta"),
    "eight_schools_centred": _schools("theta"),
    "eight_schools_outside": _schools("eta"),
    "logistic_intercepts": _intercepts(5.0, 3.0),
    "logistic_intercepts_wide": _intercepts(1000.0, 1000.0),
    "rats": _rats,
    "beta_binomial": _beta,
    "normal_normal": _normal,
}


def maximum_of_ppca(x: np.ndarray, latents: int) -> float:
    """log p(x; θ̂) of probabilistic PCA, from the covariance's eigenvalues (Tipping & Bishop 1999, eq. 8)."""
    n, D = x.shape
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = values[latents:].mean()
    log_det = np.log(values[:latents]).sum() + (D - latents) * math.log(noise)
    return float(-n / 2 * (D * math.log(2 * math.pi) + log_det + D))
