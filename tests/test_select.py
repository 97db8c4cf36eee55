"""Choosing among models: counts of parameters, criteria, ties, refusals, resuming, against textbooks and other packages."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
from helpers import task_of
from sklearn.mixture import GaussianMixture
from typer.testing import CliRunner

from benchmarks._select import ard, grid, labellings, parallel
from benchmarks._select.criteria import Entry, Value, best, error_of_difference
from benchmarks._select.free import free_parameters
from benchmarks._select.select import select
from benchmarks._suite.folder import Results
from inference._run import runner
from zoo.__main__ import app
from zoo._data import datasets
from zoo._errors import UsageError

X = datasets.load("faithful").x
N = len(X)


def option(annotation, default=None):
    return inspect.Parameter("o", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


# ---- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "given", "values"),
    [
        (int, "1:8", [1, 2, 3, 4, 5, 6, 7, 8]),
        (int, "1:9:2", [1, 3, 5, 7, 9]),
        (int, "1,3:4,3", [1, 3, 4]),
        (int, range(1, 4), [1, 2, 3]),
        (int, 4, [4]),
        (float, "0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        (float | None, "none,0.5", [None, 0.5]),
        (bool, "true,false", [True, False]),
        (str, "full,tied", ["full", "tied"]),
        (tuple[int, ...], "200,200", [(200, 200)]),
        (tuple[int, ...], "200,200;100", [(200, 200), (100,)]),
        (tuple[int, ...] | None, (8, 8), [(8, 8)]),
        (tuple[int, ...], [(8, 8), (4,)], [(8, 8), (4,)]),
        (inspect.Parameter.empty, "2:4", [2, 3, 4]),
    ],
)
def test_values_follow_the_options_type(annotation, given, values):
    assert grid.values("o", given, option(annotation)) == values


@pytest.mark.parametrize("text", ["8:1", "1:", "1:3:0", "1:2:3:4", "a:b", "1:99999"])
def test_a_wrong_range_says_what_is_expected(text):
    with pytest.raises(UsageError, match=r"range such as|at most|whole number"):
        grid.values("components", text, option(int))


def test_the_first_option_varies_fastest():
    found = list(grid.combinations({"a": [1, 2], "b": ["x", "y"]}))
    assert found == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "y"}]


# ---- free parameters -------------------------------------------------------------------------------------------------


def count(model, data, **options):
    prepared = runner.prepare(model, data, options, ["em"])
    run = runner.run_prepared(prepared, "em", {"max_iter": 5}, verified=False)
    found = free_parameters(run.task, prepared.program().values())
    assert found.sure
    return found.count


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_mixtures_have_as_many_parameters_as_scikit_learn_counts(covariance, K):
    theirs = {"diagonal": "diag"}.get(covariance, covariance)
    known = GaussianMixture(K, covariance_type=theirs, max_iter=2, random_state=0, tol=1.0).fit(X)
    assert count("gmm", "faithful", components=K, covariance=covariance) == known._n_parameters()


@pytest.mark.parametrize("L", [1, 2, 4])
def test_rotations_of_loadings_are_no_parameters(L):
    wine = datasets.load("wine", standardize=True)
    D = wine.x.shape[1]
    wanted = D * L + D - L * (L - 1) // 2 + D
    assert count("factor_analysis", wine, latents=L) == wanted
    assert count("ppca", wine, latents=L) == wanted - D + 1


def test_loadings_that_say_more_than_a_covariance_can_hold_count_as_the_covariance():
    wine = datasets.load("wine", standardize=True)  # 13 columns: above 8 factors nothing more can be told
    assert count("factor_analysis", wine, latents=12) == 13 * 14 // 2 + 13


SUM = """
import pyro, pyro.distributions as dist, torch
from torch.distributions import constraints
def doubled(x=None, size=None, *, offset: float = 0.0):
    "Two parameters of which the sum alone matters."
    a, b = (pyro.param(n, torch.tensor(v)) for n, v in (("a", 0.0), ("b", 1.0)))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", size if x is None else len(x)):
        return pyro.sample("x", dist.Normal(a + b + offset, scale).expand([2]).to_event(1), obs=x)
