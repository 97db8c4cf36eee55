"""Pairs of a row and values of its discrete latents as the rows of one plain batch, and log p(x_i, a) of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from inference._method.task import Task
from inference._run._own.disagreement import Disagreement, tolerance
from inference._run._own.implied import Gaussian, Implied, Natural
from zoo._program.latents import support_values
from zoo._program.trace import Node, is_local, node_of, nodes_of, per_datum, sample_nodes
from zoo._reading.conjugate import FAMILIES, Parts

DRAWS = 6  # of z from its Gaussian, and as many from the prior
ROUNDINGS = 16.0  # changes of the last digits that explain what is away


@dataclass
class Batch:
    """Some pairs of a row and values of the discrete latents, side by side as rows of one batch."""

    task: Task
    rows: Tensor  # [m] of the data
    known: Mapping[str, Tensor]  # site → its value for each pair [m, numbers]
    point: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.axes = self.task.structure.axes
        self.x = self.task.x[self.rows]
        self.shapes: dict[str, tuple[int, ...]] = {}

    def trace(self, values: Mapping[str, Tensor]) -> Trace:
        latents = {**self.point, **values}
        return self.task.program.trace(self.x, latents=latents)

    def placed(self, flat: Tensor, shape: tuple[int, ...], events: int) -> Tensor:
        """[m, numbers] → the shape that a site's value has in the program, the pairs where the data stand."""
        place = len(shape) + self.axes.row_dim(events)
        others = [s for d, s in enumerate(shape) if d != place]
        return flat.reshape(len(flat), *others).movedim(0, place)

    def flat(self, value: Tensor, node: Node) -> Tensor:
        """The opposite of `placed`: [m, numbers]."""
        shape = (*node["fn"].batch_shape, *node["fn"].event_shape)
        first = self.axes.datum_first(value.expand(shape), len(node["fn"].event_shape))
        return first.reshape(len(self.x), -1)

    def discrete(self) -> dict[str, Tensor]:
        """The known values in the program's shapes, as far as they are known."""
        out: dict[str, Tensor] = {}
        for name, flat in self.known.items():
            node = node_of(self.trace(out), name) if name not in self.shapes else None
            if node is not None:
                fn = node["fn"]
                self.shapes[name] = (*fn.batch_shape, *fn.event_shape)
                self._events = {**getattr(self, "_events", {}), name: len(fn.event_shape)}
            out[name] = self.placed(flat, self.shapes[name], self._events[name])
        return out

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x_i, a, z) [m] by every local site's own `log_prob`, scale and mask."""
        return self._summed(self.trace({**self.discrete(), **values}))

    def _summed(self, trace: Trace) -> Tensor:
        total = self.x.new_zeros(len(self.x))
        for node in sample_nodes(trace):
            if is_local(node):
                log_prob = node["fn"].log_prob(node["value"])
                if node["name"] in self.known:
                    log_prob = _in_support(node, log_prob)
                total = total + per_datum(node, log_prob, self.axes.data_dim, self.axes.depth).reshape(-1)
        return total

    def integrated(self) -> Tensor:
        """log p(x_i, a) [m] with z integrated out."""
        discrete = self.discrete()
        nodes = nodes_of(self.trace(discrete))
        sites = [s.name for s in self.task.structure.continuous_locals]
        parts = [self.flat(nodes[s]["value"], nodes[s]) for s in sites]
        shapes = {s: (*nodes[s]["fn"].batch_shape, *nodes[s]["fn"].event_shape) for s in sites}
        events = {s: len(nodes[s]["fn"].event_shape) for s in sites}
        sizes = [p.shape[1] for p in parts]

        def joint(z: Tensor) -> Tensor:
            values = {s: self.placed(v, shapes[s], events[s]) for s, v in zip(sites, z.split(sizes, 1), strict=True)}
            return self._summed(self.trace({**discrete, **values}))

        prior = [torch.cat(parts, 1)]
        for _ in range(DRAWS - 1):
            again = nodes_of(self.trace(discrete))
            prior.append(torch.cat([self.flat(again[s]["value"], again[s]) for s in sites], 1))
        if self.task.structure.conjugate:
            places = {s: slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i, s in enumerate(sites)}
            family = {s.name: FAMILIES[s.family] for s in self.task.structure.continuous_locals}
            own: Implied = Natural(
                Parts(places, {s: nodes[s]["fn"].event_shape for s in sites}, family), joint, prior[0]
            )
        else:
            own = Gaussian(joint, prior[0])
        self.own = own
        found = joint(own.middle) - own.log_density(own.middle)
        for k in range(2 * DRAWS):
            z = own.draw(k) if k < DRAWS else prior[k - DRAWS]
            value, q = joint(z), own.log_density(z)
            size = torch.stack([value.abs(), q.abs(), found.abs(), torch.ones_like(q)]).amax(0)
            away = (value - q - found).abs().nan_to_num(torch.inf) / size
            away = away.masked_fill(own.blurred, 0.0)
            if bool((away > tolerance(value.dtype)).any()):
                worst = int(away.argmax())
                row, names = int(self.rows[worst]), ", ".join(repr(s) for s in sites)
                moved = float((joint(_next_to(z)) - value).abs()[worst])
                if float((away * size)[worst]) <= ROUNDINGS * moved:
                    raise Disagreement(
                        f"log p(x) of '{self.task.program.name}' cannot be told at row {row} (counting from 0): the last "
                        f"digits of {names} move it by {moved:.2g} nats. "
                        "Subtract what is large from the data (--standardize), or give the observations more noise."
                    )
                raise Disagreement(
                    f"log p(x) of '{self.task.program.name}' was treated as exact, but its log joint is not {own.kind} in "
                    f"{names} at row {row} (counting from 0): the value would be wrong. Nothing is "
                    "reported. Use a method that does not need that: importance or ais."
                )
        return found.masked_fill(own.blurred, torch.nan)


