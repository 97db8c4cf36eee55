"""The log-likelihood of an exact program as a surface over free numbers: its gradient without a pass of its own, and a climb.

Fisher's identity: the gradient of log p(x; θ) is that of the expected complete log joint at the same θ, which an E-step's
sums give. So one E-step is value and gradient, and L-BFGS climbs where EM is slow, and tells whether EM's end is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from inference._exact.engine import Statistics
from inference._families._family import Floor
from inference._method.task import Task
from inference._numerics.coordinates import Coordinates
from inference._numerics.lbfgs import Memory

HALVINGS = 15
FLATTEST = 1e-8  # a share of the stiffest curvature: a direction that bends less is taken for the program's own freedom
ALIKE = 1e-12  # the difference of coordinates up to which they are the same
MOST_ALIKE = 1000  # parts of a parameter that are held against each other
TINY = 1e-4  # of a coordinate's step to where its curvature is read off
NEWTON = 60  # coordinates up to which a Hessian is formed
NEWTON_NUMBERS = 1_000_000  # of rows × joint values × coordinates


@dataclass
class Spot:
    """A point of the surface: log p(x, globals; θ), its gradient [d], and the sums of the E-step there."""

    u: Tensor
    value: float
    gradient: Tensor
    stats: Statistics


class Surface:
    """log p(x, globals; θ) over the unconstrained coordinates [d] of all θ and the globals."""

    def __init__(self, task: Task, globals: dict[str, Tensor], floor: Floor, least: float = 0.0) -> None:
        """`least`: the smallest share of the data's variance that a variance may come to; 0 for `floor`'s own."""
        self.task, self.exact, self.floor = task, task.engine, floor
        self.least = 0.999 * (least or floor.least(task.x.dtype))
        self.numeric = False  # whether parameters without a closed form may stand still for their units' sake
        self.names = list(globals)
        values = {**self.task.theta(), **globals}
        self.supports = {**task.program.constraints, **task.global_supports}
        self.layout = Coordinates(values, self.supports)

    def split(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values → (θ, globals)."""
        theta = {n: v for n, v in values.items() if n not in self.names}
        return theta, {n: values[n] for n in self.names}

    def here(self, stats: Statistics, value: float, globals: dict[str, Tensor]) -> Spot:
        """Where the program stands, whose E-step gave `stats` and `value`."""
        return self.of(self.task.theta(), stats, value, globals)

    def of(self, theta: dict[str, Tensor], stats: Statistics, value: float, globals: dict[str, Tensor]) -> Spot:
        """The surface at a θ whose E-step gave `stats` and `value`."""
        u = self.layout.flatten({**theta, **globals})
        return Spot(u, value, self._gradient(u, stats, globals), stats)

    def put(self, u: Tensor) -> dict[str, Tensor]:
        """Give the program the θ of `u`; returns the globals."""
        theta, globals = self.split({n: v.detach() for n, v in self.layout.unflatten(u).items()})
        self.task.program.assign(theta)
        return globals

    def spot(self, u: Tensor) -> Spot | None:
        """The surface at `u` [d]; None outside the program's domain, or where a variance is lost in rounding."""
        try:
            globals = self.put(u)
            stats = self.exact.e_step(globals)
            value = stats.log_joint
            if not abs(value) < torch.inf or self.exact.smallest(stats) < self.least:
                return None
            return Spot(u, value, self._gradient(u, stats, globals), stats)
        except (ArithmeticError, ValueError, RuntimeError):
            return None

    def _gradient(self, u: Tensor, stats: Statistics, globals: dict[str, Tensor]) -> Tensor:
        if not self.layout.d:
            return torch.zeros(0)
        weights = self.exact.responsibilities(None, globals) if stats.need_responsibilities else None
        with torch.enable_grad():
            free = u.detach().clone().requires_grad_()
            expected = self.exact.expected(stats, *self.split(self.layout.unflatten(free)), weights)
            return torch.nan_to_num(torch.autograd.grad(expected, free)[0], 0.0, 0.0, 0.0)

    def free(self) -> Tensor:
        """1.0 for the coordinates that may move [d], 0.0 for those of variances that rest on the floor."""
        parts = []
        for name, shape in self.layout.shapes.items():
            mask = torch.ones(shape.numel(), dtype=self.task.x.dtype)
            resting = self.floor.resting.get(name)
            if resting is not None and resting.any():
                mask = (~resting).to(mask) if resting.numel() == mask.numel() else torch.zeros_like(mask)
            parts.append(mask)
        return torch.cat(parts) if parts else torch.zeros(0)

    # ------------------------------------------------------------------------------------------------- is it flat?

    @torch.no_grad()
    def remaining(self, now: Spot, before: Spot | None) -> float:
        """How many nats Newton's rule promises along EM's last move, the slow direction, and along the gradient."""
        mask, ahead = self.free(), 0.0
        if not self.layout.d:
            return 0.0
        if before is not None:
            move = mask * (now.u - before.u)
            slope, bend = float(now.gradient @ move), float((before.gradient - now.gradient) @ move)
            if abs(slope) > 1e-13 * (1 + abs(now.value)):
                ahead = slope**2 / (2 * bend) if bend > 0 else max(slope, 0.0)
        ahead = max(ahead, self.look(now, mask)[0])
        if self.numeric:
            ahead = max(ahead, self._look_in_units(now, mask)[0], self.newton(now, flattest=FLATTEST)[0])
        return ahead

    def _look_in_units(self, now: Spot, mask: Tensor) -> tuple[float, Tensor]:
        bends = self._bends(now)
        return (0.0, torch.zeros_like(mask)) if bends is None else self.look(now, mask, bends.rsqrt())

    def _bends(self, now: Spot) -> Tensor | None:
        """The expected complete log joint's curvature [d], one for each tensor, along the gradient; None where it has none.

        A tensor's own size says nothing of its unit where it is 0; this does, in whatever units the data are.
        """
        globals = self.split(self.layout.unflatten(now.u))[1]
        weights = self.exact.responsibilities(None, globals) if now.stats.need_responsibilities else None
        out = torch.ones_like(now.u)
        try:
            with torch.enable_grad():
                free = now.u.clone().requires_grad_()
                expected = self.exact.expected(now.stats, *self.split(self.layout.unflatten(free)), weights)
                (slope,) = torch.autograd.grad(expected, free, create_graph=True)
                for place in self._places():
                    way = slope[place].detach()
                    if float(size := way.square().sum()) > 0:
                        (along,) = torch.autograd.grad(slope[place] @ way, free, retain_graph=True)
                        out[place] = -(along[place] @ way) / size
        except (ArithmeticError, ValueError, RuntimeError):
            return None
        return out if bool((out.isfinite() & (out > 0)).all()) else None

    def look(self, now: Spot, mask: Tensor, sizes: Tensor | None = None) -> tuple[float, Tensor]:
        """What Newton's rule promises along the gradient, nats, and the step there [d], from the slope a little way on.

        It sees what EM's own steps hide: a direction in which the latents know almost everything, and the data little.
        `sizes` [d] of the coordinates, else those of `_sizes`.
        """
        sizes = self._sizes(now) if sizes is None else sizes
        way = mask * sizes.square() * now.gradient
        longest = float((way / sizes).abs().max()) if len(way) else 0.0
        if not 0 < longest < torch.inf:
            return 0.0, torch.zeros_like(way)
        ahead = self.spot(now.u + 1e-4 / longest * way)
        self.put(now.u)
        if ahead is None:
            return 0.0, torch.zeros_like(way)
        slope = float(now.gradient @ way)
        bend = float((now.gradient - ahead.gradient) @ way) / (1e-4 / longest)
        if not bend > 0:  # still steeper further on: at least as far as the unit goes
            return slope / longest, way / longest
        return slope**2 / (2 * bend), slope / bend * way

    def newton(self, spot: Spot, flattest: float = 1e-13) -> tuple[float, Tensor]:
        """What Newton's rule promises in all directions at once, nats, and its step [d]; nothing where that costs too much.

        Of a nearly singular posterior the latents know a direction 10⁹ times better than the data do: neither EM's steps nor
        the gradient, whose last digits belong to the stiff directions, show that it is not at its top.
        """
        none = 0.0, torch.zeros_like(spot.u)
        if not 0 < self.layout.d <= NEWTON or self.layout.d * self.exact.size > NEWTON_NUMBERS:
            return none

        def evidence(u: Tensor) -> Tensor:
            total, prior = self.exact.log_evidence(*self.split(self.layout.unflatten(u)))
            return total + prior

        try:
            with torch.enable_grad():
                bend = -torch.autograd.functional.hessian(evidence, spot.u)
                (slope,) = torch.autograd.functional.jacobian(evidence, (spot.u,))
        except (ArithmeticError, ValueError, RuntimeError):
            return none
        unit = self.free() * bend.diagonal().abs().clamp(min=1e-300).rsqrt()
        scaled = unit[:, None] * bend * unit
        try:
            values, vectors = torch.linalg.eigh(scaled)
        except torch.linalg.LinAlgError:  # a Hessian that is not finite, where nothing can be promised
            return none
        along = vectors.mT @ (unit * slope)
        known = values > flattest * len(values)  # the others are the program's own freedom, a rotation of its latents
        if not bool(values.isfinite().all()) or not known.any():
            return none
        step = torch.where(known, along / values.clamp(min=1e-300), torch.zeros_like(along))
        return 0.5 * float(along @ step), unit * (vectors @ step)

    def aside(self, spot: Spot, begin: dict[str, Tensor]) -> Spot | None:
        """A point half a nat or so aside of a flat spot, in what did not move from `begin` or is alike; None without such.

        A start that is symmetric has no slope, and leads to a saddle: a column of loadings that begins at 0 stays there, and
        components that begin alike stay alike.
        """
        moved = (spot.u - self.layout.flatten(begin)).abs() > ALIKE
        for shape, place in zip(self.layout.shapes.values(), self._places(), strict=True):
            for axis in [a for a, size in enumerate(shape) if len(place) and size <= MOST_ALIKE]:
                parts = place.reshape(shape).movedim(axis, 0)
                rows = spot.u[parts].reshape(len(parts), -1)
                moved[parts[(torch.cdist(rows, rows, p=torch.inf) <= ALIKE).sum(0) > 1]] = False
        way = torch.randn(len(moved), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        way = self.free() * ~moved * way.to(spot.u)
        if not bool(way.any()) or (near := self.spot(spot.u + TINY * way)) is None:
            return None
        bend = abs(float((near.gradient - spot.gradient) @ way)) / TINY
        return self.spot(spot.u + bend**-0.5 * way) if bend > FLATTEST else None

    def _sizes(self, spot: Spot) -> Tensor:
        """The size of each coordinate [d]: 1 for logarithms and the like, its tensor's own for a real number."""
        out = torch.ones_like(spot.u)
        for name, place in zip(self.layout.shapes, self._places(), strict=True):
            if _is_real(self.supports[name]) and len(place):
                out[place] = spot.u[place].square().mean().sqrt().clamp(min=1e-12)
        return out

    def _places(self) -> list[Tensor]:
        return list(torch.split(torch.arange(self.layout.d), list(self.layout.sizes.values())))

    # ------------------------------------------------------------------------------------------------------- climb

    @torch.no_grad()
    def climb(self, before: Spot, spot: Spot, iterations: int, enough: float, note: Callable[[float], None]) -> Spot:
        """The best point found by L-BFGS from `spot`, where a step of EM led from the point `before`.

        EM's step shows each coordinate's unit: step and slope together say how far one nat goes, whatever the units.
        Ends where a Newton step would gain less than `enough` nats. `note` hears of every value on the way.
        """
        scale = self.free() * _units(spot.u - before.u, before.gradient, self._places())
        memory = Memory(flattest=1e-12)
        for _ in range(iterations):
            slope = scale * spot.gradient
            way = memory.times(slope)
            rise = float(way @ slope)
            step = scale * way
            if 0.5 * rise < enough or not rise > 0:
                gain, step = self.look(spot, (scale > 0).to(scale))
                if gain < enough and self.numeric:
                    gain, step = self._look_in_units(spot, (scale > 0).to(scale))
                if gain < enough:
                    break
                rise = float(step @ spot.gradient)
            found = self.along(spot, step, rise)
            if found is None:
                if not memory:
                    break
                memory.clear()
                continue
            step, change = (found.u - spot.u) / scale.clamp(min=1e-300), slope - scale * found.gradient
            step = torch.where(scale > 0, step, torch.zeros_like(step))
            memory.add(step, change)
            spot = found
            note(spot.value)
        return spot

    def along(self, spot: Spot, way: Tensor, rise: float) -> Spot | None:
        """A point along `way` that is higher by a share of what the slope promises; None where none is found."""
        t = 1.0
        for _ in range(HALVINGS):
            found = self.spot(spot.u + t * way)
            if found is not None and found.value >= spot.value + 1e-4 * t * rise:
                return found
            if found is None:
                t *= 0.25
                continue
            bend = 2 * (spot.value + t * rise - found.value) / t**2
            t = min(0.5 * t, max(0.05 * t, rise / bend)) if bend > 0 else 0.5 * t
        return None


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return type(support) is type(constraints.real)


def _units(step: Tensor, gradient: Tensor, places: list[Tensor]) -> Tensor:
    """√(step / slope) of each coordinate [d]; where either is 0, what is usual among its tensor's."""
    ratio = (step.abs() / gradient.abs()).sqrt()
    out = torch.ones_like(ratio)
    for place in places:
        mine = ratio[place]
        good = mine.isfinite() & (mine > 0)
        usual = mine[good].median() if good.any() else torch.ones(()).to(mine)
        out[place] = torch.where(good, mine, usual)
    return out


class Leap:
    """SQUAREM: from three points in a row, extrapolate where slow steps are heading (Varadhan & Roland 2008, scheme S3).

    Where the log-likelihood there is lower than it was, or falls at the next M-step (whose floor the leap went under),
    `back` takes the plain step instead, and the next leap is shorter.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.fresh, self.since = task, 0, 0
        self.points: list[Tensor] = []
        self.length, self.longest = 1.0, math.inf
        self.plain: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    def after(self, globals: dict[str, Tensor], allowed: bool) -> dict[str, Tensor]:
        """Note the point that an M-step led to; on every third, move on from it. Returns the globals to continue with."""
        self.fresh, self.since = max(0, self.fresh - 1), self.since + 1
        theta = self.task.theta()
        supports = {**self.task.program.constraints, **self.task.global_supports}
        layout = Coordinates({**theta, **globals}, supports)
        self.points.append(layout.flatten({**theta, **globals}))
        if len(self.points) < 3:
            return globals
        first, second, third = self.points
        self.points = []
        step, bend = second - first, third - 2 * second + first
        if not allowed or not bool(third.isfinite().all()) or not float(bend.norm()) > 0:
            return globals
        if self.length >= self.longest:  # as long as was allowed, and it was not taken back
            self.longest *= 4
        length = self.length = min(max(1.0, float(step.norm() / bend.norm())), self.longest)
        values = layout.unflatten(first + 2 * length * step + length**2 * bend)
        if not all(bool(v.isfinite().all()) for v in values.values()):
            return globals
        self.plain, self.fresh, self.since = (theta, globals), 2, 0
        self.task.program.assign({n: values[n] for n in theta})
        return {n: values[n] for n in globals}

    def back(self, objective: list[float]) -> dict[str, Tensor]:
        """Undo the leap, and what it left in the list of log-likelihoods."""
        del objective[len(objective) - self.since :]
        self.fresh, self.points = 0, []
        self.longest, self.length = max(1.0, self.length / 4), 1.0
        self.task.program.assign(self.plain[0])
        return self.plain[1]
