"""8 × 8 digits with 9 pixels missing: enumeration is the truth that every other method is held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import task_of

from inference import infer, run
from inference._run import runner
from inference._sampling import weights
from zoo._data import datasets

IMAGES, MISSING = 40, 9
TRAINING = {"epochs": 40, "lr": 0.01, "batch": 100, "schedule": "cosine", "hidden": (40,)}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", binarize=8).x


@pytest.fixture(scope="module")
def holes(digits):
    random = np.random.default_rng(0)
    some = digits[random.choice(len(digits), IMAGES, replace=False)].copy()
    for image in some:
        image[random.choice(64, MISSING, replace=False)] = np.nan
    return some


def fair_coins(theta, holes):
    """The ELBO of each image under completions by fair coins [n], summed over all of them."""
    program = infer(theta, "importance", data=holes[:1], proposal="sequential", samples=4).program
    task = task_of("missing_pixels", holes, hidden=TRAINING["hidden"])
    task.program.load_state_dict(program.state_dict())
    every = task.exact.assignments["x_missing"]  # [2^M, 1, M]
    with torch.no_grad():
        parts = [
            weights.log_joint(task.program, task.structure, x, {"x_missing": every.expand(-1, len(x), -1)}).mean(0)
            for x in task.x.split(10)
        ]
    return torch.cat(parts).numpy() + MISSING * np.log(2)


@pytest.mark.full
def test_every_method_against_enumeration(digits, holes, tmp_path, monkeypatch):
    """Estimates agree with the truth within their errors, bounds lie below it, and in the order of what q can hold."""
    theta = tmp_path / "theta"
    run("missing_pixels", digits, "svi", out=theta, **TRAINING)
    exact = infer(theta, "em", data=holes).claimed
    assert exact.kind == "exact"
    truth = exact.per_datum
    monkeypatch.setattr(
        runner, "verify", lambda task, fit: (fit, None)
    )  # it is verified here, and enumerating takes its time

    learned = {"data": holes, "epochs": 100, "lr": 0.01, "hidden": (40,)}
    filtered = infer(theta, "importance", data=holes, proposal="sequential", samples=2000)
    guided = infer(theta, "importance", guide="autoregressive", samples=2000, particles=5, **learned)
    for fit in (filtered, guided):
        # a few rows' weights make a bound of the sum; each row is near the truth all the same
        assert fit.claimed.kind in ("estimate", "lower bound")
        away = np.abs(fit.claimed.per_datum - truth) / fit.claimed.se_per_datum
        assert (away <= 3).sum() >= IMAGES - 1, np.sort(away)[-5:]

    bounds = [fair_coins(theta, holes)]
    for guide, how in (("mean_field", {"lr": 0.2}), ("autoregressive", {"lr": 0.02})):
        fit = infer(theta, "svi", guide=guide, schedule="cosine", **{**learned, **how})
        assert fit.claimed.kind == "lower bound"
        bounds.append(fit.claimed.per_datum)
    for bound in bounds:
        assert np.all(bound <= truth + 1e-9)
    naive, factorised, autoregressive = (float((truth - b).mean()) for b in bounds)
    assert naive > factorised > autoregressive >= 0
