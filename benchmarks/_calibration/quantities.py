"""The quantities whose ranks are looked at: global latents, local ones of a few rows, and log p(x | latents).

The last depends on the data, and finds faults that ranks of latents alone cannot see: a posterior that ignores the data passes
those (Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman & Vehtari 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from inference._method.fit import Arrays, Fit
from inference._method.task import Task
from zoo._errors import Refusal
from zoo._program.structure import Structure
from zoo._program.trace import outside_log_prob

ROWS = 3  # whose local latents are looked at
MOST_GLOBAL, MOST_LOCAL = 20, 12  # numbers
LOG_LIKELIHOOD = "log p(x | latents)"
Place = tuple[str, str, tuple[int, ...]]  # name of the quantity, its site, where it stands in the site's value


def values_of(task: Task, truth: Arrays, fit: Fit, draws: int) -> dict[str, tuple[float, np.ndarray]]:
    """Quantity → its true value and about independent posterior draws of it [draws], at most so many.

    Raises `Refusal` where the fit has no posterior of a latent.
    """
    for name in truth:
        if name not in fit.draws:
            what = "its mode alone" if name in fit.parameters else "nothing that can be drawn"
            raise NoPosterior(
                f"the method's posterior of '{name}' is {what}, and calibration needs draws: take nuts, laplace or svi"
            )
    kept = {name: _spread(np.asarray(fit.draws[name]), draws) for name in truth}
    out = {
        name: (
            float(truth[site][place]),
            kept[site].reshape(len(kept[site]), -1)[:, _flat(place, truth[site])].astype(float),
        )
        for name, site, place in _places(task.structure, truth)
    }
    if len(truth) == len(task.structure.global_latents) + len(task.structure.local_latents):
        count = min(len(v) for v in kept.values())
        every = _log_likelihood(task, {n: [truth[n], *v[:count]] for n, v in kept.items()}, count + 1)
        out[LOG_LIKELIHOOD] = float(every[0]), every[1:]
    return out


def _flat(place: tuple[int, ...], value: np.ndarray) -> int:
    return int(np.ravel_multi_index(place, value.shape)) if place else 0


class NoPosterior(Refusal):
    """A method that holds no draws of a latent cannot be calibrated on any data."""


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the draws, evenly over them: of chains, far from each other."""
    if len(values) <= count:
        return values
    return values[np.linspace(0, len(values) - 1, count).round().astype(int)]


def _places(structure: Structure, truth: Arrays) -> Iterator[Place]:
    globals, locals = [], []
    for site in structure.global_latents:
        globals += [(_named(site.name, i), site.name, i) for i in np.ndindex(truth[site.name].shape)]
    for site in structure.local_latents:
        if site.name in truth:
            shape = truth[site.name].shape
            rows = sorted({int(r) for r in np.linspace(0, shape[0] - 1, ROWS)})
            inner = [(r, *i) for i, r in itertools.product(np.ndindex(shape[1:]), rows)]
            locals += [(_named(f"{site.name} of row {i[0]}", i[1:]), site.name, i) for i in inner]
    yield from (globals[i] for i in _some(len(globals), MOST_GLOBAL))
    yield from (locals[i] for i in _some(len(locals), MOST_LOCAL))


def _some(n: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def _named(name: str, place: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, place))}]" if place else name


@torch.no_grad()
def _log_likelihood(task: Task, values: dict[str, list[np.ndarray]], count: int) -> np.ndarray:
    """log p(x | latents) [count] of all rows at so many values of all latents, nats."""
    structure, observed = task.structure, [s.name for s in task.structure.observed]
    local = {s.name: s for s in structure.local_latents}
    out = []
    for d in range(count):
        given = {n: torch.as_tensor(v[d]) for n, v in values.items()}
        given = {n: structure.axes.as_program(v, local[n]) if n in local else v for n, v in given.items()}
        out.append(float(outside_log_prob(task.program.trace(task.x, latents=given), observed)))
    return np.array(out)
