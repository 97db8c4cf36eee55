"""Loadings as tables: rotated, with communalities, uniquenesses, explained variance, factor correlations, and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from inference._loadings import rotation as _rotation
from inference._loadings import scores as _scores
from inference._loadings.affine import Affine
from inference._method.task import Task
from zoo._data.datasets import Dataset
from zoo._errors import UsageError, unknown

HEYWOOD = 0.005  # the least share of noise in a column's variance that R's factanal allows
MOST_PRINTED = 60  # columns
OWN = "own"  # in place of a rotation: the program's own latents


@dataclass(frozen=True)
class Rows:
    """Rows to score, in the program's units."""

    x: np.ndarray  # [n, columns]
    names: tuple[str, ...] | None


@dataclass(frozen=True, repr=False, eq=False)
class Loadings:
    """The loadings of a run, columns by factors.

    `loadings` are regression weights of the columns on the factors, which have variance 1. `standardized`: the columns have
    variance 1 too, under the model; else they are in the data's own units. Factors come by the variance that they explain;
    the largest loading of each is positive.
    """

    loadings: pd.DataFrame  # Λ, columns × factors
    uniquenesses: pd.Series  # the noise's variance of each column
    correlations: pd.DataFrame  # Φ, of the factors: the identity unless the rotation is oblique
    rotation: str  # "none", "own", "varimax", …
    standardized: bool
    title: str  # of which run
    notes: tuple[str, ...] = ()  # what is to be known of these numbers
    _scorer: Callable[[object, _scores.Kind], pd.DataFrame] | None = field(default=None, repr=False)

    @property
    def communalities(self) -> pd.Series:
        """The variance of each column that the factors explain: diag Λ Φ Λᵀ."""
        return (self.loadings @ self.correlations * self.loadings).sum(axis=1).rename("communality")

    @property
    def structure(self) -> pd.DataFrame:
        """Λ Φ: where `standardized`, the correlations of columns and factors."""
        return self.loadings @ self.correlations

    @property
    def explained(self) -> pd.DataFrame:
        """SS loadings of each factor (diag Φ Λᵀ Λ, which adds up to the communalities), and their share of all variance."""
        sums = (self.loadings @ self.correlations * self.loadings).sum(axis=0)
        total = float(self.communalities.sum() + self.uniquenesses.sum())
        rows = {"SS loadings": sums, "Proportion Var": sums / total, "Cumulative Var": sums.cumsum() / total}
        return pd.DataFrame(rows).T

    def to_frame(self) -> pd.DataFrame:
        """One table: the loadings, and each column's communality and uniqueness."""
        return self.loadings.assign(communality=self.communalities, uniqueness=self.uniquenesses)

    def scores(self, data: object = None, kind: _scores.Kind = "regression") -> pd.DataFrame:
        """Scores of these factors, rows × factors; of the run's own rows where `data` is None.

        - `regression`: the posterior means E[f | x], drawn towards 0; `bartlett`: unbiased given the factors, with more
          variance.

        Each row is scored by the columns that it has. Bartlett's are NaN where those do not determine the factors.
        """
        if kind not in _scores.KINDS:
            raise unknown("kind of scores", str(kind), _scores.KINDS)
        assert self._scorer is not None
        return self._scorer(data, kind)

    @property
    def is_oblique(self) -> bool:
        """Whether the factors are correlated."""
        return bool((np.abs(self.correlations.to_numpy() - np.eye(len(self.correlations))) > 1e-12).any())

    def to_json(self) -> dict[str, object]:
        """JSON-ready: name → its numbers."""
        table = {name: dict(zip(self.loadings.columns, row, strict=True)) for name, row in _rows(self.loadings)}
        return {
            "rotation": self.rotation,
            "standardized": self.standardized,
            "loadings": table,
            "communalities": dict(zip(self.loadings.index, self.communalities.tolist(), strict=True)),
            "uniquenesses": dict(zip(self.loadings.index, self.uniquenesses.tolist(), strict=True)),
            "explained": {name: dict(zip(self.loadings.columns, r, strict=True)) for name, r in _rows(self.explained)},
            "correlations": {
                name: dict(zip(self.loadings.columns, r, strict=True)) for name, r in _rows(self.correlations)
            },
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        units = "standardised columns" if self.standardized else "columns in their own units"
        turned = {"none": "not rotated (principal axes)", OWN: "the program's own latents"}.get(
            self.rotation, self.rotation
        )
        parts = [f"Loadings of {self.title}\n{turned}; {units}", _text(self.to_frame()), _text(self.explained)]
        if self.is_oblique:
            parts.append(f"Factor correlations:\n{_text(self.correlations)}")
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])


def _rows(frame: pd.DataFrame) -> list[tuple[str, list[float]]]:
    return list(zip(frame.index, frame.to_numpy().tolist(), strict=True))


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(float_format=lambda v: f"{v:.3f}".replace("-0.000", "0.000"), max_rows=MOST_PRINTED)


# ------------------------------------------------------------------------------------------------------------ making


