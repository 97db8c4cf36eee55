"""Loadings, rotations and scores: against SciPy's own optima, scikit-learn, formulas, and R's published numbers."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from linear_programs import correlated_noise, mixture_of_factor_analysers, rows_of_their_own_noise, two_latents_that_add
from scipy.linalg import expm
from scipy.optimize import minimize
from sklearn.datasets import load_wine
from sklearn.decomposition import FactorAnalysis
from typer.testing import CliRunner

from inference import load, run
from inference._loadings.rotation import CRITERIA, NAMES, rotate
from zoo.__main__ import app
from zoo._errors import UsageError

RNG = np.random.default_rng(3)
CASES = {f"{D}x{L}": RNG.normal(size=(D, L)) * RNG.random((D, 1)) for D, L in ((8, 2), (9, 3))}
WINE = load_wine(as_frame=True).data


@pytest.fixture(scope="module")
def fitted():
    return run("factor_analysis", WINE, standardize=True, latents=3, tol=1e-12, max_iter=5000)


# ------------------------------------------------------------------------------------------------------- rotations


def lowest(A, criterion, oblique):
    """The criterion at its minimum over rotations, by SciPy from many starts."""
    L = A.shape[1]
    free = L * L if oblique else L * (L - 1) // 2

    def value(v):
        if oblique:
            T = v.reshape(L, L)
            return criterion(A @ np.linalg.inv(T / np.sqrt(np.square(T).sum(0))).T)[0]
        skew = np.zeros((L, L))
        skew[np.triu_indices(L, 1)] = v
        return criterion(A @ expm(skew - skew.T))[0]

    starts = np.random.default_rng(1).normal(size=(12, free)) * (1.0 if oblique else 1.5)
    return min(minimize(value, s, method="BFGS", options={"gtol": 1e-9}).fun for s in starts)


def simple(loadings):
    """Kaiser's and others' criteria in their textbook forms, not the code's."""
    squares = loadings**2
    varimax = (len(squares) * (squares**2).sum(0) - squares.sum(0) ** 2).sum() / len(squares)
    crossed = squares.T @ squares
    return {"varimax": varimax, "quartimax": (squares**2).sum(), "oblimin": crossed.sum() - np.trace(crossed)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["varimax", "quartimax", "oblimin"])
@pytest.mark.parametrize("kaiser", [True, False])
def test_a_rotation_is_at_the_optimum(case, name, kaiser):
    A = CASES[case]
    rows = A / np.sqrt((A**2).sum(1, keepdims=True)) if kaiser else A
    found = rotate(A, name, kaiser)
    best = lowest(rows, CRITERIA[name], name == "oblimin")
    assert found.converged and found.criterion == pytest.approx(best, abs=1e-7)
    turned = rows @ np.linalg.inv(found.T).T
    assert found.criterion == pytest.approx(simple(turned)[name] * (0.25 if name == "oblimin" else -0.25))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_rotation_keeps_the_fit(case, name):
    A, T = CASES[case], rotate(CASES[case], name).T
    turned, phi = A @ np.linalg.inv(T).T, T.T @ T
    assert np.allclose(np.diag(phi), 1)
    assert np.allclose(turned @ phi @ turned.T, A @ A.T)
    if name in ("varimax", "quartimax"):
        assert np.allclose(phi, np.eye(len(phi)))


def test_gradients_are_those_of_the_criteria():
    A = CASES["9x3"]
    for criterion in CRITERIA.values():
        step = RNG.normal(size=A.shape)
        slope = (criterion(A + 1e-6 * step)[0] - criterion(A - 1e-6 * step)[0]) / 2e-6
        assert (criterion(A)[1] * step).sum() == pytest.approx(slope, rel=1e-6)


def test_one_factor_has_no_rotation():
    assert rotate(CASES["8x2"][:, :1], "varimax").T.tolist() == [[1.0]]


# ------------------------------------------------------------------------------------- R's numbers, from a covariance

ABILITY = pd.DataFrame(  # six tests of ability, Smith & Stanley 1983: R's `ability.cov`, 112 persons
    [
        [24.641, 5.991, 33.520, 6.023, 20.755, 29.701],
        [5.991, 6.700, 18.137, 1.782, 4.936, 7.204],
        [33.520, 18.137, 149.831, 19.424, 31.430, 50.753],
        [6.023, 1.782, 19.424, 12.711, 4.757, 9.075],
        [20.755, 4.936, 31.430, 4.757, 52.604, 66.762],
        [29.701, 7.204, 50.753, 9.075, 66.762, 135.292],
    ],
    columns=(names := ["general", "picture", "blocks", "maze", "reading", "vocab"]),
    index=names,
)


@pytest.fixture(scope="module")
def ability():
    return run("factor_analysis", ABILITY, covariance_of=112, latents=2, tol=1e-12, max_iter=5000)


