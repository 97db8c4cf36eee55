"""PSIS, the DataTree of a fit, and its netCDF file: against theory, against ArviZ, and there and back."""

from __future__ import annotations

import json
import math
import time
import warnings

import arviz_stats
import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from helpers import run_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from inference._method.fit import Evidence
from inference._numerics.psis import psis
from inference._run.datatree import to_datatree
from inference._run.netcdf import netcdf, read_netcdf
from inference._run.result import Run


def mean_and_se(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def levels(draws: int, *shared: tuple[int, float]) -> np.ndarray:
    """Log weights [draws, 1]: all zero, but for `count` draws at each of the given values."""
    out = np.zeros(draws)
    start = 0
    for count, value in shared:
        out[start : start + count] = value
        start += count
    return np.random.default_rng(0).permutation(out)[:, None]


# ---- k-hat, where theory knows it ---------------------------------------------------------------------


@pytest.mark.parametrize("rate", [2.0, 3.0, 10.0])
def test_khat_of_exponential_proposal_is_the_pareto_shape(rate):
    """p = Exp(1), q = Exp(rate): the ratios are Pareto of tail index rate / (rate − 1), so k = 1 − 1/rate."""
    rng = np.random.default_rng(1)
    draws, repeats = 4000, 60
    x = rng.exponential(1 / rate, size=(draws, repeats))
    khat, _ = psis((rate - 1) * x)
    tail = 3 * math.sqrt(draws)
    # shrunk as in Vehtari et al. 2024, by a prior worth ten draws of k = 0.5
    expected = (tail * (1 - 1 / rate) + 10 * 0.5) / (tail + 10)
    mean, se = mean_and_se(khat)
    assert abs(mean - expected) < 4 * se + 1 / tail  # the fit's own bias is of the order of 1 / tail


def test_khat_of_a_wider_proposal_is_small_and_of_a_narrower_one_is_flagged():
    """p = N(0, 1), q = N(0, s²). s > 1: bounded ratios, E_q[(p/q)²] = s² / √(2s² − 1). s < 1: k = 1 − s²."""
    rng = np.random.default_rng(2)
    draws, repeats = 2000, 100

    def run(scale):
        x = scale * rng.normal(size=(draws, repeats))
        khat, ess = psis(stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=scale))
        return mean_and_se(khat), mean_and_se(ess)

    (khat, se), (ess, ess_se) = run(2.0)
    assert khat + 4 * se < 0
    assert abs(ess - draws * math.sqrt(7) / 4) < 4 * ess_se
    (khat, se), _ = run(0.2)
    assert khat - 4 * se > 0.7
    assert khat < 0.96 + 4 * se  # approached from below


def test_khat_is_that_of_arviz():
    log_weights = 2 * np.random.default_rng(3).standard_t(4, size=(500, 30))
    expected = array_stats.psislw(-log_weights, axis=0)[1]
    np.testing.assert_allclose(psis(log_weights)[0], expected, rtol=1e-12)
    tree = to_datatree(a_fit(log_likelihood=-log_weights[:, :5] / 20))
    np.testing.assert_allclose(
        psis(log_weights[:, :5] / 20)[0], arviz_stats.loo(tree, pointwise=True).pareto_k, rtol=1e-12
    )


def test_ess_is_its_formula():
    weights = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 5.0]])
    with np.errstate(divide="ignore"):
        _, ess = psis(np.log(weights) - 5000)  # its scale is of no account, even where exp would underflow
    np.testing.assert_allclose(ess, [16 / 6, 16 / 6, 1.0])


def test_a_constant_added_to_the_log_weights_changes_nothing():
    log_weights = np.random.default_rng(4).normal(size=(400, 7))
    for got, moved in zip(psis(log_weights), psis(log_weights - 3e3), strict=True):
        np.testing.assert_allclose(got, moved, rtol=1e-6)


