"""The outcome of a calibration: for each quantity whether its ranks are uniform, and if not, what is wrong; the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks._calibration import picture, uniform
from benchmarks._calibration.outcomes import Document, Outcomes
from benchmarks._calibration.quantities import LOG_LIKELIHOOD
from benchmarks._calibration.quantity import LEVEL, Quantity

if TYPE_CHECKING:
    import pandas as pd

HALF = 0.5  # of the right sd, or twice it, or a mean half an sd away: what has to be found for "passes"


@dataclass
class Calibration(Outcomes):
    """Whether a method's posteriors hold the truth as often as they say.

        >>> import numpy as np
        >>> ranks = np.random.default_rng(0).uniform(size=(200, 2))
        >>> outcomes = [{"ranks": {"a": a, "b": b}, "draws": 99, "converged": True, "worth": None} for a, b in ranks]
        >>> Calibration("coins", "simulated rows", "em", (50, 1), {}, outcomes).verdict
        'passes'

    - `theta`: the parameters that were held fixed, with their shapes.
    - `outcomes`: of each simulation its ranks, or why its fit failed.
    """

    name: ClassVar[str] = "calibration"
    counted: ClassVar[str] = "fits"
    model: str
    data: str
    method: str
    shape: tuple[int, ...]
    theta: Mapping[str, tuple[int, ...]]
    outcomes: Sequence[Mapping[str, Any]]
    folder: Path | None = field(default=None, compare=False)

    @cached_property
    def quantities(self) -> list[Quantity]:
        """Each quantity, in the order of the program's sites."""
        names = list(self.fits[0]["ranks"])
        ranks = np.array([[o["ranks"][n] for n in names] for o in self.fits]).T
        p = np.array([uniform.p_value(r) for r in ranks])
        rows = zip(names, ranks, p, uniform.holm(p), strict=True)
        return [Quantity(n, r, float(one), float(adjusted)) for n, r, one, adjusted in rows]

    @property
    def shown(self) -> tuple[float, float, float]:
        """What these simulations show 9 times in 10: the ratios of sds below and above 1, and the shift in sds."""
        return uniform.found(len(self.fits), len(self.quantities), LEVEL)

    def _fails(self) -> bool:
        return any(q.fails for q in self.quantities)

    def _shows(self) -> bool:
        return _enough(*self.shown)

    @property
    def sentences(self) -> list[str]:
        """The verdict in plain words, and what it rests on."""
        out = [self._failing() if self.verdict == "fails" else self._not_failing()]
        if self.theta:
            names = ", ".join(self.theta)
            out.append(
                f"θ ({names}) was held fixed: this is about the posteriors of the latents, not about estimates of θ."
            )
        return out + self._doubts()

    def _failing(self) -> str:
        bad = sorted((q for q in self.quantities if q.fails), key=lambda q: q.adjusted)
        said = "; ".join(f"{q.name} is {q.verdict} (p {_p(q.adjusted)})" for q in bad[:4])
        more = f"; and {len(bad) - 4} more" if len(bad) > 4 else ""
        return f"{self.method} fails: of {len(self.quantities)} quantities, the posterior of {said}{more}."

    def _not_failing(self) -> str:
        narrow, wide, shift = self.shown
        count = f"{len(self.fits)} simulations"
        of = f"in one of {len(self.quantities)} quantities"
        errors = [f"an sd {narrow:.2g} times the right one"] * (narrow > 0) + [f"one {wide:.2g} times"] * (
            wide < np.inf
        )
        errors += [f"a mean {shift:.2g} sd away"] * (shift < np.inf)
        would = (
            f"9 times in 10 they would show {', '.join(errors)} {of}" if errors else "they would show hardly anything"
        )
        if self.verdict == "passes":
            return f"{self.method} passes: nothing wrong was found in {count}; {would}, where posteriors are normal."
        if self.verdict == "too many failed fits":
            return f"no verdict: {len(self.lost)} of {len(self.outcomes)} fits failed."
        return f"no verdict: nothing wrong was found, but {count} are too few to say; {would}. Take {self._needed()}."

    def _needed(self) -> int:
        """Simulations with which a verdict can be had."""
        n = len(self.fits)
        while n < 10_000:
            n = 2 * n
            if _enough(*uniform.found(n, len(self.quantities), LEVEL)):
                break
        return n

    def _doubts(self) -> list[str]:
        fits, out = self.fits, []
        if (lost := self.lost) and self.verdict != "too many failed fits":
            out.append(f"{len(lost)} of {len(self.outcomes)} fits failed and are left out: {lost[0]}")
        if away := sum(o["converged"] is False for o in fits):
            out.append(f"{away} of {len(fits)} fits say that they did not converge; they are counted all the same.")
        if few := sum(o["worth"] is not None and o["worth"] < o["draws"] for o in fits):
            out.append(
                f"in {few} of {len(fits)} fits the chains' draws are worth fewer independent ones than the ranks take: those "
                "look too narrow. Raise samples."
            )
        if LOG_LIKELIHOOD not in fits[0]["ranks"]:
            out.append("log p(x | latents) was not looked at: missing entries are latents here.")
        return out

    @property
    def table(self) -> pd.DataFrame:
        """A row for each quantity."""
        import pandas as pd

        return pd.DataFrame([q.to_json() for q in self.quantities])

    def plot(self) -> Figure:
        """The ranks' distribution functions less the uniform one, with the band that holds them where all is right."""
        shape = " × ".join(map(str, self.shape))
        title = f"{Path(self.model).name} by {self.method} ({shape}), {len(self.fits)} simulations: {self.verdict}"
        return picture.ranks(self.quantities, LEVEL, title)

    def to_json(self) -> Document:
        """The object that `zoo calibrate … --json` prints."""
        narrow, wide, shift = self.shown
        return {
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "shape": list(self.shape),
            "simulations": len(self.outcomes),
            "failed": len(self.lost),
            "fixed": sorted(self.theta),
            "verdict": self.verdict,
            "sentences": self.sentences,
            "level": LEVEL,
            "would_show": {"sd_ratio_below": narrow, "sd_ratio_above": _finite(wide), "shift_sd": _finite(shift)},
            "quantities": [q.to_json() for q in self.quantities],
            "folder": None if self.folder is None else str(self.folder),
        }

    def __repr__(self) -> str:
        return "\n  ".join(
            [f"Calibration of {self.method} on {Path(self.model).name}: {self.verdict}", *self.sentences]
        )


def _enough(narrow: float, wide: float, shift: float) -> bool:
    """Whether what is shown is as little as "passes" needs."""
    return narrow >= HALF and wide <= 1 / HALF and shift <= HALF


def _p(value: float) -> str:
    return "< 1e-9" if value < 1e-9 else f"{value:.2g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
