"""In which order to sum out the discrete latents of a row one by one, and how large a table that takes.

Each site's density is a factor, a table over the discrete latents it depends on. Summing out a latent joins the factors that it
stands in to one table over it and its neighbours, and leaves a factor over the neighbours. In a chain z0 – z1 – z2 of three
states each, z0 has one neighbour: the table has 9 entries, and so has every later one, however long the chain.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Scopes = Mapping[str, Sequence[str]]  # site → the discrete latents that its density depends on


@dataclass(frozen=True)
class Order:
    """The latents in the order in which they are summed out."""

    latents: tuple[str, ...]
    largest: int  # entries of the largest table
    at: str  # the latent that is summed out of it
    total: int  # entries of all tables


def neighbours(cards: Mapping[str, int], scopes: Scopes) -> dict[str, set[str]]:
    """Which latents share a factor with each."""
    out: dict[str, set[str]] = {name: set() for name in cards}
    for scope in set(map(frozenset, scopes.values())):
        for name in scope:
            out[name] |= scope
    for name, near in out.items():
        near.discard(name)
    return out


def colours(cards: Mapping[str, int], scopes: Scopes) -> dict[str, int]:
    """A small number for each latent, another one for each latent of a factor."""
    near = neighbours(cards, scopes)
    out: dict[str, int] = {}
    for name in cards:
        used = {out[other] for other in near[name] if other in out}
        out[name] = next(c for c in itertools.count() if c not in used)
    return out


def size(cards: Mapping[str, int], names: Collection[str]) -> int:
    """The entries of a table over these latents."""
    return math.prod(cards[n] for n in names)


def best_order(cards: Mapping[str, int], scopes: Scopes, limit: int) -> Order:
    """The better of two rules: next comes what makes the smallest table, or what adds the fewest new neighbours.

    Stops early where a table has more entries than `limit` by both rules: then `largest` is the first such table.
    """
    by_size = _greedy(cards, scopes, limit, by_fill=False)
    if by_size.largest <= limit:
        return by_size
    by_fill = _greedy(cards, scopes, limit, by_fill=True)
    return min(by_size, by_fill, key=lambda o: o.largest)


def _greedy(cards: Mapping[str, int], scopes: Scopes, limit: int, by_fill: bool) -> Order:
    near, place = neighbours(cards, scopes), {name: i for i, name in enumerate(cards)}

    def rank(name: str) -> tuple[float, float, int]:
        table = math.log(cards[name]) + math.fsum(sorted(math.log(cards[n]) for n in near[name]))
        if not by_fill:
            return round(table, 9), 0, place[name]
        fill = sum(b not in near[a] for a, b in itertools.combinations(near[name], 2))
        return fill, round(table, 9), place[name]

    heap = [(*rank(name), name) for name in cards]
    heapq.heapify(heap)
    order, largest, at, total = list[str](), 0, "", 0
    while heap:
        *known, name = heapq.heappop(heap)
        if name not in near:
            continue
        if tuple(known) != (now := rank(name)):
            heapq.heappush(heap, (*now, name))
            continue
        table = size(cards, (name, *near[name]))
        total += table
        if table > largest:
            largest, at = table, name
        if table > limit:
            break
        order.append(name)
        for other in _sum_out(near, name):
            heapq.heappush(heap, (*rank(other), other))
    return Order(tuple(order), largest, at, total)


def many_at_once(cards: Mapping[str, int], scopes: Scopes, limit: int) -> Order | None:
    """An order in rounds, each of latents that are no neighbours; None where a table would have more entries than `limit`.

    Of a chain every other latent goes in a round, so ten rounds do for a thousand. Its tables are larger, K³ in place of K².
    """
    near, place = neighbours(cards, scopes), {name: i for i, name in enumerate(cards)}
    order, largest, at, total = list[str](), 0, "", 0
    while near:
        tables = {name: size(cards, (name, *others)) for name, others in near.items()}
        most = min(limit, max(min(tables.values()), max(cards[n] for n in near) ** 3))
        blocked, chosen = set[str](), list[str]()
        for name in sorted(near, key=lambda n: (tables[n], place[n])):
            if tables[name] <= most and name not in blocked:
                chosen.append(name)
                blocked |= near[name]
        if not chosen:
            return None
        for name in chosen:
            total += tables[name]
            if tables[name] > largest:
                largest, at = tables[name], name
            _sum_out(near, name)
        order += chosen
    return Order(tuple(order), largest, at, total)


def _sum_out(near: dict[str, set[str]], name: str) -> list[str]:
    """Make neighbours of all neighbours of a latent, and take it away; returns them, in order."""
    others = near.pop(name)
    for other in others:
        near[other] |= others
        near[other] -= {name, other}
    return sorted(others)
