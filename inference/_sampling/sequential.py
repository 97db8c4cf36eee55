"""Particle filters: through a program's local latents site by site, or through the missing entries of one (`particles`).

The latents of a row are drawn one after the other, each from its conditional given those before. A site that is observed
multiplies the weights as soon as all latents that it depends on are drawn, which the program's graph tells; particles whose
weights have become uneven are resampled just before the next latent (Gordon, Salmond & Smith 1993). The mean weight is an
unbiased estimate of p(x) (Del Moral 2004, §7.4.1), and independent filters of a row give its standard error.

A program cannot be stopped and resumed. So it runs again from its start after each resampling, past latents at the values that
they have, and of those that no later density depends on, at those of one particle, which costs little.

After many resamplings the first latents of all particles descend from few. Backward simulation (Godsill, Doucet & West 2004)
draws each particle's past again: from the last resampling to the first, one of the particles that were there, with a
probability in proportion to its weight then and to the density of what came after. A Metropolis step proposes by the weights
and decides by the density (Bunch & Godsill 2013): a pass takes one run for each resampling. The weights stay as they are.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

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
def draw(program: Program, structure: Structure, x: Tensor, samples: int, filters: int, least_lines: int = 0) -> Draws:
    """`samples` weighted draws of the local latents of each row of x [n, …], by `filters` filters of equal size.

    The log-weights [samples, n] average, as weights, to an unbiased estimate of p(x); those of one filter follow one another.
    `least_lines`: pasts are drawn again where the draws of a row descend from fewer of the first particles.
    """
    if any(s.completes is not None for s in structure.local_latents):
        return particles.draw(program, structure, x, samples, filters)
    walk = _Filters(program, structure, x, filters, samples // filters)
    while not walk.forward():
        walk.resample()
    found = walk.draws()
    if found.origin is None or not walk.past or int(lines(found.origin).min()) >= least_lines:
        return found
    return walk.backwards(found)


def lines(origin: Tensor) -> Tensor:
    """How many of the first particles have descendants [n], from origin [filters, particles, n]."""
    return (origin.sort(1).values.diff(dim=1) != 0).sum((0, 1)) + len(origin)


class _Stop(Exception):
    """The particles have to be resampled before the program goes on."""


@dataclass(frozen=True)
class _Past:
    """The particles just before they were resampled, and what became of them."""

    values: dict[str, Tensor]  # of the latents drawn since the resampling before
    log_w: Tensor  # [F, P, n]
    path: Tensor  # log p of all that is done [F·P, n]
    origin: Tensor  # [F, P, n]
    ancestor: Tensor  # of the particles after it [F, P, n]
    chosen: Tensor  # the filters that were resampled [F, n]


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
        self.past = list[_Past]()

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
        chosen = uneven(self.log_w, EAGER) & ~lost
        before = self.log_w.masked_fill(lost.unsqueeze(1), 0.0)
        ancestor, self.log_w, self.log_Z = systematic(before, self.log_Z.masked_fill(lost, -torch.inf), chosen)
        known = {name for past in self.past for name in past.values}
        new = {name: value for name, value in self.values.items() if name not in known}
        self.past.append(_Past(new, before, self.path, self.origin, ancestor, chosen))
        self.path, self.origin = self._of(self.path, ancestor), self.origin.gather(1, ancestor)
        self.values = {name: self._picked(name, value, ancestor) for name, value in self.values.items()}

    def _of(self, each: Tensor, index: Tensor) -> Tensor:
        """Of something of each particle [F·P, n], that of the particles of an index [F, P, n]."""
        return each.unflatten(0, (self.F, self.P)).gather(1, index).flatten(0, 1)

    def _picked(self, name: str, value: Tensor, index: Tensor) -> Tensor:
        """A latent's values for the particles of an index [F, P, n]."""
        events, first = len(self.sites[name].event_shape), torch.arange(self.F)[:, None, None] * self.P
        chosen, rows = (first + index).flatten(0, 1), torch.arange(len(self.x))  # [F·P, n]
        flat = self.structure.axes.datum_first(value, events, 1)
        return flat[chosen, rows].movedim(1, value.dim() + self.structure.axes.row_dim(events))

    def backwards(self, found: Draws) -> Draws:
        """The particles with their pasts drawn again, from the last resampling to the first."""
        values, origin, index = dict(self.values), self.origin, self.past[-1].ancestor  # of each line's past
        whole = log_joint(self.program, self.structure, self.x, values)
        for k in reversed(range(len(self.past))):
            past = self.past[k]
            shares = past.log_w.softmax(1).nan_to_num(1.0).movedim(1, -1).flatten(0, 1)  # [F·n, P]
            other = torch.multinomial(shares, self.P, replacement=True).unflatten(0, (self.F, -1)).movedim(-1, 1)
            other = torch.where(past.chosen.unsqueeze(1), other, index)
            changed = {**values, **self._line(k, other)}
            density = log_joint(self.program, self.structure, self.x, changed)
            ratio = density - self._of(past.path, other) - (whole - self._of(past.path, index))
            accepted = torch.rand_like(ratio).log() < ratio  # never where it is no number
            whole = torch.where(accepted, density, whole)
            for name in changed:
                along = self.structure.axes.row_dim(len(self.sites[name].event_shape))
                values[name] = torch.where(_shaped(accepted, changed[name], along), changed[name], values[name])
            accepted = accepted.unflatten(0, (self.F, self.P))
            index = torch.where(accepted, other, index)
            origin = torch.where(accepted, past.origin.gather(1, other), origin)
            index = self.past[k - 1].ancestor.gather(1, index) if k else index
        return replace(found, values=values, origin=origin)

    def _line(self, k: int, index: Tensor) -> dict[str, Tensor]:
        """All latents of particles before the resampling k, by their index [F, P, n] there."""
        out = dict[str, Tensor]()
        for number in reversed(range(k + 1)):
            out |= {name: self._picked(name, value, index) for name, value in self.past[number].values.items()}
            index = self.past[number - 1].ancestor.gather(1, index) if number else index
        return out

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


def _shaped(each: Tensor, like: Tensor, dim: int) -> Tensor:
    """Of each particle and row [F·P, n], so that it broadcasts with a latent's values, whose rows lie along `dim`."""
    shape = [1] * like.dim()
    shape[0], shape[dim] = each.shape
    return each.reshape(shape)
