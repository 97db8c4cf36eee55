"""What engines share that find the posterior of some rows at a time; those of them that have moments of normal sites, and
those that know only the program's density."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from inference._exact import linear_mstep
from inference._exact.engine import Engine, P, Plan, S, Values
from inference._exact.latent_program import LatentProgram
from inference._exact.linear_mstep import LinearPlan, Model
from inference._exact.moments import Moments
from inference._families._family import Floor
from inference._numerics.weighted import weighed
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import local_log_prob

CHUNK_NUMBERS = 2**20  # numbers in the temporaries of a chunk
CHUNK_ROWS = 8192
LEAST_ROWS = 16


M = TypeVar("M", bound=Moments)


class RowPosterior(Protocol):
    """q(a, z | x) of some rows."""

    @property
    def log_evidence(self) -> Tensor:
        """log p(x, a) [n, A]."""

    @property
    def weights(self) -> Tensor:
        """p(a | x) [n, A]."""


class ByRows(LatentProgram, Engine[S, P]):
    """Evidence and responsibilities, from the posteriors of a chunk of rows at a time."""

    @abstractmethod
    def posteriors(
        self, parameters: Values | None = None, globals: Values | None = None
    ) -> Iterator[tuple[slice, RowPosterior]]:
        """q(a, z | x) of a chunk of rows at a time. Differentiable."""

    def log_evidence(
        self, parameters: Values | None = None, globals: Values | None = None, every_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for rows, posterior in self.posteriors(parameters, globals):
            total = total + weighed(posterior.log_evidence.logsumexp(1), self.weights, rows).sum()
        return torch.as_tensor(total), self.log_prior(parameters, globals)

    @torch.no_grad()
    def per_datum(self, parameters: Values | None = None, globals: Values | None = None, own: bool = False) -> Tensor:
        out = self.x.new_empty(self.N)
        for rows, posterior in self.posteriors(parameters, globals):
            out[rows] = posterior.log_evidence.logsumexp(1)
        return out

    @torch.no_grad()
    def responsibilities(self, parameters: Values | None = None, globals: Values | None = None) -> Tensor:
        out = self.x.new_empty(self.N, self.A)
        for rows, posterior in self.posteriors(parameters, globals):
            out[rows] = posterior.weights
        return out


class ByMoments(ByRows[M, LinearPlan]):
    """An engine whose M-step is a regression of each normal site, from moments."""

    def plan(self: Model, globals: Values) -> LinearPlan:
        return linear_mstep.plan(self, globals)

    def closed(self: Model, plan: LinearPlan, stats: M, floor: Floor, globals: Values) -> dict[str, Tensor]:
        return linear_mstep.closed(self, plan, stats, floor, globals)

    def broken(self: Model, plan: LinearPlan, stats: M) -> list[str]:
        return linear_mstep.broken(self, plan, stats)

    def smallest(self: Model, stats: M) -> float:
        return linear_mstep.smallest(self, stats)


class ByDensity(ByRows[S, Plan]):
    """An engine that knows nothing of a program but its density: no sites with statistics, and a numeric M-step."""

    size = math.inf

    def __init__(self, program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> None:
        super().__init__(program, structure, x, weights)
        self.families = {}

    def log_joint(self, x: Tensor, z: Tensor, parameters: Values | None, globals: Values | None) -> Tensor:
        """log p(x_i, a, z) [A·T, n] at z [A·T, n, L]."""
        trace = self.trace(x, z, parameters, globals)
        value = local_log_prob(trace, self.structure.data_dim, len(x))
        return value.reshape(-1, len(x)).expand(len(z), len(x))

    def plan(self, globals: Values) -> Plan:
        return Plan({}, tuple(self.program.values()))

    def closed(self, plan: Plan, stats: S, floor: Floor, globals: Values) -> dict[str, Tensor]:
        return {}

    def broken(self, plan: Plan, stats: S) -> list[str]:
        return []

    def smallest(self, stats: S) -> float:
        return math.inf
