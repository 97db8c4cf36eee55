"""What a fit says of each latent number, in a form in which two fits can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inference._method.fit import Fit
from inference._method.task import Task
from inference._sampling.weights import real_slots


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


@dataclass(frozen=True)
class Support:
    """What the numbers of a local latent are.

    - `values`: those of a label [K]; None where it is no label.
    - `real`: which of its numbers stand for a missing entry [n, …]; None where it completes nothing.
    """

    values: np.ndarray | None = None
    real: np.ndarray | None = None


def posterior_of(fit: Fit, supports: Mapping[str, Support]) -> Posterior:
    """The posterior of a fit. `supports`: local latent → what its numbers are, where `supports_of` knows more than that.

    One draw alone says nothing of a spread: sites that have no more are left out.
    """
    numbers: dict[str, Moments] = {}
    labels: dict[str, tuple[np.ndarray, float]] = {}
    for site in sorted({*fit.draws, *fit.means, *fit.probabilities}):
        support = supports.get(site, Support())
        values, real = support.values, support.real
        weighed = real is not None and fit.ess is not None  # probabilities that are as noisy as draws
        if site in fit.probabilities and not (weighed and site in fit.draws):
            labels[site] = _those(np.asarray(fit.probabilities[site], float), real), np.inf
        elif values is not None and site in fit.draws:
            labels[site] = _those(_shares(fit.draws[site], values), real), float(len(fit.draws[site]))
        elif site in fit.means and site in fit.deviations:
            mean, sd = (_those(np.asarray(told[site], float), real) for told in (fit.means, fit.deviations))
            numbers[site] = Moments(mean.reshape(-1), sd.reshape(-1), np.inf)
        elif site in fit.draws and len(fit.draws[site]) > 1:
            numbers[site] = _of_draws(fit.draws[site], real)
    return Posterior(numbers, labels)


def _those(told: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """What is told of each number [n, …] or [n, …, values], of those that stand for something."""
    if real is None:
        return told
    return told.reshape(*real.shape, *((-1,) if told.size > real.size else ()))[real]


def _of_draws(values: np.ndarray, real: np.ndarray | None) -> Moments:
    draws = np.stack([_those(np.asarray(draw, float), real).reshape(-1) for draw in values])
    whole = bool(np.equal(draws, np.round(draws)).all())
    return Moments(draws.mean(0), draws.std(0, ddof=1), len(draws), len(draws) ** -0.5 if whole else 0.0)


def _shares(draws: np.ndarray, support: np.ndarray) -> np.ndarray:
    """How often each value was drawn [n, K]."""
    return np.stack([(draws == value).mean(0) for value in support], -1)


def supports_of(task: Task) -> dict[str, Support]:
    """Discrete local latent of one number a row → its values, where they are whole numbers in a row; and latents that stand
    for missing entries, 0 or 1 where they are discrete."""
    out = {}
    for site in task.structure.local_latents:
        if site.completes is not None:
            real = real_slots(task.x, site).numpy()
            out[site.name] = Support(np.arange(2) if site.discrete else None, real if real.any() else None)
        elif site.discrete and site.cardinality is not None and not site.event_shape and site.inner == 1:
            low = getattr(site.constraint, "lower_bound", 0)
            if isinstance(low, int | float):
                out[site.name] = Support(low + np.arange(site.cardinality))
    return out