def test_r_factanal_of_a_covariance_matrix(ability):
    """factanal(factors = 2, covmat = ability.cov), as in R's own documentation: printed with three digits."""
    found = ability.loadings("varimax")
    assert np.allclose(found.uniquenesses, [0.455, 0.589, 0.218, 0.769, 0.052, 0.334], atol=6e-4)
    published = [[0.499, 0.543], [0.156, 0.622], [0.206, 0.860], [0.109, 0.468], [0.956, 0.182], [0.785, 0.225]]
    assert np.allclose(found.loadings, published, atol=0.004)  # R's varimax stops a little before the maximum
    assert found.explained.iloc[2, 1] == pytest.approx(0.597, abs=6e-4)
    oblique = ability.loadings("promax")
    published = [[0.364, 0.470], [-0.06, 0.671], [-0.09, 0.932], [-0.05, 0.508], [1.023, -0.1], [0.811, 0.01]]
    assert np.allclose(oblique.loadings, published, atol=0.006)
    assert oblique.correlations.iloc[0, 1] == pytest.approx(0.557, abs=0.002)


def test_r_likelihood_ratio_of_that_model(ability):
    S = ABILITY.to_numpy()
    saturated = -56 * (6 * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + 6)
    chi = 2 * (saturated - ability.claimed.value) / 112 * (111 - (2 * 6 + 5) / 6 - 2 * 2 / 3)
    assert chi == pytest.approx(6.11, abs=0.01)  # "The chi square statistic is 6.11 on 4 degrees of freedom"


# ---------------------------------------------------------------------------------------------------------- tables


def test_the_tables_of_a_run_are_those_of_scikit_learn(fitted):
    X = (WINE - WINE.mean()) / WINE.std(ddof=0)
    peer = FactorAnalysis(3, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(X)
    found = fitted.loadings(None)
    assert np.allclose(found.uniquenesses, peer.noise_variance_, atol=2e-4)
    for rotation in (None, "varimax", "promax", "oblimin"):
        turned = fitted.loadings(rotation)
        implied = turned.loadings @ turned.correlations @ turned.loadings.T + np.diag(turned.uniquenesses)
        assert np.allclose(implied, peer.get_covariance(), atol=1e-3)
        assert np.allclose(turned.communalities + turned.uniquenesses, 1)
        assert turned.explained.loc["SS loadings"].sum() == pytest.approx(turned.communalities.sum())
        sums = turned.explained.loc["SS loadings"].to_numpy()
        assert (np.diff(sums) <= 0).all() and (turned.loadings.max() == turned.loadings.abs().max()).all()


def test_raw_loadings_are_in_the_datas_own_units(fitted):
    raw, standard = fitted.loadings("promax", standardized=False), fitted.loadings("promax")
    implied = raw.loadings @ raw.correlations @ raw.loadings.T + np.diag(raw.uniquenesses)
    assert np.allclose(np.sqrt(np.diag(implied)), WINE.std(ddof=0), rtol=1e-4)  # the diagonal is fitted exactly
    assert np.allclose(standard.loadings, raw.loadings.div(np.sqrt(np.diag(implied)), axis=0))


def test_the_programs_own_latents_keep_their_correlations():
    x = RNG.normal(size=(80, 5)) @ RNG.normal(size=(5, 5))
    fitted = run(two_latents_that_add, x, max_iter=20)
    found = fitted.loadings("own")
    assert found.loadings.columns.tolist() == ["z[0]", "z[1]", "u"]
    corr = 0.5 / np.sqrt(0.25 + 0.16)  # u | z ~ N(0.5 z_0, 0.4)
    assert np.allclose(found.correlations, [[1, 0, corr], [0, 1, 0], [corr, 0, 1]])
    turned = fitted.loadings("oblimin")
    sigma = found.loadings @ found.correlations @ found.loadings.T
    assert np.allclose(turned.loadings @ turned.correlations @ turned.loadings.T, sigma)


def test_it_prints_and_goes_into_a_frame(fitted):
    found = fitted.loadings("promax")
    text = repr(found)
    assert "proline" in text and "SS loadings" in text and "Factor correlations" in text
    assert found.to_frame().columns.tolist() == ["F1", "F2", "F3", "communality", "uniqueness"]
    assert json.loads(json.dumps(found.to_json()))["loadings"]["proline"].keys() == {"F1", "F2", "F3"}


# ---------------------------------------------------------------------------------------------------------- scores


def test_regression_scores_are_posterior_means(fitted):
    found, z = fitted.loadings("own").scores(), fitted.means["z"]
    assert np.allclose(found, z, atol=1e-8)
    turned = fitted.loadings("varimax")
    assert np.allclose(turned.scores() @ turned.loadings.T, z @ fitted.loadings("own").loadings.to_numpy().T, atol=1e-8)


@pytest.mark.parametrize("rotation", [None, "varimax", "oblimin", "promax"])
def test_scores_are_thomsons_and_bartletts(fitted, rotation):
    found = fitted.loadings(rotation)
    Lam, Phi, Psi = found.loadings.to_numpy(), found.correlations.to_numpy(), np.diag(found.uniquenesses)
    X = ((WINE - WINE.mean()) / np.sqrt(fitted.x.var(0) * WINE.var(ddof=0))).to_numpy()
    inverse = np.linalg.inv(Psi)
    bartlett = X @ inverse @ Lam @ np.linalg.inv(Lam.T @ inverse @ Lam)
    thomson = X @ np.linalg.inv(Lam @ Phi @ Lam.T + Psi) @ Lam @ Phi
    assert np.allclose(found.scores(kind="bartlett"), bartlett, atol=1e-3)
    assert np.allclose(found.scores(), thomson, atol=1e-3)


def test_bartletts_scores_are_unbiased_given_the_factors(fitted):
    """Of rows without noise, x = μ + Λ f in the data's own units, they are f itself."""
    found = fitted.loadings("oblimin", standardized=False)
    f = RNG.normal(size=(5, 3))
    rows = pd.DataFrame(f @ found.loadings.to_numpy().T, columns=WINE.columns) + WINE.mean()
    assert np.allclose(found.scores(rows.iloc[:, ::-1], kind="bartlett"), f, atol=1e-5)
    assert not np.allclose(found.scores(rows), f, atol=1e-2)


@pytest.mark.parametrize("program", ["factor_analysis", correlated_noise])
def test_a_row_with_holes_is_scored_by_what_it_has(program):
    x = RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5))
    full = run(program, x, max_iter=30)
    x = x[:3].copy()
    x[0, [1, 3]], x[1], x[2, 1:] = np.nan, np.nan, np.nan
    found = full.loadings("varimax", standardized=False)
    Lam = found.loadings.to_numpy()
    task = full.at_theta()
    mean = task.program.values()["mu" if program is correlated_noise else "mean"].detach().numpy()
    if program is correlated_noise:
        tril = task.program.values()["tril"].detach().numpy()
        noise = tril @ tril.T
    else:
        noise = np.diag(found.uniquenesses)
    seen = [0, 2, 4]
    sigma = (Lam @ Lam.T + noise)[np.ix_(seen, seen)]
    thomson, bartlett = found.scores(x), found.scores(x, kind="bartlett")
    assert np.allclose(thomson.iloc[0], Lam[seen].T @ np.linalg.solve(sigma, (x[0] - mean)[seen]))
    inverse = np.linalg.inv(noise[np.ix_(seen, seen)])
    weights = np.linalg.solve(Lam[seen].T @ inverse @ Lam[seen], Lam[seen].T @ inverse)
    assert np.allclose(bartlett.iloc[0], weights @ (x[0] - mean)[seen])
    assert (thomson.iloc[1] == 0).all() and bartlett.iloc[1:].isna().all(axis=None)
    assert thomson.notna().all(axis=None)


