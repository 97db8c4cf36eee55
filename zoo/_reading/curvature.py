"""Is the log joint quadratic in the continuous local latents? Proved from the program's operations, and also measured.

The danger is a false yes: a decoder tanh(w z) with small weights is nearly linear. The proof comes from `sites`: only affine
operations lead from z to a normal site's location, and none to its scale. The measurement is a second check, at points drawn
from the latents' priors and far beyond them: in float64 rounding changes the curvature of a quadratic by about 1e-15 of itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from zoo._program.axes import Axes
from zoo._program.latents import Layout, joint_values
from zoo._program.program import Program
from zoo._program.structure import Exactness
from zoo._program.trace import (
    Node,
    family_name,
    is_discrete,
    is_latent,
    is_local,
    is_real,
    node_of,
    per_datum,
    sample_nodes,
    support_of,
)
from zoo._reading.operations import OTHER
from zoo._reading.sites import Reading

CURVATURE_TOLERANCE = 1e-9  # rounding is about 1e-15, and grows with the number of terms
CURVATURE_STEPS = (0.0, 1.0, -1.0, 3.0, 10.0)  # from one draw of the prior towards another, in units of their distance
CURVATURE_ASSIGNMENTS = 64
CURVATURE_ROWS = 12
MOST_NAMED = 6  # latents in a sentence
NORMAL = ("Normal", "MultivariateNormal", "LowRankMultivariateNormal", "LogNormal")
LARGEST_HESSIAN = 64  # latents whose curvature is looked at whole
MANY_SITES = 46  # of which all are looked at in one go, and one by one only where that shows something
DIRECTIONS, FEWER = 8, 2


def quadratic(
    program: Program,
    probe: Tensor,
    nodes: list[Node],
    axes: Axes,
    assignments: int,
    reading: Reading,
) -> tuple[Exactness, str, float]:
    """Whether the log joint is quadratic in the continuous local latents, why, and by how much its curvature changes."""
    by_name = {n["name"]: n for n in nodes}
    latent = [n for n in nodes if is_local(n) and is_latent(n)]
    continuous = [n["name"] for n in latent if not is_discrete(n["fn"])]
    discrete = [n["name"] for n in latent if is_discrete(n["fn"])]
    shown = ", ".join(f"'{n}'" for n in continuous)
    if len(continuous) > MOST_NAMED:
        shown = f"'{continuous[0]}', '{continuous[1]}' … '{continuous[-1]}'"
    for name in continuous:
        if not is_real(support_of(by_name[name]["fn"])):
            family = family_name(by_name[name]["fn"])
            return Exactness.NO, f"the latent '{name}' ({family}) does not range over all real numbers", math.inf
    if said := _not_proved(by_name, reading, shown):
        return Exactness.NO, said, math.inf
    layout = Layout(by_name, continuous, axes)
    joint = joint_values(by_name, discrete, axes)
    rows = probe[torch.linspace(0, len(probe) - 1, min(len(probe), CURVATURE_ROWS)).long()].nan_to_num(0.0).double()
    change, concave = curvature_change(_in_double(program), rows, layout, joint, assignments, by_name)
    if lost := [n for n in change if reading.sites[n].degree == 0]:
        return Exactness.NO, f"at site '{lost[0]}' an operation on the latents {shown} cannot be analysed", math.inf
    worst = max(change, key=lambda name: change[name])
    family = family_name(by_name[worst]["fn"])
    if not change[worst] <= CURVATURE_TOLERANCE:
        return (
            Exactness.NO,
            f"log p(x, z) is not quadratic in the continuous latents {shown}: at site '{worst}' ({family}) its curvature "
            f"changes by {change[worst]:.1e} of itself between random points",
            change[worst],
        )
    # a normal density is concave for any scale; for others the measured curvature decides
    normal = all(family_name(by_name[n]["fn"]) in NORMAL for n, site in reading.sites.items() if site.degree == 2)
    if not normal and not concave:
        return (
            Exactness.NO,
            (
                f"log p(x, z) is quadratic in the continuous latents {shown}, but has no peak in them: a density that does not "
                "fall off (a Delta, a mask, a factor) stands where a normal one should"
            ),
            change[worst],
        )
    why = f"log p(x, z) is quadratic in {shown}: its curvature changes by {change[worst]:.0e} of itself between random points"
    if discrete:
        names = ", ".join(f"'{n}'" for n in discrete)
        return (
            Exactness.CONDITIONALLY_LINEAR_GAUSSIAN,
            f"given each of the {assignments} joint values of {names}, {why}",
            change[worst],
        )
    return Exactness.LINEAR_GAUSSIAN, why, change[worst]


def _not_proved(nodes: Mapping[str, Node], reading: Reading, shown: str) -> str:
    """Which operation keeps the log-density from being quadratic, and at which site; "" where none does."""
    start = f"log p(x, z) is not quadratic in the continuous latents {shown}"
    if reading.detached:
        return f"{start}: one of them is detached at {reading.detached}, so its derivatives are lost"
    for name, node in nodes.items():
        site = reading.sites.get(name)
        if site is None or not is_local(node):
            continue
        family = family_name(node["fn"])
        if site.degree == OTHER and site.unknown_by:
            return (
                f"{start}, or cannot be proved to be: at site '{name}' ({family}), {site.unknown_by} cannot be analysed"
            )
        if site.degree == OTHER and site.curved_by:
            return f"{start}: at site '{name}' ({family}), {site.curved_by} is not affine in them"
        if site.degree == OTHER:
            return f"{start}: site '{name}' ({family}) is not Gaussian in them"
    return ""


def _in_double(program: Program) -> Program:
    """The program in float64: a curvature to 1e-9 cannot be read off in less."""
    if program.dtype == torch.float64:
        return program
    program = copy.deepcopy(program).double()
    program.dtype = torch.float64
    return program


def curvature_change(
    program: Program,
    rows: Tensor,
    layout: Layout,
    joint: dict[str, Tensor],
    assignments: int,
    nodes: Mapping[str, Node],
) -> tuple[dict[str, float], bool]:
    """Site → how far its log-density is from a quadratic in the continuous local latents, relative; and whether all of them
    together are concave.

    At random points, near and far, compares Hessian-vector products with those at the first point, and values with the
    quadratic that value, gradient and Hessian make there. An exact quadratic gives rounding, about 1e-15; a decoder
    tanh(w z) gives about w².
    """
    generator = torch.Generator().manual_seed(7)
    some = torch.randperm(assignments, generator=generator)[:CURVATURE_ASSIGNMENTS]
    A, T, n, L = len(some), len(CURVATURE_STEPS), len(rows), layout.L
    steps = torch.tensor(CURVATURE_STEPS, dtype=torch.float64)[:, None, None, None]
    if len(nodes) > MANY_SITES and not program.is_hiding:
        first, *others = _prior(program, rows.repeat(T, *(1,) * (rows.dim() - 1)), layout, 0).chunk(T)
    else:
        first, *others = (_prior(program, rows, layout, seed) for seed in range(T))
    away = torch.stack([torch.zeros_like(first), *others[: T - 1]])[:, None] - first
    z = (first + steps * away).expand(T, A, n, L).reshape(T * A, n, L)
    z = z.to(rows.dtype).clone().requires_grad_()
    discrete = {k: v[some].repeat(T, *(1,) * (v.dim() - 1)) for k, v in joint.items()}
    rows = rows.clone().requires_grad_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        trace = program.trace(rows, latents={**discrete, **_globals_of(nodes), **layout.unflatten(z)})
        values = {
            node["name"]: per_datum(node, node["fn"].log_prob(node["value"]), layout.axes.data_dim, layout.axes.depth)
            for node in sample_nodes(trace)
            if is_local(node)
        }
        total = torch.stack([value.expand(T * A, n) for value in values.values()]).sum(0)
        if len(values) > MANY_SITES:
            changed = _from_quadratic(total, z, rows, (T, A, n, L), generator, FEWER)
            if changed is not None and changed <= CURVATURE_TOLERANCE:
                return {next(iter(layout.places)): changed}, L > LARGEST_HESSIAN or _is_concave(total, z)
        out = {}
        for name, value in values.items():
            changed = _from_quadratic(value.expand(T * A, n), z, rows, (T, A, n, L), generator)
            if changed is not None:
                out[name] = changed
        return out, L > LARGEST_HESSIAN or _is_concave(total, z)


def _is_concave(value: Tensor, z: Tensor) -> bool:
    """Whether minus the Hessian of value [m, n] in z [m, n, L] is positive definite, of each row under each assignment."""
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
    if not gradient.requires_grad:
        return False
    columns = [
        torch.autograd.grad(gradient[..., k].sum(), z, retain_graph=True, materialize_grads=True)[0]
        for k in range(z.shape[-1])
    ]
    precision = -torch.stack(columns, -1)
    size = precision.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()  # whatever the units
    return not bool(torch.linalg.cholesky_ex(precision * size.unsqueeze(-1) * size.unsqueeze(-2))[1].any())


def _prior(program: Program, rows: Tensor, layout: Layout, seed: int) -> Tensor:
    """A draw of the continuous local latents from the program itself [n, L]."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        trace = program.trace(rows)
        return layout.flatten({name: node_of(trace, name) for name in layout.places}, len(rows))


