"""Particle filters: through a program's local latents site by site, or through the missing entries of one (`particles`).

The latents of a row are drawn one after the other, each from its conditional given those before. A site that is observed
multiplies the weights as soon as all latents that it depends on are drawn, which the program's graph tells; particles whose
weights have become uneven are resampled just before the next latent (Gordon, Salmond & Smith 1993). The mean weight is an
unbiased estimate of p(x) (Del Moral 2004, §7.4.1), and independent filters of a row give its standard error.

A program cannot be stopped and resumed. So it runs again from its start after each resampling, past latents at the values that
they have, and of those that no later density depends on, at those of one particle, which costs little.
"""

from __future__ import annotations

import contextlib

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference._sampling import particles
from inference._sampling.particles import FILTERS, share, systematic, uneven
from inference._sampling.weights import Draws, draws_plate, log_joint, unmasked
from zoo._program.program import Program
from zoo._program.structure import Structure
from zoo._program.trace import Node, altered, is_deterministic, is_local, is_plain, log_prob, per_datum
from zoo._reading.listing import some

__all__ = ["FILTERS", "draw", "refusal", "share"]

EAGER = (
    0.8  # of the particles: where some filter is resampled, so are those with fewer effective ones, for a run's worth
)


def refusal(program: Program, structure: Structure, x: Tensor) -> str | None:
    """Why no particle filter can walk through the program's data, or None."""
    latents = structure.local_latents
    if any(s.completes is not None for s in latents) or not latents:
        return particles.refusal(program, structure, x)
    place = {s.name: i for i, s in enumerate(latents)}
    seen = [s for s in structure.observed if s.scope == "local"]
    last = [max((place[p] for p in s.parents if p in place), default=-1) for s in seen]
    if structure.obstacle or min(last, default=len(place)) >= len(place) - 1:
        return (
            "proposal=sequential draws the latents of a chain that is observed step by step, or the missing entries of one "
            f"autoregressive site, and the latents of '{structure.program}' are {some(latents)}, of which every observed site "
            "needs the last: take another proposal"
        )
    return None


