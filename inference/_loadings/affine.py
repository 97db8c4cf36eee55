"""A linear-Gaussian program as a map of standard normal factors, read off the program itself: x = B u + b + noise.

The latents z of the program are z = S u + m a priori, with u ~ N(0, I); they may depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference._exact.choose import normal_engine
from inference._exact.gaussian import Gaussian
from inference._exact.linear import LinearGaussian
from inference._method.task import Task
from zoo._errors import UsageError
from zoo._program.source import blame

MOST_ROWS = 20_000


@dataclass(frozen=True)
class Affine:
    """Under each joint value of the discrete latents [A, …], for the columns of x that the program observes."""

    columns: np.ndarray  # [D] of x
    in_latents: np.ndarray  # the mean's slope in z [A, D, L]
    at_zero: np.ndarray  # the mean at z = 0 [A, D]
    noise: np.ndarray  # variances [A, D], or covariances [A, D, D]
    root: np.ndarray  # S [A, L, L]
    center: np.ndarray  # m [A, L]

    @property
    def coefficients(self) -> np.ndarray:
        """B [A, D, L]."""
        return self.in_latents @ self.root

    @property
    def offset(self) -> np.ndarray:
        """b [A, D]: the mean of x."""
        return self.at_zero + (self.in_latents @ self.center[..., None])[..., 0]

    @property
    def variances(self) -> np.ndarray:
        """The noise's variance of each column [A, D]."""
        return self.noise if self.noise.ndim == 2 else np.diagonal(self.noise, axis1=1, axis2=2)


@torch.no_grad()
def read(exact: LinearGaussian, globals: dict[str, Tensor]) -> Affine | None:
    """The map of a program at its θ and these globals; None where its sites observe no column of x as it is."""
    sites = exact.sites(None, globals).gaussians
    seen = [g for g in sites if g.place is None]
    x = exact.x.reshape(exact.N, -1)
    places = places_of([exact.data.values[g.name] for g in seen], x)
    entries = np.concatenate(places) if places else np.zeros(0, dtype=int)
    kept = np.flatnonzero(entries >= 0)
    if not len(kept):
        return None
    slopes = torch.cat([g.coefficients for g in seen], 1).numpy()[:, kept]
    offset = torch.cat([g.offset for g in seen], 1).numpy()[:, kept]
    return Affine(entries[kept], slopes, offset, _noise(seen, kept), *_prior(sites, exact))


def columns_of(value: Tensor, x: Tensor) -> np.ndarray:
    """For each entry of a site's value [rows, E], the column of x [rows, D] that it is, or −1; of equal columns, the next."""
    if value.shape == x.shape and torch.equal(value.nan_to_num(0.0), x.nan_to_num(0.0)):
        return np.arange(x.shape[1])
    places: dict[bytes, list[int]] = {}
    for d, column in enumerate(_exactly(x, x.dtype)):
        places.setdefault(column, []).append(d)
    out = []
    for column in _exactly(value, x.dtype):
        same = places.get(column, [-1])
        out.append(same.pop(0) if len(same) > 1 else same[0])
    return np.array(out, dtype=int)


def places_of(values: Sequence[Tensor], x: Tensor) -> list[np.ndarray]:
    """`columns_of` for the values of several sites [rows, E_i], which share a column of x only where they must."""
    if not values:
        return []
    joint = columns_of(torch.cat([v.to(x.dtype) for v in values], 1), x)
    return np.split(joint, np.cumsum([v.shape[1] for v in values])[:-1])


def _exactly(values: Tensor, dtype: torch.dtype) -> list[bytes]:
    """Each column's numbers, 0 for NaN and for −0."""
    return [column.tobytes() for column in (values.to(dtype).nan_to_num(0.0) + 0.0).numpy().T]


def _noise(seen: list[Gaussian], kept: np.ndarray) -> np.ndarray:
    """The noise of the columns that are kept: variances [A, D] where all sites have independent entries, else covariances."""
    if all(g.diagonal for g in seen):
        return torch.cat([g.scale.square() for g in seen], 1).numpy()[:, kept]
    blocks = [torch.diag_embed(g.scale.square()) if g.diagonal else g.scale @ g.scale.mT for g in seen]
    whole = torch.stack([torch.block_diag(*(b[a] for b in blocks)) for a in range(len(blocks[0]))])
    return whole.numpy()[:, kept[:, None], kept]


def _prior(sites: list[Gaussian], exact: LinearGaussian) -> tuple[np.ndarray, np.ndarray]:
    """z = S u + m a priori, u standard normal: S [A, L, L] and m [A, L]."""
    latent = [g for g in sites if g.place is not None]
    away = torch.cat([g.selected(exact.L) - g.coefficients for g in latent], 1)  # of z, what is each site's own
    scales = [torch.diag_embed(g.scale) if g.diagonal else g.scale for g in latent]
    root = torch.stack([torch.block_diag(*(s[a] for s in scales)) for a in range(exact.A)])
    offset = torch.cat([g.offset for g in latent], 1).unsqueeze(-1)
    return torch.linalg.solve(away, root).numpy(), torch.linalg.solve(away, offset).squeeze(-1).numpy()


def of_task(task: Task) -> Affine:
    """The map of a task's program at its θ. Raises `UsageError` for a program that has no loadings, and says why."""
    program, structure = task.program.name, task.structure
    if not structure.linear_gaussian:
        why = "it has no continuous latents" if structure.enumerable else structure.reason
        raise UsageError(
            f"loadings are those of a program with linear-Gaussian latents, and '{program}' has none: {why}."
        )
    if structure.assignments > 1:
        raise UsageError(
            f"'{program}' has loadings for each of {structure.assignments} joint values of its discrete latents; `zoo plot` "
            "draws them. A table of loadings needs a program without discrete latents."
        )
    task = task.doubled()
    x, n = task.x.nan_to_num(0.0), len(task.x)
    if n > MOST_ROWS:  # the rows only tell which column of x each entry of a site is
        x = x[torch.as_tensor(np.sort(np.random.default_rng(0).choice(n, MOST_ROWS, replace=False)))]
    with blame(program), torch.no_grad():
        exact = normal_engine(task.program, structure, x)
    found = read(exact, task.global_start()) if isinstance(exact, LinearGaussian) else None
    if found is None:
        what = "differ from row to row" if not isinstance(exact, LinearGaussian) else "observe no column as it is"
        raise UsageError(f"loadings need sites that are the same for all rows, and those of '{program}' {what}.")
    return found
