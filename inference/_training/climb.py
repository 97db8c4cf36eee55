"""The bound climbed by L-BFGS with its draws held fixed, twice as many each time until that gains nothing.

With M draws the place found is off by chance, and the bound there is lower than it could be by about c/M. So twice the draws
gain c/2M, and leave as much: that gain, measured by draws that neither place was found with, says how far the bound still is
from its best. It needs no guess of a learning rate, and no luck to know when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

import guides
from guides import Derived, free_shape
from inference._method.progress import Step
from inference._method.task import Task
from inference._numerics.lbfgs import Memory
from inference._training.elbo import Objective
from inference._training.fixed_draws import FixedDraws, Given, Noise
from zoo._program.structure import Site
from zoo._program.trace import local_log_prob, node_of

FIRST = 32  # draws
MOST = 4096
EFFORT = 2**26  # numbers in an evaluation
ALLOWED = 0.03  # nats for each global latent site that the last doubling may gain
PRIOR_DRAWS = 500  # of each local latent
IMITATION = 300  # iterations at most, with FIRST // 2 draws
CHECKS = 1024  # draws that the gain is measured by
LONG = 500  # iterations on the same draws
SHORT = 30  # iterations of the first ascent, after which the scales are set by the curvature


@dataclass
class Outcome:
    """How a climb ended: the bound at each iteration (nats), what the last doubling of the draws gained, and by how many."""

    trace: list[float] = field(default_factory=list)
    converged: bool = False
    draws: int = 0
    gain: float | None = None
    gain_se: float | None = None
    lacks: float | None = None  # nats of what a q of its own for each row reaches


def climb(
    task: Task,
    guide: nn.Module,
    modules: Mapping[str, nn.Module],
    fixed: FixedDraws,
    iterations: int,
    step: Step,
) -> Outcome:
    """Maximise the bound over the parameters of `modules`, by at most so many iterations of L-BFGS in all.

    An encoder of continuous latents is slow to climb through. So there a q for each row climbs first, the encoder learns
    from it, and both climb on; how much the encoder then lacks tells whether it reached its best.
    """
    units = at_the_prior(task, guide)
    scales_from_curvature(fixed, guide, torch.Generator().manual_seed(task.seed))
    if not (task.structure.continuous_locals and _is_encoder(guide)) or task.structure.discrete_locals:
        return _doubled(task, guide, modules, fixed, units, iterations, step)
    fresh = fixed.draw(affordable(fixed, CHECKS), torch.Generator().manual_seed(task.seed + 2))
    free = _free(task, guide)
    by_rows = FixedDraws(task, free)
    first = _doubled(task, free, {**modules, "guide": free}, by_rows, at_the_prior(task, free), iterations, step)
    best = by_rows.all_values(fresh)
    guide.free.load_state_dict(free.free.state_dict())
    _imitate(task, free, guide, by_rows, units, step)
    out = _doubled(task, guide, modules, fixed, units, max(1, iterations - len(first.trace)), step)
    out.trace = [*first.trace, *out.trace]
    out.lacks, se = paired(best - fixed.all_values(fresh))
    out.converged &= out.lacks - 2 * se < allowed(task)
    return out


def _is_encoder(guide: nn.Module) -> TypeGuard[Derived]:
    return isinstance(guide, Derived) and guide.recipe["name"] == "amortized"


def _free(task: Task, guide: Derived) -> Any:
    """A guide with a q for each row, and the q of the globals that `guide` has."""
    globals = {n: guide.bijections[n](guide.loc(n).detach()) for n in guide.bijections}
    covariance = guide.covariance
    free = guides.make(
        "mean_field",
        task.structure,
        task.x,
        globals,
        guide.bijections,
        covariance=covariance,
        globals_covariance=guide.globals_covariance,
    )
    free.free.load_state_dict(guide.free.state_dict())
    return free


class Imitation:
    """What a guide thinks of another's draws: Σ_i log q(z_i | x_i) for each set of draws, nats."""

    def __init__(self, task: Task, guide: nn.Module) -> None:
        self.task, self.guide = task, guide

    def chunks(self, values: Noise) -> list[Noise]:
        """All at once: the program is not run."""
        return [values]

    def values(self, values: Noise) -> Tensor:
        """[draws], differentiable in the guide's parameters."""
        with pyro.validation_enabled(False):
            return torch.vmap(self._lane)(values)

    def _lane(self, values: Noise) -> Tensor:
        with self.task.program.settings():
            trace = pyro.poutine.trace(pyro.poutine.condition(self.guide, data=values)).get_trace(self.task.x)
        return local_log_prob(trace, self.task.structure.data_dim, len(self.task.x)).sum()


