"""Mixtures of experts and latent class regression: against SciPy's optima, scikit-learn's regressions, and gmm."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import task_of
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import invgamma, norm
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor

from inference import em, infer, run
from zoo._errors import UsageError

MODEL = "mixture_of_experts"
RNG = np.random.default_rng(0)
N = 100
U = RNG.normal(size=(N, 1))
Z = RNG.random(N) < expit(2 * U[:, 0] - 0.5)
Y = np.where(Z, 1 + 2 * U[:, 0], -1 - U[:, 0]) + 0.5 * RNG.normal(size=N)
ITEMS = (RNG.random((N, 4)) < np.where(Z, 0.85, 0.2)[:, None]).astype(float)
OTHER = RNG.normal(size=N)  # has nothing to do with the rest


@pytest.fixture(scope="module")
def fitted():
    return run(MODEL, np.c_[Y, U])


def per_row(theta, y, u, mean=None):
    """log p(y_i | u_i) [n] of two gaussian experts with a gate, in the data's own units, from a flat θ."""
    gate, slope, offsets, slopes, logs = theta[0], theta[1], theta[2:4], theta[4:6], theta[6:8]
    eta = gate + slope * u
    weights = np.stack([-np.logaddexp(0, eta), -np.logaddexp(0, -eta)], 1)
    return logsumexp(weights + norm(offsets + slopes * u[:, None], np.exp(logs)).logpdf(y[:, None]), axis=1)


def test_two_experts_reach_scipys_optimum(fitted):
    start = np.array([-0.5, 2, -1, 1, -1, 2, -0.7, -0.7])
    best = minimize(lambda t: -per_row(t, Y, U[:, 0]).sum(), start, method="BFGS", options={"gtol": 1e-6})
    assert fitted.claimed.kind == "exact" and fitted.converged
    assert fitted.claimed.value == pytest.approx(-best.fun, abs=1e-4)
    assert fitted.verified.value == pytest.approx(-best.fun, abs=1e-4)


def test_log_p_of_each_row_is_the_formulas(fitted):
    theta, u = fitted.parameters, (U[:, 0] - U.mean()) / U.std()
    unit = Y.std()
    offsets, slopes = Y.mean() + unit * theta["offsets"][:, 0], unit * theta["slopes"][:, 0, 0]
    flat = [theta["gate_offset"][0], theta["gate"][0, 0], *offsets, *slopes, *np.log(unit * theta["scales"][:, 0])]
    assert np.allclose(fitted.claimed.per_datum, per_row(np.array(flat), Y, u), atol=1e-9)


@pytest.mark.slow
def test_the_unit_of_a_column_changes_nothing(fitted):
    other = run(MODEL, np.c_[1e-5 * Y, 1e3 + 50 * U])
    assert other.claimed.value == pytest.approx(fitted.claimed.value + 5 * N * np.log(10), abs=1e-5)
    assert all(np.allclose(other.parameters[k], v, atol=1e-5) for k, v in fitted.parameters.items())


@pytest.mark.slow
def test_a_constant_gate_is_a_mixture_of_regressions():
    found = run(MODEL, np.c_[Y, U], gate="constant")

    def minus(t):
        weights = np.array([-np.logaddexp(0, t[0]), -np.logaddexp(0, -t[0])])
        return -logsumexp(weights + norm(t[1:3] + t[3:5] * U, np.exp(t[5:7])).logpdf(Y[:, None]), axis=1).sum()

    best = minimize(minus, [0, -1, 1, -1, 2, -0.7, -0.7], method="BFGS")
    assert found.claimed.value == pytest.approx(-best.fun, abs=1e-4)
    assert found.parameters["weights"].sum() == pytest.approx(1)


# ----------------------------------------------------------------------------------------------- one expert: regression


def test_one_gaussian_expert_is_least_squares():
    y = np.c_[Y, U[:, 0] + RNG.normal(size=N)]
    found = run(MODEL, np.c_[y, U], components=1)
    residual = y - LinearRegression().fit(U, y).predict(U)
    assert found.claimed.value == pytest.approx(norm(0, residual.std(0)).logpdf(residual).sum(), abs=1e-5)


def test_one_bernoulli_expert_is_logistic_regression():
    found = run(MODEL, np.c_[Z, U], components=1, likelihood="bernoulli")
    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(U, Z)
    assert found.claimed.value == pytest.approx(peer.predict_log_proba(U)[np.arange(N), Z.astype(int)].sum(), abs=1e-5)
    assert found.parameters["slopes"].item() / U.std() == pytest.approx(peer.coef_.item(), abs=1e-3)


def test_one_poisson_expert_is_poisson_regression():
    counts = RNG.poisson(np.exp(0.5 + U[:, 0]))
    found = run(MODEL, np.c_[counts, U], components=1, likelihood="poisson")
    peer = PoissonRegressor(alpha=0, tol=1e-10).fit(U, counts)
    assert found.parameters["slopes"].item() / U.std() == pytest.approx(peer.coef_.item(), abs=1e-4)


# --------------------------------------------------------------------------------------------- latent class regression


