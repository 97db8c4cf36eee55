"""Gaussian programs on a covariance or correlation matrix: against formulas, scikit-learn, and the data themselves."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_programs import correlated_noise, random_intercept
from sklearn.datasets import load_wine
from torch.distributions import constraints

from inference import infer, load, run
from inference._run.request import Request
from zoo._data import datasets
from zoo._errors import UsageError

WINE = load_wine(as_frame=True).data.iloc[:, :7]
CORRELATIONS = WINE.corr()
MATRIX = WINE.cov(ddof=0)


@pytest.mark.parametrize("n", [8, 178, 12_345])
def test_the_rows_have_exactly_that_covariance(n):
    made = datasets.load(MATRIX, covariance_of=n)
    assert made.x.shape == (n, 7) and not made.has_rows and made.options["covariance_of"] == n
    assert made.columns == tuple(WINE.columns)
    size = np.sqrt(np.diag(MATRIX))
    assert np.abs((made.x.T @ made.x / n - MATRIX.to_numpy()) / np.outer(size, size)).max() < 1e-13
    assert np.abs(made.x.mean(0) / size).max() < 1e-13


def test_log_p_is_that_of_the_formula_and_of_the_data():
    found = run("factor_analysis", MATRIX, covariance_of=178, latents=2)
    noise, W = found.parameters["noise"], found.parameters["loadings"]
    sigma, S = W @ W.T + np.diag(noise**2), MATRIX.to_numpy()
    value = -89 * (7 * np.log(2 * np.pi) + np.linalg.slogdet(sigma)[1] + np.trace(np.linalg.solve(sigma, S)))
    assert found.claimed.kind == "exact" and found.claimed.value == pytest.approx(value, rel=1e-10)
    assert found.verified.value == pytest.approx(value, rel=1e-10)
    assert found.claimed.value == pytest.approx(run("factor_analysis", WINE, latents=2).claimed.value, abs=1e-3)


def test_standardising_makes_correlations_of_covariances():
    one = run("factor_analysis", MATRIX, covariance_of=178, standardize=True, latents=2)
    other = run("factor_analysis", CORRELATIONS, covariance_of=178, latents=2)
    data = run("factor_analysis", WINE, standardize=True, latents=2)
    assert one.claimed.value == pytest.approx(other.claimed.value, abs=1e-6)
    assert one.claimed.value == pytest.approx(data.claimed.value, abs=1e-3)
    assert np.allclose(data.loadings().loadings, other.loadings().loadings, atol=2e-3)


def write(frame, path, **how):
    frame.to_csv(path, **how)
    return str(path)


def test_a_matrix_is_read_in_any_shape(tmp_path):
    whole = datasets.load(CORRELATIONS, covariance_of=50).x
    lower = CORRELATIONS.where(np.tril(np.ones((7, 7))) > 0)
    np.save(tmp_path / "c.npy", CORRELATIONS.to_numpy())
    for spec in (
        CORRELATIONS.to_numpy(),
        CORRELATIONS.iloc[::-1],
        lower,
        lower.T,
        str(tmp_path / "c.npy"),
        write(CORRELATIONS, tmp_path / "named.csv"),
        write(CORRELATIONS, tmp_path / "bare.csv", index=False),
        write(CORRELATIONS, tmp_path / "less.csv", index=False, header=False),
        write(lower, tmp_path / "lower.csv"),
        write(CORRELATIONS.iloc[::-1], tmp_path / "reversed.csv"),
        write(CORRELATIONS, tmp_path / "semicolons.csv", sep=";"),
    ):
        assert np.allclose(datasets.load(spec, covariance_of=50).x, whole, atol=1e-12)


def changed(i, j, value, other=None):
    matrix = CORRELATIONS.copy()
    matrix.iloc[i, j] = value
    matrix.iloc[j, i] = value if other is None else other
    return matrix


@pytest.mark.parametrize(
    ("matrix", "n", "words"),
    [
        (WINE, 178, "Expected a square matrix"),
        (changed(0, 1, 0.5, other=0.4), 178, "not symmetric: for 'alcohol' and 'malic_acid'"),
        (changed(0, 1, np.nan), 178, "no covariance of 'alcohol' and 'malic_acid'"),
        (changed(2, 2, 0.0), 178, "variances above 0 on the diagonal of 'table', got 0 for 'ash'"),
        (changed(0, 1, -1.2), 178, "means a correlation of -1.2"),
        (changed(0, 1, 0.999), 178, "not positive definite"),
        (CORRELATIONS, 7, "more rows than columns"),
        ("other.csv", 178, "rows named as the columns in 'other', got 'tin'"),
        (CORRELATIONS, True, "number of rows behind the matrix"),
        (CORRELATIONS, 10**9, "give a smaller number"),
    ],
)
def test_what_is_no_covariance_matrix_says_why(matrix, n, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CORRELATIONS.rename(index={"ash": "tin"}).to_csv("other.csv")
    with pytest.raises(UsageError, match=words):
        datasets.load(matrix, covariance_of=n)


@pytest.mark.parametrize("option", [{"rows": 5}, {"missing": "random:0.1"}, {"binarize": 0.5}])
def test_there_are_no_rows_to_prepare(option):
    with pytest.raises(UsageError, match="of a covariance matrix there are no rows"):
        datasets.load(CORRELATIONS, covariance_of=178, **option)


# ------------------------------------------------------------------------------------------ which programs it serves


def plate(x, size):
    return pyro.plate("data", size if x is None else len(x))


def one_normal(x=None, size=None):
    mean = pyro.param("mean", torch.zeros(7))
    tril = pyro.param("tril", torch.eye(7), constraint=constraints.lower_cholesky)
    with plate(x, size):
        return pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=tril), obs=x)


def student(x=None, size=None):
    with plate(x, size):
        return pyro.sample("x", dist.StudentT(4.0, torch.zeros(7), 1.0).to_event(1), obs=x)


def own_precision(x=None, size=None):
    with plate(x, size):
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        return pyro.sample("x", dist.Normal(torch.zeros(7), tau.unsqueeze(-1) ** -0.5).to_event(1), obs=x)


def cubes(x=None, size=None):
    scale = pyro.param("scale", torch.ones(7), constraint=constraints.positive)
    with plate(x, size):
        return pyro.sample("x", dist.Normal(torch.zeros(7), scale).to_event(1), obs=None if x is None else x**3)


def regression(x=None, size=None):
    slope = pyro.param("slope", torch.tensor(0.5))
    with plate(x, size):
        mean = slope * (torch.zeros(size) if x is None else x[:, 0])
        y = pyro.sample(
            "y", dist.Normal(mean.unsqueeze(-1).expand(-1, 6), 1.0).to_event(1), obs=None if x is None else x[:, 1:]
        )
        return y


def test_one_normal_reaches_the_saturated_likelihood():
    S = MATRIX.to_numpy()
    saturated = -89 * (7 * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + 7)
    assert run(one_normal, MATRIX, covariance_of=178).claimed.value == pytest.approx(saturated, abs=1e-6)


@pytest.mark.parametrize("program", [correlated_noise, random_intercept])
def test_a_users_linear_program_is_served(program):
    x = WINE.iloc[:, :5] - WINE.iloc[:, :5].mean()
    matrix = x.cov(ddof=0)
    made, data = (run(program, d, max_iter=3, **how) for d, how in ((matrix, {"covariance_of": 178}), (x, {})))
    assert made.claimed.value == pytest.approx(data.claimed.value, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gmm", "discrete latent 'z'"),
        (student, "not normal"),
        (cubes, "each column as it is"),
        (regression, "row to row"),
    ],
)
def test_a_program_that_needs_rows_is_refused(model, words):
    with pytest.raises(UsageError, match=f"needs the rows themselves: .*{words}"):
        run(model, CORRELATIONS, covariance_of=178)


# -------------------------------------------------------------------------------------------- what is said of rows


def test_nothing_is_made_of_single_rows(tmp_path):
    found = run("factor_analysis", CORRELATIONS, covariance_of=178, latents=2, out=tmp_path / "run")
    assert any("made from a covariance matrix" in w for w in found.warnings)
    for one in (found, load(tmp_path / "run")):
        assert not one.dataset.has_rows
        with pytest.raises(UsageError, match="no rows to score"):
            one.loadings().scores()
        with pytest.raises(UsageError, match="leave-one-out needs rows"):
            one.loo()
    z = (WINE - WINE.mean()) / WINE.std(ddof=0)
    data = run("factor_analysis", z, latents=2)
    assert np.allclose(found.loadings().scores(z), data.loadings().scores(), atol=1e-2)
    assert infer(found, "em", data=z).claimed.value == pytest.approx(data.claimed.value, abs=1e-2)
    assert {p.stem for p in found.plot(out=tmp_path / "plots")} == {"loadings", "trace"}


def test_the_request_can_be_repeated():
    asked = Request("factor_analysis", "r.csv", "em", preparation={"covariance_of": 178})
    assert "--covariance-of 178" in asked.command()
    assert Request.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from zoo.__main__ import app

    monkeypatch.chdir(tmp_path)
    pd.DataFrame(MATRIX).to_csv("r.csv")
    words = ["run", "factor_analysis", "--data", "r.csv", "--covariance-of", "178", "--set", "latents=2", "--json"]
    document = json.loads(CliRunner().invoke(app, words).stdout)
    assert document["n"] == 178 and document["options"]["data"]["covariance_of"] == 178


def test_new_rows_for_a_covariance_matrix_are_told_which_units_they_need(tmp_path):
    from inference import infer

    run("factor_analysis", np.eye(3) + 0.5, covariance_of=50, latents=1).save(tmp_path / "run")
    told = infer(tmp_path / "run", "em", data=np.ones((2, 3))).warnings
    assert any("in the units of that matrix" in said for said in told)
