"""Latent classes: at poLCA's published optimum, and at that of an EM written out in NumPy, mixed columns with holes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import structure_of, task_of
from scipy import stats
from typer.testing import CliRunner

from inference import infer, run
from inference._pictures import categories
from inference._pictures._views.scene import scene_of
from zoo.__main__ import app
from zoo._errors import UsageError

CARCINOMA = Path(__file__).parents[2] / "shared/data/latent_class/carcinoma.csv"
OPTIMA = {2: -317.2568, 3: -293.705, 4: -289.2858}  # Linzer & Lewis 2011, poLCA; Agresti 2002, table 13.1


def mixed(n: int = 150, seed: int = 0) -> np.ndarray:
    """Two classes; columns of categories (twice), 0/1, counts and measurements, a tenth of the entries missing."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 2, n)
    columns = [
        np.where(rng.random(n) < 0.7, np.where(z, 7, 1), 2),
        rng.random(n) < 0.2 + 0.5 * z,
        rng.poisson(5 + 9 * z, n),
        rng.normal(2 * z, 1, n),
        1 + (rng.random(n) < 0.2 + 0.6 * z),
    ]
    x = np.column_stack(columns).astype(float)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


def densities(x: np.ndarray, theta: dict[str, np.ndarray]) -> np.ndarray:
    """log p(x_i, z = k) [n, K] of `mixed`, by SciPy, column by column."""
    filled = np.where(np.isnan(x), [1, 1, 1, 1, 1], x)[:, :, None]
    columns = [
        np.log(theta["probs_3"][:, 0][:, np.searchsorted([1, 2, 7], filled[:, 0, 0])].T),
        stats.bernoulli.logpmf(filled[:, 1], theta["probs"][:, 0]),
        stats.poisson.logpmf(filled[:, 2], theta["rates"][:, 0]),
        stats.norm.logpdf(filled[:, 3], theta["locs"][:, 0], theta["scales"][:, 0]),
        np.log(theta["probs_2"][:, 0][:, filled[:, 4, 0].astype(int) - 1].T),
    ]
    seen = ~np.isnan(x)
    return np.log(theta["weights"]) + sum(seen[:, [d]] * column for d, column in enumerate(columns))


def em_by_hand(x: np.ndarray, r: np.ndarray, iterations: int) -> tuple[dict[str, np.ndarray], float]:
    """EM in NumPy from responsibilities r [n, K], each column's own weighted means over what is seen."""
    for _ in range(iterations):
        theta = {"weights": r.mean(0)}
        seen = ~np.isnan(x)
        mean = {d: r[seen[:, d]].T @ x[seen[:, d], d] / r[seen[:, d]].sum(0) for d in (1, 2, 3)}
        theta |= {"probs": mean[1][:, None], "rates": mean[2][:, None], "locs": mean[3][:, None]}
        squares = (x[seen[:, 3], 3, None] - mean[3]) ** 2
        theta["scales"] = np.sqrt((r[seen[:, 3]] * squares).sum(0) / r[seen[:, 3]].sum(0))[:, None]
        for name, d, codes in (("probs_3", 0, [1, 2, 7]), ("probs_2", 4, [1, 2])):
            counts = np.stack([(r * (x[:, d] == c)[:, None]).sum(0) for c in codes], -1)
            theta[name] = (counts / counts.sum(-1, keepdims=True))[:, None]
        joint = densities(x, theta)
        total = np.logaddexp.reduce(joint, 1)
        r = np.exp(joint - total[:, None])
    return theta, float(total.sum())


def test_mixed_columns_with_holes_reach_the_optimum_of_em_by_hand():
    x = mixed()
    fit = run("latent_classes", x, "em", classes=2, restarts=1)
    assert fit.notes["numeric"] == [] and fit.converged
    order = np.argsort(fit.parameters["locs"][:, 0])
    theta = {n: v[order] for n, v in fit.parameters.items()}
    by_hand, value = em_by_hand(x, np.eye(2)[(np.nan_to_num(x[:, 2], nan=9) > 9).astype(int)], 40)
    assert fit.verified.kind == "exact"
    assert fit.verified.value == pytest.approx(np.logaddexp.reduce(densities(x, theta), 1).sum(), abs=1e-8)
    assert fit.verified.value == pytest.approx(value, abs=1e-5)
    for name, expected in by_hand.items():
        assert theta[name] == pytest.approx(expected, abs=2e-3)


