"""Whether a method's posterior is the reference's: z-scores of means and second moments, ratios of sds, the evidence.

The rule: of every number the mean within 3 Monte Carlo errors + 0.1 sd, and the sd within 10% + 3 Monte Carlo errors. A fit
whose errors are too large for the rule to mean something is said to be that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks._references.moments import Moments, of_fit, site_of
from benchmarks._references.reference import Reference
from inference._method.fit import Evidence, Fit

ERRORS, SHIFT, STRETCH = 3.0, 0.1, 0.1  # Monte Carlo errors; of the sd
ENOUGH = 0.1, 0.05  # the largest Monte Carlo errors, of mean and sd in sds, of a fit that can be judged
ROUNDING = 1e-6  # of an exact evidence, relative

Verdict = Literal["agrees", "differs", "too few draws", "nothing to compare"]


@dataclass(frozen=True)
class Number:
    """One number of the posterior, by the method and by the reference."""

    name: str
    z_mean: float
    z_square: float | None
    shift: float | None  # of the mean, in the reference's sds
    ratio: float | None  # of the sds
    wrong: float  # how far beyond the rule; at most 1: within it


@dataclass(frozen=True)
class Check:
    """One method against one reference."""

    reference: str
    method: str
    numbers: list[Number]
    judged: bool  # whether the Monte Carlo errors are small enough for the rule
    left_out: list[str]  # sites of the reference that the fit has no draws of
    evidence: dict[str, object] | None  # difference to the reference's
    converged: bool | None = None  # as the method says

    @property
    def verdict(self) -> Verdict:
        """In one word or three."""
        wrong = [n for n in self.numbers if n.wrong > 1]
        if wrong or (self.evidence is not None and self.evidence["agrees"] is False):
            return "differs"
        if not self.numbers and (self.evidence is None or self.evidence["agrees"] is None):
            return "nothing to compare"
        return "agrees" if self.judged else "too few draws"

    @property
    def worst(self) -> Number | None:
        """The number that is farthest beyond the rule."""
        return max(self.numbers, key=lambda n: n.wrong, default=None)

    def sentence(self) -> str:
        """The verdict in plain words."""
        begin = f"{self.method} {self.verdict.replace('differs', 'differs from')}".replace("agrees", "agrees with")
        if self.verdict == "too few draws":
            return (
                f"{self.method} has too few effective draws to be judged against {self.reference}: raise its samples."
            )
        if self.verdict == "nothing to compare":
            sites = f" of {', '.join(self.left_out)}" if self.left_out else ""
            return f"{self.method} gives no draws{sites}: there is nothing to compare with {self.reference}."
        return f"{begin} {self.reference}: {self._because()}."

    def _because(self) -> str:
        worst, parts = self.worst, []
        if worst is not None and worst.wrong > 1:
            parts.append(f"{sum(n.wrong > 1 for n in self.numbers)} of {len(self.numbers)} numbers, most {said(worst)}")
        elif worst is not None:
            z, count = max(abs(n.z_mean) for n in self.numbers), len(self.numbers)
            parts.append(f"{count} number{'s' * (count > 1)}, largest |z| of a mean {z:.1f}")
        if self.converged is False:
            parts.append(f"{self.method} itself says that it has not converged")
        if self.left_out:
            parts.append(f"not compared: {', '.join(self.left_out)}")
        if self.evidence is not None:
            parts.append(str(self.evidence["said"]))
        return "; ".join(parts)

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "reference": self.reference,
            "method": self.method,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "numbers": [vars(n) for n in self.numbers],
            "left_out": self.left_out,
            "log_evidence": self.evidence,
            "converged": self.converged,
        }


def said(number: Number) -> str:
    """Where a number differs, in words."""
    parts = []
    if number.shift is not None and abs(number.shift) > SHIFT:
        parts.append(f"mean off by {number.shift:+.2f} sd")
    if number.ratio is not None and abs(number.ratio - 1) > STRETCH:
        parts.append(f"sd {number.ratio:.2f} of the reference's")
    return f"'{number.name}': {', '.join(parts) or f'z {number.z_mean:+.1f}'}"


def check(reference: Reference, fit: Fit, method: str, evidences: Sequence[Evidence | None] = ()) -> Check:
    """Compare the draws of a fit, and the evidences that were claimed or verified, with a reference."""
    sites = list(dict.fromkeys(site_of(n) for n in reference.moments.names))
    found = of_fit(fit, sites)
    common = [n for n in reference.moments.names if n in set(found.names)]
    left_out = [s for s in sites if not any(site_of(n) == s for n in common)]
    mine, theirs = found.of(common), reference.moments.of(common)
    numbers, judged = _numbers(mine, theirs)
    return Check(reference.name, method, numbers, judged, left_out, _evidence(reference, evidences), fit.converged)


def _numbers(mine: Moments, theirs: Moments) -> tuple[list[Number], bool]:
    with np.errstate(all="ignore"):
        sd = np.where(np.isnan(theirs.sd), mine.sd, theirs.sd)
        error = np.hypot(mine.mcse_mean, theirs.mcse_mean)
        of_square = np.hypot(mine.mcse_mean_square, theirs.mcse_mean_square)
        z, z_square = (mine.mean - theirs.mean) / error, (mine.mean_square - theirs.mean_square) / of_square
        shift, ratio = (mine.mean - theirs.mean) / sd, mine.sd / theirs.sd
        of_ratio = np.hypot(mine.mcse_sd, theirs.mcse_sd) / sd
        beyond = np.abs(shift) / (ERRORS * error / sd + SHIFT), np.abs(ratio - 1) / (ERRORS * of_ratio + STRETCH)
    wrong = np.fmax(np.nan_to_num(beyond[0], nan=np.inf), beyond[1])  # a sd that no one knows says nothing
    fine = (np.nan_to_num(mine.mcse_mean / sd, nan=np.inf) <= ENOUGH[0]) & (mine.mcse_sd / sd <= ENOUGH[1])
    numbers = [
        Number(n, float(z[i]), _known(z_square[i]), _known(shift[i]), _known(ratio[i]), float(wrong[i]))
        for i, n in enumerate(mine.names)
    ]
    return numbers, bool(fine.all())


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _evidence(reference: Reference, evidences: Sequence[Evidence | None]) -> dict[str, object] | None:
    """The first evidence that is given nothing but θ, less the reference's, in nats; one without an error is not judged."""
    mine = next((e for e in evidences if e is not None and not e.given), None)
    if mine is None or reference.log_evidence is None:
        return None
    truth, se = float(reference.log_evidence["value"]), float(reference.log_evidence["se"])
    difference = mine.value - truth
    allowed = ERRORS * float(np.hypot(mine.se or 0.0, se)) + ROUNDING * max(1.0, abs(truth))
    agrees: bool | None = abs(difference) <= allowed
    if mine.kind == "lower bound":
        agrees = difference <= allowed
    elif mine.kind == "upper bound":
        agrees = difference >= -allowed
    elif mine.kind == "estimate" and mine.se is None:
        agrees = None
    error = f" ± {np.hypot(mine.se or 0.0, se):.3f}" if (mine.se or se) else ""
    said = (
        f"log p(x) {difference:+.4f}{error} nats from the reference's ({mine.kind}{', not judged' * (agrees is None)})"
    )
    return {"difference": difference, "kind": mine.kind, "se": mine.se, "agrees": agrees, "said": said}
