"""What a program with continuous latents and no exact posterior says at a run's own point.

That is: draws and means of the latents of some of its data, E[x | latents], and data simulated from its prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from inference._families._registry import base_of
from inference._loadings.affine import columns_of
from inference._method.summed import drawn_by
from inference._method.task import Task
from inference._pictures._views.style import plain
from zoo._errors import UsageError
from zoo._program.source import blame
from zoo._program.structure import Site, Structure

MOST_ROWS = 2000  # data whose latents are drawn
FEW_DRAWS = 20  # stored draws per row below which a guide is asked for more
GUIDE_DRAWS = 100
PRIOR_DRAWS = 4000  # for quantiles that no formula gives
NUMBERS = 2**22  # in one block of rows

Latents = dict[str, Tensor]  # local site → its value [n, …]


def own_latents(structure: Structure) -> tuple[Site, ...]:
    """The local latents that do not stand for missing entries."""
    return tuple(s for s in structure.local_latents if s.completes is None)


def has_decoder(structure: Structure) -> bool:
    """Whether a continuous latent that is no missing entry stands between the prior and x, with no exact posterior."""
    return not structure.is_exact and any(not s.discrete for s in own_latents(structure))


class Decoder:
    """The program of a run, its latents and its data; `stored` are the run's own draws, site → [draws, n, …]."""

    def __init__(self, task: Task, stored: Mapping[str, np.ndarray]) -> None:
        self.task, self.globals, self.structure = task, task.global_start(), task.structure
        self.sites = own_latents(task.structure)
        self.top = next(s for s in self.sites if not s.discrete)  # the first in the program
        self.stored = {s.name: stored[k] for s in self.sites if (k := s.name.replace("/", ".")) in stored}
        n = len(task.x)
        few = np.arange(n) if n <= MOST_ROWS else np.sort(np.random.default_rng(0).choice(n, MOST_ROWS, replace=False))
        self.rows = few
        self.x = task.x.numpy().reshape(n, -1)[few]  # [drawn, D]

    # ---- x ---------------------------------------------------------------------------------------------------

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        """Observed site → the column of x that each of its entries is, or −1."""
        seen = np.argsort(np.isnan(self.x).sum(1), kind="stable")[:200]
        few = self.task.x[self.rows[np.sort(seen)]]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), blame(self.task.program.name):
            trace = self.task.program.trace(few, latents=self.globals, raw=True)
        x = few.reshape(len(few), -1)
        local = [s.name for s in self.structure.observed if s.scope == "local"]
        return {name: columns_of(self._by_row(trace.nodes[name], "value"), x) for name in local}

    @cached_property
    def columns(self) -> np.ndarray:
        """The columns of x that the program observes as they are, ascending."""
        entries = np.concatenate([*self._places.values(), np.zeros(0, dtype=int)])
        return np.unique(entries[entries >= 0])

    @property
    def whole(self) -> bool:
        """Whether those are all of x."""
        return len(self.columns) == self.x.shape[1]

    def _by_row(self, node: Any, what: str) -> Tensor:
        """A local site's value, or its distribution's mean, [n, entries]. Raises `NotImplementedError` without one."""
        fn = node["fn"]
        value = node["value"] if what == "value" else fn.mean.expand(fn.shape())
        value = value.expand(torch.broadcast_shapes(value.shape, fn.shape()))
        moved = self.structure.axes.datum_first(value, len(fn.event_shape))
        return moved.detach().reshape(len(moved), -1)

    def _gathered(self, trace: Trace, what: str) -> np.ndarray | None:
        """What a trace says of `columns`, [n, columns]; None where a site has no finite mean."""
        pieces = []
        try:
            for name, places in self._places.items():
                values = self._by_row(trace.nodes[name], what).numpy()
                pieces += [(place, values[:, i]) for i, place in enumerate(places.tolist()) if place >= 0]
        except (NotImplementedError, AttributeError):
            return None
        by_column = dict(reversed(pieces))  # the first site that observes a column
        out = np.stack([by_column[c] for c in self.columns.tolist()], 1)
        return out if np.isfinite(out).all() else None

    @torch.no_grad()
    def decoded(self, latents: Latents, rows: np.ndarray | None = None) -> np.ndarray | None:
        """E[x | latents] [n, columns], or None where x has none.

        `rows`: the data that the latents belong to, for programs that look at them; None simulates.
        """
        n, parts = len(next(iter(latents.values()))), []
        for start in range(0, n, step := max(1, NUMBERS // self.x.shape[1])):
            some = slice(start, min(start + step, n))
            x = None if rows is None else self.task.x[rows[some]].nan_to_num(0.0)
            trace = self._trace(x, some.stop - some.start, {k: v[some] for k, v in latents.items()})
            parts.append(self._gathered(trace, "mean"))
        return None if any(p is None for p in parts) else np.concatenate([p for p in parts if p is not None])

    def _trace(self, x: Tensor | None, n: int, latents: Latents) -> Trace:
        sites = {s.name: s for s in self.sites}
        given = {k: self.structure.axes.as_program(v, sites[k]) for k, v in latents.items()}
        with torch.random.fork_rng(devices=[]), blame(self.task.program.name):
            torch.manual_seed(0)
            return self.task.program.trace(x, size=n, latents={**given, **self.globals}, raw=True)

    @torch.no_grad()
    def simulated(self, n: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Data [n, columns] drawn from the prior by the program itself, and their means given the latents; None where it
        cannot simulate."""
        try:
            trace = self._trace(None, n, {})
        except UsageError:
            return None
        values = self._gathered(trace, "value") if len(self.columns) else None
        return None if values is None else (values, self._gathered(trace, "mean"))

    # ---- latents ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draws(self, rows: np.ndarray) -> Latents | None:
        """Posterior draws of the latents of some rows, site → [draws, rows, …]: the run's own, or its guide's where the run
        has few; None where there is neither."""
        whole = len(self.stored) == len(self.sites)
        kept = {k: torch.as_tensor(v[:, rows], dtype=_dtype(v, self.task)) for k, v in self.stored.items()}
        if self.task.guide is None or (whole and len(kept[self.top.name]) >= FEW_DRAWS):
            return kept if whole else None
        pieces: dict[str, list[Tensor]] = {s.name: [] for s in self.sites}
        for start in range(0, len(rows), step := max(1, NUMBERS // (GUIDE_DRAWS * self.x.shape[1]))):
            some = torch.as_tensor(rows[start : start + step])
            with torch.random.fork_rng(devices=[]), blame(self.task.program.name):
                torch.manual_seed(0)
                found, _ = drawn_by(self.task, self.task.guide, some, GUIDE_DRAWS)
            for site in self.sites:
                pieces[site.name].append(found[site.name])
        return {k: torch.cat(v, 1) for k, v in pieces.items()}

    def centers(self, rows: np.ndarray) -> Latents | None:
        """Posterior means of the continuous latents of some rows [rows, …], and the commonest values of the discrete."""
        draws = self.draws(rows)
        if draws is None:
            return None
        discrete = {s.name for s in self.sites if s.discrete}
        return {k: v.mode(0).values if k in discrete else v.mean(0) for k, v in draws.items()}

    def reconstructed(self, rows: np.ndarray) -> np.ndarray | None:
        """E[x | the latents' centers] [rows, columns], or None where there is none."""
        centers = self.centers(rows)
        return None if centers is None or not len(self.columns) else self.decoded(centers, rows)

    @cached_property
    def reconstructs(self) -> bool:
        """Whether E[x | latents] of the data can be computed."""
        return self.reconstructed(self.rows[:2]) is not None

    @property
    def names(self) -> str:
        """The latents, as a title says them."""
        return ", ".join(plain(s.name) for s in self.sites)

    @cached_property
    def plane(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The topmost latent of the data drawn, flat: posterior means [drawn, L] and covariances [drawn, L, L]."""
        draws = self.draws(self.rows)
        if draws is None:
            return None
        z = draws[self.top.name].flatten(2) if draws[self.top.name].dim() > 2 else draws[self.top.name].unsqueeze(-1)
        mean = z.mean(0)
        away = z - mean
        return mean.numpy(), torch.einsum("snk,snl->nkl", away, away).div(max(1, len(z) - 1)).numpy()

    @torch.no_grad()
    def over_prior(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """For a topmost latent of two numbers: its prior's quantiles [2, q] at `shares` [q], and E[x | z] over their grid
        [q, q, columns], the first number along the second dimension. Latents between it and x stand at their means.

        None where there are discrete latents, z is of another size, or x has no mean.
        """
        if any(s.discrete for s in self.sites) or not len(self.columns):
            return None
        try:
            node = self._trace(None, PRIOR_DRAWS, {}).nodes[self.top.name]
            values = self._by_row(node, "value")
            if values.shape[1] != 2:
                return None
            quantiles = _quantiles(cast(Distribution, node["fn"]), values, torch.as_tensor(shares, dtype=values.dtype))
            first, second = torch.meshgrid(quantiles[0], quantiles[1], indexing="xy")
            shape = (-1, *(size for _, size in self.top.inner_dims), *self.top.event_shape)
            known = {self.top.name: torch.stack([first, second], -1).reshape(shape)}
            for site in self.sites[1:]:
                below = self._by_row(self._trace(None, len(shares) ** 2, known).nodes[site.name], "mean")
                known[site.name] = below.reshape(-1, *(size for _, size in site.inner_dims), *site.event_shape)
            made = self.decoded(known)
        except (UsageError, NotImplementedError):
            return None
        return None if made is None else (quantiles.numpy(), made.reshape(len(shares), len(shares), -1))


def _dtype(values: np.ndarray, task: Task) -> torch.dtype | None:
    return task.x.dtype if np.issubdtype(values.dtype, np.floating) else None


def _quantiles(fn: Distribution, values: Tensor, shares: Tensor) -> Tensor:
    """Quantiles [2, q] of the two numbers of a site: from its family, or else of its draws [n, 2]."""
    base = base_of(fn)
    try:
        found = base.icdf(shares.reshape(-1, *(1,) * len(base.batch_shape)))
        found = found.expand(len(shares), *base.batch_shape).reshape(len(shares), len(values), 2)
        if bool((found == found[:, :1]).all()):
            return found[:, 0].mT
    except (NotImplementedError, RuntimeError, AttributeError):
        pass
    return torch.quantile(values, shares, dim=0).mT
