"""New rows at the θ of a run, against SciPy, Bayes' rule and closed forms; from Python, and through CSV on the command line."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from guides import at
from inference import load, run
from inference._new_rows import asked
from inference._run._own.disagreement import Disagreement
from zoo.__main__ import app
from zoo._errors import UsageError

NAMES = ["Größe, cm", "重さ", "x y"]
MEANS, COVARIANCES = ((0.0, 5.0, -3.0), (9.0, -2.0, 4.0)), (np.eye(3), np.array([[2, 1, 0], [1, 3, 1], [0, 1, 1.5]]))


def zoo(*arguments: str, status: int = 0):
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if status == 0 else done.output


def people(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = [rng.multivariate_normal(m, c, n) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    return pd.DataFrame(np.where((rng.random(n) < 0.4)[:, None], *x), columns=NAMES)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture of two normals on named columns, in the data's own units."""
    return run("gmm", people(300), max_iter=50, out=tmp_path_factory.mktemp("mixture") / "run")


def by_bayes(found, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x_i) and the posterior of the states [n, K], by SciPy; NaN is left out of x."""
    theta = found.parameters
    joint = np.empty((len(x), 2))
    for k in range(2):
        covariance = theta["scale_tril"][k] @ theta["scale_tril"][k].T
        for i, row in enumerate(x):
            s = ~np.isnan(row)
            of = stats.multivariate_normal(theta["locs"][k][s], covariance[np.ix_(s, s)])
            joint[i, k] = np.log(theta["weights"][k]) + of.logpdf(row[s])
    log_p = np.logaddexp(*joint.T)
    return log_p, np.exp(joint - log_p[:, None])


# ---- rows that are predicted and scored ------------------------------------------------------------------------------


def test_predictions_are_bayes_rule(mixture):
    new = people(40, seed=1)
    new.iloc[2, 1] = new.iloc[5, 0] = np.nan
    log_p, shares = by_bayes(mixture, new.to_numpy())
    for found in (mixture, load(mixture.run)):
        rows = found.predict(new[[NAMES[2], NAMES[0], NAMES[1]]])  # columns are found by name
        np.testing.assert_allclose(rows["log_p"], log_p, rtol=1e-9)
        np.testing.assert_allclose(rows[["P(z=0)", "P(z=1)"]], shares, atol=1e-12)
        assert (rows["z"] == shares.argmax(1)).all()
        np.testing.assert_allclose(rows["z_probability"], shares.max(1))
        assert list(found.transform(new)) == ["P(z=0)", "P(z=1)"]
        score = found.score(new)
        assert score.kind == "exact" and score.value == pytest.approx(log_p.sum(), rel=1e-12)
        np.testing.assert_allclose(score.per_datum, log_p, rtol=1e-9)


def test_a_block_of_rows_is_as_good_as_all_at_once(mixture, monkeypatch):
    new = people(50, seed=2)
    whole = mixture.predict(new)
    monkeypatch.setattr(asked, "BLOCK_NUMBERS", 40)
    pd.testing.assert_frame_equal(mixture.predict(new), whole, rtol=1e-12)


def test_the_index_of_a_data_frame_stays(mixture):
    new = people(3, seed=3).set_axis(["a", "ü", "c"])
    assert mixture.predict(new).index.tolist() == ["a", "ü", "c"]
    assert mixture.predict(new.to_numpy()).index.tolist() == [0, 1, 2]


def test_latent_means_are_the_closed_form():
    x = np.random.default_rng(0).normal(size=(60, 5)) @ np.random.default_rng(1).normal(size=(5, 5)) + 3
    found = run("ppca", x, latents=2, standardize=True, max_iter=50)
    new = x[:9] + 0.1
    W, mean, noise = (found.parameters[k] for k in ("loadings", "mean", "noise"))
    z = (new - found.center) / found.scale - mean
    M = W.T @ W + noise**2 * np.eye(2)  # Bishop 2006, eq. 12.42
    np.testing.assert_allclose(found.transform(new), z @ W @ np.linalg.inv(M), atol=1e-8)
    rows = found.predict(new)
    sd = np.sqrt(np.diag(noise**2 * np.linalg.inv(M)))
    np.testing.assert_allclose(rows[["z[0]_sd", "z[1]_sd"]], np.tile(sd, (9, 1)), rtol=1e-8)
    of = stats.multivariate_normal(mean, W @ W.T + noise**2 * np.eye(5))
    np.testing.assert_allclose(rows["log_p"], of.logpdf((new - found.center) / found.scale), rtol=1e-9)


def test_a_guide_answers_for_its_run(here):
    options = {"latents": 2, "hidden": (8,), "epochs": 3, "standardize": True}
    found = run("deep_latent_gaussian", "iris", "svi", out="r", **options)
    own = found.x[:6] * found.scale + found.center
    rows = found.predict(own)
    with torch.no_grad(), found.program.settings():
        trace = pyro.poutine.trace(at(found.guide, slice(0, 6))).get_trace(torch.as_tensor(found.x[:6]))
    fn = trace.nodes["z"]["fn"]
    np.testing.assert_allclose(rows[["z[0]_mean", "z[1]_mean"]], fn.mean, atol=1e-9)
    np.testing.assert_allclose(rows[["z[0]_sd", "z[1]_sd"]], fn.variance.sqrt(), atol=1e-9)
    (name,) = (c for c in rows if c.startswith("log_p") and not c.endswith("_se"))
    assert name in ("log_p_estimate", "log_p_lower_bound")  # never called exact
    assert found.score(own).kind == name.removeprefix("log_p_").replace("_", " ")
    pd.testing.assert_frame_equal(load("r").predict(own), rows)


def test_a_method_without_a_guide_is_run_on_the_new_rows(here):
    found = run(
        "deep_latent_gaussian", "iris", "laplace", rows=30, latents=1, hidden=(4,), max_iter=2, samples=20, out="r"
    )
    with pytest.warns(UserWarning, match="on these rows: k-hat is above 0.7"):
        rows = load("r").predict(found.x)
    np.testing.assert_allclose(rows["z[0]_mean"], found.means["z"][:, 0], atol=1e-5)
    assert {"khat", "ess"} <= set(rows) and "log_p" not in rows


@pytest.mark.parametrize(
    ("method", "given"),
    [("em", "the posterior mode of"), pytest.param("svi", "the point values of", marks=pytest.mark.slow)],
)
def test_globals_are_said_to_be_given(here, method, given):
    options = {"epochs": 3} if method == "svi" else {"max_iter": 5}
    found = run("gmm", people(60), method, components=1, priors=True, out="r", **options)
    score = load("r").score(people(4))
    assert score.kind == "exact" and score.given.startswith(given)
    assert f"given {given}" in Path("r/README.txt").read_text(encoding="utf-8")
    log_p = pd.read_csv("r/rows.csv")["log_p"]
    np.testing.assert_allclose(log_p, found.predict(people(60))["log_p"], rtol=1e-8)


def test_an_engine_that_is_wrong_is_found_out(mixture, monkeypatch):
    from inference._exact.enumeration import Enumeration

    right = Enumeration.per_datum
    monkeypatch.setattr(Enumeration, "per_datum", lambda self, *a, **k: right(self, *a, **k) + 0.01)
    with pytest.raises(Disagreement, match="two exact values"):
        mixture.score(people(5))


# ---- rows that are drawn ---------------------------------------------------------------------------------------------


def test_samples_have_the_moments_of_the_program(mixture):
    drawn = mixture.sample(20_000, seed=5)
    assert list(drawn) == NAMES and drawn.equals(load(mixture.run).sample(20_000, seed=5))
    theta = mixture.parameters
    mean = theta["weights"] @ theta["locs"]
    se = drawn.std() / len(drawn) ** 0.5
    assert (np.abs(drawn.mean() - mean) < 5 * se).all()
    around = theta["locs"] - mean
    covariance = sum(
        w * (L @ L.T + np.outer(a, a)) for w, L, a in zip(theta["weights"], theta["scale_tril"], around, strict=True)
    )
    np.testing.assert_allclose(drawn.cov(), covariance, rtol=0.05, atol=0.1)


def test_given_a_part_of_a_row_the_rest_has_its_conditional_distribution():
    """One normal on standardized data: mean and covariance of two columns given the third, in the data's own units."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.multivariate_normal([100, -5, 3], COVARIANCES[1] * 4, 400), columns=NAMES)
    found = run("gmm", table, components=1, standardize=True)
    L = found.parameters["scale_tril"][0] * found.scale[:, None]
    mean, S = found.parameters["locs"][0] * found.scale + found.center, L @ L.T
    gain = S[1:, 0] / S[0, 0]
    conditional = S[1:, 1:] - np.outer(gain, S[0, 1:])
    n = 500
    drawn = found.sample(n, given={NAMES[0]: [101.0, 95.0]}, seed=1)
    assert drawn.index.names == ["draw", "row"] and list(drawn) == NAMES
    for i, value in enumerate((101.0, 95.0)):
        some = drawn.xs(i, level="row")
        np.testing.assert_allclose(some[NAMES[0]], value)
        expected = mean[1:] + gain * (value - mean[0])
        assert (np.abs(some[NAMES[1:]].mean() - expected) < 5 * np.sqrt(np.diag(conditional) / n)).all()
        np.testing.assert_allclose(some[NAMES[1:]].cov(), conditional, atol=0.25 * np.diag(conditional).max())
    holes = table.iloc[:4].copy()
    holes.iloc[1, [1, 2]] = np.nan
    filled = found.impute(holes).to_frame()
    np.testing.assert_allclose(filled.iloc[1, 1:], mean[1:] + gain * (holes.iloc[1, 0] - mean[0]))
    np.testing.assert_allclose(filled.iloc[[0, 2, 3]], holes.iloc[[0, 2, 3]])


