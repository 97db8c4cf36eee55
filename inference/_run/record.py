"""What a run found, with all that belongs to it, as plain values. `result.Run` is one that can be saved, drawn and asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from inference._answers.parameters import Axes, Known, Parameters
from inference._method.fit import Arrays, Evidence, Fit, GlobalGaussian, finite
from inference._run.cost import Cost
from inference._run.predictive import Predicted
from inference._run.request import Request
from zoo._data.datasets import Dataset

ROW_WEIGHTS = "row_weights"  # their name in a run's file: a parameter may well be called weights
SMALL = 1000  # numbers of a parameter that JSON holds


@dataclass(repr=False, eq=False)
class Record:
    """A request, what its method found, and what the runner adds: a second look at the evidence, the cost, the data.

    Everything that belongs to one of these parts can be asked of the whole: `run.parameters` is `run.fit.parameters`.
    """

    request: Request
    fit: Fit
    verified: Evidence | None
    cost: Cost
    dataset: Dataset  # as the method saw it, in the dtype of the run
    model: str = ""  # its name; a callable's own where it has no other
    options: dict[str, object] = field(
        default_factory=dict
    )  # as taken: {"model": …, "method": …, "data": …, "limit": …}
    predicted: Predicted = field(default_factory=Predicted)
    local_sites: tuple[str, ...] = ()  # latent sites inside the plate `data`
    learned: bool = True  # whether θ is this run's own, rather than another's
    source: dict[str, str] | None = None  # the fingerprint of the program's text
    run: str | None = None  # the run folder, once saved
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())  # when it was made

    # ---- of the request and the data

    @property
    def method(self) -> str:
        """The method's name."""
        return "em" if self.request.method is None else self.request.method

    @property
    def seed(self) -> int:
        """The seed of the method."""
        return self.request.seed

    @property
    def data(self) -> str:
        """The name of the data; they themselves are `x`, and all that is known of them `dataset`."""
        return self.dataset.name

    @property
    def x(self) -> np.ndarray:
        """The data [n, …], NaN where unobserved, as prepared."""
        return self.dataset.x

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.dataset.x)

    @property
    def count(self) -> float:
        """How many rows the data stand for: Σ w, their number where each counts once. The n of BIC."""
        return self.n if self.dataset.weights is None else float(np.sum(self.dataset.weights))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a table; () where there are none."""
        return self.dataset.columns

    @property
    def labels(self) -> np.ndarray | None:
        """Class labels of the rows [n], where the data have them. Only a model that is told them sees them."""
        return self.dataset.labels

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(rows, columns), where each row is an image."""
        return self.dataset.image_shape

    @property
    def center(self) -> np.ndarray | None:
        """What standardising subtracted, [...] of one row."""
        return self.dataset.center

    @property
    def scale(self) -> np.ndarray | None:
        """What standardising divided by, [...] of one row."""
        return self.dataset.scale

    # ---- of the fit

    @property
    def parameters(self) -> Parameters:
        """θ̂, and the point value of each global latent, constrained; `.to_frame()` makes a table of them."""
        return Parameters(self.fit.parameters, self.known_of_parameters)

    def known_of_parameters(self) -> Known:
        """What is known of the parameters beside their values."""
        drawn = {k: v for k, v in self.draws.items() if k not in self.local_sites}
        return Known(self.columns, self.column_axes(), self.standard_errors, drawn)

    def column_axes(self) -> Axes:
        """Parameter → its axes that belong to the columns of the data."""
        return {}

    @property
    def claimed(self) -> Evidence | None:
        """The evidence that the method claims; None where it claims none."""
        return self.fit.claimed

    @property
    def draws(self) -> Arrays:
        """Latent site → posterior draws [draws, …]; of a local one [draws, n, …]."""
        return self.fit.draws

    @property
    def means(self) -> Arrays:
        """Continuous or 0/1 local site → its posterior mean [n, …]."""
        return self.fit.means

    @property
    def deviations(self) -> Arrays:
        """The same, posterior standard deviation."""
        return self.fit.deviations

    @property
    def probabilities(self) -> Arrays:
        """Discrete local site → the posterior of its values [n, …, support]."""
        return self.fit.probabilities

    @property
    def standard_errors(self) -> Arrays:
        """Of the parameters, where the method gives them."""
        return self.fit.standard_errors

    @property
    def khat(self) -> np.ndarray | None:
        """PSIS k-hat of each row [n]: above 0.7 its importance weights cannot be trusted."""
        return self.fit.khat

    @property
    def ess(self) -> np.ndarray | None:
        """Effective sample size of each row [n]."""
        return self.fit.ess

    @property
    def trace(self) -> Arrays:
        """What was followed over the iterations."""
        return self.fit.trace

    @property
    def chains(self) -> Arrays:
        """What a sampler says of each draw [chains, draws of each chain]; the draws stand chain after chain."""
        return self.fit.chains

    @property
    def converged(self) -> bool | None:
        """Whether the method ended because there was nothing more to gain; None where that is not known."""
        return self.fit.converged

    @property
    def warnings(self) -> list[str]:
        """What is to be known of the data and the result, in sentences."""
        return self.fit.warnings

    @property
    def notes(self) -> Mapping[str, object]:
        """Facts of this method."""
        return self.fit.notes

    @property
    def guide(self) -> nn.Module | None:
        """The fitted guide q(z | x), where the method has one; None in a run that was read back."""
        return self.fit.guide

    @property
    def global_gaussian(self) -> GlobalGaussian | None:
        """q over the global latents, where the method has one; None in a run that was read back."""
        return self.fit.global_gaussian

    # ---- of the cost and the predictions

    @property
    def seconds(self) -> float:
        """Wall-clock time of the method."""
        return self.cost.seconds

    @property
    def peak_memory_mb(self) -> float:
        """The most memory that the process held meanwhile."""
        return self.cost.peak_mb

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that the numbers depend on."""
        return self.cost.versions

    @property
    def observed(self) -> Arrays:
        """Observed site → its part of x [n, …]."""
        return self.predicted.observed

    @property
    def predictive(self) -> Arrays:
        """Observed site, and "x" → data simulated at draws [draws, n, …]."""
        return self.predicted.simulated

    @property
    def log_likelihood(self) -> np.ndarray | None:
        """log p(x_i | draw of θ) [draws, n], where θ has draws."""
        return self.predicted.log_likelihood

    # ---- as text

    def to_json(self) -> dict[str, Any]:
        """The object that `zoo run … --json` prints. Parameters of more than 1,000 numbers are left out."""
        document: dict[str, object] = {
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "seed": self.seed,
            "status": "ok",
            "reason": None,
            "n": self.n,
            **({} if self.dataset.weights is None else {"count": self.count}),
            "log_evidence": None if self.claimed is None else self.claimed.to_json(self.count),
            "verified_log_evidence": None if self.verified is None else self.verified.to_json(self.count),
            "khat": _khat(self.khat),
            "converged": self.converged,
            "seconds": round(self.seconds, 4),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "run": self.run,
            "parameters": _small(self.parameters),
            "standard_errors": _small(self.standard_errors),
            "options": self.options,
            "warnings": self.warnings,
            "notes": dict(self.notes),
            "versions": self.versions,
        }
        return {k: _strict(v) for k, v in document.items()}

    def to_document(self) -> dict[str, object]:
        """`to_json`, with what else `run.json` says: the columns, their units, the shape of images, the guide, the request."""
        guide = self.guide_recipe()
        return {
            **self.to_json(),
            "columns": list(self.columns),
            "center": None if self.center is None else np.asarray(self.center).tolist(),
            "scale": None if self.scale is None else np.asarray(self.scale).tolist(),
            "image_shape": self.image_shape,
            "column_axes": self.column_axes(),
            "created": self.created,
            "learned": self.learned,
            "guide": guide,
            "program": self.source,
            "request": self.request.to_json(),
        }

    def guide_recipe(self) -> object:
        """The recipe from which the guide can be built again; None without a guide."""
        return getattr(self.guide, "recipe", None)

    def __repr__(self) -> str:
        """Six lines: what was fitted to what, how, the evidence, the check of it, the verdict, the cost."""
        shape = " × ".join(map(str, self.x.shape))
        verdict = {True: "converged", False: "did not converge", None: str(self.notes.get("ended", ""))}[self.converged]
        parts = [verdict if self.learned else "θ kept"]
        if self.khat is not None:
            parts.append(f"k-hat above 0.7 for {float(np.mean(~(self.khat <= 0.7))):.1%} of the rows")
        parts.append(f"{len(self.warnings) or 'no'} warning{'s' * (len(self.warnings) != 1)}")
        lines = [
            f"{type(self).__name__} of {_with(self.model, self.options.get('model'))} on {self.data} ({shape})",
            f"by {_with(self.method, self.options.get('method'))}, seed {self.seed}",
            "log p(x): no claim" if self.claimed is None else f"log p(x) = {self.claimed}",
            "verified: no" if self.verified is None else f"verified: {self.verified}",
            "; ".join(filter(None, parts)),
            f"{self.seconds:.2f} s; " + ("not saved" if self.run is None else f"in '{self.run}'"),
        ]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Refused:
    """A method's refusal, in the shape of a result."""

    model: str
    data: str
    method: str
    seed: int
    n: int | None
    reason: str

    def to_json(self) -> dict[str, object]:
        """The fields of a run's JSON, null where a refusal has no value."""
        nothing = dict.fromkeys(
            ("log_evidence", "verified_log_evidence", "khat", "seconds", "peak_memory_mb", "run", "parameters")
        )
        return {**vars(self), "status": "refused", **nothing}


def _with(name: str, options: object) -> str:
    """A name with its options: "gmm (components=2)"."""
    if not isinstance(options, Mapping) or not options:
        return Path(name).name
    return f"{Path(name).name} ({', '.join(f'{k}={v}' for k, v in options.items())})"


def _strict(value: object) -> object:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _small(arrays: Arrays) -> dict[str, object]:
    return {k: np.asarray(v).tolist() for k, v in arrays.items() if np.size(v) <= SMALL}


def _khat(khat: np.ndarray | None) -> dict[str, float | None] | None:
    if khat is None:
        return None
    return {"max": finite(float(np.max(khat))), "frac_above_0.7": float(np.mean(~(khat <= 0.7)))}
