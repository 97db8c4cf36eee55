"""Each sabotage is noticed by the public check that it names, which has nothing to say where nothing is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import in_full
from sabotage import Sabotage
from sabotage_checks import CHECKS
from sabotages import SABOTAGES

PAGE = Path(__file__).parent.parent / "docs" / "checks.md"
QUICK = {"draws with half their sd", "labels permuted in one field", "stale parameters in the evidence"}
OF_QUICK = {s.check for s in SABOTAGES if s.what in QUICK}


def fast_or_full(values, quick):
    values = list(values)
    return [v for v in values if quick(v)] + in_full(*(v for v in values if not quick(v)))


def seen(check: str) -> list[str]:
    torch.manual_seed(0)
    return CHECKS[check]()


@pytest.mark.parametrize("check", fast_or_full(CHECKS, OF_QUICK.__contains__))
def test_a_check_says_nothing_where_nothing_is_broken(check):
    assert seen(check) == []


@pytest.mark.parametrize(
    "sabotage", fast_or_full(SABOTAGES, lambda s: s.what in QUICK), ids=lambda s: s.what.replace(" ", "-")
)
def test_a_check_notices(sabotage: Sabotage, monkeypatch):
    sabotage.apply(monkeypatch)
    assert seen(sabotage.check)


def test_every_check_is_of_use():
    assert {s.check for s in SABOTAGES} == set(CHECKS)
    assert len({s.what for s in SABOTAGES}) == len(SABOTAGES) >= 20


def test_the_page_lists_them():
    text = PAGE.read_text(encoding="utf-8")
    assert f"{len(SABOTAGES)} mistakes" in text
    for line in rows():
        assert line in text, f"docs/checks.md lacks, or has otherwise:\n{line}"


def rows() -> list[str]:
    """The table of the page."""
    return [f"| {s.what} | `{s.file}` | {s.check} |" for s in SABOTAGES]
