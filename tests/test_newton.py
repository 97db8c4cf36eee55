"""The modes of every datum at once: against closed forms, quadrature, finite differences, and data one by one."""

from __future__ import annotations

import linear_programs as linear
import local_programs as local
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, task_of, tensor
from scipy import special, stats

from guides import at
from inference._density import guide as _mode_guide
from inference._density import newton
from inference._density.local import LocalDensity, refusal
from inference._numerics.psis import psis
from inference._sampling import weights
from zoo._program.describe import describe
from zoo._program.load import load

LINEAR = [
    linear.two_latents_that_add,
    linear.mixture_of_factor_analysers,
    linear.random_intercept,
    linear.random_intercept_in_a_plate,
    linear.correlated_noise,
]


def density_of(model, x, theta=None, **options) -> LocalDensity:
    task = task_of(model, x, **options)
    task.program.assign({k: tensor(v) for k, v in (theta or {}).items()})
    return LocalDensity(task.program, task.structure, task.x)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


# ---- where it is exact ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", LINEAR, ids=lambda p: p.__name__)
def test_a_quadratic_takes_one_step_and_gives_the_exact_posterior(program):
    x = hide(np.random.default_rng(0).normal(size=(40, linear.D)), 0.2, seed=1)
    x[3] = np.nan  # nothing is known of it: the prior
    task = task_of(program, x)
    density = LocalDensity(task.program, task.structure, task.x)
    modes = newton.modes(density)
    np.testing.assert_allclose(modes.log_evidence, task.exact.per_datum(), rtol=1e-10, atol=1e-10)
    assert int(modes.steps.max()) == 1 and bool(modes.converged.all()) and not bool(modes.damped.any())
    exact = task.exact.posterior(slice(0, 40), None)
    np.testing.assert_allclose(modes.mean, exact.mean, atol=1e-9)
    covariance = modes.scale_tril @ modes.scale_tril.mT
    np.testing.assert_allclose(covariance, exact.covariance.expand(covariance.shape), atol=1e-9)
    np.testing.assert_allclose(modes.weights, exact.weights, atol=1e-9)


def test_from_far_away_one_step_will_do_too():
    density = density_of(linear.two_latents_that_add, np.random.default_rng(1).normal(size=(10, linear.D)))
    start = 1e4 * torch.randn(10, 1, density.L, dtype=torch.float64)
    modes = newton.modes(density, start=start, tries=0)
    assert int(modes.steps.max()) <= 2
    np.testing.assert_allclose(modes.log_evidence, newton.modes(density).log_evidence, rtol=1e-9)


def stirling(a):
    """log Γ(a) by Laplace's method in the coordinate log."""
    return a * np.log(a) - a - 0.5 * np.log(a) + 0.5 * np.log(2 * np.pi)


def laplace_beta(a, b):
    """log B(a, b) by Laplace's method in the coordinate logit."""
    n = a + b
    return a * np.log(a / n) + b * np.log(b / n) + 0.5 * np.log(2 * np.pi) - 0.5 * np.log(a * b / n)


def test_a_positive_latent_against_laplace_by_hand():
    """A Gamma rate under a Poisson: in log coordinates Laplace's method is Stirling's formula."""
    x = np.random.default_rng(2).poisson(3.0, (60, 1)).astype(float)
    modes = newton.modes(density_of(user.counts, x, {"shape": 1.7, "rate": 0.6}))
    a = 1.7 + x[:, 0]
    known = 1.7 * np.log(0.6) - special.gammaln(1.7) - special.gammaln(x[:, 0] + 1) - a * np.log(1.6)
    np.testing.assert_allclose(modes.log_evidence, known + stirling(a), rtol=1e-7)
    truth = stats.nbinom.logpmf(x[:, 0], 1.7, 0.6 / 1.6)
    assert np.all(np.abs(modes.log_evidence.numpy() - truth) < 1 / (12 * a) * 1.01)  # Stirling's own error


def shares(x=None, size=None):
    """A probability for each datum, and the shares of three kinds; x [n, 4]: five tosses, and counts of seven."""
    with local.rows(x, size):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        q = pyro.sample("q", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.5])))
        pyro.sample("heads", dist.Binomial(5, p), obs=None if x is None else x[:, 0])
        pyro.sample("kinds", dist.Multinomial(7, q), obs=None if x is None else x[:, 1:])


