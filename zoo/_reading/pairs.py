"""Whether the continuous local latents are conjugate to everything that depends on them: proved, and measured besides."""

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
    drawn_in_full,
    family_name,
    is_discrete,
    is_latent,
    is_local,
    is_masked,
    is_plain,
    local_log_prob,
    node_of,
    sample_nodes,
    whole_shape,
)
from zoo._reading.conjugate import FAMILIES, NO_SLOPE, Parts
from zoo._reading.operations import OTHER
from zoo._reading.powers import SitePowers, read_powers

TOLERANCE = 1e-9
ASSIGNMENTS = 64  # that are looked at
ROWS = 12
POINTS = 4  # from the prior, each also far from it
FAR = 3.0
SIZES = (7, 5)  # rows of two readings
Verdict = tuple[Exactness, str, float]


def conjugate(program: Program, probe: Tensor, nodes: list[Node], axes: Axes, assignments: int) -> Verdict | None:
    """The verdict on a program whose continuous local latents all have a family of `FAMILIES`; None for any other."""
    by_name = {n["name"]: n for n in nodes}
    latent = [n for n in nodes if is_local(n) and is_latent(n)]
    families = {n["name"]: family_name(n["fn"]) for n in latent if not is_discrete(n["fn"])}
    if not families or any(f not in FAMILIES for f in families.values()) or program.completes:
        return None
    shown = ", ".join(f"'{n}'" for n in families)
    start = f"the prior of {shown} is not conjugate to what depends on it"
    if said := _not_proved(program, probe, by_name, families, axes):
        return Exactness.NO, f"{start}: {said}", math.inf
    away = _measured(program, probe, by_name, families, axes, assignments)
    if math.isnan(away):
        return Exactness.NO, f"{start}: {NO_SLOPE}", math.inf
    if not away <= TOLERANCE:
        return Exactness.NO, f"{start}: log p(x, z) is off by {away:.1e} of itself at random points", away
    each = ", ".join(f"'{n}' ({f})" for n, f in families.items())
    off = f"log p(x, z) is off by {away:.0e} of itself between random points"
    why = f"the prior of {each} is conjugate to what depends on it: {off}"
    discrete = ", ".join(f"'{n['name']}'" for n in latent if is_discrete(n["fn"]))
    given = f"given each of the {assignments} joint values of {discrete}, " if discrete else ""
    return Exactness.CONJUGATE, given + why, away


# ------------------------------------------------------------------------------------------------------------ proved


