"""In which steps normal latents are eliminated, and which numbers go where in each.

A factor is a site; its columns are the latents that its density depends on. Each step eliminates G latents of one size that
are no neighbours (`Schedule`). A step's fronts are the numbers of each such latent, its own d first, then those of the k that
are left in its message. All of it is found once for a program, as indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from inference._exact._sums.schedule import Schedule, schedule
from zoo._reading.elimination import best_order, many_at_once

STEP_SECONDS = 3e-4  # a guess at what a step costs besides its arithmetic
NUMBER_SECONDS = 2e-9
MOST = 2 ** (2**20)


@dataclass(frozen=True)
class Piece:
    """Some tables of one source, and where their columns stand among the numbers of the fronts that they go to."""

    source: int  # a group of factors, or where counted on from those a step
    members: Tensor  # [g] which tables of the source
    fronts: Tensor  # [g] which fronts of the step
    place: Tensor  # [columns]


@dataclass(frozen=True)
class Slot:
    """Pieces that have one table for each front."""

    pieces: tuple[Piece, ...]
    order: Tensor | None  # [G] where each front's table stands among those of all pieces; None: as they are

    @staticmethod
    def of(found: Mapping[tuple[int, tuple[int, ...]], list[tuple[int, int]]]) -> Slot:
        """From (source, place) → the pairs of a member and its front."""
        pieces = []
        for (source, place), pairs in found.items():
            members, fronts = torch.tensor(pairs, dtype=torch.long).T
            pieces.append(Piece(source, members, fronts, torch.tensor(place, dtype=torch.long)))
        fronts = torch.cat([p.fronts for p in pieces])
        same = torch.equal(fronts, torch.arange(len(fronts)))
        return Slot(tuple(pieces), None if same else fronts.argsort())


@dataclass(frozen=True)
class Front:
    """A step."""

    own: Tensor  # [G, d] the numbers of z that it eliminates
    rest: Tensor  # [G, k] those that are left in the messages
    slots: tuple[Slot, ...]
    above: Slot | None  # the later steps' fronts that hold `rest`; None where k = 0


@dataclass(frozen=True)
class Elimination:
    """All steps of an order."""

    fronts: tuple[Front, ...]
    groups: int  # of factors; sources from there on are steps

    def numbers(self) -> int:
        """How many numbers a row takes in all fronts."""
        return sum(len(f.own) * (f.own.shape[1] + f.rest.shape[1]) ** 2 for f in self.fronts)

    def products(self) -> int:
        """How many products a row takes."""
        return sum(len(f.own) * (f.own.shape[1] + f.rest.shape[1]) ** 3 for f in self.fronts)

    def seconds(self, rows: int, matrices: int) -> float:
        """A guess at how long one pass over so many rows takes, that have so many precisions."""
        arithmetic = matrices * self.products() + rows * self.numbers()
        return len(self.fronts) * STEP_SECONDS + arithmetic * NUMBER_SECONDS


def best_plan(
    places: Mapping[str, slice],
    scopes: Sequence[Sequence[Sequence[str]]],
    rows: int,
    matrices: int,
    backwards: bool = False,
) -> Elimination:
    """The order that takes least time for so many rows, that have so many precisions.

    `places`: where each latent's numbers stand in z; `scopes`: group of factors → the latents of each; `backwards`: another
    order, from the other end of a chain.
    """
    names = list(places)[:: -1 if backwards else 1]
    sizes = {n: 2 ** (places[n].stop - places[n].start) for n in names}  # so that a product counts numbers
    flat = {f"{g}.{s}": tuple(scope) for g, group in enumerate(scopes) for s, scope in enumerate(group)}
    first = best_order(sizes, flat, MOST)
    plans = [_plan(first.latents, places, scopes, flat)]
    quick = None if backwards else many_at_once(sizes, flat, max(first.largest, max(sizes.values()) ** 3))
    if quick is not None:
        plans.append(_plan(quick.latents, places, scopes, flat))
    return min(plans, key=lambda p: p.seconds(rows, matrices))


def _plan(
    order: Sequence[str],
    places: Mapping[str, slice],
    scopes: Sequence[Sequence[Sequence[str]]],
    flat: Mapping[str, Sequence[str]],
) -> Elimination:
    sizes = {n: place.stop - place.start for n, place in places.items()}
    steps: Schedule = schedule(order, sizes, flat, dict.fromkeys(flat, True))
    rank = {name: i for i, name in enumerate(order)}
    tables = [
        (g, s, [rank[n] for n in scope]) for g, group in enumerate(scopes) for s, scope in enumerate(group)
    ]  # of each factor and then of each latent's message: source, member, latents
    tables += [(-1, -1, [])] * len(order)
    home = dict[int, tuple[int, int, list[int]]]()  # latent → its step, its front, the latents of that
    for number, step in enumerate(steps.steps):
        for g, (v, rest) in enumerate(zip(step.latents, step.separators, strict=True)):
            later = list(reversed(rest))
            home[v] = number, g, [v, *later]
            tables[len(flat) + v] = len(scopes) + number, g, later
    width = [sizes[n] for n in order]
    starts = [places[n].start for n in order]
    fronts = []
    for step in steps.steps:
        cliques = [home[v][2] for v in step.latents]
        slots = []
        for numbers in step.inputs:
            found = dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]]()
            for g, (t, clique) in enumerate(zip(numbers, cliques, strict=True)):
                source, member, latents = tables[t]
                found.setdefault((source, _places(latents, clique, width)), []).append((member, g))
            slots.append(Slot.of(found))
        found = {}
        for g, clique in enumerate(cliques):
            if len(clique) > 1:
                number, member, other = home[clique[1]]
                found.setdefault((number, _places(clique[1:], other, width)), []).append((member, g))
        numbers_of = [[starts[v] + i for v in clique for i in range(width[v])] for clique in cliques]
        d = width[step.latents[0]]
        whole = torch.tensor(numbers_of, dtype=torch.long)
        fronts.append(Front(whole[:, :d], whole[:, d:], tuple(slots), Slot.of(found) if found else None))
    return Elimination(tuple(fronts), len(scopes))


def _places(latents: Sequence[int], clique: Sequence[int], width: Sequence[int]) -> tuple[int, ...]:
    """Where the numbers of some latents stand among those of a clique."""
    begins = dict(zip(clique, accumulate((width[v] for v in clique), initial=0), strict=False))
    return tuple(begins[v] + i for v in latents for i in range(width[v]))
