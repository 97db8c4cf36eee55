"""What an enumerable program says at a run's own θ: densities, component means and covariances, responsibilities.

All come from the exact engine, for any method. A marginal density over one or two columns is log p of rows in
which every other column is unobserved: the program itself integrates them out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from inference._exact.densities import View
from inference._exact.enumeration import Enumeration
from inference._families._family import Family
from inference._families._gaussian import Gaussian
from inference._loadings.affine import columns_of
from inference._method.task import Task
from inference._pictures._views.style import percent, plain
from zoo._errors import UsageError
from zoo._program.source import blame

DRAWN_ROWS = 20_000  # more points say no more
NUMBERS = 2**22  # numbers in one block of rows: bounds the memory


def drawn_rows(n: int) -> np.ndarray:
    """Those of n rows that are drawn, in their order."""
    if n <= DRAWN_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, DRAWN_ROWS, replace=False))


class Oracle:
    """The program of a run at the run's own point: log p(x, a) of any rows, exactly."""

    def __init__(self, task: Task) -> None:
        self.task, self.globals = task, task.global_start()
        self.rows = index = drawn_rows(len(task.x))
        self.x = task.x.numpy().reshape(len(task.x), -1)[index]  # [drawn, D]
        self.exact = self._engine(task.x[index])
        self.A = self.exact.A

    def _engine(self, x: torch.Tensor) -> Enumeration:
        with blame(self.task.program.name), torch.no_grad():
            return Enumeration(self.task.program, self.task.structure, x)

    @torch.no_grad()
    def joint(self, x: np.ndarray) -> np.ndarray:
        """log p(x_i, a) [rows, A] of rows [rows, D], nats. Raises `UsageError` where the program cannot say."""
        out = []
        most = max(2, NUMBERS // (x.shape[1] * self.A))
        for rows in torch.as_tensor(x).reshape(len(x), *self.task.x.shape[1:]).split(most):
            exact = self._engine(rows)
            with blame(self.task.program.name):
                views, _ = exact.views(None, self.globals)
                out.append(exact.log_joint(slice(0, len(rows)), views, None, self.globals).detach())
        return torch.cat(out).numpy()

    @cached_property
    def responsibilities(self) -> np.ndarray:
        """p(a | x_i) [drawn, A]."""
        return self.exact.responsibilities(None, self.globals).numpy()

    def marginal(self, points: np.ndarray, columns: Sequence[int]) -> np.ndarray:
        """log p(x, a) [points, A] of points [points, c] in a few columns, the others unobserved; nats."""
        covariance, prior = self.covariance(columns), self._log_prior
        if covariance is not None and prior is not None and len(columns) < self.x.shape[1]:
            # a normal's marginal is known: hundreds of columns need not be integrated out for each point
            means = torch.as_tensor(self.means[:, list(columns)])
            with blame(self.task.program.name):
                normal = torch.distributions.MultivariateNormal(means, torch.as_tensor(covariance))
                return prior + normal.log_prob(torch.as_tensor(points).unsqueeze(1)).numpy()
        rows = np.full((len(points), self.x.shape[1]), np.nan)
        rows[:, list(columns)] = points
        return self.joint(rows)

    @cached_property
    def _log_prior(self) -> np.ndarray | None:
        """log p(a) [A]: the joint of a row with nothing observed. None where it depends on the row's own data."""
        try:
            prior = self.joint(np.full((2, self.x.shape[1]), np.nan))[0]
        except UsageError:
            return None
        return prior if abs(np.exp(prior).sum() - 1) < 1e-6 else None

    @cached_property
    def weights(self) -> np.ndarray:
        """p(a) [A], or the share of the data where a program has none that is the same for all rows."""
        return self.responsibilities.mean(0) if self._log_prior is None else np.exp(self._log_prior)

    @cached_property
    def order(self) -> np.ndarray:
        """The components, the heaviest first."""
        return np.argsort(-self.weights, kind="stable")

    def label(self, a: int) -> str:
        """ "z = 1"; "" for a program without latents."""
        return plain(re.sub(r"(\d)\.0(?!\d)", r"\1", self.exact.label(a)).replace("=", " = "))

    def caption(self, a: int) -> str:
        """ "z = 1, 36 %"."""
        return f"{self.label(a)}, {percent(self.weights[a])}"

    def at(self, a: int, columns: Sequence[int]) -> tuple[float, float]:
        """A component's mean in two columns."""
        x, y = self.means[a, list(columns)].tolist()
        return x, y

    @cached_property
    def _views(self) -> list[View]:
        with torch.no_grad():
            return self.exact.views(None, self.globals)[0]

    @cached_property
    def _sites(self) -> dict[str, tuple[Distribution, np.ndarray]]:
        """Observed site → (its distribution on two rows under all assignments, the column of x of each entry or −1)."""
        seen = np.argsort(np.isnan(self.x).sum(1), kind="stable")[:200]
        few = self.task.x[self.rows[np.sort(seen)]]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), blame(self.task.program.name):
            plain = self.task.program.trace(few, latents=self.globals, raw=True)
            latents = {**self.exact.assignments, **self.globals}
            probe = self.task.program.trace(few[[0, -1]].nan_to_num(0.0), latents=latents, raw=True)
        x = few.reshape(len(few), -1)
        out: dict[str, tuple[Distribution, np.ndarray]] = {}
        for site in self.task.structure.observed:
            value = plain.nodes[site.name]["value"]
            if value is not None and site.scope == "local" and value.shape[:1] == x.shape[:1]:
                out[site.name] = (
                    cast(Distribution, probe.nodes[site.name]["fn"]),
                    columns_of(value.reshape(len(x), -1), x),
                )
        return out

    @cached_property
    def means(self) -> np.ndarray:
        """E[x | a] [A, D]: the site's own mean, or the data's by responsibility where it has none."""
        seen = ~np.isnan(self.x)
        counts = self.responsibilities.T @ seen
        means = self.responsibilities.T @ np.where(seen, self.x, 0.0) / np.maximum(counts, 1e-300)
        means[counts < 1e-9] = np.nan
        for fn, columns in self._sites.values():
            own = _mean_of(fn, self.A)
            if own is not None and own.shape[1] == len(columns):
                use = (columns >= 0) & np.isfinite(own).all(0)
                means[:, columns[use]] = own[:, use]
        return means

    def support(self, column: int) -> Constraint | None:
        """The constraint on a column's values, or None where its site has none entry by entry."""
        for fn, columns in self._sites.values():
            if column in columns:
                support = fn.support
                while support is not None and hasattr(support, "base_constraint"):
                    support = support.base_constraint
                return None if support is None or support.event_dim else support
        return None

    def is_whole(self, column: int) -> bool:
        """Whether a column's values are counts or categories."""
        return bool(getattr(self.support(column), "is_discrete", False))

    def is_binary(self, column: int) -> bool:
        values = self.x[:, column]
        return self.is_whole(column) and bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())

    @cached_property
    def gaussian(self) -> bool:
        """Whether every column is Gaussian given the component."""
        return self.covariance(list(range(self.x.shape[1]))[:2]) is not None and all(
            isinstance(self.exact.families.get(n), Gaussian) for n in self._sites
        )

    def covariance(self, columns: Sequence[int]) -> np.ndarray | None:
        """Cov(x | a) [A, c, c] of a few columns, where they are Gaussian given the component; else None."""
        out, known = np.zeros((self.A, len(columns), len(columns))), set()
        for view in self._views:
            entries = self._sites[view.name][1].tolist() if view.name in self._sites else []
            place = [i for i, c in enumerate(columns) if c in entries]
            if place:
                block = _block(self.exact.families.get(view.name), view, [entries.index(columns[i]) for i in place])
                if block is None:
                    return None
                out[np.ix_(range(self.A), place, place)] = block
                known |= set(place)
        return out if len(known) == len(columns) else None

    def spread(self, columns: Sequence[int]) -> np.ndarray:
        """About how far each component reaches in a few columns: standard deviations [A, c]."""
        covariance = self.covariance(columns)
        if covariance is not None:
            return np.sqrt(np.diagonal(covariance, 0, 1, 2))
        x, seen = self.x[:, list(columns)], ~np.isnan(self.x[:, list(columns)])
        squares = [
            r @ np.where(seen, x - m, 0.0) ** 2
            for r, m in zip(self.responsibilities.T, self.means[:, list(columns)], strict=True)
        ]
        return np.sqrt(np.array(squares) / np.maximum(self.responsibilities.T @ seen, 1e-300))


def _mean_of(fn: Distribution, assignments: int) -> np.ndarray | None:
    """The mean [A, E] of a distribution over two rows, or None where it has none or differs from row to row."""
    try:
        mean = fn.mean
        mean = mean.expand(assignments, 2, *fn.event_shape).reshape(assignments, 2, -1)
    except (NotImplementedError, RuntimeError, AttributeError):
        return None
    return mean[:, 0].detach().numpy() if torch.equal(mean[:, 0], mean[:, 1]) else None


def _block(family: Family | None, view: View, entries: list[int]) -> np.ndarray | None:
    """The covariance [A, e, e] of some entries of a Gaussian site, or None for another family."""
    if view.params is None or not isinstance(family, Gaussian):
        return None
    return family.covariance({k: v.detach() for k, v in view.params.items()}, entries).numpy()
