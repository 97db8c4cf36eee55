"""`zoo bench soundness`: its truths by other ways, what counts as sound, and a quick run that says everything."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, special, stats

from benchmarks import readme, soundness


def test_the_truths_of_the_study_are_right():
    rng = np.random.default_rng(0)
    x = soundness._curve_data(rng, 3)
    for row in x:

        def joint(z, row=row):
            return stats.norm.pdf(z) * stats.norm.pdf(row, [2 * np.tanh(z), z * z / 2], soundness.NOISE).prod()

        found = integrate.quad(joint, -9, 9, points=[-2, 0, 2], epsabs=0, limit=200)[0]
        assert soundness._curve_truth(row[None]) == pytest.approx(np.log(found), abs=1e-7)
    x = soundness._intercept_data(rng, 3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    chance = special.expit(soundness.SPREAD * nodes[:, None] + soundness.QUESTIONS)
    each = np.where(x[:, None] == 1, chance, 1 - chance).prod(2) @ (weights / weights.sum())
    assert soundness._intercept_truth(x) == pytest.approx(np.log(each).sum(), abs=1e-7)


def record(kind, away, se=1.0, unsure=False):
    return {"kind": kind, "value": -100.0 + away, "truth": -100.0, "se": se, "unsure": unsure}


def test_what_counts_as_right():
    estimates = [record("estimate", a) for a in (0.1, 1.9, -1.9, -2.1)]
    cell = soundness._cell([*estimates, record("estimate", 9, unsure=True), record("estimate", 9, se=None)])
    assert (cell["within"], cell["estimates"], cell["warned"], cell["without_se"]) == (0.75, 4, 1, 1)
    assert cell["mean_z"] == pytest.approx(-0.5)
    cell = soundness._cell([record("lower bound", a) for a in (-50, 3.9, 4.1)])
    assert cell["below"] == pytest.approx(2 / 3) and cell["within"] is None
    cell = soundness._cell([record("exact", 1e-9, se=0.0), record("exact", 1e-3, se=0.0)])
    assert cell["equal"] == 0.5


def cell(**values):
    nothing = dict.fromkeys(("within", "below", "equal", "mean_z"))
    counts = dict.fromkeys(("runs", "refused", "without_se", "warned", "estimates", "bounds", "exact"), 0)
    return {"model": "curve", "method": "ais", "claim": "claimed", **nothing, **counts, **values}


def test_cells_that_are_not_as_they_should_be():
    good = [cell(estimates=200, within=0.95), cell(estimates=5, within=0.8), cell(bounds=9, below=1.0)]
    bad = [cell(estimates=200, within=0.85), cell(estimates=200, within=1.0), cell(exact=9, equal=0.9)]
    document = {"between": [0.90, 0.99], "cells": [*good, *bad], "seeds": 200, "rows": [20, 5000], "seconds": 1.0}
    assert soundness.outside(document) == bad
    text = soundness.text_of(document)
    assert "95.0% of 200 within ±2 se" in text and text.endswith("curve, ais (claimed); curve, ais (claimed)")
    table = readme.TABLES["soundness"].table(document)
    assert len(table.splitlines()) == 5 and "| lower bound | 9 | 100.0% below" in table


@pytest.fixture(scope="module")
def document():
    return soundness.main(quick=True)


@pytest.mark.full
def test_a_quick_run_says_everything(document):
    claimed = {(c["model"], c["method"]) for c in document["cells"] if c["claim"] == "claimed"}
    assert claimed == {(name, way) for name, problem in soundness.PROBLEMS.items() for way in problem.ways}
    assert all(c["runs"] == 1 for c in document["cells"])
    exact = [c for c in document["cells"] if c["method"] == "em"]
    assert len(exact) == 4 and all(c["equal"] == 1 for c in exact)
