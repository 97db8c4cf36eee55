"""The climb to the mode over global latents and θ, from one start or from several."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from inference._laplace import grid, walked, weighed
from inference._laplace.inner import Exact, Inner, Nested
from inference._laplace.walked import Walked
from inference._laplace.weighed import Weighed
from inference._mcmc.posterior import Posterior
from inference._method.start import Start, begin, is_mixture
from inference._method.summed import summed
from inference._method.task import Task
from inference._numerics import definite
from inference._numerics.coordinates import Coordinates
from inference._numerics.peak import (
    SMALLEST_EIGENVALUE,
    Density,
    Peak,
    climb,
    value_and_differences,
    value_and_hessian,
)
from zoo._errors import Refusal
from zoo._program.trace import node_of

MOST_ON_A_GRID = len(grid.STEPS)
LOOKS, AROUND, BEYOND = (
    30,
    4.0,
    3.0,
)  # points from the prior and from around zero; standard deviations of their distance
CLIMBS, MOST_LOOKED = 4, 10  # from the best of them; numbers of the globals
EDGE = 8.0  # in unconstrained coordinates, as far as a climb goes that does not run away
CHECKED, MOST_OFF = 50, 0.05  # draws at which a density of few nodes is held against that of all; its error's sd, nats
Globals = Literal["auto", "laplace", "grid"]


@dataclass(frozen=True)
class Options:
    """As of `laplace.fit`."""

    max_iter: int
    tol: float
    restarts: int
    globals: Globals
    start: Start


class Search:
    """The density of a task's globals and free θ in unconstrained coordinates, and the climbs on it."""

    def __init__(self, task: Task, inner: Inner, options: Options) -> None:
        self.task, self.inner, self.options = task, inner, options
        dtype = inner.task.x.dtype
        first = begin(task, options.start, task.seed) if task.learn else task.global_start()
        self.theta = {n: v.detach().clone().to(dtype) for n, v in task.program.values().items()}
        self.globals = set(first)
        free = {n: v.to(dtype) for n, v in first.items()}
        free |= self.theta if task.learn or not first else {}
        self.coordinates = Coordinates(free, {**task.program.constraints, **task.global_supports})
        self.layout, self.places = self.coordinates.part(self.globals)
        self.first = self.coordinates.flatten(free).to(dtype)

    def density(self, flat: Tensor) -> Tensor:
        """log p(x, globals; θ), with the Jacobian of the globals' coordinates: their density, not that of θ's."""
        values = self.coordinates.unflatten(flat)
        parameters = {**self.theta, **{n: v for n, v in values.items() if n not in self.globals}}
        evidence, prior = self.inner.log_evidence(parameters, {n: values[n] for n in self.globals})
        return evidence + prior + self.layout.log_abs_det(flat[self.places])

    def beside(self, peak: Peak) -> Density:
        """The density [B] of global latents u [B, g], θ as at a peak."""
        if self._posterior is None:
            return lambda u: self.densities(peak.flat.expand(len(u), -1).index_copy(1, self.places, u))
        posterior, order = self._posterior
        return lambda u: torch.cat([posterior.log_density(u[some][:, order]) for some in posterior.chunks(len(u))])

    def weighed(self, peak: Peak, covariance: Tensor) -> Weighed:
        """Weighted draws of the global latents, from a Gaussian at a peak on."""
        mode, seed = peak.flat[self.places], self.task.seed
        with self.task.progress("laplace: weighing", 2 * weighed.ROUNDS) as step:
            found = weighed.weighed(self.beside(peak), mode, covariance, seed, step, self._posterior is None)
            if found.trusted or self._posterior is None:
                return found
            posterior, order = self._posterior
            again = weighed.nested(posterior, mode[order], covariance[order][:, order], seed, step)
        if again is None or not again.trusted:
            return found
        return replace(again, flat=again.flat[:, order.argsort()])

    def walked(self, peak: Peak, tril: Tensor) -> Walked | None:
        """Draws of the global latents by chains from a Gaussian at a peak on; None where they cannot be trusted."""
        mode, inner = peak.flat[self.places], self.inner
        assert isinstance(inner, Nested)
        count = walked.CHAINS * (walked.WARMUP + walked.KEPT)
        point = {n: v for n, v in self.values(peak.flat).items() if n in self.globals}
        with self.task.progress("laplace: walking", count) as step, inner.holding(point):
            found = walked.walked(self.beside(peak), mode, tril, self.layout.unflatten, self.task.seed, step)
        some = torch.linspace(0, found.drawn.log_p.size - 1, CHECKED).long()
        with torch.no_grad():
            exact = self.beside(peak)(found.flat.flatten(0, 1)[some])
        off = exact - torch.from_numpy(found.drawn.log_p).flatten()[some]
        return found if found.trusted and float(off.std()) <= MOST_OFF else None

    @property
    def quick(self) -> bool:
        """Whether many values of the global latents can be looked at side by side."""
        return self._posterior is not None or not isinstance(self.inner, Exact)

    @cached_property
    def _posterior(self) -> tuple[Posterior, Tensor] | None:
        """The density by one run of the program, and our coordinates in its order; None where it is another, or θ is free."""
        task = self.inner.task
        if not isinstance(self.inner, Exact) or not self.globals or (self.task.learn and self.theta):
            return None
        try:
            own = summed(task)
            posterior = Posterior(own, own.structure.linear_gaussian)
            if {p.site.name for p in posterior.places} != self.globals:
                return None
            at = dict(
                zip(self.layout.sizes, torch.arange(self.layout.d).split(list(self.layout.sizes.values())), strict=True)
            )
            order = torch.cat([at[p.site.name] for p in posterior.places])
            near = self.first[self.places] + torch.tensor([[0.0], [0.3]], dtype=self.first.dtype)
            posterior.check(near[:, order])
            mine = posterior.log_density(near[:, order]).detach()
            whole = self.first.expand(2, -1).index_copy(1, self.places, near)
            same = torch.allclose(mine, self.densities(whole).detach(), rtol=1e-8, atol=1e-6)
        except (Refusal, ArithmeticError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return None
        return (posterior, order) if same and posterior.side_by_side else None

    def densities(self, flat: Tensor) -> Tensor:
        """The density [B] of each of the points [B, d]."""
        values = self.coordinates.unflatten(flat)
        globals = {n: values[n] for n in self.globals}
        free = {n: v for n, v in values.items() if n not in self.globals}
        fixed = {n: v.expand(len(flat), *v.shape) for n, v in self.theta.items()} if free else {}
        found = self.inner.log_evidences({**fixed, **free}, globals)
        return found + self.layout.log_abs_det(flat[:, self.places])

    def look(self, _: Density, flat: Tensor) -> tuple[float, Tensor]:
        """The density and minus its Hessian at a point."""
        if self.inner.twice:
            return value_and_hessian(self.density, flat)
        return value_and_differences(self.densities, flat)

    def values(self, flat: Tensor) -> dict[str, Tensor]:
        """Constrained, by name."""
        return {n: v.detach() for n, v in self.coordinates.unflatten(flat).items()}

    def peaks(self) -> list[Peak]:
        """The modes found, the one of the greatest mass first."""
        if not self.coordinates.d:  # nothing to climb, and no Gaussian to put on it
            flat = self.first
            value = float(self.density(flat).detach())
            return [Peak(flat, value, flat.new_zeros(0, 0), converged=True, trace=[])]
        if not (self.task.learn or self.globals):
            return [Peak(self.first, *self.look(self.density, self.first), converged=True, trace=[])]
        found: list[Peak] = []
        with self.task.progress("laplace", self.options.max_iter * self.options.restarts) as step:
            for i in range(self.options.restarts):
                try:
                    found.append(self._climb(self._start(i), step))
                except Refusal:
                    if i + 1 == self.options.restarts and not found:
                        raise
            if len(found) == 1 and isinstance(self.inner, Nested):  # else the verifier looks for other modes
                found += self._others(found[0], step)
        return distinct(found, self.mass)

    def _others(self, peak: Peak, step: Callable[..., object]) -> list[Peak]:
        """Where climbs end from the likeliest of points beyond a peak, from the prior and from around zero."""
        d, inner = len(self.places), self.inner
        if not 0 < d <= MOST_LOOKED or not (isinstance(inner, Nested) and inner.side_by_side):
            return []
        generator = torch.Generator().manual_seed(self.task.seed)
        near = AROUND * (2 * torch.rand(LOOKS, d, generator=generator, dtype=torch.float64) - 1)
        prior = [self.layout.flatten(self._drawn(self.task.seed + k)) for k in range(LOOKS)]
        u = torch.cat([torch.stack(prior).to(peak.flat), near.to(peak.flat)])
        away, hessian = u - peak.flat[self.places], peak.hessian[self.places][:, self.places]
        u = u[((away @ hessian) * away).sum(1) > d + BEYOND * (2 * d) ** 0.5]
        whole = peak.flat.expand(len(u), -1).index_copy(1, self.places, u)
        found: list[Peak] = []
        with contextlib.suppress(ArithmeticError, ValueError, RuntimeError), torch.no_grad():
            values = self.densities(whole).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
            for i in values.topk(min(CLIMBS, len(u))).indices:
                with contextlib.suppress(Refusal), torch.enable_grad():
                    found.append(self._climb(whole[i], step))
        return [p for p in found if p.converged]

    def _climb(self, flat: Tensor, step: Callable[..., object]) -> Peak:
        best = [(-torch.inf, flat)]

        def density(at: Tensor) -> Tensor:
            value = self.density(at)
            if float(value.detach()) > best[0][0]:
                best[0] = float(value.detach()), at.detach().clone()
            return value

        try:
            peak = climb(density, flat, self.options.max_iter, self.options.tol, step, self.look)
        except (ValueError, torch.linalg.LinAlgError, ArithmeticError) as error:
            raise Refusal(self._no_mode(flat, best[0][1], error)) from error
        if self.runs_away(peak, flat) and self._rises(flat, peak.flat):
            raise Refusal(self._no_mode(flat, peak.flat, ArithmeticError("it runs away")))
        return peak

    def runs_away(self, peak: Peak, begin: Tensor | None = None) -> bool:
        """Whether θ has gone so far beside the globals that it may have no mode."""
        begin = self.first if begin is None else begin
        moved = (peak.flat - begin).abs().index_fill(0, self.places, 0.0)
        return bool(self.globals) and bool((moved > EDGE).any())

    def _no_mode(self, begin: Tensor, best: Tensor, error: Exception) -> str:
        """Why a climb that ended where nothing can be computed found no mode: `best` is the highest place that it saw."""
        name, far = self._farthest(begin, best)
        if not self._rises(begin, best):
            first = str(error).strip().split("\n")[0].rstrip(".")
            return (
                f"laplace found no mode: the climb left where the density can be computed, with '{name}' at {far:.3g} "
                f"({first}). Try restarts, another start, or nuts"
            )
        if self.globals and name in self.theta:
            serves = "em integrates them out" if self.task.structure.integrable else "svi integrates over them"
            return (
                f"laplace found no mode: the density of θ and the global latents together grows without bound as '{name}' "
                f"goes to its edge (it is at {far:.3g}), where a prior closes in on its latent. {serves}; else keep "
                f"'{name}' fixed, or give it a prior"
            )
        return (
            "laplace found no mode: the density grows without bound on these data (a component or a noise collapses on a "
            "few of them). em holds such a variance at a floor; else ask for fewer components, or priors."
        )

    def _farthest(self, begin: Tensor, best: Tensor) -> tuple[str, float]:
        """What has moved most in unconstrained coordinates, and the smallest of its numbers."""
        place = int((best - begin).abs().nan_to_num(torch.inf).argmax())
        for name, size in self.coordinates.sizes.items():
            if place < size:
                return name, float(self.values(best)[name].reshape(-1).min())
            place -= size
        raise IndexError(place)

    @torch.no_grad()
    def _rises(self, begin: Tensor, best: Tensor) -> bool:
        """Whether the density goes on rising beyond the best place seen, as far as it can be computed."""
        values = [float(self.density(best))]
        for times in (0.25, 0.5, 1.0, 2.0):
            try:
                values.append(float(self.density(best + times * (best - begin))))
            except (ValueError, torch.linalg.LinAlgError, ArithmeticError):
                break
        rises = [b > a + 0.1 for a, b in itertools.pairwise(values) if math.isfinite(b)]
        edge = bool(((best - begin).abs() > EDGE).any())
        return all(rises) and (bool(rises) or edge)

    def _start(self, i: int) -> Tensor:
        """Of the i-th climb: the task's own, then θ that is jittered, and globals from their prior, or from around zero."""
        if i == 0:
            return self.first
        task, seed = self.task, self.task.seed + i
        if task.learn:
            first = begin(task, "random", seed)
            now = {n: v.detach() for n, v in task.program.values().items()}
            task.program.assign({n: v.to(task.x.dtype) for n, v in self.theta.items()})
        else:
            first, now = task.global_start(), {}
        if not is_mixture(task):
            first = self._drawn(seed) if i % 2 else first
        flat = self.coordinates.flatten({**self.values(self.first), **now, **first}).to(self.first)
        if i % 2 == 0 and not is_mixture(task):
            noise = torch.rand(len(flat), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            flat[self.places] = (4 * noise - 2).to(flat)[self.places]
        return flat

    def _drawn(self, seed: int) -> dict[str, Tensor]:
        """The globals from their prior."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trace = self.task.program.trace(self.task.x[:2])
        return {n: node_of(trace, n)["value"] for n in self.globals}

    def precision(self, peak: Peak) -> Tensor:
        """Of the globals' Gaussian at a peak, θ a point: the Hessian, positive definite where it was not."""
        hessian, _ = definite.raised(peak.hessian, SMALLEST_EIGENVALUE)
        return hessian[self.places][:, self.places]

    def mass(self, peak: Peak) -> float:
        """Laplace's log-integral over the globals, θ a point."""
        block = self.precision(peak)
        log_det = 2 * torch.linalg.cholesky(block).diagonal().log().sum()
        return peak.value + 0.5 * len(block) * math.log(2 * math.pi) - 0.5 * float(log_det)


def distinct(found: list[Peak], mass: Callable[[Peak], float]) -> list[Peak]:
    """Those that are modes of their own, the one of the greatest mass first; those that did not converge are last."""
    if len(found) == 1:
        return found
    out: list[Peak] = []
    for peak in sorted(found, key=lambda p: (p.converged, mass(p)), reverse=True):
        apart = [peak.flat - other.flat for other in out]
        if all(
            float(a @ o.hessian @ a) > 1 and float(a @ peak.hessian @ a) > 1 for a, o in zip(apart, out, strict=True)
        ):
            out.append(peak)
    return out
