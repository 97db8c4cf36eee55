"""log p(x, globals, locals; θ) as a function of flat unconstrained coordinates u [d], of many points side by side.

The coordinates stand for the global latents and those continuous local ones that are not summed out; the log-determinant of
the map to constrained values is in the density. Discrete local latents are summed over all joint values. Normal local latents
that are exact given the globals are integrated out where asked: under each joint value the gradient and the Hessian at one
point give their posterior N(m, P⁻¹), and log p(x_i, a) = log p(x_i, a, m) + (L/2) log 2π − ½ log det P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._density.local import Free, onto
from inference._method.task import Task
from inference._numerics.definite import NotDefinite
from inference._numerics.slices import slices
from zoo._errors import Refusal
from zoo._program.latents import Layout, joint_values
from zoo._program.structure import Site
from zoo._program.trace import altered, is_local, log_prob, node_of, nodes_of, per_datum, sample_nodes, whole_shape

LOG_2PI = math.log(2 * math.pi)
NUMBERS = 2**22  # in the largest temporary of an evaluation of many points
NORMAL = ("Normal", "MultivariateNormal")
LEAST_IN_A_GROUP, MOST_IN_A_GROUP = 4, 50  # numbers
FARTHEST = 300.0  # of a free coordinate, where a draw was rounded onto the edge of its support


@dataclass(frozen=True)
class Place:
    """Where a site stands in u, and the shape of its free numbers in the program."""

    site: Site
    part: slice
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Terms:
    """Of B points: what the sum over the discrete latents is made of."""

    local: Tensor  # log p(x_i, a, …) [B, A, n], nats
    outside: Tensor  # the density of all that is outside the rows [B]
    mean: Tensor | None = None  # of the normal latents that are integrated out [B, A, n, L]
    factor: Tensor | None = None  # the Cholesky factor of their precision [B, A, n, L, L]

    @property
    def total(self) -> Tensor:
        """The log-density [B]."""
        return self.local.logsumexp(1).sum(-1) + self.outside


class Posterior:
    """The density of a task's latents at the program's θ; `integrate`: whether the normal local latents are integrated out."""

    def __init__(self, task: Task, integrate: bool) -> None:
        self.task, self.structure, self.x = task, task.structure, task.x
        structure = self.structure
        with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(task.seed)
            trace = task.program.trace(self.x)
        nodes = nodes_of(trace)
        continuous = [s.name for s in structure.continuous_locals]
        self.tables = joint_values(nodes, [s.name for s in structure.discrete_locals], structure.axes)
        self.A = len(next(iter(self.tables.values()))) if self.tables else 1
        self.layout = Layout(nodes, continuous if integrate else [], structure.axes)
        self.L = self.layout.L
        self.side_by_side = True  # whether many points can be evaluated at once
        self.places: list[Place] = []
        self.d = 0
        for site in structure.sites:
            if site.role != "latent" or site.discrete or (integrate and site.scope == "local"):
                continue
            node = nodes[site.name]
            shape = tuple(onto(node["fn"].support).inv(node["value"].expand(whole_shape(node["fn"]))).shape)
            self.places.append(Place(site, slice(self.d, self.d + math.prod(shape)), shape))
            self.d += math.prod(shape)

    @property
    def width(self) -> int:
        """Numbers in one evaluation of one point, roughly."""
        return self.A * max(1, self.x.numel(), self.d, len(self.x) * (self.L + 1) ** 2)

    # ------------------------------------------------------------------------------------------------------- density

    def terms(self, flat: Tensor) -> Terms:
        """Of the points flat [B, d]; differentiable."""
        with pyro.validation_enabled(False), NotDefinite():
            return self._terms(flat)

    def _terms(self, flat: Tensor) -> Terms:
        if not self.L:
            local, outside = self.each(lambda u: self._joint(u, None), flat)
            return Terms(local, outside)
        with torch.enable_grad():
            z = flat.new_zeros(len(flat), self.A, len(self.x), self.L).requires_grad_()
            local, _ = self.each(self._joint, flat, z)
            (slope,) = torch.autograd.grad(local.sum(), z, create_graph=True)
            columns = [
                torch.autograd.grad(slope[..., k].sum(), z, create_graph=True, materialize_grads=True)[0]
                for k in range(self.L)
            ]
        precision = -torch.stack(columns, -1)
        factor, bad = _factor((precision + precision.mT) / 2)
        with torch.no_grad():
            mean = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
        local, outside = self.each(self._joint, flat, mean)  # at its peak the density does not change with m
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        local = local + 0.5 * self.L * LOG_2PI - log_det
        return Terms(torch.where(bad, torch.nan, local), outside, mean, factor)

    def each(self, of: Callable[..., Any], *given: Tensor) -> Any:
        """`of` of each point, its tensors stacked."""
        if self.side_by_side:
            return torch.vmap(of, randomness="different")(*given)  # of draws that the density does not know of
        found = [of(*(g[i] for g in given)) for i in range(len(given[0]))]
        if isinstance(found[0], dict):
            return {k: torch.stack([f[k] for f in found]) for k in found[0]}
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def log_density(self, flat: Tensor) -> Tensor:
        """[B] of the points flat [B, d], nats; differentiable."""
        return self.terms(flat).total + 0.0 * flat.sum(-1)  # of a latent that nothing depends on the slope is 0

    def whole(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """`log_density` as that of one group of latents [B, 1], and nothing besides [B]."""
        return self.log_density(flat).unsqueeze(1), flat.new_zeros(len(flat))

    def normal_group(self) -> tuple[Tensor, Tensor] | None:
        """The coordinates [g] of other latents, and those [1, L] of global ones with normal priors; None where either lack."""
        inner, index = [p.site.family in NORMAL for p in self.places], torch.arange(self.d)
        if any(p.site.scope == "local" for p in self.places) or all(inner):
            return None
        own = torch.zeros(self.d, dtype=torch.bool)
        for place, mine in zip(self.places, inner, strict=True):
            own[place.part] = mine
        fits = LEAST_IN_A_GROUP <= int(own.sum()) <= MOST_IN_A_GROUP
        return (index[~own], index[own].unsqueeze(0)) if fits else None

    def _joint(self, flat: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """log p(x_i, a, z, …) [A, n] and the density of what is outside the rows, at one point [d] and z [A, n, L]."""
        trace, free = self.run(flat, z)
        n, dim, depth = len(self.x), self.structure.data_dim, self.structure.max_plate_nesting
        local, outside = flat.new_zeros(1, n), flat.new_zeros(())
        for node in sample_nodes(trace):
            log_det = free.log_det.get(node["name"])
            if not is_local(node):
                value = node["fn"].log_prob(node["value"])
                if node["mask"] is not None:
                    value = torch.where(torch.as_tensor(node["mask"]), value, torch.zeros(()))
                outside = outside + (value * node["scale"]).sum() + (0.0 if log_det is None else log_det.sum())
                continue
            value = per_datum(node, log_prob(node), dim, depth)
            if log_det is not None:
                value = value + per_datum(altered(node, node["fn"]), log_det, dim, depth)
            local = local + value.reshape(-1, value.shape[-1])
        return local.expand(self.A, n), outside

    def run(self, flat: Tensor, z: Tensor | None) -> tuple[Trace, Free]:
        """The program at one point [d], and at z [A, n, L] of what is integrated out."""
        free = Free({p.site.name: flat[p.part].reshape(p.shape) for p in self.places})
        latents = {**self.tables, **({} if z is None else self.layout.unflatten(z))}
        with pyro.validation_enabled(False), free:
            return self.task.program.joint_trace(self.x, latents=latents), free

    # -------------------------------------------------------------------------------------------------------- values

    @torch.no_grad()
    def prior(self, draws: int, generator: torch.Generator) -> Tensor:
        """Draws from the program itself [draws, d]."""
        out = []
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            for _ in range(draws):
                trace = self.task.program.trace(self.x)
                parts = []
                for place in self.places:
                    node = node_of(trace, place.site.name)
                    value = onto(node["fn"].support).inv(node["value"].expand(whole_shape(node["fn"])))
                    if place.site.family == "ImproperUniform":  # which has no draws: around where it begins
                        value = value + 4 * torch.rand(value.shape, dtype=value.dtype) - 2
                    parts.append(value.nan_to_num(0.0, FARTHEST, -FARTHEST).clamp(-FARTHEST, FARTHEST).reshape(-1))
                out.append(torch.cat(parts))
        return torch.stack(out)

    def chunks(self, points: int) -> Iterator[slice]:
        """Slices of so many points that can be looked at side by side."""
        return slices(points, max(1, NUMBERS // self.width))

    @torch.no_grad()
    def values(self, flat: Tensor) -> dict[str, Tensor]:
        """Site → its constrained values at the points flat [B, d]: [B, …], of a local one [B, n, …]."""
        zeros = flat.new_zeros(self.A, len(self.x), self.L) if self.L else None

        def of_one(u: Tensor) -> dict[str, Tensor]:
            trace, _ = self.run(u, zeros)
            return {p.site.name: self._natural(node_of(trace, p.site.name)["value"], p.site) for p in self.places}

        with pyro.validation_enabled(False):
            parts = [self.each(of_one, flat[some]) for some in self.chunks(len(flat))]
        return {p.site.name: torch.cat([part[p.site.name] for part in parts]) for p in self.places}

    def _natural(self, value: Tensor, site: Site) -> Tensor:
        if site.scope == "global":
            return value
        return self.structure.axes.by_datum(value.unsqueeze(0), site)[0]

    def check(self, flat: Tensor) -> None:
        """Find whether points [B, d] can be evaluated side by side. Raise `Refusal` where there is no density to evaluate."""
        self.side_by_side = False
        alone, again = (self.log_density(flat).detach() for _ in range(2))
        if not torch.allclose(again, alone, rtol=1e-9, atol=1e-9, equal_nan=True):
            raise Refusal(
                f"'{self.task.program.name}' has no density to walk on: it gives another number each time that it is run at "
                "the same latents"
            )
        self.side_by_side = True
        try:
            together = self.log_density(flat).detach()
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            self.side_by_side = False
            return
        self.side_by_side = torch.allclose(together, alone, rtol=1e-8, atol=1e-8, equal_nan=True)


def _factor(precision: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of [..., L, L], and where there is none [...]."""
    if precision.shape[-1] == 1:
        bad = ~(precision[..., 0, 0] > 0)
        return torch.where(bad[..., None, None], torch.ones_like(precision), precision).sqrt(), bad
    bad = torch.linalg.cholesky_ex(precision)[1] > 0
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype)
    safe = torch.where(bad[..., None, None], eye, precision)
    return torch.linalg.cholesky_ex(safe)[0], bad
