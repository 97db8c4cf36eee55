"""Modes that long chains, themselves an approximation, have not been to: the other runs may know some."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from inference._globals import modes
from inference._globals.labels import POINTS, Labels
from inference._globals.target import Target, refusal
from inference._method.fit import Fit
from inference._method.task import Task

EACH = 4  # draws of a run that climbs begin at


def unvisited(task: Task, reference: Fit, others: Iterable[tuple[str, Fit]]) -> str:
    """What the draws of other fits, (method, fit), say against those of a reference with global latents; "" for nothing.

    Climbs from the others' draws that end where the reference has no draw, at a mode with a share of the posterior.
    """
    if not task.structure.global_latents or refusal(task.structure) is not None:
        return ""
    target = Target(task)
    flat = _places(target, reference, len(next(iter(reference.draws.values()), ())))
    if len(flat) <= target.d:
        return ""
    labels, log_p = Labels(target, flat[:POINTS]), target.log_density(flat)
    for method, fit in others:
        share = modes.missed(target, labels, flat, log_p, _places(target, fit, EACH))
        if share >= modes.SHARE:
            return (
                f"climbs from draws of {method} end at a mode that no draw of it is near, with more than {modes.SHARE:.0%} "
                "of the posterior by Laplace's approximation"
            )
    return ""


def _places(target: Target, fit: Fit, most: int) -> Tensor:
    """So many draws of a fit, or its point, as points [B, d]; none where it has not all of the latents."""
    found = {}
    for site in (place.site.name for place in target.posterior.places):
        point = np.asarray(fit.parameters[site])[None] if site in fit.parameters else ()
        if not len(values := fit.draws.get(site, point)):
            return torch.zeros(0, target.d, dtype=torch.float64)
        found[site] = torch.as_tensor(values).double()
    size = min(len(v) for v in found.values())
    some = torch.linspace(0, size - 1, min(most, size)).long()
    flat = target.flat_of({n: v[some] for n, v in found.items()})
    return flat[flat.isfinite().all(1)]
