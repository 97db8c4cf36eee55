"""`zoo calibrate`: the table in a terminal, the sentences, and where the results are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks._calibration.calibrate import calibrate
from benchmarks._calibration.calibration import Calibration
from benchmarks._calibration.evidence import EvidenceCalibration, calibrate_models
from benchmarks._calibration.quantity import INTERVALS
from benchmarks._suite.folder import RESULTS
from zoo import _show
from zoo._command import print_json

STYLES = {"passes": "bold green", "fails": "bold red"}


def main(
    models: list[str],
    method: str,
    settings: Mapping[str, str],
    *,
    of_evidence: bool = False,
    out: Path | None = None,
    json: bool = False,
    **how: Any,
) -> None:
    """Calibrate and print. `how`: the keywords of `calibrate`, or of `calibrate_models`."""
    words = [re.sub(r"\.py:", "-", Path(m).name) for m in models]
    folder = out or RESULTS / re.sub(r"[^\w.-]+", "-", "-".join(["calibrate", *words, method]))
    how = {**settings, **how, "out": folder, "quiet": False}
    found = calibrate_models(models, method, **how) if of_evidence else calibrate(models[0], method, **how)
    if json:
        print_json(found.to_json())
    else:
        show(found)


def show(found: Calibration | EvidenceCalibration) -> None:
    """Print a calibration."""
    out = _show.console()
    out.print(_ranks(found) if isinstance(found, Calibration) else _tests(found))
    for i, sentence in enumerate(found.sentences):
        out.print(_show.escape(sentence), style=STYLES.get(found.verdict, "bold") if i == 0 else "", soft_wrap=True)
    if found.folder is not None:
        files = ", ".join(sorted(f.name for f in found.folder.iterdir() if f.suffix in (".csv", ".png")))
        out.print(f"{_show.escape(str(found.folder))}: {files}", soft_wrap=True)


def _ranks(found: Calibration) -> Table:
    shape = " × ".join(map(str, found.shape))
    table = _table(f"{found.model} by {found.method}, {len(found.fits)} simulations of {shape}")
    for head in ("quantity", "p", "adjusted", *(f"in the {v:.0%}" for v in INTERVALS), "its posterior is"):
        table.add_column(head, justify="left" if head in ("quantity", "its posterior is") else "right")
    for q in found.quantities:
        shares = (q.coverage(level) for level in INTERVALS)
        cells = [_p(q.p), _p(q.adjusted), *(f"{share:.0%} ± {se:.0%}" for share, se in shares)]
        table.add_row(_show.escape(q.name), *cells, q.verdict, style="bold red" if q.fails else "")
    return table


def _tests(found: EvidenceCalibration) -> Table:
    table = _table(f"{' or '.join(found.models)} by {found.method}'s evidence, {len(found.fits)} simulations")
    for head in ("test", "p", "adjusted", "away (sd)"):
        table.add_column(head, justify="left" if head == "test" else "right")
    for t, p in zip(found.tests, found.adjusted, strict=True):
        cells = _show.escape(t.name), _p(t.p), _p(float(p)), f"{t.away:+.1f}"
        table.add_row(*cells, style="bold red" if p < 0.05 else "")
    return table


def _table(title: str) -> Table:
    return Table(title=_show.escape(title), title_justify="left", title_style="bold")


def _p(value: float) -> str:
    return "< 1e-9" if value < 1e-9 else f"{value:.2g}"
