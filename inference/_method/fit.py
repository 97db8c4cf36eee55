"""What an inference method returns: a `Fit`, with typed `Evidence`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from inference._numerics.coordinates import Coordinates
from inference._sampling.khat import EVEN, LIMIT

Arrays = dict[str, np.ndarray]
DRAWS_PER_ROW = "draws_per_row"  # the note of how many weights of each row `khat` and `ess` come from
Kind = Literal["exact", "lower bound", "estimate", "upper bound"]


@dataclass(frozen=True)
class Evidence:
    """log p(x), in nats, and what kind of statement it is.

        >>> import numpy as np
        >>> print(Evidence.from_per_datum(np.array([-1.0, -2.5]), "lower bound", np.array([0.3, 0.4])))
        -3.500 ± 0.500 nats, lower bound

    - `value`: the total over the data (plus, where global latents are integrated out, their share).
    - `kind`: "exact"; "lower bound" (the expectation of `value` lies below the truth); "estimate"; or "upper bound" (its
      expectation lies above the truth: of simulated data, `zoo bench sandwich`).
    - `se`: Monte Carlo standard error of `value`; 0 for a deterministic figure; None where there is none to give
      (a deterministic approximation, such as Laplace's).
    - `per_datum`: [n] log p(x_i), each row once, whatever its weight; or None where the evidence does not split over rows, or
      they are too many to be held twice.
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
        cls,
        per_datum: np.ndarray,
        kind: Kind,
        se_per_datum: np.ndarray | None = None,
        given: str = "",
        weights: np.ndarray | None = None,
    ) -> Evidence:
        """Evidence of independent rows: the sum of [n] terms; `se_per_datum` [n] are independent standard errors.

        `weights` [n]: how many times each row counts in the sum; None: once each.
        """
        se = 0.0 if se_per_datum is None else float(np.sqrt(np.square(weighed(se_per_datum, weights)).sum()))
        return cls(float(np.sum(weighed(per_datum, weights))), se, kind, np.asarray(per_datum), given, se_per_datum)

    def plus(self, constant: float) -> Evidence:
        """The same with what is observed outside the rows, in nats."""
        return self if constant == 0 else replace(self, value=self.value + constant)

    def __str__(self) -> str:
        """ "-1130.264 ± 0.112 nats, estimate"."""
        error = f" ± {self.se:.3f}" if self.se else ""
        return f"{self.value:.3f}{error} nats, {self.kind}" + (f" given {self.given}" if self.given else "")

    def to_json(self, n: float) -> dict[str, object]:
        """`{value, se, kind, per_datum_mean}`, and `given` where the evidence is conditional."""
        out: dict[str, object] = {
            "value": finite(self.value),
            "se": finite(self.se),
            "kind": self.kind,
            "per_datum_mean": finite(self.value / n),
        }
        return out | ({"given": self.given} if self.given else {})


@dataclass(frozen=True)
class GlobalGaussian:
    """q(globals): a Gaussian in unconstrained coordinates."""

    coordinates: Coordinates
    mean: Tensor  # [d]
    scale_tril: Tensor  # [d, d]


@dataclass(frozen=True)
class Fit:
    """What one method found on one program and data set: θ, q(z | x), evidence and diagnostics.

    A method makes it in one piece, and it does not change afterwards. Arrays are NumPy, in the dtype of the run.

        >>> import numpy as np
        >>> fit = Fit({"loc": np.zeros(2)}, Evidence(-3.5, 0.0, "exact"), notes={"iterations": 4})
        >>> fit.claimed.kind, fit.converged
        ('exact', None)
    """

    parameters: Arrays  # θ̂, and the point value of each global latent, constrained
    claimed: Evidence | None  # None where the method says nothing of the evidence
    draws: Arrays = field(default_factory=dict)  # latent site -> [draws, ...]; of a local one [draws, n, ...]
    means: Arrays = field(default_factory=dict)  # continuous or 0/1 local site -> its posterior mean [n, ...]
    deviations: Arrays = field(default_factory=dict)  # the same, posterior standard deviation
    probabilities: Arrays = field(default_factory=dict)  # discrete local site -> [n, ..., support]
    standard_errors: Arrays = field(default_factory=dict)  # like `parameters`
    khat: np.ndarray | None = None  # [n], PSIS shape of the importance weights of each row
    ess: np.ndarray | None = None  # [n], effective sample size of each row
    trace: Arrays = field(default_factory=dict)  # name -> [iterations]
    chains: Arrays = field(
        default_factory=dict
    )  # name -> [chains, draws of each], of a sampler's draws, chain after chain
    converged: bool | None = None  # None where that is not known
    warnings: list[str] = field(default_factory=list)
    notes: Mapping[str, object] = field(default_factory=dict)  # facts of this method, JSON-ready
    guide: nn.Module | None = None  # the fitted Pyro guide, where the method has one
    global_gaussian: GlobalGaussian | None = None  # q over the global latents, where the method has one

    def untrusted(self) -> np.ndarray:
        """Rows whose weights cannot be trusted [n], or [0] where there are no weights; nearly equal ones have no tail."""
        if self.khat is None:
            return np.zeros(0, bool)
        draws = self.notes.get(DRAWS_PER_ROW)
        even = isinstance(draws, int) and self.ess is not None and self.ess >= EVEN * draws
        return np.asarray(~(self.khat <= LIMIT) & ~np.asarray(even))

    def with_notes(self, warnings: list[str], notes: Mapping[str, object] | None = None) -> Fit:
        """The same with more to say at the end of its warnings and notes."""
        return replace(self, warnings=[*self.warnings, *warnings], notes={**self.notes, **(notes or {})})


def weighed(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Values [n], each times its row's weight: 0 for a row of weight 0, whatever its value."""
    return values if weights is None else np.where(weights > 0, weights * np.where(weights > 0, values, 0.0), 0.0)


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: None."""
    return None if value is None or not math.isfinite(value) else float(value)