# ---- k-hat, where there is no tail to fit -------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.1, 1.0])
@pytest.mark.parametrize("draws", [1000, 4000])
def test_a_few_draws_far_above_the_others_are_flagged(spread, draws):
    log_weights = spread * np.random.default_rng(5).normal(size=(draws, 20))
    log_weights[:3] = log_weights.max(axis=0) + 20
    khat, ess = psis(log_weights)
    assert (khat > 0.7).all()
    np.testing.assert_allclose(ess, 3, rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, -3e4, 0.1])
def test_equal_weights_are_exact(value):
    khat, ess = psis(np.full((300, 4), value))
    assert (khat == 0).all()
    np.testing.assert_allclose(ess, 300)


def test_weights_that_are_equal_to_rounding_are_exact():
    noise = np.random.default_rng(6).integers(-4, 5, size=(300, 4))
    for dtype in (np.float32, np.float64):
        log_weights = (-700 * (1 + noise * np.finfo(dtype).eps)).astype(dtype)
        assert (psis(log_weights)[0] == 0).all()


def test_a_largest_weight_that_fills_the_tail_is_a_bound():
    assert psis(levels(1000, (95, 20.0)))[0] == 0  # the tail of 1,000 draws is 94 long
    assert psis(levels(1000, (997, 20.0)))[0] == 0


def test_few_values_are_judged_by_their_effective_sample_size():
    harmless = psis(levels(1000, (50, math.log(2.0))))[0].item()  # ESS 956
    assert harmless < 0.1
    assert psis(levels(1000, (3, 1e-3)))[0] == 0  # ESS 1,000
    sizes = [psis(levels(1000, (count, 20.0)))[0].item() for count in (1, 3, 10, 40)]  # ESS = count
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0.7
    # by hand: two draws in 1,000 have all the weight; 100 (1000/2 − 1) draws would give 10 % relative error
    assert psis(levels(1000, (2, 1e4)))[0] == pytest.approx(1 - 1 / math.log10(100 * 499))
    assert 10 ** (1 / (1 - psis(levels(1000, (2, 1e4)))[0].item())) == pytest.approx(49_900)


def test_a_heavy_tail_on_top_of_ties_is_fitted():
    """Ratios of 1, but for 60 in 1,000 draws that exceed it by a Pareto excess of shape 1.5."""
    rng = np.random.default_rng(7)
    khat = []
    for _ in range(40):
        ratios = np.ones(1000)
        ratios[:60] += rng.pareto(1 / 1.5, size=60)
        khat.append(psis(np.log(ratios)[:, None])[0].item())
    mean, se = mean_and_se(khat)
    assert abs(mean - (60 * 1.5 + 5) / 70) < 4 * se + 1 / 60


def test_zero_weights():
    rng = np.random.default_rng(8)
    log_weights = np.full((200, 4), -np.inf)
    log_weights[:, 1] = np.where(np.arange(200) < 100, 0.0, -np.inf)  # as in rejection sampling, half accepted
    log_weights[:, 2] = np.where(np.arange(200) < 150, rng.normal(size=200), -np.inf)
    log_weights[0, 3] = -1e5
    khat, ess = psis(log_weights)
    np.testing.assert_allclose(ess[[0, 1, 3]], [0, 100, 1])
    assert khat[0] == np.inf
    assert khat[1] == 0
    assert khat[2] == pytest.approx(array_stats.psislw(-log_weights[:, 2], axis=0)[1])
    assert khat[3] > 0.7


def test_weights_that_are_no_numbers_are_flagged():
    log_weights = np.zeros((100, 3))
    log_weights[5] = np.nan, np.inf, 0.0
    khat, ess = psis(log_weights)
    assert khat.tolist() == [np.inf, np.inf, 0.0]
    np.testing.assert_allclose(ess, [0, 0, 100])


