"""A program run at given values of its local latents: a discrete assignment, and numbers z for the continuous ones."""

from __future__ import annotations

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact.engine import Values
from inference._exact.reading import local_nodes, observed, probe
from zoo._program.latents import Layout, joint_values
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import Node

FAR = (
    2.0**64
)  # where coefficients are read: from near 0 a large offset would drown their digits; dividing by it rounds nothing


class LatentProgram:
    """`assignments` are the A joint values of the discrete latents; `layout` says where each continuous one stands in z [L]."""

    def __init__(self, program: Program, structure: Structure, x: Tensor, weights: Tensor | None = None) -> None:
        self.program, self.structure, self.x, self.weights = program, structure, x, weights
        self.N, self.A = len(x), structure.assignments
        self._probe = probe(x)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            by_name = {n["name"]: n for n in local_nodes(program.trace(self._probe, raw=True))}
        self.assignments = joint_values(by_name, [s.name for s in structure.discrete_locals], structure.axes)
        self.layout = Layout(by_name, [s.name for s in structure.continuous_locals], structure.axes)
        self.L = self.layout.L

    def units(self) -> Tensor:
        """z = 0 and `FAR` along each axis, under each assignment: [A·(L+1), 1, L]."""
        points = torch.cat([torch.zeros(1, self.L), FAR * torch.eye(self.L)]).to(self.x.dtype)
        return points.repeat(self.A, 1).unsqueeze(1)

    def origin(self) -> Tensor:
        """z = 0 under each assignment: [A, 1, L]."""
        return self.x.new_zeros(self.A, 1, self.L)

    def trace(
        self,
        x: Tensor,
        z: Tensor,
        parameters: Values | None = None,
        globals: Values | None = None,
        raw: bool = False,
    ) -> Trace:
        """The program at z [A·T, n or 1, L]: T points under each assignment."""
        T = len(z) // self.A
        discrete = {k: v.repeat_interleave(T, 0) for k, v in self.assignments.items()}
        latents = {**discrete, **self.layout.unflatten(z), **(globals or {})}
        return self.program.trace(x, parameters=parameters, latents=latents, raw=raw)

    def probed(self, parameters: Values | None = None, globals: Values | None = None) -> Trace:
        """The trace of two rows at z = 0 and far along each axis: sites that are linear in z, and the same for all rows, show
        all of themselves there."""
        return self.trace(self._probe, self.units(), parameters, globals, raw=True)

    def observed(self, node: Node) -> Tensor:
        """What a site observes [N, …], NaN where unobserved; `node` is its node in `probed`."""
        return observed(node, self._probe, self.x, lambda rows: self.trace(rows, self.units(), raw=True))
