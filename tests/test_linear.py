"""Linear-Gaussian programs: detection, exact evidence and posterior, EM, missing entries; against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import hide, simulated, task_of, tensor
from linear_programs import (
    correlated_noise,
    decoder,
    half_normal,
    mixture_of_factor_analysers,
    random_intercept,
    random_intercept_in_a_plate,
    rows_of_their_own_noise,
    student,
    two_latents_that_add,
    variance_of_z,
)
from scipy.stats import multivariate_normal
from sklearn.datasets import load_iris, load_wine

from inference import em, laplace, run
from inference._exact.linear import LinearGaussian
from inference._exact.quadratic import Quadratic
from zoo._data import datasets
from zoo._errors import UsageError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)) + RNG.normal(size=(60, 1))


def standardized(x):
    return (x - x.mean(0)) / x.std(0)


def log_normal(x, mean, covariance):
    """log N of the observed entries of each row, by SciPy; 0 where nothing was observed."""
    out = []
    for row in np.asarray(x):
        seen = ~np.isnan(row)
        block = covariance[np.ix_(seen, seen)]
        out.append(multivariate_normal(mean[seen], block).logpdf(row[seen]) if seen.any() else 0.0)
    return np.asarray(out)


# -------------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (mixture_of_factor_analysers, "conditionally linear-gaussian"),
        (random_intercept, "linear-gaussian"),
        (random_intercept_in_a_plate, "linear-gaussian"),
        (two_latents_that_add, "linear-gaussian"),
        (correlated_noise, "linear-gaussian"),
        (rows_of_their_own_noise, "linear-gaussian"),
        (decoder(lambda y: y), "linear-gaussian"),
    ],
)
def test_linear_gaussian_programs_are_found(program, kind):
    structure = task_of(program, X).structure
    assert structure.exact == kind
    assert structure.curvature_change < 1e-12


@pytest.mark.parametrize(
    ("program", "site"),
    [
        (decoder(torch.tanh), "'x' (Normal)"),
        (decoder(torch.relu), "'x' (Normal)"),
        (variance_of_z, "'x' (Normal)"),
        (student, "'x' (StudentT)"),
        (half_normal, "'z' (HalfNormal)"),
    ],
)
def test_near_misses_are_refused_with_the_site_and_the_reason(program, site):
    structure = task_of(program, X).structure
    assert structure.exact == "no"
    assert site in structure.reason
    assert em.refusal(structure) is not None
    with pytest.raises(UsageError, match="Methods that can: importance, laplace, svi"):
        run(program, X, "em")


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6])
def test_how_small_a_non_linearity_is_still_refused(size):
    structure = task_of(decoder(torch.tanh, size), X).structure
    assert structure.exact == "no"
    assert structure.curvature_change > 1e-9


# ------------------------------------------------------------------------------------------- evidence and posterior


def random_theta(task, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in task.program.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return {n: v.detach().numpy() for n, v in task.program.values().items()}


@pytest.mark.parametrize("model", ["ppca", "factor_analysis"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_evidence_and_posterior_against_the_marginal_gaussian(model, missing):
    x = hide(X, missing)
    task = task_of(model, x, latents=2)
    theta = random_theta(task)
    W, mean = theta["loadings"], theta["mean"]
    psi = np.diag(np.broadcast_to(theta["noise"] ** 2, 5))
    truth = log_normal(x, mean, W @ W.T + psi)
    assert isinstance(task.exact, LinearGaussian)
    for own in (False, True):
        np.testing.assert_allclose(task.exact.per_datum(own=own).numpy(), truth, rtol=1e-10, atol=1e-10)
    means, deviations = task.exact.summary()
    for row in range(10):
        seen = ~np.isnan(x[row])
        Ws = W[seen]
        covariance = np.linalg.inv(np.eye(2) + Ws.T @ np.linalg.inv(psi[np.ix_(seen, seen)]) @ Ws)
        expected = covariance @ Ws.T @ np.linalg.inv(psi[np.ix_(seen, seen)]) @ (x[row] - mean)[seen]
        np.testing.assert_allclose(means["z"][row], expected, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(deviations["z"][row], np.sqrt(np.diag(covariance)), rtol=1e-8)


def test_mixture_of_factor_analysers_against_its_mixture_of_gaussians():
    task = task_of(mixture_of_factor_analysers, X)
    theta = random_theta(task)
    psi = np.diag(theta["noise"] ** 2)
    parts = [
        np.log(theta["pi"][k]) + log_normal(X, theta["mu"][k], theta["W"][k] @ theta["W"][k].T + psi) for k in range(2)
    ]
    np.testing.assert_allclose(task.exact.per_datum().numpy(), np.logaddexp(*parts), rtol=1e-10)
    np.testing.assert_allclose(task.exact.per_datum(own=True).numpy(), np.logaddexp(*parts), rtol=1e-10)


@pytest.mark.parametrize("program", [random_intercept, random_intercept_in_a_plate])
def test_random_intercept_against_its_compound_symmetric_gaussian(program):
    task = task_of(program, X)
    theta = random_theta(task)
    covariance = theta["spread"] ** 2 * np.ones((5, 5)) + theta["noise"] ** 2 * np.eye(5)
    truth = log_normal(X, np.full(5, theta["level"]), covariance)
    np.testing.assert_allclose(task.exact.per_datum().numpy(), truth, rtol=1e-10)


def test_two_latents_that_add_against_their_gaussian():
    task = task_of(two_latents_that_add, X)
    theta = random_theta(task)
    A = np.column_stack([theta["W"] + 0.5 * np.outer(np.ones(5), [1, 0]), 0.4 * np.ones(5)])
    truth = log_normal(X, np.zeros(5), A @ A.T + np.diag(theta["noise"] ** 2))
    np.testing.assert_allclose(task.exact.per_datum().numpy(), truth, rtol=1e-10)


def test_correlated_noise_with_holes_goes_the_general_way_and_is_right():
    x = hide(X, 0.3)
    task = task_of(correlated_noise, x)
    theta = random_theta(task)
    truth = log_normal(x, theta["mu"], theta["W"] @ theta["W"].T + theta["tril"] @ theta["tril"].T)
    assert isinstance(task.exact, Quadratic)
    np.testing.assert_allclose(task.exact.per_datum().numpy(), truth, rtol=1e-8, atol=1e-9)


def test_rows_of_their_own_noise_against_their_gaussians():
    task = task_of(rows_of_their_own_noise, X)
    theta = random_theta(task)
    truth = [
        log_normal(row[None, :-1], np.zeros(4), theta["W"] @ theta["W"].T + (0.5 + abs(row[-1])) ** 2 * np.eye(4))[0]
        for row in X
    ]
    np.testing.assert_allclose(task.exact.per_datum().numpy(), truth, rtol=1e-10)


# --------------------------------------------------------------------------------------------------------------- EM


def test_posterior_draws_have_the_posterior_moments():
    task = task_of("factor_analysis", X, latents=2)
    random_theta(task)
    torch.manual_seed(0)
    draws = task.exact.draw(task.exact.responsibilities(), 4000)["z"].numpy()
    means, deviations = task.exact.summary()
    error = (draws.mean(0) - means["z"].numpy()) / (deviations["z"].numpy() / 4000**0.5)
    assert np.abs(error).max() < 4.5
    np.testing.assert_allclose(draws.std(0) / deviations["z"].numpy(), 1, atol=5 / (2 * 4000) ** 0.5)


@pytest.mark.parametrize(
    ("model", "data", "options", "truth", "near"),
    [
        ("ppca", "wine", {"latents": 2, "standardize": True}, -2875.6363, 0.001),
        ("ppca", "wine", {"latents": 3, "standardize": True}, -2794.9190, 0.001),
        ("ppca", "iris", {"latents": 2}, -404.9628, 0.001),
        ("ppca", "digits", {"latents": 10}, -287508.735, 0.1),
        ("factor_analysis", "wine", {"latents": 2, "standardize": True}, -2747.191, 0.005),
        ("factor_analysis", "wine", {"latents": 3, "standardize": True}, -2684.284, 0.005),
    ],
)
def test_published_maxima(model, data, options, truth, near):
    fit = run(model, data, "em", **options)
    assert fit.claimed.value == pytest.approx(truth, abs=near)
    assert fit.verified.value == pytest.approx(fit.claimed.value, rel=1e-10)
    assert fit.claimed.kind == fit.verified.kind == "exact"
    assert set(fit.notes["closed_form"]) == {"loadings", "mean", "noise"}
    assert fit.converged


def eigenvector_solution(x, latents):
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    variance = values[:-latents].mean()
    top = vectors[:, -latents:]
    W = top * np.sqrt(values[-latents:] - variance)
    return log_normal(x, x.mean(0), W @ W.T + variance * np.eye(len(values))).sum(), variance, top


def largest_angle(a, b):
    """Between two subspaces, radians, from the sine: the cosine cannot tell angles below 1e-8 apart."""
    a, b = np.linalg.qr(a)[0], np.linalg.qr(b)[0]
    return np.arcsin(min(1.0, np.linalg.norm(a - b @ (b.T @ a), 2)))


def test_ppca_by_em_is_the_eigenvector_solution():
    x = standardized(load_wine().data)
    fit = run("ppca", x, "em", latents=3, tol=1e-14)
    evidence, variance, subspace = eigenvector_solution(x, 3)
    assert fit.claimed.value == pytest.approx(evidence, rel=1e-6)
    assert fit.parameters["noise"] ** 2 == pytest.approx(variance, rel=1e-6)
    assert largest_angle(fit.parameters["loadings"], subspace) < 1e-4


def test_ppca_can_begin_at_the_eigenvectors():
    x = standardized(load_wine().data)
    fit = run("ppca", x, "em", latents=3, init="eigenvectors", max_iter=1)
    assert fit.claimed.value == pytest.approx(eigenvector_solution(x, 3)[0], rel=1e-10)


def test_ppca_without_noise_finds_the_subspace_of_the_singular_value_decomposition():
    x = load_iris().data
    fit = run("ppca", x, "em", latents=2, noise=0.0, tol=1e-15)
    subspace = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:2].T
    assert largest_angle(fit.parameters["loadings"], subspace) < 1e-4


@pytest.mark.parametrize(
    "program",
    [
        mixture_of_factor_analysers,
        random_intercept,
        random_intercept_in_a_plate,
        two_latents_that_add,
        correlated_noise,
        rows_of_their_own_noise,
    ],
)
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_em_climbs_to_where_the_evidence_is_flat(program, missing):
    full = simulated(program, X, 800)
    x = hide(full, missing)
    if program is rows_of_their_own_noise:
        x[:, -1] = full[:, -1]
    task = task_of(program, x)
    fit = em.fit(task, max_iter=400, start="program", tol=1e-13)
    climb = fit.trace["log_likelihood"]
    assert (np.diff(climb) > -1e-8 * np.abs(climb[:-1])).all()
    values = {n: v.detach().requires_grad_() for n, v in task.program.values().items()}
    total, _ = task.exact.log_evidence(values)
    slopes = torch.autograd.grad(total, list(values.values()))
    for (name, _value), slope in zip(values.items(), slopes, strict=True):
        if name == "pi":
            slope = slope - slope.mean()
        slope = slope.tril() if name == "tril" else slope
        # nats a datum; where it began the slopes are hundreds of times this
        assert slope.abs().max() / len(x) < 2e-3, name


def test_mixture_of_factor_analysers_has_a_closed_form_m_step():
    plan = task_of(mixture_of_factor_analysers, X).plan({})
    assert set(plan.closed) == {"pi", "W", "mu", "noise"}
    assert plan.numeric == ()


def test_a_coefficient_that_rows_share_is_solved_at_once():
    task = task_of(random_intercept, X)
    assert set(task.plan({}).closed) == {"level", "spread", "noise"}


# -------------------------------------------------------------------------------------------------- laplace, missing


def test_laplace_takes_one_newton_step_and_says_so():
    task = task_of("factor_analysis", standardized(load_wine().data), latents=2)
    fit = laplace.fit(task)
    assert fit.notes["newton_steps"] == 1
    assert "exact" in fit.notes["exact"]
    assert fit.claimed.kind == "exact"
    assert fit.claimed.value == pytest.approx(-2747.191, abs=0.005)


def test_a_row_with_nothing_observed_keeps_the_prior():
    x = X.copy()
    x[3] = np.nan
    task = task_of("factor_analysis", x, latents=2)
    means, deviations = task.exact.summary()
    assert task.exact.per_datum()[3] == 0
    np.testing.assert_allclose(means["z"][3], 0, atol=1e-12)
    np.testing.assert_allclose(deviations["z"][3], 1, rtol=1e-12)


@pytest.mark.parametrize(("model", "options"), [("ppca", {}), ("factor_analysis", {}), ("gmm", {"components": 1})])
def test_imputation_against_the_conditional_gaussian(model, options):
    x = hide(X, 0.3)
    fit = run(model, x, "em", max_iter=20, **options)
    found = fit.impute(draws=400)
    theta = fit.parameters
    if model == "gmm":
        mean, covariance = theta["locs"][0], theta["scale_tril"][0] @ theta["scale_tril"][0].T
    else:
        W, mean = theta["loadings"], theta["mean"]
        covariance = W @ W.T + np.diag(np.broadcast_to(theta["noise"] ** 2, 5))
    for row in range(20):
        gone = np.isnan(x[row])
        if not gone.any() or gone.all():
            continue
        gain = covariance[np.ix_(gone, ~gone)] @ np.linalg.inv(covariance[np.ix_(~gone, ~gone)])
        truth = mean[gone] + gain @ (x[row] - mean)[~gone]
        spread = covariance[np.ix_(gone, gone)] - gain @ covariance[np.ix_(~gone, gone)]
        np.testing.assert_allclose(found.mean[row, gone], truth, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.sd[row, gone], np.sqrt(np.diag(spread)), rtol=1e-7)
        error = (found.draws[:, row, gone].mean(0) - truth) / np.sqrt(
            np.diag(spread) / 200
        )  # 200 distinct latent draws
        assert np.abs(error).max() < 5
    np.testing.assert_array_equal(found.mean[~found.missing], x[~found.missing])


def test_imputation_comes_in_the_datas_own_units():
    x = hide(1000 + 50 * X, 0.2)
    own, standard = run("gmm", x, "em", components=1), run("gmm", x, "em", components=1, standardize=True)
    np.testing.assert_allclose(own.impute(draws=2).mean, standard.impute(draws=2).mean, rtol=1e-4)


@pytest.mark.parametrize(("model", "latents"), [("ppca", 5), ("ppca", 9), ("factor_analysis", 5)])
def test_as_many_latents_as_columns_is_an_error(model, latents):
    with pytest.raises(UsageError, match="fewer latents than columns"):
        run(model, X, "em", latents=latents)


def test_a_constant_column_rests_on_the_floor_with_a_warning():
    x = np.column_stack([X, np.full(60, 3.0)])
    fit = run("factor_analysis", x, "em", latents=1)
    assert np.isfinite(fit.claimed.value)
    assert tensor(fit.parameters["noise"]).min() > 0


# squared error where the same posterior's mode is found by SciPy's L-BFGS-B over the mean and a Cholesky factor of the
# covariance, from the columns' means and variances; one for each seed
BY_SCIPY = [0.225757, 0.252242, 0.229995, 0.246805, 0.253037]


@pytest.mark.slow
def test_breast_cancer_imputed_by_one_gaussian():
    """Half of the entries missing: 496 parameters from 284 rows' worth of numbers want priors, or they overfit."""
    for seed, truly in enumerate(BY_SCIPY):
        data = datasets.load("breast_cancer", standardize=True, missing="random:0.5", seed=seed)
        found = run("gmm", data, "em", components=1, priors=True).impute(draws=1)
        truth = data.truth * data.scale + data.center
        error = (((found.mean - truth) / data.scale)[found.missing] ** 2).mean()
        assert error == pytest.approx(truly, abs=1e-4)
