"""Adaptive importance sampling of global latents: a mixture of Student t's that follows its own weighted draws.

What is claimed after the rounds (`following`) comes from fresh draws of the last mixture alone: they are independent, and their
mean weight is unbiased, which the recycled ones are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from inference._globals.labels import POINTS, Labels
from inference._globals.target import Target
from inference._method.estimates import Estimates
from inference._numerics import peak
from inference._sampling import student
from inference._sampling.following import followed
from inference._sampling.nested import Nested
from inference._sampling.student import Mixture

ROUNDS = 12
STARTS = 4  # of climbs to a mode
PRIOR = 64  # draws from the prior that the first mixture has a component for
SAME = 0.01  # coordinates within which two climbs ended at one mode
MOST_HESSIAN = 400  # coordinates
MOST_OF_A_ROW = 6  # numbers of its latents, of which a Hessian is taken
ROWS = "each row's latents by a Gaussian at its mode given each draw of the globals"
GROUP = "global latents with normal priors by a Gaussian at their mode given each draw of the others"


@dataclass(frozen=True)
class Weighed:
    """Draws of all latents, and their log-weights."""

    flat: Tensor  # [S, d]
    log_weights: Tensor  # [S], nats
    labels: Labels
    rounds: int
    modes: int
    nested: str  # which latents are not drawn by the mixture, in words; "" where it draws all

    @property
    def told(self) -> Estimates:
        """What the weights say of log p(x)."""
        return Estimates.of(self.log_weights.unsqueeze(1))


class Adaptive:
    """The rounds, and the fresh draws after them."""

    def __init__(self, target: Target, starts: Tensor, drawn: Tensor | None) -> None:
        """`starts` [C, d]: where climbs to modes begin. `drawn` [S, d]: draws of an earlier fit, to propose from instead."""
        self.target = target
        by_row = target.structure.by_row and 0 < target.of_rows.shape[1] <= MOST_OF_A_ROW and len(target.of_globals) > 0
        self.places = target.of_globals if by_row else torch.arange(target.d)
        width, generator = target.posterior.width, target.generator
        self.nested = Nested(target.each_row, self.places, target.of_rows, width, generator) if by_row else None
        self.labels = Labels(target, starts[:POINTS])
        self.mixture, self.modes = self._first(starts, drawn)

    def _first(self, starts: Tensor, drawn: Tensor | None) -> tuple[Mixture, int]:
        centers, covariances = [], []
        found = _modes(self.target, starts) if drawn is None else [student.moments(self.labels.alike(drawn))]
        for mean, covariance in found:
            centers.append(mean[self.places])
            covariances.append(covariance[self.places][:, self.places])
        modes = len(centers)
        mean, covariance = student.moments(_prior(self.target)[:, self.places])
        self.prior = Mixture.of(mean.unsqueeze(0), covariance.unsqueeze(0))
        return Mixture.of(torch.stack([*centers, mean]), torch.stack([*covariances, covariance])), modes

    def run(self, samples: int, step: Callable[..., object]) -> Weighed:
        """`samples` fresh draws after as many rounds as are needed."""
        found = self._run(samples, step)
        if not bool(found.told.doubtful[0]) or not self._regrouped():
            return found
        again = self._run(samples, step)
        return found if bool(again.told.doubtful[0]) else replace(again, nested=GROUP)

    def _run(self, samples: int, step: Callable[..., object]) -> Weighed:
        self.mixture, rounds = followed(self._own, self.mixture, self.prior, ROUNDS, step)
        flat, log_p, log_q = self._draw(self.mixture, samples)
        step()
        return Weighed(flat, log_p - log_q, self.labels, rounds, self.modes, "" if self.nested is None else ROWS)

    def _regrouped(self) -> bool:
        """Whether global latents can be drawn given the others instead: of one mode that all climbs ended at."""
        group = self.target.posterior.normal_group()
        if self.nested is not None or group is None or self.modes != 1 or self.labels.count != 1:
            return False
        self.places, inner = group
        posterior, generator = self.target.posterior, self.target.generator
        self.nested = Nested(posterior.whole, self.places, inner, posterior.width, generator)
        self.mixture, self.prior = (m.marginal(self.places) for m in (self.mixture, self.prior))
        return True

    def _own(self, mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        flat, log_p, log_q = self._draw(mixture, count)
        return flat[:, self.places], log_p, log_q

    def _draw(self, mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points [S, d], their log-densities, those of the proposal."""
        own = mixture.draw(count, self.target.generator)
        if self.nested is None:
            return own, self.target.log_density(own), self.labels.spread(mixture.log_prob, own)
        log_p, flat = self.nested.weigh(own)
        log_q = self.labels.spread(lambda u: mixture.log_prob(u[:, self.places]), flat, alone=True)
        return flat, log_p, log_q


def _prior(target: Target) -> Tensor:
    """Draws from the program; around zero where it cannot be drawn from."""
    try:
        found = target.prior(PRIOR)
    except (NotImplementedError, RuntimeError, ValueError):
        found = torch.zeros(0, target.d, dtype=torch.float64)
    if len(found) and bool(found.isfinite().all()):
        return found
    return torch.randn(PRIOR, target.d, generator=target.generator, dtype=torch.float64)


def _modes(target: Target, starts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each mode that climbs from the starts end at, with the inverse Hessian there."""
    found: list[tuple[Tensor, Tensor]] = []
    if target.d > MOST_HESSIAN:
        return []

    def density(u: Tensor) -> Tensor:
        return target.posterior.log_density(u.unsqueeze(0))[0]

    for start in starts[:STARTS]:
        try:
            top = peak.climb(density, start, 200, 1e-6, lambda **_: None)
        except (ArithmeticError, RuntimeError, ValueError):
            continue  # no finite density on the way: the other starts, and the prior, serve
        if not np.isfinite(top.value) or not bool(top.hessian.isfinite().all()):
            continue
        if any(torch.allclose(top.flat, mode, atol=SAME) for mode, _ in found):
            continue
        found.append((top.flat, _inverse(top.hessian)))
    return found


def _inverse(hessian: Tensor) -> Tensor:
    """Of a Hessian whose eigenvalues are made positive, with a variance of 100 at most."""
    values, vectors = torch.linalg.eigh(hessian)
    return (vectors / values.abs().clamp(min=0.01)) @ vectors.mT


def mislabelled(weighed: Weighed) -> bool:
    """Whether the density is not the same under the relabellings at draws of the posterior."""
    top = weighed.flat[weighed.log_weights.topk(min(10, len(weighed.flat))).indices]
    return not weighed.labels.hold(top)
