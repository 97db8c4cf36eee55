"""The labelling of a fit in which it is nearest to a reference, where labels can be exchanged: either may have any of K!."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from inference._compare.moments import Moments, Posterior, Support, posterior_of
from inference._globals.labels import MOST
from inference._method.fit import Fit


def aligned(
    fit: Fit, supports: Mapping[str, Support], reference: Posterior, parents: Mapping[str, Sequence[str]]
) -> Posterior:
    """The posterior of a fit, its global latents and labels in the reference's labelling.

    `parents`: site → the sites that it depends on. A label is moved with the group of those latents that it picks from.
    """
    draws, orders = dict(fit.draws), list[tuple[set[str], Sequence[int]]]()
    for size, axes in _groups(fit):
        shared = [(name, axis) for name, axis in axes if name in draws and name in reference.numbers]
        if not shared or math.factorial(size) > MOST:
            continue
        order: Sequence[int] = min(
            itertools.permutations(range(size)), key=lambda o: _away(draws, shared, o, reference.numbers)
        )
        draws |= _moved(draws, axes, order)
        orders.append(({name for name, _ in axes}, order))
    found = posterior_of(replace(fit, draws=draws), supports)
    labels = dict(found.labels)
    for site, (p, m) in found.labels.items():
        for group, order in orders:
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


def _moved(
    draws: Mapping[str, np.ndarray], axes: Sequence[tuple[str, int]], order: Sequence[int]
) -> dict[str, np.ndarray]:
    out = {name: draws[name] for name, _ in axes if name in draws}
    for name, axis in axes:
        if name in out:
            out[name] = np.take(out[name], order, axis)
    return out


def _away(
    draws: Mapping[str, np.ndarray],
    axes: Sequence[tuple[str, int]],
    order: Sequence[int],
    numbers: Mapping[str, Moments],
) -> float:
    """How far the means are from the reference's in that order."""
    means = {name: draws[name].mean(0, keepdims=True) for name, _ in axes}
    total = 0.0
    for name, mean in _moved(means, axes, order).items():
        other = numbers[name]
        total += float(np.square((mean.reshape(-1) - other.mean) / np.maximum(other.sd, 1e-12)).sum())
    return total
