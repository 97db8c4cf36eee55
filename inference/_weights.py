"""Importance weights log p(x, z) − log q(z | x), many draws for each datum at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from zoo._program import Program
from zoo._structure import DRAWS_PLATE, Structure, is_local, local_log_prob, per_datum

NUMBERS = 2**23  # numbers in the largest temporary


def draw(
    program: Program, structure: Structure, x: Tensor, guide: Any | None, samples: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`samples` draws of the local latents for each row of x [n, …], from `guide`, or from the prior when it is None.

    Returns log p(x, z) [samples, n] and log q(z | x) [samples, n] in nats, each differentiable in its own parameters with
    the draws held fixed, and the draws, each [samples, n, …].
    """
    n = len(x)
    plate = pyro.plate(DRAWS_PLATE, samples, dim=-1 - structure.max_plate_nesting)
    if guide is None:
        with plate:
            trace = program.trace(x)
        latents = [v for v in trace.nodes.values() if v["type"] == "sample" and is_local(v) and not v["is_observed"]]
        log_q = torch.zeros((), dtype=x.dtype)
        for node in latents:
            log_q = log_q + per_datum(node, node["fn"].log_prob(node["value"]), structure.data_dim)
        draws = {v["name"]: v["value"] for v in latents}
        return _shaped(local_log_prob(trace, structure.data_dim, n), samples, n), _shaped(log_q, samples, n), draws
    with plate, pyro.settings.context(module_local_params=True), torch.no_grad():
        drawn = pyro.poutine.trace(guide).get_trace(x)
    draws = {k: v["value"].detach() for k, v in drawn.nodes.items() if v["type"] == "sample" and is_local(v)}
    with plate:
        p = program.trace(x, latents=draws)
        with pyro.settings.context(module_local_params=True):
            q = pyro.poutine.trace(pyro.poutine.condition(guide, data=draws)).get_trace(x)
    log_p = local_log_prob(p, structure.data_dim, n)
    return _shaped(log_p, samples, n), _shaped(local_log_prob(q, structure.data_dim, n), samples, n), draws


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
