"""What a program shows at θ, for many θ in a row, without running the program each time.

A chain of 1,000 steps takes its program 0.2 seconds, and of all that it computes an M-step changes only a transition matrix and
a few means. After a few runs the operations that lead from θ to what is asked for are recorded (`tape`) and then done alone.
The record is used only where it gives what the program gives: at the θ it was recorded at, at others nearby, and again at the
4th, 8th, 16th, … use.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from inference._numerics import tape
from zoo._reading.garbage import seldom_collected

Values = Mapping[str, Tensor]
Seen = TypeVar("Seen")  # tensors in dictionaries and tuples
RUNS = 3  # of the program, before its operations are recorded
RELATIVE, ABSOLUTE = 1e-12, 1e-13  # how near a record must be to the program, in float64


class Replayed(Generic[Seen]):
    """`function`: θ ↦ tensors, in dictionaries and tuples, without gradients; `elsewhere`: other values of θ, to check at.

    `runs`: how many times the function itself is called before its operations are recorded.
    """

    def __init__(
        self, function: Callable[[Values], Seen], elsewhere: Callable[[Values], Values], runs: int = RUNS
    ) -> None:
        self.function, self.elsewhere, self.runs = function, elsewhere, runs
        self.calls = 0
        self.graph: GraphModule | None = None
        self._like: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._spec: TreeSpec | None = None

    @torch.no_grad()
    def __call__(self, values: Values) -> Seen:
        self.calls += 1
        if self.calls == self.runs:
            self._record(values)
        if self.graph is None or _kinds(values) != self._like:
            return self.function(values)
        if self.calls & (self.calls - 1) == 0 and not self._is_right(values):
            self.graph = None
            return self.function(values)
        return self._replay(values)

    def _replay(self, values: Values) -> Seen:
        assert self.graph is not None and self._spec is not None
        found: Seen = tree_unflatten(self.graph(*(values[name] for name in self._like)), self._spec)
        return found

    def _record(self, values: Values) -> None:
        """Record the function at these values; nothing is kept that is not right there and elsewhere."""
        self._like = _kinds(values)

        def flat(*given: Tensor) -> list[Tensor]:
            found, self._spec = tree_flatten(self.function(dict(zip(self._like, given, strict=True))))
            return found

        right = False
        with seldom_collected(), contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = tape.record(flat, [values[name] for name in self._like])
            right = self._is_right(values) and self._is_right(self.elsewhere(values))
        if not right:  # or it could not be looked at elsewhere
            self.graph = None

    def _is_right(self, values: Values) -> bool:
        """Whether record and program agree at these values."""
        record, (program, spec) = tree_flatten(self._replay(values))[0], tree_flatten(self.function(values))
        return spec == self._spec and all(_same(a, b) for a, b in zip(record, program, strict=True))


def _kinds(values: Values) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in values.items()}


def _same(a: Tensor, b: Tensor) -> bool:
    scale = 1.0 if b.dtype == torch.float64 else 1e7
    return a.shape == b.shape and torch.allclose(a, b, rtol=RELATIVE * scale, atol=ABSOLUTE * scale, equal_nan=True)
