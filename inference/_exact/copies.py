"""Where each parameter θ enters a program's distributions, and whether it is copied there entry by entry.

An M-step has a closed form where a distribution's parameter is made of entries of θ: all of it at once, or a gather by a
discrete latent (`locs[z]`). That is found by differentiating, so a program may be written in any way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from inference._families._family import FORMS, Family, Params, Places
from inference._numerics.coordinates import bijection
from inference._numerics.threads import one_thread
from zoo._program.program import Program

ROUNDING = 1e-12  # a derivative below is what is left of terms that cancel
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Copy:
    """A parameter of a site's distribution, made of entries of one θ: `index` into θ.flat for each, −1 for a constant.

    θ may be a global latent too. `form`: what of the parameter it is a copy of (`FORMS`), say the variance of a scale.
    """

    site: str
    parameter: str
    index: Tensor
    up_to_constant: bool = False  # a constant may be added to each vector of it
    form: str = ""

    @cached_property
    def places(self) -> Places:
        """The index, and what follows from it."""
        return Places(self.index)

    def of(self, theta: Tensor, otherwise: Tensor) -> Tensor:
        """The distribution's parameter that θ makes; its constants are those of `otherwise`."""
        return self._gathered(FORMS[self.form][1](theta), otherwise)

    def holds(self, value: Tensor, theta: Tensor) -> bool:
        """Whether the distribution's parameter is, where θ stands now, still the copy of θ's entries."""
        value, theta = value.detach(), theta.detach()
        if self.up_to_constant:
            value, theta = _centred(value), _centred(theta)
        if self.form:
            theta = FORMS[self.form][1](theta)
        return torch.allclose(
            self._gathered(theta, value), value, rtol=1e-6 if value.dtype == torch.float64 else 1e-3, atol=1e-12
        )

    def _gathered(self, theta: Tensor, otherwise: Tensor) -> Tensor:
        if self.places.in_order and self.index.numel() == theta.numel():
            return theta.reshape(self.index.shape)
        return torch.where(self.index >= 0, theta.reshape(-1)[self.index.clamp(min=0)], otherwise)


@dataclass(frozen=True)
class Given:
    """A parameter that a site's distribution was given."""

    site: str
    name: str
    value: Tensor
    constraint: Constraint  # the values it may take
    up_to_constant: bool = False  # a constant may be added to each vector of it
    forms: tuple[str, ...] = ()  # what else of it a global latent may be a copy of


def parts_of(site: str, family: Family | type[Family], params: Params) -> list[Given]:
    """The parameters of a site, as its family declares them."""
    return [
        Given(site, n, v, family.parameters[n], n in family.up_to_constant, family.forms.get(n, ()))
        for n, v in params.items()
    ]


Look = Callable[[Values], tuple[list[Given], list[Tensor]]]