def _not_proved(
    program: Program, probe: Tensor, nodes: Mapping[str, Node], families: Mapping[str, str], axes: Axes
) -> str:
    """What keeps a latent from being conjugate, and at which site; "" where nothing does."""
    touched: dict[str, str] = {}  # site → the latent that it depends on
    for size in SIZES:
        rows = probe[: min(size, len(probe))].nan_to_num(0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(size)
            drawn = {n["name"]: drawn_in_full(n) for n in sample_nodes(program.trace(rows, raw=True)) if is_latent(n)}
        for latent, family in families.items():
            for site, powers in read_powers(program, rows, drawn, latent, axes.data_dim).items():
                if said := _wrong(nodes[site], powers, latent, family, families):
                    return said
                if powers.touched and site != latent and touched.setdefault(site, latent) != latent:
                    return f"site '{site}' depends on '{touched[site]}' and on '{latent}'"
    return ""


def _wrong(node: Node, powers: SitePowers, latent: str, family: str, families: Mapping[str, str]) -> str:
    """Why this site is not one that the latent's family is conjugate to; "" where it is."""
    name, own = node["name"], family_name(node["fn"])
    if not powers.touched:
        return ""
    if not is_plain(node) or (name == latent and is_masked(node)):
        return f"site '{name}' has a mask or a scale"
    if name == latent:
        return f"its own parameters depend on it at site '{name}'" if powers.parameters else ""
    if name in families:
        return f"the latent '{name}' depends on '{latent}'"
    if powers.value:
        return f"the value of site '{name}' is computed from '{latent}'"
    children, taken = FAMILIES[family].children, {f: p for f, p in FAMILIES[family].children if f == own}
    if not taken or not powers.parameters:
        able = ", ".join(sorted({f for f, _ in children}))
        return f"site '{name}' ({own}) depends on '{latent}' ({family}), which is conjugate to {able} alone"
    for parameter, codes in powers.parameters.items():
        allowed = children.get((own, parameter), frozenset())
        if not codes <= allowed | {0}:
            what = "is not a constant times it" if OTHER in codes else "takes it in another way"
            return f"the {parameter} of site '{name}' ({own}) depends on '{latent}' ({family}), and {what}"
    return ""


def globals_not_conjugate(program: Program, probe: Tensor, nodes: list[Node], axes: Axes) -> str | None:
    """What keeps the global latents from being conjugate to all that depends on them; "" where nothing does, None where they
    have no family of `FAMILIES`."""
    by_name, latent = {n["name"]: n for n in nodes}, [n for n in nodes if is_latent(n)]
    families = {n["name"]: family_name(n["fn"]) for n in latent if not is_local(n)}
    if any(f not in FAMILIES for f in families.values()):
        return None
    if local := [n["name"] for n in latent if is_local(n)]:
        return f"there is the local latent '{local[0]}' besides"
    return _not_proved(program, probe, by_name, families, axes)


def parts_of_globals(nodes: Mapping[str, Node]) -> Parts:
    """Where the global latents stand in one flat vector, each in its own order."""
    places, events, end = dict[str, slice](), dict[str, tuple[int, ...]](), 0
    for name, node in nodes.items():
        size = math.prod(whole_shape(node["fn"]))
        places[name], events[name], end = slice(end, end + size), tuple(node["fn"].event_shape), end + size
    return Parts(places, events, {name: FAMILIES[family_name(node["fn"])] for name, node in nodes.items()})


# ---------------------------------------------------------------------------------------------------------- measured


def _measured(
    program: Program,
    probe: Tensor,
    nodes: Mapping[str, Node],
    families: Mapping[str, str],
    axes: Axes,
    assignments: int,
) -> float:
    """How far log p(x, z) is from a constant and a sum of the families' statistics, relative, at points near and far."""
    if program.dtype != torch.float64:
        program = copy.deepcopy(program).double()
        program.dtype = torch.float64
    rows = probe[torch.linspace(0, len(probe) - 1, min(len(probe), ROWS)).long()].double()
    discrete = [n["name"] for n in nodes.values() if is_local(n) and is_latent(n) and is_discrete(n["fn"])]
    joint = joint_values(nodes, discrete, axes)
    generator = torch.Generator().manual_seed(7)
    some = torch.randperm(assignments, generator=generator)[:ASSIGNMENTS]
    layout = Layout(nodes, list(families), axes)
    parts = Parts.of(layout, families)
    fixed = {k: v[some] for k, v in joint.items()}
    fixed |= {k: n["value"].double() for k, n in nodes.items() if is_latent(n) and not is_local(n)}

    def log_joint(z: Tensor) -> Tensor:  # [A, n, L] → [A, n]
        trace = program.trace(rows, latents={**fixed, **layout.unflatten(z)})
        value = local_log_prob(trace, axes.data_dim, len(rows))
        return value.reshape(-1, len(rows)).expand(len(z), len(rows))

    points = []
    for seed in range(POINTS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = program.trace(rows)
        z = layout.flatten({n: node_of(drawn, n) for n in families}, len(rows)).double()
        points += [z.expand(len(some), *z.shape), _far(parts, z).expand(len(some), *z.shape)]
    value, c = parts.coefficients(log_joint, *parts.first(points[0]))
    if bool(value.isfinite().all()) and not all(bool(v.isfinite().all()) for v in c.values()):
        return math.nan
    here, there = parts.near(c)
    value, c = parts.coefficients(log_joint, here, there)
    if not all(bool(parts.families[k].proper(v).all()) for k, v in c.items()):
        return math.inf
    at = parts.statistics(here)
    worst = 0.0
    for z in points:
        steps = {k: t - at[k] for k, t in parts.statistics(z).items()}
        found, change = log_joint(z), parts.sum_of(c, steps)
        sizes = parts.sum_of({k: v.abs() for k, v in c.items()}, {k: s.abs() for k, s in steps.items()})
        away = (found - value - change).abs() / (found.abs() + value.abs() + sizes).clamp(min=1e-30)
        worst = max(worst, float(away.detach().nan_to_num(math.inf).max()))
    return worst


def _far(parts: Parts, z: Tensor) -> Tensor:
    """z far from where it was drawn, within the support."""
    out = {}
    for name, value in parts.split(z).items():
        family = parts.families[name]
        if family.events:
            out[name] = (value.log() * FAR).softmax(-1)
        elif ("Bernoulli", "probs") in family.children:
            out[name] = torch.sigmoid(torch.logit(value) * FAR)
        else:
            out[name] = value**FAR
    return parts.joined(out)