def test_images_are_sampled_and_new_ones_binarized_as_the_run_did(here):
    found = run("missing_pixels", "digits", "svi", rows=40, binarize=8, hidden=(10,), epochs=1, out="r")
    raw = np.full((2, 64), 16.0)
    raw[0, 5] = np.nan
    raw[1] = 2.0  # under the threshold: zeros
    one, two = load("r").score(raw), found.score(np.where(np.isnan(raw), np.nan, raw > 8))
    assert one.value == pytest.approx(two.value)
    assert set(np.unique(found.sample(5))) <= {0.0, 1.0} and found.sample(5).shape == (5, 64)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_answered_is_refused(mixture):
    new = people(3)
    for call, words in (
        (lambda: mixture.predict(new[NAMES[:2]]), "Missing: x y"),
        (lambda: mixture.sample(2, given={"nobody": [1.0]}), "nobody"),
        (lambda: mixture.sample(2, given=new), "nothing is missing"),
        (lambda: mixture.impute(new), "nothing is missing"),
        (lambda: mixture.sample(0), "Expected a whole number of 1 or more"),
        (lambda: mixture.sample(10**9), "at most"),
        (lambda: mixture.predict(rows=3), "already prepared"),
        (lambda: mixture.predict("nowhere.csv"), "no file"),
        (lambda: mixture.sample(2, given={NAMES[0]: [1.0], NAMES[1]: [1.0, 2.0]}), "make no table"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_a_run_without_its_program_says_so(mixture):
    with pytest.raises(UsageError, match="holds no program"):
        replace(mixture, prepared=None).predict(people(2))


# ---- the command line ------------------------------------------------------------------------------------------------


def test_csv_goes_in_and_comes_out(mixture, here):
    new = people(6, seed=7)
    new.iloc[1, 0] = np.nan
    new.to_csv("new.csv", index=False)
    where = str(mixture.run)
    found = zoo("predict", where, "--data", "new.csv", "--out", "predicted.csv")
    assert (found["rows"], found["file"], found["posterior"]) == (6, "predicted.csv", "the exact posterior")
    read = pd.read_csv("predicted.csv", index_col="row")
    pd.testing.assert_frame_equal(read, mixture.predict(new), rtol=1e-8, check_names=False, check_dtype=False)
    scored = zoo("score", where, "--data", "new.csv", "--out", "scores.csv")["log_p"]
    assert scored["kind"] == "exact"
    assert scored["value"] == pytest.approx(pd.read_csv("scores.csv")["log_p"].sum(), rel=1e-8)
    zoo("sample", where, "--size", "7", "--out", "sample.csv")
    drawn = pd.read_csv("sample.csv")
    assert list(drawn) == NAMES and len(drawn) == 7
    zoo("predict", where, "--data", "sample.csv", "--out", "of-sample.csv")  # its own names are read again
    zoo("sample", where, "--given", "new.csv", "--size", "2", "--out", "filled.csv")
    filled = pd.read_csv("filled.csv")
    assert list(filled) == ["draw", "row", *NAMES] and len(filled) == 12 and not filled.isna().any().any()
    files = zoo("impute", where, "--data", "new.csv", "--out", "imputed")["files"]
    assert [Path(f).name for f in files] == ["draws.csv", "mean.csv", "sd.csv"]
    assert "exists already" in zoo("predict", where, "--data", "new.csv", "--out", "predicted.csv", status=2)


def test_imputed_rows_keep_their_names(here):
    lines = [f"{'abcdefghijkl'[i]},{i % 3},{'' if i == 4 else i % 5},{i}" for i in range(12)]
    Path("named.csv").write_text("\n".join(["id,u,v,u", *lines]))
    zoo("run", "ppca", "--data", "named.csv", "--rows-by", "id", "--set", "latents=1", "--out", "named")
    zoo("impute", "named", "--draws", "2")
    mean, draws = (pd.read_csv(f"named/imputed/{name}.csv") for name in ("mean", "draws"))
    assert list(mean) == ["row", "u", "v", "u.1"] and mean["u.1"].tolist() == list(range(12))
    assert list(mean["row"]) == list("abcdefghijkl") and list(draws["row"]) == 2 * list("abcdefghijkl")
    assert list(draws["draw"]) == [0] * 12 + [1] * 12 and not draws.isna().any().any()


def test_files_in_the_run_folder_have_new_names(here):
    run("gmm", "faithful", rows=20, max_iter=2, out="r")
    names = [Path(zoo("predict", "r")["file"]).name for _ in range(2)]
    assert names == ["predicted.csv", "predicted-2.csv"]
    assert Path("r/predicted.csv").read_text() == Path("r/rows.csv").read_text()
    shown = CliRunner().invoke(app, ["run", "gmm", "--data", "faithful", "--rows", "20", "--set", "max_iter=2"]).stdout
    assert "weights" in shown and "eruptions" in shown and "parameters.csv" in shown


def test_columns_numbered_in_another_order_are_matched_by_their_numbers():
    frame = pd.DataFrame(np.random.default_rng(0).normal([0.0, 5.0, -9.0], 1.0, (30, 3)))
    fit = run("ppca", frame, latents=1)
    there, swapped = fit.predict(frame), fit.predict(frame.iloc[:, ::-1])
    np.testing.assert_allclose(swapped, there)


def test_a_missing_column_is_named_as_it_is_written():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["Height, cm", "Mass"])
    with pytest.raises(
        UsageError, match=r"Missing: 'Height, cm'; unknown: Odd \(add what is missing, with empty cells"
    ):
        run("ppca", frame, latents=1).predict(frame.rename(columns={"Height, cm": "Odd"}))


def test_laplace_on_other_data_has_no_standard_errors_of_theta_that_is_no_mode_there(tmp_path):
    from inference import infer

    x = np.random.default_rng(0).normal(0.0, 1.0, (60, 3))
    run("ppca", x, latents=1).save(tmp_path / "run")
    same, other = infer(tmp_path / "run", "laplace"), infer(tmp_path / "run", "laplace", data=x[:7] + 1.0)
    assert same.standard_errors and not other.standard_errors
    assert "noise" not in other.draws
    assert any("not the mode" in said for said in other.warnings)


def test_samples_give_categories_in_words_and_standardize_leaves_their_codes():
    words = np.array(["blue", "red", "sea, green"])
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"colour": words[draw.integers(0, 3, 60)], "size": draw.normal(50.0, 9.0, 60)})
    fit = run("latent_classes", frame, classes=1, categories="colour", standardize=True)
    assert set(np.unique(fit.x[:, 0])) == {0.0, 1.0, 2.0}
    sample = fit.sample(50)
    assert set(sample["colour"]) <= set(words) and 40 < sample["size"].mean() < 60
    assert len(fit.predict(sample)) == 50


