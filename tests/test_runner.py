"""Running a method: isolation, reproducibility, run folders written whole or not at all, and what is refused before work."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import time
from pathlib import Path

import arviz_stats
import numpy as np
import pyro
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import hide, in_full, run_of, task_of
from scipy import stats

from inference import compare, infer, run
from inference._method.fit import Evidence
from inference._run import folder, result
from zoo import _atomic
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

FAITHFUL = datasets.load("faithful").x
COUNTS = CASES["poisson"].data(np.random.default_rng(0), 50)
FIELDS = {
    "model", "data", "method", "seed", "status", "reason", "n", "log_evidence", "verified_log_evidence", "khat",
    "seconds", "peak_memory_mb", "run", "parameters",
}  # fmt: skip


def strict(text: str):
    """JSON as other languages read it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def says(pattern: str, *args, **options):
    with pytest.raises(UsageError, match=pattern) as caught:
        run(*args, **options)
    return caught.value


# ---- two runs never share anything ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [user.poisson, user.Mixture, f"{user.__file__}:poisson"])
def test_two_runs_never_share_parameters(model):
    """The second begins where the first did, though the names in Pyro's store would be the same."""
    first, second = (run(model, COUNTS, "em", start="program", max_iter=3) for _ in range(2))
    assert np.array_equal(first.trace["log_likelihood"], second.trace["log_likelihood"])
    kept = {n: v.copy() for n, v in first.parameters.items()}
    for p in second.program.parameters():
        p.data.zero_()
    assert all(np.array_equal(first.parameters[n], v) for n, v in kept.items())


def test_two_programs_with_the_same_names_do_not_meet():
    alone = run(user.poisson, COUNTS, "em").claimed.value
    run(user.exponential, COUNTS + 0.5, "em")
    assert run(user.poisson, COUNTS, "em").claimed.value == alone


def test_a_module_of_the_users_is_left_as_it_was():
    before = {n: p.detach().clone() for n, p in user.instance.named_parameters()}
    run(user.instance, np.random.default_rng(1).normal(size=(30, 3)), "em", max_iter=5)
    for n, p in user.instance.named_parameters():
        assert torch.equal(p, before[n]) and p.dtype == before[n].dtype


