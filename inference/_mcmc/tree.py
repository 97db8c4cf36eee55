"""One transition of the No-U-Turn sampler, as a generator that asks for log-densities and gradients where it needs them.

Hoffman & Gelman 2014; states are chosen in proportion to their density, the later half of a trajectory preferred, and a
trajectory is also ended by a turn between its halves (Betancourt 2017, "A Conceptual Introduction to Hamiltonian Monte
Carlo", as in Stan). The metric is the identity: whoever walks has scaled the coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Answer = tuple[float, np.ndarray]  # log-density and gradient [d]
DIVERGED = 1000.0  # nats of energy that a step may lose at most


class Point(NamedTuple):
    """Where a chain is: coordinates [d], log-density there and its gradient [d]."""

    q: np.ndarray
    log_p: float
    gradient: np.ndarray


class End(NamedTuple):
    """One end of a trajectory."""

    point: Point
    momentum: np.ndarray


@dataclass(slots=True)
class _Tree:
    """A piece of a trajectory, from its first state to its last in the direction in which it grew."""

    first: np.ndarray  # momenta
    last: End
    total: np.ndarray  # of all momenta
    weight: float  # log of the sum of the states' densities, by that of the beginning
    chosen: Point
    energy: float  # of the chosen state


@dataclass(slots=True)
class Told:
    """What a transition says of itself."""

    steps: int = 0
    accepted: float = 0.0  # sum over the steps of how acceptable each is
    diverging: bool = False
    depth: int = 0
    energy: float = 0.0

    @property
    def acceptance(self) -> float:
        """The mean acceptance probability of the trajectory's states."""
        return self.accepted / max(1, self.steps)


Walk = Generator[np.ndarray, Answer, tuple[Point, Told]]
_Grown = Generator[np.ndarray, Answer, _Tree | None]


def transition(begin: Point, step: float, generator: np.random.Generator, max_depth: int) -> Walk:
    """Where the chain goes from `begin`, and what is to be said of the way there."""
    momentum = generator.standard_normal(len(begin.q))
    told = Told(energy=-begin.log_p + 0.5 * float(momentum @ momentum))
    start = -told.energy
    ends = [End(begin, momentum), End(begin, momentum)]  # backward, forward
    total, weight, chosen = momentum, 0.0, begin
    while told.depth < max_depth:
        forward = int(generator.random() < 0.5)
        grown = yield from _grow(ends[forward], told.depth, (2 * forward - 1) * step, start, generator, told)
        if grown is None:
            break
        told.depth += 1
        if math.log(1 - generator.random()) < grown.weight - weight:
            chosen, told.energy = grown.chosen, grown.energy
        weight = _log_add(weight, grown.weight)
        other, near = ends[1 - forward].momentum, ends[forward].momentum
        whole = total + grown.total
        turned = (
            _turned(whole, other, grown.last.momentum)
            or _turned(total + grown.first, other, grown.first)
            or _turned(grown.total + near, near, grown.last.momentum)
        )
        ends[forward], total = grown.last, whole
        if turned:
            break
    return chosen, told


def _grow(end: End, depth: int, step: float, start: float, generator: np.random.Generator, told: Told) -> _Grown:
    """2^depth further states from an end; None where they turn, or the energy is lost, and the trajectory ends before them."""
    if depth == 0:
        return (yield from _leap(end, step, start, told))
    one = yield from _grow(end, depth - 1, step, start, generator, told)
    if one is None:
        return None
    two = yield from _grow(one.last, depth - 1, step, start, generator, told)
    if two is None:
        return None
    total, weight = one.total + two.total, _log_add(one.weight, two.weight)
    if (
        _turned(total, one.first, two.last.momentum)
        or _turned(one.total + two.first, one.first, two.first)
        or _turned(two.total + one.last.momentum, one.last.momentum, two.last.momentum)
    ):
        return None
    chosen = two if math.log(1 - generator.random()) < two.weight - weight else one
    return _Tree(one.first, two.last, total, weight, chosen.chosen, chosen.energy)


def _leap(end: End, step: float, start: float, told: Told) -> _Grown:
    point = end.point
    half = end.momentum + (0.5 * step) * point.gradient
    q = point.q + step * half
    log_p, gradient = yield q
    momentum = half + (0.5 * step) * gradient
    gain = log_p - 0.5 * float(momentum @ momentum) - start
    if math.isnan(gain):
        gain = -math.inf
    told.steps += 1
    told.accepted += math.exp(min(0.0, gain))
    if gain < -DIVERGED:
        told.diverging = True
        return None
    return _Tree(
        momentum, End(Point(q, log_p, gradient), momentum), momentum, gain, Point(q, log_p, gradient), -gain - start
    )


def _turned(total: np.ndarray, first: np.ndarray, last: np.ndarray) -> bool:
    """Whether going on at either end would bring the ends nearer."""
    return float(total @ first) <= 0 or float(total @ last) <= 0


def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high + math.log1p(math.exp(low - high)) if high > -math.inf else high


def first_step(begin: Point, generator: np.random.Generator) -> Generator[np.ndarray, Answer, float]:
    """A step whose acceptance probability is about 0.8: doubled or halved from 1 until it crosses that."""
    momentum = generator.standard_normal(len(begin.q))
    start = begin.log_p - 0.5 * float(momentum @ momentum)
    step, direction = 1.0, 0
    for _ in range(60):
        grown = yield from _leap(End(begin, momentum), step, start, Told())
        now = 1 if grown is not None and grown.weight > math.log(0.8) else -1
        if direction not in (0, now):
            break
        direction = now
        step *= 2.0**direction
    return step