@torch.no_grad()
def draw(program: Program, structure: Structure, x: Tensor, samples: int, filters: int) -> Draws:
    """`samples` weighted draws of the local latents of each row of x [n, …], by `filters` filters of equal size.

    The log-weights [samples, n] average, as weights, to an unbiased estimate of p(x); those of one filter follow one another.
    """
    if any(s.completes is not None for s in structure.local_latents):
        return particles.draw(program, structure, x, samples, filters)
    walk = _Filters(program, structure, x, filters, samples // filters)
    while not walk.forward():
        walk.resample()
    return walk.draws()


class _Stop(Exception):
    """The particles have to be resampled before the program goes on."""


class _Filters(Messenger):
    """F filters of P particles for each of n rows; as a handler, what happens at the sites of one run of the program."""

    def __init__(self, program: Program, structure: Structure, x: Tensor, F: int, P: int) -> None:
        super().__init__()
        self.program, self.structure, self.x, self.F, self.P = program, structure, x, F, P
        self.sites = {s.name: s for s in structure.local_latents}
        self.needs = {s.name: set(s.parents) & self.sites.keys() for s in structure.sites if s.scope == "local"}
        self.values: dict[str, Tensor] = {}  # [F·P, plates with n, event]
        self.weighed = set[str]()
        self.log_w, self.log_Z = x.new_zeros(F, P, len(x)), x.new_zeros(F, len(x))
        self.path = x.new_zeros(F * P, len(x))  # log p(x, z) along each particle's own line
        self.origin = torch.arange(P).unsqueeze(-1).expand(F, P, len(x))

    def forward(self) -> bool:
        """Run the program to its end, or to where particles have to be resampled; whether all sites are done."""
        self.ahead = False  # whether latents are only passed by, on the way to what has to be weighed first
        with contextlib.suppress(_Stop), draws_plate(self.structure, self.F * self.P), self:
            self.program.trace(self.x)
            return self.needs.keys() <= self.values.keys() | self.weighed
        return False

    def _pyro_sample(self, msg: Node) -> None:
        name = msg["name"]
        if name in self.values:
            msg["value"], msg["is_observed"] = self._held(name), True
        elif name in self.sites and not self.ahead:
            self.ahead = any(self._due(o) for o in self.needs.keys() - self.sites.keys())
            if not self.ahead and bool(uneven(self.log_w).any()):
                raise _Stop

    def _held(self, name: str) -> Tensor:
        """A latent's values; of one particle where nothing that is left depends on it."""
        left = self.needs.keys() - self.values.keys() - self.weighed
        return self.values[name] if any(name in self.needs[other] for other in left) else self.values[name][:1]

    def _due(self, site: str) -> bool:
        return site not in self.weighed and self.needs[site] <= self.values.keys()

    def _pyro_post_sample(self, msg: Node) -> None:
        name = msg["name"]
        if name not in self.needs or is_deterministic(msg) or not is_local(msg):
            return
        if name in self.sites:
            if name not in self.values and not self.ahead:
                self._keep(msg)
        elif self._due(name):
            self.weighed.add(name)
            self._weigh(self._density(msg))

    def _keep(self, msg: Node) -> None:
        """A latent that was drawn. A scale or mask on it is of the posterior, and not of the draw."""
        name, own = msg["name"], altered(msg, unmasked(msg["fn"]))
        value = self.structure.axes.expand(msg["value"], self.sites[name], len(self.x), self.F * self.P)
        self.values[name], drawn = value, self._density(own)
        self.path += drawn
        if not is_plain(msg) or own["fn"] is not msg["fn"]:
            self._weigh(self._density(msg) - drawn)

    def _density(self, node: Node) -> Tensor:
        value = per_datum(node, log_prob(node), self.structure.data_dim, self.structure.max_plate_nesting)
        return value.expand(self.F * self.P, len(self.x))

    def _weigh(self, log_density: Tensor) -> None:
        self.path += log_density
        weighed = self.log_w + log_density.unflatten(0, (self.F, self.P))
        self.log_w = weighed.nan_to_num(-torch.inf, torch.inf, -torch.inf)

    def resample(self) -> None:
        """Resample the filters whose weights are uneven, and those that soon would be."""
        lost = self.log_w.amax(1).isneginf()  # all particles of a filter: it has an estimate of 0
        ancestor, self.log_w, self.log_Z = systematic(
            self.log_w.masked_fill(lost.unsqueeze(1), 0.0),
            self.log_Z.masked_fill(lost, -torch.inf),
            uneven(self.log_w, EAGER) & ~lost,
        )
        first = torch.arange(self.F)[:, None, None] * self.P
        chosen, rows = (first + ancestor).flatten(0, 1), torch.arange(len(self.x))  # [F·P, n]
        self.path, self.origin = self.path[chosen, rows], self.origin.gather(1, ancestor)
        for name, value in self.values.items():
            events = self.sites[name].event_shape
            flat = self.structure.axes.datum_first(value, len(events), 1)
            moved = flat[chosen, rows].movedim(1, value.dim() + self.structure.axes.row_dim(len(events)))
            self.values[name] = moved

    def draws(self) -> Draws:
        """All particles with their weights.

        Raises `ArithmeticError` where the density along a particle's line is not that of its values: then the graph of the
        program, by which values were passed over, is not what it was taken for.
        """
        whole = log_joint(self.program, self.structure, self.x, self.values)
        near = 1e-6 if self.x.dtype == torch.float64 else 1e-2
        if not torch.allclose(whole, self.path.to(whole.dtype), rtol=near, atol=near, equal_nan=True):
            raise ArithmeticError(
                f"a site of '{self.program.name}' depends on a latent that it was found not to depend on, so that its "
                "particles cannot be weighed one site after the other: take another proposal"
            )
        log_w = (self.log_w + self.log_Z.unsqueeze(1)).flatten(0, 1)
        return Draws(self.values, log_w, None, torch.zeros_like(log_w), self.origin)
