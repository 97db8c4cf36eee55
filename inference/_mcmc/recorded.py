"""A density and its gradient as a plain list of tensor operations, without the program's own Python.

The list (`tape`) is run by TorchScript, at a microsecond an operation where Python takes five. It is used only where it
gives what the program gives; a program that decides by its latents' values, or does anything else that cannot be noted, is
evaluated by itself.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from inference._numerics import tape

Density = Callable[[Tensor], Tensor]  # [C, d] ↦ [C]
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # [C, d] ↦ log-densities [C], gradients [C, d]


def recorded(step: Step, like: Tensor) -> Step | None:
    """A step as its list of tensor operations, for inputs shaped as `like`; None where it has none, or gives another value."""
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = _scripted(tape.record(step, [like]), like)
        for points in (like, like.flip(0)):
            if not all(_close(a, b) for a, b in zip(found(points), step(points), strict=True)):
                return None
        return found
    return None


class Gradient:
    """flat [C, d] ↦ log-densities [C] and gradients [C, d], as arrays, for as many points as in `like`."""

    def __init__(self, density: Density, like: Tensor) -> None:
        self.density = density
        self.recorded: Step | None = None
        self.evaluations = 0
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.recorded = _scripted(tape.record(self._by_program, [like]), like)
        if self.keep_if_right(like):
            self.keep_if_right(like.flip(0) * 0.9)

    def __call__(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += 1
        points = torch.from_numpy(flat)
        if self.recorded is None:
            value, gradient = self._by_program(points)
        else:
            with torch.no_grad():
                value, gradient = self.recorded(points)
        return value.numpy(), gradient.numpy()

    def keep_if_right(self, flat: Tensor) -> bool:
        """Whether the record gives at these points what the program gives; it is dropped where it does not."""
        if self.recorded is None:
            return False
        try:
            with torch.no_grad():
                found = self.recorded(flat)
            right = all(_close(a, b) for a, b in zip(found, self._by_program(flat), strict=True))
        except RuntimeError:
            right = False
        if not right:
            self.recorded = None
        return right

    def _by_program(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            flat = flat.detach().requires_grad_()
            value = self.density(flat)
            (gradient,) = torch.autograd.grad(value.sum(), flat)
        return value.detach(), gradient


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two evaluations are alike up to the order of their sums."""
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-7, atol=1e-9 * (1 + scale), equal_nan=True)


def _scripted(graph: GraphModule, like: Tensor) -> Step:
    """The graph run by TorchScript, where torch still has it."""
    try:
        with torch.no_grad():
            traced = torch.jit.trace(graph, (like,), check_trace=False)
            frozen: Step = torch.jit.freeze(traced.eval())
            for _ in range(3):
                frozen(like)
    except Exception:
        return graph
    return frozen