def test_imputed_entries_are_those_of_the_posterior_by_hand():
    x = mixed()
    fit = run("latent_classes", x, "em", classes=2, restarts=1)
    found, gone = fit.impute(draws=60), np.isnan(x)
    r = densities(x, fit.parameters)
    r = np.exp(r - np.logaddexp.reduce(r, 1)[:, None])
    category = np.array([1, 2, 7])[(r @ fit.parameters["probs_3"][:, 0]).argmax(1)]
    assert found.mean[gone[:, 0], 0] == pytest.approx(category[gone[:, 0]])
    assert found.mean[gone[:, 2], 2] == pytest.approx((r @ fit.parameters["rates"][:, 0])[gone[:, 2]])
    assert np.isnan(found.sd[gone[:, 0], 0]).all() and (found.sd[~gone] == 0).all()
    assert set(np.unique(found.draws[:, :, 0])) == {1, 2, 7} and set(np.unique(found.draws[:, :, 4])) == {1, 2}
    assert found.mean[~gone] == pytest.approx(x[~gone]) and not np.isnan(found.draws).any()
    share = (found.draws[:, gone[:, 0], 0] == 7).mean()
    expected = (r @ fit.parameters["probs_3"][:, 0])[gone[:, 0], 2]
    error = np.sqrt((expected * (1 - expected)).sum() / 60) / gone[:, 0].sum()
    assert abs(share - expected.mean()) < 4 * error


def test_codes_make_no_difference_and_simulated_rows_have_them():
    x = mixed()[:, [0, 4]]
    other = np.where(x == 7, -3.5, x * 10)
    values = [
        run("latent_classes", y, "em", classes=2, restarts=1, types="categorical").verified.value for y in (x, other)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    drawn = task_of("latent_classes", other, types="categorical").program(None, size=200)
    assert set(drawn[:, 0].tolist()) == {10.0, 20.0, -3.5} and set(drawn[:, 1].tolist()) == {10.0, 20.0}


def test_types_are_found_told_and_overruled():
    rng = np.random.default_rng(0)
    n = 200
    x = np.column_stack(
        [
            rng.integers(1, 6, n),  # five codes
            rng.integers(0, 2, n),  # 0 and 1
            rng.poisson(20, n),  # counts
            rng.normal(size=n),
            rng.integers(1980, 2020, n),  # whole numbers of far less variance than counts have
            rng.integers(-20, 21, n),  # and of both signs
        ]
    ).astype(float)
    structure = structure_of("latent_classes", x)
    sizes = {s.name: s.event_shape for s in structure.observed}
    assert sizes == {"categorical_5": (1,), "bernoulli": (1,), "poisson": (1,), "normal": (3,)}
    (said,) = structure.warnings
    assert "categorical for column 0; bernoulli for column 1; poisson for column 2; normal for columns 3, 4, 5" in said
    types = "normal,categorical,auto,normal,poisson,normal"
    named = structure_of("latent_classes", x, types=types)
    assert {s.name: s.event_shape for s in named.observed} == {"normal": (3,), "categorical_2": (1,), "poisson": (2,)}
    assert structure_of("latent_classes", x, types=types.replace("auto", "poisson")).warnings == ()


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        ([[3.0, 0], [3, 1]] * 5, {}, "it expects values that vary, and there is only 3. Leave the column out"),
        ([[np.nan, 0], [np.nan, 1]], {"types": "normal"}, "there is no value at all"),
        ([[1.0, 0], [2, 1]], {"types": "bernoulli"}, "column 0 (counting from 0) does not fit type bernoulli"),
        ([[1.5, 0], [2, 1]], {"types": "poisson"}, "it expects whole numbers from 0 on"),
        ([[1.0, 0], [2, 1]], {"types": "normal,normal,normal"}, "one for each of the 2 columns, got 3"),
        ([[1.0, 0], [2, 1]], {"types": "gaussian"}, "types must be one of auto, categorical"),
        ([[1.0, 0], [2, 1]], {"classes": 3}, "at most as many classes as rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_said(x, options, sentence):
    with pytest.raises(UsageError) as error:
        run("latent_classes", np.array(x), "em", **options)
    assert sentence in str(error.value)


def test_new_rows_with_a_code_never_seen_are_refused_and_those_with_holes_are_not(tmp_path):
    x = np.column_stack([np.tile([1.0, 2.0, 5.0], 20), np.repeat([3.0, 4.0], 30)])
    run("latent_classes", x, "em", classes=2, restarts=1, out=tmp_path / "fit")
    with pytest.raises(UsageError, match=r"row 1 \(counting from 0\) holds \[-1.0\], made of \[4.0, 3.0\] in x"):
        infer(tmp_path / "fit", "em", data=np.array([[1.0, 3.0], [4.0, 3.0]]))
    fit = infer(tmp_path / "fit", "em", data=np.array([[np.nan, 3.0]]))
    assert fit.verified.value == pytest.approx(np.log(0.5), abs=1e-6)


@pytest.mark.parametrize(
    "classes", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_carcinoma_by_the_command_is_where_polca_is(classes, tmp_path):
    if not CARCINOMA.exists():
        pytest.skip("the carcinoma data are not here")
    asked = ["run", "latent_classes", "--data", str(CARCINOMA), "--set", f"classes={classes}", "--json"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "run")]).stdout)
    assert found["verified_log_evidence"]["kind"] == "exact"
    assert found["verified_log_evidence"]["value"] == pytest.approx(OPTIMA[classes], abs=1e-3)
    assert np.shape(found["parameters"]["probs_2"]) == (classes, 7, 2)