def test_scores_keep_the_names_of_the_rows(fitted):
    named = fitted.dataset
    object.__setattr__(named, "row_names", tuple(f"w{i}" for i in range(178)))
    try:
        assert fitted.loadings().scores().index[:2].tolist() == ["w0", "w1"]
    finally:
        object.__setattr__(named, "row_names", None)


def test_noise_that_is_all_but_nothing_loses_no_digits():
    found = run("ppca", WINE.iloc[:, :6], standardize=True, latents=2, noise=0).loadings("varimax")
    thomson, bartlett = found.scores(), found.scores(kind="bartlett")
    assert np.allclose(thomson, bartlett, atol=1e-6) and np.isfinite(thomson).all(axis=None)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gmm", "has none: it has no continuous latents"),
        (mixture_of_factor_analysers, "without discrete latents"),
        (rows_of_their_own_noise, "differ from row to row"),
    ],
)
def test_a_program_without_loadings_says_why(model, words):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).numpy()
    with pytest.raises(UsageError, match=words):
        run(model, np.abs(x), max_iter=2).loadings()


def test_wrong_requests(fitted):
    for request, words in (
        (lambda: fitted.loadings("varimin"), "unknown rotation 'varimin'"),
        (lambda: fitted.loadings(standardized="no"), "True or False for standardized"),
        (lambda: fitted.loadings().scores(kind="mean"), "unknown kind 'mean' of scores"),
        (lambda: fitted.loadings().scores(WINE.iloc[:, :4]), "Expected the columns"),
    ):
        with pytest.raises(UsageError, match=words):
            request()


# ------------------------------------------------------------------------------------------------------ the command


def test_the_command(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    WINE.iloc[:4].to_csv(tmp_path / "few.csv", index=False)
    back = load(tmp_path / "run")
    zoo = CliRunner()

    def said(*words):
        return zoo.invoke(app, ["loadings", str(tmp_path / "run"), *words])

    assert "Factor correlations" in said("--rotation", "promax").output
    document = json.loads(said("--json", "--scores", "bartlett").output)
    assert np.allclose(document["scores"]["values"], back.loadings().scores(kind="bartlett"))
    out = tmp_path / "scores.csv"
    assert said("--scores", "regression", "--data", str(tmp_path / "few.csv"), "--out", str(out)).exit_code == 0
    assert np.allclose(pd.read_csv(out, index_col=0), fitted.loadings().scores().iloc[:4])
    assert said("--out", str(out), "--raw").exit_code == 0
    assert np.allclose(pd.read_csv(out, index_col=0), fitted.loadings(standardized=False).to_frame())
    assert said("--rotation", "round").exit_code == said("--scores", "mean").exit_code == 2
    assert said("--data", "x.csv").exit_code == 2