@pytest.mark.parametrize("draws", [0, 1, 4, 5, 24])
def test_too_few_draws_cannot_be_checked(draws):
    khat, ess = psis(np.zeros((draws, 2)))
    assert (khat == np.inf).all()
    np.testing.assert_allclose(ess, draws)
    assert (psis(np.zeros((25, 2)))[0] == 0).all()


def test_psis_wants_a_matrix():
    with pytest.raises(ValueError, match=r"shape \(7,\); it must be \[draws, n\]"):
        psis(np.zeros(7))


def test_psis_is_fast_enough():
    rng = np.random.default_rng(9)
    for shape, seconds in (((1000, 272), 1.0), ((5000, 200), 6.0)):
        log_weights = rng.normal(size=shape)
        start = time.process_time()  # not the wall's, which others' work slows
        psis(log_weights)
        assert time.process_time() - start < seconds


@settings(max_examples=60, deadline=None)
@given(
    draws=st.integers(0, 300),
    n=st.integers(0, 4),
    values=st.integers(1, 400),
    scale=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 30.0, 800.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**16),
)
def test_psis_always_answers(draws, n, values, scale, dtype, seed):
    """For any shape, scale and number of distinct values: no warning, no NaN, 1 ≤ ESS ≤ draws."""
    rng = np.random.default_rng(seed)
    log_weights = (scale * rng.normal(size=values)[rng.integers(0, values, size=(draws, n))]).astype(dtype)
    khat, ess = psis(log_weights)
    assert khat.shape == ess.shape == (n,)
    assert not np.isnan(khat).any()
    assert (khat > -np.inf).all()
    assert ((ess >= min(1, draws) * (1 - 1e-9)) & (ess <= draws * (1 + 1e-9))).all()


# ---- the DataTree -------------------------------------------------------------------------------------


