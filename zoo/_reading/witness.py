"""Measure what reading a program's operations has proved, as a second check, on many rows and at several draws.

- the same run twice gives the same densities;
- other rows' data and latents do not change a row's density: ten times, those of a random half of all rows are replaced,
  which separates any two rows with probability 1 − 2⁻¹⁰;
- rows in another order, and batches of other sizes, give the same densities;
- joint values of the latents give the same densities together in one run as one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from zoo._program.axes import Axes
from zoo._program.latents import Layout, joint_values
from zoo._program.missing import complete_data
from zoo._program.program import Program
from zoo._program.structure import Exactness, Site, Structure
from zoo._program.trace import (
    Node,
    completes,
    drawn_in_full,
    is_latent,
    is_local,
    log_prob,
    per_datum,
    sample_nodes,
    whole_shape,
)
from zoo._reading.elimination import size as table_size
from zoo._reading.enumerated import Enumerated, WrongGraph
from zoo._reading.side_by_side import log_probs

ROWS = 500  # looked at in one go
NUMBERS = 200_000  # of data among them
HALVES = 10
FEWER_HALVES, MANY_SITES = 3, 46  # of a program that takes long to run: all is looked at together first
AGAIN = 4  # of them at one draw of the latents
TABLE_NUMBERS = 2**22  # of the tables that are compared
SIDE_BY_SIDE = 8  # joint values that are compared one by one

STEPS = (0.3, 0.03, 0.003, 0.0)  # from θ, of which the first is taken that leaves draws of a long program ordinary
LARGE = 1e4

Values = dict[str, Tensor]


class Witness:
    """A program on some rows, at draws of its latents; `complaint` says in one sentence what does not hold.

    `others`: the sites of another run on all rows of x, if there was one.
    """

    def __init__(self, program: Program, x: Tensor, axes: Axes, others: Sequence[Node] = ()) -> None:
        width = max(1, x[0].numel())
        self.program, self.axes, self.others = program, axes, others
        self.generator = torch.Generator().manual_seed(11)
        count = min(len(x), ROWS, max(20, NUMBERS // width))
        some = torch.randperm(len(x), generator=self.generator)[:count].sort().values
        self.x = x[some].nan_to_num(0.0)
        self.theta, self.first = self._elsewhere()
        self.tolerance = 1e-8 if x.dtype == torch.float64 else 1e-3

    @torch.no_grad()
    def _elsewhere(self) -> tuple[Values, list[Node]]:
        """θ near the program's own, where a long chain does not grow without bound: rounding would grow with it.

        And the sites of a run there.
        """
        for step in STEPS:
            theta = self.program.elsewhere(step)
            with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), complete_data():
                torch.manual_seed(0)
                nodes = sample_nodes(self.program.trace(self.x, parameters=theta, raw=True))
            sizes = [n["value"].abs().max() for n in nodes if is_latent(n) and n["value"].is_floating_point()]
            if len(nodes) <= MANY_SITES or not sizes or float(torch.stack(sizes).max()) < LARGE:
                break
        return theta, nodes

    def complaint(self) -> str:
        """What does not hold, in one sentence; "" where all does."""
        n = len(self.x)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), complete_data():
            torch.manual_seed(1)
            latents, nodes = _values(self.first)
            once = self._of(self.first, n)
            if len(nodes) > MANY_SITES and n > 1 and self._all_at_once(latents, nodes, once):
                return ""
            again = self._densities(self.x, latents)
            if any(isinstance(_inner(n["fn"]), TransformedDistribution) for n in self.first if is_latent(n)):
                # at what it drew itself it knows what was transformed; at a given value that is found by the inverse
                once, again = again, self._densities(self.x, latents)
            if not self._same(once, again, slice(None), slice(None)):
                return (
                    "two runs with the same values give different densities: it keeps a state, or draws random numbers"
                )
            if n == 1:
                return ""
            for k in range(HALVES):
                if k and not k % AGAIN:
                    latents, nodes = self._drawn(self.x)
                    once = self._densities(self.x, latents)
                if said := self._halves(latents, nodes, once):
                    return said
            order = torch.randperm(n, generator=self.generator)
            if not self._same(
                once, self._densities(self.x[order], self._rows(latents, nodes, order)), order, slice(None)
            ):
                return PLACE
            return self._batches(latents, nodes, once) or (JOINED if len(nodes) > MANY_SITES else "")

    def _all_at_once(self, latents: Values, nodes: Mapping[str, Node], once: Values) -> bool:
        """Whether all of it holds together, for a program that takes long to run: rows keep their densities in another order,
        where some of the others are replaced and the rest left out; and one row by itself."""
        n, fresh = len(self.x), (_values(self.others) if self.others else self._drawn(self.x))[0]
        for _ in range(FEWER_HALVES):
            other = self._half()
            x, mixed = self._mixed(latents, nodes, fresh, other)
            order = torch.randperm(n, generator=self.generator)
            left_out = other[order] & (torch.rand(n, generator=self.generator) < 0.5)
            some, kept = order[~left_out], ~other[order[~left_out]]
            if not self._same(once, self._densities(x[some], self._rows(mixed, nodes, some)), some[kept], kept):
                return False
        one = torch.randint(n, (1,), generator=self.generator)
        return self._same(once, self._densities(self.x[one], self._rows(latents, nodes, one)), one, slice(None))

    def _half(self) -> Tensor:
        """A random half of the rows, true; neither none nor all."""
        n = len(self.x)
        other = torch.rand(n, generator=self.generator) < 0.5
        return other if bool(other.any()) and not bool(other.all()) else torch.arange(n) < n // 2

    def _mixed(self, latents: Values, nodes: Mapping[str, Node], fresh: Values, other: Tensor) -> tuple[Tensor, Values]:
        """Data and latents in which those of the rows `other` are not what they were."""
        n = len(self.x)
        x = torch.where(_along(other, self.x, 0), self.x[torch.randperm(n, generator=self.generator)], self.x)
        mixed = {}
        for name, value in latents.items():
            if name in nodes and is_local(nodes[name]):
                value = torch.where(_along(other, value, self._dim(nodes[name])), fresh[name], value)
            mixed[name] = value
        return x, mixed

    def _halves(self, latents: Values, nodes: Mapping[str, Node], once: Values) -> str:
        other = self._half()
        x, mixed = self._mixed(latents, nodes, self._drawn(self.x)[0], other)
        return "" if self._same(once, self._densities(x, mixed), ~other, ~other) else JOINED

    def _batches(self, latents: Values, nodes: Mapping[str, Node], once: Values) -> str:
        n = len(self.x)
        for size in sorted({1, 2, (n + 1) // 2, n - 1}):
            if not 0 < size < n:
                continue
            some = torch.randperm(n, generator=self.generator)[:size]
            found = self._densities(self.x[some], self._rows(latents, nodes, some))
            if not self._same(once, found, some, slice(None)):
                return JOINED
        return ""

    # ------------------------------------------------------------------------------------------------------- runs

    def _drawn(self, x: Tensor) -> tuple[Values, dict[str, Node]]:
        """Draws of all latents from the program, in full, and its sites."""
        return _values(sample_nodes(self.program.trace(x, parameters=self.theta, raw=True)))

    def _densities(self, x: Tensor, latents: Values) -> Values:
        """Local site → its log-density [rows], nats."""
        return self._of(sample_nodes(self.program.trace(x, parameters=self.theta, latents=latents, raw=True)), len(x))

    def _of(self, nodes: Sequence[Node], n: int) -> Values:
        out, local = {}, [node for node in nodes if is_local(node) and not completes(node)]
        for node, value in zip(local, log_probs(local), strict=True):
            value = per_datum(node, value, self.axes.data_dim, self.axes.depth)
            if value.shape != (n,):
                value = value.expand(np.broadcast_shapes(value.shape, (n,))).reshape(n)
            out[node["name"]] = value
        return out

    def _dim(self, node: Node) -> int:
        return self.axes.row_dim(len(node["fn"].event_shape))

    def _rows(self, latents: Values, nodes: Mapping[str, Node], index: Tensor) -> Values:
        out = {}
        for name, value in latents.items():
            local = name in nodes and is_local(nodes[name])
            out[name] = value.index_select(self._dim(nodes[name]), index) if local else value
        return out

    def _same(self, one: Values, other: Values, of_one: Tensor | slice, of_other: Tensor | slice) -> bool:
        """Whether the densities of those rows are the same, up to the rounding that another batch size may bring."""
        if one.keys() != other.keys():
            return False
        if not one:
            return True
        a = torch.stack(list(one.values()))[:, of_one]
        b = torch.stack([other[name] for name in one])[:, of_other]
        return bool(torch.isclose(a, b, rtol=self.tolerance, atol=self.tolerance, equal_nan=True).all())

    def _alike(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
        """Whether the two densities of each site are the same."""
        one, other = ({k: v[i] for k, v in pairs.items()} for i in (0, 1))
        return self._same(one, other, slice(None), slice(None))

    # ----------------------------------------------------------------------------------------------- side by side

    def side_by_side(self, discrete: list[str], continuous: list[str], assignments: int) -> str:
        """Joint values of the local latents that go through the program as a leading dimension must stay apart."""
        x = self.x[: min(len(self.x), 7)]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(1)
            _, nodes = self._drawn(x)
            chosen = torch.randperm(assignments, generator=self.generator)[:SIDE_BY_SIDE]
            joint = {k: v[chosen] for k, v in joint_values(nodes, discrete, self.axes).items()}
            A, n = len(chosen), len(x)
            layout = Layout(nodes, continuous, self.axes)
            z = torch.randn(A, n, layout.L, generator=self.generator, dtype=x.dtype)
            fixed = {k: v["value"] for k, v in nodes.items() if not is_local(v) and is_latent(v)}
            try:
                # of a program that is summed over, each site may drop the plates that it does not need
                depth = self.axes.depth if continuous else 1
                together = self._leading(x, {**fixed, **joint, **layout.unflatten(z)}, A, depth)
                for a in range(A):
                    one = {k: self._plain(v[a], nodes[k], n) for k, v in joint.items()}
                    one |= {k: v[0] for k, v in layout.unflatten(z[a : a + 1]).items()}
                    one = {k: v.reshape(whole_shape(nodes[k]["fn"])) for k, v in one.items()}
                    alone = self._densities(x, {**fixed, **one})
                    if not self._same(alone, {k: v[a] for k, v in together.items()}, slice(None), slice(None)):
                        return SIDE
            except RuntimeError:
                return SIDE
        return ""

    def tables(self, sites: Sequence[Site]) -> str:
        """What does not hold of the tables that densities are read off as, in one sentence; "" where all does.

        At random values of all latents, others in each row, a site's density must be the entry of its table.
        """
        structure = Structure("", 0, tuple(sites), (), Exactness.NO, "")
        cards, scopes = structure.cards, structure.scopes
        entries = sum(table_size(cards, scope) for scope in scopes.values())
        x = self.x[: max(2, min(len(self.x), TABLE_NUMBERS // max(1, entries)))]
        n = len(x)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), complete_data():
            torch.manual_seed(2)
            nodes = _values(self.first)[1] if n == len(self.x) else self._drawn(x)[1]
            fixed = {k: v["value"] for k, v in nodes.items() if is_latent(v) and k not in cards}
            every = Enumerated(self.program, self.axes, cards, scopes, nodes)
            try:
                tables = every.tables(every.trace(x, self.theta, fixed), scopes.keys())
                for _ in range(AGAIN if len(nodes) <= MANY_SITES else 2):
                    states = {k: torch.randint(card, (n,), generator=self.generator) for k, card in cards.items()}
                    own = {k: v.expand(whole_shape(nodes[k]["fn"])) for k, v in every.at(states).items()}
                    alone = self.program.trace(x, parameters=self.theta, latents={**fixed, **own})
                    pairs = dict[str, tuple[Tensor, Tensor]]()
                    local = list(filter(is_local, sample_nodes(alone)))
                    for node, value in zip(local, log_probs(local), strict=True):
                        name = node["name"]
                        table = tables[name].expand(n, *tables[name].shape[1:])
                        entry = table[(torch.arange(n), *(states[k] for k in scopes[name]))]
                        value = per_datum(node, value, self.axes.data_dim, self.axes.depth)
                        pairs[name] = entry, value.expand(n)
                    if not self._alike(pairs):
                        return f"at site '{next(k for k, v in pairs.items() if not self._alike({k: v}))}' {SIDE}"
            except WrongGraph as error:
                return f"{error}: {SIDE}"
            except (RuntimeError, IndexError):
                return SIDE
        return ""

    def _leading(self, x: Tensor, latents: Values, A: int, depth: int) -> Values:
        trace = self.program.trace(x, parameters=self.theta, latents=latents, raw=True)
        out = {}
        for node in sample_nodes(trace):
            if is_local(node) and not completes(node):
                value = per_datum(node, log_prob(node), self.axes.data_dim, depth)
                value = value.reshape(-1, value.shape[-1]) if value.dim() > 2 else value
                out[node["name"]] = value.expand(np.broadcast_shapes(value.shape, (A, len(x))))
        return out

    def _plain(self, value: Tensor, node: Node, n: int) -> Tensor:
        """A joint value [1, …, event] as the program itself would draw it, the same for all rows."""
        shape = whole_shape(node["fn"])
        spare = value.dim() - len(shape)
        return (value.reshape(value.shape[spare:]) if spare > 0 else value).expand(shape)


def _values(nodes: Sequence[Node]) -> tuple[Values, dict[str, Node]]:
    """The values of all latents, in full; and all sites by name."""
    values = {n["name"]: drawn_in_full(n) for n in nodes if is_latent(n) and not completes(n)}
    return values, {n["name"]: n for n in nodes}


JOINED = "a row's density changes with the other rows of the batch, so the rows are not independent given θ"
PLACE = (
    "a row's density changes with its place in the batch (a plate's index, torch.arange, an array with one entry a row): put "
    "what belongs to a row in a column of x"
)
SIDE = (
    "it mixes up values of its latents that go through it side by side: index from the right (`z[..., None]`), and keep the "
    "dimensions left of `data`"
)


def _along(rows: Tensor, value: Tensor, dim: int) -> Tensor:
    shape = [1] * value.dim()
    shape[dim] = len(rows)
    return rows.reshape(shape)


def _inner(fn: object) -> object:
    """A distribution without what is wrapped around it."""
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return fn
