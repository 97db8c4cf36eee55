"""EM: monotone, stationary, equal to scikit-learn step by step, and at the published figures of Old Faithful."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from families import CASES
from helpers import hide, task_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch.distributions import transform_to

from inference import em, run
from zoo._data import datasets
from zoo._errors import UsageError

FAITHFUL = datasets.load("faithful").x
SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


def never_falls(trace: np.ndarray) -> bool:
    return bool(np.all(np.diff(trace) >= -1e-8 * (1 + np.abs(trace[:-1]))))


def promised(task):
    """Nats that a Newton step over the unconstrained parameters would gain, where log p(x; θ) is not flat."""
    leaves = {n: p.detach().clone() for n, p in task.program.unconstrained().items()}

    def slope(flat):
        parts = flat.split([p.numel() for p in leaves.values()])
        free = {n: part.reshape(p.shape).requires_grad_() for part, (n, p) in zip(parts, leaves.items(), strict=True)}
        theta = {n: transform_to(task.program.constraints[n])(p) for n, p in free.items()}
        found = torch.autograd.grad(task.exact.log_evidence(theta)[0], list(free.values()))
        return torch.cat([part.reshape(-1) for part in found])

    flat = torch.cat([p.reshape(-1) for p in leaves.values()])
    steps = 1e-5 * torch.eye(len(flat), dtype=flat.dtype)
    bend = torch.stack([slope(flat - step) - slope(flat + step) for step in steps]) / 2e-5
    values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)
    steep = values > 1e-6 * values.max()
    return float(((vectors.mT @ slope(flat))[steep].square() / values[steep]).sum() / 2)


# ---- the likelihood climbs, and to a top ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_every_family_climbs_to_a_stationary_point(name, missing):
    case = CASES[name]
    x = case.data(np.random.default_rng(1), 80)
    if missing:
        x = hide(x, missing)
        x[7] = np.nan
    task = task_of(case.program, x)
    fit = em.fit(task, max_iter=400, tol=1e-11)
    trace = fit.trace["log_likelihood"]
    assert never_falls(trace)
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    assert fit.claimed.value == pytest.approx(case.log_evidence(theta, x).sum(), rel=1e-6)  # SciPy's word for it
    assert fit.claimed.value == pytest.approx(trace[-1], rel=1e-10)  # of a covariance that is nearly singular
    if fit.converged and not fit.warnings:
        assert promised(task) < 1e-5
    assert fit.claimed.kind == "exact" and fit.claimed.se == 0.0


@pytest.mark.parametrize(
    ("model", "columns"), [(user.two_sites, 3), (user.causes, 3), (user.regressions, 2), (user.Decoder, 3)]
)
def test_other_programs_climb_too(model, columns):
    x = hide(np.random.default_rng(2).normal(size=(60, 3)) * 2, 0.1)[:, :columns]
    x[:, 0] = np.nan_to_num(x[:, 0])
    fit = em.fit(task_of(model, x), max_iter=40)
    assert never_falls(fit.trace["log_likelihood"])
    assert fit.trace["log_likelihood"][-1] > fit.trace["log_likelihood"][0] + 1


@settings(max_examples=15)
@given(
    K=st.integers(1, 5),
    D=st.integers(1, 4),
    n=st.integers(5, 60),
    covariance=st.sampled_from(list(SKLEARN)),
    missing=st.sampled_from([0.0, 0.2]),
    kind=st.sampled_from(["normal", "duplicated", "constant column", "far away", "integers"]),
    start=st.sampled_from(["kmeans", "random"]),
    seed=st.integers(0, 100),
)
def test_it_climbs_on_any_data(K, D, n, covariance, missing, kind, start, seed):
    """Also where components collapse onto repeated rows, or a column says nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D))
    if kind == "duplicated":
        x = x[rng.integers(0, 3, n)]
    if kind == "constant column":
        x[:, 0] = 7.0
    if kind == "far away":
        x = 1e-3 * x + 1e3
    if kind == "integers":
        x = np.round(x)
    x = hide(x, missing, seed)
    fit = em.fit(task_of("gmm", x, components=K, covariance=covariance), max_iter=50, start=start)
    assert never_falls(fit.trace["log_likelihood"])
    assert np.isfinite(fit.claimed.value)
    assert all(np.isfinite(v).all() for v in fit.parameters.values())


