"""What a fit of an exact program holds of each row's posterior: all of it, or of very large data nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from inference._method.task import Task

MOST_NUMBERS = 2**25  # 256 MB in float64
MOST_SITES = 2000  # each of which is an array of its own

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RowPosteriors:
    """Site → draws [draws, N, …], means and deviations [N, …], probabilities [N, K]; and why there are none."""

    draws: Arrays = field(default_factory=dict)
    means: Arrays = field(default_factory=dict)
    deviations: Arrays = field(default_factory=dict)
    probabilities: Arrays = field(default_factory=dict)
    left_out: str = ""

    @classmethod
    def of(cls, task: Task, globals: dict[str, Tensor]) -> RowPosteriors:
        """Those of the exact engine at the program's θ and these globals."""
        exact, structure = task.engine, task.structure
        states = exact.states
        latents = sum(s.inner * math.prod(s.event_shape) for s in structure.continuous_locals)
        numbers = len(task.x) * (states + 2 * latents)
        if numbers > MOST_NUMBERS:
            return cls(
                left_out=f"left out: the posteriors of {len(task.x):,} rows are {numbers:,} numbers, over the limit of "
                f"{MOST_NUMBERS:,}"
            )
        if structure.eliminable and (sites := len(structure.discrete_locals)) > MOST_SITES:
            return cls(left_out=f"left out: the posteriors of {sites:,} sites, over the limit of {MOST_SITES:,}")
        posterior = exact.responsibilities(None, globals) if states else None
        means, deviations = exact.summary(globals)
        draws, left_out = task.draws, ""
        if structure.eliminable:
            numbers = len(task.x) * len(structure.discrete_locals)
            draws = min(draws, MOST_NUMBERS // numbers)
            if draws < task.draws:
                left_out = f"{draws} joint draws in place of {task.draws}: each holds {numbers:,} values"
        return cls(
            draws=_arrays(exact.draw(posterior, draws, globals)) if draws else {},
            means=_arrays(means),
            deviations=_arrays(deviations),
            probabilities={} if posterior is None else _arrays(exact.marginals(posterior, globals)),
            left_out=left_out,
        )


def _arrays(values: dict[str, Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in values.items()}
