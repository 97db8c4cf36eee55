"""The shadow of a site's log-density: by a rule for the commonest families, by following `log_prob` for all others.

In a long chain most operations belong to the densities of a few families. What those do is known: the density of a Normal
depends, entry by entry, on value, location and scale, is of twice the degree of the first two, and constant in no other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from zoo._program.trace import Node, is_plain
from zoo._reading.operations import OTHER, along
from zoo._reading.reader import PLACE, Reader
from zoo._reading.shadow import NO_DEGREE, Shadow

ENTRYWISE = {  # families, and those of their parameters that a density reads; a Categorical's have a dimension of their own
    dist.Normal: ("loc", "scale"),
    dist.Categorical: ("probs", "logits"),
    dist.Bernoulli: ("probs", "logits"),
    dist.Poisson: ("rate",),
    dist.Exponential: ("rate",),
    dist.Gamma: ("concentration", "rate"),
}


@dataclass(frozen=True)
class Density:
    """What a site's log-density depends on."""

    shadow: Shadow
    given: int  # the bits of its parameters alone
    through: Sequence[Tensor]  # whose notes are its own
    support: constraints.Constraint | None  # where its bounds may depend on something


def densities(reader: Reader, nodes: Sequence[Node]) -> list[Density]:
    """Of the sites of a program that has run."""
    known = [_by_rule(reader, node) for node in nodes]
    with reader.reading():
        followed = [_followed(reader, node) for node, rule in zip(nodes, known, strict=True) if rule is None]
    found = iter(followed)
    return [rule or _of(reader, *next(found)) for rule in known]


def _of(reader: Reader, log_prob: Tensor, given: Tensor, support: constraints.Constraint) -> Density:
    return Density(reader.of(log_prob), reader.of(given).union()[0], [log_prob], support)


def _followed(reader: Reader, node: Node) -> tuple[Tensor, Tensor, constraints.Constraint]:
    """A site's log-density; the same at a value that depends on nothing; and its support."""
    log_prob, support = _counted(node), cast(constraints.Constraint, node["fn"].support)
    with reader.unwatched():
        copy = torch.as_tensor(node["value"]).clone()
    return log_prob, _counted({**node, "value": copy}), support


def _counted(node: Node) -> Tensor:
    """A site's log-density as it counts, with its mask and scale."""
    log_prob = node["fn"].log_prob(node["value"])
    if isinstance(node["mask"], Tensor):
        log_prob = log_prob * node["mask"]
    if isinstance(node["scale"], Tensor):
        log_prob = log_prob * node["scale"]
    return log_prob


def _by_rule(reader: Reader, node: Node) -> Density | None:
    base, events = node["fn"], 0
    while type(base) is dist.Independent:
        base, events = base.base_dist, events + base.reinterpreted_batch_ndims
    if type(base) not in ENTRYWISE or not is_plain(node):
        return None
    through = [base.__dict__[name] for name in ENTRYWISE[type(base)] if name in base.__dict__]
    parts = [reader.of(t) for t in through]
    if type(base) is dist.Categorical:
        parts = [along(p, (-1,)) for p in parts]
    value = reader.of(node["value"])
    degree = _degree(type(base), value, parts)
    if degree is None:
        return None
    mask, given = value.mask, 0
    for p in parts:
        mask, given = mask | p.mask, given | p.union()[0]
    through = [node["value"], *through]
    if reader.meets(through, [value, *parts]):
        mask = mask | PLACE
    flat = degree is NO_DEGREE
    whole = along(Shadow(mask, degree.expand(mask.shape), flat), range(-events, 0))
    return Density(whole, given, through, None)


def _degree(family: type, value: Shadow, parts: Sequence[Shadow]) -> Tensor | None:
    """Of a density in the continuous latents; None where it has to be followed."""
    if not any(s.union()[1] for s in (value, *parts)):
        return NO_DEGREE
    if family is not dist.Normal:
        return None
    loc, scale = parts
    distance = torch.maximum(*torch.broadcast_tensors(value.degree, loc.degree))
    high = (distance > 1) | (scale.degree > 0)
    return torch.where(high, torch.full_like(distance, OTHER), 2 * distance)