def test_a_network_that_a_function_registers_is_shared_by_no_two_runs():
    """`pyro.module` hands out the user's own tensors: they come back untouched, and are learned all the same."""
    network = torch.nn.Linear(2, 3)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}

    def program(x=None, size=None):
        pyro.module("network", network)
        with user.rows(x, size):
            z = pyro.sample("z", pyro.distributions.Categorical(torch.tensor([0.4, 0.6])))
            loc = network(torch.nn.functional.one_hot(z, 2).to(network.weight.dtype))
            pyro.sample("x", pyro.distributions.Normal(loc, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(2).normal(size=(40, 3)) + 3
    first, second, third = (run(program, x, "em", start="program", max_iter=10) for _ in range(3))
    assert list(network.state_dict()) == ["weight", "bias"]  # in their order, too
    assert np.array_equal(first.trace["log_likelihood"], third.trace["log_likelihood"])
    assert set(first.parameters) == {"network.weight", "network.bias"}
    assert first.trace["log_likelihood"][-1] > first.trace["log_likelihood"][0] + 10
    assert np.array_equal(first.trace["log_likelihood"], second.trace["log_likelihood"])
    errors = run(program, x, "laplace", start="program").standard_errors
    assert errors["network.weight"].shape == (3, 2)
    for n, p in network.named_parameters():
        assert torch.equal(p, before[n]) and p.dtype == before[n].dtype, n


def test_a_method_of_a_module_is_a_model_too():
    """As in `vae.model`; its parameters are found, learned, and the user's own left alone."""

    class Holder(user.Decoder):
        def model(self, x=None, size=None):
            return user.Decoder.forward(self, x, size)

        def forward(self, *args, **kwargs):
            raise AssertionError("not this one")

    holder, x = Holder(), np.random.default_rng(3).normal(size=(30, 3))
    before = {n: p.detach().clone() for n, p in holder.named_parameters()}
    fit = run(holder.model, x, "em", start="program", max_iter=5)
    same = run(user.Decoder(), x, "em", start="program", max_iter=5)
    np.testing.assert_allclose(fit.trace["log_likelihood"], same.trace["log_likelihood"], rtol=1e-9)
    assert all(torch.equal(p, before[n]) for n, p in holder.named_parameters())


def test_a_parameter_object_of_the_users_is_copied():
    mine = torch.nn.Parameter(torch.zeros(3))

    def program(x=None, size=None):
        with user.rows(x, size):
            pyro.sample("x", pyro.distributions.Normal(pyro.param("loc", mine), 1.0).to_event(1), obs=x)

    fit = run(program, np.random.default_rng(4).normal(size=(20, 3)) + 5, "em")
    assert np.all(fit.parameters["loc"] > 3)
    assert torch.equal(mine, torch.zeros(3)) and mine.dtype == torch.float32


def test_a_module_that_a_function_calls_is_refused_rather_than_not_learned():
    module = user.Decoder()
    says("make the module the model", lambda x=None, size=None: module(x, size), np.zeros((10, 3)))


@pytest.mark.parametrize("method", ["em", "laplace", "svi", "importance"])
def test_global_state_is_left_alone(method):
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    torch.manual_seed(11)
    np.random.seed(12)  # noqa: NPY002
    random.seed(13)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    options = {} if method in ("em", "laplace") else {"epochs": 2}
    run(user.poisson, COUNTS, method, **options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.get_default_dtype() == torch.float32
    assert pyro.settings.get("module_local_params") is False
    pyro.clear_param_store()


def test_a_failing_run_leaves_global_state_alone_too():
    before = (torch.get_rng_state(), torch.get_default_dtype(), pyro.settings.get("module_local_params"))

    def breaks(x=None, size=None):
        raise RuntimeError("on purpose")

    says("'breaks' raised RuntimeError", breaks, COUNTS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), pyro.settings.get("module_local_params")) == before[1:]


def test_the_random_state_outside_has_no_say():
    torch.manual_seed(1)
    one = run("gmm", "faithful", "importance", epochs=1, samples=20, seed=5)
    torch.manual_seed(2)
    two = run("gmm", "faithful", "importance", epochs=1, samples=20, seed=5)
    assert np.array_equal(one.claimed.per_datum, two.claimed.per_datum)
    assert np.array_equal(one.predictive["x"], two.predictive["x"])


def test_methods_side_by_side_give_what_each_gives_alone():
    alone = run("gmm", "faithful", "laplace", seed=3)
    _, beside = compare("gmm", "faithful", ["em", "laplace"], seed=3)
    assert beside.claimed.value == alone.claimed.value
    assert np.array_equal(beside.draws["z"], alone.draws["z"])


def test_rows_prepared_by_the_same_seed_are_the_same():
    one, two = (
        run("gmm", "digits", "em", rows=40, standardize=True, missing="random:0.2", covariance="spherical")
        for _ in range(2)
    )
    assert np.array_equal(one.x, two.x, equal_nan=True)
    assert one.options["data"]["rows"] == 40
    assert one.options["data"]["missing"] == "random:0.2"
    assert one.options["data"]["standardize"] is True


# ---- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["em", "laplace", "svi", "importance"])
def test_a_result_has_the_fields_that_were_promised(method, here):
    options = {"samples": 50, "epochs": 2} if method == "importance" else {"epochs": 2} if method == "svi" else {}
    fit = run("gmm", "faithful", method, out=f"runs/{method}", **options)
    document = strict(Path(fit.run, "run.json").read_text(encoding="utf-8"))
    assert set(document) >= FIELDS
    assert document["status"] == "ok" and document["reason"] is None and document["n"] == 272
    assert (document["model"], document["data"], document["method"], document["seed"]) == ("gmm", "faithful", method, 0)
    for name in ("log_evidence", "verified_log_evidence"):
        evidence = document[name]
        assert set(evidence) >= {"value", "se", "kind", "per_datum_mean"}
        assert evidence["value"] == pytest.approx(272 * evidence["per_datum_mean"])
        assert evidence["kind"] in ("exact", "lower bound", "estimate")
    assert document["verified_log_evidence"]["kind"] == "exact"
    assert (
        set(document["khat"]) == {"max", "frac_above_0.7"} if method in ("svi", "importance") else not document["khat"]
    )
    assert document["seconds"] > 0 and document["peak_memory_mb"] > 50
    assert np.shape(document["parameters"]["locs"]) == (2, 2)
    assert Path(document["run"]) == Path(fit.run)
    assert strict(json.dumps(fit.to_json(), allow_nan=False)) == {k: document[k] for k in fit.to_json()}


def test_large_parameters_are_left_out_of_the_json():
    fit = run("gmm", "digits", "em", components=2, rows=100, covariance="full", max_iter=1)
    assert fit.parameters["scale_tril"].size > 1000
    assert "scale_tril" not in fit.to_json()["parameters"] and "locs" in fit.to_json()["parameters"]


def test_json_stays_strict_whatever_the_numbers():
    fit = run_of(
        parameters={"w": np.array([1.0, np.nan, -np.inf])},
        claimed=Evidence(-math.inf, math.nan, "estimate"),
        standard_errors={"w": np.array([np.inf])},
        khat=np.array([0.1, np.inf]),
        notes={"khat_of_globals": math.inf, "nested": [math.nan]},
        x=np.zeros((2, 1)),
    )
    document = strict(json.dumps(fit.to_json(), allow_nan=False))
    assert document["log_evidence"]["value"] is None
    assert document["parameters"]["w"] == [1.0, None, None]
    assert document["khat"] == {"max": None, "frac_above_0.7": 0.5}


@pytest.mark.parametrize(("method", "priors"), [("laplace", False), *in_full(("laplace", True))])
def test_arviz_takes_the_result(method, priors):
    fit = run("gmm", FAITHFUL[::3], method, priors=priors, covariance="spherical")
    tree = fit.idata
    assert len(arviz_stats.summary(tree)) > 0
    assert arviz_stats.loo(tree).n_data_points == 91
    assert fit.loo().elpd == arviz_stats.loo(tree).elpd
    assert fit.loo(pointwise=True).elpd_i.shape == (91,)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert tree["posterior"]["z"].dims == ("chain", "draw", "data")


@pytest.mark.parametrize(("method", "priors"), [("em", False), ("em", True), ("svi", False), ("importance", False)])
def test_a_point_has_no_leave_one_out(method, priors):
    """One θ for every draw: ArviZ would take the training likelihood for cross-validation."""
    options = {"em": {}, "svi": {"epochs": 2}, "importance": {"epochs": 2, "samples": 50}}[method]
    fit = run("gmm", FAITHFUL[::3], method, priors=priors, covariance="spherical", **options)
    tree = fit.idata
    assert len(arviz_stats.summary(tree)) > 0
    assert "log_likelihood" not in tree.children
    with pytest.raises(TypeError, match="log likelihood not found in inference data object"):
        arviz_stats.loo(tree)
    with pytest.raises(UsageError, match=r"this fit has a single point.*evidence under priors.*held-out rows.*BIC"):
        fit.loo()
    assert tree["sample_stats"]["log_evidence"].sizes == {"data": 91}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_leave_one_out_of_a_conjugate_normal_is_right():
    """x_i ~ N(μ, 1), μ ~ N(0, 10²): in closed form, and Laplace's Gaussian is the posterior itself."""

    def program(x=None, size=None):
        mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 10.0))
        with user.rows(x, size):
            return pyro.sample("x", pyro.distributions.Normal(mu, 1.0).expand([1]).to_event(1), obs=x)

    x = np.random.default_rng(5).normal(1.0, 1.0, size=40)
    precision = len(x) + 1 / 100
    mean = (x.sum() - x) / (precision - 1)
    exact = stats.norm.logpdf(x, mean, np.sqrt(1 + 1 / (precision - 1))).sum()
    found = [run(program, x, "laplace", seed=s).loo().elpd for s in range(4)]
    assert abs(np.mean(found) - exact) < 4 * np.std(found, ddof=1) / 4**0.5 + 1e-3
    assert np.std(found) < 0.2