def test_an_interval_and_a_simplex_against_laplace_by_hand():
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.binomial(5, 0.4, 30), rng.multinomial(7, [0.2, 0.5, 0.3], 30)]).astype(float)
    density = density_of(shares, x)
    assert density.L == 3  # one, and two free numbers for three shares
    heads = x[:, 0]
    coin = np.log(special.comb(5, heads)) - special.betaln(2, 3) + laplace_beta(2 + heads, 8 - heads)
    alpha = np.array([1.0, 2.0, 1.5])
    after = alpha + x[:, 1:]
    kinds = special.gammaln(8) - special.gammaln(x[:, 1:] + 1).sum(1)
    kinds += special.gammaln(alpha.sum()) - special.gammaln(alpha).sum()
    kinds += laplace_beta(after[:, 0], after[:, 1] + after[:, 2]) + laplace_beta(after[:, 1], after[:, 2])
    np.testing.assert_allclose(newton.modes(density).log_evidence, coin + kinds, rtol=1e-7)


def test_the_density_with_a_support_that_moves():
    """By hand: the Jacobians of both maps are in it."""
    x = np.random.default_rng(4).uniform(0, 3, (20, 2))
    density = density_of(local.nested_bounds, x)
    z = torch.randn(5, 20, 2, dtype=torch.float64)
    u, v = special.expit(z[..., 0].numpy()), special.expit(z[..., 1].numpy())
    a, b = 3 * u, 3 * u + v
    expected = np.log(u * (1 - u)) + np.log(v * (1 - v))
    expected += stats.norm.logpdf(x[:, 0], a, 0.3) + stats.norm.logpdf(x[:, 1], b, 0.3)
    np.testing.assert_allclose(density.log_joint(z), expected, rtol=1e-9)
    values = density.values(z)
    np.testing.assert_allclose(values["b"], b, rtol=1e-9)


# ---- where it is an approximation ------------------------------------------------------------------------------------


def test_counts_against_quadrature_and_the_next_term():
    """The error of Laplace's log evidence is ⅛ f⁗/H² + 5/24 (f‴)²/H³ to the next order (MacKay 2003, exercise 27.1)."""
    x = local.draw_counts(200)
    modes = newton.modes(density_of(local.counts, x))
    error = local.counts_truth(x) - modes.log_evidence.numpy()
    assert np.abs(error).max() < 0.06
    rate = np.exp(modes.mean[:, 0, 0].numpy())
    H = rate + 1 / local.SCALE**2
    term = -rate / (8 * H**2) + 5 * rate**2 / (24 * H**3)
    assert np.abs(error - term).max() < 0.4 * np.abs(error).max()
    many = x[:, 0] > 6  # the more is counted, the nearer to a Gaussian
    assert many.any() and np.all(np.abs(error[many]) < 1 / (10 * x[many, 0]))


def test_a_logistic_decoder_against_a_grid():
    x = hide(local.draw_logistic(60), 0.2)
    modes = newton.modes(density_of(local.logistic, x))
    error = modes.log_evidence.numpy() - local.logistic_truth(x)
    assert np.abs(error).max() < 0.15
    assert bool(modes.converged.all())


def test_a_mixture_of_curves_against_quadrature():
    x = hide(local.draw_bent(80), 0.1)
    modes = newton.modes(density_of(local.bent, x))
    truth = local.bent_joint(x)
    assert np.abs(modes.log_evidence.numpy() - special.logsumexp(truth, axis=1)).max() < 0.25
    assert np.abs(modes.weights.numpy() - special.softmax(truth, axis=1)).max() < 0.1


@pytest.mark.parametrize("program", [local.several, local.in_a_plate, local.nested_bounds], ids=lambda p: p.__name__)
def test_its_weights_as_a_proposal_agree_with_draws_from_the_prior(program):
    """Two estimates of log p(x_i) that share nothing but the density; and the guide's draws make a third."""
    rng = np.random.default_rng(5)
    x = {"several": rng.normal(size=(15, 3)), "in_a_plate": rng.poisson(2.0, (15, 3)).astype(float)}.get(
        program.__name__, rng.uniform(0, 3, (15, 2))
    )
    density = density_of(program, x)
    modes = newton.modes(density)
    z, chosen = modes.draw(4000)
    proposed, error = weights.log_mean(density.log_joint(z, chosen) - modes.log_prob(z, chosen))
    prior = weights.draw(density.program, density.structure, density.x, None, 20_000)
    naive, naive_error = weights.log_mean(prior.log_weights)
    score = (proposed - naive) / (error.square() + naive_error.square()).sqrt()
    assert float(score.abs().max()) < 4
    if program is local.nested_bounds:
        assert "'b'" in _mode_guide.refusal(density)
        return
    guide = _mode_guide.ModeGuide(density, modes)
    rows = torch.arange(3, 12)
    drawn = weights.draw(density.program, density.structure, density.x[rows], at(guide, rows), 4000)
    again, again_error = weights.log_mean(drawn.log_weights)
    score = (again - proposed[rows]) / (again_error.square() + error[rows].square()).sqrt()
    assert float(score.abs().max()) < 4


