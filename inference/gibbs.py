"""Gibbs sampling of the discrete local latents: long chains, for posterior means; it claims no evidence.

Geman & Geman 1984. Each chain goes through the entries of its row's latents in random order and draws each from its full
conditional p(z_j | all else), which is log p(x, z) at every value of the entry. All chains of all data go side by side, one
pass of the program an entry. Posterior means are averages of these conditionals rather than of what was drawn from them,
which vary more (Gelfand & Smith 1990). Whether the chains agree is told by R-hat and the bulk effective sample size of
log p(x, z) along them (Vehtari et al. 2021). θ stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from inference._method.fit import Fit
from inference._method.progress import Step
from inference._method.task import Task, keeps_theta
from inference._numerics.psis import mixing
from inference._sampling import weights
from zoo._errors import Refusal
from zoo._options import Limits
from zoo._program.latents import Layout
from zoo._program.structure import Site, Structure
from zoo._program.trace import Node, nodes_of

LEARNS = False  # θ stays as it is
FAMILIES = ("Bernoulli", "Categorical")
MIXED = 1.01  # R-hat above which chains do not agree


def refusal(structure: Structure) -> str | None:
    """Why Gibbs sampling cannot serve the program, or None."""
    if structure.outside:
        return f"gibbs looks at one row at a time, and '{structure.outside[0]}' is observed outside the plate 'data'"
    if structure.global_latents:
        names = ", ".join(f"'{s.name}'" for s in structure.global_latents)
        return f"gibbs draws the latents of each row separately, and the global latents {names} belong to all of them"
    if not structure.local_latents:
        return "gibbs needs a latent to draw, and the program has none"
    for site in structure.local_latents:
        if site.family not in FAMILIES:
            return f"gibbs draws Bernoulli and Categorical latents, and '{site.name}' is a {site.family}"
    return None


def fit(
    task: Task,
    *,
    sweeps: Annotated[int, Limits(least=4)] = 500,
    warmup: Annotated[int, Limits(least=0)] = 200,
    chains: Annotated[int, Limits(least=2)] = 4,
) -> Fit:
    """Posterior means and draws from `chains` chains per row of `sweeps` sweeps each, after `warmup` sweeps that are not kept.

    - `sweeps`: how many of each chain are kept; a sweep draws every latent once.
    - `warmup`: sweeps before these, which are not kept.
    - `chains`: how many for each row.

    Chains begin at draws from the prior. The posterior draws are states of all chains, spread evenly over the sweeps.

    Raises `Refusal` when asked to learn θ.
    """
    if task.learn and task.structure.learnable:
        raise Refusal(keeps_theta("gibbs", task.program.name))
    weights.check(task.program, task.structure, task.x)
    found = []
    with torch.no_grad(), pyro.validation_enabled(False):
        most = max(_cardinalities(task.structure, nodes_of(task.program.trace(task.x[:2]))))
        parts = list(weights.chunks(task.x, chains * max(1, most - 1)))
        with task.progress("gibbs", len(parts) * (warmup + sweeps)) as step:
            for rows in parts:
                here = _Chains(task, task.x[rows], chains)
                found.append(_walk(here, warmup, sweeps, task.draws, step))
    return _result(task, found, {"sweeps": sweeps, "warmup": warmup, "chains": chains})


def _cardinalities(structure: Structure, nodes: Mapping[str, Node]) -> list[int]:
    """How many values an entry of each local site can take."""
    out = []
    for site in structure.local_latents:
        fn = nodes[site.name]["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        out.append(len(fn.enumerate_support(expand=False)))
    return out


# ---------------------------------------------------------------------------------------------------------- chains


@dataclass(frozen=True)
class _Entry:
    """One number of a row's latents."""

    place: int  # among the L of them
    site: int
    at: int  # among its site's
    values: int  # that it can take: 0, 1, …
    rows: slice | Tensor  # in which it stands for something


