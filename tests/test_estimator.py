"""`Estimator`: the models as scikit-learn estimators, held to scikit-learn's own checks and to its own models."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as TheirFactorAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from inference import Estimator
from zoo._data import datasets
from zoo._errors import UsageError

MODELS = {"gmm": {}, "ppca": {"latents": 1}, "factor_analysis": {"latents": 1}}
EXPECTED = {  # the one check that is expected to fail, and why
    "gmm": {
        "check_sample_weight_equivalence_on_dense_data": "compares fits of shuffled rows, and a mixture of 15 rows in 10 "
        "columns has many optima; with the same start weights and copies give the same θ (tests/test_weights.py)"
    },
    "ppca": {
        "check_sample_weight_equivalence_on_dense_data": "asks for predict_proba of what an unfitted estimator has; which "
        "latents a program has, labels or none, is known once it has seen data"
    },
}
EXPECTED["factor_analysis"] = EXPECTED["ppca"]
QUICK = (  # of scikit-learn's checks, in the default run
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
    "check_fit_score_takes_y",
    "check_estimators_unfitted",
    "check_dont_overwrite_attributes",
    "check_fit1d",
    "check_fit2d_1sample",
    "check_complex_data",
    "check_estimators_empty_data_messages",
    "check_estimator_sparse_array",
    "check_n_features_in_after_fitting",
)


def rows(name: str = "faithful", n: int = 80) -> np.ndarray:
    return datasets.load(name, rows=n).x


@pytest.fixture(scope="module")
def mixture() -> Any:
    return Estimator("gmm", components=2).fit(rows())


@pytest.fixture(scope="module")
def factors() -> Any:
    return Estimator("factor_analysis", latents=2, standardize=True).fit(rows("wine"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_check_estimator(name: str) -> None:
    check_estimator(Estimator(name, **MODELS[name]), expected_failed_checks=EXPECTED[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_quick_checks(name: str) -> None:
    found = [c for e, c in estimator_checks_generator(Estimator("gmm", components=1)) if c.func.__name__ == name]
    for check in found:
        check(Estimator("gmm", components=1))


# ------------------------------------------------------------------------------------------------------ parameters


def test_parameters_are_options_too() -> None:
    one = Estimator("gmm", components=3, random_state=1)
    assert one.get_params() == {
        "model": "gmm",
        "method": "em",
        "random_state": 1,
        "standardize": False,
        "components": 3,
    }
    assert repr(one) == "Estimator(components=3, model='gmm', random_state=1)"
    other = clone(one).set_params(components=2, covariance="tied", restarts=2, method="em")
    assert other.get_params()["components"] == 2 and one.get_params()["components"] == 3
    assert Estimator("gmm", options={"components": 3}).get_params() == Estimator("gmm", components=3).get_params()
    with pytest.raises(UsageError, match=r"unknown parameter 'component' of Estimator\(.*did you mean components"):
        one.set_params(component=2)
    with pytest.raises(UsageError, match="unknown option"):
        Estimator("gmm", component=2).fit(rows())


def test_before_it_is_fitted() -> None:
    for method in ("predict", "predict_proba", "transform", "inverse_transform", "score", "score_samples"):
        with pytest.raises(NotFittedError):
            getattr(Estimator("gmm"), method)(rows())
    with pytest.raises(NotFittedError):
        _ = Estimator("gmm").run_


def test_what_the_latents_allow(mixture: Any, factors: Any) -> None:
    assert hasattr(mixture, "predict") and not hasattr(mixture, "inverse_transform")
    assert hasattr(factors, "inverse_transform") and not hasattr(factors, "predict")
    with pytest.raises(AttributeError) as error:
        factors.predict(rows("wine"))
    assert "has no discrete latent" in str(error.value.__cause__)


# ------------------------------------------------------------------------- against scikit-learn's own, and by formula


def test_mixture_is_gaussian_mixture(mixture: Any) -> None:
    x = rows()
    theirs = GaussianMixture(2, tol=1e-10, max_iter=1000, reg_covar=0, random_state=0).fit(x)
    order = np.argsort(-theirs.weights_)  # ours begin with the largest
    np.testing.assert_allclose(mixture.run_.parameters["locs"], theirs.means_[order], rtol=1e-4)
    np.testing.assert_allclose(mixture.score_samples(x), theirs.score_samples(x), atol=1e-4)
    assert mixture.score(x) == pytest.approx(theirs.score(x), abs=1e-6)
    np.testing.assert_allclose(mixture.predict_proba(x), theirs.predict_proba(x)[:, order], atol=1e-4)
    np.testing.assert_array_equal(mixture.predict(x), np.argsort(order)[theirs.predict(x)])
    np.testing.assert_array_equal(mixture.transform(x), mixture.predict_proba(x))
    assert mixture.evidence(x).kind == "exact"
    assert mixture.evidence(x).value == pytest.approx(mixture.run_.verified.value, rel=1e-9)


def test_factors_are_factor_analysis(factors: Any) -> None:
    x = rows("wine")
    theirs = make_pipeline(
        StandardScaler(), TheirFactorAnalysis(2, tol=1e-10, max_iter=20000, svd_method="lapack")
    ).fit(x)
    stretch = np.log(x.std(0)).sum()  # theirs is scored in standard deviations, ours in the data's own units
    assert factors.score(x) == pytest.approx(theirs.score(x) - stretch, abs=1e-4)
    ours, scores = factors.transform(x), theirs.transform(x)
    turn = np.linalg.lstsq(ours, scores, rcond=None)[0]  # the same up to a rotation
    np.testing.assert_allclose(ours @ turn, scores, atol=1e-2)
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-2)
    loadings, mean = factors.run_.parameters["loadings"], factors.run_.parameters["mean"]
    by_formula = (ours @ loadings.T + mean) * x.std(0) + x.mean(0)
    np.testing.assert_allclose(factors.inverse_transform(ours), by_formula, rtol=1e-9)
    with pytest.raises(UsageError, match=r"rows of 2 latents \(z0, z1\), got shape"):
        factors.inverse_transform(x)


def test_ppca_gives_back_what_pca_does() -> None:
    x = rows("wine") / rows("wine").std(0)
    ours = Estimator("ppca", latents=2).fit(x)
    theirs = PCA(2).fit(x)
    # E[x | E[z | x]] shrinks PCA's own reconstruction: it lies in the same plane
    away = ours.inverse_transform(ours.transform(x)) - x.mean(0)
    np.testing.assert_allclose(away @ theirs.components_.T @ theirs.components_, away, atol=1e-3)


def test_rows_with_holes(mixture: Any) -> None:
    x = rows()[:3].copy()
    x[0, 1], x[1] = np.nan, np.nan
    p, locs, roots = (mixture.run_.parameters[k] for k in ("weights", "locs", "scale_tril"))
    covariances = roots @ roots.transpose(0, 2, 1)
    seen = sum(
        w * multivariate_normal(m[0], c[0, 0]).pdf(x[0, 0]) for w, m, c in zip(p, locs, covariances, strict=True)
    )
    np.testing.assert_allclose(mixture.score_samples(x)[:2], [np.log(seen), 0.0], atol=1e-9)
    np.testing.assert_allclose(mixture.predict_proba(x)[1], p, atol=1e-9)
    whole = Estimator("gmm", components=2).fit(np.vstack([rows(), x[:1]]))  # and in what it is fitted to
    assert whole.run_.converged


def test_standardized_scores_and_samples_are_in_own_units() -> None:
    x = rows()
    plain, scaled = Estimator("gmm").fit(x), Estimator("gmm", standardize=True).fit(x)
    assert scaled.score(x) == pytest.approx(plain.score(x), abs=1e-5)
    hole = np.array([[np.nan, 70.0]])
    assert scaled.score(hole) == pytest.approx(plain.score(hole), abs=1e-4)
    drawn = scaled.sample(2000)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), rtol=0.1)


@pytest.mark.parametrize("standardize", [False, True])
def test_sample_weights_count_rows(standardize: bool) -> None:
    x, w = rows(n=60), np.random.default_rng(0).integers(0, 3, 60)
    estimator = Estimator("gmm", standardize=standardize, start="kmeans")
    one, other = clone(estimator).fit(x, sample_weight=w), clone(estimator).fit(np.repeat(x, w, 0))
    np.testing.assert_allclose(one.score_samples(x), other.score_samples(x), atol=1e-5)
    assert one.score(x, sample_weight=w) == pytest.approx(other.score(np.repeat(x, w, 0)), abs=1e-6)
    stretch = np.log(one.run_.scale).sum() if standardize else 0.0
    assert one.evidence(x, w).value == pytest.approx(one.run_.verified.value - stretch * w.sum())
    with pytest.raises(ValueError, match="weights of 0 or more"):
        estimator.fit(x, sample_weight=-np.ones(60))
    for ask in (one.evidence, lambda x, w: one.score(x, sample_weight=w)):
        with pytest.raises(ValueError, match="weights of 0 or more, got -1 at row 3"):
            ask(x, np.where(np.arange(60) == 3, -1.0, 1.0))


# ---------------------------------------------------------------------------------------------------- data frames


def test_data_frames() -> None:
    frame = pd.DataFrame(rows("wine")[:, :4], columns=["alcohol", "acid", "ash", "alkalinity"])
    found = Estimator("ppca", latents=2, standardize=True).set_output(transform="pandas").fit(frame)
    assert found.feature_names_in_.tolist() == list(frame.columns) and found.n_features_in_ == 4
    assert found.run_.columns == tuple(frame.columns)
    moved = found.transform(frame)
    assert moved.columns.tolist() == ["z0", "z1"] and moved.index.equals(frame.index)
    with pytest.raises(ValueError, match="feature names"):
        found.transform(frame[["acid", "alcohol", "ash", "alkalinity"]])
    table = found.parameters_
    assert table.columns.tolist() == ["name", "index", "estimate", "standard_error"]
    loading = table[(table["name"] == "loadings") & (table["index"] == "3,1")]["estimate"].item()
    assert loading == found.run_.parameters["loadings"][3, 1]
    names = Estimator("gmm").fit(frame).get_feature_names_out().tolist()
    assert names == ["z=0", "z=1"]


# ----------------------------------------------------------------------------------------------------- composition


def test_grid_search_over_options() -> None:
    x = rows("faithful", 120)
    search = GridSearchCV(Estimator("gmm"), {"components": [1, 2]}, cv=2, error_score="raise").fit(x)
    assert search.best_params_ == {"components": 2}
    theirs = GridSearchCV(GaussianMixture(reg_covar=0, tol=1e-8, max_iter=500), {"n_components": [1, 2]}, cv=2).fit(x)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], atol=1e-3)


def test_pipelines() -> None:
    x = rows()
    pipe = make_pipeline(FunctionTransformer(np.log), StandardScaler(), Estimator("gmm"))
    assert np.isfinite(cross_val_score(pipe, x, cv=2)).all()
    with_labels = make_pipeline(StandardScaler(), Estimator("ppca", latents=1), Estimator("gmm"))
    assert set(with_labels.fit_predict(x)) == {0, 1}


def test_pickles_hold_the_fit(mixture: Any, factors: Any, tmp_path: Path) -> None:
    for found, x in ((mixture, rows()), (factors, rows("wine"))):
        again = pickle.loads(pickle.dumps(found))
        np.testing.assert_allclose(again.score_samples(x), found.score_samples(x), rtol=1e-12)
        np.testing.assert_allclose(again.transform(x), found.transform(x), rtol=1e-9, atol=1e-12)
        assert again.get_params() == found.get_params()
        assert again.run_.claimed.value == found.run_.claimed.value
        assert np.isfinite(again.run_.task.engine.per_datum().numpy()).all()
        np.testing.assert_array_equal(again.sample(2), found.sample(2))


PROGRAM = """
import pyro, torch
import pyro.distributions as dist
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