# ---- θ ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "draw"), [(local.counts, local.draw_counts), (local.bent, local.draw_bent), (local.logistic, None)]
)
def test_the_gradient_of_the_evidence_against_finite_differences(program, draw):
    x = (draw or local.draw_logistic)(8)
    density = density_of(program, x)
    leaves = density.program.unconstrained()

    def value() -> float:
        return float(newton.modes(density, tol=1e-15).log_evidence.sum())

    at_mode = newton.modes(density, tol=1e-15)
    with torch.enable_grad():
        total = newton.log_evidence(density, at_mode).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
    assert float(total.detach()) == pytest.approx(value(), rel=1e-10)
    step = 1e-4
    for p, gradient in zip(leaves.values(), gradients, strict=True):
        flat = p.data.view(-1)
        for i in range(len(flat)):
            before = float(flat[i])
            sides = []
            for sign in (1, -1, 2, -2):
                flat[i] = before + sign * step
                sides.append(value())
            flat[i] = before
            slope = (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step)
            assert float(gradient.view(-1)[i]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


# ---- the climb --------------------------------------------------------------------------------------------------------


def test_data_side_by_side_and_one_by_one_have_the_same_modes():
    x = local.draw_bent(12)
    density = density_of(local.bent, x)
    start = torch.zeros(12, 2, 1, dtype=torch.float64)
    together = newton.modes(density, start=start, tries=0)
    for i in range(12):
        alone = newton.modes(density.rows(slice(i, i + 1)), start=start[i : i + 1], tries=0)
        np.testing.assert_allclose(alone.log_evidence, together.log_evidence[i : i + 1], rtol=1e-10)
        assert torch.equal(alone.steps[0], together.steps[i])


def test_modes_carry_no_gradient_and_the_density_does():
    density = density_of(local.counts, local.draw_counts(5))
    with torch.enable_grad():
        modes = newton.modes(density)
        assert (
            not modes.log_evidence.requires_grad and not modes.mean.requires_grad and not modes.scale_tril.requires_grad
        )
        assert density.log_joint(modes.mean[:, 0]).requires_grad


def test_chunks_change_nothing(monkeypatch):
    density = density_of(local.counts, local.draw_counts(50))
    start = torch.zeros(50, 1, 1, dtype=torch.float64)
    whole = newton.modes(density, start=start, tries=0)
    monkeypatch.setattr("inference._density.local.NUMBERS", 2 * 16 * 7)
    assert len(list(density.chunks(1, newton.COPIES))) == 8
    pieces = newton.modes(density, start=start, tries=0)
    assert torch.equal(whole.mean, pieces.mean) and torch.equal(whole.log_evidence, pieces.log_evidence)


def square(x=None, size=None):
    """x | z ~ N(z², 0.1²): z and −z are as good, and between them is a saddle; x [n, 1]."""
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), 0.1).to_event(1), obs=x)


def test_a_saddle_is_left():
    density = density_of(square, np.full((5, 1), 1.5))
    modes = newton.modes(density, start=torch.zeros(5, 1, 1, dtype=torch.float64), tries=0)
    assert bool(modes.converged.all()) and not bool(modes.damped.any())
    np.testing.assert_allclose(modes.mean.abs(), np.sqrt(1.5 - 0.01 / 2), rtol=1e-6)


def needle(scale, noise, curve=torch.tanh):
    def program(x=None, size=None):
        with local.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            return pyro.sample("x", dist.Normal(curve(z / scale).unsqueeze(-1), noise).to_event(1), obs=x)

    return program


@pytest.mark.parametrize(("scale", "noise"), [(1.0, 1e-6), (1e6, 1e-3), (1e-6, 1.0), (1e8, 1e4)])
def test_units_do_not_matter(scale, noise):
    """Peaked and flat, in units that are huge and tiny: the mode, and the evidence of the same problem in plain units."""
    x = np.tanh(np.random.default_rng(6).normal(size=(20, 1)))
    modes = newton.modes(density_of(needle(scale, noise), x))
    assert bool(modes.converged.all()) and not bool(modes.damped.any())
    plain = newton.modes(density_of(needle(1.0, noise), x))
    np.testing.assert_allclose(modes.log_evidence, plain.log_evidence, rtol=1e-6)
    z = modes.mean[:, 0, 0].numpy() / scale
    gradient = -z + (x[:, 0] - np.tanh(z)) / noise**2 * (1 - np.tanh(z) ** 2)
    curvature = np.exp(-2 * np.log(modes.scale_tril[:, 0, 0, 0].numpy() / scale))
    assert np.all(np.abs(gradient) / np.sqrt(curvature) < 1e-4)


