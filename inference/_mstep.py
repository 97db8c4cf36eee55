"""The M-step of any enumerable program: closed form where a site's parameters are the program's parameters, else numeric.

Which it is, is found by differentiating: when every entry of a distribution's parameter is a copy of an entry of θ (a
gather by a discrete latent), its Jacobian is a selection. With a random tangent t on θ, the Jacobian-vector product
shows at each entry the very number of t that was copied there (two vector-Jacobian products make it), and the entry's
value must equal θ's. Anything else, and global latents, go to L-BFGS on the expected complete log joint, through the
sufficient statistics wherever a site has them, so that its cost does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from inference._coordinates import Coordinates
from inference._exact import Enumeration, Statistics, Values
from inference._families import Floor, Pool
from zoo._program import Program


ROUNDING = 1e-12  # a derivative below is what is left of terms that cancel


@dataclass(frozen=True)
class Plan:
    """How each parameter is updated: `closed` maps θ → (site, parameter of its distribution); the rest is numeric."""

    closed: dict[str, tuple[str, str]]
    index: dict[str, Tensor]  # θ in `closed` → which of its entries each entry of that parameter copies
    numeric: tuple[str, ...]


def plan(exact: Enumeration, globals: Values) -> Plan:
    """Find, by differentiation at the program's current θ, which parameters have a closed-form update."""
    leaves = {n: v.detach().clone().requires_grad_() for n, v in exact.program.values().items()}
    if not leaves:
        return Plan({}, {}, ())
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        views, prior = exact.views(leaves, globals)
        uses: dict[str, list[tuple[str, str]]] = {n: [] for n in leaves}
        found: dict[str, Tensor | None] = {}
        for view in views:
            for name, value in (view.params or {}).items():
                for theta in dependencies(value, leaves):
                    uses[theta].append((view.name, name))
                    found[theta] = copies(value, leaves[theta], exact.program.constraints[theta], name)
        general = {v.name for v in views if v.params is None}
        if general:
            density = exact.general_log_prob(slice(0, min(2, exact.N)), general, leaves, globals)
            for theta in dependencies(density, leaves):
                uses[theta] += [("", ""), ("", "")]
        for theta in dependencies(prior, leaves):
            uses[theta] += [("", ""), ("", "")]
    by_name = {v.name: v.params or {} for v in views}
    closed, index = {}, {}
    for theta, where in uses.items():
        copies = found.get(theta)
        if len(where) == 1 and copies is not None:
            site, name = where[0]
            pool = Pool(theta, leaves[theta].detach(), copies)
            if exact.families[site].closed(name, pool, by_name[site]):
                closed[theta], index[theta] = (site, name), copies
    numeric = tuple(n for n, where in uses.items() if n not in closed and where)
    return Plan(closed, index, numeric)


