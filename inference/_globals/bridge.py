"""Bridge sampling: log p(x) from draws of the posterior and draws of a normal distribution fitted to it.

Meng & Wong 1996, "Simulating ratios of normalizing constants via a simple identity", by their optimal bridge, iterated; the
error by Frühwirth-Schnatter 2004, "Estimating marginal likelihoods for mixture and Markov switching models using bridge
sampling techniques", with the effective number of the chains' draws. The normal is fitted to the first half of every chain, and
the second halves are bridged to it: as in Gronau, Singmann & Wagenmakers 2020, "bridgesampling: An R package". Both ratios that
are averaged are bounded, so that a tail which either distribution lacks cannot blow them up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from inference._globals.labels import Labels
from inference._globals.target import Target
from inference._method.fit import Evidence
from inference._numerics.psis import mean_ess
from inference._sampling import student

LEAST_DRAWS = 100  # effective ones behind either average
MOST_ERROR = 0.3  # nats, beyond which the error itself is not known well
EACH = 10  # draws for each coordinate that a covariance takes
ITERATIONS = 1000


@dataclass(frozen=True)
class Bridge:
    """What a bridge found, or why there is none."""

    evidence: Evidence | None
    reason: str = ""

    def notes(self) -> dict[str, object]:
        """For the notes of a fit."""
        return {"evidence": self.reason or "bridge sampling"}


def bridge(target: Target, flat: torch.Tensor, log_p: torch.Tensor, labels: Labels) -> Bridge:
    """From chains flat [C, S, d] and the log-densities there [C, S]."""
    C, S, d = flat.shape
    half = S // 2
    first, second = flat[:, :half].reshape(-1, d), flat[:, half:].reshape(-1, d)
    if not labels.counted:
        return Bridge(None, "none: the labels can be exchanged in too many ways to count")
    if len(first) < EACH * d:
        return Bridge(None, f"none: {len(first)} draws are too few for a normal distribution in {d} dimensions")
    normal = student.normal(first)
    noise = torch.randn(len(second), d, 1, generator=target.generator, dtype=torch.float64)
    own = normal.mean + (normal.scale_tril @ noise).squeeze(-1)
    theirs = log_p[:, half:] - labels.spread(normal.log_prob, second).reshape(C, -1)
    ours = target.log_density(own) - labels.spread(normal.log_prob, own)
    return _bridged(theirs.numpy(), ours.numpy())


def _bridged(theirs: np.ndarray, ours: np.ndarray) -> Bridge:
    """log p − log q at draws of the posterior [C, S] and at draws of q [N]."""
    if not np.isfinite(theirs).all():
        return Bridge(None, "none: the density is not finite at draws of its own")
    effective = _correlated(theirs)
    s1 = effective / (effective + len(ours))
    value, before = float(np.median(theirs)), math.inf
    with np.errstate(all="ignore"):
        for _ in range(ITERATIONS):
            top, bottom = _terms(theirs, ours, value, s1)
            before, value = value, value + math.log(float(top.mean())) - math.log(float(bottom.mean()))
            if not math.isfinite(value) or abs(value - before) < 1e-10:
                break
        top, bottom = _terms(theirs, ours, value, s1)
    if not abs(value - before) < 1e-6:
        return Bridge(None, "none: the bridge did not settle")
    few = min(float(top.sum() ** 2 / np.square(top).sum()), _effective(bottom))
    error = math.sqrt(_relative(top) / len(ours) + _relative(bottom) / max(1.0, _correlated(bottom)))
    if few < LEAST_DRAWS or not error <= MOST_ERROR:
        return Bridge(None, f"none: the normal distribution is too unlike the posterior (error {error:.2g} nats)")
    return Bridge(Evidence(value, error, "estimate"))


def _terms(theirs: np.ndarray, ours: np.ndarray, value: float, s1: float) -> tuple[np.ndarray, np.ndarray]:
    """p/r / (s₁ p/r + s₂ q) at draws of q, and q / (the same) at draws of p, where r = exp(value)."""
    low, high = math.log(s1), math.log1p(-s1)
    return (
        np.exp((ours - value) - np.logaddexp(low + ours - value, high)),
        np.exp(-np.logaddexp(low + theirs - value, high)),
    )


def _relative(values: np.ndarray) -> float:
    return float(values.var() / values.mean() ** 2)


def _correlated(values: np.ndarray) -> float:
    """Effective number of draws of values along chains [C, S]."""
    return float(mean_ess(values[None], 0.0)[0]) if np.ptp(values) > 0 else float(values.size)


def _effective(values: np.ndarray) -> float:
    """That of weights along chains [C, S]: by their unevenness and by their correlation."""
    return float(values.sum() ** 2 / np.square(values).sum() / values.size) * _correlated(values)
