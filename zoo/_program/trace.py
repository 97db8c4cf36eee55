"""Reading densities off a Pyro trace: which sites belong to a datum, and their log-densities, datum by datum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

DATA_PLATE = "data"
DRAWS_PLATE = "_draws"  # a method's own plate around a program: many draws for each datum at once


def local_log_prob(trace: Any, data_dim: int, rows: int) -> Tensor:
    """Σ over the local sites of log p, kept apart per datum: [..., rows], where leading dimensions are enumeration or
    sampling dimensions and every plate but `data` is summed out. Nats."""
    total = torch.zeros(())
    local = [node for node in sample_nodes(trace) if is_local(node)]
    depth = max((_depth(node) for node in local), default=1)
    for node in local:
        total = total + per_datum(node, log_prob(node), data_dim, depth)
    return total.expand(torch.broadcast_shapes(total.shape, (rows,)))


def per_datum(node: Any, log_prob: Tensor, data_dim: int, depth: int = 1) -> Tensor:
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
    # plate dimensions count from the right; what stands left of the deepest plate is enumeration
    drop = [d for d in range(-depth, 0) if d != data_dim]
    return log_prob.sum(drop) if drop else log_prob


def log_prob(node: Any) -> Tensor:
    """A site's log-density at its value, nats: what its distribution says, with fewer passes over memory for a vector of
    Bernoullis by logits l, where it is x·l − Σ log(1 + exp l)."""
    fn, value = node["fn"], node["value"]
    if isinstance(fn, dist.Independent) and fn.reinterpreted_batch_ndims == 1:
        base = fn.base_dist
        if type(base) is dist.Bernoulli and "logits" in base.__dict__ and base.logits.shape[-1:] == value.shape[-1:]:
            return torch.linalg.vecdot(base.logits, value.to(base.logits)) - softplus(base.logits).sum(-1)
    return fn.log_prob(value)


def _depth(node: Any) -> int:
    return max((-f.dim for f in node["cond_indep_stack"] if f.dim is not None and f.name != DRAWS_PLATE), default=1)


def is_plain(node: Any) -> bool:
    """Whether a site's log-density counts as it is: the program puts no mask and no scale on it."""
    return node["mask"] is None and is_one(node["scale"])


def is_one(scale: Any) -> bool:
    """Whether a site's scale is the number one."""
    return isinstance(scale, float | int) and scale == 1


def global_log_prob(trace: Any) -> Tensor:
    """Σ log p over the sites outside the `data` plate, nats: the log prior of the global latents, and what is seen there."""
    total = torch.zeros(())
    for node in sample_nodes(trace):
        if not is_local(node):
            total = total + _whole(node)
    return total


def outside_log_prob(trace: Any, names: Sequence[str]) -> Tensor:
    """Σ log p over the sites `names`, which are observed outside the `data` plate, nats."""
    total = torch.zeros(())
    for name in names:
        total = total + _whole(trace.nodes[name])
    return total


def _whole(node: Any) -> Tensor:
    """A site's log-density as it counts, with its mask and scale, summed over all of it."""
    log_prob = node["fn"].log_prob(node["value"])
    if node["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(node["mask"]), log_prob, torch.zeros(()))
    return (log_prob * node["scale"]).sum()


def is_local(node: Any) -> bool:
    return any(f.name == DATA_PLATE for f in node["cond_indep_stack"])


def sample_nodes(trace: Any) -> list[Any]:
    return [
        node
        for node in trace.nodes.values()
        if node["type"] == "sample"
        and type(node["fn"]).__name__ != "_Subsample"
        and not (node["infer"] or {}).get("_deterministic", False)
    ]


def shape_fits(node: Any) -> bool:
    """Whether a site's value has its distribution's event shape, and a batch shape that broadcasts to the distribution's."""
    fn, value = node["fn"], node["value"]
    whole, event = tuple(fn.batch_shape) + tuple(fn.event_shape), tuple(fn.event_shape)
    if tuple(value.shape[value.dim() - len(event) :]) != event:
        return False
    try:
        return tuple(torch.broadcast_shapes(value.shape, whole)) == whole
    except RuntimeError:
        return False


def support_of(fn: Any) -> Any:
    """The support of a distribution; a mixture's is that of its parts, which torch wraps up."""
    support = fn.support
    return support.base_constraint if type(support).__name__ == "MixtureSameFamilyConstraint" else support


def family_name(fn: Any) -> str:
    """The family of a distribution, without what is wrapped around it."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution", "Slots", "Completed"):
        fn = fn.base_dist
    return type(fn).__name__.removeprefix("Marginal")