def dependencies(value: Tensor, leaves: dict[str, Tensor]) -> list[str]:
    """Which leaves `value` depends on."""
    if not value.requires_grad:
        return []
    probe = torch.randn_like(value)
    gradients = torch.autograd.grad((value * probe).sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    return [n for n, g in zip(leaves, gradients, strict=True) if g is not None and bool((g.abs() > ROUNDING).any())]


def copies(value: Tensor, theta: Tensor, constraint: object, name: str) -> Tensor | None:
    """The entry of θ.flat that each entry of `value` copies, −1 for a constant; None when it is no such copy."""
    tangent = torch.randn_like(theta)
    normalised = type(constraint) is type(constraints.simplex)
    if normalised:  # a tangent of the simplex: distributions normalise their weights once more
        tangent = tangent - tangent.mean(-1, keepdim=True)
    cotangent = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad((value * cotangent).sum(), theta, create_graph=True, retain_graph=True)
    (pushed,) = torch.autograd.grad((pulled * tangent).sum(), cotangent, retain_graph=True)
    shown, pushed, source = value.detach(), pushed.detach(), theta.detach()
    if name == "logits" and value.dim() == 3:  # categorical logits count up to a constant
        shown, pushed = (v - v.mean(-1, keepdim=True) for v in (shown, pushed))
        source, tangent = (v - v.mean(-1, keepdim=True) for v in (source, tangent))
    flat, order = tangent.reshape(-1).sort()
    scale = 1e-9 if value.dtype == torch.float64 else 1e-4
    place = torch.searchsorted(flat, pushed.contiguous())
    best = torch.full_like(place, -1)
    gap = torch.full_like(pushed, torch.inf)
    for candidate in (place.clamp(max=len(flat) - 1), (place - 1).clamp(min=0)):
        distance = (flat[candidate] - pushed).abs()
        best = torch.where(distance < gap, order[candidate], best)
        gap = torch.minimum(gap, distance)
    copied = gap <= scale
    constant = (pushed == 0) & ~copied
    same = torch.isclose(shown, source.reshape(-1)[best.clamp(min=0)], rtol=scale, atol=scale)
    if not bool(((copied & same) | constant).all()):
        return None
    return torch.where(copied, best, torch.full_like(best, -1))


def m_step(
    exact: Enumeration,
    plan: Plan,
    stats: Statistics,
    globals: dict[str, Tensor],
    supports: dict[str, object],
    floor: Floor,
    responsibilities: Tensor | None = None,
    iterations: int = 10,
) -> dict[str, Tensor]:
    """Maximise the expected complete log joint over θ (in place) and the global latents (returned).

    `responsibilities` [N, A] are needed only where a site has no sufficient statistics.
    """
    with torch.no_grad():
        _closed(exact, plan, stats, globals, floor)
    if plan.numeric or globals:

        def expected(parameters: Values, point: Values) -> Tensor:
            return expected_log_joint(exact, stats, parameters, point, responsibilities)

        return climb_numerically(exact.program, plan.numeric, globals, supports, expected, exact.N, iterations)
    return globals


def _closed(exact: Enumeration, plan: Plan, stats: Statistics, globals: Values, floor: Floor) -> None:
    # locations first: a scale is taken about the new location
    order = sorted(plan.closed.items(), key=lambda item: item[1][1] != "loc")
    if not order:
        return
    params = {v.name: dict(v.params or {}) for v in exact.views(None, globals)[0]}
    values, new = exact.program.values(), {}
    for theta, (site, name) in order:
        pool = Pool(theta, values[theta], plan.index[theta])
        new[theta] = exact.families[site].maximise(name, pool, stats.sites[site], params[site], floor)
        params[site][name] = _spread(new[theta], pool.index, params[site][name])
    exact.program.assign(new)


def _spread(theta: Tensor, index: Tensor, old: Tensor) -> Tensor:
    """The distribution's parameter that the new θ makes."""
    return torch.where(index >= 0, theta.reshape(-1)[index.clamp(min=0)], old)


def climb_numerically(
    program: Program,
    names: tuple[str, ...],
    globals: dict[str, Tensor],
    supports: dict[str, object],
    expected: Callable[[Values, Values], Tensor],
    N: int,
    iterations: int,
) -> dict[str, Tensor]:
    """Raise `expected(parameters, globals)` by L-BFGS over the parameters `names` (in place) and the globals (returned).

    A step that does not help is not taken.
    """
    values = {n: v.detach() for n, v in program.values().items()}
    start = {n: values[n] for n in names} | globals
    held = {n: v for n, v in values.items() if n not in names}
    coordinates = Coordinates(start, {**program.constraints, **supports})
    flat = coordinates.flatten(start).clone().requires_grad_()
    optimiser = torch.optim.LBFGS([flat], max_iter=iterations, line_search_fn="strong_wolfe", history_size=20)

    def split(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters = {**held, **{n: v for n, v in found.items() if n not in globals}}
        return parameters, {n: v for n, v in found.items() if n in globals}

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -expected(*split(coordinates.unflatten(flat))) / N
        value.backward()
        return value

    before = flat.detach().clone()
    with torch.enable_grad():
        first = float(loss().detach())
        optimiser.step(loss)
        last = float(loss().detach())
    if not last <= first:  # also when it is not a number
        flat = before
    parameters, point = split({n: v.detach() for n, v in coordinates.unflatten(flat.detach()).items()})
    program.assign({n: parameters[n] for n in names})
    return point


def expected_log_joint(
    exact: Enumeration, stats: Statistics, parameters: Values, globals: Values, responsibilities: Tensor | None
) -> Tensor:
    """E_q[log p(x, z, globals)] up to a constant, nats; differentiable in parameters and globals."""
    views, total = exact.views(parameters, globals)
    general = set()
    for view in views:
        if view.params is None:
            general.add(view.name)
        else:
            total = total + exact.families[view.name].expected(stats.sites[view.name], view.params)
    if general:
        assert responsibilities is not None
        for rows in exact.chunks():
            weights = responsibilities[rows]
            density = exact.general_log_prob(rows, general, parameters, globals)
            total = total + torch.where(weights == 0, torch.zeros_like(density), weights * density).sum()
    return total
