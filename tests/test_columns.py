"""Columns of data frames and objects, and columns matched by name when a run's θ meets other data."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest
from helpers import in_full
from hypothesis import given
from hypothesis import strategies as st

from inference import infer, run
from zoo._data import datasets
from zoo._data.columns import match
from zoo._errors import Refusal, UsageError

pd = pytest.importorskip("pandas")

nan = np.nan
X = np.random.default_rng(0).normal([0, 10, 20, 30], size=(30, 4))
NAMES = ("a", "b", "c", "d")


def load(value):
    return datasets.load(value)


# ---- data frames


@pytest.mark.parametrize(
    "column",
    [
        [1.0, 2.0, nan],
        pd.array([1, 2, None], dtype="Int64"),
        pd.array([1, 2, None], dtype="UInt8"),
        pd.array([1.0, 2.0, None], dtype="Float64"),
        pd.Series([1, 2, None], dtype=object),
        pd.Series([1, 2, pd.NA], dtype=object),
        pd.Series([Decimal("1"), 2, nan], dtype=object),
        pd.Series([True, 2, None], dtype=object),
        pd.Categorical([1, 2, None]),
        pd.arrays.SparseArray([1.0, 2.0, nan]),
    ],
)
def test_columns_of_every_kind_of_number(column):
    data = load(pd.DataFrame({"height": column, "weight": [4, 5, 6]}))
    np.testing.assert_array_equal(data.x, [[1, 4], [2, 5], [nan, 6]])
    assert data.columns == ("height", "weight") and data.name == "table"
    assert data.x.dtype == np.float64 and data.options["source"] == "a table"


def test_arrow_columns():
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [1, 2, None]}).astype({"a": "float64[pyarrow]"})
    np.testing.assert_array_equal(load(frame).x, [[1], [2], [nan]])


def test_booleans_and_their_missing_ones():
    frame = pd.DataFrame({"a": pd.array([True, False, None], dtype="boolean"), "b": [False, True, True]})
    np.testing.assert_array_equal(load(frame).x, [[1, 0], [0, 1], [nan, 1]])


def test_names_that_need_care():
    assert load(pd.DataFrame(np.eye(3))).columns == ("x0", "x1", "x2")  # nobody named them
    assert load(pd.DataFrame(np.eye(2), columns=[2020, 2021])).columns == ("2020", "2021")
    two = pd.DataFrame(np.eye(2), columns=pd.MultiIndex.from_tuples([("a", "mean"), ("a", "sd")]))
    assert load(two).columns == ("a mean", "a sd")
    assert load(pd.DataFrame(np.arange(4).reshape(2, 2), columns=["a", "a"])).x.tolist() == [[0, 1], [2, 3]]
    assert load(pd.Series([1.0, 2.0], name="h")).columns == ("h",)
    assert load(pd.Series([1.0, 2.0])).columns == ("x0",)
    assert load(pd.DataFrame({"a b": [1.0], "c\nd": [2.0]}, index=["r"])).columns == ("a b", "c d")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([1.0, "two"], "the table, row 1 (counting from 0), column 'a': 'two' is not a number. Correct it, or drop"),
        ([1.0, {}], "row 1 (counting from 0), column 'a': a dict is not a number"),
        (
            pd.to_datetime(["2020-01-01", "2021-01-01"]),
            "the table: column 'a' (dates: '2020-01-01 00:00:00', …) does not hold numbers. Use --drop a",
        ),
        (pd.to_timedelta([1, 2], "D"), "the table, column 'a', must hold real numbers, got the type timedelta64"),
        (pd.Categorical(["x", "y"]), "column 'a' (each once: 'x', …) does not hold numbers. Use --rows-by a"),
        ([1j, 2], "the table, column 'a', must hold real numbers, got the type complex128"),
        ([1.0, np.inf], "the table, row 1 (counting from 0), column 'a': the value is infinite"),
        ([10**400, 1], "the table, row 0 (counting from 0), column 'a': the value is infinite"),
        ([datetime(2020, 1, 1, tzinfo=UTC), None], "column 'a'"),
    ],
)
def test_columns_that_are_no_numbers_are_named(column, says):
    with pytest.raises(UsageError) as caught:
        load(pd.DataFrame({"a": column, "b": [1, 2]}))
    assert says in str(caught.value)


def test_empty_frames():
    for frame in (pd.DataFrame(), pd.DataFrame({"a": []}), pd.DataFrame(index=[0, 1])):
        with pytest.raises(UsageError, match="is empty"):
            load(frame)


def test_none_and_na_in_nested_lists_are_missing():
    np.testing.assert_array_equal(load([[1, 2], [3, None], [pd.NA, 5]]).x, [[1, 2], [3, nan], [nan, 5]])
    np.testing.assert_array_equal(load([1, None]).x, [[1], [nan]])
    assert load([[[1, 2], [3, None]]]).x.shape == (1, 2, 2)
    with pytest.raises(UsageError, match=r"the array, row 1 \(counting from 0\), column 0: 'x' is not a number"):
        load(np.array([[1, 2], ["x", None]], dtype=object))


def test_names_stand_in_the_fit():
    fit = run("gmm", pd.DataFrame(X, columns=NAMES), "em", components=1)
    assert fit.columns == NAMES
    assert list(fit.idata["observed_data"].column.values) == list(NAMES)


# ---- matching


@given(st.permutations(range(5)))
def test_reordered_columns_are_put_in_order(order):
    names = [f"n{j}" for j in order]
    values = np.array(order)
    assert values[match(["n0", "n1", "n2", "n3", "n4"], names)].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("known", "given", "says"),
    [
        ("abcd", ("x0", "x1", "x2"), "Expected 4 columns (a, b, c, d), got 3."),
        (("x0", "x1", "x2", "x3"), ("x0", "x1", "x2"), "Expected 4 columns, got 3."),
        (("x0", "x1"), "abc", "Expected 2 columns, got 3 (a, b, c)."),
        ("a", ("x0", "x1"), "Expected 1 column (a), got 2."),
        ("abcd", "abc", "Expected the columns a, b, c, d. Missing: d (add"),
        ("ab", "aabc", "Expected the columns a, b. Twice: a."),
        ("abc", "axc", "Expected the columns a, b, c. Missing: b; unknown: x (add"),
        ("ab", "aab", "Expected the columns a, b. Twice: a."),
        ("aab", "aba", "the column name 'a' is used twice"),
    ],
)
def test_what_does_not_match_is_listed(known, given, says):
    with pytest.raises(UsageError) as caught:
        match(list(known), list(given))
    assert says in str(caught.value)


def test_other_columns_may_stand_beside_those_that_are_known():
    assert match(list("abc"), list("dcab")) == [2, 3, 1]
    assert match(["a"], ["b", "b", "a"]) == [2]


def test_columns_without_names_go_by_position():
    assert match(list("ab"), ["x0", "x1"]) == [0, 1]
    assert match(["x0", "x1"], list("ba")) == [0, 1]
    assert match(["x0", "x1"], ["x1", "x0"]) == [1, 0]
    assert match(list("aa"), list("aa")) == [0, 1]


@pytest.mark.parametrize("standardize", [False, True])
def test_a_run_meets_its_columns_again_whatever_their_order(standardize, here):
    frame = pd.DataFrame(X, columns=NAMES)
    first = run("factor_analysis", frame, "em", latents=1, standardize=standardize, out="run")
    again = infer("run", "em", data=frame[["c", "a", "d", "b"]])
    np.testing.assert_allclose(again.claimed.per_datum, first.claimed.per_datum, rtol=1e-9)
    assert again.columns == NAMES
    frame[["d", "c", "b", "a"]].to_csv("new.csv", index=False)
    again = infer("run", "em", data="new.csv")
    np.testing.assert_allclose(again.x, first.x, rtol=1e-12)
    assert infer("run", "em", data=X).claimed.value == pytest.approx(first.claimed.value, rel=1e-9)


def test_other_data_of_a_wrong_shape_are_refused_in_words(here):
    run("factor_analysis", pd.DataFrame(X, columns=NAMES), "em", latents=1, out="run")
    for data, says in [
        (X[:, :3], r"^Expected 4 columns \(a, b, c, d\), got 3\.$"),
        (pd.DataFrame(X[:, :3], columns=["a", "b", "e"]), r"Missing: c, d; unknown: e \(add what is missing"),
        (np.zeros((5, 2, 2)), r"^Expected rows of shape \(4,\), got \(2, 2\): those of the run are table's\.$"),
    ]:
        with pytest.raises(UsageError, match=says):
            infer("run", "em", data=data)


def test_images_have_no_names_to_match(here):
    run("gmm", "digits", "em", rows=40, covariance="spherical", max_iter=2, out="images")
    digits = datasets.load("digits").x
    assert infer("images", "em", data=digits[:3]).claimed.per_datum.shape == (3,)
    with pytest.raises(UsageError, match=r"^Expected 64 columns, got 63: those of the run are digits's\.$"):
        infer("images", "em", data=digits[:3, 1:])


# ---- one new row


slow = pytest.mark.slow
GMM, PRIORS = ("gmm", {"components": 3}), ("gmm", {"components": 2, "priors": True, "covariance": "tied"})
PPCA, FACTORS = ("ppca", {"latents": 2}), ("factor_analysis", {"latents": 2})
DEEP = ("deep_latent_gaussian", {"latents": 2, "hidden": "8"})


@pytest.mark.parametrize("hole", [True, pytest.param(False, marks=slow)])
@pytest.mark.parametrize(
    ("model", "options", "method"),
    [
        *((*GMM, m) for m in ("em", "laplace", "svi", "importance")),
        *((*PRIORS, m) for m in ("em", "gibbs")),
        *(pytest.param(*PRIORS, m, marks=slow) for m in ("laplace", "svi")),
        *((*PPCA, m) for m in ("em", "importance")),
        *in_full((*PPCA, "ais"), (*DEEP, "ais")),
        *(pytest.param(*PPCA, m, marks=slow) for m in ("laplace", "svi")),
        *((*FACTORS, m) for m in ("laplace", "svi")),
        *((*DEEP, m) for m in ("em", "laplace", "svi", "importance")),
    ],
)
def test_one_new_row_has_the_evidence_it_has_among_others(hole, model, options, method, here):
    """θ is kept, so an exact log p(x_i) is the row's own in the run; the rest has to run, and to say a number."""
    deep, quick = model == "deep_latent_gaussian", {"epochs": 2, "lr": 1e-3}
    x = X.copy()
    x[3, 1] = nan if hole else x[3, 1]
    first = run(model, x, "importance" if deep else "em", out="run", **options, **(quick if deep else {"max_iter": 5}))
    more = {"svi": quick, "importance": {**quick, "samples": 50}, "ais": {"temperatures": 5, "chains": 4}}.get(
        method, {}
    )
    if (deep and method == "em") or method == "gibbs":
        with pytest.raises(Refusal, match=r"needs an exact posterior|belong to all of them"):
            infer("run", method, data=x[3:4])
        return
    row = infer("run", method, data=x[3:4], out="row", **more)
    assert row.n == 1 and np.isfinite(row.claimed.value)
    assert all(
        np.array_equal(row.parameters[k], v) for k, v in first.parameters.items() if k in row.program.constraints
    )
    if row.verified is not None and row.verified.kind == "exact":
        np.testing.assert_allclose(row.verified.per_datum, first.verified.per_datum[3:4], rtol=1e-9)
    if hole:
        assert np.isfinite(row.impute().mean).all()
    assert row.idata["observed_data"]["x"].shape == (1, 4)