def test_a_theta_that_is_kept_has_no_leave_one_out_on_other_data(here):
    """It is no mode of theirs, so the Gaussian around it is not a posterior."""
    run("gmm", FAITHFUL[::3], "em", covariance="spherical", out="first")
    fit = infer("first", "laplace", data=FAITHFUL[:40])
    assert "log_likelihood" not in fit.idata.children
    with pytest.raises(UsageError, match=r"loo needs draws of θ, and this fit has a single point"):
        fit.loo()


def test_no_leave_one_out_where_the_density_at_a_draw_is_not_known():
    fit = run_of(draws={"mu": np.zeros(30)})
    with pytest.raises(UsageError, match=r"log p\(x_i \| draw\), which is unknown at the draws of mu"):
        fit.loo()
    with pytest.raises(UsageError, match="loo needs 25 draws of θ, and this fit keeps 10"):
        run_of(draws={"mu": np.zeros(10)}, log_likelihood=np.zeros((10, 3)), x=np.zeros((3, 1))).loo()


# ---- predictive data -------------------------------------------------------------------------------------------------


def two_sites(x=None, size=None, back=lambda p, q: torch.stack([p, q], -1)):
    with user.rows(x, size):
        z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        p = pyro.sample("p", pyro.distributions.Normal(z, 1.0), obs=None if x is None else x[:, 0])
        q = pyro.sample("q", pyro.distributions.Normal(2 * z + 10, 1.0), obs=None if x is None else x[:, 1])
        return back(p, q)