class Counts(PyroModule):
    def __init__(self, x, *, components: int = 2):
        super().__init__()
        self.share = PyroParam(torch.ones(components) / components, constraints.simplex)
        self.rates = PyroParam(torch.linspace(1, 5, components)[:, None].repeat(1, x.shape[1]), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            group = pyro.sample("group", dist.Categorical(self.share))
            return pyro.sample("x", dist.Poisson(self.rates[group]).to_event(1), obs=x)
"""


def test_a_program_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "counts.py").write_text(PROGRAM)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.poisson(2, (40, 3)), rng.poisson(9, (60, 3))])
    found = Estimator(f"{tmp_path}/counts.py:Counts", components=2).fit(x)
    assert found.get_feature_names_out().tolist() == ["group=0", "group=1"]
    assert (found.predict(x) == (np.arange(100) < 40)).mean() > 0.95
    assert clone(found).set_params(components=1).fit_predict(x).tolist() == [0] * 100
    kept = pickle.dumps(found)
    assert b"_zoo_user" not in kept  # the module that the file was executed as: another process has none
    again = pickle.loads(kept)
    np.testing.assert_allclose(again.predict_proba(x), found.predict_proba(x), atol=1e-12)
    pickle.dumps(found)  # although the file was executed anew
    with pytest.raises(UsageError, match=r"support|negative|Poisson"):
        found.fit(-x)


@pytest.mark.slow
def test_latents_that_are_not_exact() -> None:
    x = rows("wine", 40)[:, :4]
    options = {"latents": 1, "epochs": 3, "samples": 200}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Estimator("deep_latent_gaussian", method="importance", standardize=True, options=options).fit(x)
    told = found.evidence(x[:7])
    assert told.kind in ("lower bound", "estimate") and told.per_datum.shape == (7,)
    np.testing.assert_array_equal(found.score_samples(x[:7]), told.per_datum)  # the same draws every time
    assert found.transform(x[:7]).shape[0] == 7 and not hasattr(found, "predict")
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_allclose(again.score_samples(x[:7]), told.per_datum, rtol=1e-9)


@pytest.mark.slow
def test_the_page_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "scikit_learn.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"frame": pd.DataFrame(rows("wine", 60)[:, :3], columns=["alcohol", "acid", "ash"])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(block, names)
