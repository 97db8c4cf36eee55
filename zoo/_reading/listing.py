"""Whether discrete latents can be listed, or else summed out one by one: said of a program's sites and their parents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zoo._program.structure import Exactness, Site, Structure, written
from zoo._program.trace import is_fixed
from zoo._reading.elimination import best_order
from zoo._reading.elimination import size as table_size

MOST_NAMED = 6  # sites in a sentence


def exactness(sites: tuple[Site, ...], dependent: str, limit: int) -> tuple[Exactness, str, int, int | None]:
    """What is exact, why, the joint values that are listed, and the largest table where latents are summed out one by one."""
    latent = [s for s in sites if s.role == "latent"]
    local = [s for s in latent if s.scope == "local"]
    if said := dependent or _unlistable(latent, local):
        return Exactness.NO, said, 1, None
    discrete = [s for s in local if s.discrete]
    count = math.prod((s.cardinality or 1) ** s.inner for s in discrete)
    if count > limit:
        if len(discrete) == len(local):
            return _by_elimination(sites, count, limit)
        return _given_the_others(sites, count, limit)
    if not local:
        return Exactness.ENUMERABLE, "it has no local latents, so the density itself is exact", 1, None
    names = " × ".join(f"'{s.name}'" for s in discrete)
    return Exactness.ENUMERABLE, f"all {count} joint values of {names} can be enumerated", count, None


def _unlistable(latent: list[Site], local: list[Site]) -> str:
    """Why the values of a discrete latent cannot be listed; "" where all can."""
    for s in latent:
        if s.scope == "global" and s.discrete:
            return f"the global latent '{s.name}' is discrete"
    for s in local:
        if s.discrete and s.moving:
            what = ", ".join(f"'{m}'" if " " not in m else m for m in s.moving)
            return (
                f"the support of '{s.name}' ({s.family}) changes with {what}: write it as a Categorical over all "
                "values, with probability 0 for the impossible ones"
            )
        if s.discrete and s.cardinality is None:
            return f"the support of '{s.name}' ({s.family}) cannot be enumerated"
    return ""


def _beside(discrete: list[Site], local: list[Site]) -> str:
    """Which continuous latent keeps discrete ones from being summed out one by one."""
    names = {s.name for s in discrete}
    first = next((s for s in local if not s.discrete and names & set(s.parents)), None)
    first = first or next(s for s in local if not s.discrete)
    on = next((p for p in first.parents if p in names), "")
    said = f", and depends on '{on}'" if on else ""
    return f"; they are not summed out one by one, since the latent '{first.name}' ({first.family}) is continuous{said}"


def _too_many(discrete: list[Site], count: int, limit: int) -> str:
    return f"the discrete latents {some(discrete)} have {written(count)} joint values, more than the limit of {limit:,}"


def some(sites: Sequence[Site]) -> str:
    """The names of some sites, of many the first and the last."""
    names = [f"'{s.name}'" for s in sites]
    return ", ".join(names) if len(names) <= MOST_NAMED else f"{names[0]}, {names[1]} … {names[-1]}"


def _by_elimination(sites: tuple[Site, ...], count: int, limit: int) -> tuple[Exactness, str, int, int | None]:
    """Whether the discrete local latents, too many to be listed together, can be summed out one by one."""
    structure = Structure("", 0, sites, (), Exactness.NO, "")
    discrete, cards, scopes = list(structure.discrete_locals), structure.cards, structure.scopes
    many = _too_many(discrete, count, limit)
    for s in discrete:
        if s.completes:
            return Exactness.NO, many, 1, None
        if s.inner > 1:
            why = f"{many}, and '{s.name}' stands in a plate inside 'data': write that plate as a `for` loop"
            return Exactness.NO, why, 1, None
    widest = max(scopes, key=lambda name: table_size(cards, scopes[name]))
    if (largest := table_size(cards, scopes[widest])) > limit:
        of = some([s for s in discrete if s.name in scopes[widest]])
        why = f"the density of '{widest}' depends on {of} together, a table of {written(largest)} entries a row"
        return Exactness.NO, f"{why}, more than the limit of {limit:,}", 1, None
    order = best_order(cards, scopes, limit)
    if order.largest > limit:
        why = f"summing the discrete latents out one by one takes a table of {written(order.largest)} entries a row"
        return Exactness.NO, f"{why} (at '{order.at}'), more than the limit of {limit:,}", 1, None
    why = f"{some(discrete)} can be summed out one by one: the largest table has {order.largest:,} entries a row"
    return Exactness.ELIMINABLE, why, 1, order.largest


def _given_the_others(sites: tuple[Site, ...], count: int, limit: int) -> tuple[Exactness, str, int, int | None]:
    """Whether the discrete local latents can be summed out one by one given the continuous ones; the program is not exact."""
    table, many = _by_elimination(sites, count, limit)[3], _too_many([s for s in sites if _is_choice(s)], count, limit)
    for s in sites:
        if s.role == "latent" and s.scope == "local" and not s.discrete and not is_fixed(s.constraint):
            table = None  # its values could not be given before the discrete ones
    many += _beside(
        [s for s in sites if _is_choice(s)], [s for s in sites if s.role == "latent" and s.scope == "local"]
    )
    if table is None:
        return Exactness.NO, many, 1, None
    why = f"given the continuous latents, they can be summed out one by one: the largest table has {table:,} entries a row"
    return Exactness.NO, f"{many}; {why}", 1, table


def _is_choice(site: Site) -> bool:
    return site.role == "latent" and site.scope == "local" and site.discrete