def test_predictive_draws_hold_every_observed_site_and_the_data_whole():
    rng = np.random.default_rng(11)
    z = rng.normal(size=40)
    x = np.stack([z, 2 * z + 10], 1) + rng.normal(size=(40, 2))
    fit = run(two_sites, x, "em")
    seen, drawn = fit.idata["observed_data"], fit.idata["posterior_predictive"]
    assert set(seen.data_vars) == set(drawn.data_vars) == {"p", "q", "x"}
    for name in seen.data_vars:
        assert drawn[name].dims == ("chain", "draw", *seen[name].dims)
        assert drawn[name].shape[2:] == seen[name].shape
    np.testing.assert_array_equal(seen["q"], x[:, 1])
    np.testing.assert_array_equal(drawn["x"][..., 0], drawn["p"])
    np.testing.assert_array_equal(drawn["x"][..., 1], drawn["q"])
    # the posterior of z has precision 1 + 1 + 4 and mean (p + 2 (q − 10)) / 6
    mean = (x[:, 0] + 2 * (x[:, 1] - 10)) / 6
    se = np.sqrt(1 + 4 / 6) / np.sqrt(drawn.sizes["draw"])
    assert np.abs(drawn["q"].values[0].mean(0) - (2 * mean + 10)).max() < 4.5 * se


@pytest.mark.parametrize("back", [lambda p, q: None, lambda p, q: torch.stack([p, 0 * q], -1), lambda p, q: p])
def test_what_a_program_returns_is_the_data_only_where_it_holds_them(back):
    x = np.random.default_rng(12).normal(size=(10, 2))
    fit = run(lambda x=None, size=None: two_sites(x, size, back), x, "em")
    assert set(fit.predictive) == {"p", "q"}
    assert set(fit.idata["observed_data"].data_vars) == {"p", "q", "x"}


@pytest.mark.parametrize("back", [lambda x: x, lambda x: None, lambda x: x.exp()])
def test_a_site_that_observes_a_function_of_x_is_not_x(back):
    """Its draws are in other units than the data; what the program returns may be in theirs."""

    def program(x=None, size=None):
        with user.rows(x, size):
            seen = None if x is None else x.log()
            y = pyro.sample("x", pyro.distributions.Normal(user.real("loc", 2), 1.0).to_event(1), obs=seen)
            return back(y)

    x = np.exp(np.random.default_rng(15).normal(size=(30, 2)))
    fit = run(program, x, "laplace")
    right = back(torch.zeros(1)) is not None and float(back(torch.zeros(1))) == 1
    assert set(fit.predictive) == ({"x_site", "x"} if right else {"x_site"})
    np.testing.assert_allclose(fit.observed["x_site"], np.log(x))
    if right:
        np.testing.assert_allclose(fit.predictive["x"], np.exp(fit.predictive["x_site"]))


