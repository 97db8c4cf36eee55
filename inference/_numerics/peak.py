"""The peak of a log-density of a few hundred numbers: L-BFGS, then Newton steps with the whole Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._numerics import definite, lbfgs

SMALLEST_EIGENVALUE = 1e-9  # of a Hessian with ones on its diagonal
SADDLE = 1e-4  # below minus this an eigenvalue is no rounding
DIFFERENCE = 1e-3  # standard deviations between the gradients that a Hessian is taken from
Density = Callable[[Tensor], Tensor]


@dataclass
class Peak:
    """Where a climb ended."""

    flat: Tensor
    value: float
    hessian: Tensor  # of −density
    converged: bool
    trace: list[float]


def climb(
    density: Density,
    flat: Tensor,
    max_iter: int,
    tol: float,
    step: Callable[..., object],
    look: Callable[[Density, Tensor], tuple[float, Tensor]] | None = None,
) -> Peak:
    """The peak of `density` by L-BFGS from `flat` [d], finished by Newton steps until one would gain less than `tol` nats.

    `look`: how value and Hessian are found; `value_and_hessian` unless given.
    """
    look = look or value_and_hessian
    # coordinates come in units of their own: walk in steps of about one standard deviation of each
    begin, unit = flat, look(density, flat)[1].diagonal().abs().clamp(min=1e-30).rsqrt()
    unit = torch.where(unit < 1e14, unit, torch.ones_like(unit))
    walk = torch.zeros_like(flat).requires_grad_()
    trace: list[float] = []
    optimiser = lbfgs.optimiser([walk], max_iter=max_iter, tolerance_change=1e-12)

    def loss() -> Tensor:
        walk.grad = None
        value = -density(begin + unit * walk)
        value.backward()
        trace.append(-float(value.detach()))
        step(note=f"{trace[-1]:.4f}")
        return value

    try:
        optimiser.step(loss)
    except IndexError as error:  # torch's line search, of a density that is no number at its first point
        raise ArithmeticError("the climb to the mode met a density that is not a number; try another seed.") from error
    flat = begin + unit * walk.detach()
    if not bool(flat.isfinite().all()):
        raise ArithmeticError("the climb to the mode diverged to infinity; try another seed, or priors.")
    value, hessian = look(density, flat)
    for _ in range(20):
        gradient = _gradient(density, flat)
        move = _newton_step(hessian, gradient)
        decrement = float(gradient @ move)  # twice the nats that the step would gain
        if decrement < 2 * tol:
            off = _off_a_saddle(hessian)
            if off is None:
                return Peak(flat, value, hessian, True, trace)
            move = off
        better = _line_search(density, flat, move, value)
        if better is None:
            break
        flat = better
        value, hessian = look(density, flat)
        trace.append(value)
    return Peak(flat, value, hessian, False, trace)


def _newton_step(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Uphill: an eigenvalue that is negative beyond rounding counts by its size."""
    scaled, size = definite.unit_diagonal(hessian)
    values, vectors = definite.eigen(scaled)
    lengths = torch.where(values < -SADDLE, -values, values.clamp(min=SMALLEST_EIGENVALUE))
    move: Tensor = vectors @ ((vectors.mT @ (gradient / size)) / lengths) / size
    return move


def _off_a_saddle(hessian: Tensor) -> Tensor | None:
    """A step along the way in which the density curves up most; None where it curves down, or is flat, in every way."""
    scaled, size = definite.unit_diagonal(hessian)
    values, vectors = definite.eigen(scaled)
    if float(values[0]) > -SADDLE:
        return None
    return vectors[:, 0] / values[0].abs().sqrt() / size


def _line_search(density: Density, flat: Tensor, move: Tensor, value: float) -> Tensor | None:
    for halvings in range(12):
        candidate = flat + 0.5**halvings * move
        with torch.no_grad():
            if float(density(candidate)) > value:
                return candidate
    return None


def _gradient(density: Density, flat: Tensor) -> Tensor:
    flat = flat.clone().requires_grad_()
    return torch.autograd.grad(density(flat), flat)[0]


def value_and_hessian(density: Density, flat: Tensor) -> tuple[float, Tensor]:
    """density(flat), and the Hessian [d, d] of −density there."""
    with torch.no_grad():
        value = float(density(flat))
    hessian = torch.autograd.functional.hessian(lambda f: -density(f), flat)
    assert isinstance(hessian, Tensor)
    return value, (hessian + hessian.mT) / 2


def value_and_differences(densities: Density, flat: Tensor) -> tuple[float, Tensor]:
    """As `value_and_hessian`, by central differences of gradients, where the gradient alone is known.

    `densities`: of points [B, d] side by side.
    """
    with torch.no_grad():
        value = float(densities(flat.unsqueeze(0)))
    size, d = torch.ones_like(flat), len(flat)
    hessian = flat.new_zeros(d, d)
    for _ in range(2 if d else 0):  # the second time in units of standard deviations
        steps = (DIFFERENCE * size).diag()
        points = torch.cat([flat - steps, flat + steps]).requires_grad_()
        with torch.enable_grad():
            (slopes,) = torch.autograd.grad(densities(points).sum(), points)
        hessian = (slopes[:d] - slopes[d:]) / (2 * DIFFERENCE * size.unsqueeze(1))
        size, before = hessian.diagonal().abs().clamp(min=1e-12).rsqrt(), size
        if bool((size / before).log().abs().lt(3).all()):
            break
    return value, (hessian + hessian.mT) / 2