def _imitate(
    task: Task,
    teacher: nn.Module,
    guide: nn.Module,
    fixed: FixedDraws,
    units: Mapping[Tensor, Tensor],
    step: Step,
) -> None:
    """Fit the guide's q of the local latents to the teacher's, by the likelihood of the teacher's draws."""

    def lane(noise: Noise) -> Noise:
        with Given(noise), task.program.settings():
            trace = pyro.poutine.trace(teacher).get_trace(task.x)
        return {name: node_of(trace, name)["value"] for name in fixed.shapes}

    noise = fixed.draw(FIRST // 2, torch.Generator().manual_seed(task.seed))
    with torch.no_grad(), pyro.validation_enabled(False):
        drawn = torch.vmap(lane)(noise)
    Climb(Imitation(task, guide), {"guide": guide}, units).run(drawn, IMITATION, allowed(task), step)


def allowed(task: Task) -> float:
    """How many nats the bound may still have to gain where it counts as at its best."""
    return ALLOWED * max(1, len(task.structure.global_latents))


def _doubled(
    task: Task,
    guide: nn.Module,
    modules: Mapping[str, nn.Module],
    fixed: FixedDraws,
    units: Mapping[Tensor, Tensor],
    iterations: int,
    step: Step,
) -> Outcome:
    """Climb with twice as many draws each time until that gains nothing."""
    generator = torch.Generator().manual_seed(task.seed)
    fresh = fixed.draw(affordable(fixed, CHECKS), torch.Generator().manual_seed(task.seed + 1))
    most = affordable(fixed, MOST)
    out, M, before = Outcome(), min(most, _least_draws(guide)), None
    kept = Climb(fixed, modules, units).free
    while most >= M and len(out.trace) < iterations:
        ascent = Climb(fixed, modules, {**units, **_units(guide)})
        left = min(iterations - len(out.trace), SHORT if before is None else LONG)
        ended = ascent.run(fixed.draw(M, generator), left, allowed(task) / 30, step)
        out.trace += ascent.trace
        after, out.draws = _values(fixed, fresh), M
        by_heart = not bool(after.mean().isfinite())
        if before is not None and not by_heart:
            out.gain, out.gain_se = paired(after - before)
            if ended and abs(out.gain) + 2 * out.gain_se < allowed(task):
                out.converged = True
                break
            by_heart = out.gain < -allowed(task)
        if by_heart:  # so few draws were learned by heart: back to where it was, with many more
            ascent.restore(kept)
            M = 4 * M
            continue
        before, kept, M = after, ascent.free, 2 * M
    return out


def _values(fixed: FixedDraws, noise: Noise) -> Tensor:
    """The bound [draws], not a number where a draw has a matrix that cannot be factored."""
    try:
        return fixed.all_values(noise)
    except (ValueError, ArithmeticError, torch.linalg.LinAlgError):
        return torch.full((1,), math.nan)


def _least_draws(guide: nn.Module) -> int:
    """How many draws to begin with. A covariance that is to be found needs more of them than it has directions: along one
    that no draw shows, q would grow without end."""
    if not isinstance(guide, Derived) or guide.begun or guide.globals_covariance not in ("full", "flow"):
        return FIRST // 2
    return max(FIRST // 2, 4 * len(guide.globals_loc()))  # half of them are mirror images


def affordable(fixed: FixedDraws, most: int) -> int:
    """An even number of draws, at least 2 × FIRST, that an evaluation has the time for."""
    return 2 * (max(2 * FIRST, min(most, EFFORT // fixed.width)) // 2)


def paired(values: Tensor) -> tuple[float, float]:
    """The mean of values of draws and their mirror images, and its standard error."""
    pairs = values.double().reshape(2, -1).mean(0)
    return float(pairs.mean()), float(pairs.std() / len(pairs) ** 0.5)


def _units(guide: nn.Module) -> dict[Tensor, Tensor]:
    """A step in the mean of a global latent is measured by its standard deviation."""
    return {loc: scale.detach().exp() for loc, scale in _globals(guide)}


def _globals(guide: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Mean and log standard deviation of each global latent, in unconstrained coordinates; none for a user's own guide."""
    if not isinstance(guide, Derived):
        return []
    return [(guide.loc(n), guide.log_scale(n)) for n in guide.bijections]


@torch.no_grad()
def at_the_prior(task: Task, guide: nn.Module) -> dict[Tensor, Tensor]:
    """Let q of each continuous local latent begin at the middle and the spread of its prior, and measure steps by them.

    A guide's last layer begins near 0 and 1, where a latent in units of its own, such as grams, may be far from.
    """
    units: dict[Tensor, Tensor] = {}
    if not isinstance(guide, Derived) or not hasattr(guide, "last_layer"):
        return units
    for site, (center, spread) in _priors(task, guide).items():
        for parameter, unit in guide.last_layer(site, center, spread).items():
            units[parameter] = unit
    return units


def _priors(task: Task, guide: Derived) -> dict[Site, tuple[Tensor, Tensor]]:
    """Continuous local site → median and spread of its prior in unconstrained coordinates, for each of its numbers."""
    times = -(-PRIOR_DRAWS // len(task.x))
    globals = {n: guide.bijections[n](guide.loc(n)) for n in guide.bijections}
    out, found = {}, dict[str, list[Tensor]]()
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(task.seed)
        for _ in range(times):
            trace = task.program.trace(task.x[:PRIOR_DRAWS], latents=globals)
            for site in guide.sites:
                if not site.discrete and site.completes is None:
                    free = biject_to(site.constraint).inv(node_of(trace, site.name)["value"])
                    found.setdefault(site.name, []).append(free.reshape(-1, math.prod(free_shape(site))))
    for site in guide.sites:
        if site.name in found:
            values = torch.cat(found[site.name])
            middle = values.median(0).values
            spread = 1.4826 * (values - middle).abs().median(0).values
            if bool((middle.isfinite() & spread.isfinite() & (spread > 0)).all()):
                out[site] = middle, spread
    return out


def scales_from_curvature(fixed: FixedDraws, guide: nn.Module, generator: torch.Generator, rounds: int = 3) -> None:
    """Set each global latent's scale s to that of the Gaussian with the log joint's curvature, s⁻² = −E[∂² log p].

    The derivative of the bound in log s is 1 + s² E[∂² log p] (Bonnet's and Price's theorems), so that one gradient tells the
    curvatures of all.
    """
    if isinstance(guide, Derived) and guide.begun:
        return
    pairs = _globals(guide)
    logs = [scale for _, scale in pairs if scale.numel()]
    for _ in range(rounds if logs else 0):
        noise = fixed.draw(2 * FIRST, generator)
        total = [torch.zeros_like(scale) for scale in logs]
        for some in fixed.chunks(noise):
            found = torch.autograd.grad(fixed.values(some).sum() / (2 * FIRST), logs)
            total = [t + f for t, f in zip(total, found, strict=True)]
        with torch.no_grad():
            for scale, slope in zip(logs, total, strict=True):
                curved = 1 - slope  # −s² E[∂² log p]
                good = slope.isfinite() & (curved > 0)
                scale.sub_(
                    torch.where(good, 0.5 * curved.clamp(min=1e-12).log().clamp(-10, 10), torch.zeros_like(scale))
                )


GROUPS, IN_A_GROUP = 8, 8  # of draws, for the gradient at the end of Adam's steps


def stationary(task: Task, guide: nn.Module, objective: Objective) -> bool | None:
    """Whether the bound has no slope left in q of the globals: what a Newton step of each would gain, less the noise of the
    gradient, is next to nothing. None for a guide whose globals are not known."""
    pairs = [pair for pair in _globals(guide) if pair[0].numel()]
    if not pairs:
        return None
    free = [p for pair in pairs for p in pair]
    found = []
    for _ in range(GROUPS):
        value: Any = sum(objective(slice(None), task.x) for _ in range(IN_A_GROUP))
        gradients = torch.autograd.grad(value * (task.count / IN_A_GROUP), free, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for p, g in zip(free, gradients, strict=True)])
    gain = 0.0
    for i, (_, scale) in enumerate(pairs):
        mean, spread = (torch.stack([f[2 * i + k] for f in found]) for k in range(2))
        # the curvature of a Gaussian's own bound: 1/s² in its mean, 2 in the logarithm of s
        for slopes, newton in ((mean * scale.detach().exp(), 0.5), (spread, 0.25)):
            noise = slopes.var(0) / GROUPS
            gain += newton * float((slopes.mean(0).square() - noise).sum())
    return gain < 2 * allowed(task)


class Climb:
    """L-BFGS on the parameters of `modules`, each in a unit of its own (Liu & Nocedal 1989; the line search is Lewis &
    Overton's 2013 bisection, which takes a step to where nothing can be computed for a step too long)."""

    def __init__(
        self, draws: FixedDraws | Imitation, modules: Mapping[str, nn.Module], units: Mapping[Tensor, Tensor]
    ) -> None:
        self.draws = draws
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.unit = torch.cat([units.get(p, torch.ones_like(p)).reshape(-1) for p in self.parameters])
        self.iterations = 0
        self.trace: list[float] = []  # the bound at each iteration, nats

    @property
    def point(self) -> Tensor:
        """The parameters as one vector, in their units."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters]) / self.unit

    @property
    def free(self) -> list[Tensor]:
        """A copy of the parameters."""
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self, kept: list[Tensor]) -> None:
        """Put a copy back."""
        for p, value in zip(self.parameters, kept, strict=True):
            p.copy_(value)

    @torch.no_grad()
    def go(self, point: Tensor) -> None:
        """Set the parameters."""
        parts = (point * self.unit).split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.copy_(part.reshape(p.shape))

    def evaluate(self, point: Tensor, noise: Noise) -> tuple[float, Tensor]:
        """Minus the bound, and its gradient; infinite where the bound is not a number."""
        self.go(point)
        total, count = 0.0, len(next(iter(noise.values())))
        gradient = torch.zeros_like(point)
        try:
            for some in self.draws.chunks(noise):
                value = -self.draws.values(some).sum() / count
                found = torch.autograd.grad(value, self.parameters, allow_unused=True)
                total += float(value.detach())
                flat = [
                    torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                    for p, g in zip(self.parameters, found, strict=True)
                ]
                gradient += torch.cat(flat)
        except (ValueError, ArithmeticError, torch.linalg.LinAlgError):
            return math.inf, gradient
        gradient = gradient * self.unit
        if not (math.isfinite(total) and bool(gradient.isfinite().all())):
            return math.inf, gradient
        return total, gradient

    def run(self, noise: Noise, iterations: int, tol: float, step: Step, window: int = 10) -> bool:
        """At most so many iterations; True where `window` of them have gained less than `tol` nats."""
        x = self.point
        value, gradient = self.evaluate(x, noise)
        if not math.isfinite(value):
            raise ArithmeticError("the bound is not finite where the climb begins; try another start or seed.")
        memory, seen = Memory(flattest=1e-10, one_factor=True), [value]
        for _ in range(iterations):
            direction = -memory.times(gradient)
            if float(direction @ gradient) >= 0:
                memory.clear()
                direction = -gradient
            first = 1.0 if memory else min(1.0, 1.0 / max(float(gradient.norm()), 1e-300))
            found = self._search(x, value, gradient, direction, first, noise)
            self.iterations += 1
            if found is None:
                if not memory:
                    break
                memory.clear()  # what was learned of the curvature misleads: start again from the gradient
                continue
            new, value, new_gradient = found
            memory.add(new - x, new_gradient - gradient)
            x, gradient = new, new_gradient
            seen.append(value)
            self.trace.append(-value)
            step(note=f"{-value:.4f} nats")
            if len(seen) > window and seen[-1 - window] - value < tol:
                self.go(x)
                return True
        self.go(x)
        return len(seen) <= iterations  # no step leads up any more

    def _search(
        self, x: Tensor, value: float, gradient: Tensor, direction: Tensor, t: float, noise: Noise
    ) -> tuple[Tensor, float, Tensor] | None:
        slope, low, high, best = float(gradient @ direction), 0.0, math.inf, None
        for _ in range(30):
            new = x + t * direction
            f, g = self.evaluate(new, noise)
            if not math.isfinite(f) or f > value + 1e-4 * t * slope:
                high = t
            else:
                best = (new, f, g)
                if float(g @ direction) >= 0.9 * slope:
                    return best
                low = t
            t = (low + high) / 2 if math.isfinite(high) else 2 * low
            if best is not None and math.isfinite(high) and high - low < 0.1 * high:
                break
        return best
