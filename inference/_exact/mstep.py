"""The M-step of any enumerable program: closed form where a site's parameters are the program's parameters, else numeric.

Which it is, is found by differentiating: when every entry of a distribution's parameter is a copy of an entry of θ (a
gather by a discrete latent), its Jacobian is a selection. With a random tangent t on θ, the Jacobian-vector product
shows at each entry the very number of t that was copied there (two vector-Jacobian products make it), and the entry's
value must equal θ's. Anything else, and global latents, go to L-BFGS on the expected complete log joint, through the
sufficient statistics wherever a site has them, so that its cost does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from inference._exact.enumeration import Enumeration, Statistics, Values
from inference._families._family import Floor, Pool
from inference._numerics import lbfgs
from inference._numerics.coordinates import Coordinates
from inference._numerics.threads import one_thread
from zoo._program.program import Program

ROUNDING = 1e-12  # a derivative below is what is left of terms that cancel


@dataclass(frozen=True)
class Plan:
    """How each parameter is updated: `closed` maps θ → (site, parameter of its distribution); the rest is numeric."""

    closed: dict[str, tuple[str, str]]
    index: dict[str, Tensor]  # θ in `closed` → which of its entries each entry of that parameter copies
    numeric: tuple[str, ...]


def plan(exact: Enumeration, globals: Values) -> Plan:
    """Find, by differentiation, which parameters have a closed-form update."""

    def look(leaves: Values) -> tuple[list[tuple[str, str, Tensor]], list[Tensor]]:
        views, prior = exact.views(leaves, globals)
        given = [(v.name, name, value) for v in views for name, value in (v.params or {}).items()]
        general = {v.name for v in views if v.params is None}
        rows = slice(0, min(2, exact.N))
        return given, [prior, *([exact.general_log_prob(rows, general, leaves, globals)] if general else [])]

    uses, found = usage(exact.program, look)
    by_name = {v.name: v.params or {} for v in exact.views(None, globals)[0]}
    values, closed, index = exact.program.values(), {}, {}
    for theta, where in uses.items():
        copied = found.get(theta)
        if len(where) == 1 and copied is not None:
            site, name = where[0]
            pool = Pool(theta, values[theta].detach(), copied)
            if exact.families[site].closed(name, pool, by_name[site]):
                closed[theta], index[theta] = (site, name), copied
    numeric = tuple(n for n, where in uses.items() if n not in closed and where)
    return Plan(closed, index, numeric)


Uses = dict[str, list[tuple[str, str]]]  # θ → the (site, parameter) pairs that it enters; ("", "") for anything else
Look = Callable[[Values], tuple[list[tuple[str, str, Tensor]], list[Tensor]]]


def usage(program: Program, look: Look) -> tuple[Uses, dict[str, Tensor | None]]:
    """Where each θ enters, and the index by which it is copied there, or None.

    `look` maps θ to (site, parameter, value) triples and to whatever else depends on θ. It is asked at the program's θ and
    at others: tanh(θ) is a copy of θ at 0, and |θ| where θ is positive, but nowhere else. Points that the program's
    distributions do not take are passed over.
    """
    uses: Uses = {n: [] for n in program.values()}
    found: dict[str, Tensor | None] = {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        for number, values in enumerate(_places(program)):
            leaves = {n: v.detach().clone().requires_grad_() for n, v in values.items()}
            try:
                given, rest = look(leaves)
            except (ValueError, RuntimeError):
                if number == 0:
                    raise
                continue
            for site, name, value in given:
                for theta in dependencies(value, leaves):
                    copied = copies(value, leaves[theta], program.constraints[theta], name)
                    before = found.get(theta, copied)
                    same = copied is not None and before is not None and torch.equal(copied, before)
                    found[theta] = copied if same else None
                    uses[theta] += [(site, name)] * ((site, name) not in uses[theta])
            for value in rest:
                for theta in _connected(value, leaves):
                    uses[theta].append(("", ""))
                    found[theta] = None
    return uses, found


def _places(program: Program) -> Iterator[dict[str, Tensor]]:
    """The program's θ, and points away from it on either side of zero."""
    yield program.values()
    for sign in (1.0, -1.0, -1.0):
        moved = {}
        for name, p in program.unconstrained().items():
            noise = torch.randn(p.shape, dtype=torch.float64).to(p)
            free = sign * p.detach() + 0.5 * (1 + p.detach().abs()).clamp(max=3.0) * noise
            moved[name] = transform_to(program.constraints[name])(free)
        yield moved


def _connected(value: Tensor, leaves: Values) -> list[str]:
    """Which leaves enter the computation of `value`, also where the derivative happens to be zero."""
    if not value.requires_grad:
        return []
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    return [n for n, g in zip(leaves, gradients, strict=True) if g is not None]


