"""What `select` returns: the table over the grid, the best cells with their ties, sentences, the picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._select import picture, sentences
from benchmarks._select.ard import Relevance
from benchmarks._select.bootstrap import Ratio
from benchmarks._select.criteria import LARGER, SMALLER, SPOKEN, Entry, best, error_of_difference
from benchmarks._select.parallel import Parallel
from benchmarks._suite.folder import put
from inference._run.request import Request
from inference._run.result import Run
from inference._run.runner import run_request
from zoo._errors import UsageError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FILES = ("table.csv", "select.json", "select.png")


@dataclass(frozen=True, eq=False)
class Choice:
    """One of the best cells: its `options`, the criterion's `value`, and the request that fits it again."""

    options: dict[str, object]
    value: float | None
    request: Request

    @property
    def command(self) -> str | None:
        """The line that fits it again; None where the model or the data have no name."""
        return self.request.command()

    def run(self, out: str | os.PathLike[str] | None = None) -> Run:
        """Fit it again, to the same numbers; with `out`, into a run folder."""
        return run_request(self.request, out=out)

    def __repr__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"Choice({said}" + (")" if self.value is None else f"; {self.value:.3f})")


@dataclass(repr=False, eq=False)
class Selection:
    """A program over a grid of its options, by several criteria.

    - `table`: a pandas DataFrame, a row for each cell; `best`: the cells that share the best place by the criterion `by`.
    - `sentences`: who wins, where the criteria disagree, what is to be doubted.
    - `ratios`: the likelihood-ratio tests, `parallel`: the parallel analysis, `relevance`: what automatic
      relevance determination keeps, where they were asked for.
    """

    model: str
    data: str
    shape: tuple[int, ...]
    by: str
    grid: dict[str, list[object]]
    entries: list[Entry]
    winners: list[Entry]
    requests: dict[str, Request]  # name of an entry → its request
    ratios: list[Ratio] = field(default_factory=list)
    parallel: Parallel | None = None
    relevance: Relevance | None = None
    folder: Path | None = None

    @property
    def best(self) -> list[Choice]:
        """The best, with its ties; [] where no cell can be chosen."""
        out = []
        for e in self.winners:
            value = e.values[self.by].value if self.by in e.values else None
            out.append(Choice({k: e.options[k] for k in (e.varied or e.options)}, value, self.requests[e.name]))
        return out

    @property
    def sentences(self) -> list[str]:
        """The outcome in sentences, the winner first."""
        out = sentences.of(self.entries, self.by, self.winners, self.grid)
        if self.parallel is not None:
            out.insert(0, sentences.of_parallel(self.parallel, self.winners))
        if self.relevance is not None:
            out.insert(0, sentences.of_relevance(self.relevance, self.winners))
        return [*out, *sentences.of_ratios(self.ratios)]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each cell, in the order of the grid."""
        import pandas as pd

        return pd.DataFrame([_row(e, self._top(by="heldout")) for e in self.entries])

    def _top(self, by: str) -> Entry | None:
        found = best(self.entries, by)
        return max(found, key=lambda e: e.values[by].value) if found else None

    def run(self, out: str | os.PathLike[str] | None = None) -> Run:
        """Fit the winner again, to the same numbers: of ties the one with the fewest free parameters."""
        if not self.winners:
            raise UsageError(f"no cell can be chosen by {self.by}, so there is none to run. {' '.join(self.sentences)}")
        return self.best[0].run(out)

    def plot(self, by: str | None = None) -> Figure:
        """The criterion over the grid, as a matplotlib figure."""
        by = by or (self.by if self.by in SPOKEN else "bic")
        if by not in SPOKEN:
            raise unknown("criterion", by, SPOKEN)
        if not any(by in e.values for e in self.entries):
            why = next((e.reasons[by] for e in self.entries if by in e.reasons), "it was not asked for")
            raise UsageError(f"there is no picture by {by}: {why}.")
        shape = " × ".join(map(str, self.shape))
        marked = self.winners if by == self.by else best(self.entries, by)
        return picture.draw(self.entries, self.grid, by, marked, f"{Path(self.model).name} on {self.data} ({shape})")

    def confusion(self) -> pd.DataFrame | None:
        """The winner's states against the labels of the data; None where there is no such table."""
        import pandas as pd

        found = self.winners[0].result.get("labels", {}).get("confusion") if self.winners else None
        if found is None:
            return None
        index = pd.Index(found["labels"], name="label")
        return pd.DataFrame(found["counts"], index, pd.Index(found["states"], name="state"))

    def to_json(self) -> dict[str, Any]:
        """The object that `zoo select … --json` prints."""
        rows = json.loads(self.table.to_json(orient="records", double_precision=15))
        cells = []
        for row, e in zip(rows, self.entries, strict=True):
            more = {k: e.result[k] for k in ("labels", "warnings") if k in e.result}
            cells.append({"options": e.options, **row, **more, "no": e.reasons})
        document = {
            "model": self.model,
            "data": self.data,
            "by": self.by,
            "best": [{"options": c.options, "value": c.value, "command": c.command} for c in self.best],
            "sentences": self.sentences,
            "cells": cells,
            "likelihood_ratios": [r.to_json() for r in self.ratios],
            "parallel": None if self.parallel is None else self.parallel.to_json(),
            "ard": None if self.relevance is None else self.relevance.to_json(),
            "folder": None if self.folder is None else str(self.folder),
        }
        return json.loads(json.dumps(document, default=_plain).replace("NaN", "null").replace("Infinity", "null"))

    def write(self, folder: Path) -> None:
        """Put the table, the document and the picture into the folder, each whole or not at all."""
        self.folder = folder
        put(folder / "table.csv", self.table.to_csv(index=False).encode())
        put(folder / "select.json", (json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        by = self.by if self.by in SPOKEN else "bic"
        if any(by in e.values for e in self.entries) and len(self.entries) > 1:
            put(folder / "select.png", self.plot(by))

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.shape))
        head = f"Selection of {Path(self.model).name} on {self.data} ({shape}): {len(self.entries)} cells"
        return "\n  ".join([head, *self.sentences])


def _row(e: Entry, top: Entry | None) -> dict[str, object]:
    """A row of the table."""
    result = e.result
    out: dict[str, object] = {k: e.options[k] for k in (e.varied or e.options)}
    out |= {"log_likelihood": result.get("log_likelihood"), "parameters": result.get("free")}
    out |= {by: e.values[by].value if by in e.values else None for by in SMALLER}
    for by in LARGER:
        if by not in e.values:
            continue
        value = e.values[by]
        out |= {by: value.value, f"{by}_kind": value.kind}
        out[f"{by}_se"] = value.se
        if by == "heldout" and top is not None:
            out["heldout_behind"] = top.values[by].value - value.value
            out["heldout_behind_se"] = error_of_difference(value, top.values[by])
    if "labels" in result:
        out["adjusted_rand"] = result["labels"]["adjusted_rand"]
    return out | {
        "starts": f"{result['hits']}/{result['tried']}" if "hits" in result else None,
        "ended": e.ended,
        "why": e.document.get("reason"),
    }


def _plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def values_of(entries: Sequence[Entry], by: str) -> Mapping[str, float]:
    """Name of each cell → its value by a criterion."""
    return {e.name: e.values[by].value for e in entries if by in e.values and math.isfinite(e.values[by].value)}
