"""Every mode of log p(x_i, a, z) over z that climbs from dispersed places reach, where `newton.modes` keeps one.

A likelihood of z², say, has two modes at which a Gaussian each has half of the mass. One of them alone as a proposal gives
estimates that lack log 2 a row, and weights that do not show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from inference._density.local import LocalDensity
from inference._density.newton import COPIES, Modes, joined, modes

SCREENED = 24  # rows in which other modes are looked for first,
STARTS = 4  # each from so many draws and their mirror images,
MORE_STARTS = 8  # and from so many in all rows where any has them
NEAR = 1.0  # squared Mahalanobis distance below which two modes are one
FURTHER, WIDE_SHARE = 3.0, 0.25  # sds that draws of the wide Gaussians lie further out; their share of the draws
LEAST = 20.0  # nats below the best at which a mode does not count


@torch.no_grad()
def all_modes(
    density: LocalDensity,
    *,
    start: Tensor | None = None,
    tries: int = 10,
    max_iter: int = 100,
    tol: float = 1e-9,
    step: Callable[[int], object] | None = None,
) -> Modes:
    """As `modes`, with the other modes that climbs from dispersed places reach.

    They begin at the found mode mirrored at the prior's middle, and at draws from the prior, each with its mirror image. A
    few rows spread over the data show whether there is anything to find; only then is it looked for in all.
    """
    first = modes(density, start=start, tries=tries, max_iter=max_iter, tol=tol, step=step)
    if density.structure.linear_gaussian or density.L == 0:  # quadratic in z: one mode
        return first
    some = torch.linspace(0, density.n - 1, min(density.n, SCREENED)).long().to(density.x.device)
    if not bool(_with_others(density.rows(some), first.rows(some), STARTS, max_iter, tol).several.any()):
        return first
    found = [
        _with_others(density.rows(rows), first.rows(rows), MORE_STARTS, max_iter, tol)
        for rows in density.chunks(density.A * MORE_STARTS, COPIES)
    ]
    most = max(m.each for m in found)
    return joined([_widened(m, most) for m in found])


def with_wide(found: Modes, density: LocalDensity) -> Modes:
    """Beside each Gaussian a wider one at the same mode, so that draws reach the heavier tails that posteriors have.

    For proposals: no weight is above 4/3 of what it is without. Draws of a Gaussian of L numbers lie about √L sds out. Where
    the log joint is quadratic, the Gaussians are exact.
    """
    if density.structure.linear_gaussian or not density.L:
        return found
    wider = 1 + FURTHER / density.L**0.5
    both = {f.name: torch.stack([getattr(found, f.name)] * 2, 2).flatten(1, 2) for f in fields(Modes)}
    wide = torch.tensor([False, True], device=found.mean.device).repeat(found.mean.shape[1])
    share = torch.where(wide, math.log(WIDE_SHARE), math.log1p(-WIDE_SHARE))
    both["log_evidence_each"] = both["log_evidence_each"] + share.to(found.mean.dtype)
    both["scale_tril"] = both["scale_tril"] * torch.where(wide, wider, 1.0).to(found.mean.dtype)[:, None, None]
    return replace(found, **both)


def _with_others(density: LocalDensity, first: Modes, pairs: int, max_iter: int, tol: float) -> Modes:
    """`first`, one mode an assignment, with those that climbs from 1 + 2 `pairs` more places reach."""
    n, A, L = first.mean.shape
    row = torch.arange(n, device=density.x.device).repeat_interleave(A)
    assignment = torch.arange(A, device=density.x.device).repeat(n)
    here = density.rows(row)
    middle = here.middle(assignment)
    places = [2 * middle - first.mean.reshape(-1, L)]
    for _ in range(pairs):
        drawn = here.prior(1, assignment)[0]
        places += [drawn, 2 * middle - drawn]
    z = torch.stack(places)  # [starts, n·A, L]
    fine = here.log_joint(z, assignment.expand(len(z), -1)).isfinite().unsqueeze(-1)
    z = torch.where(fine, z, first.mean.reshape(-1, L)).movedim(0, 1)
    starts = z.shape[1]
    climbed = modes(
        density.rows(torch.arange(n, device=row.device).repeat_interleave(starts)),
        start=z.reshape(n, A, starts, L).transpose(1, 2).reshape(n * starts, A, L),
        tries=0,
        max_iter=max_iter,
        tol=tol,
    )
    return _distinct(first, climbed, starts)


def _distinct(first: Modes, climbed: Modes, starts: int) -> Modes:
    """Those of `climbed` [n·starts, A] that are modes of their own, beside `first` [n, A], the highest first."""
    n, A = first.mean.shape[:2]
    parts = {}
    for f in fields(Modes):
        one, more = getattr(first, f.name), getattr(climbed, f.name)
        more = more.reshape(n, starts, A, *more.shape[2:]).transpose(1, 2)
        parts[f.name] = torch.cat([one.unsqueeze(2), more], 2).flatten(0, 1)  # [n·A, 1 + starts, …]
    value = parts["log_evidence_each"].clone()
    best = value[:, :1].clone()
    proper = parts["converged"] & ~parts["damped"] & value.isfinite()
    value[:, 1:] = value[:, 1:].masked_fill(~proper[:, 1:], -torch.inf)
    white = torch.linalg.solve_triangular(
        parts["scale_tril"].unsqueeze(2),
        (parts["mean"].unsqueeze(1) - parts["mean"].unsqueeze(2)).unsqueeze(-1),
        upper=False,
    )
    apart = white.squeeze(-1).square().sum(-1)  # [n·A, i, j]: of j, in the metric of i
    near = torch.minimum(apart, apart.mT) < NEAR
    for j in range(1, 1 + starts):  # who is near one that stays before it goes
        taken = (near[:, j, :j] & value[:, :j].isfinite()).any(1)
        value[taken, j] = -torch.inf
    value[:, 1:] = value[:, 1:].masked_fill(
        value[:, 1:] < torch.maximum(best, value.amax(1, keepdim=True)) - LEAST, -torch.inf
    )
    order = value.argsort(dim=1, descending=True, stable=True)
    M = max(1, int(value.isfinite().sum(1).max()))
    parts["log_evidence_each"] = value
    kept = {}
    for name, part in parts.items():
        index = order[:, :M].reshape(n * A, M, *(1,) * (part.dim() - 2)).expand(-1, -1, *part.shape[2:])
        kept[name] = part.gather(1, index)
    lost = ~kept["log_evidence_each"].isfinite()
    for name, part in kept.items():  # a column without a mode repeats the first, with no weight
        if name != "log_evidence_each":
            at = lost.reshape(*lost.shape, *(1,) * (part.dim() - 2))
            kept[name] = torch.where(at, part[:, :1], part)
    return Modes(*(kept[f.name].reshape(n, A * M, *kept[f.name].shape[2:]) for f in fields(Modes)))


def _widened(modes: Modes, M: int) -> Modes:
    """The same with M columns for each assignment, the new ones without weight."""
    if modes.each == M:
        return modes
    out = {}
    for f in fields(Modes):
        part = getattr(modes, f.name).unflatten(1, (-1, modes.each))
        extra = part[:, :, :1].expand(-1, -1, M - modes.each, *part.shape[3:])
        if f.name == "log_evidence_each":
            extra = torch.full_like(extra, -torch.inf)
        out[f.name] = torch.cat([part, extra], 2).flatten(1, 2)
    return Modes(**out)
