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

NUMBERS = 2**23  # numbers in the largest temporary


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
    pieces = []
    with torch.no_grad():
        if samples > from_prior:
            pieces.append(guide_draws(structure, x, guide, samples - from_prior))
        if from_prior:
            with _plate(structure, from_prior):
                pieces.append(_latents(program.trace(x), from_prior, n, structure))
    values = {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
    with _plate(structure, samples):
        trace: Any = program.trace(x, latents=values)
    log_p = _shaped(local_log_prob(trace, structure.data_dim, n), samples, n)
    log_prior = torch.zeros((), dtype=x.dtype)
    for node in trace.nodes.values():
        if node["type"] == "sample" and node["name"] in values:
            log_prob = node["fn"].log_prob(node["value"])
            log_prior = log_prior + per_datum(node, log_prob, structure.data_dim, structure.max_plate_nesting).detach()
    log_prior = _shaped(log_prior, samples, n)
    if guide is None:
        return Draws(values, log_p, None, log_prior)
    with _plate(structure, samples), pyro.settings.context(module_local_params=True):
        q = pyro.poutine.trace(pyro.poutine.condition(guide, data=values)).get_trace(x)
    log_guide = _shaped(local_log_prob(q, structure.data_dim, n), samples, n)
    proposal = log_guide.detach()
    if from_prior:
        share = torch.tensor(from_prior / samples, dtype=x.dtype)
        proposal = torch.logaddexp(proposal + (-share).log1p(), log_prior + share.log())
    return Draws(values, log_p, log_guide, proposal)


@torch.no_grad()
def check(program: Program, structure: Structure, x: Tensor) -> None:
    """Raise `Refusal` unless many draws of the latents can go through the program side by side, and stay apart."""
    rows = x[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with _plate(structure, 3):
            values = _latents(program.trace(rows), 3, len(rows), structure)

    def log_p(some: dict[str, Tensor], count: int) -> Tensor:
        with _plate(structure, count):
            trace = program.trace(rows, latents=some)
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
def guide_draws(structure: Structure, x: Tensor, guide: Any, samples: int) -> dict[str, Tensor]:
    """Site → draws of the local latents from `guide` [samples, n, …]."""
    with _plate(structure, samples), pyro.settings.context(module_local_params=True):
        return _latents(pyro.poutine.trace(guide).get_trace(x), samples, len(x), structure)


def _plate(structure: Structure, samples: int) -> Any:
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


def chunks(x: Tensor, samples: int) -> Iterator[Tensor]:
    """x in pieces for which `samples` draws a row fit in memory."""
    yield from x.split(max(1, NUMBERS // max(1, samples * x[0].numel())))


def log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight [n] from [S, n], and its standard error [n] by the delta method (nats)."""
    S = len(log_weights)
    estimate = log_weights.logsumexp(0) - torch.tensor(float(S), dtype=log_weights.dtype).log()
    relative = (log_weights - estimate).exp()
    return estimate, (relative.var(0, unbiased=True) / S).sqrt() if S > 1 else torch.full_like(estimate, torch.inf)
