"""`zoo bench completions`: more draws in pieces, bounds in their order, gradients without bias, and the README's tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import completions, missing_pixels
from benchmarks._images import estimates
from benchmarks._report.tables import NOTHING
from inference._sampling import weights
from inference._training import wake_sleep
from zoo._data import datasets

ROWS = ("fair coins, φ = ½", "all on, φ = 1", "factorised, φ learned", "autoregressive", "particle filter")


@pytest.fixture(scope="module")
def document():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wake_sleep, "DREAMS", 50)
        return completions.main(quick=True)


def of(problem, label):
    return next(r for r in problem["rows"] if r["label"] == label)


@pytest.mark.full
def test_a_quick_run_says_everything(document):
    for problem in document["problems"]:
        assert tuple(r["label"] for r in problem["rows"]) == ROWS
        for row in problem["rows"]:
            assert [p["samples"] for p in row["points"]] == ([] if row["label"] == "all on, φ = 1" else [1, 10, 100])
            assert all(math.isfinite(p["nats"]) for p in row["points"])
            assert all((p["se"] is None) == (p["samples"] == 1) for p in row["points"])
    text = completions.text_of(document)
    assert all(label in text for label in (*ROWS, *estimates.ESTIMATORS))


@pytest.mark.full
def test_bounds_lie_below_the_exact_value_in_the_order_of_what_q_can_hold(document):
    problem = document["problems"][0]
    coins, on, factorised, autoregressive = (of(problem, label)["elbo_nats"] for label in ROWS[:4])
    assert max(coins, on) < factorised < autoregressive <= problem["exact_nats"] + 1e-4


@pytest.mark.full
def test_estimates_come_to_the_exact_value(document):
    for label in ROWS[2:]:
        found = of(document["problems"][0], label)["points"][-1]
        assert abs(found["nats"] - document["problems"][0]["exact_nats"]) < 5 * found["se"]
    halves = document["problems"][1]
    for found in of(halves, "particle filter")["points"]:  # all that is seen comes first
        assert found["nats"] == pytest.approx(halves["exact_nats"], abs=1e-3)


@pytest.mark.full
def test_gradients_scatter_less_with_baselines_and_not_at_all_summed_out(document):
    noise = {r["estimator"]: r for r in document["gradients"]}
    without, pyros, ours, exact = (noise[name] for name in estimates.ESTIMATORS)
    for when in ("untrained", "half_trained"):
        assert exact[when] == pytest.approx(0, abs=1e-8)
        assert 0 < 3 * max(pyros[when], ours[when]) < without[when]


@pytest.fixture(scope="module")
def task():
    """Three digits with six pixels missing."""
    torch.manual_seed(0)
    holes = datasets.load("digits", binarize=8).x[:3].copy()
    for row, random in enumerate(np.random.default_rng(0).spawn(3)):
        holes[row, random.choice(64, 6, replace=False)] = np.nan
    options = {"hidden": (20,)}
    theta = estimates.new_task(np.nan_to_num(holes), options, dtype=torch.float64)
    return estimates.new_task(holes, options, theta.program, dtype=torch.float64)


def test_pieces_are_as_good_as_one_go(task):
    assert list(estimates._pieces(10, 4)) == [4, 4, 2]
    assert list(estimates._pieces(3, 0)) == [1, 1, 1]
    exact = task.exact.per_datum({}, {}).detach()
    for numbers in (1000, weights.NUMBERS):
        log_w = estimates.log_weights(task, None, 4000, numbers)
        found, se = weights.log_mean(log_w)
        assert log_w.shape == (4000, 3) and ((found - exact).abs() < 4 * se).all()
        walked, filters = estimates.filtered(task, 2000, numbers)
        found, se = weights.log_mean(walked, filters)
        assert walked.shape == (2000, 3) and ((found - exact).abs() < 4 * se).all()
    parts = torch.stack([weights.log_mean(part)[0] for part in log_w.split(1000)])
    torch.testing.assert_close(weights.log_mean(parts)[0], weights.log_mean(log_w)[0])


@pytest.mark.full
def test_every_estimator_of_the_gradient_has_the_same_mean(task):
    torch.manual_seed(0)
    noise = estimates.Noise(task, estimates.fresh(task, "mean_field", on=0.4))
    exact = noise.gradients("enumeration", 2)
    assert torch.equal(exact[0], exact[1])
    for how in list(estimates.ESTIMATORS)[:3]:
        found = noise.gradients(how, 200)
        away = (found.mean(0) - exact[0]) / (found.std(0) / 200**0.5)
        assert away.abs().max() < 4, how


@pytest.mark.full
def test_the_picture_is_drawn(document, tmp_path):
    estimates.picture(tmp_path / "completions.png", document["problems"])
    assert 10_000 < (tmp_path / "completions.png").stat().st_size < 250_000


def test_tables_for_the_readme():
    point = {"samples": 100_000, "nats": -15.1726, "se": 0.0012, "khat_above_0.7": 0.1}
    rows = [
        {"label": "φ = 1", "elbo_nats": -72.0, "points": []},
        {"label": "filter", "elbo_nats": None, "points": [point]},
    ]
    made = {
        "problems": [{"title": "8 × 8", "exact_nats": -15.17, "rows": rows}],
        "gradients": [{"estimator": "ours", "untrained": 2.613, "half_trained": 1.0}],
    }
    text = completions.table(made)
    assert "| 8 × 8 | φ = 1 | -72.00 | – | – | -15.17 |".replace("–", NOTHING) in text
    assert "-15.173 ± 0.001 | 10% |" in text and "estimate from 100,000 draws" in text
    assert "| ours | 2.61 | 1 |" in text


def test_tables_of_autoregressive_models_for_the_readme():
    model = {"net": "made", "test_nats": 88.404, "test_nats_se_images": 0.2, "published_nats": 88.4}
    row = {"name": "nearest neighbour", "nats": None, "bits_per_pixel": None, "kind": "", "error": 0.08, "wrong": 0.08}
    other = {"name": "MADE", "nats": 50.0, "bits_per_pixel": 0.184, "kind": "exact", "error": 0.05, "wrong": 0.07}
    unsure = other | {"kind": "estimate", "khat": {"frac_above_0.7": 1.0}}
    document = {"data": "binarized_mnist", "models": [model], "completion": {"rows": [row, other, unsure]}}
    text = missing_pixels.table(document, document | {"data": "mnist5k"})
    assert "| binarized_mnist | `net=made` | 88.40 ± 0.20 | 88.40 |" in text
    assert f"| mnist5k | `net=made` | 88.40 ± 0.20 | {NOTHING} |" in text
    assert "| mnist5k | MADE | 50.0 (0.184 bits a pixel) | exact | 0.0500 | 7.0% |" in text
    assert "| estimate, k-hat above 0.7 for 100% |" in text
