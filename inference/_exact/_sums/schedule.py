"""The steps in which discrete latents are summed out of tables, those side by side that are alike.

A table is known by its number: first the factors, then the message that each latent leaves. Latents are in the order in which
they are summed out; a table's dimensions are [rows or 1, the latents, those that go last first], so that the one to sum over is
always the last dimension of its step. Latents of one step depend on no message of each other, and their tables have the same
shapes: the 500 even latents of a chain are one step, of a few tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from zoo._reading.elimination import best_order, many_at_once

WIDER = 8  # times the numbers of the first order, that another may take
MOST = 2**62

# of a step: how many come before it, the sizes of its tables, and for each table where its latents stand and whether by row
_Like = tuple[int, tuple[int, ...], tuple[tuple[tuple[int, ...], bool], ...]]


@dataclass(frozen=True)
class Step:
    """G latents that are summed out side by side."""

    latents: tuple[int, ...]  # [G] their places in the order
    separators: tuple[tuple[int, ...], ...]  # [G] the latents that are left in each message
    inputs: tuple[tuple[int, ...], ...]  # for each of the tables that are joined, [G] numbers
    places: tuple[tuple[int, ...], ...]  # for each of them, where its latents stand among those of the step
    sizes: tuple[int, ...]  # values of the step's latents, of the one to sum over last
    by_row: tuple[bool, ...]  # which of the tables that are joined differ by row

    @cached_property
    def is_product(self) -> bool:
        """Whether it is a product of a matrix that all rows share and what each row has for the latent alone."""
        alone = (len(self.sizes) - 1,)
        mine = [places for places, by_row in zip(self.places, self.by_row, strict=True) if by_row]
        return 0 < len(mine) < len(self.places) and all(places == alone for places in mine)

    def numbers(self, rows: int) -> int:
        """How many numbers its tables hold for so many rows."""
        each = math.prod(self.sizes) * len(self.latents)
        if self.is_product:
            return each + rows * (each // self.sizes[-1] + self.sizes[-1] * len(self.latents))
        return each * (rows if any(self.by_row) else 1)


@dataclass(frozen=True)
class Schedule:
    """All steps, and the tables without latents that are left at the end."""

    order: tuple[str, ...]
    steps: tuple[Step, ...]
    rest: tuple[int, ...]
    factors: tuple[str, ...]
    dims: Mapping[str, tuple[int, ...]]  # factor → where in its scope the latent of each dimension of its table stands
    runs: Mapping[int, int]  # where a stretch of steps along a chain begins among the steps → where it ends

    def seconds(self, rows: int, along_chains: bool) -> float:
        """A guess at how long one pass over so many rows takes: operations have a start and then a speed."""
        quick = {i for a, b in self.runs.items() for i in range(a, b)} if along_chains else set()
        total = 0.0
        for i, s in enumerate(self.steps):
            start, speed = (2.5e-5, 8e-9) if i in quick else (1e-4 + 1e-5 * len(s.latents), 1.5e-8)
            total += start + speed * s.numbers(rows)
        return total

    def numbers(self) -> int:
        """How many numbers a row of the data takes in all tables."""
        return sum(math.prod(s.sizes) * len(s.latents) for s in self.steps if any(s.by_row)) + len(self.factors)


def schedule(
    order: Sequence[str], cards: Mapping[str, int], scopes: Mapping[str, Sequence[str]], by_row: Mapping[str, bool]
) -> Schedule:
    """The steps of an order. `by_row`: whether a factor's table differs from row to row."""
    place = {name: i for i, name in enumerate(order)}
    factors = tuple(scopes)
    waiting: list[list[int]] = [[] for _ in order]  # latent → the tables that it is the first to be summed out of
    dims: list[tuple[int, ...]] = []
    rowful = [by_row[f] for f in factors]
    level = [0] * len(factors)
    rest = list[int]()
    for number, f in enumerate(factors):
        dims.append(tuple(sorted((place[n] for n in scopes[f]), reverse=True)))
        (waiting[dims[-1][-1]] if dims[-1] else rest).append(number)
    groups: dict[_Like, list[tuple[int, tuple[int, ...], list[int]]]] = {}
    for v in range(len(order)):
        tables = sorted(waiting[v], key=lambda t: (len(dims[t]), dims[t], rowful[t]))
        clique = tuple(sorted({v}.union(*(dims[t] for t in tables)), reverse=True))
        at = {u: i for i, u in enumerate(clique)}
        inputs = sorted(tables, key=lambda t: (tuple(at[u] for u in dims[t]), rowful[t], t))
        depth = 1 + max((level[t] for t in inputs), default=0)
        sizes = tuple(cards[order[u]] for u in clique)
        kind: _Like = depth, sizes, tuple((tuple(at[u] for u in dims[t]), rowful[t]) for t in inputs)
        groups.setdefault(kind, []).append((v, clique[:-1], inputs))
        number = len(factors) + v
        dims.append(clique[:-1])
        rowful.append(any(rowful[t] for t in inputs))
        level.append(depth)
        (waiting[clique[-2]] if len(clique) > 1 else rest).append(number)
    steps = []
    for (_, sizes, slots), members in sorted(groups.items(), key=lambda item: (item[0][0], item[1][0][0])):
        steps.append(
            Step(
                latents=tuple(v for v, _, _ in members),
                separators=tuple(s for _, s, _ in members),
                inputs=tuple(tuple(m[2][j] for m in members) for j in range(len(slots))),
                places=tuple(places for places, _ in slots),
                sizes=sizes,
                by_row=tuple(r for _, r in slots),
            )
        )
    turned = {f: tuple(sorted(range(len(s)), key=lambda k: -place[s[k]])) for f, s in scopes.items()}
    return Schedule(tuple(order), tuple(steps), tuple(rest), factors, turned, _runs(steps, len(factors)))


def _runs(steps: Sequence[Step], factors: int) -> dict[int, int]:
    """Stretches of steps each of which goes on from the message of the one before, with a matrix of the same shape."""
    out, begin = dict[int, int](), 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or not _goes_on(steps[i - 1], steps[i], factors):
            if i - begin > 1:
                out[begin] = i
            begin = i
    return out


def _goes_on(before: Step, step: Step, factors: int) -> bool:
    square = len(step.sizes) == 2 and step.sizes[0] == step.sizes[1] and before.sizes == step.sizes
    if not (square and before.is_product and step.is_product and len(step.latents) == len(before.latents) == 1):
        return False
    return (factors + before.latents[0],) in step.inputs


def schedules(
    cards: Mapping[str, int], scopes: Mapping[str, Sequence[str]], by_row: Mapping[str, bool], backwards: bool = False
) -> list[Schedule]:
    """The schedule of least numbers, and where there is one, another of more numbers in fewer steps.

    `backwards`: the first in another order, which begins at the other end of a chain.
    """
    orders = [best_order(dict(reversed(list(cards.items()))) if backwards else cards, scopes, MOST)]
    quick = many_at_once(cards, scopes, max(orders[0].largest, max(cards.values()) ** 3))
    orders += [quick] if quick is not None and quick.total <= WIDER * orders[0].total else []
    return [schedule(o.latents, cards, scopes, by_row) for o in orders]
