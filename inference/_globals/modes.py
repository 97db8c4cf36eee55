"""Where the density of all latents has its modes: many short climbs side by side, from far apart, and the best ends polished.

One mode says nothing of another: weights taken at it look perfect, and so do chains that have never left it. So the places to
begin are not the likeliest ones, which are near one mode, but draws from the prior as they come, and points around zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from inference._globals.labels import Labels
from inference._globals.target import Target
from inference._numerics import peak
from inference._sampling import student

PRIOR = 64  # draws of it
STARTS = 4
CLIMBS = 48  # side by side, from draws of the prior and from around zero
AROUND = 3.0  # zero, in unconstrained coordinates
FAR = 3, 10.0  # every so many of these climbs begin so many times as far away
STEPS = 120  # of each climb
FIRST, GROW, SHRINK, LEAST, MOST = 0.1, 1.2, 0.5, 1e-7, 3.0  # of a coordinate's step (Riedmiller & Braun 1993, Rprop)
POLISHED = 12  # ends that are climbed from to the last digit, at most
SAME = 0.01  # coordinates within which two climbs ended at one mode
NEGLIGIBLE = 20.0  # nats of mass below the best
MOST_HESSIAN = 400  # coordinates
VARIANCE = 100.0  # of a coordinate at a mode, at most
WEIGHED = 200  # draws about a mode
SHARE = 0.05  # of the mass, that chains do not miss without a word
DRAWS = CLIMBS + STARTS  # of chains, from which to climb
WORK = 2**31  # numbers in all evaluations of a search


def prior(target: Target) -> Tensor:
    """Draws from the program; around zero where it cannot be drawn from."""
    found = target.prior(PRIOR)
    if found is not None and bool(found.isfinite().all()):
        return found
    return torch.randn(PRIOR, target.d, generator=target.generator, dtype=torch.float64)


@dataclass(frozen=True)
class Mode:
    """A peak of the density, and what Laplace's approximation says there."""

    flat: Tensor  # [d]
    covariance: Tensor  # [d, d]: the inverse Hessian
    log_mass: float  # nats


