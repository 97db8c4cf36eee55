"""No-U-Turn sampling against closed forms and quadrature, within its Monte Carlo errors; and that it says where it cannot."""

from __future__ import annotations

import numpy as np
import nuts_programs as programs
import pytest
import torch
from helpers import structure_of, task_of, zoo_refusal
from scipy import special, stats

from inference import load, nuts, run
from inference._mcmc.chains import Chains, Drawn, windows
from inference._mcmc.conditional import conditional
from inference._mcmc.diagnose import diagnose
from inference._mcmc.posterior import Posterior
from inference._mcmc.recorded import Gradient
from inference._method.fit import Fit
from zoo._errors import UsageError

SHORT = {"warmup": 200, "samples": 300}
EIGHT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])[:, None]


def sample(model, x, **options) -> Fit:
    return nuts.fit(task_of(model, x), **{**SHORT, **options})


def check_moments(fit: Fit, name: str, mean, sd, place=()) -> None:
    """Mean within 4 Monte Carlo errors, standard deviation too, of what quadrature or a closed form says."""
    ess = min(fit.notes["ess_bulk"][name], fit.notes["ess_tail"][name])
    assert ess > 100
    assert abs(fit.parameters[name][place] - mean) < 4 * sd / ess**0.5
    assert abs(fit.standard_errors[name][place] - sd) < 4 * sd / ess**0.5


def on_grid(log_density: np.ndarray, *axes: np.ndarray) -> list[tuple[float, float]]:
    """Mean and standard deviation of each coordinate of a density on a grid."""
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    out = []
    for k, values in enumerate(np.meshgrid(*axes, indexing="ij")):
        assert weight.sum(tuple(i for i in range(len(axes)) if i != k))[[0, -1]].max() < 1e-3 or k == 1
        mean = (weight * values).sum()
        out.append((mean, ((weight * (values - mean) ** 2).sum()) ** 0.5))
    return out


# ------------------------------------------------------------------------------------------------------------ chains


def gaussian(covariance: np.ndarray):
    precision = np.linalg.inv(covariance)
    return lambda q: (-0.5 * np.einsum("cd,de,ce->c", q, precision, q), -q @ precision)


def walked(evaluate, d: int, mass="diagonal", warmup=200, samples=300, starts=None, max_depth=10):
    chains = Chains(evaluate, np.ones((4, d)) if starts is None else starts, 1, 0.8, max_depth, mass)
    with np.errstate(all="ignore"):
        chains.warm_up(warmup, lambda: None)
        drawn = chains.draw(samples, lambda: None)
    return drawn, diagnose(drawn, {"u": drawn.flat}, max_depth)


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_a_correlated_gaussian(mass):
    root = np.eye(5) + 0.5 * np.tri(5, k=-1)
    covariance = (root @ root.T) * np.outer(*2 * [[0.1, 1.0, 1.0, 3.0, 10.0]])
    drawn, told = walked(gaussian(covariance), 5, mass, 200, 400)
    ess = min(told.ess_bulk["u"], told.ess_tail["u"])
    flat, sd = drawn.flat.reshape(-1, 5), np.diag(covariance) ** 0.5
    assert ess > 400 and told.rhat["u"] < 1.02 and told.diverging == 0
    assert (abs(flat.mean(0)) < 4 * sd / ess**0.5).all()
    assert abs(np.cov(flat.T) / np.outer(sd, sd) - covariance / np.outer(sd, sd)).max() < 6 / ess**0.5
    if mass == "dense":
        assert drawn.tree_depth.mean() < 3


@pytest.mark.full
@pytest.mark.parametrize(("tie", "used"), [(0.98, "dense"), (0.0, "diagonal")])
def test_the_metric_follows_the_correlations(tie, used):
    covariance = np.where(np.eye(4) > 0, 1.0, tie) * np.outer(*2 * [[0.1, 1.0, 3.0, 10.0]])
    chains = Chains(gaussian(covariance), np.ones((4, 4)), 1, 0.8, 10, "auto")
    chains.warm_up(150, lambda: None)
    drawn = chains.draw(100, lambda: None)
    assert chains.used == used and drawn.tree_depth.mean() < 3 and chains.target == 0.8


