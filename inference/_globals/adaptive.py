"""Adaptive importance sampling of global latents: a mixture of Student t's that follows its own weighted draws.

What is claimed after the rounds (`following`) comes from fresh draws of the last mixture alone: they are independent, and their
mean weight is unbiased, which the recycled ones are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference._globals import modes, walked
from inference._globals.labels import POINTS, Labels
from inference._globals.target import Target
from inference._method.estimates import Estimates
from inference._sampling import student
from inference._sampling.following import followed
from inference._sampling.nested import Nested
from inference._sampling.student import Mixture

ROUNDS = 12
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
    beyond: float  # the share of walks from the draws that end where weights are larger than any

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
        prior = modes.prior(self.target)
        found = [student.moments(self.labels.alike(drawn))] if drawn is not None else []
        for mode in modes.search(self.target, self.labels, prior, starts) if drawn is None else []:
            found.append((mode.flat, mode.covariance))
        for mean, covariance in found:
            centers.append(mean[self.places])
            covariances.append(covariance[self.places][:, self.places])
        mean, covariance = student.moments(prior[:, self.places])
        self.prior = Mixture.of(mean.unsqueeze(0), covariance.unsqueeze(0))
        return Mixture.of(torch.stack([*centers, mean]), torch.stack([*covariances, covariance])), len(found)

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
        log_weights = log_p - log_q
        beyond = walked.beyond(self.target, flat, log_weights, self._weigh) if bool(log_p.isfinite().any()) else 0.0
        nested = "" if self.nested is None else ROWS
        return Weighed(flat, log_weights, self.labels, rounds, self.modes, nested, beyond)

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
        return self._at(mixture, mixture.draw(count, self.target.generator))

    def _at(self, mixture: Mixture, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.nested is None:
            return own, self.target.log_density(own), self.labels.spread(mixture.log_prob, own)
        log_p, flat = self.nested.weigh(own)
        log_q = self.labels.spread(lambda u: mixture.log_prob(u[:, self.places]), flat, alone=True)
        return flat, log_p, log_q

    def _weigh(self, flat: Tensor) -> Tensor:
        """Log-weights of points [S, d] by the last mixture."""
        _, log_p, log_q = self._at(self.mixture, flat[:, self.places])
        return log_p - log_q


def mislabelled(weighed: Weighed) -> bool:
    """Whether the density is not the same under the relabellings at draws of the posterior."""
    top = weighed.flat[weighed.log_weights.topk(min(10, len(weighed.flat))).indices]
    return not weighed.labels.hold(top)