def dependencies(value: Tensor, leaves: dict[str, Tensor]) -> list[str]:
    """Which leaves `value` depends on."""
    if not value.requires_grad:
        return []
    probe = torch.randn_like(value)
    gradients = torch.autograd.grad((value * probe).sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    return [n for n, g in zip(leaves, gradients, strict=True) if g is not None and bool((g.abs() > ROUNDING).any())]


def copies(value: Tensor, theta: Tensor, constraint: object, name: str) -> Tensor | None:
    """The entry of θ.flat that each entry of `value` copies, −1 for a constant; None when it is no such copy.

    Nor is it one where θ's constraint is narrower than the parameter's: the best value may then be out of θ's reach.
    """
    if not _suits(constraint, name, value.dim()):
        return None
    tangent = _apart(theta)
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


def _apart(theta: Tensor) -> Tensor:
    """Random numbers of θ's shape of which no two are nearly equal: thousands of float32 draws would hold some twins."""
    n = max(theta.numel(), 1)
    cells = torch.randperm(n).double() + 0.25 + 0.5 * torch.rand(n, dtype=torch.float64)
    return (4 * cells / n - 2).to(theta).reshape(theta.shape)


def _suits(constraint: Any, name: str, dims: int) -> bool:
    """Whether θ under `constraint` reaches all values of the distribution's parameter `name`."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if type(constraint) is type(constraints.real):
        return True
    if name in ("scale", "rate"):
        return getattr(constraint, "lower_bound", None) == 0 and not hasattr(constraint, "upper_bound")
    if name == "probs" and dims == 2:  # of a Bernoulli
        return getattr(constraint, "lower_bound", None) == 0 and getattr(constraint, "upper_bound", None) == 1
    natural = {
        "probs": constraints.simplex,
        "scale_tril": constraints.lower_cholesky,
        "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
    }.get(name)
    return natural is not None and type(constraint) is type(natural)


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
    with torch.no_grad(), one_thread():  # its matrices are small: threads cost more than they save
        _closed(exact, plan, stats, floor)
    if plan.numeric or globals:

        def objective(parameters: Values, point: Values) -> Tensor:
            return expected(exact, stats, parameters, point, responsibilities)

        return climb_numerically(exact.program, plan.numeric, globals, supports, objective, exact.N, iterations)
    return globals


def _closed(exact: Enumeration, plan: Plan, stats: Statistics, floor: Floor) -> None:
    # locations first: a scale is taken about the new location
    order = sorted(plan.closed.items(), key=lambda item: item[1][1] != "loc")
    if not order:
        return
    params = {v.name: dict(v.params or {}) for v in stats.views}
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

    Of all the points it visits the best is taken: a line search that runs out of the distributions' support ends there.
    """
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


def still_copies(value: Tensor, theta: Tensor, index: Tensor) -> bool:
    """Whether a distribution's parameter is, where θ stands now, the copy of θ's entries that `index` says."""
    value, theta = value.detach(), theta.detach()
    copy = torch.where(index >= 0, theta.reshape(-1)[index.clamp(min=0)], value)
    return torch.allclose(copy, value, rtol=1e-6 if value.dtype == torch.float64 else 1e-3, atol=1e-12)


def broken(exact: Enumeration, plan: Plan, stats: Statistics) -> list[str]:
    """The parameters with a closed form that the sites, as the last E-step saw them, do not copy where they stand."""
    params = {v.name: v.params or {} for v in stats.views}
    values, out = exact.program.values(), []
    for theta, (site, name) in plan.closed.items():
        value, mine = params[site][name], values[theta]
        if name == "logits" and value.dim() == 3:  # categorical logits count up to a constant
            value, mine = (v - v.mean(-1, keepdim=True) for v in (value, mine))
        if not still_copies(value, mine, plan.index[theta]):
            out.append(theta)
    return out


def without(plan: Plan, names: set[str]) -> Plan:
    """The plan with `names` updated numerically."""
    moved = tuple(n for n in plan.closed if n in names)
    closed = {n: use for n, use in plan.closed.items() if n not in names}
    return Plan(closed, plan.index, (*plan.numeric, *moved)) if moved else plan


def smallest(exact: Enumeration, stats: Statistics) -> float:
    """The smallest variance of an observed site, as a share of its data's own; ∞ where there is none."""
    found = [exact.families[v.name].smallest(v.params) for v in stats.views if v.params is not None and not v.latent]
    return min((float(f.amin()) for f in found if f is not None), default=math.inf)


def expected(
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
