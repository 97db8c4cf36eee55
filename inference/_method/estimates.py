"""What importance weights say of log p(x), row by row: a corrected estimate, its error, and whether it can be trusted.

The mean weight of a row is unbiased for p(x_i), so its logarithm lies below log p(x_i) on average (Jensen), by about
½·se². Over N rows that bias grows as N, and the standard error only as √N: it is removed (by the jackknife), and what its
removal is uncertain by is part of the standard error, and so is what the tail of the weights may not have shown.

Weights that cannot be trusted show a part of the posterior alone. The correction cannot help there, so their sum is what it
still is: the logarithm of an unbiased estimate, a lower bound in expectation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from inference._method.fit import Evidence, weighed
from inference._numerics.psis import psis
from inference._sampling.khat import EVEN, LIMIT
from inference._sampling.weights import log_mean

LEAST_DRAWS = 100  # effective draws of a row
WIDEST = 1.0  # standard error of a row, nats: beyond it the logarithm is no longer nearly linear


@dataclass
class Estimates:
    """For each of n rows, float64 tensors [n]; nats."""

    log_mean: Tensor  # log of the mean weight: below log p(x_i) on average
    corrected: Tensor  # the same, its bias removed
    se: Tensor  # of either
    unsure: (
        Tensor  # what two ways to remove the bias differ by, and what heavy tails may hide: the same way in all rows
    )
    shape: Tensor  # Pareto shape of the weights
    ess: Tensor  # effective number of draws
    even: Tensor  # bool: the weights are nearly equal
    alone: Tensor  # bool: the weighted draws are in one discrete state, and others were never visited

    @classmethod
    def of(cls, log_weights: Tensor, groups: int | None = None, alone: Tensor | None = None) -> Estimates:
        """From log-weights [S, n]. `groups`: see `log_mean`; `alone` [n]: see `weights.lone_states`."""
        khat, ess = map(torch.as_tensor, psis(log_weights.detach().cpu().numpy()))
        even = ess >= EVEN * len(log_weights)
        log_weights = log_weights.detach().double().cpu()
        if groups is not None:
            size = len(log_weights) // groups
            log_weights = log_mean(log_weights.unflatten(0, (groups, -1)).movedim(1, 0))[0]
            ess = torch.minimum(ess, size * _effective(log_weights))
        estimate, se = log_mean(log_weights)
        lost = ~estimate.isfinite()
        se = se.masked_fill(lost | ~se.isfinite(), torch.inf)
        jackknife = estimate + _jackknife(log_weights)
        unsure = (jackknife - (estimate + 0.5 * se.square())).abs().nan_to_num(0.0, 0.0, 0.0) + _unseen(
            log_weights, khat
        )
        alone = torch.zeros_like(lost) if alone is None else alone.cpu()
        return cls(estimate, torch.where(lost, estimate, jackknife), se, unsure, khat, ess, even, alone)

    @classmethod
    def joined(cls, parts: Iterable[Estimates]) -> Estimates:
        """Those of several chunks of rows, one after the other."""
        found = list(parts)
        return cls(*(torch.cat([getattr(p, f.name) for p in found]) for f in fields(cls)))

    def beside(self, exact: Tensor) -> Estimates:
        """With exact values [n] at hand, a state that no draw visited counts only where the estimate lacks it."""
        lacks = exact.double() - self.log_mean
        return replace(self, alone=self.alone & ~(lacks.abs() <= 4 * self.se + 1e-6))

    @property
    def khat(self) -> Tensor:
        """PSIS k-hat [n]: inf for rows that are alone, since equal weights say nothing about a state that was never visited."""
        return self.shape.masked_fill(self.alone, torch.inf)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.log_mean)

    @property
    def doubtful(self) -> Tensor:
        """Which rows' weights cannot be trusted [n], bool."""
        return torch.stack([bad for _, bad in self._reasons()]).any(0)

    def _reasons(self) -> list[tuple[str, Tensor]]:
        return [
            ("every weighted draw is in the same state, and others were never visited", self.alone),
            (f"k-hat is above {LIMIT}", ~(self.khat <= LIMIT) & ~self.even & ~self.alone),
            (f"fewer than {LEAST_DRAWS} effective draws", ~(self.ess >= LEAST_DRAWS - 1e-6)),
            (f"a standard error above {WIDEST:g} nat", ~(self.se <= WIDEST)),
        ]

    def evidence(self, weights: np.ndarray | None = None) -> Evidence:
        """An estimate with its bias removed where every row can be trusted, else a lower bound in expectation.

        `weights` [n]: how many times each row counts; None: once each.
        """
        counted = torch.ones(self.n, dtype=torch.bool) if weights is None else torch.as_tensor(weights > 0)
        if bool(self.doubtful[counted].any()):
            return Evidence.from_per_datum(self.log_mean.numpy(), "lower bound", self.se.numpy(), weights=weights)
        se, unsure = (
            v if weights is None else torch.as_tensor(weighed(v.numpy(), weights)) for v in (self.se, self.unsure)
        )
        total = float((se.square().sum() + unsure.sum().square()).sqrt())
        value = self.corrected.numpy()
        return Evidence(float(weighed(value, weights).sum()), total, "estimate", value, se_per_datum=self.se.numpy())

    def warning(self, what: str, remedy: str) -> str | None:
        """Why `what` ("the evidence claimed") is a lower bound, with numbers of rows; None where it is an estimate."""
        doubtful = int(self.doubtful.sum())
        if not doubtful:
            return None
        reasons = [f"{text} for {int(bad.sum())} of {self.n} rows" for text, bad in self._reasons() if bool(bad.any())]
        return (
            f"{what} is a lower bound, not an estimate: the weights of {doubtful} of {self.n} rows cannot be trusted "
            f"({'; '.join(reasons)}). {remedy}"
        )


def _effective(log_weights: Tensor) -> Tensor:
    """(Σw)² / Σw² of log-weights [S, n]; 0 where all are zero."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp().nan_to_num(0.0)


def _unseen(log_weights: Tensor, khat: Tensor) -> Tensor:
    """The share of the mean weight [n] that a heavy tail holds beyond the largest of the weights [S, n].

    Beyond the largest of S weights with a Pareto tail of shape k lie w_max k / (1 − k) / S more than w_max itself, on average.
    A mean without such a weight, which is what most samples are, is too low by that, in every row. It is left out below
    k = 0.3, where the standard error tells it, and counts in full from k = 0.5, where weights have no variance.
    """
    k = khat.clamp(max=LIMIT)
    counts = ((k - 0.3) / 0.2).clamp(0, 1)
    return (counts * k / (1 - k) * log_weights.softmax(0).amax(0)).nan_to_num(0.0)


def _jackknife(log_weights: Tensor) -> Tensor:
    """What the jackknife adds to the log of the mean of weights [S, n] to remove its bias of order 1/S (Quenouille 1956).

    S·L − (S − 1)·(mean of the L's with one draw left out), where L is the log of the mean.
    """
    S = len(log_weights)
    if S < 2:
        return torch.zeros_like(log_weights[0])
    share = log_weights.softmax(0).clamp(max=1 - 1e-12)
    return -(S - 1) * (torch.log1p(-share).mean(0) + float(np.log(S / (S - 1))))