def a_fit(draws: int = 60, n: int = 5, /, **changes) -> Run:
    """A fit with something in every field that the tree shows; z is certain for every other datum."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=(n, 2))
    x[0] = np.nan
    z = rng.integers(0, 3, size=(draws, n))
    z[:, ::2] = 1
    fields = {
        "parameters": {"locs": np.arange(6.0).reshape(3, 2), "scale": np.float64(2.0)},
        "claimed": Evidence.from_per_datum(rng.normal(size=n), "lower bound"),
        "verified": Evidence(-3.5, None, "estimate", given="the mode of μ"),
        "draws": {"z": z, "h": rng.normal(size=(draws, n, 2)), "mu": rng.normal(size=draws)},
        "probabilities": {"z": np.full((n, 3), 1 / 3)},
        "khat": np.linspace(0, 1, n),
        "ess": np.full(n, 7.0),
        "trace": {"log_evidence": np.arange(4.0), "step": np.arange(2.0)},
        "converged": True,
        "local_sites": ("z", "h"),
        "x": x,
        "columns": ("eruptions", "température"),
        "labels": np.array(["a", "é"] * n)[:n],
        "predictive": {"x": rng.normal(size=(draws, n, 2))},
        "log_likelihood": rng.normal(size=(draws, n)) / 10 - 3,
        "model": "gmm",
        "data": "faithful",
        "method": "em",
        "seed": 3,
        "options": {"model": {"components": 3}},
    }
    return run_of(**(fields | changes))


def test_schema():
    fit = a_fit()
    tree = to_datatree(fit)
    dims = {f"{group}/{name}": v.dims for group in tree.children for name, v in tree[group].data_vars.items()}
    assert dims == {
        "posterior/z": ("chain", "draw", "data"),
        "posterior/h": ("chain", "draw", "data", "h_dim_0"),
        "posterior/mu": ("chain", "draw"),
        "posterior_predictive/x": ("chain", "draw", "data", "column"),
        "log_likelihood/x": ("chain", "draw", "data"),
        "sample_stats/khat": ("data",),
        "sample_stats/ess": ("data",),
        "sample_stats/log_evidence": ("data",),
        "sample_stats/z_probability": ("data", "z_probability_dim_0"),
        "observed_data/x": ("data", "column"),
        "constant_data/locs": ("locs_dim_0", "locs_dim_1"),
        "constant_data/scale": (),
        "constant_data/labels": ("data",),
        "trace/log_evidence": ("iteration",),
        "trace/step": ("step_iteration",),
    }
    assert list(tree["observed_data"].column.values) == ["eruptions", "température"]
    np.testing.assert_array_equal(tree["observed_data/x"], fit.x)
    np.testing.assert_array_equal(tree["posterior/z"][0], fit.draws["z"])
    assert tree["posterior/z"].dtype.kind == "i"
    np.testing.assert_array_equal(tree["log_likelihood/x"][0], fit.log_likelihood)


def test_attributes():
    attrs = to_datatree(a_fit()).attrs
    assert {k: attrs[k] for k in ("model", "data", "method", "seed", "n", "inference_library", "converged")} == {
        "model": "gmm",
        "data": "faithful",
        "method": "em",
        "seed": 3,
        "n": 5,
        "inference_library": "latent-zoo",
        "converged": True,
    }
    assert attrs["log_evidence"] == pytest.approx(a_fit().claimed.value)
    assert attrs["log_evidence_se"] == 0
    assert attrs["log_evidence_kind"] == "lower bound"
    assert "log_evidence_given" not in attrs
    assert "verified_log_evidence_se" not in attrs
    assert attrs["verified_log_evidence_given"] == "the mode of μ"
    assert json.loads(attrs["options"]) == {"model": {"components": 3}}
    assert "created_at" in attrs
    assert None not in attrs.values()


def test_empty_groups_are_left_out():
    tree = to_datatree(run_of(claimed=Evidence(-1.0, 0.0, "exact")))
    assert set(tree.children) == {"observed_data"}
    assert tree.attrs["log_evidence"] == -1.0


def test_names_and_shapes_that_need_care():
    tree = to_datatree(
        a_fit(
            parameters={"net/0.bias": np.zeros(2), "labels": np.zeros(1)},
            draws={"b": np.ones((60, 5), dtype=bool)},
            local_sites=("b",),
            x=np.zeros((5, 4, 4)),
            predictive={"x": np.zeros((60, 5, 4, 4))},
            columns=(),
            trace={"iteration": np.array([0, 10, 20]), "loss": np.zeros(3)},
        )
    )
    assert list(tree["trace/loss"].iteration.values) == [0, 10, 20]
    assert set(tree["constant_data"].data_vars) == {"net.0.bias", "labels", "data_labels"}
    assert tree["posterior_predictive/x"].dims == ("chain", "draw", "data", "x_dim_0", "x_dim_1")
    assert tree["observed_data/x"].dims == ("data", "x_dim_0", "x_dim_1")
    assert tree["posterior/b"].dtype == np.int8
    arviz_stats.summary(tree)


def test_a_local_site_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"draws, 5, \.\.\.\] for the draws of the local site 'z', got \(60, 4\)"):
        to_datatree(a_fit(draws={"z": np.zeros((60, 4))}))


def test_idata_of_a_fit():
    assert a_fit().idata["posterior/z"].sizes == {"chain": 1, "draw": 60, "data": 5}


# ---- what ArviZ says to it ----------------------------------------------------------------------------


def test_summary_takes_discrete_and_certain_draws():
    draws, n = 1000, 272
    fit = a_fit(draws, n)
    tree = to_datatree(fit)
    table = arviz_stats.summary(tree, var_names=["z", "mu"], round_to="none")
    assert len(table) == n + 1
    np.testing.assert_allclose(table.loc["z[1]", "mean"], fit.draws["z"][:, 1].mean())
    assert table.loc["z[0]", "sd"] == 0
    assert math.isnan(table.loc["z[0]", "mcse_sd"])  # 0/0 in ArviZ, and for once without a warning
    assert arviz_stats.loo(tree).n_samples == draws


def test_the_filter_for_certain_draws_does_not_pile_up():
    with warnings.catch_warnings():
        to_datatree(a_fit())
        before = len(warnings.filters)
        to_datatree(a_fit())
        assert len(warnings.filters) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_loo_of_rows_that_no_draw_changes_is_their_log_likelihood(dtype, size):
    """ArviZ alone raises on a log likelihood that no draw changes; row 0 is a datum without an entry."""
    per_datum = (size * np.random.default_rng(11).normal(size=272)).astype(dtype)
    per_datum[0] = 0
    log_likelihood = np.broadcast_to(per_datum, (1000, 272))
    with pytest.raises(ValueError, match="All tail values are the same"):
        array_stats.loo(log_likelihood.T[None], chain_axis=0, draw_axis=-1)
    tree = to_datatree(a_fit(1000, 272, log_likelihood=log_likelihood))
    loo = arviz_stats.loo(tree, pointwise=True)
    np.testing.assert_allclose(loo.elpd_i, per_datum, rtol=1e-8, atol=1e-8)
    assert loo.p == pytest.approx(0, abs=1e-6)
    assert (loo.pareto_k < 0).all()


def test_loo_takes_a_log_likelihood_that_is_constant_to_rounding():
    noise = np.random.default_rng(12).integers(-2, 3, size=(500, 40))
    log_likelihood = (-300 * (1 + noise * np.finfo(np.float32).eps)).astype(np.float32)
    loo = arviz_stats.loo(to_datatree(a_fit(500, 40, log_likelihood=log_likelihood)))
    assert loo.elpd == pytest.approx(-300 * 40, rel=1e-6)


def test_loo_takes_repeated_draws():
    """Only four distinct draws, as after resampling: a tied tail; ArviZ alone raises or divides by zero."""
    rng = np.random.default_rng(13)
    distinct = rng.normal(size=(4, 30)) / 10
    log_likelihood = distinct[rng.integers(0, 4, size=400)]
    loo = arviz_stats.loo(to_datatree(a_fit(400, 30, log_likelihood=log_likelihood)))
    importance = -np.log(np.exp(-log_likelihood).mean(axis=0))  # unsmoothed: the ratios are bounded
    assert loo.elpd == pytest.approx(importance.sum(), abs=1e-5)


def test_loo_of_a_conjugate_normal_model_is_right():
    """x_i ~ N(μ, 1), μ ~ N(0, 10²): the leave-one-out predictive is N(m₋ᵢ, 1 + v₋ᵢ), in closed form."""
    rng = np.random.default_rng(14)
    x = rng.normal(1.0, 1.0, size=30)
    precision = len(x) + 1 / 100
    mean_i = (x.sum() - x) / (precision - 1)
    exact = stats.norm.logpdf(x, mean_i, np.sqrt(1 + 1 / (precision - 1))).sum()
    estimates = []
    for _ in range(20):
        mu = rng.normal(x.sum() / precision, precision**-0.5, size=(1000, 1))
        fit = a_fit(1000, 30, draws={"mu": mu[:, 0]}, log_likelihood=stats.norm.logpdf(x, mu))
        estimates.append(arviz_stats.loo(to_datatree(fit)).elpd)
    mean, se = mean_and_se(estimates)
    assert abs(mean - exact) < 4 * se
    assert se < 0.02  # so that the line above says something


# ---- netCDF -------------------------------------------------------------------------------------------


def test_round_trip():
    tree = to_datatree(a_fit(notes={"ü": [1, None]}, warnings=["θ is at its bound"]))
    back = read_netcdf(netcdf(tree))
    xr.testing.assert_identical(tree, back)
    assert {k: type(v) for k, v in back.attrs.items()} == {k: type(v) for k, v in tree.attrs.items()}
    arviz_stats.summary(back)
    arviz_stats.loo(back)


def test_attributes_round_trip():
    attrs = {"yes": True, "no": np.False_, "count": 3, "real": 0.1, "none": math.nan, "low": -math.inf}
    attrs |= {"text": "p(x | z; θ) é", "empty": "", "line": "a\nb", "json": '{"a": null}'}
    inner = xr.Dataset({"x": ("data", np.arange(3), {"flag": True, "units": "nats"})}, attrs={"n": 0})
    back = read_netcdf(netcdf(xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), "g": inner})))
    assert math.isnan(back.attrs.pop("none"))
    assert math.isnan(attrs.pop("none"))
    assert back.attrs == attrs
    assert back.attrs["yes"] is True
    assert back.attrs["no"] is False
    assert back["g/x"].attrs == {"flag": True, "units": "nats"}
    assert attrs["yes"] is True  # writing leaves the tree that was written alone
    assert back["g"].attrs == {"n": 0}
    assert type(back["g"].attrs["n"]) is int


def test_large_arrays_are_compressed():
    tree = to_datatree(a_fit(2000, 50, draws={"z": np.zeros((2000, 50))}, predictive={}, log_likelihood=None))
    content = netcdf(tree)
    assert len(content) < tree["posterior/z"].nbytes / 5
    back = read_netcdf(content)
    assert not back["posterior/z"].encoding
    assert netcdf(back)  # what was read can be written again
    assert float(back["posterior/z"].sum()) == 0  # nothing is left to be read


@settings(max_examples=15, deadline=None)
@given(
    draws=st.integers(25, 40),
    n=st.integers(2, 5),
    event=st.lists(st.integers(1, 3), max_size=2),
    point=st.booleans(),
    columns=st.booleans(),
)
def test_any_shape_has_a_tree_and_comes_back(draws, n, event, point, columns):
    rng = np.random.default_rng(15)
    log_likelihood = np.repeat(rng.normal(size=(1, n)), draws, axis=0)
    log_likelihood += 0 if point else rng.normal(size=(draws, n)) / 100
    fit = a_fit(
        draws,
        n,
        x=rng.normal(size=(n, *event)),
        columns=tuple("abc")[: event[0]] if columns and len(event) == 1 else (),
        predictive={"x": rng.normal(size=(draws, n, *event))},
        log_likelihood=log_likelihood,
        draws={"z": rng.integers(0, 2, size=(draws, n)), "w": rng.normal(size=(draws, *event))},
    )
    tree = to_datatree(fit)
    xr.testing.assert_identical(tree, read_netcdf(netcdf(tree)))
    assert tree["posterior/w"].sizes["draw"] == draws
    assert tree["posterior_predictive/x"].dims[3:] == tree["observed_data/x"].dims[1:]
    assert len(arviz_stats.summary(tree)) == n + math.prod(event)


def test_xarray_reads_what_was_written_as_it_is(tmp_path):
    inner = xr.Dataset(
        {
            "flags": ("data", np.array([True, False, True]), {"of": "z"}),
            "names": (("data", "side"), np.array([["a", "é"], ["", "c"], ["d", "e"]])),
            "none": (("nothing", "data"), np.zeros((0, 3))),
            "large": (("data", "many"), np.tile([0.5, np.nan], (3, 10_000))),
            "one": ((), 3),
        },
        coords={"data": [3, 5, 7], "label": ("data", ["p", "q", "r"])},
    )
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"n": 3}), "/g": inner, "/g/h": inner[["one", "flags"]]})
    (tmp_path / "x.nc").write_bytes(netcdf(tree))
    with xr.open_datatree(tmp_path / "x.nc", engine="h5netcdf") as theirs:
        xr.testing.assert_identical(theirs.load(), tree)
    xr.testing.assert_identical(read_netcdf(netcdf(tree)), tree)
    tree.to_netcdf(tmp_path / "y.nc", engine="h5netcdf")
    xr.testing.assert_identical(read_netcdf((tmp_path / "y.nc").read_bytes()), tree)
