"""The peak of a log-density of a few hundred numbers: L-BFGS, then Newton steps with the whole Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._numerics import definite

SMALLEST_EIGENVALUE = 1e-9  # of a Hessian with ones on its diagonal


@dataclass
class Peak:
    """Where a climb ended."""

    flat: Tensor
    value: float
    hessian: Tensor  # of −density
    converged: bool
    trace: list[float]


def climb(
    density: Callable[[Tensor], Tensor], flat: Tensor, max_iter: int, tol: float, step: Callable[..., object]
) -> Peak:
    """The peak of `density` by L-BFGS from `flat` [d], finished by Newton steps until one would gain less than `tol` nats."""
    # coordinates come in units of their own: walk in steps of about one standard deviation of each
    begin, unit = flat, value_and_hessian(density, flat)[1].diagonal().abs().clamp(min=1e-30).rsqrt()
    unit = torch.where(unit < 1e14, unit, torch.ones_like(unit))
    walk = torch.zeros_like(flat).requires_grad_()
    trace: list[float] = []
    optimiser = torch.optim.LBFGS([walk], max_iter=max_iter, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -density(begin + unit * walk)
        value.backward()
        trace.append(-float(value.detach()))
        step(note=f"{trace[-1]:.4f}")
        return value

    optimiser.step(loss)
    flat = begin + unit * walk.detach()
    if not bool(flat.isfinite().all()):
        raise ArithmeticError("the climb to the mode diverged to infinity; try another seed, or priors.")
    value, hessian = value_and_hessian(density, flat)
    for _ in range(20):
        gradient = _gradient(density, flat)
        move = torch.linalg.solve(definite.raised(hessian, SMALLEST_EIGENVALUE)[0], gradient)
        decrement = float(gradient @ move)  # twice the nats that the step would gain
        if decrement < 2 * tol:
            return Peak(flat, value, hessian, True, trace)
        better = _line_search(density, flat, move, value)
        if better is None:
            break
        flat = better
        value, hessian = value_and_hessian(density, flat)
        trace.append(value)
    return Peak(flat, value, hessian, False, trace)


def _line_search(density: Callable[[Tensor], Tensor], flat: Tensor, move: Tensor, value: float) -> Tensor | None:
    for halvings in range(12):
        candidate = flat + 0.5**halvings * move
        with torch.no_grad():
            if float(density(candidate)) > value:
                return candidate
    return None


def _gradient(density: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    flat = flat.clone().requires_grad_()
    return torch.autograd.grad(density(flat), flat)[0]


def value_and_hessian(density: Callable[[Tensor], Tensor], flat: Tensor) -> tuple[float, Tensor]:
    """density(flat), and the Hessian [d, d] of −density there."""
    with torch.no_grad():
        value = float(density(flat))
    hessian = torch.autograd.functional.hessian(lambda f: -density(f), flat)
    assert isinstance(hessian, Tensor)
    return value, (hessian + hessian.mT) / 2
