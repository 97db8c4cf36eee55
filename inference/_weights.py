"""Importance weights log p(x, z) − log q(z | x), many draws for each datum at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from zoo._errors import Refusal
from zoo._program import Program
from zoo._structure import Structure
from zoo._trace import DRAWS_PLATE, local_log_prob, per_datum

NUMBERS = 2**22  # numbers in the largest temporary; more is slower, for it leaves the cache
EFFORT = 1_000_000_000  # numbers in all, some twenty seconds of them


@dataclass
class Draws:
    """Draws of the local latents of n data, and their log-densities [samples, n] in nats."""

    values: dict[str, Tensor]  # site → [samples, n, …]
    log_p: Tensor  # log p(x, z); differentiable in the program's parameters
    log_guide: Tensor | None  # log q(z | x) of the guide; differentiable in its parameters
    log_proposal: Tensor  # log-density of what the draws came from, held fixed

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log proposal(z | x) [samples, n]."""
        return self.log_p - self.log_proposal


def draw(
    program: Program, structure: Structure, x: Tensor, guide: Any | None, samples: int, defensive: float = 0.0
) -> Draws:
    """`samples` draws of the local latents for each row of x [n, …], from `guide`, or from the prior when it is None.

    With `defensive`, that share of the draws comes from the prior, and the proposal is the mixture of the two (Hesterberg
    1995): a guide that is too sure of itself then cannot hide a part of the posterior. The draws themselves carry no
    gradient.
    """
    n, from_prior = len(x), samples if guide is None else round(defensive * samples)
    pieces, log_guide = [], None
    with torch.no_grad():
        if samples > from_prior:
            with draws_plate(structure, samples - from_prior):
                q = _guide_trace(guide, x, program)
            pieces.append(_latents(q, samples - from_prior, n, structure))
            if not from_prior:
                log_guide = _log_local(q, structure, samples, n)
        if from_prior:
            with draws_plate(structure, from_prior):
                pieces.append(_latents(program.trace(x), from_prior, n, structure))
    values = {name: torch.cat([p[name] for p in pieces]) if len(pieces) > 1 else pieces[0][name] for name in pieces[0]}
    trace = _joint(program, structure, x, values)
    log_p = _log_local(trace, structure, samples, n)
    log_prior = _log_prior(trace, values, structure, samples, n) if from_prior else None
    if guide is None:
        assert log_prior is not None
        return Draws(values, log_p, None, log_prior)
    if log_guide is None or torch.is_grad_enabled():
        with draws_plate(structure, samples):
            q = _guide_trace(pyro.poutine.condition(guide, data=values), x, program)
        log_guide = _log_local(q, structure, samples, n)
    proposal = log_guide.detach()
    if log_prior is not None:
        share = torch.tensor(from_prior / samples, dtype=x.dtype)
        proposal = torch.logaddexp(proposal + (-share).log1p(), log_prior + share.log())
    return Draws(values, log_p, log_guide, proposal)


def _guide_trace(guide: Any, x: Tensor, program: Program) -> Any:
    with program.settings():
        return pyro.poutine.trace(guide).get_trace(x)


