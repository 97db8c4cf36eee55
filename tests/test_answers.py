"""What a run folder holds for people: parameters, rows and their explanation; and how large its arrays are."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import run_of, task_of

from inference import load, run
from inference._answers.parameters import Known, Parameters, column_axes
from inference._answers.table import Table
from inference._run import saving
from zoo._data import datasets
from zoo._errors import UsageError

TABLES = ("parameters.csv", "rows.csv", "README.txt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small run of named rows and columns, live, with its folder."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal([0, 10], 1, (20, 2)), rng.normal([8, 30], 1, (30, 2))])
    x[3, 1] = np.nan
    names = tuple(f"Zeile {i}, “ü”" for i in range(50))
    data = replace(datasets.load(pd.DataFrame(x, columns=["Höhe, m", "年"]), standardize=True), row_names=names)
    return run("gmm", data, out=tmp_path_factory.mktemp("answers") / "run")


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_reads_back_as_it_was(tmp_path):
    columns = {
        "row": np.array(["a,b", 'say "x"', " spaced", "two\nlines", "-5", "=1+1"], dtype=object),
        "é, €": np.array([1.5, np.nan, -np.inf, 1e-300, 0.1, 3.0]),
        "whole": np.arange(6),
    }
    path = tmp_path / "t.csv"
    path.write_text("".join(Table(columns).text()), encoding="utf-8")
    found = pd.read_csv(path, dtype={"row": str})
    assert list(found) == list(columns)
    assert found["row"].tolist() == ["a,b", 'say "x"', " spaced", "two\nlines", "-5", "'=1+1"]  # no formula
    np.testing.assert_allclose(found["é, €"], columns["é, €"])
    assert found["whole"].dtype.kind == "i"
    assert ",,1\n" in path.read_text(encoding="utf-8")  # what is not known is empty


def test_parameters_are_a_table_with_the_columns_names(saved):
    found = pd.read_csv(Path(saved.run) / "parameters.csv")
    assert list(found) == ["name", "index", "estimate"]  # em has no standard errors: no column without a number
    index = found.set_index(["name", "index"])["estimate"]
    assert index["locs", "1, 年"] == pytest.approx(saved.parameters["locs"][1, 1], rel=1e-9)
    assert index["scale_tril", "0, 年, Höhe, m"] == pytest.approx(saved.parameters["scale_tril"][0, 1, 0], rel=1e-9)
    assert index["weights", "1"] == pytest.approx(saved.parameters["weights"][1], rel=1e-9)  # two weights, two columns
    frame = saved.parameters.to_frame()
    assert frame["name"].tolist() == found["name"].tolist()
    pd.testing.assert_frame_equal(load(saved.run).parameters.to_frame(), frame)


def test_an_axis_is_the_columns_only_if_the_program_says_so():
    x = np.random.default_rng(0).normal(size=(40, 3))
    expected = {
        ("gmm", "diagonal"): {"locs": (1,), "scales": (1,)},
        ("gmm", "spherical"): {"locs": (1,)},
        ("gmm", "tied"): {"locs": (1,), "scale_tril": (0, 1)},
    }
    for (model, covariance), axes in expected.items():
        assert column_axes(task_of(model, x, components=3, covariance=covariance), {}) == axes
    assert column_axes(task_of("ppca", x, latents=2), {}) == {"loadings": (0,), "mean": (0,)}


def test_a_program_that_turns_its_columns_round_gets_no_names():
    import pyro
    import pyro.distributions as dist
    import torch

    def turned(x=None, size=None):
        locs = pyro.param("locs", torch.arange(3.0))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(locs, 1.0).to_event(1), obs=None if x is None else x.flip(1))

    assert column_axes(task_of(turned, np.random.default_rng(0).normal(size=(9, 3))), {}) == {}


def test_standard_errors_and_intervals_stand_where_they_are_known():
    values = {"a": np.array([1.0, 2.0]), "b": np.array(3.0), "c": np.array(0.5)}
    draws = np.random.default_rng(0).normal(3.0, 2.0, 500)
    known = Known(errors={"a": np.array([0.1, np.nan])}, draws={"b": draws})
    frame = Parameters(values, known).to_frame()
    assert list(frame) == ["name", "index", "estimate", "se", "sd", "lower", "upper"]
    assert frame.iloc[0].tolist()[3] == 0.1 and frame["se"].isna().sum() == 3
    row = frame[frame["name"] == "b"].iloc[0]
    assert (row["sd"], row["lower"]) == pytest.approx((draws.std(), np.quantile(draws, 0.025)))
    assert frame.iloc[-1, 3:].isna().all()
    assert pickle.loads(pickle.dumps(Parameters(values, lambda: known))).to_frame().equals(frame)
    assert isinstance(Parameters(values), dict) and Parameters(values) == values


def test_rows_are_a_table_of_what_the_run_holds(saved):
    found = pd.read_csv(Path(saved.run) / "rows.csv")
    assert found["row"].tolist() == list(saved.dataset.row_names)
    np.testing.assert_allclose(found["log_p"], saved.verified.per_datum, rtol=1e-8)
    shares = saved.probabilities["z"]
    np.testing.assert_allclose(found[["P(z=0)", "P(z=1)"]], shares, rtol=1e-8)
    assert (found["z"] == shares.argmax(1)).all()
    assert (found["z_probability"] == found[["P(z=0)", "P(z=1)"]].max(axis=1)).all()
    own = saved.predict()
    assert own.index.tolist() == found["row"].tolist() and list(own) == list(found)[1:]
    pd.testing.assert_frame_equal(load(saved.run).predict(), own)


def test_the_readme_says_what_is_what(saved):
    said = (Path(saved.run) / "README.txt").read_text(encoding="utf-8")
    for word in ("log p(x_i) in nats, exact", "P(z=k)", "The data were standardized", "Höhe, m", "run.predict(new)"):
        assert word in said
    assert f"{saved.scale[0]:.10g}" in said


def test_tables_belong_to_the_users_and_are_not_needed(saved, here):
    shutil.copytree(saved.run, "copy")
    files = json.loads(Path("copy/run.json").read_text(encoding="utf-8"))["files"]
    assert set(files) == {"fit.nc", "state.safetensors", *TABLES}
    Path("copy/rows.csv").write_text("opened in a spreadsheet")
    for name in TABLES[::2]:
        Path("copy", name).unlink()
    assert load("copy").claimed.value == saved.claimed.value


def test_too_many_rows_are_left_to_predict(here, monkeypatch):
    monkeypatch.setattr(saving, "MOST_CELLS", 100)
    run("gmm", "faithful", rows=30, max_iter=3, out="r")
    assert not Path("r/rows.csv").exists()
    assert "`zoo predict RUN` writes it" in Path("r/README.txt").read_text(encoding="utf-8")
    assert len(load("r").predict()) == 30


def test_the_same_run_saved_twice_is_the_same(saved, here):
    again = replace(saved)  # a run remembers its last folder
    again.save("one")
    again.save("two")
    for name in ("fit.nc", "state.safetensors", *TABLES):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    one, two = (json.loads(Path(f, "run.json").read_text(encoding="utf-8")) for f in ("one", "two"))
    assert {k for k in one if one[k] != two[k]} == {"run", "digest"}
    assert load("one").idata.attrs["created_at"] == saved.idata.attrs["created_at"] == saved.created


def test_pictures_do_not_bring_a_deleted_folder_back(here):
    found = run("gmm", "faithful", rows=20, max_iter=2, out="gone")
    shutil.rmtree("gone")
    with pytest.raises(UsageError, match="not there any more"):
        found.plot()
    assert not Path("gone").exists()


# ---- how large -------------------------------------------------------------------------------------------------------


def test_a_folder_is_about_as_large_as_its_data(here):
    made = run("ppca", "digits", latents=10, max_iter=5, out="r")
    size = Path("r/fit.nc").stat().st_size
    assert size < 3 * made.x.nbytes
    read = load("r")
    kept = len(read.draws["z"])
    assert 1 < kept < len(made.draws["z"]) == 200
    assert np.array_equal(read.draws["z"], made.draws["z"][:kept])
    assert np.array_equal(read.predictive["x"], made.predictive["x"][: len(read.predictive["x"])])
    assert read.notes["stored"] == made.notes["stored"] and f"{kept} of 200 posterior draws" in made.notes["stored"]
    assert made.notes["stored"] in Path("r/README.txt").read_text(encoding="utf-8")
    assert read.idata["posterior"]["z"].shape[:3] == (1, kept, 1797)


def test_what_imputing_and_leave_one_out_need_stays(here, monkeypatch):
    monkeypatch.setattr(saving, "SMALL_BYTES", 1)
    made = run("ppca", "wine", standardize=True, missing="random:0.1", latents=2, max_iter=5, out="r")
    read = load("r")
    assert len(read.draws["z"]) == saving.IMPUTED
    one, two = made.impute(draws=5), read.impute(draws=5)
    assert np.array_equal(one.draws, two.draws) and np.array_equal(one.mean, two.mean)


def test_draws_of_globals_and_of_leave_one_out_stay(monkeypatch):
    monkeypatch.setattr(saving, "SMALL_BYTES", 1)
    rng = np.random.default_rng(0)
    draws = {"mu": rng.normal(size=(200, 2)), "z": rng.normal(size=(200, 50, 40))}
    given = {"x": np.zeros((50, 2)), "local_sites": ("z",), "draws": draws}
    assert len(saving.bounded(run_of(**given, log_likelihood=rng.normal(size=(200, 50))), (), True).draws["mu"]) == 200
    assert len(saving.bounded(run_of(**given), (), True).draws["mu"]) == saving.GLOBAL_DRAWS
    given["x"] = np.full((50, 2), np.nan)
    assert len(saving.bounded(run_of(**given), (), False).draws["z"]) == 200  # imputing takes all of them


def test_names_of_rows_come_back(saved):
    read = load(saved.run)
    assert read.dataset.row_names == saved.dataset.row_names
    assert read.idata["observed_data"]["x"].coords["data"].values.tolist() == list(saved.dataset.row_names)
