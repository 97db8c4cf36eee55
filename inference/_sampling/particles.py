"""A particle filter along the order of an autoregressive distribution whose missing entries are the latent.

Each particle walks through the entries of its row: a missing one is drawn from its conditional given all before it, an
observed one multiplies the weight by its conditional. Where the weights have become uneven, particles are resampled just
before the next missing entry (Gordon, Salmond & Smith 1993; Doucet & Johansen 2009), not earlier: what comes after the last
missing entry is only weighed. The mean weight is an unbiased estimate of p(x_observed) (Del Moral 2004, §7.4.1). Several
filters of the same row, independent of one another, give its standard error.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from inference._sampling.weights import Draws
from zoo._program.autoregressive import AutoregressiveBernoulli, Steps
from zoo._program.program import Program
from zoo._program.slots import slots
from zoo._program.structure import Site, Structure
from zoo._program.trace import is_plain, node_of

UNEVEN = 0.5  # of the particles: an effective sample size below it means resampling
FILTERS = 40  # of a row, where there are particles enough


def share(samples: int, filters: int = FILTERS) -> int:
    """How many filters of a row share its samples: as many as asked for, of two particles or more."""
    return max(1, min(filters, samples // 2))


def refusal(program: Program, structure: Structure, x: Tensor) -> str | None:
    """Why no particle filter can walk through the program's data, or None."""
    site = _missing_site(structure)
    if site is None or site.completes is None or len(structure.observed) != 1 or site.inner != 1:
        return (
            "proposal=sequential draws the missing entries of one autoregressive site, and the latents of "
            f"'{structure.program}' are {_names(structure)}"
        )
    node = node_of(program.trace(x[:2], raw=True), site.completes)
    if not hasattr(node["fn"], "steps"):
        return (
            f"proposal=sequential needs a distribution that gives its entries one by one (`steps`), and '{site.completes}' "
            f"is a {type(node['fn']).__name__}"
        )
    return None if is_plain(node) else f"proposal=sequential takes no mask or scale, and '{site.completes}' has one"


def _missing_site(structure: Structure) -> Site | None:
    latents = structure.local_latents
    return latents[0] if len(latents) == 1 and latents[0].completes is not None else None


def _names(structure: Structure) -> str:
    return ", ".join(f"'{s.name}'" for s in structure.local_latents) or "none"


@torch.no_grad()
def draw(program: Program, structure: Structure, x: Tensor, samples: int, filters: int) -> Draws:
    """`samples` weighted completions of each row of x [n, D], NaN where missing, by `filters` filters of equal size.

    The log-weights [samples, n] average, as weights, to an unbiased estimate of p(x_observed); those of one filter follow
    one another. A row with nothing observed weighs 0 nats, one with nothing missing log p(x).
    """
    site = _missing_site(structure)
    assert site is not None and site.completes is not None
    fn = cast(AutoregressiveBernoulli, node_of(program.trace(x, raw=True), site.completes)["fn"])
    value, log_w = _filter(fn, x, filters, samples // filters)
    index, real = slots(x, site.event_shape[0])
    given = value.gather(-1, index.expand(*value.shape[:-1], -1))
    left_over = torch.bernoulli(torch.full_like(given, 0.5))
    return Draws({site.name: torch.where(real, given, left_over)}, log_w, None, torch.zeros_like(log_w))


def _filter(fn: AutoregressiveBernoulli, x: Tensor, F: int, P: int) -> tuple[Tensor, Tensor]:
    """Completed vectors [F P, n, D], and their log-weights [F P, n]."""
    unseen = x.isnan().all(-1)
    missing = x.isnan() & ~unseen.unsqueeze(-1)
    known = x.nan_to_num(0.0)
    places = missing[:, fn.order].any(0).nonzero()[:, 0].tolist()  # in the order, where any row misses its entry
    first, end = (places[0], places[-1] + 1) if places else (0, 0)
    steps = fn.steps((len(x),))
    log_w = known.new_zeros(F, P, len(x))
    log_w += _taken(steps, known, first)
    log_Z = known.new_zeros(F, len(x))  # what resampling has put away
    steps.select(torch.arange(len(x)).expand(F, P, -1))
    while steps.t < end:
        entry = steps.entry
        absent, here = missing[:, entry], known[:, entry]
        if bool(absent.any()):
            log_w, log_Z = _resample(steps, log_w, log_Z, absent)
        logit = steps.logit()
        value = torch.where(absent, torch.bernoulli(logit.sigmoid()), here)
        log_w = log_w + torch.where(absent, 0.0, _log_bernoulli(logit, value))
        steps.take(value)
    value = torch.where(missing, steps.value, known)
    if end < len(fn.order):
        log_w = log_w + fn.conditionals(value)[..., fn.order[end:]].sum(-1)
    log_w = (log_w + log_Z.unsqueeze(1)).masked_fill(unseen, 0.0)
    return value.flatten(0, 1), log_w.flatten(0, 1)


def _taken(steps: Steps, known: Tensor, count: int) -> Tensor:
    """Take `count` entries as they are known; their log-density [n]."""
    total = torch.zeros_like(known[:, 0])
    for _ in range(count):
        value = known[:, steps.entry]
        total = total + _log_bernoulli(steps.logit(), value)
        steps.take(value)
    return total


def _log_bernoulli(logit: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(torch.where(value > 0.5, logit, -logit))


def _resample(steps: Steps, log_w: Tensor, log_Z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Resample the particles of the filters [F, n] whose weights are uneven, of the rows that are to draw an entry.

    Returns the weights after it, and what is put away, the mean weight, with it.
    """
    F, P, n = log_w.shape
    chosen = uneven(log_w) & rows  # [F, n]
    if not bool(chosen.any()):
        return log_w, log_Z
    ancestor, log_w, log_Z = systematic(log_w, log_Z, chosen)
    steps.select((torch.arange(F)[:, None, None] * P + ancestor) * n + torch.arange(n))
    return log_w, log_Z


def uneven(log_w: Tensor, share: float = UNEVEN) -> Tensor:
    """Which filters' weights, of log_w [F, P, n], have an effective sample size below that share of their particles [F, n]."""
    size = 1 / log_w.softmax(1).square().sum(1)
    return (size < share * log_w.shape[1]) & (log_w.shape[1] > 1)


def systematic(log_w: Tensor, log_Z: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling (Kitagawa 1996) of the chosen filters [F, n] among those with weights log_w [F, P, n].

    Returns each particle's ancestor [F, P, n], itself in other filters; the weights after it; and log_Z [F, n], what is put
    away, with the mean weight.
    """
    F, P, n = log_w.shape
    edges = log_w.softmax(1).movedim(1, -1).cumsum(-1)  # [F, n, P]
    at = (torch.rand(F, n, 1).to(edges) + torch.arange(P)) / P
    ancestor = torch.searchsorted(edges, at.contiguous()).clamp(max=P - 1).movedim(-1, 1)  # [F, P, n]
    ancestor = torch.where(chosen.unsqueeze(1), ancestor, torch.arange(P).unsqueeze(-1))
    mean = log_w.logsumexp(1) - math.log(P)
    return ancestor, log_w.masked_fill(chosen.unsqueeze(1), 0.0), torch.where(chosen, log_Z + mean, log_Z)