def find(
    program: Program, look: Look, globals: Values | None = None, supports: Mapping[str, Constraint] | None = None
) -> dict[str, Copy | None]:
    """θ → where it is copied, None where it enters in another way or in several places; without those that enter nowhere.

    The same of `globals` on their `supports`, where there are any.

    `look` maps θ to the parameters of the sites and to whatever else depends on θ. It is asked at the program's θ and at
    others: tanh(θ) is a copy of θ at 0, and |θ| where θ is positive, but nowhere else. Points that the program's
    distributions do not take are passed over.
    """
    globals, supports = globals or {}, {**program.constraints, **(supports or {})}
    uses: dict[str, set[tuple[str, str]]] = {n: set() for n in (*program.values(), *globals)}
    found: dict[str, Copy | None] = {}
    with one_thread(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        for number, values in enumerate(places(program, globals, supports)):
            leaves = {n: v.detach().clone().requires_grad_() for n, v in values.items()}
            try:
                parts, rest = look(leaves)
            except (ValueError, RuntimeError):
                if number == 0:
                    raise
                continue
            for part in parts:
                for theta in dependencies(part.value, leaves):
                    copy = _copy(part, leaves[theta], supports[theta], part.forms if theta in globals else ())
                    before = found.get(theta, copy)
                    same = copy is not None and before is not None and torch.equal(copy.index, before.index)
                    found[theta] = copy if same and copy and before and copy.form == before.form else None
                    uses[theta].add((part.site, part.name))
            for value in rest:
                for theta in _connected(value, leaves):
                    uses[theta].add(("", ""))
                    found[theta] = None
    return {theta: found.get(theta) if len(where) == 1 else None for theta, where in uses.items() if where}


def _copy(part: Given, theta: Tensor, constraint: Constraint, forms: tuple[str, ...]) -> Copy | None:
    for form in ("", *forms):
        shown = replace(part, value=FORMS[form][0](part.value)) if form else part
        if (index := copies(shown, theta, constraint)) is not None:
            return Copy(part.site, part.name, index, part.up_to_constant, form)
    return None


def places(
    program: Program, globals: Values | None = None, supports: Mapping[str, Constraint] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The program's θ and the globals, and points away from them on either side of zero."""
    globals, supports = globals or {}, supports or program.constraints
    yield {**program.values(), **globals}
    ways = {n: transform_to(supports[n]) for n in program.values()} | {n: bijection(supports[n]) for n in globals}
    free = {**program.unconstrained(), **{n: ways[n].inv(v) for n, v in globals.items()}}
    for sign in (1.0, -1.0, -1.0):
        moved = {}
        for name, p in free.items():
            noise = torch.randn(p.shape, dtype=torch.float64).to(p)
            moved[name] = ways[name](sign * p.detach() + 0.5 * (1 + p.detach().abs()).clamp(max=3.0) * noise)
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


def copies(part: Given, theta: Tensor, constraint: Constraint) -> Tensor | None:
    """The entry of θ.flat that each entry of a parameter copies, −1 for a constant; None when it is no such copy.

    Nor is it one where θ's constraint is narrower than the parameter's: the best value may then be out of θ's reach.
    """
    # Say θ = [5, 7], and under two joint values of the latents the parameter is value = [7, 5]. Then its Jacobian is
    # J = [[0, 1], [1, 0]]. Along a tangent of unlike numbers, t = [0.3, −1.2], J t = [−1.2, 0.3]: each entry shows the very
    # number of t that belongs to the entry of θ it copies, and the index is [1, 0]. An entry 2 θ_0 would show 0.6, which
    # is no number of t; one of exp(θ_0) at θ_0 = 0 would show 0.3, but its value, 1, is not θ's.
    # Backward passes give Jᵀ c for a cotangent c, not J t. But Jᵀ c · t is linear in c, and its gradient in c is J t.
    if not reaches(constraint, part.constraint):
        return None
    value = part.value
    tangent = _apart(theta)
    normalised = type(_of_an_entry(constraint)) is type(constraints.simplex)
    if normalised:  # a tangent of the simplex: distributions normalise their weights once more
        tangent = tangent - tangent.mean(-1, keepdim=True)
    cotangent = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad((value * cotangent).sum(), theta, create_graph=True, retain_graph=True)  # Jᵀ c
    (pushed,) = torch.autograd.grad((pulled * tangent).sum(), cotangent, retain_graph=True)  # J t
    shown, pushed, source = value.detach(), pushed.detach(), theta.detach()
    if part.up_to_constant:
        shown, pushed, source, tangent = map(_centred, (shown, pushed, source, tangent))
    scale = 1e-9 if value.dtype == torch.float64 else 1e-4
    best, gap = _nearest(pushed, tangent.reshape(-1))
    copied = gap <= scale
    constant = (pushed == 0) & ~copied
    same = torch.isclose(shown, source.reshape(-1)[best.clamp(min=0)], rtol=scale, atol=scale)
    if not bool(((copied & same) | constant).all()):
        return None
    return torch.where(copied, best, torch.full_like(best, -1))


def _nearest(numbers: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the numbers, which of `among` [n] is nearest, and how far off it is."""
    ascending, order = among.sort()
    place = torch.searchsorted(ascending, numbers.contiguous())
    best, gap = torch.full_like(place, -1), torch.full_like(numbers, torch.inf)
    for candidate in (place.clamp(max=len(among) - 1), (place - 1).clamp(min=0)):
        distance = (ascending[candidate] - numbers).abs()
        best = torch.where(distance < gap, order[candidate], best)
        gap = torch.minimum(gap, distance)
    return best, gap


def _centred(value: Tensor) -> Tensor:
    return value - value.mean(-1, keepdim=True)


def _apart(theta: Tensor) -> Tensor:
    """Random numbers of θ's shape of which no two are nearly equal: thousands of float32 draws would hold some twins."""
    n = max(theta.numel(), 1)
    cells = torch.randperm(n).double() + 0.25 + 0.5 * torch.rand(n, dtype=torch.float64)
    return (4 * cells / n - 2).to(theta).reshape(theta.shape)


def reaches(constraint: Constraint, wanted: Constraint) -> bool:
    """Whether θ under `constraint` reaches all values of a parameter that may take the `wanted` ones."""
    constraint, wanted = _of_an_entry(constraint), _of_an_entry(wanted)
    if type(constraint) is type(constraints.real):
        return True
    ends = ("lower_bound", "upper_bound")
    if any(hasattr(wanted, end) for end in ends):
        return all(getattr(constraint, end, None) == getattr(wanted, end, None) for end in ends)
    return type(constraint) is type(wanted)


def _of_an_entry(constraint: Constraint) -> Constraint:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint
