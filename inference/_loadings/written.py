"""What `zoo loadings` prints and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from inference._loadings import scores as _scores
from inference._loadings.table import Loadings
from zoo import _atomic
from zoo._errors import UsageError, unknown


def written(found: Loadings, scores: str | None, data: str | None, out: Path | None) -> tuple[str, dict[str, object]]:
    """What to print, as text and as JSON. With `out` the table goes to that CSV file: the loadings, or the scores."""
    if data is not None and scores is None:
        raise UsageError("--data names other rows to score: say which scores with --scores regression or bartlett.")
    if scores is None:
        return _told(repr(found), found.to_json(), found.to_frame(), out)
    kind = next((k for k in _scores.KINDS if k == scores), None)
    if kind is None:
        raise unknown("kind of scores", scores, _scores.KINDS)
    table = found.scores(data, kind)
    document = {**found.to_json(), "scores": {"kind": kind, "rows": _names(table), "values": _numbers(table)}}
    return _told(_csv(table), document, table, out)


def _told(
    text: str, document: dict[str, object], frame: pd.DataFrame, out: Path | None
) -> tuple[str, dict[str, object]]:
    if out is None:
        return text, document
    path = _atomic.place(out)
    if path.is_dir():
        raise UsageError(f"'{out}' is a folder; name a .csv file to write.")
    _atomic.check_parent(path)
    return str(_atomic.write(path, _csv(frame) + "\n")), {**document, "file": str(path)}


def _csv(frame: pd.DataFrame) -> str:
    named = frame.rename_axis("row" if isinstance(frame.index, pd.RangeIndex) else frame.index.name or "name")
    text: str = named.to_csv(float_format="%.10g", lineterminator="\n")
    return text.rstrip("\n")


def _names(frame: pd.DataFrame) -> list[str | int]:
    return list(frame.index)


def _numbers(frame: pd.DataFrame) -> list[list[float | None]]:
    """Rows of numbers; JSON has no NaN."""
    return [[v if np.isfinite(v) else None for v in row] for row in frame.to_numpy().tolist()]