def items_log_p(theta, items):
    """log p(items_i | u_i) of two classes of coins, whose weights depend on u; a missing toss drops out."""
    eta = theta[0] + theta[1] * U[:, 0]
    weights = np.stack([-np.logaddexp(0, eta), -np.logaddexp(0, -eta)], 1)
    logits = theta[2:].reshape(2, 1, -1)
    each = np.where(items == 1, -np.logaddexp(0, -logits), -np.logaddexp(0, logits))
    return logsumexp(weights + np.where(np.isnan(items), 0.0, each).sum(2).T, axis=1)


@pytest.mark.parametrize("hidden", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_latent_class_regression_reaches_scipys_optimum(hidden):
    items = np.where(np.random.default_rng(5).random(ITEMS.shape) < hidden, np.nan, ITEMS)
    start = np.r_[-0.5, 2, -np.ones(4), np.ones(4)]
    best = minimize(lambda t: -items_log_p(t, items).sum(), start, method="BFGS", options={"gtol": 1e-6})
    for likelihood in ("bernoulli", "categorical"):
        found = run(MODEL, np.c_[items, U], likelihood=likelihood, experts="constant")
        assert found.claimed.kind == "exact"
        assert found.claimed.value == pytest.approx(-best.fun, abs=1e-4)


def test_classes_of_three_categories_without_a_gate_are_counted():
    y = RNG.integers(0, 3, (N, 2)).astype(float)
    found = run(MODEL, np.c_[y, U], likelihood="categorical", experts="constant", components=1)
    shares = np.stack([np.bincount(c.astype(int), minlength=3) / N for c in y.T])
    assert np.allclose(found.parameters["probs"][0], shares)
    assert found.claimed.value == pytest.approx(N * (shares * np.log(shares)).sum())


@pytest.mark.slow
def test_without_covariates_it_is_a_mixture_of_gaussians():
    y = np.c_[Y, OTHER]
    found = run(MODEL, np.c_[y, U], gate="constant", experts="constant")
    assert found.claimed.value == pytest.approx(run("gmm", y, covariance="diagonal").claimed.value, abs=1e-3)


# ------------------------------------------------------------------------------------------------- holes, and the rest


def test_a_missing_response_is_data_and_a_missing_covariate_an_error(fitted):
    x = np.c_[Y, U]
    x[:10, 0] = np.nan
    task = task_of(MODEL, x)
    task.program.assign({n: torch.as_tensor(v) for n, v in fitted.parameters.items()})
    found = task.engine.per_datum()
    assert np.allclose(found[:10], 0)
    assert em.fit(task, max_iter=1).claimed.kind == "exact"
    x[3, 1] = np.nan
    with pytest.raises(UsageError, match=r"needs every covariate .* missing one in row 3"):
        run(MODEL, x)


def test_other_data_with_a_missing_covariate_are_refused(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    x = np.c_[Y, U][:40]
    again = infer(tmp_path / "run", "em", data=x)
    assert np.allclose(again.claimed.per_datum, fitted.claimed.per_datum[:40])
    for row in (0, 30):
        holes = x.copy()
        holes[row, 1] = np.nan
        with pytest.raises(UsageError, match="Only what a site observes may be missing"):
            infer(tmp_path / "run", "em", data=holes)


def test_predictive_draws_keep_the_covariates(fitted):
    drawn = fitted.predictive["x"]
    assert drawn.shape[1:] == (N, 2)
    assert (drawn[:, :, 1] == U[:, 0]).all()
    u = (U[:, 0] - U.mean()) / U.std()
    z, theta = fitted.draws["z"][: len(drawn)], fitted.parameters
    mean = Y.mean() + Y.std() * (theta["offsets"][z, 0] + theta["slopes"][z, 0, 0] * u)
    away = (drawn[:, :, 0] - mean) / (Y.std() * theta["scales"][z, 0])
    assert abs(away.mean()) < 4 / away.size**0.5 and abs(away.std() - 1) < 4 / (2 * away.size) ** 0.5


def test_it_simulates_with_covariates_of_the_data(fitted):
    torch.manual_seed(0)
    x = fitted.program(None, 50)
    assert x.shape == (50, 2) and set(x[:, 1].tolist()) <= set(U[:, 0].tolist())


def test_covariates_are_named_and_counted(fitted):
    frame = pd.DataFrame({"income": U[:, 0], "spent": Y})
    found = run(MODEL, frame, covariates="income", max_iter=3)
    assert found.columns == ("spent", "income") and found.options["model"]["covariates"] == 1
    assert np.array_equal(found.x, fitted.x)
    with pytest.raises(UsageError, match="takes no covariates"):
        run("gmm", frame, covariates="income")


def test_a_weight_counts_a_row_so_often():
    x, times = np.c_[ITEMS, U][:30], np.arange(30) % 3
    how = {"likelihood": "bernoulli", "experts": "constant", "components": 1}
    frame = pd.DataFrame(x).assign(times=times).rename(columns=str)
    weighed = run(MODEL, frame, weights="times", **how)
    assert weighed.claimed.value == pytest.approx(run(MODEL, np.repeat(x, times, 0), **how).claimed.value, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": 0}, "components must be"),
        ({"covariates": 2}, "at least one column before its 2 covariates"),
        ({"components": N + 1}, "at most as many components as rows"),
        ({"likelihood": "categorical"}, "add experts=constant"),
        ({"likelihood": "categorical", "experts": "constant"}, "expects categories 0, 1, …"),
        ({"likelihood": "bernoulli"}, "outside the support of site 'y'"),
        ({"gate": "neural"}, "gate must be one of covariates, constant"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        run(MODEL, np.c_[Y, U], **options)


@pytest.mark.full
def test_priors_against_quadrature():
    """One expert and no regression: a logit with a normal prior."""
    y = np.array([1, 0, 1, 1, 1, 0, 1.0])
    x = np.column_stack([y, np.arange(7.0)])
    options = {"components": 1, "experts": "constant", "likelihood": "bernoulli", "priors": True}
    fit = run("mixture_of_experts", x, "laplace", quiet=True, **options).fit
    at, middle = np.linspace(-15, 15, 6001), np.log(y.mean() / (1 - y.mean()))
    log_p = y.sum() * -np.logaddexp(0, -at) + (7 - y.sum()) * -np.logaddexp(0, at) + norm(middle, 2.5).logpdf(at)
    weights = np.exp(log_p - log_p.max())
    assert fit.parameters["offsets"] == pytest.approx((weights * at).sum() / weights.sum(), abs=0.02)
    assert fit.claimed.value == pytest.approx(np.log(weights.sum() * 0.005) + log_p.max(), abs=1e-3)


def test_a_mixture_density_network_is_the_formulas():
    """Gate, experts and noise by one hidden layer (Bishop 1994), away from where they begin."""
    task = task_of(MODEL, np.c_[Y, U], hidden=(4,), noise="covariates", components=3)
    task.program.assign(task.program.elsewhere())
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    u = (U - U.mean()) / U.std()
    h = np.tanh(u @ theta["trunk.0.weight"].T + theta["trunk.0.bias"])
    gate = np.c_[np.zeros(N), h @ theta["gate"].T + theta["gate_offset"]]
    mean = Y.mean() + Y.std() * (h @ theta["slopes"][:, 0].T + theta["offsets"][:, 0])
    scale = 1e-3 + (theta["scales"][:, 0] - 1e-3) * np.exp(h @ theta["scale_slopes"][:, 0].T)
    truth = logsumexp(gate + norm(mean, Y.std() * scale).logpdf(Y[:, None]), axis=1) - logsumexp(gate, axis=1)
    assert np.allclose(task.engine.per_datum().numpy(), truth, atol=1e-9)


def test_layers_and_noise_need_something_that_depends_on_the_covariates():
    with pytest.raises(UsageError, match="hidden has no effect"):
        task_of(MODEL, np.c_[Y, U], hidden=(4,), gate="constant", experts="constant")
    with pytest.raises(UsageError, match="noise=covariates goes with"):
        task_of(MODEL, np.c_[Y, U], noise="covariates", experts="constant")


@pytest.mark.slow
def test_an_inverse_problem_of_several_answers_is_met_by_a_network():
    """Bishop's: u = t + 0.3 sin 2πt and a little noise, asked for t given u; straight experts fall short of bent ones."""
    rng = np.random.default_rng(0)
    t = rng.random(300)
    x = np.c_[t, t + 0.3 * np.sin(2 * np.pi * t) + rng.uniform(-0.05, 0.05, 300)]
    straight, bent = (run(MODEL, x, "em", components=3, max_iter=150, restarts=2, hidden=h) for h in ((), (10,)))
    assert bent.claimed.kind == bent.verified.kind == "exact"
    assert bent.claimed.value > straight.claimed.value + 20  # 40 more parameters


@pytest.mark.full
def test_a_network_with_priors_has_the_density_of_the_same_weights_and_no_noise_below_its_floor():
    options = {"hidden": (4,), "noise": "covariates", "components": 2}
    plain, drawn = (task_of(MODEL, np.c_[Y, U], priors=p, **options) for p in (False, True))
    at = drawn.global_start()
    at = {n: v + 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)).abs() for n, v in at.items()}
    same = {n: v for n, v in at.items() if n != "variances"} | {"scales": 1e-3 + at["variances"].sqrt()}
    plain.program.assign(same)
    found = drawn.engine.per_datum(globals=at).numpy()
    np.testing.assert_allclose(found, plain.engine.per_datum().numpy(), rtol=1e-9)
    prior = norm.logpdf(at["trunk.0.weight"]).sum() + norm.logpdf(at["trunk.0.bias"]).sum()
    for name, scale in {"gate": 1.25, "gate_offset": 2.5, "slopes": 1.25, "scale_slopes": 1.25, "offsets": 2.5}.items():
        prior += norm(0, scale).logpdf(at[name]).sum()
    prior += invgamma(2).logpdf(at["variances"]).sum()
    assert float(drawn.engine.log_prior(globals=at)) == pytest.approx(prior, rel=1e-9)
