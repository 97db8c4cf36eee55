"""What an inference method returns: a `Fit`, with typed `Evidence`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from inference._run.impute import Imputation

Kind = Literal["exact", "lower bound", "estimate"]


@dataclass(frozen=True)
class Evidence:
    """log p(x), in nats, and what kind of statement it is.

    - `value`: the total over the data (plus, where global latents are integrated out, their share).
    - `kind`: "exact"; "lower bound" (the expectation of `value` lies below the truth); or "estimate".
    - `se`: Monte Carlo standard error of `value`; 0 for a deterministic figure; None where there is none to give
      (a deterministic approximation, such as Laplace's).
    - `per_datum`: [n] log p(x_i), or None where the evidence does not split over the data.
    - `se_per_datum`: [n] the standard error of each; None where there is none to give, or none is needed.
    - `given`: what it is conditional on besides θ, in words ("the posterior mode of locs, weights"); "" when nothing.
    """

    value: float
    se: float | None
    kind: Kind
    per_datum: np.ndarray | None = None
    given: str = ""
    se_per_datum: np.ndarray | None = None

    @classmethod
    def from_per_datum(
        cls, per_datum: np.ndarray, kind: Kind, se_per_datum: np.ndarray | None = None, given: str = ""
    ) -> Evidence:
        """Evidence of independent rows: the sum of [n] terms; `se_per_datum` [n] are independent standard errors."""
        se = 0.0 if se_per_datum is None else float(np.sqrt(np.square(se_per_datum).sum()))
        return cls(float(np.sum(per_datum)), se, kind, np.asarray(per_datum), given, se_per_datum)

    def plus(self, constant: float) -> Evidence:
        """The same with what is observed outside the rows, in nats."""
        return self if constant == 0 else replace(self, value=self.value + constant)

    def to_json(self, n: int) -> dict[str, Any]:
        """`{value, se, kind, per_datum_mean}`, and `given` where the evidence is conditional."""
        out: dict[str, Any] = {
            "value": _finite(self.value),
            "se": _finite(self.se),
            "kind": self.kind,
            "per_datum_mean": _finite(self.value / n),
        }
        return out | ({"given": self.given} if self.given else {})


@dataclass(frozen=True)
class GlobalGaussian:
    """q(globals): a Gaussian in unconstrained coordinates."""

    coordinates: Any  # inference._numerics.coordinates.Coordinates
    mean: Any  # [d] tensor
    scale_tril: Any  # [d, d] tensor


@dataclass
class Fit:
    """θ, q(z | x), evidence and diagnostics of one method on one program and data set.

    What a method fills in is in the first block; the runner adds the second. Arrays are numpy, in the dtype of the run.
    """

    # by the method
    parameters: dict[str, np.ndarray]  # θ̂, and the point value of each global latent, constrained
    claimed: Evidence | None  # None where the method says nothing of the evidence
    draws: dict[str, np.ndarray] = field(default_factory=dict)  # latent site -> [draws, ...]; locals [draws, n, ...]
    means: dict[str, np.ndarray] = field(default_factory=dict)  # continuous or 0/1 local site -> its mean [n, ...]
    deviations: dict[str, np.ndarray] = field(default_factory=dict)  # the same, posterior standard deviation
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)  # discrete local site -> [n, ..., support]
    standard_errors: dict[str, np.ndarray] = field(default_factory=dict)  # like `parameters`
    khat: np.ndarray | None = None  # [n], PSIS shape of the importance weights of each datum
    ess: np.ndarray | None = None  # [n], effective sample size of each datum
    trace: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [iterations]
    converged: bool | None = None
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # method-specific facts, JSON-ready
    guide: Any = None  # the fitted Pyro guide, where the method has one
    global_gaussian: GlobalGaussian | None = None  # q over the global latents, where the method has one

    # by the runner
    model: str = ""
    data: str = ""
    method: str = ""
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # {"model": …, "method": …, "data": …, "limit": …}
    verified: Evidence | None = None
    local_sites: tuple[str, ...] = ()
    x: np.ndarray | None = None  # [n, ...] the observed data, NaN where unobserved
    columns: tuple[str, ...] = ()
    center: np.ndarray | None = None  # what standardising subtracted, [...] of one row
    scale: np.ndarray | None = None  # and divided by
    task: Any = None
    image_shape: tuple[int, int] | None = None  # rows and columns, where each datum is an image
    labels: np.ndarray | None = None  # [n] class labels of the data set, where it has them
    observed: dict[str, np.ndarray] = field(default_factory=dict)  # observed site -> its part of x [n, ...]
    predictive: dict[str, np.ndarray] = field(default_factory=dict)  # the same, and "x" -> simulated [draws, n, ...]
    log_likelihood: np.ndarray | None = None  # [draws, n] log p(x_i | θ draw), only where θ has draws
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    learned: bool = True  # whether θ is this fit's own, rather than of another run
    program: Any = None
    run: str | None = None  # the run folder, once saved

    @property
    def n(self) -> int:
        """Number of data."""
        return 0 if self.x is None else len(self.x)

    def impute(self, draws: int = 20, seed: int | None = None) -> Imputation:
        """Mean, standard deviation and joint draws of the unobserved entries, in the data's own units.

        Given the globals at their point values, where there are any. `seed`: the fit's own when None.
        """
        from inference._run.runner import imputed

        return imputed(self, draws, self.seed if seed is None else seed)

    def save(self, out: str | os.PathLike[str]) -> str:
        """Write the run folder `out`, whole or not at all; returns its path."""
        from inference._run.folder import check_out, save

        return str(save(self, check_out(out)))

    def loo(self, **options: Any) -> Any:
        """PSIS-LOO by `arviz_stats.loo`, which takes the `options`. Raises `UsageError` where θ has no draws."""
        from inference._run.datatree import loo

        return loo(self, **options)

    @property
    def idata(self) -> Any:
        """The fit as an `xarray.DataTree` in ArviZ's schema."""
        from inference._run.datatree import to_datatree

        return to_datatree(self)

    def to_json(self) -> dict[str, Any]:
        """The object that `zoo run … --json` prints. Parameters of more than 1,000 numbers are left out."""
        document = {
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "seed": self.seed,
            "status": "ok",
            "reason": None,
            "n": self.n,
            "log_evidence": None if self.claimed is None else self.claimed.to_json(self.n),
            "verified_log_evidence": None if self.verified is None else self.verified.to_json(self.n),
            "khat": _khat(self.khat),
            "converged": self.converged,
            "seconds": round(self.seconds, 4),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "run": self.run,
            "parameters": _small(self.parameters),
            "standard_errors": _small(self.standard_errors),
            "options": self.options,
            "warnings": self.warnings,
            "notes": self.notes,
            "versions": self.versions,
        }
        return {k: _strict(v) for k, v in document.items()}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _small(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: np.asarray(v).tolist() for k, v in arrays.items() if np.size(v) <= 1000}


def _khat(khat: np.ndarray | None) -> dict[str, float | None] | None:
    if khat is None:
        return None
    return {"max": _finite(float(np.max(khat))), "frac_above_0.7": float(np.mean(~(khat <= 0.7)))}