def test_a_site_named_x_that_is_all_of_x_stands_there_once():
    tree = run("gmm", "faithful", "em").idata
    assert set(tree["posterior_predictive"].data_vars) == set(tree["observed_data"].data_vars) == {"x"}


def test_one_site_of_another_name_is_the_data_too():
    def program(x=None, size=None):
        with user.rows(x, size):
            pyro.sample("obs", pyro.distributions.Normal(user.real("loc", 3), 1.0).to_event(1), obs=x)

    fit = run(program, np.random.default_rng(13).normal(size=(10, 3)), "laplace")
    tree = fit.idata
    assert set(tree["posterior_predictive"].data_vars) == set(tree["observed_data"].data_vars) == {"obs", "x"}
    np.testing.assert_array_equal(tree["posterior_predictive"]["obs"], tree["posterior_predictive"]["x"])


def test_a_site_named_x_that_observes_a_part_of_x_goes_by_another_name(here):
    def program(x=None, size=None):
        loc = user.real("loc", 2)
        with user.rows(x, size):
            with pyro.plate("replicates", 2, dim=-2):
                seen = None if x is None else x[:, :2].mT
                a = pyro.sample("x", pyro.distributions.Normal(loc[:, None], 1.0), obs=seen)
            b = pyro.sample("count", pyro.distributions.Poisson(3.0), obs=None if x is None else x[:, 2])
        return torch.cat([a.mT, b[:, None]], 1)

    x = np.column_stack([np.random.default_rng(14).normal(size=(10, 2)), np.arange(10)])
    x[3, 0] = np.nan
    fit = run(program, x, "laplace", out="run")
    tree = fit.idata
    assert set(tree["posterior_predictive"].data_vars) == {"x_site", "count", "x"}
    np.testing.assert_array_equal(tree["observed_data"]["x_site"], x[:, :2])
    np.testing.assert_array_equal(tree["posterior_predictive"]["x"][..., :2], tree["posterior_predictive"]["x_site"])


def test_a_program_that_cannot_simulate_is_fitted_all_the_same():
    def only_data(x=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(user.real("loc", 3), 1.0).to_event(1), obs=x)

    fit = run(only_data, np.random.default_rng(3).normal(size=(20, 3)), "em")
    np.testing.assert_allclose(fit.parameters["loc"], fit.x.mean(0), rtol=1e-9)
    assert not fit.predictive


def test_a_program_that_simulates_another_size_is_fitted_all_the_same():
    def program(x=None, size=None):
        with pyro.plate("data", 7 if x is None else len(x)):
            return pyro.sample("x", pyro.distributions.Normal(user.real("loc", 3), 1.0).to_event(1), obs=x)

    fit = run(program, np.random.default_rng(3).normal(size=(20, 3)), "laplace")
    assert not fit.predictive
    assert (
        "model(None, size=n) does not simulate (site 'x' has values of shape (7, 3), expected (20, 3))"
        in fit.warnings[-1]
    )


def test_predictive_draws_of_latents_in_an_inner_plate_belong_to_their_datum():
    x = np.random.default_rng(4).normal(size=(3, 3)) * 3  # as many data as causes: a mix-up would have the right shape
    fit = run(user.causes, x, "em", max_iter=60, start="random")
    on, effects = fit.draws["on"], fit.parameters["effects"]
    assert on.shape[1:] == (3, 3) and fit.predictive["x"].shape[1:] == (3, 3)
    loc = np.einsum("sni,id->snd", on[: len(fit.predictive["x"])], effects)
    residual = (fit.predictive["x"] - loc) / fit.parameters["scale"]
    assert 0.6 < residual.std() < 1.4