def _next_to(z: Tensor) -> Tensor:
    """The numbers of z [m, L] with their last digits changed, every second one down."""
    step = torch.nextafter(z, torch.full_like(z, torch.inf)) - z
    return z + step * (1 - 2 * (torch.arange(z.shape[1]) % 2)).to(z)


def assignments(task: Task, rows: Tensor, point: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pairs: which of `rows` [m], and site → the values of each discrete local latent [m, numbers]."""
    row = torch.arange(len(rows))
    known: dict[str, Tensor] = {}
    names = [s.name for s in task.structure.discrete_locals]
    for name in names:  # in the order in which the program draws them
        batch = Batch(task, rows[row], known, point)
        node = node_of(batch.trace(batch.discrete()), name)
        joint = joint_values(batch, node)
        known = {k: v.repeat_interleave(len(joint), 0) for k, v in known.items()}
        known[name] = joint.repeat(len(row), 1)
        row = row.repeat_interleave(len(joint))
    return row, known


def joint_values(batch: Batch, node: Node) -> Tensor:
    """Every value of a discrete site in one row [K^copies, numbers], where copies stand in plates inside `data`."""
    values = _support(node["fn"])  # [K, event numbers]
    copies = batch.flat(node["value"], node).shape[1] // values.shape[1]
    return torch.stack([torch.cat(v) for v in itertools.product(values, repeat=copies)])


def _support(fn: dist.TorchDistribution) -> Tensor:
    """Every value of a discrete distribution [K, numbers of one value]."""
    try:
        values = support_values(fn)
    except NotImplementedError:  # a count whose bound differs by row: up to the largest, with no density above its own
        bound = cast(constraints.integer_interval, fn.support).upper_bound
        values = torch.arange(int(torch.as_tensor(bound).max()) + 1).to(torch.get_default_dtype())
    return values.reshape(len(values), -1)


def _in_support(node: Node, log_prob: Tensor) -> Tensor:
    """−∞ where a value lies beyond the site's support, which the densities of some families ignore."""
    try:
        inside = cast(constraints.Constraint, node["fn"].support).check(node["value"])
    except NotImplementedError:
        return log_prob
    return torch.where(inside, log_prob, torch.full_like(log_prob, -torch.inf))
