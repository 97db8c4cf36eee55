"""Parameters with names for their entries: a dictionary that is also a table, and what finds which axis is the columns'.

That an axis of a parameter has as many entries as x has columns proves nothing: two weights are not the weights of two
columns. So the axis is found by differentiation. With x's columns (height, weight) and locs [K, 2], the observed site's
parameters for `height` change with locs[:, 0] and with no other entry along that axis, and so for every column: axis 1 of locs
belongs to the columns. For mixture weights [2] no such axis is found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from inference._families._registry import base_of
from inference._method.fit import Arrays
from inference._method.task import Task
from zoo._program.trace import node_of

if TYPE_CHECKING:
    import pandas as pd

MOST_NUMBERS = 10_000  # of a parameter that stands in a table entry by entry
MOST_COLUMNS = 256  # of x, for which axes are looked for: each costs a derivative
LOOKED_AT = 20  # rows
INTERVAL = (0.025, 0.975)
Axes = dict[str, tuple[int, ...]]  # parameter → its axes that belong to the columns of x
MATRICES = ("CorrCholesky", "LowerCholesky", "PositiveDefinite", "PositiveSemidefinite", "Symmetric", "LowerTriangular")


@dataclass(frozen=True)
class Known:
    """What is known of parameters beside their values."""

    columns: tuple[str, ...] = ()  # of x
    axes: Axes = field(default_factory=dict)
    errors: Arrays = field(default_factory=dict)  # standard errors
    draws: Arrays = field(default_factory=dict)  # posterior draws [draws, …]


class Parameters(dict[str, np.ndarray]):
    """Name → value, constrained; and the same as a table.

    >>> import numpy as np
    >>> found = Parameters({"weights": np.array([0.4, 0.6])}, Known(errors={"weights": np.array([0.1, 0.1])}))
    >>> print(found.to_frame().to_string(index=False))
       name index  estimate  se
    weights     0       0.4 0.1
    weights     1       0.6 0.1
    """

    def __init__(self, values: Mapping[str, np.ndarray], known: Known | Callable[[], Known] = Known()) -> None:
        super().__init__(values)
        self._known = known

    @property
    def known(self) -> Known:
        """What is known beside the values; found when it is first needed."""
        if not isinstance(self._known, Known):
            self._known = self._known()
        return self._known

    def __reduce__(self) -> tuple[type[Parameters], tuple[dict[str, np.ndarray], Known]]:
        return Parameters, (dict(self), self.known)

    def to_frame(self, most: int | None = None) -> pd.DataFrame:
        """A row for each number: `name`, `index` (of the entry, a column of x by its name), `estimate`; and where they are
        known `se` (standard error), `sd` (of the posterior draws), `lower` and `upper` (their central 95%).

        `most`: leave out parameters of more numbers.
        """
        import pandas as pd

        return pd.DataFrame(self.table(most))

    def table(self, most: int | None = None) -> dict[str, np.ndarray]:
        """The columns of `to_frame`."""
        chosen = {k: np.asarray(v) for k, v in self.items() if most is None or np.size(v) <= most}
        text: dict[str, list[str]] = {"name": [], "index": []}
        for name, value in chosen.items():
            text["name"] += [name] * value.size
            text["index"] += self.index(name)
        out = {k: np.asarray(v, dtype=object) for k, v in text.items()}
        out["estimate"] = _joined([v.reshape(-1) for v in chosen.values()])
        for what, arrays in self._spreads().items():
            if any(name in arrays for name in chosen):
                parts = [arrays.get(name, np.full(v.shape, np.nan)).reshape(-1) for name, v in chosen.items()]
                out[what] = _joined(parts)
        return out

    def index(self, name: str) -> list[str]:
        """The index of each entry, in the order of the table: "0, height" of locs [K, 2]."""
        shape = np.shape(self[name])
        axes = self.known.axes.get(name, ())
        labels: list[Sequence[object]] = [
            self.known.columns if a in axes and len(self.known.columns) == size else range(size)
            for a, size in enumerate(shape)
        ]
        return [", ".join(map(str, entry)) for entry in itertools.product(*labels)]

    def _spreads(self) -> dict[str, Arrays]:
        errors = {k: np.asarray(v, dtype=float) for k, v in self.known.errors.items() if np.shape(v) == self._shape(k)}
        drawn = {k: v for k, v in self.known.draws.items() if np.shape(v)[1:] == self._shape(k) and len(v) > 1}
        low, high = ({k: np.quantile(v, q, axis=0) for k, v in drawn.items()} for q in INTERVAL)
        return {"se": errors, "sd": {k: v.std(0) for k, v in drawn.items()}, "lower": low, "upper": high}

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return np.shape(self[name]) if name in self else None


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def column_axes(task: Task, globals: Mapping[str, Tensor]) -> Axes:
    """For each parameter (or global latent) of the program the axes that belong to the columns of x, where any do."""
    x = task.x
    if x.dim() != 2 or not 1 < x.shape[1] <= MOST_COLUMNS or len(task.structure.observed) != 1:
        return {}
    values = {n: v.detach().clone().requires_grad_() for n, v in task.program.values().items()}
    values = {n: v for n, v in values.items() if v.numel() <= MOST_NUMBERS and v.is_floating_point()}
    at = {n: v.detach().clone().requires_grad_() for n, v in globals.items() if v.is_floating_point()}
    everything = {n: v for n, v in {**values, **at}.items() if x.shape[1] in v.shape}
    if not everything:
        return {}
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            probe = x[:LOOKED_AT].nan_to_num(0.0)
            node = node_of(
                task.program.trace(probe, parameters=values, latents={**globals, **at}), task.structure.observed[0].name
            )
            if node["value"].shape != probe.shape or not torch.equal(node["value"].to(probe.dtype), probe):
                return {}  # the site does not observe the columns of x in their order
            sums = _column_sums(node["fn"], x.shape[1])
            gradients = [_gradients(s, list(everything.values())) for s in sums]
    except (RuntimeError, ValueError, NotImplementedError):  # names are a help: without them there are numbers
        return {}
    out: Axes = {}
    for k, (name, value) in enumerate(everything.items()):
        each = [g[k] for g in gradients]
        own = [a for a in range(value.dim()) if value.shape[a] == len(each) and _is_columns(each, a)]
        if len(own) == 1 and _is_matrix(task, name):
            own = [value.dim() - 2, value.dim() - 1]
        if own and each:
            out[name] = tuple(own)
    return out


def _column_sums(fn: torch.distributions.Distribution, D: int) -> list[Tensor]:
    """For each column a sum of the site's parameters for it, each entry with a weight of its own."""
    base = base_of(fn)
    generator = torch.Generator().manual_seed(1)
    by_column = []
    for name, constraint in base.arg_constraints.items():
        value = base.__dict__.get(name)
        # which axis is x's: of a normal's loc [n, D] the last, of a covariance [n, D, D] its row, of probs [n, D, K] before K
        axis = -max(1, constraint.event_dim) if base.event_shape else -1 - constraint.event_dim
        if isinstance(value, Tensor) and value.requires_grad and value.dim() >= -axis and value.shape[axis] == D:
            weights = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value)
            by_column.append((value * weights).movedim(axis, 0))
    if not by_column:
        return []
    return [torch.stack([w[d].sum() for w in by_column]).sum() for d in range(D)]


def _gradients(total: Tensor, values: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, values, strict=True)]


def _is_columns(gradients: list[Tensor], axis: int) -> bool:
    """Whether column d depends on index d along the axis, and on no other index, for every d."""
    for d, gradient in enumerate(gradients):
        moved = gradient.movedim(axis, 0).flatten(1) if gradient.dim() > 1 else gradient.reshape(-1, 1)
        used = (moved != 0).any(1)
        if not bool(used[d]) or int(used.sum()) != 1:
            return False
    return bool(gradients)


def _is_matrix(task: Task, name: str) -> bool:
    constraint = task.program.constraints.get(name) or task.global_supports.get(name)
    value = task.program.values().get(name)
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    kind = type(constraint).__name__.replace("_", "").lower()
    square = value is None or (value.dim() >= 2 and value.shape[-1] == value.shape[-2])
    return square and any(m.lower() in kind for m in MATRICES)
