"""Importance weights log p(x, z) − log q(z | x), many draws for each row at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._numerics.slices import fitting, slices
from zoo._errors import Refusal
from zoo._program.program import Program
from zoo._program.structure import Site, Structure
from zoo._program.trace import (
    DRAWS_PLATE,
    Node,
    altered,
    is_local,
    local_log_prob,
    log_prob,
    node_of,
    per_datum,
    sample_nodes,
)

Guide = Callable[..., object]  # a Pyro program that draws the latents of x

NUMBERS = 2**22  # numbers in the largest temporary; more is slower, for it leaves the cache
EFFORT = 1_000_000_000  # numbers in all, some twenty seconds of them
ALL = 0.99  # of the weight: what counts as every weighted draw


@dataclass
class Draws:
    """Draws of the local latents of n data, and their log-densities [samples, n] in nats."""

    values: dict[str, Tensor]  # site → [samples, n, …]
    log_p: Tensor  # log p(x, z); differentiable in the program's parameters
    log_guide: Tensor | None  # log q(z | x) of the guide; differentiable in its parameters
    log_proposal: Tensor  # log-density of what the draws came from, held fixed
    origin: Tensor | None = None  # of particles [filters, particles, n]: which of the first ones each descends from

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) − log proposal(z | x) [samples, n]."""
        return self.log_p - self.log_proposal


def draw(
    program: Program, structure: Structure, x: Tensor, guide: Guide | None, samples: int, defensive: float = 0.0
) -> Draws:
    """`samples` draws of the local latents for each row of x [n, …], from `guide`, or from the prior when it is None.

    With `defensive`, that share of the draws comes from the prior, and the proposal is the mixture of the two (Hesterberg
    1995): a guide that is too sure of itself then cannot hide a part of the posterior. The draws themselves carry no
    gradient.

    The weights' numerator is the program's density with its `poutine.scale` and `mask`. The proposal's density is that of
    what the draws came from, without either: Pyro draws from a site's distribution, whatever its scale.
    """
    guides = [] if guide is None else [guide]
    return draw_mixture(program, structure, x, guides, samples, defensive if guides else 1.0)


