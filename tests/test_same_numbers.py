"""A dozen requests to the command give the numbers kept in same_numbers.json, whatever changes inside.

The file is written again only when numbers are meant to change, and the CHANGELOG says which and why:

    python tests/same_numbers.py write tests/same_numbers.json

All requests, to twelve digits: `python tests/same_numbers.py check tests/same_numbers.json`, a minute and a half. Here the
tolerance is wider, because another processor sums in another order: the requests are those that then still agree.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import same_numbers
from same_numbers import REQUESTS, difference, numbers

MADE_WITH, KEPT = same_numbers.read(Path(__file__).with_name("same_numbers.json"))
TOLERANCE = 1e-5  # relative; with the oldest instructions of an x86 processor these differ by at most 3e-7
QUICK = (
    "gmm em holes",
    "gmm laplace",
    "ppca svi mean_field",
    "ppca infer ais",
    "factor_analysis em missing",
    "deep svi gaussian",
    "deep laplace linear",
    "missing_pixels em mixture",
    "user em families",
    "user causes limit",
    "user guide",
    "user resume",
    "refused",
    "describe",
)


def test_the_file_has_every_request():
    assert list(KEPT) == list(REQUESTS)


@pytest.mark.parametrize("name", QUICK)
def test_the_same_numbers(name):
    if same_numbers.versions() != MADE_WITH:
        pytest.skip(f"random numbers and starts are those of {MADE_WITH}")
    worst, where = difference(KEPT[name], numbers(name))
    assert worst <= TOLERANCE, f"{name} differs by {worst:.1e}, relative, in {where}"


def test_a_difference_is_found():
    before = KEPT["gmm em holes"]
    assert difference(before, before) == (0.0, "")
    assert difference(before, before | {"0/n": 61})[0] == pytest.approx(1 / 61)
    assert difference(before, before | {"0/converged": False})[0] == float("inf")
    assert difference(before, before | {"0/something": 3.0}) == (0.0, "")
    assert difference(before, {k: v for k, v in before.items() if k != "0/n"})[1].startswith("0/n:")
    field = "0/fit.nc/sample_stats/log_evidence"
    moved = before[field] | {"turned": before[field]["turned"] + 1e-9 * before[field]["size"]}
    assert difference(before, before | {field: moved})[0] == pytest.approx(1e-9)
