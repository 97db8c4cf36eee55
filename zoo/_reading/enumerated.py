"""A program run once with all values of its discrete local latents side by side, and each site's density as a table.

A latent's K values lie along a dimension left of the plates. Latents that never share a factor may share a dimension: a chain
needs two, however long it is. With plates of depth 1, two colours, K = 3 and n rows, the transition z3 | z2 has the log-density
[3, 3, n]: z2 (of colour 0) along dimension −2, z3 (of colour 1) along −3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pyro.poutine.trace_struct import Trace
from torch import Tensor

from zoo._program.axes import Axes
from zoo._program.latents import support_values
from zoo._program.program import Program
from zoo._program.trace import Node, is_local, per_datum, sample_nodes
from zoo._reading.elimination import colours
from zoo._reading.side_by_side import log_probs

Tables = dict[str, Tensor]


class WrongGraph(ArithmeticError):
    """A density varies with a latent that it was found not to depend on."""


class Enumerated:
    """`cards`: discrete local latent → how many values it has; `scopes`: local site → those that its density depends on."""

    def __init__(
        self,
        program: Program,
        axes: Axes,
        cards: Mapping[str, int],
        scopes: Mapping[str, Sequence[str]],
        nodes: Mapping[str, Node],
    ) -> None:
        self.program, self.axes, self.cards = program, axes, dict(cards)
        self.colours = colours(cards, scopes)
        place = {name: i for i, name in enumerate(cards)}
        self.scopes = {site: tuple(sorted(scope, key=lambda n: place[n])) for site, scope in scopes.items()}
        self.support = {name: self._support(nodes[name]) for name in cards}  # [K, event]
        self.values = {name: self._placed(name, value) for name, value in self.support.items()}

    def _support(self, node: Node) -> Tensor:
        event = tuple(node["fn"].event_shape)
        return support_values(node["fn"]).reshape(-1, *event)

    def _placed(self, name: str, value: Tensor) -> Tensor:
        right = self.axes.depth + self.colours[name]
        return value.reshape(len(value), *(1,) * right, *value.shape[1:])

    def trace(
        self,
        x: Tensor,
        parameters: Mapping[str, Tensor] | None = None,
        latents: Mapping[str, Tensor] | None = None,
        raw: bool = False,
    ) -> Trace:
        """The program on x [n, …] with the values of all discrete local latents side by side."""
        return self.program.trace(x, parameters=parameters, latents={**self.values, **(latents or {})}, raw=raw)

    def tables(self, trace: Trace, sites: Collection[str]) -> Tables:
        """Site → log-density as a table [n or 1, values of each latent of its scope], nats."""
        out, nodes = {}, [n for n in sample_nodes(trace) if n["name"] in sites and is_local(n)]
        for node, log_prob in zip(nodes, log_probs(nodes), strict=True):
            value = per_datum(node, log_prob, self.axes.data_dim, self.axes.depth)
            out[node["name"]] = self.in_order(node["name"], value)
        return out

    def in_order(self, site: str, value: Tensor, events: int = 0) -> Tensor:
        """[colours…, n, event] → [n, values of each latent of the site's scope, event].

        Raises `WrongGraph` where it varies along another dimension.
        """
        scope = self.scopes[site]
        sizes = {1 + self.colours[name]: self.cards[name] for name in scope}  # place, counted from the rows' on
        lead = value.dim() - 1 - events
        for place in range(1, lead + 1):
            if value.shape[lead - place] not in (1, sizes.get(place, 1)):
                raise WrongGraph(f"the density of '{site}' varies with a latent that it was found not to depend on")
        wanted = [lead - (1 + self.colours[name]) for name in scope]  # dimensions, below 0 where it does not vary
        shape = value.shape
        kept = [lead, *(d for d in wanted if d >= 0)]
        rest = [d for d in range(lead) if d not in kept]
        value = value.permute(*kept, *range(lead + 1, value.dim()), *rest).reshape(
            *(shape[d] for d in kept), *shape[lead + 1 :]
        )
        for k, d in enumerate(wanted):
            if d < 0:
                value = value.unsqueeze(1 + k)
        return value.expand(shape[lead], *(self.cards[n] for n in scope), *shape[lead + 1 :])

    def at(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latent → the values at the numbers of states [n] of each row, in the shape that the program gives them."""
        out = {}
        for name, state in states.items():
            value = self.support[name][state]
            right = -1 - self.axes.data_dim
            out[name] = value.reshape(len(state), *(1,) * right, *value.shape[1:])
        return out