# ---- run folders ------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_it_should(here):
    fit = run("gmm", "faithful", "em", out="one run φ/first")
    assert sorted(p.name for p in Path("one run φ/first").iterdir()) == [
        "README.txt",
        "fit.nc",
        "parameters.csv",
        "rows.csv",
        "run.json",
        "state.safetensors",
    ]
    assert [p.name for p in Path("one run φ").iterdir()] == ["first"]  # no temporary folder is left
    stored = folder.load("one run φ/first")
    np.testing.assert_array_equal(stored.x, FAITHFUL)
    for name, value in fit.parameters.items():
        np.testing.assert_array_equal(stored.parameters()[name], value)
    assert stored.json["format"] == 2
    assert stored.tree["posterior"]["z"].shape == fit.draws["z"][None].shape


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gmm", {}),
        (f"{user.__file__}:poisson", {}),
        (f"{user.__file__}:Mixture", {"components": 3}),
        (f"{user.__file__}:Decoder", {}),
    ],
)
def test_infer_keeps_theta_to_the_bit(model, options, here):
    x = COUNTS if model != "gmm" else FAITHFUL
    first = run(model, x, "em", out="first", max_iter=5, **options)
    second = infer("first", "laplace" if model != "gmm" else "em", out="second")
    for name, value in first.parameters.items():
        assert np.array_equal(second.parameters[name], value), name
    assert second.verified.value == pytest.approx(first.verified.value, rel=1e-12)
    assert np.array_equal(second.x, x)
    third = infer("second", "importance", samples=20, epochs=1)  # and on from there
    assert all(np.array_equal(third.parameters[n], v) for n, v in first.parameters.items())


def test_infer_goes_on_with_the_guide_of_the_run(here):
    svi = run("gmm", "faithful", "svi", epochs=30, hidden="8", out="svi")
    again = infer("svi", "svi", epochs=1, lr=1e-12)
    np.testing.assert_allclose(again.claimed.per_datum, svi.claimed.per_datum, rtol=1e-6)
    assert again.guide.recipe["options"]["hidden"] == [8]


def test_infer_keeps_the_globals_of_the_run(here):
    first = run("gmm", FAITHFUL[::4], "em", priors=True, covariance="spherical", out="map")
    second = infer("map", "em")
    for name in ("weights", "locs", "variances"):
        np.testing.assert_allclose(second.parameters[name], first.parameters[name], rtol=1e-9)
    assert second.claimed.value == pytest.approx(first.claimed.value, rel=1e-9)


def test_infer_keeps_missing_entries_labels_and_the_shape_of_images(here):
    first = run("gmm", "digits", "em", rows=30, missing="top", covariance="spherical", out="images", max_iter=3)
    second = infer("images", "em")
    assert np.array_equal(first.x, second.x, equal_nan=True) and np.isnan(second.x).any()
    assert tuple(second.image_shape) == tuple(first.image_shape) == (8, 8)
    assert second.data == "digits" and second.options["data"] == first.options["data"]
    assert second.claimed.value == pytest.approx(first.claimed.value, rel=1e-12)


def test_infer_takes_no_option_that_belongs_to_theta(here):
    run("gmm", "faithful", "em", out="first")
    with pytest.raises(UsageError, match="components cannot be changed"):
        infer("first", "em", components=3)
    with pytest.raises(UsageError, match="did you mean"):
        infer("first", "em", max_itr=3)