def table(
    affine: Affine,
    task: Task,
    dataset: Dataset,
    rows: Callable[[object], Rows],
    *,
    rotation: str | None = "varimax",
    standardized: bool = True,
    kaiser: bool | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Loadings:
    """The loadings of a program whose map is `affine`; `rows` puts data to be scored in its units.

    The rotation is found on standardised loadings, whichever are shown, so that no column counts more for its unit.
    """
    if rotation not in (None, "none", OWN, *_rotation.NAMES):
        raise unknown("rotation", str(rotation), ("none", OWN, *_rotation.NAMES))
    name = rotation or "none"
    noise, slopes = affine.noise[0], affine.coefficients[0]
    deviations = np.sqrt(np.square(slopes).sum(1) + affine.variances[0])
    if not (deviations > 0).all() or not np.isfinite(slopes).all():
        raise UsageError("loadings need columns whose variance under the model is a number above 0.")
    A = slopes / deviations[:, None]
    T, said = _turned(A, affine, name, kaiser)
    phi, turned = T.T @ T, A @ np.linalg.inv(T).T
    if name != OWN:
        T, phi, turned = _canonical(T, phi, turned)
    factors = _latent_names(task) if name == OWN else [f"F{k + 1}" for k in range(len(phi))]
    names = _column_names(dataset, affine.columns)
    own = np.ones_like(deviations) if dataset.scale is None else dataset.scale.reshape(-1)[affine.columns]
    units = np.ones_like(deviations) if standardized else deviations * own
    shares = affine.variances[0] / np.square(deviations)

    def scorer(data: object, kind: _scores.Kind) -> pd.DataFrame:
        given = rows(data)
        x = given.x.reshape(len(given.x), -1)[:, affine.columns] - affine.offset[0]
        found = _scores.scores(x, turned * deviations[:, None], phi, noise, kind)
        index = None if given.names is None else pd.Index(given.names)
        return pd.DataFrame(found, index=index, columns=factors)

    return Loadings(
        loadings=pd.DataFrame(turned * units[:, None], index=names, columns=factors),
        uniquenesses=pd.Series(shares * np.square(units), index=names, name="uniqueness"),
        correlations=pd.DataFrame(phi, index=factors, columns=factors),
        rotation=name,
        standardized=standardized,
        title=title,
        notes=(*notes, *said, *_heywood(names, shares)),
        _scorer=scorer,
    )


def _turned(A: np.ndarray, affine: Affine, name: str, kaiser: bool | None) -> tuple[np.ndarray, list[str]]:
    """T, by which the factors are f = Tᵀ u; and what is to be said of it."""
    if name == OWN:  # f is z in units of its standard deviation: z = S u
        root = affine.root[0]
        return (root / np.sqrt(np.square(root).sum(1, keepdims=True))).T, []
    slopes, noise = affine.coefficients[0], affine.noise[0]
    white = slopes / np.sqrt(noise)[:, None] if noise.ndim == 1 else np.linalg.solve(np.linalg.cholesky(noise), slopes)
    axes = np.linalg.svd(white, full_matrices=len(white) < white.shape[1])[2].T  # where Bᵀ Ψ⁻¹ B is diagonal
    if name == "none":
        return axes, []
    if name in _rotation.OBLIQUE and np.linalg.cond(A @ axes) > 1e8:
        raise UsageError(f"{name} needs factors that all have loadings; take varimax, or fewer latents.")
    found = _rotation.rotate(A @ axes, name, kaiser)  # type: ignore[arg-type]  # `table` looked at it
    said = [] if found.converged else [f"{name} did not converge: these loadings are near a best rotation, not at it."]
    if found.agreeing < found.starts:
        said.append(
            f"{name}: {found.agreeing} of {found.starts} starts ended at this rotation, the others at worse ones."
        )
    return axes @ found.T, said


def _canonical(T: np.ndarray, phi: np.ndarray, turned: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factors by the variance that they explain, the largest loading of each positive."""
    order = np.argsort(-((turned @ phi) * turned).sum(0), kind="stable")
    largest = turned[np.abs(turned).argmax(0), np.arange(turned.shape[1])]
    sign = np.where(largest < 0, -1.0, 1.0)[order]
    return T[:, order] * sign, phi[np.ix_(order, order)] * np.outer(sign, sign), turned[:, order] * sign


def _heywood(names: list[str], shares: np.ndarray) -> list[str]:
    few = [f"'{names[d]}'" for d in np.flatnonzero(shares < HEYWOOD)]
    if not few:
        return []
    which = f"column {few[0]} has" if len(few) == 1 else f"{len(few)} columns ({', '.join(few[:3])}) have"
    return [f"Heywood case: {which} next to no noise under the model; take fewer latents, or distrust these loadings."]


def _column_names(dataset: Dataset, columns: np.ndarray) -> list[str]:
    known = dataset.columns
    return [known[d] if d < len(known) else f"x{d}" for d in columns.tolist()]


def _latent_names(task: Task) -> list[str]:
    """The latents as the program names them: "z[0]", or "u" for one of a single number."""
    out = []
    for site in task.structure.continuous_locals:
        size = site.inner * int(np.prod(site.event_shape))
        out += [site.name] if size == 1 else [f"{site.name}[{k}]" for k in range(size)]
    return out
