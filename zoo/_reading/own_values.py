"""Whether what a site observes comes back to it: then what the program multiplies is no density of the data.

A `Normal(0.5 * x[:, 0], 1)` that observes `x[:, 0]`, or a prior around `x.mean()`, does not integrate to 1 over x. One column
of x at a time gets the first row's value in half of the rows, with all latents as they were. Where a site observes that column,
its density at the first value must be what it was; and no way may lead from a column through other columns and latents back to
it.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo._program.program import Program
from zoo._program.trace import Node, drawn_in_full, is_latent, sample_nodes
from zoo._reading.sites import Reading

MOST_COLUMNS = 16  # that are looked at, spread over a row

Place = int | str  # a column, or the name of a latent


def comes_back(program: Program, rows: Tensor, reading: Reading) -> str:
    """The site that depends on a value that it observes, in a sentence; "" where none does.

    `rows` [n, …]: complete; `reading`: of the program on them.
    """
    with torch.no_grad(), pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = {n["name"]: drawn_in_full(n) for n in sample_nodes(program.trace(rows, raw=True)) if is_latent(n)}
        first = _nodes(program, rows, drawn)
        columns = torch.linspace(0, rows[0].numel() - 1, min(rows[0].numel(), MOST_COLUMNS)).round().long().tolist()
        others = {column: _nodes(program, _alike(rows, column), drawn) for column in columns}
        owned = {column: _owned(first, other) for column, other in others.items()}
        ways: dict[Place, set[Place]] = {}
        for column, other in others.items():
            changed = _changed(first, other)
            for name, entries in owned[column].items():
                if bool((changed[name] & entries).any()):
                    return _said(name)
            ways[column] = {name for name in drawn if bool(changed[name].any())}
            ways[column] |= {
                c for c in columns if any(bool((changed[name] & mine).any()) for name, mine in owned[c].items())
            }
    for latent in drawn:
        below = {name for name, site in reading.sites.items() if latent in site.parents}
        ways[latent] = {name for name in below if name in drawn}
        ways[latent] |= {column for column in columns if below & owned[column].keys()}
    for column in columns:
        if column in _reached(ways, column):
            return _said(next(iter(owned[column]), ""))
    return ""


def _said(name: str) -> str:
    return (
        f"what site '{name}' observes comes back to it, so that the program is no density of x: let a site depend on other "
        "columns of x than the one that it observes, and a prior on none"
    )


def _nodes(program: Program, rows: Tensor, drawn: Mapping[str, Tensor]) -> dict[str, Node]:
    torch.manual_seed(0)
    return {n["name"]: n for n in sample_nodes(program.trace(rows, latents=drawn, raw=True))}


def _alike(rows: Tensor, column: int) -> Tensor:
    """The rows, with the first one's value in one column of half of them: sums over rows are other numbers then."""
    out = rows.clone()
    flat = out.view(len(rows), -1)
    flat[1 : len(rows) // 2 + 1, column] = flat[0, column].clone()
    return out


def _base(node: Node) -> dist.TorchDistribution:
    fn = node["fn"]
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn


def _owned(first: Mapping[str, Node], other: Mapping[str, Node]) -> dict[str, Tensor]:
    """Site → which of its entries observe the column in which the two runs differ."""
    out = {}
    for name, node in first.items():
        if not is_latent(node) and node["value"].shape == other[name]["value"].shape:
            mine = node["value"] != other[name]["value"]
            if events := len(_base(node).event_shape):
                mine = mine.flatten(mine.dim() - events).any(-1)
            if bool(mine.any()):
                out[name] = mine
    return out


def _changed(first: Mapping[str, Node], other: Mapping[str, Node]) -> dict[str, Tensor]:
    """Site → which entries have another density, at the value of the first run, in the other."""
    out = {}
    for name, node in first.items():
        one, two = (_base(n).log_prob(node["value"]) for n in (node, other[name]))
        out[name] = (one != two) & ~(one.isnan() & two.isnan())
    return out


def _reached(ways: Mapping[Place, set[Place]], start: Place) -> set[Place]:
    """Everything that depends on `start`."""
    found, ahead = set[Place](), list(ways[start])
    while ahead:
        if (place := ahead.pop()) not in found:
            found.add(place)
            ahead += ways.get(place, ())
    return found
