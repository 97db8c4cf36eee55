"""L-BFGS (Liu & Nocedal 1989): the direction from the last steps, and torch's optimiser with the best point kept."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HISTORY = 20
UNCOMPILED = "__dynamo_disable"  # the attribute where torch keeps that form
OUTSIDE = (ArithmeticError, ValueError, RuntimeError)  # what a loss raises outside its domain


class Memory:
    """The last steps s and how the gradient changed along each, y. They stand for the inverse Hessian."""

    def __init__(self, flattest: float, one_factor: bool = False) -> None:
        """`flattest`: a pair is kept where s·y is above this share of ‖s‖ ‖y‖.

        `one_factor`: round the first scaling, sᵀy / yᵀy, to one number before it multiplies. The last bit decides where a
        climb ends that stops when little is left to gain: each climb keeps its own order of operations.
        """
        self.flattest, self.one_factor = flattest, one_factor
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)

    def __len__(self) -> int:
        return len(self._pairs)

    def clear(self) -> None:
        """Forget all: the next direction is the gradient's own."""
        self._pairs.clear()

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair, where it shows the right curvature."""
        if float(step @ change) > self.flattest * float(step.norm() * change.norm()):
            self._pairs.append((step, change))

    def times(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient, by two loops (Nocedal & Wright 2006, algorithm 7.4)."""
        q, alphas = gradient.clone(), []
        for s, y in reversed(self._pairs):
            alpha = (s @ q) / (s @ y)
            q = q - alpha * y
            alphas.append(alpha)
        if self._pairs:
            s, y = self._pairs[-1]
            q = q * ((s @ y) / (y @ y)) if self.one_factor else q * (s @ y) / (y @ y)
        for (s, y), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q = q + (alpha - (y @ q) / (s @ y)) * s
        return q


def minimise(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    max_iter: int,
    tolerance_change: float = 1e-9,
    rates: Sequence[float] = (1.0,),
) -> bool:
    """Lower `loss()`, which adds its gradients to the `grad` of `parameters`; the best of all visited points stays in them.

    A line search may run to a point where the loss raises one of `OUTSIDE`. Then the search starts again from the best
    point at the next of `rates`, and ends there after the last. Where no point had a value, the error is raised.

    Returns whether it ended by itself, before `max_iter` iterations.
    """
    lowest, best, ended = math.inf, [p.detach().clone() for p in parameters], False

    def evaluate() -> Tensor:
        nonlocal lowest, best
        for p in parameters:
            p.grad = None
        value = loss()
        if float(value.detach()) < lowest:
            lowest, best = float(value.detach()), [p.detach().clone() for p in parameters]
        return value

    for rate in rates:
        walk = optimiser(
            list(parameters), lr=rate, max_iter=max_iter, tolerance_change=tolerance_change, history_size=HISTORY
        )
        try:
            with torch.enable_grad():
                walk.step(evaluate)
            ended = bool(walk.state[parameters[0]]["n_iter"] < max_iter)
            break
        except OUTSIDE:
            if lowest == math.inf:
                raise
            _put(parameters, best)
    _put(parameters, best)
    return ended


def optimiser(parameters: Sequence[Tensor], **options: Any) -> torch.optim.LBFGS:
    """`torch.optim.LBFGS` with its line search, made without torch's compiler, whose import takes longer than many a climb.

    torch imports it to keep it from compiling `add_param_group`, unless that method has a form for this already: itself here.
    """
    plain = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    spared = plain is not None and "torch._dynamo" not in sys.modules
    if spared:
        setattr(plain, UNCOMPILED, plain)
    try:
        return torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **options)
    finally:
        if spared:
            delattr(plain, UNCOMPILED)


@torch.no_grad()
def _put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
