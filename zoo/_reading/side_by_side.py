"""The log-densities of a program's sites, those of alike sites in one go.

A chain of a thousand steps has a thousand moves of one family and shape; their parameters, stacked, make one distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo._program.trace import Node, log_prob, whole_shape
from zoo._reading.density import ENTRYWISE

FEWEST = 8  # sites that are worth it


def log_probs(nodes: Sequence[Node]) -> list[Tensor]:
    """`log_prob` of each site, for sites whose values and parameters have been checked."""
    groups: dict[Hashable, list[int]] = {}
    for place, node in enumerate(nodes):
        groups.setdefault(_form(node) or place, []).append(place)
    out = dict[int, Tensor]()
    for places in groups.values():
        if len(places) < FEWEST:
            out |= {k: log_prob(nodes[k]) for k in places}
            continue
        alike = [nodes[k] for k in places]
        dims = max(alike[0]["value"].dim(), len(whole_shape(alike[0]["fn"])))
        fn, values = _stacked([n["fn"] for n in alike], dims), _lifted([n["value"] for n in alike], dims)
        out |= dict(zip(places, log_prob({**nodes[places[0]], "fn": fn, "value": values}), strict=True))
    return [out[k] for k in range(len(nodes))]


def _form(node: Node) -> Hashable:
    """What sites have in common whose densities can be had together; None where the family is not known to allow it."""
    fn, events = node["fn"], list[int]()
    while type(fn) is dist.Independent:
        events.append(fn.reinterpreted_batch_ndims)
        fn = fn.base_dist
    if type(fn) not in ENTRYWISE or fn._validate_args:
        return None
    value, state = node["value"], fn.__dict__
    given = [(name, state[name].shape, state[name].dtype) for name in ENTRYWISE[type(fn)] if name in state]
    return type(fn), *events, value.shape, value.dtype, *given


def _stacked(fns: Sequence[Any], dims: int) -> Any:
    """One distribution of many of one form, with a dimension for them left of `dims` others."""
    out = copy.copy(fns[0])
    if type(out) is dist.Independent:
        out.__dict__["base_dist"] = _stacked([f.base_dist for f in fns], dims)
        return out
    dims += type(out) is dist.Categorical  # whose parameters have a dimension of their own
    for name in ENTRYWISE[type(out)]:
        if name in out.__dict__:
            out.__dict__[name] = _lifted([f.__dict__[name] for f in fns], dims)
    return out


def _lifted(each: Sequence[Tensor], dims: int) -> Tensor:
    """Tensors of one shape, one below the other, so that their own dimensions are counted from the right."""
    shape = each[0].shape
    return torch.stack(list(each)).reshape(len(each), *(1,) * (dims - len(shape)), *shape)
