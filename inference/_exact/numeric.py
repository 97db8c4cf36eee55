"""The part of an M-step that has no closed form: L-BFGS on the expected complete log joint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.distributions.constraints import Constraint

from inference._exact.engine import Values
from inference._numerics import lbfgs
from inference._numerics.coordinates import Coordinates
from zoo._program.program import Program


def climb_numerically(
    program: Program,
    names: tuple[str, ...],
    globals: dict[str, Tensor],
    supports: Mapping[str, Constraint],
    expected: Callable[[Values, Values], Tensor],
    N: float,
    iterations: int,
) -> dict[str, Tensor]:
    """Raise `expected(parameters, globals)` by L-BFGS over the parameters `names` (in place) and the globals (returned).

    Of all the points it visits the best is taken: a line search that runs out of the distributions' support ends there.
    """
    if not names and not globals:
        return globals
    values = {n: v.detach() for n, v in program.values().items()}
    start = {n: values[n] for n in names} | globals
    held = {n: v for n, v in values.items() if n not in names}
    coordinates = Coordinates(start, {**program.constraints, **supports})
    flat = coordinates.flatten(start).clone().requires_grad_()

    def split(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters = {**held, **{n: v for n, v in found.items() if n not in globals}}
        return parameters, {n: v for n, v in found.items() if n in globals}

    def loss() -> Tensor:
        value = -expected(*split(coordinates.unflatten(flat))) / N
        value.backward()
        return value

    lbfgs.minimise([flat], loss, max_iter=iterations)
    parameters, point = split({n: v.detach() for n, v in coordinates.unflatten(flat).items()})
    program.assign({n: parameters[n] for n in names})
    return point