"""


def test_a_users_own_program_with_a_parameter_too_many(tmp_path):
    (tmp_path / "own.py").write_text(SUM)
    found = select(f"{tmp_path}/own.py:doubled", X, {"offset": "0,1"}, jobs=1)
    assert found.table.parameters.tolist() == [2, 2]
    assert len(found.best) == 2  # the same model twice: a tie, which is kept
    assert "2 cells share the best place" in found.sentences[0]
    value = -2 * found.entries[0].result["log_likelihood"] + 2 * math.log(N)
    assert found.best[0].value == pytest.approx(value, abs=1e-9)


# ---- criteria --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faithful(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select") / "faithful"
    return select("gmm", "faithful", {"components": "1:3", "covariance": "full,tied"}, restarts=1, jobs=1, out=folder)


def test_faithful_by_bic_as_mclust_has_it(faithful):
    """mclust, whose sign is the other, has −2322.2 for VVV with 2 components and −2314.3 for EEE with 3."""
    table = faithful.table.set_index(["covariance", "components"])
    assert table.bic["full"].idxmin() == 2
    assert table.bic["full", 2] == pytest.approx(2322.19, abs=0.1)
    assert table.bic["tied", 3] == pytest.approx(2314.3, abs=0.1)
    assert faithful.best[0].options == {"components": 3, "covariance": "tied"}
    assert (table.ended == "ok").all()


def test_the_criteria_are_scikit_learns(faithful):
    at = next(e for e in faithful.entries if e.options == {"components": 2, "covariance": "full"})
    theirs = GaussianMixture(2, tol=1e-12, max_iter=1000, random_state=0, reg_covar=0).fit(X)
    assert at.values["bic"].value == pytest.approx(theirs.bic(X), abs=1e-3)
    assert at.values["aic"].value == pytest.approx(theirs.aic(X), abs=1e-3)
    p = theirs.predict_proba(X)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
    assert at.values["icl"].value == pytest.approx(theirs.bic(X) + 2 * entropy, abs=1e-2)


def test_one_component_is_the_same_model_twice(faithful):
    one = [e for e in faithful.entries if e.options["components"] == 1]
    assert [e.name for e in best(one, "bic")] == [e.name for e in one]


def test_disagreement_is_said_and_the_winner_can_be_run(faithful):
    assert any(s.startswith("The criteria disagree: ICL would take components=2") for s in faithful.sentences)
    run = faithful.run()
    assert run.claimed.value == pytest.approx(faithful.entries[5].result["log_likelihood"], abs=1e-9)
    assert faithful.best[0].command.startswith("zoo run gmm --data faithful --method em --set components=3")
    assert faithful.plot("icl").axes[0].get_ylabel().startswith("ICL")
    assert {p.name for p in faithful.folder.iterdir()} >= {"table.csv", "select.json", "select.png"}


def test_a_finished_cell_is_not_done_again(faithful):
    paths = sorted((faithful.folder / "cells").iterdir())
    before = {p.name: p.stat().st_mtime_ns for p in paths}
    paths[0].unlink()
    given = {"components": "1:3", "covariance": "full,tied"}
    again = select("gmm", "faithful", given, restarts=1, jobs=1, out=faithful.folder)
    assert again.table.equals(faithful.table)
    changed = {n for n, t in before.items() if (faithful.folder / "cells" / n).stat().st_mtime_ns != t}
    assert changed == {paths[0].name}


def test_a_collapsed_fit_cannot_win():
    x = np.concatenate([np.random.default_rng(0).normal(size=(40, 1)), np.full((4, 1), 5.0)])
    found = select("gmm", x, {"components": "1:2"}, restarts=2, jobs=1)
    assert found.table.ended.tolist() == ["ok", "collapsed"]
    assert found.table.bic[1] < found.table.bic[0]
    assert found.best[0].options == {"components": 1}
    assert any("has a better value, but cannot win: a variance went to its floor" in s for s in found.sentences)


def test_a_fit_that_was_cut_short_cannot_win():
    found = select("gmm", "faithful", {"components": [2, 3]}, restarts=1, jobs=1, max_iter=2)
    assert found.table.ended.tolist() == ["not converged"] * 2
    assert found.best == []
    assert found.sentences[0] == "No cell can be chosen by BIC."
    with pytest.raises(UsageError, match="no cell can be chosen"):
        found.run()


def test_a_bound_has_no_bic():
    found = select("ppca", "faithful", {"latents": 1}, method="svi", jobs=1, epochs=1)
    assert found.best == []
    assert "the evidence of svi is a lower bound" in found.sentences[0]


@pytest.mark.slow
def test_all_fourteen_shapes_on_faithful_as_mclust_has_them():
    shapes = "EII,VII,EEI,VEI,EVI,VVI,EEE,VEE,EVE,VVE,EEV,VEV,EVV,VVV"
    found = select("gmm", "faithful", {"components": "1:4", "covariance": shapes})
    assert found.best[0].options == {"components": 3, "covariance": "EEE"}
    assert found.best[0].value == pytest.approx(2314.3, abs=0.1)
    table = found.table.set_index(["covariance", "components"])
    assert table.bic["VVV"].idxmin() == 2 and table.bic["VVV", 2] == pytest.approx(2322.2, abs=0.1)
    textbook = {
        "EII": 9,
        "EEI": 10,
        "VEI": 12,
        "EVI": 12,
        "EEE": 11,
        "VEE": 13,
        "EVE": 13,
        "EEV": 13,
        "VEV": 15,
        "EVV": 15,
    }
    assert {k: table.parameters[k, 3] for k in textbook} == textbook


# ---- held-out --------------------------------------------------------------------------------------------------------


def test_held_out_rows_are_scored_at_the_others_theta_with_their_holes():
    from scipy.stats import multivariate_normal

    from benchmarks._select.fits import folds

    x = X.copy()
    x[3, 1] = np.nan
    found = select("gmm", x, {"components": [1]}, by="heldout", folds=2, restarts=1, jobs=1)
    parts, total = folds(N, 2, 0), 0.0
    assert sorted(np.concatenate(parts)) == list(range(N))
    for part in parts:
        rest = np.setdiff1d(np.arange(N), part)
        run = runner.run("gmm", x[rest], "em", components=1)
        mean, tril = run.parameters["locs"][0], run.parameters["scale_tril"][0]
        for i in part:
            seen = ~np.isnan(x[i])
            total += multivariate_normal(mean[seen], (tril @ tril.T)[np.ix_(seen, seen)]).logpdf(x[i, seen])
    assert found.best[0].value == pytest.approx(total, abs=1e-4)
    assert found.table.heldout_kind[0] == "exact"


def test_a_difference_within_its_standard_error_is_a_tie():
    rng = np.random.default_rng(0)
    each = rng.normal(size=100)
    document = {"status": "ok", "result": {"ended": "ok", "free": 1}}

    def of(rows):
        return Entry({"a": len(rows)}, ("a",), document, {"heldout": Value(float(rows.sum()), each=rows)})

    near, far = of(each + rng.normal(0, 1, 100) * 0.5), of(each - 1.0)
    top = of(each + 0.01)
    assert {id(e) for e in best([near, far, top], "heldout")} >= {id(top)}
    assert far not in best([near, far, top], "heldout")
    error = error_of_difference(near.values["heldout"], top.values["heldout"])
    assert error == pytest.approx((near.values["heldout"].each - each).std(ddof=1) * 10)
    bound = Entry({"a": 0}, ("a",), document, {"heldout": Value(1e6, "lower bound")})
    assert bound not in best([near, bound], "heldout")


# ---- evidence --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evidence_counts_every_order_of_the_components():
    x = np.concatenate([np.random.default_rng(k).normal(10 * k, 1, (30, 1)) for k in range(2)])
    found = select("gmm", x, {"components": "1:2"}, by="evidence", priors=True, covariance="tied", restarts=1, jobs=1)
    assert found.best[0].options == {"components": 2}
    at = found.entries[1].result
    assert at["evidence"]["labellings"] == 2
    assert at["evidence"]["value"] == pytest.approx(at["verified_log_evidence"]["value"] + math.log(2))
    assert "parameters have priors" in found.entries[0].reasons["bic"]


def test_components_of_as_many_columns_are_told_from_a_tied_covariance():
    task = task_of("gmm", X[:50], components=2, covariance="tied", priors=True)
    trace = task.program.trace(task.x[:2])
    point = {s.name: trace.nodes[s.name]["value"] for s in task.structure.global_latents}
    assert labellings._labellings(task, point) == (2, ["weights", "locs"])


# ---- other looks -----------------------------------------------------------------------------------------------------


def test_parallel_analysis_finds_the_factors_that_are_there():
    rng = np.random.default_rng(0)
    loadings = np.kron(np.eye(3), np.ones((4, 1)))  # 12 columns, four of each factor
    x = rng.normal(size=(300, 3)) @ loadings.T + 0.7 * rng.normal(size=(300, 12))
    found = parallel.analysis(x, 0, 50)
    assert found.factors == 3
    own = np.linalg.eigvalsh(np.corrcoef(x.T))[::-1]
    np.testing.assert_allclose(found.eigenvalues, own)
    holes = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    chosen = select("factor_analysis", holes, {"latents": "2:3"}, by="parallel", restarts=1, jobs=1)
    assert chosen.best[0].options == {"latents": 3}
    with pytest.raises(UsageError, match="columns that vary"):
        parallel.checked(np.ones((5, 2)))


def test_relevance_is_bishops_example():
    """Bishop 1999: 300 points in 10 dimensions, of standard deviation 1 along 3 of them and 0.5 along the others."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    x = (rng.normal(size=(300, 10)) * np.repeat([1.0, 0.5], [3, 7])) @ turned.T
    found = ard.relevance(x)
    assert found.factors == 3
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    assert found.noise == pytest.approx(values[3:].mean(), rel=0.05)
    assert np.all(np.array(found.variances[:3]) < values[:3] - values[3:].mean())  # shrunk
    np.testing.assert_allclose(found.variances[:3], values[:3] - values[3:].mean(), rtol=0.2)
    chosen = select("ppca", x, {"latents": "2:4"}, by="ard", restarts=1, jobs=1)
    assert chosen.best[0].options == {"latents": 3} and "keeps 3 factors" in chosen.sentences[0]
    with pytest.raises(UsageError, match="without holes"):
        ard.checked(np.where(rng.random(x.shape) < 0.1, np.nan, x))


