"""The part of an M-step that has no closed form: L-BFGS on the expected complete log joint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from inference._exact.copies import Values
from inference._numerics import lbfgs
from inference._numerics.coordinates import Coordinates
from zoo._program.program import Program

ORDINARY = (
    1e2  # a parameter or slope beyond this, or below its inverse, is in units that L-BFGS's first steps do not fit
)
MOST_BENDS = 60  # coordinates up to which each has a unit of its own, else each tensor


def climb_numerically(
    program: Program,
    names: tuple[str, ...],
    globals: dict[str, Tensor],
    supports: Mapping[str, Constraint],
    expected: Callable[[Values, Values], Tensor],
    N: float,
    iterations: int,
) -> dict[str, Tensor]:
    """Raise `expected(parameters, globals)` by L-BFGS over the parameters (in place) and the globals (returned) in `names`.

    Of all the points it visits the best is taken: a line search that runs out of the distributions' support ends there.
    """
    globals = {n: v for n, v in globals.items() if n in names}
    names = tuple(n for n in names if n not in globals)
    if not names and not globals:
        return globals
    values = {n: v.detach() for n, v in program.values().items()}
    start = {n: values[n] for n in names} | globals
    held = {n: v for n, v in values.items() if n not in names}
    coordinates = Coordinates(start, {**program.constraints, **supports})
    flat = coordinates.flatten(start)

    def split(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters = {**held, **{n: v for n, v in found.items() if n not in globals}}
        return parameters, {n: v for n, v in found.items() if n in globals}

    def height(u: Tensor) -> Tensor:
        return -expected(*split(coordinates.unflatten(u))) / N

    unit = _units(height, flat, list(coordinates.sizes.values()))
    walker = (flat if unit is None else flat / unit).clone().requires_grad_()

    def loss() -> Tensor:
        value = height(walker if unit is None else unit * walker)
        value.backward()
        return value

    lbfgs.minimise([walker], loss, max_iter=iterations)
    with torch.no_grad():
        flat = walker.detach() if unit is None else unit * walker
    parameters, point = split({n: v.detach() for n, v in coordinates.unflatten(flat).items()})
    program.assign({n: parameters[n] for n in names})
    return point


def _units(height: Callable[[Tensor], Tensor], flat: Tensor, sizes: list[int]) -> Tensor | None:
    """1/√curvature of each coordinate [d], where parameters are in units far from 1; None where they are not.

    Without them a response in units of 10⁻⁵ has slopes so steep that the other parameters never move.
    """
    try:
        with torch.enable_grad():
            free = flat.clone().requires_grad_()
            (slope,) = torch.autograd.grad(height(free), free, create_graph=True)
            if not slope.requires_grad or not bool(slope.isfinite().all()) or _ordinary(flat, slope.detach(), sizes):
                return None
            bend = _bends(slope, free, sizes)
    except (ArithmeticError, ValueError, RuntimeError):
        return None
    good = bend.isfinite() & (bend > 0)
    return torch.where(good, bend, torch.ones_like(bend)).rsqrt().detach()


def _ordinary(flat: Tensor, slope: Tensor, sizes: list[int]) -> bool:
    size = torch.stack([part.abs().max() if len(part) else part.new_ones(()) for part in flat.split(sizes)])
    fits = (size == 0) | ((size > 1 / ORDINARY) & (size < ORDINARY))
    return bool(fits.all()) and bool((slope.abs() < ORDINARY).all())


def _bends(slope: Tensor, free: Tensor, sizes: list[int]) -> Tensor:
    """The diagonal of the Hessian [d]; of many coordinates, the mean in each tensor, by a vector of random signs."""
    if len(free) <= MOST_BENDS:
        rows = [torch.autograd.grad(s, free, retain_graph=True)[0][i] for i, s in enumerate(slope)]
        return torch.stack(rows)
    signs = 1.0 - 2.0 * (torch.arange(len(free)) * 0.6180339887498949 % 1 < 0.5).to(free)
    out, at = torch.zeros_like(free), 0
    for size in sizes:
        place = slice(at, at + size)
        (along,) = torch.autograd.grad(slope[place] @ signs[place], free, retain_graph=True)
        out[place], at = (along[place] @ signs[place]) / max(1, size), at + size
    return out