@pytest.mark.full
def test_a_method_that_did_not_converge_on_new_rows_is_told(tmp_path):
    """A guide with a q for each row has none for others: they get theirs in the epochs of the run."""

    def counts(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            rates = (1 + z).exp().unsqueeze(-1) * torch.ones(3)
            return pyro.sample("x", pyro.distributions.Poisson(rates).to_event(1), obs=x)

    x = np.random.default_rng(0).poisson(2, (12, 3)) * 1.0
    found = run(counts, x, "svi", guide="mean_field", epochs=2, out=tmp_path / "run")
    holes = pd.DataFrame(np.where(np.eye(3, dtype=bool), np.nan, x[:3]), columns=found.columns)
    for answer in (
        lambda: found.predict(x[:3]),
        lambda: found.transform(x[:3]),
        lambda: found.score(x[:3]),
        lambda: found.impute(holes),
        lambda: found.sample(2, given=holes),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer()
        assert any(str(w.message).startswith("on these rows: svi did not converge") for w in caught)


@pytest.mark.full
def test_the_command_line_tells_it_too(tmp_path):
    (tmp_path / "counts.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n\n"
        "def program(x=None, size=None):\n"
        "    with pyro.plate('data', size if x is None else len(x)):\n"
        "        z = pyro.sample('z', dist.Normal(0.0, 1.0))\n"
        "        rates = (1 + z).exp().unsqueeze(-1) * torch.ones(3)\n"
        "        return pyro.sample('x', dist.Poisson(rates).to_event(1), obs=x)\n"
    )
    x = pd.DataFrame(np.random.default_rng(0).poisson(2, (6, 3)) * 1.0, columns=list("abc"))
    x.to_csv(tmp_path / "x.csv", index=False)
    x.where(~np.eye(6, 3, dtype=bool)).to_csv(tmp_path / "holes.csv", index=False)
    folder, file = str(tmp_path / "run"), f"{tmp_path / 'counts.py'}:program"
    options = ("--method", "svi", "--set", "guide=mean_field", "--set", "epochs=2")
    zoo("run", file, "--data", str(tmp_path / "x.csv"), *options, "--out", folder)
    holes = str(tmp_path / "holes.csv")
    said = zoo("sample", folder, "--given", holes, "--trust")["warnings"]
    assert said and said[0].startswith("on these rows: svi did not converge")
    done = CliRunner().invoke(app, ["impute", folder, "--data", holes, "--trust"])
    assert done.exit_code == 0 and "on these rows: svi did not converge" in done.output