def test_infer_wants_a_run(here):
    with pytest.raises(UsageError, match="is not a run"):
        infer("nothing", "em")
    Path("half").mkdir()
    Path("half/run.json").write_text('{"format": 1}')
    with pytest.raises(UsageError, match="damaged"):
        infer("half", "em")
    Path("half/run.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="newer version"):
        infer("half", "em")


def test_a_run_of_a_nameless_callable_says_that_it_cannot_be_found_again(here):
    run(user.poisson, COUNTS, "em", out="first")
    with pytest.raises(UsageError, match="callable 'poisson'"):
        infer("first", "laplace")


def test_a_callable_that_has_the_name_of_a_model_is_not_taken_for_it(here):
    def gmm(x=None, size=None):
        return user.normal(x, size)

    run(gmm, np.random.default_rng(5).normal(size=(30, 3)), "em", out="first", max_iter=2)
    with pytest.raises(UsageError, match="callable"):
        infer("first", "em")


def test_a_fit_can_be_saved_later(here):
    fit = run("gmm", "faithful", "em")
    assert fit.run is None
    assert fit.save("later") == "later"
    assert folder.load("later").json["run"] == "later"
    with pytest.raises(UsageError, match="exists already"):
        fit.save("later")


@pytest.mark.parametrize("where", ["netcdf", "fsync", "rename"])
def test_a_failure_in_the_middle_leaves_no_folder(where, here, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if where == "netcdf":
        from inference._run import netcdf

        monkeypatch.setattr(netcdf, "netcdf", fail)
    else:
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match="No space left"):
        run("gmm", "faithful", "em", out="runs/first", max_iter=1)
    assert not Path("runs").exists() or list(Path("runs").iterdir()) == []


def test_a_kill_in_the_middle_leaves_no_half_folder(here):
    """The process stops between two files of the folder and is killed there."""
    fork = multiprocessing.get_context("fork")
    saving = fork.Event()

    def wait(*args, **kwargs):
        saving.set()
        time.sleep(60)

    def killed():
        _atomic.flush = wait
        run("gmm", "faithful", "em", out="runs/killed", max_iter=1)

    child = fork.Process(target=killed)
    child.start()
    assert saving.wait(60)
    child.kill()
    child.join()
    assert not Path("runs/killed").exists()
    assert run("gmm", "faithful", "em", out="runs/killed", max_iter=1).run == str(
        Path("runs/killed")
    )  # the name is still free
    assert strict(Path("runs/killed/run.json").read_text())["status"] == "ok"


def test_two_runs_to_one_name_get_two_folders(here):
    """Both looked when the name was free."""
    fit = run("gmm", "faithful", "em", max_iter=1)
    first, second = result.save(fit, Path("same")), result.save(fit, Path("same"))
    assert (first.name, second.name) == ("same", "same-2")
    assert strict(Path("same-2/run.json").read_text())["run"] == "same-2"


def test_a_folder_that_exists_is_refused_before_any_work(here):
    Path("taken").mkdir()
    error = says("exists already", "gmm", "faithful", "em", out="taken")
    assert "--out" in str(error)
    assert list(Path("taken").iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_any_work(here):
    Path("file").write_text("not a folder")
    says("cannot write to", "gmm", "faithful", "em", out="file/run")
    says("cannot write to", "gmm", "faithful", "em", out="file/deep/er/run")


def test_what_is_refused_makes_no_folder(here):
    for options in ({"components": 1000}, {"nonsense": 1}, {"max_iter": -1}):
        with pytest.raises(UsageError):
            run("gmm", "faithful", "em", out="a/b/run", **options)
    with pytest.raises(UsageError):
        run("gmm", "faithfool", "em", out="a/b/run")
    with pytest.raises(Refusal):
        run("gmm", "faithful", "gibbs", priors=True, out="a/b/run")
    assert list(here.iterdir()) == []


def test_compare_checks_every_method_before_it_runs_any(here):
    with pytest.raises(UsageError, match="epochs must be more than zero"):
        compare("gmm", "faithful", ["em", "svi"], out="all", epochs=-1)
    assert not Path("all").exists()


# ---- names, options, refusals -----------------------------------------------------------------------------------------


def test_near_matches():
    says(r"unknown model 'gm'; did you mean gmm\?", "gm", "faithful")
    says(r"unknown method 'laplas'; did you mean laplace\?", "gmm", "faithful", "laplas")
    says(r"did you mean faithful\?", "gmm", "faithfull")
    says(r"did you mean components\?", "gmm", "faithful", "em", component=3)
    says(r"did you mean max_iter\?", "gmm", "faithful", "em", max_itr=3)
    error = says(r"'zzz'.*known: .*components.*max_iter", "gmm", "faithful", "em", zzz=1)
    assert "'gmm'" in str(error) and "'em'" in str(error)


def test_an_option_of_another_method_is_unknown():
    says("unknown option", "gmm", "faithful", "em", epochs=3)


def test_a_refusal_names_the_methods_that_can():
    with pytest.raises(Refusal) as caught:
        run("gmm", "faithful", "gibbs", priors=True)
    said = str(caught.value)
    assert "Methods that can: " in said
    listed = said.split("Methods that can: ")[1]
    assert all(m in listed for m in ("em", "laplace", "svi", "importance")) and "gibbs" not in listed


def test_compare_reports_a_refusal_and_goes_on(here):
    em, refused = compare("gmm", FAITHFUL[::4], ["em", "gibbs"], priors=True, covariance="spherical", out="both")
    assert em.claimed.value < 0
    document = strict(json.dumps(refused.to_json()))
    assert set(document) >= FIELDS
    assert document["status"] == "refused" and "belong to all of them" in document["reason"]
    assert document["n"] == 68 and document["log_evidence"] is None and document["run"] is None
    assert [p.name for p in Path("both").iterdir()] == ["em"]


def test_bad_data_are_refused():
    says("got components=273 for 272 rows", "gmm", "faithful", components=273)
    says("rows", "gmm", "faithful", rows=-3)
    says("for seed, got -1", "gmm", "faithful", seed=-1)
    says("outside the support of site 'x'", user.poisson, COUNTS - 5)
    says("no observed entry", "gmm", np.full((5, 2), np.nan))


def test_an_option_reaches_the_run():
    fit = run("gmm", "faithful", "em", components="3", max_iter="7", tol="0")
    assert fit.parameters["locs"].shape == (3, 2)
    assert len(fit.trace["log_likelihood"]) == 8
    assert fit.options["model"] == {"components": "3"} or fit.options["model"] == {"components": 3}
    assert fit.options["method"] == {"max_iter": 7, "tol": 0.0}


def test_the_limit_of_enumeration_is_the_users():
    x = np.random.default_rng(6).normal(size=(20, 3))
    assert run(user.causes, x, "em", max_iter=1, limit=8).claimed.kind == "exact"
    with pytest.raises(Refusal, match="8 joint values, more than the limit of 7"):
        run(user.causes, x, "em", limit=7)


def test_data_of_one_column_and_arrays_of_any_kind():
    x = np.random.default_rng(7).normal(size=40)
    for form in (x, x[:, None], torch.tensor(x), x.astype(np.float32).astype(float), list(x)):
        assert run("gmm", form, "em", max_iter=2, covariance="diagonal").x.shape == (40, 1)


def test_missing_entries_go_through_every_method():
    x = hide(FAITHFUL, 0.2)
    for method, options in (
        ("em", {}),
        ("laplace", {}),
        ("svi", {"epochs": 3}),
        ("importance", {"epochs": 3, "samples": 50}),
    ):
        fit = run("gmm", x, method, **options)
        assert np.isfinite(fit.claimed.value) and fit.verified.kind == "exact", method


# ---- cost and progress ------------------------------------------------------------------------------------------------


def test_time_and_memory_are_those_of_the_run():
    began = time.perf_counter()
    fit = run("gmm", "faithful", "em")
    assert 0 < fit.seconds < time.perf_counter() - began
    assert 50 < fit.peak_memory_mb < 20_000
    assert set(fit.versions) >= {"python", "torch", "pyro-ppl", "numpy"}


def test_a_bar_comes_up_after_two_seconds_and_on_standard_error(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    task = task_of("gmm", FAITHFUL)
    for quiet, terminal in ((True, True), (False, False), (False, True)):
        task.quiet = quiet
        monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
        with task.progress("working", 10) as step:
            step(note="a note")
            out, err = capsys.readouterr()
            assert out == "" and err == ""
            now[0] += 3.0
            step(note="another note")
            time.sleep(0.3)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("working" in err) == (terminal and not quiet)
        assert terminal or err == ""
