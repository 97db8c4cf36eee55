"""Adding a peer is one file and a line of its suite; the suite, the page and the README's table need not know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import served

ROOT = Path(__file__).parent.parent

PEER = '''
"""The mean of each column, against NumPy's: time over time at equal sums."""

import numpy as np
import torch

from benchmarks.peers._turns import OURS, timed, turns
from zoo._options import Count


def measure(*, n: Count = 1000, rounds: Count = 3, wrong: bool = False):
    x = np.random.default_rng(0).normal(size=(n, 4))
    ours = lambda: (timed(lambda: torch.as_tensor(x).mean(0)), float(torch.as_tensor(x).mean(0).sum()) + wrong)
    theirs = lambda: (timed(lambda: x.mean(0)), float(x.mean(0).sum()))
    out = turns({OURS: ours, "numpy": theirs}, rounds)
    return {"benchmark": "peers/means", "what": f"means of columns: n={n:,}", **out, "skipped": ["nobody else is asked"]}
'''
LINE = '[[benchmark]]\nnames = [{ name = "peers/means", n = 500 }, { name = "peers/means", wrong = true }]\n'


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the packages with one more peer, and a line for it in the suite of peers, whose own work is left out."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("zoo", "guides", "inference", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    (folder / "benchmarks" / "peers" / "means.py").write_text(PEER.lstrip(), encoding="utf-8")
    suite = folder / "benchmarks" / "suites" / "peers.toml"
    suite.write_text(suite.read_text(encoding="utf-8").partition("[[benchmark]]")[0] + LINE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def zoo(copy):
    with served(copy) as ask:
        yield ask


def test_a_new_peer_is_in_the_list_and_runs_by_itself(zoo):
    _, found, _ = zoo("bench")
    assert (
        found["benchmarks"]["peers/means"] == "The mean of each column, against NumPy's: time over time at equal sums"
    )
    status, document, err = zoo("bench", "peers/means")
    assert status == 0, err
    assert set(document["ratios"]) == {"numpy"} and document["rounds"] == 3


@pytest.mark.full
def test_its_suite_runs_it_and_the_page_shows_it(copy, zoo):
    status, document, err = zoo("bench", "peers", "--backend", "sequential")
    assert status == 1, err  # where sums differ there is an error, and no ratio
    right, wrong = document["cells"]
    assert right["status"] == "ok" and right["result"]["ratios"]["numpy"]["median"] > 0
    assert wrong["status"] == "failed" and "no ratio of times" in wrong["reason"]
    (copy / "peers.json").write_text(json.dumps(document), encoding="utf-8")
    status, _, err = zoo("report", "peers.json", "--out", "page.html")
    assert status == 0, err
    page = (copy / "page.html").read_text(encoding="utf-8")
    assert "means of columns<small>n=500</small>" in page and "nobody else is asked" in page