def _from_quadratic(
    value: Tensor,
    z: Tensor,
    rows: Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator,
    most: int = DIRECTIONS,
) -> float | None:
    """How far the value is from a quadratic in z, relative; None where it does not depend on z."""
    if not value.requires_grad:
        return None
    T, A, n, L = shape
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        return None
    points = z.detach().reshape(shape)
    steps = points - points[:1]  # from the first point to each
    worst = 0.0
    directions = [torch.randn(L, generator=generator, dtype=z.dtype).expand(shape) for _ in range(min(L, most))]
    curved = list[Tensor]()
    for direction in [*directions, *steps[1:, None].expand(T - 1, T, A, n, L)]:
        product = torch.zeros_like(z)
        if gradient.requires_grad:
            got = torch.autograd.grad(gradient, z, direction.reshape(z.shape), retain_graph=True, allow_unused=True)[0]
            product = torch.zeros_like(z) if got is None else got
        product = product.reshape(shape)
        size = product[0].abs().amax(-1, keepdim=True).clamp(min=1e-30)
        worst = max(worst, float(((product - product[:1]).abs() / size).max()))
        curved.append(product[0])
    noise = _rounding(value, rows) + 16 * torch.finfo(z.dtype).eps * float((gradient.detach() * z.detach()).abs().sum())
    f, g = value.detach().reshape(shape[:3]), gradient.detach().reshape(shape)[0]
    for t, bent in zip(range(1, T), curved[len(directions) :], strict=True):
        worst = max(worst, _from_expansion(f[0], f[t], (g * steps[t]).sum(-1), 0.5 * (bent * steps[t]).sum(-1), noise))
    return worst if math.isfinite(worst) else math.inf


def _rounding(value: Tensor, rows: Tensor) -> float:
    """How far the data's own last digits move the value, nats: data far from 0 leave few digits to their differences."""
    (slope,) = torch.autograd.grad(value.sum(), rows, retain_graph=True, allow_unused=True)
    if slope is None:
        return 0.0
    return 16 * torch.finfo(rows.dtype).eps * float((slope * rows.detach()).abs().sum())


def _from_expansion(first: Tensor, there: Tensor, linear: Tensor, quadratic: Tensor, noise: float) -> float:
    """How far the value `there` is from the quadratic made at the first point, relative to its largest term."""
    size = first.abs() + there.abs() + linear.abs() + quadratic.abs()
    away = ((there - first - linear - quadratic).abs() - noise).clamp(min=0)
    return float((away / size.clamp(min=1e-30)).max())


def _globals_of(nodes: Mapping[str, Node]) -> dict[str, Tensor]:
    return {k: n["value"] for k, n in nodes.items() if not is_local(n) and is_latent(n)}
