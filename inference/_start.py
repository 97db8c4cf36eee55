"""Where learning begins: for mixtures of vectors a k-means clustering and one M-step, else the program's own values."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from inference._family import Floor
from inference._task import Task
from zoo._errors import UsageError

Start = Literal["auto", "kmeans", "random", "program"]
KMEANS_ROWS = 20_000  # a start needs no more
FLOOR = 1e-6


def begin(task: Task, start: Start, seed: int, floor: Floor | None = None) -> dict[str, Tensor]:
    """Put the program's θ at a start for learning and return point values of its global latents.

    - `kmeans`: k-means++ seeds and Lloyd's iterations on the data in units of their standard deviations, missing entries
      at their column's mean, then one M-step from that clustering (Arthur & Vassilvitskii 2007);
    - `random`: the same from random responsibilities;
    - `program`: the values the program brings;
    - `auto`: `kmeans` where the program has discrete local latents that can be enumerated and there are data enough.
    """
    globals = task.global_start()
    completes = any(s.completes for s in task.structure.discrete_locals)  # missing entries are no clusters
    mixture = task.structure.exact != "no" and task.structure.assignments > 1 and not completes
    if start == "random" and not mixture:
        _jitter(task, seed)
    if start == "program" or not mixture or (start == "auto" and task.structure.assignments > len(task.x)):
        return globals
    exact = task.exact
    if start == "kmeans" and exact.A > exact.N:
        raise UsageError(
            f"start=kmeans needs a row for each of the {exact.A} joint values of the latents; there are {exact.N}."
        )
    weights = _random(exact, seed) if start == "random" else _kmeans(exact, seed)
    stats = exact.e_step(globals, weights)
    how = task.plan(globals)
    floor = floor or Floor(FLOOR, set())
    return task.m_step(how, stats, globals, floor, weights, iterations=100)


@torch.no_grad()
def _jitter(task: Task, seed: int) -> None:
    """Move each free parameter by about its own size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in task.program.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.add_(0.5 * parameter.square().mean().sqrt() * noise)


def _random(exact: Any, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(exact.N, exact.A, generator=generator, dtype=torch.float64).to(exact.x.dtype).softmax(1)


def _kmeans(exact: Any, seed: int) -> Tensor:
    """Responsibilities [N, A], 0 or 1, of a k-means clustering; the largest cluster first."""
    from sklearn.cluster import KMeans

    x = exact.x.reshape(exact.N, -1).double().numpy()
    center = np.nan_to_num(_quiet_mean(x))
    spread = np.sqrt(_quiet_mean((x - center) ** 2))
    standard = np.where(np.isnan(x), 0.0, (x - center) / np.where(spread > 0, spread, 1.0))
    some = standard
    if len(x) > KMEANS_ROWS:
        some = standard[np.random.default_rng(seed).choice(len(x), KMEANS_ROWS, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than clusters: the empty ones are reported by the method
        fitted = KMeans(exact.A, n_init=1, random_state=seed).fit(some)
    labels = torch.as_tensor(fitted.predict(standard).astype(np.int64))
    order = torch.bincount(labels, minlength=exact.A).argsort(descending=True, stable=True)
    return torch.nn.functional.one_hot(order.argsort()[labels], exact.A).to(exact.x.dtype)


def _quiet_mean(x: np.ndarray) -> np.ndarray:
    seen = ~np.isnan(x)
    return np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
