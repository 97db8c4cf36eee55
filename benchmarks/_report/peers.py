"""Peers as records: our time over theirs for the same work, and what each benchmark of them left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks._suite import cells as _cells
from benchmarks._suite.documents import CellDocument, Document

OURS = "zoo"


@dataclass(frozen=True)
class PeersRow:
    """Our time over a peer's: the median of the rounds, and the ends, where they are known."""

    what: str
    short: str  # for charts
    peer: str
    ratio: float
    lowest: float | None
    highest: float | None
    ours_seconds: float | None
    peer_seconds: float | None
    threads: int | None
    our_log_likelihood: float | None
    peer_log_likelihood: float | None


def compared(cell: CellDocument) -> list[PeersRow]:
    """The rows of a cell of kind "benchmark", none where it compares nothing."""
    result = _peer_by_peer(cell.get("result") or {})
    spent = result.get("seconds", {})
    if "milliseconds" in result:
        spent = {name: 1e-3 * value for name, value in result["milliseconds"].items()}
    likelihood = result.get("log_likelihood") or {}
    return [
        PeersRow(
            result.get("what") or _cells.title(cell["cell"]),
            result.get("short") or cell["cell"]["name"].rpartition("/")[2],
            peer,
            ratio["median"],
            ratio["min"],
            ratio["max"],
            spent.get(OURS),
            spent.get(peer),
            result.get("threads"),
            likelihood.get(OURS),
            likelihood.get(peer),
        )
        for peer, ratio in result.get("ratios", {}).items()
    ]


def _peer_by_peer(result: Document) -> Document:
    """A benchmark's document with `ratios` and times by peer, also where it has but one peer and says `ratio`."""
    if "ratios" in result or not isinstance(result.get("ratio"), float):
        return result
    peer = result.get("peer", "by hand")
    ratio = {"median": result["ratio"], "min": result.get("ratio_min"), "max": result.get("ratio_max")}
    times = {OURS: result.get("ours_seconds"), peer: result.get("peer_seconds")}
    return {**result, "ratios": {peer: ratio}, "seconds": {k: v for k, v in times.items() if v is not None}}


def skipped(cells: Sequence[CellDocument]) -> list[tuple[str, str]]:
    """The benchmarks and what they left out, once each."""
    found = [(c["cell"]["name"], f"skipped: {w}") for c in cells for w in (c.get("result") or {}).get("skipped", [])]
    return list(dict.fromkeys(found))


def facts(cell: CellDocument) -> dict[str, float | str]:
    """Whatever single numbers and words a benchmark returned that compares nothing."""
    result = cell.get("result") or {}
    if "ratios" in result or isinstance(result.get("ratio"), float):
        return {}
    return {k: v for k, v in result.items() if isinstance(v, str | int | float | bool)}
