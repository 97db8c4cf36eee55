"""EM's climb: steps of EM, leaps, and L-BFGS or Newton steps where those are slow, until nothing is left to gain."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import transform_to

from inference._exact.engine import Statistics
from inference._families._family import Floor
from inference._families._prior import smallest_spread
from inference._method.progress import Step
from inference._method.start import FLOOR, check_rise
from inference._method.task import Task
from inference._training.ascent import Leap, Spot, Surface
from zoo._errors import UsageError

PLAIN_ITERATIONS = 20
SLOW = 60  # iterations after which L-BFGS takes over for a while
NUMERIC = 5  # the same where an M-step is itself many steps
CLIMB = 200  # of its iterations at a time
LOOK = 8  # iterations between two looks at whether θ is still what the closed forms take it for
STIFF = 1e-5  # a share of the data's variance: where a smaller one is about, EM may stand still far from the top
NO_FLOOR = 1e-10  # a share of the data's variance: where nothing bounds a smaller one, it is on its way to 0
NEWTON_STEPS = 20
WAITS = 50
ASIDE = 100  # steps at most from a little aside of a flat spot
BORDER = "a variance goes to 0 there, and the density grows without bound"
ENOUGH = 1e-4  # nats: where no more than this is left to gain, the climb has converged


@dataclass(frozen=True)
class Options:
    max_iter: int
    tol: float
    accelerate: bool
    step: Step


@dataclass
class Climb:
    globals: dict[str, Tensor]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    objective: list[float] = field(default_factory=list)  # log p(x, globals; θ) before each M-step and at the end
    counts: Tensor | None = None
    iterations: int = 0
    converged: bool = False
    floor: Floor = field(default_factory=lambda: Floor(FLOOR, set()))
    closed: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    starts: dict[str, float] = field(default_factory=dict)
    left: float = 0.0  # nats that are still to be gained, where that was estimated
    stuck: str = ""  # why it ended before it converged


class _Kept(NamedTuple):  # where a climb was
    free: dict[str, Tensor]  # θ in unconstrained coordinates
    globals: dict[str, Tensor]
    stats: Statistics
    held: set[tuple[str, int]]  # of the floor


class _Lost(Exception):
    """The climb has to stop; the program stands where it was before the step. The message says why."""


def climb_by_em(task: Task, climb: Climb, options: Options) -> Climb:
    state = _State(task, climb, options)
    while not (state.at_the_top() or climb.stuck) and climb.iterations < options.max_iter:
        try:
            if state.slow():
                state.climb()
            else:
                state.step()
        except _Lost as lost:
            climb.stuck = str(lost)
            break
    climb.counts = state.stats.counts
    climb.closed = tuple(state.how.closed)
    climb.numeric = state.how.by_steps(state.globals)
    climb.globals = state.globals
    climb.parameters = task.theta()
    return climb


class _State:
    """Where a climb stands: θ in the program, the globals, and the sums of the E-step there."""

    def __init__(self, task: Task, climb: Climb, options: Options) -> None:
        self.task, self.record, self.options, self.floor = task, climb, options, climb.floor
        self.exact, self.globals = task.engine, climb.globals
        self.begin = {**task.theta(), **self.globals}
        self.aside = False  # whether it looked aside of a flat spot
        self.how = task.plan(self.globals)
        self.leap = Leap(task)
        self.stats, value = self._e_step()
        climb.objective.append(value)
        if not math.isfinite(value):
            why = "some rows have zero density there. Start from other values."
            if math.isnan(value):
                why = (
                    "a site has no density there, for some rows or some values of a latent. Keep the parameters of its "
                    "distribution within their bounds at all of them, those of probability 0 too."
                )
            raise UsageError(f"em: log p(x) is {value} at the start values: {why}")
        self.surface: Surface | None = None
        self.last: _Kept | None = None  # where it was before the last step
        self.futile = self.waits = 0  # climbs by L-BFGS that led nowhere, and small steps where the slope was not small
        self.next_climb = NUMERIC if self.how.by_steps(self.globals) else SLOW

    def _e_step(self) -> tuple[Statistics, float]:
        return (stats := self.exact.e_step(self.globals)), stats.log_joint

    def _m_step(self) -> None:
        needed = self.stats.need_responsibilities
        weights = self.exact.responsibilities(None, self.globals) if needed else None
        self.floor.clear()
        self.globals = self.task.m_step(self.how, self.stats, self.globals, self.floor, weights)

    def _spot(self) -> Spot:
        if self.surface is None:
            self.surface = Surface(self.task, self.globals, self.floor, self._least())
        self.surface.numeric = bool(self.how.by_steps(self.globals))
        return self.surface.here(self.stats, self.record.objective[-1], self.globals)

    # ------------------------------------------------------------------------------------------------- one iteration

    def step(self, leap: bool = True) -> None:
        """One M-step and E-step; with a leap now and then, which is taken back where it does not raise the likelihood."""
        climb, kept, moved = self.record, self._keep(), False
        climb.iterations += 1
        try:
            self._m_step()
            if leap and self.options.accelerate and climb.iterations > PLAIN_ITERATIONS:
                self.globals, moved = self.leap.after(self.globals, allowed=not self.floor.reached), True
            stats, value = self._e_step()
            look = climb.iterations % LOOK == 0 or climb.iterations < LOOK
            wrong = self.exact.broken(self.how, stats) if look else []
        except (ArithmeticError, ValueError, RuntimeError) as error:
            if self.leap.fresh:
                self._take_back(kept, drop=0 if moved else 1)
                return
            self._restore(kept)
            if isinstance(error, UsageError) or climb.iterations == 1:
                raise
            raise _Lost("a covariance is so nearly singular that the next step fails in floating point") from error
        self._judge(kept, stats, value, wrong)

    def _judge(self, kept: _Kept, stats: Statistics, value: float, wrong: list[str]) -> None:
        """Keep a step, or undo it."""
        last, done = self.record.objective[-1], self.record.iterations
        if self.leap.fresh:
            if wrong or self.floor.fell or not value >= last:
                self._take_back(kept)
                return
        elif wrong := wrong or self._no_copies(last - value):
            self._restore(kept)
            self._make_numeric(wrong)
            return
        elif not self.floor.fell * math.isfinite(value) and not check_rise(self.task, stats, last, value, done):
            self._restore(kept)
            raise _Lost("the likelihood falls at the next step, by rounding in a nearly singular covariance")
        if self._at_the_border(stats):
            self._restore(kept)
            raise _Lost(BORDER)
        if self.floor.fell:  # a variance that had collapsed was raised to the floor: from here it is another climb
            self.record.objective.clear()
            self.leap = Leap(self.task)
        self.last = None if self.floor.fell else kept
        self._accept(stats, value)

    def _no_copies(self, fell: float) -> list[str]:
        """The parameters that have no closed form where a step `fell` by so many nats: there they enter in other places too."""
        copies = self.exact.plan(self.globals).copies if 1e-8 < fell < math.inf else self.how.copies
        return [n for n in self.how.copies if n not in copies]

    def _make_numeric(self, wrong: list[str]) -> None:
        """The closed form led to where these θ are no longer the copies that they were taken for."""
        self.task.numeric.update(wrong)
        self.how = self.task.plan(self.globals)

    def _at_the_border(self, stats: Statistics) -> bool:
        """Whether a variance that no M-step in closed form bounds is lost in rounding, or nearly; or a prior's is."""
        gone = [bool((self.globals[n] <= smallest_spread(self.how.priors[n])).any()) for n in self.how.hypers]
        return any(gone) or self.exact.smallest(stats) < 4 * self._least()

    def _least(self) -> float:
        """The smallest share of the data's variance that a climb may come to without a closed form."""
        return NO_FLOOR if self.how.numeric or self.globals else 0.0

    def _accept(self, stats: Statistics, value: float) -> None:
        self.stats = stats
        self.record.objective.append(value)
        self.options.step(note=f"log p(x) {value:.4f}")

    def _take_back(self, kept: _Kept, drop: int = 0) -> None:
        """Undo a leap: on from the plain step that it had set out from."""
        del self.record.objective[len(self.record.objective) - drop :]
        self.floor.clear()
        self.floor.held = kept.held
        self.globals, self.last = self.leap.back(self.record.objective), None
        self._accept(*self._e_step())

    def _keep(self) -> _Kept:
        free = {n: p.detach().clone() for n, p in self.task.program.unconstrained().items()}
        return _Kept(free, self.globals, self.stats, set(self.floor.held))

    @torch.no_grad()
    def _restore(self, kept: _Kept) -> None:
        self.globals, self.stats, self.floor.held = kept.globals, kept.stats, kept.held
        for name, parameter in self.task.program.unconstrained().items():
            parameter.copy_(kept.free[name])

    # -------------------------------------------------------------------------------------------------- when to end

    def at_the_top(self) -> bool:
        """Whether the last change is small, and nothing that matters is left to be gained."""
        climb, tol = self.record, self.options.tol
        if len(climb.objective) < 2:
            return False
        before, now = climb.objective[-2:]
        if abs(now - before) > tol * abs(before):
            return False
        if wrong := self.exact.broken(self.how, self.stats):
            self._make_numeric(wrong)
            return False
        spot = self._spot()
        assert self.surface is not None
        earlier = None
        if self.last is not None and not self.stats.need_responsibilities:
            theta = {n: transform_to(self.task.program.constraints[n])(u) for n, u in self.last.free.items()}
            earlier = self.surface.of(theta, self.last.stats, before, self.last.globals)
        climb.left = self.surface.remaining(spot, earlier)
        if climb.left > ENOUGH and self.surface.numeric and self.options.accelerate:
            self._newton(spot)
            climb.left = self.surface.remaining(self._spot(), None)
        if climb.left <= ENOUGH and self.options.accelerate and self.exact.smallest(self.stats) < STIFF:
            climb.left = self._newton(spot)
        self.waits += 1
        climb.converged = climb.left <= max(ENOUGH, 100 * tol * abs(now))
        if climb.converged:
            climb.converged = self.aside or not self._leaves_a_saddle()
        else:
            self.next_climb = min(self.next_climb, climb.iterations)
            if self.futile > 1 or self.waits > WAITS:
                climb.stuck = f"its steps gain nothing more, although the gradient promises {climb.left:.2g} nats"
        return climb.converged

    def _leaves_a_saddle(self) -> bool:
        """Whether a way leads further up that EM's own steps miss: what has not moved from its start may be at a saddle."""
        self.aside = True
        if self.exact.is_highest(self.how, self.stats, ENOUGH):
            return False
        kept, top = self._keep(), self.record.objective[-1]
        for way in (self._to_the_highest, self._from_aside):
            reached = way(top)
            if top + ENOUGH < reached < math.inf:
                self.last, self.leap = None, Leap(self.task)
                self._note(reached)
                return True
            self._restore(kept)
        return False

    def _to_the_highest(self, top: float) -> float:
        """log p(x) at the top, where that is known without a climb."""
        theta = None if self.floor.held else self.exact.highest(self.how, self.floor)
        if theta is None:
            return -math.inf
        self.task.program.assign(theta)
        self.stats, value = self._e_step()
        return value

    def _from_aside(self, top: float) -> float:
        """log p(x) after steps of EM from a little aside, as long as they climb and come no higher than the `top`."""
        assert self.surface is not None
        spot, reached = self.surface.aside(self._spot(), self.begin), -math.inf
        if spot is not None:
            self.globals, self.stats, value = self.surface.put(spot.u), spot.stats, spot.value
            with contextlib.suppress(ArithmeticError, ValueError, RuntimeError):
                for _ in range(ASIDE):
                    self._m_step()
                    before, (self.stats, value) = value, self._e_step()
                    if not before + 0.01 * ENOUGH < value <= top + ENOUGH:
                        break
                reached = value
        return reached

    def _newton(self, spot: Spot) -> float:
        """Newton steps while they gain; what the last look promised, nats."""
        assert self.surface is not None
        for _ in range(NEWTON_STEPS):
            left, step = self.surface.newton(spot)
            if left <= 0.01 * ENOUGH or self.record.iterations >= self.options.max_iter:
                break
            found = self.surface.along(spot, step, 2 * left)
            if found is None:
                self.surface.put(spot.u)
                break
            spot = found
            self.globals, self.stats, self.last = self.surface.put(spot.u), spot.stats, None
            self.leap = Leap(self.task)
            self._note(spot.value)
        return left

    def slow(self) -> bool:
        """Whether L-BFGS should have a try."""
        return self.options.accelerate and self.record.iterations >= self.next_climb

    def climb(self) -> None:
        """A step of EM, then L-BFGS as far as it gets; EM continues from there."""
        climb = self.record
        if self.leap.fresh:
            self.leap = Leap(self.task)  # the leap has been judged by its own E-step
        before = self._spot()
        assert self.surface is not None
        self.step(leap=False)
        left = min(CLIMB, self.options.max_iter - climb.iterations)
        if not self.floor.fell and left > 0:
            enough = 0.01 * max(ENOUGH, self.options.tol * abs(before.value))
            found = self.surface.climb(before, self._spot(), left, enough, self._note)
            self.globals, self.stats, self.last = self.surface.put(found.u), found.stats, None
            self.leap = Leap(self.task)
            if self.exact.smallest(self.stats) < STIFF:
                self._newton(found)
            self.futile = self.futile + 1 if found.value - before.value < ENOUGH else 0
        self.next_climb = climb.iterations + SLOW

    def _note(self, value: float) -> None:
        self.record.iterations += 1
        self.record.objective.append(value)
        self.options.step(note=f"log p(x) {value:.4f}")