@pytest.mark.full
def test_steps_shorten_where_trajectories_diverge():
    """Not to a cure: a funnel is still told of."""
    chains = Chains(funnel, np.ones((4, 5)), 1, 0.8, 10, "auto")
    with np.errstate(all="ignore"):
        chains.warm_up(400, lambda: None)
        drawn = chains.draw(200, lambda: None)
    assert 0.9 <= chains.target <= 0.99
    assert not diagnose(drawn, {"u": drawn.flat}, 10).converged


def drawn_of(flat: np.ndarray) -> Drawn:
    """As chains leave them, with energies that move freely."""
    C, S = flat.shape[:2]
    noise = np.random.default_rng(9).normal(size=(C, S))
    none, ones = np.zeros((C, S)), np.ones((C, S))
    return Drawn(flat, noise, none.astype(bool), noise, ones.astype(int), ones, np.ones(C))


def test_chains_that_nearly_agree_draw_on():
    rng = np.random.default_rng(0)
    noise, slow = rng.normal(size=(4, 1000, 2)), np.zeros((4, 1000, 2))
    for s in range(1, 1000):
        slow[:, s] = 0.9 * slow[:, s - 1] + noise[:, s]
    apart = noise + np.arange(4.0)[:, None, None]
    assert nuts._undecided(drawn_of(slow), 10)
    assert not nuts._undecided(drawn_of(noise), 10)  # they are enough
    assert not nuts._undecided(drawn_of(apart), 10)  # more of them will not agree
    both = drawn_of(slow).followed_by(drawn_of(noise))
    assert both.flat.shape == (4, 2000, 2) and both.step_size.shape == (4,)


def test_the_energy_is_that_of_the_draws():
    drawn, told = walked(gaussian(np.eye(3)), 3)
    assert stats.kstest(2 * drawn.energy.ravel()[::7], stats.chi2(6).cdf).pvalue > 1e-4  # H of 3 + 3 normals
    assert min(told.ebfmi) > 0.7 and 0.75 < drawn.acceptance_rate.mean() < 0.95


