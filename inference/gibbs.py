"""Gibbs sampling of the discrete local latents: long chains, for posterior means; it claims no evidence.

Geman & Geman 1984. Each chain goes through the entries of its row's latents in random order and draws each from its full
conditional p(z_j | all else), which is log p(x, z) at every value of the entry. All chains of all data go side by side, one
pass of the program an entry. Posterior means are averages of these conditionals rather than of what was drawn from them,
which vary more (Gelfand & Smith 1990). Whether the chains agree is told by R-hat and the bulk effective sample size of
log p(x, z) along them (Vehtari et al. 2021). θ stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from inference._mcmc import entries
from inference._mcmc.entries import Entries, Entry, cardinalities
from inference._method.fit import Fit
from inference._method.progress import Step
from inference._method.task import Task, keeps_theta
from inference._numerics.psis import mixing
from inference._sampling import weights
from zoo._errors import Refusal
from zoo._options import Limits
from zoo._program.structure import Structure
from zoo._program.trace import nodes_of

LEARNS = False  # θ stays as it is
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
    reason = entries.refusal(structure)
    return None if reason is None else f"gibbs {reason}"


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
        most = max(cardinalities(task.structure, nodes_of(task.program.trace(task.x[:2]))))
        parts = list(weights.chunks(task.x, chains * max(1, most - 1)))
        with task.progress("gibbs", len(parts) * (warmup + sweeps)) as step:
            for rows in parts:
                here = _Chains(task, task.x[rows], chains)
                found.append(_walk(here, warmup, sweeps, task.draws, step))
    return _result(task, found, {"sweeps": sweeps, "warmup": warmup, "chains": chains})


# ---------------------------------------------------------------------------------------------------------- chains


class _Chains(Entries):
    """Chains, and their full conditionals summed up on the way."""

    def __init__(self, task: Task, x: Tensor, C: int) -> None:
        super().__init__(task.program, task.structure, x, C)
        sizes = [self.layout.places[s.name] for s in self.sites]
        self.sums = [
            x.new_zeros(C, len(x), part.stop - part.start, K) for part, K in zip(sizes, self.counts, strict=True)
        ]  # each [C, n, entries, K]

    def add(self, entry: Entry, values: Tensor, share: Tensor) -> None:
        """Add up the full conditional of an entry."""
        for v in range(entry.values):
            self.sums[entry.site][:, entry.rows, entry.at, v] += share.masked_fill(values != v, 0.0).sum(0)

    def state(self, chain: int) -> Tensor:
        """Where one chain of each row is [n, L], with fair coins in the slots left over."""
        return torch.where(self.meant, self.z[chain], torch.full_like(self.z[chain], 0.5).bernoulli())


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
        chains.sweep(keep=chains.add if sweep >= 0 else None)
        if sweep >= 0:
            log_p[:, sweep] = chains.log_f(1.0)
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