def test_noise_alone_keeps_no_factor():
    assert ard.relevance(np.random.default_rng(1).normal(size=(400, 6))).factors == 0


def test_the_bootstrap_rejects_one_component_for_two(tmp_path):
    given = {"components": "1:2"}
    x = X[::3]
    found = select("gmm", x, given, restarts=1, bootstrap=4, jobs=1, out=tmp_path / "out")
    (ratio,) = found.ratios
    logs = found.table.log_likelihood
    assert ratio.statistic == pytest.approx(2 * (logs[1] - logs[0]))
    assert (ratio.larger, ratio.replicates, ratio.p) == (0, 4, 1 / 5)
    assert "components=1 against 2" in " ".join(found.sentences)
    cells = [Results(tmp_path / "out").read(p.stem) for p in (tmp_path / "out" / "cells").iterdir()]
    statistics = [c["result"]["statistic"] for c in cells if c["cell"]["kind"] == "bootstrap"]
    assert len(set(statistics)) == 4 and all(-1e-6 < s < 40 for s in statistics)


def test_labels_are_compared_whatever_the_components_are_called():
    from sklearn.metrics import adjusted_rand_score

    found = select("gmm", "wine", {"components": 3, "covariance": "diagonal"}, standardize=True, restarts=2, jobs=1)
    run = found.run()
    states = run.probabilities["z"].argmax(1)
    assert found.table.adjusted_rand[0] == pytest.approx(adjusted_rand_score(run.labels, states))
    confusion = found.confusion()
    assert confusion.to_numpy().sum() == run.n and confusion.shape[0] == 3