class _Chains:
    """C chains for each of n data: where they are, log p(x, z) there, and the full conditionals summed up on the way."""

    def __init__(self, task: Task, x: Tensor, C: int) -> None:
        self.program, self.structure, self.x = task.program, task.structure, x
        self.sites = task.structure.local_latents
        nodes = nodes_of(task.program.trace(x))
        names = [s.name for s in self.sites]
        self.layout = Layout(nodes, names, task.structure.axes)
        start = weights.draw(task.program, task.structure, x, None, C)
        flat = [self._by_datum(start.values[s.name], s).reshape(C, len(x), -1).to(x.dtype) for s in self.sites]
        self.z = torch.cat(flat, -1)  # [C, n, L]
        self.log_p = _settled(start.log_p)  # [C, n]
        counts = _cardinalities(task.structure, nodes)
        self.meant = torch.cat([self._meant(s, nodes) for s in self.sites], -1)  # [n, L]
        self.sums = [x.new_zeros(*f.shape, K) for f, K in zip(flat, counts, strict=True)]  # each [C, n, entries, K]
        self.entries = []
        for i, f in enumerate(flat):
            first = self.layout.places[names[i]].start
            for at in range(f.shape[-1]):
                meant = self.meant[:, first + at]
                if counts[i] > 1 and bool(meant.any()):
                    rows = slice(None) if bool(meant.all()) else meant.nonzero()[:, 0]
                    self.entries.append(_Entry(first + at, i, at, counts[i], rows))

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

    def sweep(self, keep: bool) -> None:
        """Draw every entry again, in random order; `keep`: add up the full conditionals too."""
        for number in torch.randperm(len(self.entries)).tolist():
            self._draw(self.entries[number], keep)

    def _draw(self, entry: _Entry, keep: bool) -> None:
        K, rows = entry.values, entry.rows
        z = self.z[:, rows]  # [C, r, L]
        shifts = torch.arange(K, device=z.device)[:, None, None]
        values = (z[..., entry.place] + shifts) % K  # [K, C, r], the present one first
        others = z.repeat(K - 1, 1, 1)
        others[..., entry.place] = values[1:].flatten(0, 1)
        new = weights.log_joint(self.program, self.structure, self.x[rows], self.values(others))
        log_p = torch.cat([self.log_p[:, rows], _settled(new)]).reshape(values.shape)
        nowhere = log_p.amax(0).isneginf()  # no value is possible, as may be where a chain begins: then any will do
        share = log_p.masked_fill(nowhere, 0.0).softmax(0)
        chosen = (share / torch.empty_like(share).exponential_()).argmax(0, keepdim=True)
        self.z[:, rows, entry.place] = values.gather(0, chosen)[0]
        self.log_p[:, rows] = log_p.gather(0, chosen)[0]
        if keep:
            for v in range(K):
                self.sums[entry.site][:, rows, entry.at, v] += share.masked_fill(values != v, 0.0).sum(0)

    def state(self, chain: int) -> Tensor:
        """Where one chain of each row is [n, L], with fair coins in the slots left over."""
        return torch.where(self.meant, self.z[chain], torch.full_like(self.z[chain], 0.5).bernoulli())


def _settled(log_p: Tensor) -> Tensor:
    """What is not a number is impossible."""
    return log_p.masked_fill(log_p.isnan(), -torch.inf)


@dataclass(frozen=True)
class _Walked:
    """What some rows' chains tell."""

    log_p: Tensor  # [C, sweeps, n]
    draws: dict[str, Tensor]  # site → [draws, n, inner plates, event]
    probabilities: dict[str, Tensor]  # site → [n, inner plates, event, values]
    errors: Tensor  # the standard error of each of them that stands for something, by how far the chains differ


def _walk(chains: _Chains, warmup: int, sweeps: int, draws: int, step: Step) -> _Walked:
    C, n, L = chains.z.shape
    log_p, kept = chains.z.new_empty(C, sweeps, n), chains.z.new_empty(draws, n, L)
    due = [math.ceil((d + 1) * sweeps / draws) - 1 for d in range(draws)]  # the sweep that each draw is of
    d = 0
    for sweep in range(-warmup, sweeps):
        chains.sweep(keep=sweep >= 0)
        if sweep >= 0:
            log_p[:, sweep] = chains.log_p
        while d < draws and due[d] == sweep:
            kept[d] = chains.state(d % C)
            d += 1
        step()
    values, found, errors = chains.values(kept), {}, []
    for site, sums in zip(chains.sites, chains.sums, strict=True):
        total = sums.sum(-1, keepdim=True)
        share = torch.where(total > 0, sums / total, 1.0 / sums.shape[-1])  # of what stands for nothing: any
        found[site.name] = share.mean(0).reshape(n, *(size for _, size in site.inner_dims), *site.event_shape, -1)
        errors.append((share.std(0) / C**0.5)[chains.meant[:, chains.layout.places[site.name]]].flatten())
    drawn = {s.name: chains.structure.axes.by_datum(values[s.name], s) for s in chains.sites}
    return _Walked(log_p, drawn, found, torch.cat(errors))


# ---------------------------------------------------------------------------------------------------------- result


def _result(task: Task, found: list[_Walked], notes: dict[str, object]) -> Fit:
    rhat, ess = mixing(torch.cat([f.log_p for f in found], 2).cpu().numpy())
    probabilities = _joined([f.probabilities for f in found], 0)
    errors = torch.cat([f.errors for f in found])
    binary = [s.name for s in task.structure.local_latents if s.family == "Bernoulli"]
    means = {name: probabilities[name][..., 1] for name in binary}
    bad, stuck = ~(rhat <= MIXED), int(np.isinf(rhat).sum())
    warnings = []
    if bad.any():
        remedy = "raise sweeps."
        if stuck:
            remedy += f" The chains of {stuck} do not move, each in its own state: more sweeps may not make them agree."
        warnings.append(
            f"R-hat is above {MIXED} for {bad.sum()} of {len(rhat)} rows: their chains do not agree, and their means "
            f"cannot be trusted; {remedy}"
        )
    return Fit(
        parameters={n: v.detach().cpu().numpy() for n, v in task.program.values().items()},
        claimed=None,
        draws=_joined([f.draws for f in found], 1),
        means=means,
        deviations={name: np.sqrt((mean * (1 - mean)).clip(min=0)) for name, mean in means.items()},
        probabilities=probabilities,
        ess=ess,
        warnings=warnings,
        notes=notes
        | {
            "rhat": {"max": float(rhat.max()), f"frac_above_{MIXED}": float(bad.mean())},
            "standard_error": {"max": float(errors.max()), "rms": float(errors.square().mean().sqrt())},
        },
    )


def _joined(pieces: list[dict[str, Tensor]], dim: int) -> dict[str, np.ndarray]:
    return {k: torch.cat([p[k] for p in pieces], dim).cpu().numpy() for k in pieces[0]}
