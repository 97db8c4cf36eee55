"""Read a Pyro trace: which sites are local to a row, and their log-densities row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, real
from torch.nn.functional import softplus

DATA_PLATE = "data"
DRAWS_PLATE = "_draws"  # a method's own plate around a program: many draws for each datum at once

Shape = torch.Size | list[int] | tuple[int, ...]  # of many draws, as torch takes it


class Node(TypedDict):
    """One `sample` statement in a trace, as Pyro notes it: the message that handlers see, and afterwards its site."""

    type: str
    name: str
    fn: dist.TorchDistribution
    value: Tensor
    is_observed: bool
    done: bool
    cond_indep_stack: tuple[CondIndepStackFrame, ...]
    mask: Tensor | bool | None
    scale: Tensor | float
    infer: Mapping[str, Any] | None


class Plate(NamedTuple):
    """A plate around a site, as one of its batch dimensions."""

    name: str
    dim: int  # counted from the right, before the event
    size: int


def plates(node: Node) -> list[Plate]:
    """The plates of a site that are batch dimensions, from the left; a plate in a `for` loop is none."""
    frames = node["cond_indep_stack"]
    return sorted((Plate(f.name, f.dim, f.size) for f in frames if f.dim is not None), key=lambda p: p.dim)


def local_log_prob(trace: Trace, data_dim: int, rows: int) -> Tensor:
    """Σ over the local sites of log p, kept apart per datum: [..., rows], where leading dimensions are enumeration or
    sampling dimensions and every plate but `data` is summed out. Nats."""
    total = torch.zeros(())
    local = [node for node in sample_nodes(trace) if is_local(node)]
    depth = max((_depth(node) for node in local), default=1)
    for node in local:
        total = total + per_datum(node, log_prob(node), data_dim, depth)
    return total.expand(np.broadcast_shapes(total.shape, (rows,)))


def per_datum(node: Node, log_prob: Tensor, data_dim: int, depth: int = 1) -> Tensor:
    """Sum out every plate but `data` (and a method's own plate of draws): [..., n].

    `depth`: how many dimensions the plates of the whole program take, where this site's own are fewer.
    """
    depth = max(depth, -data_dim, _depth(node))
    if log_prob.dim() < depth:
        log_prob = log_prob.expand(*(1,) * (depth - log_prob.dim()), *log_prob.shape)
    if node["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(node["mask"]), log_prob, torch.zeros(()))
    if not is_one(node["scale"]):
        log_prob = log_prob * node["scale"]
    # plate dimensions count from the right; those left of the deepest plate are enumeration
    drop = [d for d in range(-depth, 0) if d != data_dim]
    return log_prob.sum(drop) if drop else log_prob


def log_prob(node: Node) -> Tensor:
    """A site's log-density at its value, nats. For a vector of Bernoullis with logits l it is computed as
    x·l − Σ log(1 + exp l), in fewer passes over memory."""
    fn, value = node["fn"], node["value"]
    if isinstance(fn, dist.Independent) and fn.reinterpreted_batch_ndims == 1:
        base = fn.base_dist
        if type(base) is dist.Bernoulli and "logits" in base.__dict__ and base.logits.shape[-1:] == value.shape[-1:]:
            return torch.linalg.vecdot(base.logits, value.to(base.logits)) - softplus(base.logits).sum(-1)
    return fn.log_prob(value)


def _depth(node: Node) -> int:
    frames = node["cond_indep_stack"]
    return max((-f.dim for f in frames if f.dim is not None and f.name != DRAWS_PLATE), default=1)


def is_plain(node: Node) -> bool:
    """Whether the program puts neither a mask nor a scale on a site."""
    return node["mask"] is None and is_one(node["scale"])


def is_masked(node: Node) -> bool:
    """Whether a mask, the program's or the distribution's own, takes away a part of a site's density."""
    fn, masks = node["fn"], [node["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return any(m is not None and not bool(torch.as_tensor(m).all()) for m in masks)


def is_one(scale: object) -> bool:
    """Whether a site's scale is the number one."""
    return isinstance(scale, float | int) and scale == 1


def global_log_prob(trace: Trace | list[Node], values: bool = True) -> Tensor:
    """Σ log p over the sites outside the `data` plate, nats: the log prior of the global latents, and what is seen there.

    `values`: whether their values can be differentiated, and not their distributions alone.
    """
    total = torch.zeros(())
    for node in trace if isinstance(trace, list) else sample_nodes(trace):
        if not is_local(node):
            total = total + _whole(node if values else {**node, "value": node["value"].detach()})
    return total


def outside_log_prob(trace: Trace, names: Sequence[str]) -> Tensor:
    """Σ log p over the sites `names`, which are observed outside the `data` plate, nats."""
    total = torch.zeros(())
    for name in names:
        total = total + _whole(node_of(trace, name))
    return total


def _whole(node: Node) -> Tensor:
    """A site's log-density with its mask and scale, summed."""
    log_prob = node["fn"].log_prob(node["value"])
    if node["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(node["mask"]), log_prob, torch.zeros(()))
    return (log_prob * node["scale"]).sum()


def altered(node: Node, fn: dist.TorchDistribution) -> Node:
    """A site as if drawn from `fn`, without a mask and a scale."""
    return {**node, "fn": fn, "mask": None, "scale": 1.0}


def is_local(node: Node) -> bool:
    """Whether a site is inside the plate `data`."""
    return any(f.name == DATA_PLATE for f in node["cond_indep_stack"])


def is_latent(node: Node) -> bool:
    """Whether a site is drawn."""
    return not node["is_observed"]


def is_deterministic(node: Node) -> bool:
    """Whether a site is a value with a name (`pyro.deterministic`), and no density."""
    return bool((node["infer"] or {}).get("_deterministic"))


def completes(node: Node) -> str | None:
    """The observed site that a latent completes, slot by slot; None for any other site."""
    return (node["infer"] or {}).get("_completes")


def sample_nodes(trace: Trace) -> list[Node]:
    """The sites of a trace, in order, without the plates' own."""
    nodes = (cast(Node, node) for node in trace.nodes.values() if node["type"] == "sample")
    return [n for n in nodes if type(n["fn"]).__name__ != "_Subsample" and not is_deterministic(n)]


def nodes_of(trace: Trace) -> Mapping[str, Node]:
    """What stands in a trace, by name."""
    return cast(Mapping[str, Node], trace.nodes)


def node_of(trace: Trace, name: str) -> Node:
    """The site `name` of a trace."""
    return cast(Node, trace.nodes[name])


def drawn_in_full(node: Node) -> Tensor:
    """A site's value in the shape of its distribution, in memory of its own."""
    fn, value = node["fn"], node["value"]
    return value.expand(np.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)).clone()


def whole_shape(fn: dist.TorchDistribution) -> tuple[int, ...]:
    """The shape of one value of a distribution: batch, then event."""
    return (*fn.batch_shape, *fn.event_shape)


def shape_fits(node: Node) -> bool:
    """Whether a site's value has its distribution's event shape, and a batch shape that broadcasts to the distribution's."""
    fn, value = node["fn"], node["value"]
    whole, event = whole_shape(fn), tuple(fn.event_shape)
    if tuple(value.shape[value.dim() - len(event) :]) != event:
        return False
    if tuple(value.shape) == whole:
        return True
    try:
        return np.broadcast_shapes(value.shape, whole) == whole
    except ValueError:
        return False


def support_of(fn: dist.TorchDistribution) -> Constraint:
    """The support of a distribution; a mixture's is that of its parts, which torch wraps up."""
    support = cast(Constraint, fn.support)
    inner: Constraint = getattr(support, "base_constraint", support)
    return inner if type(support).__name__ == "MixtureSameFamilyConstraint" else support


def is_discrete(fn: dist.TorchDistribution) -> bool:
    """Whether a distribution is one of counts or categories."""
    return bool(getattr(fn.support, "is_discrete", False))


def is_real(support: Constraint | None) -> bool:
    """Whether each entry ranges over all real numbers."""
    while isinstance(support, independent):
        support = support.base_constraint
    return type(support) is type(real)  # a copy is real too


def is_fixed(support: object) -> bool:
    """Whether a support has no bounds that could be other ones for another row, latent or θ."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return not any(isinstance(v, Tensor) for v in vars(support).values()) and not hasattr(support, "cseq")


def family_name(fn: dist.TorchDistribution) -> str:
    """The family of a distribution, without what is wrapped around it."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution", "Slots", "Completed"):
        fn = fn.base_dist
    return "ImproperUniform" if type(fn).__name__ == "Flat" else type(fn).__name__.removeprefix("Marginal")
