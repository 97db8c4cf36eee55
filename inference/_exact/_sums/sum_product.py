"""Sums, draws and the best value over discrete latents, by the steps of a schedule, for all rows at once.

What comes in are the factors' tables of log-densities [n or 1, values of their latents…], in nats. log p(x) is the logarithm of
the sum over all latents of the product of all factors; its gradient with respect to a table holds the posterior probability of
each of the table's entries (Eisner 2016), so nothing here goes backwards through a chain by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from inference._exact._sums import chain
from inference._exact._sums.schedule import Schedule, Step

LOST = 1e-280  # a sum below may be of terms that are too small to be told from 0


class _LogSumExp(Function):
    """log Σ exp over the last dimension, whose gradient is 0, and not NaN, where all terms are −∞."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        top = x.amax(-1, keepdim=True)
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        out = (x - top).exp_().sum(-1).log_().add_(top.squeeze(-1))
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        x, out = ctx.saved_tensors  # type: ignore[attr-defined]
        known = torch.where(out.isfinite(), out, torch.zeros_like(out))
        found: Tensor = gradients[0].unsqueeze(-1) * (x - known.unsqueeze(-1)).exp()
        return found


def log_sum_exp(x: Tensor) -> Tensor:
    """log Σ exp over the last dimension."""
    out: Tensor = _LogSumExp.apply(x)  # type: ignore[no-untyped-call]
    return out


def highest(x: Tensor) -> Tensor:
    """The largest over the last dimension."""
    return x.amax(-1)


@dataclass(frozen=True)
class Summed:
    """log p(x) [n or 1], and all tables on the way."""

    log_evidence: Tensor
    tables: list[Tensor]


def summed(
    plan: Schedule,
    factors: Mapping[str, Tensor],
    over: Callable[[Tensor], Tensor] = log_sum_exp,
    along_chains: bool = False,
) -> Summed:
    """Sum out all latents; `over` does so along the last dimension of a table.

    `factors`: site → table, its dimensions as `Schedule.dims` says. `along_chains`: quickly, without the messages inside
    a chain, and to be differentiated once at most.
    """
    tables: list[Tensor] = [factors[f] for f in plan.factors]
    tables += [tables[0]] * len(plan.order)
    first, matrices = len(plan.factors), dict[object, tuple[Tensor, Tensor]]()
    done = 0
    for i, step in enumerate(plan.steps):
        if i < done or (along_chains and (done := _run(plan, i, tables)) > i):
            continue
        found = _product(step, tables, matrices) if step.is_product and over is log_sum_exp else None
        found = over(joined(step, tables)) if found is None else found
        for v, message in zip(step.latents, found.unbind(0), strict=True):
            tables[first + v] = message
    total = torch.zeros((), dtype=tables[0].dtype)
    for number in plan.rest:
        total = total + tables[number]
    return Summed(total, tables)