@torch.enable_grad()
def search(target: Target, labels: Labels, prior: Tensor, others: Tensor) -> list[Mode]:
    """The modes, in one labelling each, where climbs from draws of the prior [S, d], around zero and `others` [C, d] end."""
    d = target.d
    if d > MOST_HESSIAN or CLIMBS * STEPS * target.posterior.width > WORK or not target.posterior.side_by_side:
        return _polished(target, list(others))
    generator = torch.Generator().manual_seed(target.task.seed)
    near = AROUND * (2 * torch.rand(CLIMBS // 2, d, generator=generator, dtype=torch.float64) - 1)
    near[:: FAR[0]] *= FAR[1]
    begin = torch.cat([prior[: CLIMBS // 2], near, others])
    ends, values = ascend(target, begin)
    order = values.argsort(descending=True)
    apart, seen = list[Tensor](), begin.new_zeros(0, d)
    for end in ends[order[values[order].isfinite()]]:
        if len(apart) < POLISHED and not bool(((seen - end).abs() <= 0.1 + 0.01 * end.abs()).all(1).any()):
            apart.append(end)
            seen = torch.cat([seen, labels.images(end)])
    found = _polished(target, apart)
    best = max((m.log_mass for m in found), default=0.0)
    return [m for m in found if m.log_mass > best - NEGLIGIBLE]


def ascend(target: Target, begin: Tensor) -> tuple[Tensor, Tensor]:
    """Where climbs from points [B, d] stand after `STEPS` steps, and the density there [B].

    Every coordinate has a step of its own, which grows while its slope keeps its sign: scales need not be known.
    """
    gradient = target.gradient(begin)
    size, before = np.full(begin.shape, FIRST), np.zeros(begin.shape)
    flat = begin.numpy().copy()
    best, top = flat.copy(), np.full(len(flat), -np.inf)
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            value, slope = gradient(flat)
            good = np.isfinite(value) & np.isfinite(slope).all(1)
            better = good & (value > top)
            best[better], top[better] = flat[better], value[better]
            flat[~good] = best[~good]
            slope = np.where(good[:, None], slope, 0.0)
            same = np.sign(slope) * np.sign(before)
            size = np.clip(size * np.where(same > 0, GROW, np.where(same < 0, SHRINK, 1.0)), LEAST, MOST)
            size[~good] *= SHRINK
            before = np.where(same < 0, 0.0, slope)
            flat = flat + np.sign(before) * size
    return torch.from_numpy(best), torch.from_numpy(top)


def _polished(target: Target, starts: list[Tensor]) -> list[Mode]:
    """Each mode once; climbs that end at none are left out."""
    found: list[Mode] = []
    if target.d > MOST_HESSIAN:
        return found

    def density(u: Tensor) -> Tensor:
        return target.posterior.log_density(u.unsqueeze(0))[0]

    for start in starts:
        if any(torch.allclose(start, mode.flat, atol=SAME) for mode in found):
            continue
        try:
            top = peak.climb(density, start, 200, 1e-6, lambda **_: None)
        except (ArithmeticError, RuntimeError, ValueError):
            continue  # no finite density on the way: the other starts, and the prior, serve
        if not bool(top.hessian.isfinite().all()):  # as those of logaddexp may be where the gradient is finite
            top = replace(top, hessian=peak.value_and_differences(target.posterior.log_density, top.flat)[1])
        if not np.isfinite(top.value) or not bool(top.hessian.isfinite().all()):
            continue
        if not any(torch.allclose(top.flat, mode.flat, atol=SAME) for mode in found):
            found.append(_mode(top))
    return found


def _mode(top: peak.Peak) -> Mode:
    """Eigenvalues of the Hessian are made positive, and kept off 0."""
    values, vectors = torch.linalg.eigh(top.hessian)
    values = values.abs().clamp(min=1 / VARIANCE)
    log_mass = top.value + 0.5 * float((2 * math.pi / values).log().sum())
    return Mode(top.flat, (vectors / values) @ vectors.mT, log_mass)


def missed(target: Target, labels: Labels, flat: Tensor, log_p: Tensor, begin: Tensor | None = None) -> float:
    """The share of the mass, by Laplace's approximation, that modes hold which no draw flat [S, d] is near.

    A mode that draws climb to counts by the mass that is seen to be there: the neck of a funnel has little, for its peak.
    `log_p` [S]: the density of the draws, which with a normal distribution fitted to them says what mass they stand for.
    `begin` [B, d]: where climbs begin; when None at draws of the prior, around zero and at draws of flat.
    """
    if len(flat) <= target.d:
        return 0.0
    known = student.normal(flat)
    if not (labels.counted or labels.keep(known)):  # what looks like another mode may be another labelling
        return 0.0
    mass = float((log_p - known.log_prob(flat)).median())
    if begin is None:
        found = search(target, labels, prior(target), flat[torch.linspace(0, len(flat) - 1, STARTS).long()])
    else:
        found = _polished(target, list(begin))
    found = [m for m in found if m.log_mass - mass > math.log(SHARE / 2)]
    found = [m for m in found if not (_near(labels, m, flat) and _inside(known, labels.images(m.flat)))]
    if not found:
        return 0.0
    ends, _ = ascend(target, flat[torch.linspace(0, len(flat) - 1, DRAWS).long()])
    left = [(_held(target, m) if _near(labels, m, ends) else m.log_mass) - mass for m in found]
    return 1 - 1 / (1 + sum(math.exp(min(v, 700.0)) for v in left))


def _held(target: Target, mode: Mode) -> float:
    """What of a mode's mass is seen to be there, nats: the mean of weights of draws about it, none of them above its mass."""
    normal = torch.distributions.MultivariateNormal(mode.flat, scale_tril=student.factor(mode.covariance))
    generator = torch.Generator().manual_seed(target.task.seed)
    noise = torch.randn(WEIGHED, len(mode.flat), generator=generator, dtype=torch.float64)
    flat = mode.flat + noise @ normal.scale_tril.mT
    log_weights = (target.log_density(flat) - normal.log_prob(flat)).clamp(max=mode.log_mass)
    return float(log_weights.logsumexp(0)) - math.log(WEIGHED)


def _near(labels: Labels, mode: Mode, flat: Tensor) -> bool:
    """Whether a point of flat [S, d] is where draws of the mode's normal distribution would be, in any labelling."""
    normal = torch.distributions.MultivariateNormal(mode.flat, scale_tril=student.factor(mode.covariance))
    return any(_inside(normal, flat + mode.flat - image) for image in labels.images(mode.flat))


def _inside(normal: torch.distributions.MultivariateNormal, flat: Tensor) -> bool:
    """Whether a point of flat [S, d] is as near to the mean as nearly all draws are."""
    away, d = torch.linalg.solve_triangular(normal.scale_tril, (flat - normal.mean).mT, upper=False), flat.shape[1]
    return float(away.square().sum(0).min()) <= d + 4 * math.sqrt(2 * d)
