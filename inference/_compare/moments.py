"""What a fit says of each latent number, in a form in which two fits can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inference._method.fit import Fit
from zoo._program.structure import Structure


@dataclass(frozen=True)
class Moments:
    """Posterior mean and standard deviation of numbers [q], and how many independent draws they come from."""

    mean: np.ndarray
    sd: np.ndarray
    draws: float  # ∞ where the method has them in closed form
    least: float = 0.0  # standard deviation that so few draws of whole numbers can tell from 0


@dataclass(frozen=True)
class Posterior:
    """A fit's posterior, site by site."""

    numbers: Mapping[str, Moments]  # continuous and 0/1 latents
    labels: Mapping[str, tuple[np.ndarray, float]]  # discrete latent → probabilities [n, values], and of how many draws

    @property
    def sites(self) -> set[str]:
        """The latents that it is of."""
        return {*self.numbers, *self.labels}


def posterior_of(fit: Fit, supports: Mapping[str, np.ndarray]) -> Posterior:
    """The posterior of a fit. `supports`: discrete latent whose values are labels → those values [K].

    One draw alone says nothing of a spread: sites that have no more are left out.
    """
    numbers: dict[str, Moments] = {}
    labels: dict[str, tuple[np.ndarray, float]] = {}
    for site in sorted({*fit.draws, *fit.means, *fit.probabilities}):
        if site in fit.probabilities:
            labels[site] = np.asarray(fit.probabilities[site], float), np.inf
        elif site in supports:
            labels[site] = _shares(fit.draws[site], supports[site]), float(len(fit.draws[site]))
        elif site in fit.means and site in fit.deviations:
            numbers[site] = Moments(_flat(fit.means[site]), _flat(fit.deviations[site]), np.inf)
        elif site in fit.draws and len(fit.draws[site]) > 1:
            numbers[site] = _of_draws(fit, site)
    return Posterior(numbers, labels)


def _of_draws(fit: Fit, site: str) -> Moments:
    draws = np.asarray(fit.draws[site], float)
    draws = draws.reshape(len(draws), -1)
    whole = bool(np.equal(draws, np.round(draws)).all())
    return Moments(draws.mean(0), draws.std(0, ddof=1), len(draws), len(draws) ** -0.5 if whole else 0.0)


def _shares(draws: np.ndarray, support: np.ndarray) -> np.ndarray:
    """How often each value was drawn [n, K]."""
    return np.stack([(draws == value).mean(0) for value in support], -1)


def _flat(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, float).reshape(-1)


def supports_of(structure: Structure) -> dict[str, np.ndarray]:
    """Discrete local latent of one number a row → its values [K], where they are whole numbers in a row."""
    out = {}
    for site in structure.discrete_locals:
        if site.cardinality is None or site.event_shape or site.inner != 1:
            continue
        low = getattr(site.constraint, "lower_bound", 0)
        if isinstance(low, int | float):
            out[site.name] = low + np.arange(site.cardinality)
    return out
