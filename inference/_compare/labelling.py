"""Where labels can be exchanged, any of K! labellings is right: two fits are brought into one before they are compared.

Each draw of both goes into the labelling in which it is nearest to the mean of the reference's, as methods that relabel their
own draws do. So what is compared are draws moved by one and the same map, whether their labellings are apart or overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from inference._compare.moments import Posterior, Support, posterior_of
from inference._globals.labels import MOST
from inference._method.fit import Fit

ROUNDS = 30  # until the reference's draws are nearest to their own mean
Axes = Sequence[tuple[str, int]]  # sites, and which axis of each is numbered by the labels
Draws = Mapping[str, np.ndarray]


def aligned(
    fit: Fit, reference: Fit, supports: Mapping[str, Support], parents: Mapping[str, Sequence[str]]
) -> tuple[Posterior, Posterior]:
    """The posteriors of a fit and of the reference, global latents and labels in one labelling.

    `parents`: site → the sites that it depends on. A label is moved with the group of those latents that it picks from.
    """
    draws, others = dict(fit.draws), dict(reference.draws)
    sides = list[tuple[set[str], Sequence[int]]](), list[tuple[set[str], Sequence[int]]]()
    for size, axes in _groups(fit) or _groups(reference):
        shared = [
            (n, axis) for n, axis in axes if n in draws and n in others and draws[n][0].shape == others[n][0].shape
        ]
        if not shared or math.factorial(size) > MOST:
            continue
        orders = np.array(list(itertools.permutations(range(size))))
        theirs, mean, sd = _own(others, shared, orders)
        mine = _nearest(draws, shared, orders, mean, sd)
        draws |= _moved(draws, axes, orders[mine])
        others |= _moved(others, axes, orders[theirs])
        for side, chosen in zip(sides, (mine, theirs), strict=True):
            side.append(({name for name, _ in axes}, orders[np.bincount(chosen).argmax()]))
    found, known = (posterior_of(replace(f, draws=d), supports) for f, d in ((fit, draws), (reference, others)))
    return _relabelled(found, sides[0], parents), _relabelled(known, sides[1], parents)


def _relabelled(
    found: Posterior, moved: Sequence[tuple[set[str], Sequence[int]]], parents: Mapping[str, Sequence[str]]
) -> Posterior:
    """The labels of rows in the labelling that most draws of their group are in."""
    labels = dict(found.labels)
    for site, (p, m) in found.labels.items():
        for group, order in moved:
            if p.shape[-1] == len(order) and _picks(site, group, parents):
                labels[site] = p[..., list(order)], m
    return replace(found, labels=labels)


def _picks(site: str, group: set[str], parents: Mapping[str, Sequence[str]]) -> bool:
    """Whether a label's own probabilities, or a site that it is a parent of, depend on the group's latents."""
    meets = [{site, *parents.get(site, ())}, *({*p} for p in parents.values() if site in p)]
    return any(group & one for one in meets)


def _groups(fit: Fit) -> list[tuple[int, list[tuple[str, int]]]]:
    """The sizes of the groups of labels, and the axes of sites that they number; as `Labels.notes` tells them."""
    told = fit.notes.get("exchangeable", [])
    assert isinstance(told, list)
    out = []
    for group in told:
        axes = [text.rsplit(", axis ", 1) for text in group["axes"]]
        out.append((int(group["labels"]), [(name, int(axis)) for name, axis in axes]))
    return out


def _moved(draws: Draws, axes: Axes, orders: np.ndarray) -> dict[str, np.ndarray]:
    """Draws [S, …], each in an order of its own [S, K]."""
    out = {name: draws[name] for name, _ in axes if name in draws}
    for name, axis in axes:
        if name in out:
            values = out[name]
            index = orders.reshape(
                len(values), *(orders.shape[1] if a == axis else 1 for a in range(1 - values.ndim, 0))
            )
            out[name] = np.take_along_axis(values, index, axis)
    return out


def _flat(draws: Draws, axes: Axes) -> np.ndarray:
    """The numbers of all sites side by side [S, m]."""
    return np.concatenate([draws[n].reshape(len(draws[n]), -1) for n in sorted({n for n, _ in axes})], 1)


def _nearest(draws: Draws, axes: Axes, orders: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Which of the orders [P, K] brings each draw nearest to the mean [S], in units of sd."""
    size = len(next(draws[n] for n, _ in axes))
    each = (_flat(_moved(draws, axes, np.tile(order, (size, 1))), axes) for order in orders)
    return np.stack([np.square((values - mean) / sd).sum(1) for values in each]).argmin(0)


def _own(draws: Draws, axes: Axes, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which order brings each of the reference's draws nearest to their own mean [S], that mean and the deviations."""
    chosen, found = np.zeros(len(next(draws[n] for n, _ in axes)), int), draws
    for _ in range(ROUNDS):
        values = _flat(found, axes)
        mean, sd = values.mean(0), np.maximum(values.std(0), 1e-12)
        if np.array_equal(chosen, before := _nearest(draws, axes, orders, mean, sd)):
            break
        chosen, found = before, _moved(draws, axes, orders[before])
    return chosen, mean, sd