# ---- how it is called ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"by": "bicc"}, "did you mean|unknown criterion"),
        ({"grid": {"component": 2}}, "components"),
        ({"grid": {"components": [0]}}, "components must be more than zero"),
        ({"folds": 1}, "2 .*folds"),
        ({"bootstrap": 10, "grid": {"components": 2}}, "several whole numbers"),
        ({"grid": [1, 2]}, "options with their values"),
        ({"components": 3}, "in the grid and beside it"),
        ({"grid": {"components": range(1, 20_000)}}, "cells|at most"),
    ],
)
def test_wrong_calls_say_what_to_do(change, match):
    given = {"grid": {"components": [1, 2]}, "jobs": 1, **change}
    with pytest.raises(UsageError, match=match):
        select("gmm", "faithful", **given)


def test_cells_that_fail_are_named_and_the_others_stand():
    found = select("ppca", "faithful", {"latents": "1:2"}, jobs=1, restarts=1)
    assert found.table.ended.tolist() == ["ok", "failed"]
    assert "fewer latents than columns" in found.table.why[1]
    with pytest.raises(UsageError, match="no cell of the grid has a result: ppca expects fewer"):
        select("ppca", "faithful", {"latents": "3:4"}, jobs=1)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "select",
        "gmm",
        "--data",
        "faithful",
        "--set",
        "components=1:2",
        "--restarts",
        "1",
        "--jobs",
        "1",
        "--rows",
        "80",
    ]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "By BIC the best is components=2." in shown.stdout and "results/select-gmm-faithful" in shown.stdout
    assert (tmp_path / "results" / "select-gmm-faithful" / "select.png").exists()
    found = CliRunner().invoke(app, [*words, "--json"])
    document = json.loads(found.stdout)
    assert document["best"][0]["options"] == {"components": 2}
    assert [c["components"] for c in document["cells"]] == [1, 2]
