"""What a trace of the program shows of its local sites: their nodes, and what they observe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from zoo._program.trace import Node, is_local, node_of, nodes_of

ROWS = 4096  # that are traced at once


def local_nodes(trace: Trace) -> list[Node]:
    """The nodes of the local sites of a trace."""
    return [n for n in nodes_of(trace).values() if n["type"] == "sample" and is_local(n)]


def probe(x: Tensor) -> Tensor:
    """Two rows of x, which are enough to see what differs from row to row."""
    return x[[0, -1]].nan_to_num(0.0) if len(x) else x


def observed(node: Node, few: Tensor, x: Tensor, trace: Callable[[Tensor], Trace]) -> Tensor:
    """What a site observes [N, …], NaN where unobserved; `node` is its node in a trace of the rows `few`.

    x itself where the site observes that, without a copy.
    """
    if is_same(node["value"], few):
        return x
    return torch.cat([node_of(trace(rows), node["name"])["value"] for rows in x.split(ROWS)])


def is_same(value: Tensor, x: Tensor) -> bool:
    """Whether what a site observes of the rows `x` is x itself, by its place in memory."""
    return value.shape == x.shape and value.data_ptr() == x.data_ptr() and value.stride() == x.stride()