def test_columns_of_one_value_are_served_where_they_can_be():
    x = np.column_stack([np.zeros(40), np.full(40, np.nan), np.repeat([0.0, 1.0], 20), np.zeros(40)])
    fit = run("latent_classes", x, "em", classes=2, types="auto,auto,auto,poisson")
    assert fit.verified.value == pytest.approx(40 * np.log(0.5), abs=1e-3)


def test_the_picture_of_categories_shows_their_probabilities():
    fit = run("latent_classes", mixed(), "em", classes=2, restarts=1)
    found = categories.subject(scene_of(fit))
    assert list(found.shares) == [0, 1, 4]  # neither counts nor measurements
    assert found.values[0].tolist() == [1, 2, 7]
    theta, order = fit.parameters, found.components
    assert found.shares[0] == pytest.approx(theta["probs_3"][order, 0])
    assert found.shares[4] == pytest.approx(theta["probs_2"][order, 0])
    assert found.shares[1][:, 1] == pytest.approx(theta["probs"][order, 0])
    assert len(fit.plot("categories").axes[0].patches) == 2 * (3 + 2 + 2)


def test_svi_and_importance_serve_it():
    x = mixed(60)
    exact = run("latent_classes", x, "em", classes=2, restarts=1)
    bound = run("latent_classes", x, "svi", classes=2, epochs=30)
    assert bound.claimed.kind == "lower bound" and bound.claimed.value < exact.verified.value
    assert torch.is_tensor(exact.program(None, size=3))


def test_priors_are_conjugate_to_each_column():
    """One class: modes in closed form."""
    x = np.array([[1, 0, 3, 0.5], [2, 1, 5, -1.0], [2, 1, 2, 2.0], [3, np.nan, 4, 0.0], [2, 0, 9, 1.5]], dtype=float)
    types = ("categorical", "bernoulli", "poisson", "normal")
    fit = run("latent_classes", x, "em", classes=1, priors=True, types=types, quiet=True).fit
    found = fit.parameters
    assert fit.converged and fit.notes["numeric"] == ["weights"]  # which is 1
    assert np.allclose(found["probs_3"], (np.array([1, 3, 1]) + 1 / 3) / 6, atol=1e-8)
    assert found["probs"] == pytest.approx((2 + 0.5) / (4 + 1), abs=1e-8)
    assert found["rates"] == pytest.approx((23 + 1) / (5 + 2 / 4.6), abs=1e-8)


@pytest.mark.full
def test_measurements_with_priors_against_quadrature():
    x = np.array([[0.5], [-1.0], [2.0], [0.0], [1.5]])
    m, s = x.mean(), x.std()
    found = run("latent_classes", x, "laplace", types=("normal",), classes=1, priors=True, quiet=True).fit.claimed

    def joint(mu, log_variance):
        variance = np.exp(log_variance)
        like = stats.norm(mu[..., None], np.sqrt(variance)[..., None]).logpdf(x[:, 0]).sum(-1)
        return like + stats.norm(m, 2 * s).logpdf(mu) + stats.invgamma(2, scale=s**2).logpdf(variance) + log_variance

    mu, v = np.meshgrid(np.linspace(-8, 9, 400), np.linspace(-4, 6, 400))
    truth = np.log(np.exp(joint(mu, v)).sum() * (17 / 399) * (10 / 399))
    assert found.value == pytest.approx(truth, abs=0.01)