def test_a_start_far_out_where_everything_overflows():
    x = local.draw_counts(20)
    density = density_of(local.counts, x)
    start = torch.full((20, 1, 1), 300.0, dtype=torch.float64)  # e³⁰⁰ counts expected
    modes = newton.modes(density, start=start, tries=0, max_iter=500)
    assert bool(modes.converged.all())
    np.testing.assert_allclose(modes.log_evidence, newton.modes(density).log_evidence, rtol=1e-7)


def flat_top(x=None, size=None):
    """log p(z) = −z⁴ up to a constant: no curvature at the mode."""
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("quartic", 0.5 * z.square() - z**4)
        return pyro.sample("x", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1), obs=x)


def test_a_mode_without_curvature_is_damped_and_said_to_be():
    density = density_of(flat_top, np.zeros((4, 1)))
    modes = newton.modes(density, start=torch.zeros(4, 1, 1, dtype=torch.float64), tries=0)
    assert bool(modes.damped.all()) and bool(modes.log_evidence.isfinite().all())


def test_too_few_steps_are_seen(monkeypatch):
    monkeypatch.setattr(newton, "QUASI_STEPS", 0)
    density = density_of(local.logistic, local.draw_logistic(10))
    modes = newton.modes(density, start=torch.full((10, 1, 2), 5.0, dtype=torch.float64), tries=0, max_iter=1)
    assert not bool(modes.converged.any())


def test_a_kinked_decoder_ends():
    x = np.random.default_rng(7).normal(size=(30, linear.D))
    modes = newton.modes(density_of(linear.decoder(torch.relu), x))
    assert bool(modes.log_evidence.isfinite().all())


def nowhere(x=None, size=None):
    with local.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        inside = torch.where(z.isfinite(), torch.nan, z) if x is not None and bool((x > 90).any()) else z.exp()
        return pyro.sample("x", dist.Poisson(inside.unsqueeze(-1)).to_event(1), obs=x)


def test_a_density_that_is_nowhere_finite_is_an_error():
    task = task_of(nowhere, np.ones((3, 1)))
    broken = LocalDensity(task.program, task.structure, tensor([[1.0], [2.0], [99.0]]))
    with pytest.raises(ArithmeticError, match=r"log p\(x, z\) of row 0 .*not finite at any of 11 places"):
        newton.modes(broken)


def test_single_precision():
    x = local.draw_logistic(40)
    program = load(local.logistic, tensor(x).float())
    structure = describe(program, tensor(x).float())
    modes = newton.modes(LocalDensity(program, structure, tensor(x).float()))
    assert modes.mean.dtype == torch.float32 and bool(modes.converged.all())
    plain = newton.modes(density_of(local.logistic, x))
    np.testing.assert_allclose(modes.log_evidence, plain.log_evidence, rtol=1e-4)


# ---- what is made of them ----------------------------------------------------------------------------------------------


def test_draws_have_the_gaussians_moments_and_density():
    density = density_of(local.bent, local.draw_bent(6))
    modes = newton.modes(density)
    z, chosen = modes.draw(20_000)
    share = (chosen == 1).double().mean(0)
    np.testing.assert_allclose(share, modes.weights[:, 1], atol=4 * 0.5 / np.sqrt(20_000))
    expected = (modes.weights.unsqueeze(-1) * modes.mean).sum(1)
    error = z.std(0) / np.sqrt(20_000)
    assert bool(((z.mean(0) - expected).abs() < 5 * error).all())
    sd = modes.scale_tril[:, :, 0, 0].numpy()
    by_hand = stats.norm.logpdf(
        z[0, :, 0].numpy(), modes.mean.numpy()[np.arange(6), chosen[0], 0], sd[np.arange(6), chosen[0]]
    ) + np.log(modes.weights.numpy()[np.arange(6), chosen[0]])
    np.testing.assert_allclose(modes.log_prob(z, chosen)[0], by_hand, rtol=1e-10)


def test_khat_knows_a_good_proposal():
    density = density_of(linear.two_latents_that_add, np.random.default_rng(8).normal(size=(10, linear.D)))
    modes = newton.modes(density)
    z, chosen = modes.draw(200)
    khat, ess = psis((density.log_joint(z, chosen) - modes.log_prob(z, chosen)).numpy())
    assert np.all(khat == 0) and np.all(ess > 199.9)


def test_what_has_no_such_density():
    for program, says in ((local.both_kinds, "'level'"), (local.unbounded_choice, "'k'")):
        assert says in refusal(task_of(program, np.ones((5, 1))).structure)
    for program in (local.counts, local.bent, local.several):
        width = {local.counts: 1, local.bent: 2}.get(program, 3)
        assert refusal(task_of(program, np.ones((5, width))).structure) is None
