"""Gibbs sampling of the discrete local latents: long chains, for posterior means; it claims no evidence.

Geman & Geman 1984. Each chain goes through the entries of its row's latents in random order and draws each from its full
conditional p(z_j | all else), which is log p(x, z) at every value of the entry. Latents whose priors depend on each other, such
as the states of a chain, are drawn together where the graph allows it: summed out one by one, and drawn backwards. All chains
of all data go side by side, one pass of the program an entry. Posterior means are averages of these conditionals rather than of
what was drawn from them, which vary more (Gelfand & Smith 1990). Whether the chains agree is told by R-hat and the bulk
effective sample size of log p(x, z) along them (Vehtari et al. 2021). θ stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from inference._exact._sums.schedule import Schedule
from inference._exact._sums.summed_out import Given, SummedOut
from inference._mcmc import entries
from inference._mcmc.entries import Entries, Entry, Keep, cardinalities, settled
from inference._method.fit import Fit
from inference._method.progress import Step
from inference._method.task import Task, keeps_theta
from inference._numerics.psis import mixing
from inference._sampling import weights
from zoo._errors import Refusal
from zoo._options import Limits
from zoo._program.structure import Structure
from zoo._program.trace import nodes_of
from zoo._reading.elimination import best_order, neighbours, size
from zoo._reading.enumerated import WrongGraph

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


@dataclass(frozen=True)
class _Block:
    """Latents that are drawn together, given all others."""

    program: SummedOut
    plan: Schedule
    order: dict[str, Tensor]  # of the values of each from the smallest up


def blocks(structure: Structure, limit: int) -> list[list[str]]:
    """Latents whose priors depend on each other, each with what can be drawn together: all of them, or none."""
    plain = {s.name for s in structure.discrete_locals if not (s.completes or s.inner > 1 or s.event_shape or s.moving)}
    cards = {k: v for k, v in structure.cards.items() if k in plain}
    priors = {k: [n for n in v if n in plain] for k, v in structure.scopes.items()}
    near = neighbours(cards, {k: v for k, v in priors.items() if k in plain})
    out, left = [], list(cards)
    while left:
        block, todo = {left[0]}, [left[0]]
        while todo:
            todo += (new := near[todo.pop()] - block)
            block |= new
        left = [n for n in left if n not in block]
        mine = {k: v for k, v in cards.items() if k in block}
        scopes = {k: [n for n in v if n in block] for k, v in priors.items()}
        widest = max(size(mine, v) for v in scopes.values())
        if len(block) > 1 and max(widest, best_order(mine, scopes, limit).largest) <= limit:
            out.append(list(mine))
    return out


class _Chains(Entries):
    """Chains, and their full conditionals summed up on the way."""

    def __init__(self, task: Task, x: Tensor, C: int) -> None:
        super().__init__(task.program, task.structure, x, C)
        sizes = [self.layout.places[s.name] for s in self.sites]
        self.sums = [
            x.new_zeros(C, len(x), part.stop - part.start, K) for part, K in zip(sizes, self.counts, strict=True)
        ]  # each [C, n, entries, K]
        self.blocks = list(self._blocks(task))
        together = {name for block in self.blocks for name in block.program.cards}
        self.entries = [e for e in self.entries if self.sites[e.site].name not in together]

    def sweep(self, beta: float = 1.0, keep: Keep | None = None) -> None:
        """Draw every block and every other entry again, in random order; blocks only at β = 1."""
        moves = [*self.blocks, *self.entries]
        for number in torch.randperm(len(moves)).tolist():
            move = moves[number]
            if isinstance(move, _Block):
                self._draw_together(move, keep is not None)
            else:
                self._draw(move, beta, keep)

    def add(self, entry: Entry, values: Tensor, share: Tensor) -> None:
        """Add up the full conditional of an entry."""
        for v in range(entry.values):
            self.sums[entry.site][:, entry.rows, entry.at, v] += share.masked_fill(values != v, 0.0).sum(0)

    def _blocks(self, task: Task) -> Iterator[_Block]:
        """Latents that can be drawn together, tried at where the chains are."""
        for names in blocks(self.structure, task.limit):
            try:
                program = SummedOut(task.program, self.structure, self.x, names)
                block = _Block(program, program.with_marginals(), {n: self._sorted(program, n) for n in program.cards})
                found = self._given(block)
                again = weights.log_joint(self.program, self.structure, self.x, self.values(self._moved(block, found)))
            except (WrongGraph, RuntimeError, IndexError):
                continue
            if torch.allclose(found.log_p.reshape(again.shape), again, rtol=1e-6, atol=1e-4):
                yield block

    @staticmethod
    def _sorted(program: SummedOut, name: str) -> Tensor:
        return program.every.support[name].reshape(-1).argsort()

    def _given(self, block: _Block) -> Given:
        others = {k: v for k, v in self.values(self.z).items() if k not in block.program.cards}
        with weights.draws_plate(self.structure, len(self.z)):
            return block.program.given(self.x, others, block.plan)

    def _moved(self, block: _Block, found: Given) -> Tensor:
        """z with the latents of a block where they were drawn."""
        z = self.z.clone()
        for name, state in found.states.items():
            value = block.program.every.support[name].reshape(-1)[state].to(z.dtype)
            z[..., self.layout.places[name].start] = value.reshape(z.shape[:2])
        return z

    def _draw_together(self, block: _Block, keep: bool) -> None:
        found = self._given(block)
        self.z = self._moved(block, found)
        self.latent = settled(found.log_p.expand(self.latent.numel())).reshape(self.latent.shape)
        self.given = torch.zeros_like(self.latent)  # only their sum counts at β = 1
        for name, share in found.probabilities.items() if keep else ():
            site = next(i for i, s in enumerate(self.sites) if s.name == name)
            self.sums[site][:, :, 0] += share[:, block.order[name]].reshape(*self.latent.shape, -1)

    def state(self, chain: int) -> Tensor:
        """Where one chain of each row is [n, L], with fair coins in the slots left over."""
        return torch.where(self.meant, self.z[chain], torch.full_like(self.z[chain], 0.5).bernoulli())


@dataclass(frozen=True)
class _Walked:
    """What some rows' chains tell."""

    log_p: Tensor  # [C, sweeps, n]
    draws: dict[str, Tensor]  # site → [draws, n, inner plates, event]
    probabilities: dict[str, Tensor]  # site → [n, inner plates, event, values]
    together: list[list[str]]  # the latents that were drawn together
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
    together = [list(block.program.cards) for block in chains.blocks]
    return _Walked(log_p, drawn, found, together, torch.cat(errors))


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
        | ({"drawn_together": found[0].together} if found[0].together else {})
        | {
            "rhat": {"max": float(rhat.max()), f"frac_above_{MIXED}": float(bad.mean())},
            "standard_error": {"max": float(errors.max()), "rms": float(errors.square().mean().sqrt())},
        },
    )


def _joined(pieces: list[dict[str, Tensor]], dim: int) -> dict[str, np.ndarray]:
    return {k: torch.cat([p[k] for p in pieces], dim).cpu().numpy() for k in pieces[0]}
