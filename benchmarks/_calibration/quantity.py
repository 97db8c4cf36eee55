"""The ranks of one quantity: whether they are uniform, what is wrong with the posterior if not, and coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

LEVEL = 0.05  # the chance that a right method fails, over all quantities
INTERVALS = (0.5, 0.8, 0.95)
CLEAR = 2.6  # standard errors from which a direction is named
Document = dict[str, Any]


@dataclass(frozen=True)
class Quantity:
    """Ranks of one quantity, [n] in [0, 1].

    - `p`: the chance of ranks so far from uniform; `adjusted`: for the number of quantities (Holm 1979).
    - `shift`, `spread`: mean and sd of the ranks' normal scores, 0 and 1 where all is right. Of a normal posterior: how many of
      its sds it lies too low, and the right sd over its own.
    """

    name: str
    ranks: np.ndarray
    p: float
    adjusted: float

    @property
    def shift(self) -> float:
        return float(self._scores.mean())

    @property
    def spread(self) -> float:
        return float(self._scores.std(ddof=1))

    @property
    def _scores(self) -> np.ndarray:
        scores: np.ndarray = special.ndtri(self.ranks.clip(1e-9, 1 - 1e-9))
        return scores

    @property
    def fails(self) -> bool:
        return self.adjusted < LEVEL

    @property
    def verdict(self) -> str:
        """ "ok", or what is wrong with the posterior."""
        if not self.fails:
            return "ok"
        clear = CLEAR / math.sqrt(len(self.ranks))
        said = [] if abs(self.spread - 1) < clear / math.sqrt(2) else [f"too {'narrow' if self.spread > 1 else 'wide'}"]
        said += [] if abs(self.shift) < clear * self.spread else [f"too {'low' if self.shift > 0 else 'high'}"]
        return " and ".join(said) or "of a wrong shape"

    def coverage(self, level: float) -> tuple[float, float]:
        """The share of central intervals of that level that hold the truth, and its standard error if they are right."""
        inside = np.abs(self.ranks - 0.5) <= level / 2
        return float(inside.mean()), math.sqrt(level * (1 - level) / len(self.ranks))

    def to_json(self) -> Document:
        """JSON-ready."""
        out: Document = {"name": self.name, "p": self.p, "p_adjusted": self.adjusted, "verdict": self.verdict}
        out |= {"shift": self.shift, "spread": self.spread}
        for level in INTERVALS:
            out[f"coverage_{level:.0%}"], out[f"se_{level:.0%}"] = self.coverage(level)
        return out