def log_joint(program: Program, structure: Structure, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    """log p(x, z) [samples, n] of local latents z, site → [samples, n, …]; differentiable in the program's parameters."""
    return _log_local(_joint(program, structure, x, values), structure, len(next(iter(values.values()))), len(x))


def _joint(program: Program, structure: Structure, x: Tensor, values: dict[str, Tensor]) -> Any:
    """The program's trace at draws of the local latents."""
    with draws_plate(structure, len(next(iter(values.values())))):
        return program.trace(x, latents=values)


def _log_local(trace: Any, structure: Structure, samples: int, n: int) -> Tensor:
    return _shaped(local_log_prob(trace, structure.data_dim, n), samples, n)


def _log_prior(trace: Any, values: dict[str, Tensor], structure: Structure, samples: int, n: int) -> Tensor:
    total = torch.zeros(())
    for name, value in values.items():
        node = trace.nodes[name]
        log_prob = node["fn"].log_prob(value)
        total = total + per_datum(node, log_prob, structure.data_dim, structure.max_plate_nesting).detach()
    return _shaped(total, samples, n)


@torch.no_grad()
def check(program: Program, structure: Structure, x: Tensor) -> None:
    """Raise `Refusal` unless many draws of the latents can go through the program side by side, and stay apart."""
    rows = x[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once = program.trace(rows)
        globals: dict[str, Any] = {s.name: once.nodes[s.name]["value"] for s in structure.global_latents}
        with draws_plate(structure, 3):
            values = _latents(program.trace(rows, latents=globals), 3, len(rows), structure)

    def log_p(some: dict[str, Tensor], count: int) -> Tensor:
        with draws_plate(structure, count):
            trace = program.trace(rows, latents={**some, **globals})
        return _shaped(local_log_prob(trace, structure.data_dim, len(rows)), count, len(rows))

    try:
        alone = torch.cat([log_p({k: v[s : s + 1] for k, v in values.items()}, 1) for s in range(3)])
        apart = bool(torch.isclose(log_p(values, 3), alone, rtol=1e-4, atol=1e-4, equal_nan=True).all())
    except RuntimeError:
        apart = False
    if not apart:
        raise Refusal(
            f"'{program.name}' mixes up draws that go through it side by side: where it sums over a plate or drops a "
            "dimension left of `data`, it must keep the dimension (keepdim=True)"
        )


@torch.no_grad()
def guide_draws(program: Program, structure: Structure, x: Tensor, guide: Any, samples: int) -> dict[str, Tensor]:
    """Site → draws of the local latents from `guide` [samples, n, …]."""
    with draws_plate(structure, samples):
        return _latents(_guide_trace(guide, x, program), samples, len(x), structure)


def draws_plate(structure: Structure, samples: int) -> Any:
    """A plate around a program or guide: `samples` draws for each datum at once."""
    return pyro.plate(DRAWS_PLATE, samples, dim=-1 - structure.max_plate_nesting)


def _latents(trace: Any, samples: int, n: int, structure: Structure) -> dict[str, Tensor]:
    """The drawn local latents of a trace, each [samples, …, n, …] in full."""
    out = {}
    for site in structure.local_latents:
        plates = [1] * structure.max_plate_nesting
        for dim, size in [*site.inner_dims, (structure.data_dim, n)]:
            plates[dim] = size
        out[site.name] = trace.nodes[site.name]["value"].expand(samples, *plates, *site.event_shape).detach()
    return out


def _shaped(value: Tensor, samples: int, n: int) -> Tensor:
    return value.expand(torch.broadcast_shapes(value.shape, (samples, n))).reshape(samples, n)


def chunks(x: Tensor, samples: int) -> Iterator[slice]:
    """Slices of rows for which `samples` draws a row fit in memory."""
    size = max(1, NUMBERS // max(1, samples * x[0].numel()))
    yield from (slice(start, min(start + size, len(x))) for start in range(0, len(x), size))


def affordable(x: Tensor, most: int, least: int) -> int:
    """How many draws a datum are worth their time: `most`, unless that makes more numbers than `EFFORT`; at least `least`."""
    return max(least, min(most, EFFORT // max(1, x.numel())))


def log_mean(log_weights: Tensor, groups: int | None = None) -> tuple[Tensor, Tensor]:
    """log of the mean weight [n] from [S, n], and its standard error [n] by the delta method (nats).

    `groups`: how many groups of equal size, one after the other, are independent; when None, each weight is.
    """
    if groups is not None:
        log_weights = log_mean(log_weights.unflatten(0, (groups, -1)).movedim(1, 0))[0]
    S = len(log_weights)
    estimate = log_weights.logsumexp(0) - torch.tensor(float(S), dtype=log_weights.dtype).log()
    relative = (log_weights - estimate).exp()
    return estimate, (relative.var(0, unbiased=True) / S).sqrt() if S > 1 else torch.full_like(estimate, torch.inf)
