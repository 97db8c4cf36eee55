"""What the cells of a selection say, side by side: the value of each criterion, which cells share the best, and why not.

A cell is chosen by BIC, ICL or AIC only if its fit converged and did not collapse. Values closer than `TIE` are the same.
Held-out values are compared by their rows: those whose difference from the best is within its own standard error share its
place. What is exact or an estimate stands before lower bounds, whatever their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from inference._run.request import written

By = Literal["bic", "icl", "aic", "heldout", "evidence"]
SMALLER: tuple[By, ...] = ("bic", "icl", "aic")
LARGER: tuple[By, ...] = ("heldout", "evidence")
SPOKEN = {"bic": "BIC", "icl": "ICL", "aic": "AIC", "heldout": "held-out log p(x)", "evidence": "the evidence"}
TIE = 1e-3
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """A criterion's value; `each` [n] its share of every row, where it is a sum over rows."""

    value: float
    kind: str = "exact"
    se: float = 0.0
    each: np.ndarray | None = None


@dataclass
class Entry:
    """One cell of the grid: its options, what its fit found, and the values of the criteria that it has."""

    options: dict[str, object]  # all that were set, in the order of the grid
    varied: tuple[str, ...]
    document: Document
    values: dict[str, Value] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # criterion → why it has no value

    @property
    def result(self) -> Document:
        """What the fit found; nothing where it failed."""
        return self.document.get("result") or {}

    @property
    def ended(self) -> str:
        """ "ok", "collapsed", "not converged", "unknown", "refused", "failed"."""
        status = str(self.document["status"])
        return str(self.result.get("ended", status)) if status == "ok" else status

    @property
    def name(self) -> str:
        """ "components=3, covariance=tied"."""
        shown = self.varied or tuple(self.options)
        return ", ".join(f"{k}={written(self.options[k])}" for k in shown) or "the program"

    def stands(self, by: str) -> bool:
        """Whether it may be chosen by a criterion."""
        return by in self.values and (by in LARGER or self.ended == "ok")


def entry(options: dict[str, object], varied: tuple[str, ...], document: Document, held: Sequence[Document]) -> Entry:
    """The entry of a fit's document and those of its folds, in order."""
    out = Entry(options, varied, document)
    result = out.result
    if document["status"] != "ok":
        out.reasons = dict.fromkeys((*SMALLER, "evidence"), str(document["reason"]))
    else:
        for by in SMALLER:
            if result.get(by) is not None:
                out.values[by] = Value(result[by])
            else:
                out.reasons[by] = result["refused"] or "ICL needs discrete latents: there are no clusters"
        found = result["evidence"]
        if found["value"] is None:
            out.reasons["evidence"] = found["reason"]
        else:
            out.values["evidence"] = Value(found["value"], found["kind"], found["se"] or 0.0)
    if held:
        _add_heldout(out, held)
    return out


def _add_heldout(out: Entry, held: Sequence[Document]) -> None:
    bad = next((d for d in held if d["status"] != "ok"), None)
    if bad is not None:
        out.reasons["heldout"] = str(bad["reason"])
        return
    parts = [d["result"]["evidence"] for d in held]
    if any(p["value"] is None for p in parts):
        out.reasons["heldout"] = "log p(x) of a fold is not finite"
        return
    order = ("exact", "estimate", "lower bound", "upper bound")
    kind = max((p["kind"] for p in parts), key=order.index)
    each = [d["result"].get("each") for d in held]
    rows = np.concatenate([np.asarray(e) for e in each]) if all(e is not None for e in each) else None
    se = math.sqrt(sum((p["se"] or 0.0) ** 2 for p in parts))
    out.values["heldout"] = Value(sum(p["value"] for p in parts), kind, se, rows)


def best(entries: Iterable[Entry], by: str) -> list[Entry]:
    """Those that share the best place, the one with the fewest free parameters first; [] where none may be chosen."""
    standing = [e for e in entries if e.stands(by)]
    firm = [e for e in standing if e.values[by].kind in ("exact", "estimate")]
    standing = firm or [e for e in standing if e.values[by].kind != "upper bound"]  # a higher one is not better
    if not standing:
        return []
    sign = 1.0 if by in SMALLER else -1.0
    top = min(standing, key=lambda e: sign * e.values[by].value)
    shared = [e for e in standing if e is top or _tied(e.values[by], top.values[by])]
    return sorted(shared, key=lambda e: (e.result.get("free", math.inf), e is not top))


def _tied(one: Value, top: Value) -> bool:
    return abs(one.value - top.value) <= max(TIE, error_of_difference(one, top))


def error_of_difference(one: Value, other: Value) -> float:
    """Standard error of the difference: of its rows, and of what was sampled; 0 of exact numbers that are no sums."""
    sampled = math.hypot(one.se, other.se)
    if one.each is None or other.each is None or len(one.each) != len(other.each):
        return sampled
    away = one.each - other.each
    return math.hypot(sampled, float(away.std(ddof=1)) * math.sqrt(len(away))) if len(away) > 1 else sampled


def better_but_barred(entries: Iterable[Entry], by: str, winner: Entry | None) -> list[Entry]:
    """Those with a value that would have won, but whose fits did not end well."""
    sign = 1.0 if by in SMALLER else -1.0
    barred = [e for e in entries if by in e.values and not e.stands(by)]
    if winner is None:
        return barred
    return [e for e in barred if sign * e.values[by].value < sign * winner.values[by].value]