def funnel(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neal's: v ~ N(0, 3²), four x ~ N(0, exp v)."""
    v, x = q[:, 0], q[:, 1:]
    scaled = x * np.exp(-v)[:, None]
    log_p = -(v**2) / 18 - 0.5 * (x * scaled).sum(1) - 2 * v
    return log_p, np.concatenate([(-v / 9 + 0.5 * (x * scaled).sum(1) - 2)[:, None], -scaled], 1)


def test_a_funnel_diverges_and_is_not_called_converged():
    _, told = walked(funnel, 5, warmup=60, samples=150)
    assert told.diverging > 0 and not told.converged
    assert any("diverged" in w and "target_accept" in w for w in told.warnings(False))


def test_an_improper_density_is_not_called_converged():
    def flat(q):
        return -0.5 * q[:, 0] ** 2, np.stack([-q[:, 0], 0 * q[:, 1]], 1)

    for starts in (None, np.random.default_rng(0).normal(size=(4, 2))):
        _, told = walked(flat, 2, warmup=60, samples=60, starts=starts, max_depth=5)
        assert not told.converged
        assert any("improper" in w for w in told.warnings(False))


def test_windows_are_stans():
    assert windows(1000) == [(75, False), (25, True), (50, True), (100, True), (200, True), (500, True), (50, False)]
    for count in (0, 10, 20, 37, 100, 149, 150, 151, 999, 3000):
        assert sum(length for length, _ in windows(count)) == count
        assert all(length >= 0 for length, _ in windows(count))


# ----------------------------------------------------------------------------------------------------------- density

DENSITIES = [
    (programs.two_means, np.array([[0.3], [-2.0], [5.0]])),
    (programs.schools, EIGHT),
    (programs.clusters, np.array([[0.3, 1.0, 2.0], [-2.0, 0.0, 1.0], [5.0, 4.0, 3.0]])),
    (programs.clusters, np.array([[0.3, np.nan, 2.0], [-2.0, 0.0, np.nan], [5.0, 4.0, 3.0]])),
    (programs.switching, np.array([[0.3, 1.0, 2.0], [-2.0, 0.0, 1.0]])),
]


@pytest.mark.parametrize(("model", "x"), DENSITIES)
def test_the_density_is_the_engines_with_the_jacobian(model, x):
    task = task_of(model, x)
    posterior = Posterior(task, True)
    flat = torch.randn(3, posterior.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, values = posterior.log_density(flat).detach(), posterior.values(flat)
    for i in range(3):
        evidence, prior = task.engine.log_evidence(None, {k: v[i] for k, v in values.items()})
        jacobian = torch.autograd.functional.jacobian(lambda u: _free_values(posterior, u), flat[i])
        log_det = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(found[i], (evidence + prior).detach() + log_det)


def _free_values(posterior: Posterior, u: torch.Tensor) -> torch.Tensor:
    """The constrained values as one vector of as many numbers as u: of a simplex all but the last."""
    free = {p.site.name: u[p.part].reshape(p.shape) for p in posterior.places}
    out = []
    for place in posterior.places:
        value = nuts.onto(place.site.constraint)(free[place.site.name])
        out.append(value[..., :-1] if place.site.family == "Dirichlet" else value)
    return torch.cat([v.reshape(-1) for v in out])


@pytest.mark.parametrize(("model", "x"), DENSITIES)
def test_the_recorded_gradient_is_the_programs(model, x):
    posterior = Posterior(task_of(model, x), True)
    flat = torch.randn(2, posterior.d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient = Gradient(posterior.log_density, flat)
    assert gradient.recorded is not None
    value, slope = gradient(flat.numpy())
    for k in range(posterior.d):
        step = torch.zeros(posterior.d, dtype=torch.float64)
        step[k] = 1e-5
        ahead, behind = (posterior.log_density(flat + s * step).detach() for s in (1, -1))
        np.testing.assert_allclose(slope[:, k], (ahead - behind).numpy() / 2e-5, rtol=1e-5, atol=1e-6)
    posterior.side_by_side = False
    np.testing.assert_allclose(value, posterior.log_density(flat).detach().numpy(), rtol=1e-10)


def test_what_decides_by_values_is_not_recorded():
    def kinked(flat):
        return (-flat.square() if bool((flat > 0).all()) else -2 * flat.square()).sum(1)

    gradient = Gradient(kinked, torch.ones(2, 1, dtype=torch.float64))
    assert gradient.recorded is None
    assert gradient(np.array([[1.0], [-1.0]]))[0].tolist() == [-2.0, -2.0]
    noisy = Gradient(lambda flat: (flat * torch.rand_like(flat)).sum(1), torch.ones(2, 1, dtype=torch.float64))
    assert noisy.recorded is None


def test_locals_are_drawn_given_each_draw_of_the_globals():
    x = np.array([[0.3, 1.0, 2.0], [-2.0, 0.0, np.nan], [0.1, -0.2, 0.3]])
    task = task_of(programs.clusters, x)
    posterior = Posterior(task, True)
    flat = torch.randn(posterior.d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = conditional(posterior, flat.expand(4000, -1), torch.Generator().manual_seed(0))
    point = {k: v[0] for k, v in posterior.values(flat.unsqueeze(0)).items()}
    share = task.engine.responsibilities(None, point)
    mean, sd = (m["a"] for m in task.engine.summary(point))
    torch.testing.assert_close(found.probabilities["z"], share)
    torch.testing.assert_close(found.means["a"], mean)
    torch.testing.assert_close(found.deviations["a"], sd)
    assert (
        abs(found.draws["z"].double().mean(0) - share[:, 1]) < 4 * (share[:, 1] * share[:, 0] / 4000).sqrt() + 1e-9
    ).all()
    assert (abs(found.draws["a"].mean(0) - mean) < 4 * sd / 4000**0.5).all()
    assert (abs(found.draws["a"].std(0) / sd - 1) < 0.1).all()
    both = torch.stack([found.draws["a"][found.draws["z"][:, 2] == k][:, 2].mean() for k in (0, 1)])
    assert both[1] > both[0]  # a goes with the z of its own draw


# ---------------------------------------------------------------------------------------------------------- posteriors


@pytest.fixture(scope="module")
def of_a_mean():
    x = np.random.default_rng(0).normal(3, 2, (12, 1))
    return x, run(programs.normal_mean, x, "nuts", warmup=200, samples=400)


def test_a_conjugate_normal_mean(of_a_mean):
    x, found = of_a_mean
    precision = 1 / 9 + len(x) / 4
    check_moments(found.fit, "mu", (1 / 9 + x.sum() / 4) / precision, precision**-0.5)
    truth = stats.multivariate_normal(np.full(12, 1.0), 4 * np.eye(12) + 9).logpdf(x[:, 0])
    assert abs(found.claimed.value - truth) < 4 * found.claimed.se and found.converged
    assert abs(found.verified.value - truth) < 4 * found.verified.se + 0.01


def test_a_beta_posterior():
    x = np.array([3.0, 5.0, 2.0, 9.0])[:, None]
    truth = stats.beta(2 + x.sum(), 3 + 40 - x.sum())
    check_moments(sample(programs.coins, x), "p", truth.mean(), truth.std())


def test_a_dirichlet_posterior():
    counts = np.array([6, 1, 9])
    fit = sample(programs.dice, np.repeat(np.arange(3.0), counts)[:, None])
    truth = stats.dirichlet(counts + np.array([1.0, 2.0, 3.0]))
    for k in range(3):
        check_moments(fit, "p", truth.mean()[k], truth.var()[k] ** 0.5, (k,))
    assert abs(fit.parameters["p"].sum() - 1) < 1e-9


def schools_by_quadrature() -> list[tuple[float, float]]:
    mu, tau = np.linspace(-20, 30, 301), np.linspace(0.005, 100, 4001)
    sd = np.sqrt(tau**2 + 100)[None, :, None]
    log_p = stats.norm.logpdf(EIGHT[:, 0], mu[:, None, None], sd).sum(-1)
    return on_grid(log_p + stats.norm.logpdf(mu, 0, 5)[:, None] + stats.halfcauchy.logpdf(tau, 0, 5), mu, tau)


def test_eight_schools_with_the_effects_integrated_out():
    fit = sample(programs.schools, EIGHT, warmup=300, samples=500)
    mu, tau = schools_by_quadrature()
    check_moments(fit, "mu", *mu)
    check_moments(fit, "tau", *tau)
    assert fit.notes["integrated_out"] == ["eta"] and fit.draws["eta"].shape == (1000, 8)


def test_two_means_with_the_labels_summed_out():
    x = np.random.default_rng(4).normal(np.repeat([-1.0, 1.5], [8, 16]), 1.0)[:, None]
    a, b = np.linspace(-5, 3, 161), np.linspace(-1, 5, 161)
    one, two = (stats.norm.logpdf(x[:, 0], g[:, None], 1.0) for g in (a, b))
    each = np.logaddexp(np.log(0.3) + one[:, None], np.log(0.7) + two[None])
    truth = on_grid(each.sum(-1) + stats.norm.logpdf(a, -2, 1)[:, None] + stats.norm.logpdf(b, 2, 1), a, b)
    fit = sample(programs.two_means, x)
    for k in range(2):
        check_moments(fit, "mu", *truth[k], (k,))
    assert fit.notes["summed_out"] == ["z"] and fit.probabilities["z"].shape == (24, 2)
    assert abs(fit.draws["z"].mean(0) - fit.probabilities["z"][:, 1]).max() < 0.08


def test_a_markov_chain_with_its_states_summed_out():
    x = np.random.default_rng(5).normal(size=(9, 3)) + np.array([-1.0, -1.0, 1.0])
    grid = np.linspace(0.0005, 0.9995, 1000)
    log_p = stats.beta(2, 2).logpdf(grid)
    for row in x:
        emission = [stats.norm.logpdf(v, np.array([-1.0, 1.0])) for v in row]
        forward = np.log(0.5) + np.broadcast_to(emission[0], (1000, 2))
        stay, leave = np.log(grid)[:, None], np.log1p(-grid)[:, None]
        for e in emission[1:]:
            forward = np.logaddexp(forward + stay, forward[:, ::-1] + leave) + e
        log_p = log_p + special.logsumexp(forward, 1)
    check_moments(sample(programs.switching, x), "p", *on_grid(log_p, grid)[0])


def test_a_support_that_another_latent_moves():
    x = np.full((3, 1), 0.7)

    top, share = np.linspace(0.01, 15, 3000)[:, None], (np.arange(400) + 0.5) / 400  # low = share · top
    log_p = stats.lognorm(0.5).logpdf(top) + 3 * stats.norm.logpdf(0.7, share * top, 1)
    weight = np.exp(log_p) / np.exp(log_p).sum()
    mean = (weight * share * top).sum()
    square = (weight * (share * top) ** 2).sum()
    fit = sample(programs.moving_support, x)
    check_moments(fit, "low", mean, (square - mean**2) ** 0.5)
    assert (fit.draws["low"] < fit.draws["top"]).all()


def test_two_modes_are_not_called_converged():
    fit = sample(programs.two_roots, np.full((1, 1), 25.0), warmup=40, samples=60)
    assert fit.converged is False and fit.notes["rhat"]["a"] > 1.1
    assert "several modes" in fit.warnings[0]


# ------------------------------------------------------------------------------------------------ around the sampler


def test_a_seed_repeats_its_draws():
    x = np.array([[1.0], [2.0]])
    found = []
    for seed in (3, 3, 4):
        task = task_of(programs.normal_mean, x)
        task.seed = seed
        found.append(nuts.fit(task, warmup=30, samples=10).draws["mu"])
    one, same, other = found
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_chains_are_chains_in_arviz_and_on_disk(of_a_mean, tmp_path):
    _, found = of_a_mean
    found.save(tmp_path / "run")
    again = load(tmp_path / "run")
    for one in (found, again):
        tree = one.idata
        assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 250}
        assert tree["sample_stats"]["diverging"].dims == ("chain", "draw")
        assert {"energy", "tree_depth", "step_size", "acceptance_rate", "lp"} <= set(tree["sample_stats"].data_vars)
        assert tree["log_likelihood"].sizes["chain"] == 4
    np.testing.assert_array_equal(found.draws["mu"], again.draws["mu"])
    np.testing.assert_array_equal(found.chains["lp"], again.chains["lp"])
    assert again.converged is True


def test_it_says_what_it_cannot_serve():
    x = np.ones((5, 1))
    assert "'k' is discrete" in zoo_refusal("nuts", structure_of(programs.counted, x))
    assert "keeps θ as it is" in zoo_refusal("nuts", structure_of("ppca", np.ones((5, 3))))
    task = task_of("gmm", np.arange(6.0)[:, None])
    assert "all latents are discrete" in nuts.refusal(task.structure)
    for wrong in ({"chains": 1}, {"warmup": 3}, {"target_accept": 1.0}, {"mass": "heavy"}):
        with pytest.raises(UsageError):
            run(programs.normal_mean, x, "nuts", **wrong)


# -------------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
def test_eight_schools_with_the_effects_sampled():
    fit = sample(programs.schools, EIGHT, marginalise=False, warmup=1000, samples=1000)
    mu, tau = schools_by_quadrature()
    check_moments(fit, "mu", *mu)
    check_moments(fit, "tau", *tau)
    assert fit.converged


@pytest.mark.slow
def test_centred_eight_schools_say_that_they_diverge():
    fit = sample(programs.centred, EIGHT, marginalise=False, warmup=1000, samples=1000)
    assert fit.converged is False and fit.notes["divergences"] > 0 and fit.notes["target_accept"] > 0.8
    assert any("marginalise=true" in w for w in fit.warnings)
    whole = sample(programs.centred, EIGHT, warmup=1000, samples=1000)
    assert whole.converged and whole.notes["divergences"] == 0


@pytest.mark.slow
def test_a_logistic_random_intercept():
    rng = np.random.default_rng(0)
    x = (rng.random((60, 5)) < special.expit(rng.normal(0.5, 1.0, (60, 1)))).astype(float)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    mu, tau = np.linspace(-1, 2.5, 141), np.linspace(0.01, 4, 160)
    logits = mu[:, None, None] + tau[:, None] * nodes  # [mu, tau, nodes]
    log_p = stats.norm.logpdf(mu, 0, 5)[:, None] + stats.halfnorm.logpdf(tau, 0, 3)
    for k, rows in zip(*np.unique(x.sum(1), return_counts=True), strict=True):
        each = k * special.log_expit(logits) + (5 - k) * special.log_expit(-logits)
        log_p = log_p + rows * special.logsumexp(each, axis=2, b=weights / weights.sum())
    truth = on_grid(log_p, mu, tau)
    fit = sample(programs.logistic, x, warmup=1000, samples=1000)
    check_moments(fit, "mu", *truth[0])
    check_moments(fit, "tau", *truth[1])
    assert fit.converged and fit.means["b"].shape == (60,)


@pytest.mark.slow
def test_an_improper_posterior_of_a_program_is_not_called_converged():
    fit = sample(programs.improper, np.ones((4, 1)), warmup=60, samples=60, max_depth=5)
    assert fit.converged is False and fit.notes["rhat"]["b"] > 1.01