def test_a_wrong_update_is_caught(monkeypatch):
    """The run itself asserts that the likelihood does not fall."""
    task = task_of("gmm", FAITHFUL)
    right, calls = task.m_step, []

    def wrong(self, *args, **kwargs):
        out = right(*args, **kwargs)
        calls.append(1)
        if len(calls) == 4:
            task.program.assign({"locs": task.program.values()["locs"].detach() * 1.001})
        return out

    monkeypatch.setattr(type(task), "m_step", wrong)
    with pytest.raises(ArithmeticError, match="fell from"):
        em.fit(task)


# ---- scikit-learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", SKLEARN)
@pytest.mark.parametrize("iterations", [1, 7])
def test_each_step_is_that_of_scikit_learn(covariance, iterations):
    """From the same start, after the same number of steps: the same parameters, to nine digits."""
    rng = np.random.default_rng(3)
    K, D = 3, 4
    x = rng.normal(size=(150, D)) + 2 * rng.normal(size=(K, D))[rng.integers(0, K, 150)]
    task = task_of("gmm", x, components=K, covariance=covariance)
    start = {n: v.detach().clone() for n, v in task.program.values().items()}
    start["locs"] = tensor(x[:K])
    task.program.assign(start)
    if covariance in ("full", "tied"):
        precisions = np.linalg.inv((start["scale_tril"] @ start["scale_tril"].mT).numpy())
    else:
        precisions = start["scales"].numpy() ** -2
    peer = GaussianMixture(
        K,
        covariance_type=SKLEARN[covariance],
        weights_init=start["weights"].numpy(),
        means_init=x[:K],
        precisions_init=precisions,
        reg_covar=0.0,
        tol=0.0,
        max_iter=iterations,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge, as asked
        peer.fit(x)
    fit = em.fit(task, start="program", max_iter=iterations, tol=0.0, accelerate=False)
    np.testing.assert_allclose(fit.parameters["weights"], peer.weights_, rtol=1e-9)
    np.testing.assert_allclose(fit.parameters["locs"], peer.means_, rtol=1e-8, atol=1e-9)
    if covariance in ("full", "tied"):
        tril = fit.parameters["scale_tril"]
        np.testing.assert_allclose(tril @ np.swapaxes(tril, -1, -2), peer.covariances_, rtol=1e-7, atol=1e-9)
    else:
        np.testing.assert_allclose(fit.parameters["scales"] ** 2, peer.covariances_, rtol=1e-8)
    assert fit.claimed.value == pytest.approx(peer.score(x) * len(x), rel=1e-10)


# ---- Old Faithful ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance", "total", "within"),
    [("full", -1130.264, 0.001), ("tied", -1140.187, 0.01), ("diagonal", -1147.806, 0.01)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_faithful(covariance, total, within, seed):
    fit = run("gmm", "faithful", "em", covariance=covariance, seed=seed)
    assert fit.claimed.value == pytest.approx(total, abs=within)
    assert fit.verified.value == pytest.approx(fit.claimed.value, rel=1e-10)
    assert (fit.claimed.kind, fit.verified.kind) == ("exact", "exact")
    assert fit.converged is True and fit.warnings == []
    if covariance == "full":
        order = np.argsort(-fit.parameters["weights"])
        np.testing.assert_allclose(fit.parameters["weights"][order], [0.644, 0.356], atol=5e-4)
        np.testing.assert_allclose(fit.parameters["locs"][order], [[4.290, 79.97], [2.036, 54.48]], atol=5e-3)


def test_the_best_scikit_learn_finds_is_no_better():
    peer = GaussianMixture(2, n_init=10, tol=1e-9, max_iter=1000, reg_covar=0.0, random_state=0).fit(FAITHFUL)
    fit = run("gmm", "faithful", "em", restarts=3)
    assert fit.claimed.value >= peer.score(FAITHFUL) * 272 - 1e-4


def test_the_unit_of_measurement_moves_the_figure_by_its_jacobian():
    raw = run("gmm", "faithful", "em").claimed.value
    standard = run("gmm", "faithful", "em", standardize=True).claimed.value
    assert standard == pytest.approx(raw + 272 * np.log(FAITHFUL.std(0)).sum(), abs=1e-4)


# ---- priors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_map_em_ends_where_the_log_joint_is_stationary(covariance):
    """log p(x, globals), a density in the constrained values: no Jacobian."""
    from inference._numerics.coordinates import Coordinates

    task = task_of("gmm", FAITHFUL, priors=True, covariance=covariance)
    fit = em.fit(task, tol=1e-10)
    assert never_falls(fit.trace["log_joint"])
    point = {s.name: tensor(fit.parameters[s.name]) for s in task.structure.global_latents}
    layout = Coordinates(point, task.global_supports)
    flat = layout.flatten(point).requires_grad_()
    evidence, prior = task.exact.log_evidence(None, layout.unflatten(flat))
    assert fit.trace["log_joint"][-1] == pytest.approx(float((evidence + prior).detach()), rel=1e-10)
    assert fit.claimed.value == pytest.approx(float(evidence.detach()), rel=1e-10)
    slope = torch.autograd.grad(evidence + prior, flat)[0]
    assert float(slope.abs().max()) < 0.1
    assert "posterior mode of weights, locs" in fit.claimed.given


# ---- components that die -------------------------------------------------------------------------------------------


def test_a_component_that_collapses_is_named():
    x = np.concatenate([np.random.default_rng(4).normal(size=(60, 2)), np.full((30, 2), 9.0)])
    fit = run("gmm", x, "em", components=2)
    named = [w for w in fit.warnings if "collapsed" in w]
    assert len(named) == 1
    point = int(np.argmax(fit.parameters["locs"][:, 0]))
    assert f"z={point} " in named[0]
    tril = fit.parameters["scale_tril"][point]
    np.testing.assert_allclose(np.diag(tril @ tril.T), 1e-6 * x.var(0), rtol=1e-3)  # the floor, as documented
    wider = run("gmm", x, "em", components=2, floor=1e-3)
    tril = wider.parameters["scale_tril"][int(np.argmax(wider.parameters["locs"][:, 0]))]
    np.testing.assert_allclose(np.diag(tril @ tril.T), 1e-3 * x.var(0), rtol=1e-3)


def test_a_component_that_is_empty_is_named():
    def far(x=None, size=None):
        weights = user.simplex()
        locs = pyro.param("locs", torch.tensor([[0.0], [1e6]]))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    fit = run(far, np.random.default_rng(5).normal(size=(40, 1)), "em", start="program")
    assert any("component z=1 is empty" in w for w in fit.warnings)
    assert not any("z=0" in w for w in fit.warnings)


def test_no_warning_where_all_is_well():
    assert run("gmm", "faithful", "em").warnings == []


def test_a_column_of_zeros_is_no_trouble_for_counts():
    x = CASES["poisson"].data(np.random.default_rng(6), 40)
    x[:, 1] = 0
    fit = run(user.poisson, x, "em")
    assert np.isfinite(fit.claimed.value)
    np.testing.assert_allclose(fit.parameters["rates"][:, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(fit.verified.value, fit.claimed.value, rtol=1e-9)


# ---- starts, restarts, stopping, seeds ----------------------------------------------------------------------------


def test_restarts_keep_the_best_and_report_all():
    fit = run("gmm", "faithful", "em", components=6, restarts=3, max_iter=40)
    all_of_them = fit.notes["restarts"]
    assert len(all_of_them) == 3
    assert len({round(v, 3) for v in all_of_them}) > 1  # or this would test nothing
    assert fit.claimed.value == pytest.approx(max(all_of_them), rel=1e-12)
    alone = [run("gmm", "faithful", "em", components=6, max_iter=40, seed=s).claimed.value for s in range(3)]
    np.testing.assert_allclose(all_of_them, alone, rtol=1e-12)


def test_it_says_whether_it_converged():
    short = run("gmm", "faithful", "em", max_iter=2)
    assert short.converged is False
    assert any("did not converge in 2 iterations" in w for w in short.warnings)
    assert len(short.trace["log_likelihood"]) == 3
    assert short.notes["iterations"] == 2
    assert run("gmm", "faithful", "em").converged is True


def test_it_stops_on_relative_change():
    fit = run("gmm", "faithful", "em", tol=1e-5)
    changes = np.abs(np.diff(fit.trace["log_likelihood"])) / np.abs(fit.trace["log_likelihood"][:-1])
    assert changes[-1] <= 1e-5
    assert np.all(changes[:-1] > 1e-5)


@pytest.mark.parametrize("start", ["kmeans", "random", "program"])
def test_the_starts_differ_and_all_climb(start):
    task = task_of("gmm", FAITHFUL)
    fit = em.fit(task, start=start)
    assert never_falls(fit.trace["log_likelihood"])
    first = em.fit(task_of("gmm", FAITHFUL), start="kmeans").trace["log_likelihood"][0]
    assert (fit.trace["log_likelihood"][0] == first) == (start == "kmeans")


@pytest.mark.full
def test_extrapolated_steps_end_at_the_same_top_and_never_fall():
    x = np.random.default_rng(7).normal(size=(100, 2))  # one cloud for two components: slow
    plain, fast = (
        em.fit(task_of("gmm", x, covariance="spherical"), accelerate=a, tol=1e-9, max_iter=2000, start="random")
        for a in (False, True)
    )
    assert never_falls(plain.trace["log_likelihood"]) and never_falls(fast.trace["log_likelihood"])
    assert fast.claimed.value > plain.claimed.value - 1e-3
    assert fast.notes["iterations"] < plain.notes["iterations"] / 2


@pytest.mark.parametrize(("rows", "columns"), [(80, 12), (300, 12), (150, 40)])
def test_a_leap_to_where_no_matrix_can_be_factored_is_taken_back(rows, columns):
    # more covariances than the few seen entries bear: the likelihood climbs towards a singular matrix
    digits = (datasets.load("digits").x >= 8).astype(float)
    some = digits[np.random.default_rng(0).choice(len(digits), rows, replace=False)][:, -columns:]
    fit = em.fit(task_of("gmm", hide(some, 0.7), components=1), max_iter=60, tol=0.0)
    assert never_falls(fit.trace["log_likelihood"])
    assert np.isfinite(fit.claimed.value)


def test_the_same_seed_gives_the_same_bits():
    one, two, other = (run("gmm", "faithful", "em", components=4, seed=s, max_iter=30) for s in (1, 1, 2))
    assert one.claimed.value == two.claimed.value
    for name in one.parameters:
        assert np.array_equal(one.parameters[name], two.parameters[name])
    assert np.array_equal(one.draws["z"], two.draws["z"])
    assert np.array_equal(one.predictive["x"], two.predictive["x"])
    assert not np.array_equal(one.draws["z"], other.draws["z"])


def test_one_component_is_the_sample_mean_and_covariance():
    fit = run("gmm", "faithful", "em", components=1)
    np.testing.assert_allclose(fit.parameters["locs"][0], FAITHFUL.mean(0), rtol=1e-9)
    tril = fit.parameters["scale_tril"][0]
    np.testing.assert_allclose(tril @ tril.T, np.cov(FAITHFUL.T, bias=True), rtol=1e-9)


def test_as_many_components_as_rows():
    fit = run("gmm", np.random.default_rng(8).normal(size=(5, 2)), "em", components=5)
    assert np.isfinite(fit.claimed.value)
    assert next(w for w in fit.warnings if "collapsed" in w).startswith("5 of 5 components collapsed")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_iter": 0}, "max_iter must be more than zero"),
        ({"max_iter": "2.5"}, "max_iter must be a whole number"),
        ({"restarts": -1}, "restarts must be more than zero"),
        ({"tol": -1e-3}, "tol must be at least zero"),
        ({"floor": 0}, "floor must be more than zero"),
        ({"start": "kmean"}, "auto, kmeans, random, program, got 'kmean'"),
    ],
)
def test_options(options, says):
    with pytest.raises(UsageError, match=says):
        run("gmm", "faithful", "em", **options)


def test_a_kmeans_start_with_more_clusters_than_rows_is_refused():
    with pytest.raises(UsageError, match="kmeans"):
        run(user.causes, np.random.default_rng(9).normal(size=(5, 3)), "em", start="kmeans")


# ---- what it hands back --------------------------------------------------------------------------------------------


def test_probabilities_and_draws_are_the_posterior():
    fit = run("gmm", "faithful", "em")
    p = fit.probabilities["z"]
    assert p.shape == (272, 2)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(p.mean(0), fit.parameters["weights"], atol=1e-5)  # a stationary point of EM
    error = fit.draws["z"].mean(0) - p[:, 1]
    variance = p[:, 1] * (1 - p[:, 1]) / len(fit.draws["z"])
    assert abs(error.sum()) < 4 * np.sqrt(variance.sum())
    unsure = np.abs(p[:, 1] - 0.5) < 0.45
    assert unsure.any()
    assert np.all(np.abs(error[unsure]) <= 4 * np.sqrt(variance[unsure]))


def test_posterior_predictive_data_look_like_the_data():
    fit = run("gmm", "faithful", "em")
    assert fit.predictive["x"].shape[1:] == (272, 2)
    pooled = fit.predictive["x"].reshape(-1, 2)
    se = FAITHFUL.std(0) / np.sqrt(len(fit.predictive["x"]) * 272)
    assert np.all(np.abs(pooled.mean(0) - FAITHFUL.mean(0)) < 5 * se)
    # conditional on the drawn z, each row's simulated waiting time follows the row's own component
    assert np.corrcoef(fit.predictive["x"].mean(0)[:, 1], FAITHFUL[:, 1])[0, 1] > 0.8


def test_a_row_with_nothing_observed_is_carried_along():
    x = FAITHFUL.copy()
    x[10] = np.nan
    fit = run("gmm", x, "em")
    assert fit.n == 272
    assert fit.claimed.per_datum[10] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(fit.probabilities["z"][10], fit.parameters["weights"], rtol=1e-9)
    without = run("gmm", np.delete(x, 10, axis=0), "em")
    assert fit.claimed.value == pytest.approx(without.claimed.value, abs=1e-4)
    assert any("nothing observed" in w for w in fit.warnings)


def test_a_program_without_latents_is_fitted_by_maximum_likelihood():
    def plain(x=None, size=None):
        loc, scale = user.real("loc", 2), user.positive("scale", 2)
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(loc, scale).expand([2]).to_event(1), obs=x)

    fit = run(plain, FAITHFUL, "em")
    np.testing.assert_allclose(fit.parameters["loc"], FAITHFUL.mean(0), rtol=1e-9)
    np.testing.assert_allclose(fit.parameters["scale"], FAITHFUL.std(0), rtol=1e-9)


def test_a_posterior_that_is_not_exact_is_refused():
    from zoo._errors import Refusal

    def program(x=None, size=None):
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("intensity", dist.Gamma(2.0, 1.0))
            return pyro.sample("x", dist.Poisson(z + 1), obs=None if x is None else x[:, 0])

    with pytest.raises(Refusal, match=r"'intensity' \(Gamma\).*Methods that can: .*svi"):
        run(program, np.ones((10, 1)), "em")


# ---- the ten lines of the issue --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "exponential", "categorical"])
def test_a_mixture_of_another_family_gets_closed_form_em(name):
    """And finds the components that made the data."""
    case = CASES[name]
    rng = np.random.default_rng(10)
    truth = {
        "poisson": ("rates", [[1.0, 4.0, 2.0], [6.0, 1.0, 9.0]]),
        "bernoulli": ("probs", [[0.1, 0.2, 0.9], [0.8, 0.9, 0.1]]),
    }
    truth |= {"exponential": ("rates", [[0.2, 5.0, 1.0], [6.0, 0.3, 8.0]])}
    truth |= {"categorical": ("probs", np.eye(4)[[[0, 1, 2], [3, 0, 1]]] * 0.8 + 0.05)}
    parameter, values = truth[name]
    values, z = np.asarray(values, dtype=float), (rng.random(4000) < 0.3).astype(int)
    draw = {
        "poisson": lambda v: rng.poisson(v),
        "bernoulli": lambda v: rng.random(v.shape) < v,
        "exponential": lambda v: rng.exponential(1 / v),
        "categorical": lambda v: (rng.random((*v.shape[:-1], 1)) > v.cumsum(-1)).sum(-1),
    }[name]
    x = draw(values[z]).astype(float)
    fit = run(case.program, x, "em", restarts=3)
    assert fit.notes["numeric"] == []
    assert fit.claimed.kind == "exact" and fit.converged
    order = np.argsort(-fit.parameters["weights"])
    np.testing.assert_allclose(fit.parameters["weights"][order], [0.7, 0.3], atol=0.05)
    np.testing.assert_allclose(fit.parameters[parameter][order], values, rtol=0.15, atol=0.05)