def draw_mixture(
    program: Program, structure: Structure, x: Tensor, guides: Sequence[Guide], samples: int, defensive: float
) -> Draws:
    """As `draw`, from a mixture of several guides in equal shares, and the prior by the share `defensive`.

    Every component draws its share, and each draw is weighed by the density of the whole mixture (Veach & Guibas 1995): one
    component that misses a part of the posterior is made good by another that does not.
    """
    n, from_prior = len(x), round(defensive * samples)
    counts = [(samples - from_prior + k) // len(guides) for k in range(len(guides))]
    pieces, log_guides = [], []
    with torch.no_grad():
        for guide, count in zip(guides, counts, strict=True):
            if count:
                with draws_plate(structure, count):
                    q = _guide_trace(guide, x, program)
                pieces.append(_latents(q, count, n, structure))
                if count == samples:
                    log_guides.append(_log_drawn(q, structure, samples, n))
        if from_prior:
            with draws_plate(structure, from_prior):
                pieces.append(_latents(program.trace(x), from_prior, n, structure))
    values = {name: torch.cat([p[name] for p in pieces]) if len(pieces) > 1 else pieces[0][name] for name in pieces[0]}
    trace = _joint(program, structure, x, values, apart=from_prior > 0)
    log_p = _log_local(trace, structure, samples, n)
    log_prior = _log_prior(trace, values, structure, samples, n) if from_prior else None
    if not guides:
        assert log_prior is not None
        return Draws(values, log_p, None, log_prior)
    if not log_guides or torch.is_grad_enabled():
        log_guides = []
        for guide in guides:
            with draws_plate(structure, samples):
                q = _guide_trace(pyro.poutine.condition(guide, data=values), x, program)
            log_guides.append(_log_drawn(q, structure, samples, n))
    shares = [(g.detach(), count) for g, count in zip(log_guides, counts, strict=True)]
    if log_prior is not None:
        shares.append((log_prior, from_prior))
    return Draws(values, log_p, log_guides[0], _mixed(shares, samples, x.dtype))


def _mixed(shares: list[tuple[Tensor, int]], samples: int, dtype: torch.dtype) -> Tensor:
    """log Σ_k (count_k / samples) q_k of the components' log-densities [samples, n]."""
    known = [d if c == samples else d + torch.tensor(c / samples, dtype=dtype).log() for d, c in shares if c]
    return known[0] if len(known) == 1 else torch.stack(known).logsumexp(0)


def _guide_trace(guide: Guide, x: Tensor, program: Program) -> Trace:
    with program.settings():
        return pyro.poutine.trace(guide).get_trace(x)


def log_joint(program: Program, structure: Structure, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    """log p(x, z) [samples, n] of local latents z, site → [samples, n, …]; differentiable in the program's parameters."""
    return _log_local(_joint(program, structure, x, values), structure, len(next(iter(values.values()))), len(x))


def log_terms(program: Program, structure: Structure, x: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p(z) as it is drawn, and the rest of log p(x, z), each [samples, n], of local latents z as in `log_joint`."""
    samples, n = len(next(iter(values.values()))), len(x)
    trace = _joint(program, structure, x, values)
    latent = _log_prior(trace, values, structure, samples, n)
    return latent, _log_local(trace, structure, samples, n) - latent


def _joint(program: Program, structure: Structure, x: Tensor, values: dict[str, Tensor], apart: bool = False) -> Trace:
    """The program's trace at draws of the local latents."""
    with draws_plate(structure, len(next(iter(values.values())))):
        return program.joint_trace(x, latents=values, apart=apart)


def _log_local(trace: Trace, structure: Structure, samples: int, n: int) -> Tensor:
    return _shaped(local_log_prob(trace, structure.data_dim, n), samples, n)


def _log_prior(trace: Trace, values: dict[str, Tensor], structure: Structure, samples: int, n: int) -> Tensor:
    """What the program's own latents were drawn from: Σ log-density [samples, n], without its scales and masks."""
    total = torch.zeros(())
    for name in values:
        total = total + drawn_log_prob(node_of(trace, name), structure).detach()
    return _shaped(total, samples, n)


def _log_drawn(trace: Trace, structure: Structure, samples: int, n: int) -> Tensor:
    """What a guide's local sites were drawn from [samples, n], without its scales and masks."""
    total = torch.zeros(())
    for node in sample_nodes(trace):
        if is_local(node):
            total = total + drawn_log_prob(node, structure)
    return _shaped(total, samples, n)


def drawn_log_prob(node: Node, structure: Structure) -> Tensor:
    """The log-density [..., n] of the distribution that a site is drawn from, at its value: no scale and no mask enters."""
    plain = altered(node, unmasked(node["fn"]))
    return per_datum(plain, log_prob(plain), structure.data_dim, structure.max_plate_nesting)


def unmasked(fn: dist.TorchDistribution) -> dist.TorchDistribution:
    """A distribution without the masks inside it."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if type(fn) is dist.Independent:
        base = unmasked(fn.base_dist)
        return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
    return fn


@torch.no_grad()
def check(program: Program, structure: Structure, x: Tensor) -> None:
    """Raise `Refusal` unless many draws of the latents can go through the program side by side, and stay apart."""
    rows = x[:2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once = program.trace(rows)
        globals = {s.name: node_of(once, s.name)["value"] for s in structure.global_latents}
        with draws_plate(structure, 3):
            values = _latents(program.trace(rows, latents=globals), 3, len(rows), structure)

    def log_p(some: dict[str, Tensor], count: int) -> Tensor:
        with draws_plate(structure, count):
            trace = program.joint_trace(rows, latents={**some, **globals})
        return _shaped(local_log_prob(trace, structure.data_dim, len(rows)), count, len(rows))

    try:
        alone = torch.cat([log_p({k: v[s : s + 1] for k, v in values.items()}, 1) for s in range(3)])
        apart = bool(torch.isclose(log_p(values, 3), alone, rtol=1e-4, atol=1e-4, equal_nan=True).all())
    except RuntimeError:
        apart = False
    if not apart:
        raise Refusal(
            f"'{program.name}' mixes up draws that it is given side by side: where it sums over a plate or drops a "
            "dimension left of `data`, it must keep the dimension (keepdim=True)"
        )


@torch.no_grad()
def guide_draws(program: Program, structure: Structure, x: Tensor, guide: Guide, samples: int) -> dict[str, Tensor]:
    """Site → draws of the local latents from `guide` [samples, n, …]."""
    with draws_plate(structure, samples):
        return _latents(_guide_trace(guide, x, program), samples, len(x), structure)


def draws_plate(structure: Structure, samples: int) -> pyro.plate:
    """A plate around a program or guide: `samples` draws for each row at once."""
    return pyro.plate(DRAWS_PLATE, samples, dim=-1 - structure.max_plate_nesting)


def _latents(trace: Trace, samples: int, n: int, structure: Structure) -> dict[str, Tensor]:
    """The drawn local latents of a trace, each [samples, …, n, …] in full."""
    out = {}
    for site in structure.local_latents:
        out[site.name] = structure.axes.expand(node_of(trace, site.name)["value"], site, n, samples).detach()
    return out


def _shaped(value: Tensor, samples: int, n: int) -> Tensor:
    return value.expand(torch.broadcast_shapes(value.shape, (samples, n))).reshape(samples, n)


def chunks(x: Tensor, samples: int) -> Iterator[slice]:
    """Slices of rows for which `samples` draws a row fit in memory."""
    return slices(len(x), fitting(NUMBERS, samples * x[0].numel()))


def affordable(x: Tensor, most: int, least: int) -> int:
    """How many draws per row are worth their time: `most`, unless that makes more numbers than `EFFORT`; at least `least`."""
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


@torch.no_grad()
def lone_states(values: dict[str, Tensor], log_weights: Tensor, structure: Structure, x: Tensor) -> Tensor:
    """Rows [n] whose weighted draws are all in one state of the discrete latents, though not every state was visited.

    There, equal weights only say that nothing else was seen: a rare component (of probability 1e-3, say) that no draw
    visited may hold most of p(x_i). Slots left over, which stand for no missing entry, make no state.
    """
    n = log_weights.shape[1]
    code, states = torch.zeros_like(log_weights, dtype=torch.long), torch.zeros(n)
    if not structure.discrete_locals:
        return torch.zeros(n, dtype=torch.bool)
    generator = torch.Generator("cpu").manual_seed(0)
    for site in structure.discrete_locals:
        value = structure.axes.by_datum(values[site.name], site)
        value = value.reshape(*code.shape, -1).round().long()  # [samples, n, entries]
        key = torch.randint(1, 2**40, value.shape[-1:], generator=generator)
        count: float | Tensor = (
            math.inf if site.cardinality is None else site.inner * math.log(max(1, site.cardinality))
        )
        if site.completes is not None and value.shape[-1]:
            real = real_slots(x, site)
            value = value * real
            count = real.sum(-1) * (count / real.shape[-1])
        code, states = code + (value * key).sum(-1), states + count
    top = code.gather(0, log_weights.argmax(0, keepdim=True))
    share = (log_weights.softmax(0) * (code == top)).sum(0)
    alone = (share > ALL) & (states > 0)
    rows = alone.nonzero()[:, 0]
    visited = 1 + (code[:, rows].sort(0).values.diff(dim=0) != 0).sum(0)
    alone[rows] = visited.double().log() < states[rows] - 1e-6
    return alone


def real_slots(x: Tensor, site: Site) -> Tensor:
    """Which entries of a site that completes x stand for a missing one [n, entries]; all, where x cannot tell."""
    entries = site.inner * math.prod(site.event_shape)
    flat = x.flatten(1).isnan()
    missing = flat.sum(1) * ~flat.all(1)
    if int(missing.max()) > entries:
        missing = torch.full_like(missing, entries)
    return torch.arange(entries) < missing.unsqueeze(1)
