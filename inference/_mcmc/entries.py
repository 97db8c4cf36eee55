"""Chains over discrete latents, entry by entry: each is drawn from its full conditional, the data tempered where asked.

At temperature β an entry's conditional is that of p(z) p(x | z)^β: from what the program draws at β = 0 to the posterior at 1.
All chains of all rows go side by side, on a recorded list of tensor operations where the program has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._mcmc.recorded import recorded
from inference._sampling import weights
from zoo._program.latents import Layout
from zoo._program.program import Program
from zoo._program.structure import Site, Structure
from zoo._program.trace import Node, nodes_of

FAMILIES = ("Bernoulli", "Categorical")


def refusal(structure: Structure) -> str | None:
    """Why the local latents cannot be drawn entry by entry, or None; half a sentence."""
    for site in structure.local_latents:
        if site.family not in FAMILIES:
            return f"draws Bernoulli and Categorical latents, and '{site.name}' is a {site.family}"
    return None


def cardinalities(structure: Structure, nodes: Mapping[str, Node]) -> list[int]:
    """How many values an entry of each local site can take."""
    out = []
    for site in structure.local_latents:
        fn = nodes[site.name]["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        out.append(len(fn.enumerate_support(expand=False)))
    return out


@dataclass(frozen=True)
class Entry:
    """One number of a row's latents."""

    place: int  # among the L of them
    site: int
    at: int  # among its site's
    values: int  # that it can take: 0, 1, …
    rows: slice | Tensor  # in which it stands for something


Keep = Callable[[Entry, Tensor, Tensor], None]  # entry, its values [K, C, r] and their probabilities


class Entries:
    """C chains for each of n rows: where they are, log p(z) and log p(x | z) there."""

    def __init__(self, program: Program, structure: Structure, x: Tensor, C: int) -> None:
        self.program, self.structure, self.x = program, structure, x
        self.sites = structure.local_latents
        nodes = nodes_of(program.trace(x))
        names = [s.name for s in self.sites]
        self.layout = Layout(nodes, names, structure.axes)
        self.begin(C)
        counts = cardinalities(structure, nodes)
        self.counts = counts
        self.meant = torch.cat([self._meant(s, nodes) for s in self.sites], -1)  # [n, L]
        self.entries = []
        for i, name in enumerate(names):
            part = self.layout.places[name]
            for at in range(part.stop - part.start):
                meant = self.meant[:, part.start + at]
                if counts[i] > 1 and bool(meant.any()):
                    rows = slice(None) if bool(meant.all()) else meant.nonzero()[:, 0]
                    self.entries.append(Entry(part.start + at, i, at, counts[i], rows))
        self._step = recorded(self._terms_of_all, self.z) if bool(self.meant.all()) else None

    def begin(self, C: int) -> None:
        """Set C chains at draws from the prior."""
        start = weights.draw(self.program, self.structure, self.x, None, C)
        self.z = self._flat(start.values)
        self.latent = settled(start.log_proposal)  # log p(z) [C, n]
        self.given = settled(start.log_p - start.log_proposal)  # log p(x | z) [C, n]

    def place(self, values: Mapping[str, Tensor]) -> None:
        """Set the chains at these values, site → [C, plates with n among them, event]."""
        self.z = self._flat(values)
        self.latent, self.given = self._terms(slice(None), self.z)

    def _flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values as z [C, n, L]."""
        parts = [self._by_datum(values[s.name], s) for s in self.sites]
        return torch.cat([p.reshape(*p.shape[:2], -1).to(self.x.dtype) for p in parts], -1)

    def _by_datum(self, value: Tensor, site: Site) -> Tensor:
        return self.structure.axes.by_datum(value, site)

    def _meant(self, site: Site, nodes: Mapping[str, Node]) -> Tensor:
        """Which entries of a site stand for something in each row [n, entries]: slots left over stand for nothing."""
        if site.completes is None:
            meant = torch.ones((), dtype=torch.bool, device=self.x.device)
        else:
            meant = nodes[site.completes]["fn"].real
        meant = self.structure.axes.expand(meant, site, len(self.x), 1)
        return self._by_datum(meant, site)[0].reshape(len(self.x), -1)

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """z [T, r, L] as the program takes it: site → [T, plates with r among them, event]."""
        whole = {s.name for s in self.sites if s.family == "Categorical"}  # what indexes
        return {name: v.long() if name in whole else v for name, v in self.layout.unflatten(z).items()}

    def log_f(self, beta: float) -> Tensor:
        """log p(z) + β log p(x | z) [C, n]."""
        return tempered(self.latent, self.given, beta)

    def sweep(self, beta: float = 1.0, keep: Keep | None = None) -> None:
        """Draw every entry again, in random order; `keep` is told of the full conditionals."""
        for number in torch.randperm(len(self.entries)).tolist():
            self._draw(self.entries[number], beta, keep)

    def _draw(self, entry: Entry, beta: float, keep: Keep | None) -> None:
        K, rows = entry.values, entry.rows
        z = self.z[:, rows]  # [C, r, L]
        shifts = torch.arange(K, device=z.device)[:, None, None]
        values = (z[..., entry.place] + shifts) % K  # [K, C, r], the present one first
        others = z.repeat(K - 1, 1, 1)
        others[..., entry.place] = values[1:].flatten(0, 1)
        new = self._terms(rows, others)
        terms = [
            torch.cat([old[:, rows], some]).reshape(values.shape)
            for old, some in zip((self.latent, self.given), new, strict=True)
        ]
        log_f = tempered(terms[0], terms[1], beta)
        nowhere = log_f.amax(0).isneginf()  # no value is possible, as may be where a chain begins: then any will do
        share = log_f.masked_fill(nowhere, 0.0).softmax(0)
        chosen = (share / torch.empty_like(share).exponential_()).argmax(0, keepdim=True)
        self.z[:, rows, entry.place] = values.gather(0, chosen)[0]
        for old, some in zip((self.latent, self.given), terms, strict=True):
            old[:, rows] = some.gather(0, chosen)[0]
        if keep is not None:
            keep(entry, values, share)

    def _terms(self, rows: slice | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x | z), each [T, r], of z [T, r, L]."""
        if self._step is not None and isinstance(rows, slice):
            found = [self._step(some) for some in z.split(len(self.z))]
        else:
            found = [weights.log_terms(self.program, self.structure, self.x[rows], self.values(z))]
        latent, given = (torch.cat(parts) for parts in zip(*found, strict=True))
        return settled(latent), settled(given)

    def _terms_of_all(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return weights.log_terms(self.program, self.structure, self.x, self.values(z))


def tempered(latent: Tensor, given: Tensor, beta: float) -> Tensor:
    """log p(z) + β log p(x | z), at β = 0 whatever the data are."""
    return latent + beta * given if beta > 0 else latent


def settled(log_p: Tensor) -> Tensor:
    """What is not a number is impossible."""
    return log_p.masked_fill(log_p.isnan(), -torch.inf)