def _product(step: Step, tables: Sequence[Tensor], matrices: dict[object, tuple[Tensor, Tensor]]) -> Tensor | None:
    """The message of a step in which a matrix that all rows share meets what each row has for the latent alone.

    log Σ_v exp(S[a, v] + m[i, v]) is a product of matrices, of exp(m) and exp(S). None where a sum is so small that some of its
    terms may have been lost: then the logarithms have to stay. `matrices`: exp(S) by what it is made of, for later steps.
    """
    shared, mine = list[tuple[tuple[int, ...], tuple[int, ...]]](), list[tuple[int, ...]]()
    for numbers, places, by_row in zip(step.inputs, step.places, step.by_row, strict=True):
        if by_row:
            mine.append(numbers)
        else:
            shared.append((numbers, places))
    key = step.sizes, tuple((places, *(id(tables[t]) for t in numbers)) for numbers, places in shared)
    if key not in matrices:
        of_all = replace(step, inputs=tuple(n for n, _ in shared), places=tuple(p for _, p in shared))
        total = joined(of_all, tables).flatten(1, -2)
        top = total.detach().amax((-2, -1), keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        matrices[key] = (total - top).exp().mT, top
    matrix, scale = matrices[key]
    own = _sum([_stacked(numbers, tables) for numbers in mine])
    top = own.detach().amax(-1, keepdim=True)
    found = (own - top).exp() @ matrix
    low, high = torch.aminmax(found.detach())
    if not (float(low) > LOST and float(high) < 1 / LOST):
        return None
    return (found.log() + (top + scale)).reshape(*found.shape[:2], *step.sizes[:-1])


def _run(plan: Schedule, begin: int, tables: list[Tensor]) -> int:
    """Carry out the stretch of a chain that begins at a step, if one does; returns the step that comes next."""
    end, first = plan.runs.get(begin, begin), len(plan.factors)
    steps = plan.steps[begin:end]
    own, shared = list[Tensor](), dict[tuple[int, ...], Tensor]()
    keys = list[tuple[int, ...]]()
    before = -1
    for step in steps:
        slots = list(zip(step.inputs, step.places, step.by_row, strict=True))
        mine = [tables[t] for (t,), _, by_row in slots if by_row and t != before]
        own.append(_sum(mine) if mine else torch.zeros_like(own[0]))
        fixed = [(numbers, places) for numbers, places, by_row in slots if not by_row]
        keys.append(tuple(id(tables[t]) for (t,), _ in fixed))
        if keys[-1] not in shared:
            of_all = replace(step, inputs=tuple(n for n, _ in fixed), places=tuple(p for _, p in fixed))
            shared[keys[-1]] = joined(of_all, tables).reshape(step.sizes)
        before = first + step.latents[0]
    if not steps:
        return begin
    matrices = next(iter(shared.values())).unsqueeze(0) if len(shared) == 1 else torch.stack([shared[k] for k in keys])
    try:
        tables[before] = chain.message(torch.stack(own), matrices)
    except chain.Lost:
        return begin
    return end


def _stacked(numbers: Sequence[int], tables: Sequence[Tensor]) -> Tensor:
    """The tables of those numbers as one [G, …]; one for all where they are the same."""
    if len(numbers) == 1 or all(tables[t] is tables[numbers[0]] for t in numbers):
        return tables[numbers[0]].unsqueeze(0)
    return torch.stack([tables[t] for t in numbers])


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def joined(step: Step, tables: Sequence[Tensor]) -> Tensor:
    """The sum of a step's tables [G, n or 1, values of its latents]."""
    parts = []
    for numbers, places in zip(step.inputs, step.places, strict=True):
        one = _stacked(numbers, tables)
        shape = [size if k in places else 1 for k, size in enumerate(step.sizes)]
        parts.append(one.reshape(*one.shape[:2], *shape))
    return _sum(parts).expand(len(step.latents), -1, *step.sizes)


def drawn(plan: Schedule, found: Summed, draws: int, n: int) -> tuple[Tensor, Tensor]:
    """Joint posterior draws: the number of each latent's value [latents, draws, n], and their log-probability [draws, n].

    The latents are drawn in the opposite order, each given those after it. With `draws` = 0, the best joint value instead
    ([latents, 1, n]), where `found` is of `highest`.
    """
    best = draws == 0
    draws = max(1, draws)
    states = torch.zeros(len(plan.order), draws, n, dtype=torch.long)
    density = torch.zeros(draws, n, dtype=found.log_evidence.dtype)
    for step in reversed(plan.steps):
        joint = joined(step, found.tables).expand(-1, n, *step.sizes)
        logits = _given(step, joint, states)
        if best:
            chosen = logits.argmax(-1)
        else:
            noise = torch.rand(logits.shape, dtype=logits.dtype).clamp_(min=1e-300)
            chosen = (logits - noise.log_().neg_().log_()).argmax(-1)
        density += _normalised(logits).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).sum(0)
        states[list(step.latents)] = chosen
    return states, density


def log_density(plan: Schedule, found: Summed, states: Tensor) -> Tensor:
    """log p(z | x) [draws, n] of joint values, given as the numbers of their values [latents, draws, n]."""
    density = torch.zeros(states.shape[1:], dtype=found.log_evidence.dtype)
    for step in plan.steps:
        joint = joined(step, found.tables).expand(-1, states.shape[2], *step.sizes)
        given = _normalised(_given(step, joint, states))
        density += given.gather(-1, states[list(step.latents)].unsqueeze(-1)).squeeze(-1).sum(0)
    return density


def _given(step: Step, joint: Tensor, states: Tensor) -> Tensor:
    """The entries of joint [G, n, values…, K] at the states of the latents that are left: [G, draws, n, K]."""
    G, n, K = *joint.shape[:2], step.sizes[-1]
    draws = states.shape[1]
    flat = joint.reshape(G, n, -1, K)
    index = torch.zeros(G, draws, n, dtype=torch.long)
    for k, size in enumerate(step.sizes[:-1]):
        index = index * size + states[[s[k] for s in step.separators]]
    rows = index.permute(0, 2, 1).unsqueeze(-1).expand(G, n, draws, K)
    return flat.gather(2, rows).permute(0, 2, 1, 3)


def _normalised(logits: Tensor) -> Tensor:
    """Log-probabilities over the last dimension; −∞ where all are, as given a state that cannot be."""
    return logits.log_softmax(-1).masked_fill(logits.isneginf(), -torch.inf)
