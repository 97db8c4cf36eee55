"""Adaptive importance sampling of global latents: a mixture of Student t's that follows its own weighted draws.

Cornuet, Marin, Mira & Robert 2012 (AMIS): each round draws from the mixture, weighs all draws so far by the mixture of all
proposals so far, and moves the components to them. Where few draws have any weight it follows weights to a power below 1,
which have more. The rounds end where Pareto k-hat allows it. What is claimed comes from fresh draws of the last mixture alone:
they are independent, and their mean weight is unbiased, which the recycled ones are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._globals import modes, rows, student, walked
from inference._globals.labels import POINTS, Labels
from inference._globals.student import Mixture
from inference._globals.target import Target
from inference._method.estimates import Estimates
from inference._numerics.psis import psis
from inference._sampling.khat import LIMIT

ROUNDS = 12
ROUND = 1000  # draws of one
DEFENSIVE = 0.05  # the share of draws that are as wide as the prior, so that a far mode is seen
ENOUGH = 0.2  # effective draws, as a share of all, at which no round more is needed


@dataclass(frozen=True)
class Weighed:
    """Draws of all latents, and their log-weights."""

    flat: Tensor  # [S, d]
    log_weights: Tensor  # [S], nats
    labels: Labels
    rounds: int
    modes: int
    jointly: bool  # whether each row's latents are among what the mixture draws
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
        self.rows = rows.Rows(target) if rows.serves(target) else None
        self.places = target.of_globals if self.rows is not None else torch.arange(target.d)
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
        rounds = self._adapt(step)
        flat, log_p, log_q = self._draw(self.mixture, samples)
        step()
        log_weights = log_p - log_q
        beyond = walked.beyond(self.target, flat, log_weights, self._weigh) if bool(log_p.isfinite().any()) else 0.0
        return Weighed(flat, log_weights, self.labels, rounds, self.modes, self.rows is None, beyond)

    def _adapt(self, step: Callable[..., object]) -> int:
        kept: list[tuple[Mixture, Tensor, Tensor]] = []
        best, most = self.mixture, -1.0
        count = max(ROUND, 20 * len(self.places))
        for k in range(ROUNDS):
            flat, log_p, log_q = self._draw(self.mixture, count)
            log_weights = log_p - log_q
            (khat,), (ess,) = psis(log_weights.unsqueeze(1).numpy())
            step(note=f"k-hat {khat:.2f}, {ess:.0f} of {count} draws")
            score = ess / count - (1.0 if not khat <= LIMIT else 0.0)
            if score > most:
                best, most = self.mixture, score
            if khat <= LIMIT and ess >= ENOUGH * count:
                return k + 1
            kept = [*kept, (self.mixture, flat[:, self.places], log_p)][-3:]
            self.mixture = self._followed(kept)
        self.mixture = best
        return ROUNDS

    def _followed(self, kept: list[tuple[Mixture, Tensor, Tensor]]) -> Mixture:
        """The mixture moved to the draws of some rounds, weighed by the mean of their proposals."""
        flat, log_p = torch.cat([k[1] for k in kept]), torch.cat([k[2] for k in kept])
        densities = torch.stack([mixture.log_prob(flat) for mixture, _, _ in kept]).logsumexp(0)
        log_weights = log_p - densities
        if not bool(log_weights.isfinite().any()):
            return self.mixture
        return self.mixture.follow(flat, _tempered(log_weights, 10.0 * flat.shape[1])).beside(self.prior, DEFENSIVE)

    def _draw(self, mixture: Mixture, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points [S, d], their log-densities, those of the proposal."""
        return self._at(mixture, mixture.draw(count, self.target.generator))

    def _at(self, mixture: Mixture, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.rows is None:
            return own, self.target.log_density(own), self.labels.spread(mixture.log_prob, own)
        log_p, flat = self.rows.weigh(own)
        log_q = self.labels.spread(lambda u: mixture.log_prob(u[:, self.places]), flat, alone=True)
        return flat, log_p, log_q

    def _weigh(self, flat: Tensor) -> Tensor:
        """Log-weights of points [S, d] by the last mixture."""
        _, log_p, log_q = self._at(self.mixture, flat[:, self.places])
        return log_p - log_q


def _tempered(log_weights: Tensor, least: float) -> Tensor:
    """Weights to the largest power, at most 1, at which `least` of them count (a tenth of all at most); they sum to 1."""
    least = min(least, 0.1 * len(log_weights))
    power = 1.0
    for _ in range(60):
        share = (power * log_weights.clamp(min=-1e30)).softmax(0)
        if float(1 / share.square().sum()) >= least:
            break
        power *= 0.8
    return share


def mislabelled(weighed: Weighed) -> bool:
    """Whether the density is not the same under the relabellings at draws of the posterior."""
    top = weighed.flat[weighed.log_weights.topk(min(10, len(weighed.flat))).indices]
    return not weighed.labels.hold(top)
