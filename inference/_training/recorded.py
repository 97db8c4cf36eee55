"""A training step, objective and gradient, as a plain list of tensor operations, without what found them.

Recorded once with `torch.fx`, and used only where it gives what the program itself gives, to the last bit, values and
gradients: on the batch it was recorded on, on another, and again at the beginning of every epoch. A program whose steps
depend on the data, or on a state of its own, so goes the slow way, as does one whose recording fails.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from inference._training.elbo import Index, Objective
from zoo._program.missing import complete_data

WORTH = 3000  # steps from which recording pays


class Compiled:
    """The step of `objective(rows, x)`, recorded for batches of the shape that comes first."""

    def __init__(self, objective: Objective, parameters: Sequence[Tensor]) -> None:
        self.objective, self.parameters = objective, list(parameters)
        self.graph: GraphModule | None = None
        self.shape: torch.Size | None = None
        self.touched: list[int] = []  # the parameters that the recorded objective depends on

    def __call__(self, rows: Index, x: Tensor) -> Tensor:
        """The objective, a scalar; the gradients of its negative go to the parameters' `grad`."""
        value, gradients = self._recorded(rows, x) if self._fits(x) else self._by_program(rows, x)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return value

    def _fits(self, x: Tensor) -> bool:
        return self.graph is not None and x.shape == self.shape

    def _by_program(self, rows: Index, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        value = self.objective(rows, x)
        return value.detach(), list(torch.autograd.grad(-value, self.parameters, allow_unused=True))

    @torch.no_grad()
    def _recorded(self, rows: Index, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        assert self.graph is not None
        value, *found = self.graph(rows, x)
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        for i, gradient in zip(self.touched, found, strict=True):
            gradients[i] = gradient
        return value, gradients

    def record(self, rows: Tensor, x: Tensor) -> None:
        """Record the step on a batch; keeps nothing unless the record is right."""
        from torch.fx.experimental.proxy_tensor import make_fx

        state = torch.get_rng_state()
        first = self._by_program(rows, x)[1]  # what only the first call does is not to be recorded
        self.touched = [i for i, gradient in enumerate(first) if gradient is not None]

        def step(rows: Tensor, x: Tensor) -> tuple[Tensor | None, ...]:
            value, gradients = self._by_program(rows, x)
            return (value, *(gradients[i] for i in self.touched))

        with contextlib.suppress(Exception), warnings.catch_warnings(), complete_data():
            warnings.simplefilter("ignore")
            graph = make_fx(step)(rows, x)
            _tidy(graph)
            self.graph, self.shape = graph, x.shape
        torch.set_rng_state(state)
        self.check(rows, x)

    def check(self, rows: Tensor, x: Tensor) -> None:
        """Compare record and program on a batch, and drop the record if they differ; leaves the random state alone."""
        if not self._fits(x):
            return
        state = torch.get_rng_state()
        try:
            found = []
            for way in (self._by_program, self._recorded):
                torch.set_rng_state(state)
                value, gradients = way(rows, x)
                found.append((value, *gradients, torch.get_rng_state()))
            same = all(_same(a, b) for a, b in zip(*found, strict=True))
        except Exception:
            same = False
        torch.set_rng_state(state)
        if not same:
            self.graph = None


def _tidy(graph: GraphModule) -> None:
    """Drop views that show the same shape and what is not read."""
    views = [getattr(torch.ops.aten, name).default for name in ("view", "expand", "alias", "detach")]

    def shape(node: Argument) -> tuple[int, ...] | None:
        if not isinstance(node, Node):
            return None
        found = node.meta.get("val", node.meta.get("tensor_meta"))
        return None if found is None else tuple(found.shape)

    for node in list(graph.graph.nodes):
        if node.target in views and shape(node) is not None and shape(node) == shape(node.args[0]):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
