"""log p(x) with the global latents integrated out, against closed forms and quadrature; and labels that can be exchanged."""

from __future__ import annotations

import numpy as np
import nuts_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import test_elimination
import torch
from helpers import task_of
from scipy import special, stats

from inference import ais, importance, infer, nuts, run
from inference._globals import bridge as bridging
from inference._globals.labels import Labels
from inference._globals.starts import starts
from inference._globals.target import Target
from inference._sampling.student import Mixture
from zoo._errors import Refusal

COINS = np.array([3.0, 5.0, 2.0, 9.0])[:, None]
EIGHT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])[:, None]
FEW = np.array([-2.5, -1.8, -2.2, 1.5, 2.4, 2.0, 3.1])[:, None]
BITS = np.array([[0.0, 1, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]] * 3)


def mixture(x=None, size=None):
    """Two normals whose priors know no order."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with programs.rows(x, size):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def uneven(x=None, size=None):
    """The same but for the prior of the weights."""
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 1.001])))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with programs.rows(x, size):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def shifted(x=None, size=None, shift=0.0):
    """Labels that the priors of the means tell apart by 0.16 nats at shift 0.02, beside a column of −5e5 nats a row."""
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-shift, shift]), 1.0).to_event(1))
    with programs.rows(x, size):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        mean = torch.stack([mu[z], 0 * mu[z]], -1)
        return pyro.sample("x", dist.Normal(mean, torch.tensor([0.5, 1.0])).to_event(1), obs=x)


def chain(x=None, size=None):
    """Both axes of the transitions, and of the means, number the states."""
    moves = pyro.sample("moves", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with programs.rows(x, size):
        one = pyro.sample("one", dist.Categorical(torch.ones(3) / 3))
        two = pyro.sample("two", dist.Categorical(moves[one]))
        mean = torch.stack(torch.broadcast_tensors(mu[one], mu[two]), -1)
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def of_coins() -> float:
    k, n = COINS.sum(), 10 * len(COINS)
    return special.betaln(2 + k, 3 + n - k) - special.betaln(2, 3) + np.log(special.comb(10, COINS)).sum()


def of_schools() -> float:
    mu, tau = np.linspace(-30, 40, 301), np.geomspace(1e-4, 3000, 2001)
    sd = np.sqrt(tau**2 + 100)[None, :, None]
    log_p = stats.norm.logpdf(EIGHT[:, 0], mu[:, None, None], sd).sum(-1)
    log_p += stats.norm.logpdf(mu, 0, 5)[:, None] + stats.halfcauchy.logpdf(tau, 0, 5)
    return float(np.log(np.trapezoid(np.trapezoid(np.exp(log_p), tau, axis=1), mu)))


def of_mixture() -> float:
    grid, weights = np.linspace(-12, 12, 241), (np.arange(100) + 0.5) / 100
    one, prior = stats.norm.logpdf(FEW[:, 0], grid[:, None], 1), stats.norm.logpdf(grid, 0, 3)
    each = [
        special.logsumexp(
            np.logaddexp(np.log(w) + one[:, None], np.log1p(-w) + one[None]).sum(-1) + prior[:, None] + prior
        )
        for w in weights
    ]
    return float(special.logsumexp(each) - np.log(100) + 2 * np.log(grid[1] - grid[0]))


def of_logistic(x: np.ndarray) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    mu, tau = np.linspace(-6, 6, 201), np.linspace(0.001, 14, 300)
    logits = mu[:, None, None] + tau[:, None] * nodes
    log_p = stats.norm.logpdf(mu, 0, 5)[:, None] + stats.halfnorm.logpdf(tau, 0, 3)
    for k, rows in zip(*np.unique(x.sum(1), return_counts=True), strict=True):
        each = k * special.log_expit(logits) + (5 - k) * special.log_expit(-logits)
        log_p = log_p + rows * special.logsumexp(each, axis=2, b=weights / weights.sum())
    return float(np.log(np.trapezoid(np.trapezoid(np.exp(log_p), tau, axis=1), mu)))


def near(claimed, truth: float, most: float = 0.15) -> None:
    assert claimed.kind == "estimate" and 0 < claimed.se < most
    assert abs(claimed.value - truth) < 3 * claimed.se


# -------------------------------------------------------------------------------------------------------- importance


def test_a_beta_binomial_by_importance():
    fit = importance.fit(task_of(programs.coins, COINS))
    near(fit.claimed, of_coins())
    truth = stats.beta(2 + COINS.sum(), 3 + 40 - COINS.sum())
    assert abs(fit.parameters["p"] - truth.mean()) < 4 * truth.std() / fit.notes["effective_draws"] ** 0.5
    assert abs(fit.standard_errors["p"] / truth.std() - 1) < 0.15 and fit.notes["khat"] < 0.7


def test_both_modes_of_two_roots_are_found():
    fit = importance.fit(task_of(programs.two_roots, np.full((1, 1), 25.0)))
    a = np.linspace(-60, 60, 100_001)
    near(fit.claimed, np.log(np.trapezoid(np.exp(stats.norm.logpdf(25, a**2) + stats.norm.logpdf(a, 0, 10)), a)))
    assert fit.notes["modes"] == 2 and 0.3 < (fit.draws["a"] > 0).mean() < 0.7


@pytest.mark.full
def test_row_latents_that_are_not_exact_are_proposed_given_the_globals():
    fit = importance.fit(task_of(programs.logistic, BITS))
    near(fit.claimed, of_logistic(BITS))
    assert "given each draw of the globals" in fit.notes["nested"]
    assert fit.means["b"].shape == (12,) and fit.draws["b"].shape == (200, 12)


@pytest.mark.full
@pytest.mark.parametrize("model", [programs.schools, programs.centred])
def test_eight_schools_by_importance(model):
    near(importance.fit(task_of(model, EIGHT), samples=10_000).claimed, of_schools())


@pytest.mark.full
def test_it_starts_from_the_guide_of_another_run(tmp_path):
    run(programs.coins, COINS, "svi", out=tmp_path / "run", epochs=100)
    found = infer(tmp_path / "run", "importance", model=programs.coins)
    near(found.claimed, of_coins())
    assert found.fit.notes["proposal"] == "guide" and abs(found.verified.value - of_coins()) < 0.05


def test_it_says_what_it_cannot_serve():
    assert "'k' is discrete" in importance.refusal(task_of(programs.counted, np.ones((3, 1))).structure)
    with pytest.raises(Refusal, match="one row at a time"):
        importance.fit(task_of(programs.coins, COINS), proposal="prior")
    with pytest.raises(Refusal, match="zoo infer RUN"):
        importance.fit(task_of(programs.coins, COINS), proposal="guide")


@pytest.mark.slow
def test_weights_without_a_mean_make_a_lower_bound():
    fit = importance.fit(task_of(programs.improper, np.ones((4, 1))), samples=300)
    assert fit.claimed.kind == "lower bound" and fit.converged is False
    assert "cannot be trusted" in fit.warnings[0]


def test_the_mixtures_density_is_that_of_its_draws():
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[[4.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    mixture = Mixture.of(torch.tensor([[0.0, 0.0], [5.0, 1.0]], dtype=torch.float64), covariance)
    truth = [
        stats.multivariate_t(mixture.centers[k].numpy(), covariance[k].numpy(), df=mixture.freedom) for k in range(2)
    ]
    points = mixture.draw(2000, generator)
    each = np.stack([t.logpdf(points.numpy()) for t in truth])
    np.testing.assert_allclose(mixture.log_prob(points), special.logsumexp(each, 0) - np.log(2), rtol=1e-9)
    inside = (points.abs() < 3).all(1).double().mean()
    grid = torch.cartesian_prod(*2 * [torch.linspace(-3, 3, 241, dtype=torch.float64)])
    assert abs(inside - mixture.log_prob(grid).exp().mean() * 36) < 0.05


# ------------------------------------------------------------------------------------------------------------- bridge


def test_a_bridge_between_two_known_densities():
    """From draws of N(0, 1), times e⁵, to a normal fitted to others of them: log of the total is 5."""
    rng = np.random.default_rng(0)
    theirs, ours = rng.normal(size=(4, 500)), rng.normal(0.3, 1.2, 2000)
    ratio = [5 + stats.norm.logpdf(v) - stats.norm.logpdf(v, 0.3, 1.2) for v in (theirs, ours)]
    near(bridging._bridged(*ratio).evidence, 5.0)
    far = [5 + stats.norm.logpdf(v) - stats.norm.logpdf(v, 9, 1) for v in (theirs, ours + 8.7)]
    assert bridging._bridged(*far).evidence is None


@pytest.mark.slow
def test_bridges_of_chains():
    fit = nuts.fit(task_of(programs.coins, COINS), warmup=300, samples=1000)
    near(fit.claimed, of_coins())
    fit = nuts.fit(task_of(programs.schools, EIGHT), warmup=500, samples=1000)
    assert fit.converged
    near(fit.claimed, of_schools())


def test_chains_that_did_not_converge_claim_nothing():
    fit = nuts.fit(task_of(programs.two_roots, np.full((1, 1), 25.0)), warmup=40, samples=60)
    assert fit.claimed is None and "did not converge" in fit.notes["evidence"]


# ---------------------------------------------------------------------------------------------------------- annealing


def test_a_beta_binomial_by_annealing():
    fit = ais.fit(task_of(programs.coins, COINS), temperatures=40)
    near(fit.claimed, of_coins())


@pytest.mark.slow
def test_annealing_of_row_latents_and_globals():
    near(ais.fit(task_of(programs.logistic, BITS)).claimed, of_logistic(BITS), 0.3)
    near(ais.fit(task_of(programs.schools, EIGHT)).claimed, of_schools())


@pytest.mark.full
def test_thirty_binary_causes_by_annealing():
    program, *_ = test_elimination.noisy_readings(30)
    task = task_of(program, np.random.default_rng(2).normal(size=(4, 15)))
    exact = task.engine.per_datum()
    fit = ais.fit(task, temperatures=100)
    assert fit.claimed.kind == "estimate" and len(task.structure.discrete_locals) == 30
    near(fit.claimed, float(exact.sum()), 0.3)
    assert (abs(fit.claimed.per_datum - exact.numpy()) < 4 * fit.claimed.se_per_datum).all()
    share = task.engine.marginals(task.engine.responsibilities())
    for name, found in fit.probabilities.items():
        assert abs(found - share[name].numpy()).max() < 5 * 0.5 / fit.ess.min() ** 0.5


def hidden_pair(x=None, size=None):
    """Two rare causes that explain what is seen together, and worse than none alone."""
    with programs.rows(x, size):
        a = pyro.sample("a", dist.Bernoulli(1e-4))
        b = pyro.sample("b", dist.Bernoulli(1e-4))
        return pyro.sample("x", dist.Normal(8 * a * b - 8 * (a + b - 2 * a * b), 1.0), obs=x)


def test_a_mode_that_no_chain_finds_makes_no_estimate():
    fit = ais.fit(task_of(hidden_pair, np.full((2, 1), 8.0)), temperatures=20, chains=120)
    assert fit.claimed.kind == "lower bound" and any("never visited" in w for w in fit.warnings)


# ------------------------------------------------------------------------------------------------------------- labels


def labels_of(model, x) -> Labels:
    target = Target(task_of(model, x))
    return Labels(target, starts(target))


def test_exchangeable_labels_are_found():
    assert labels_of(mixture, FEW).notes() == {
        "exchangeable": [{"labels": 2, "axes": ["w, axis -1", "mu, axis -1"]}],
        "relabellings": 2,
    }
    assert labels_of(uneven, FEW).count == 1 and labels_of(programs.two_means, FEW).count == 1
    (group,) = labels_of(chain, np.ones((4, 2))).groups
    assert group.size == 3 and set(group.axes) == {("moves", -1), ("moves", -2), ("mu", -1)}


def test_all_labellings_of_a_mixture_are_in_the_evidence():
    truth = of_mixture()
    fit = importance.fit(task_of(mixture, FEW), samples=2000)
    near(fit.claimed, truth)
    assert abs(abs(fit.parameters["mu"]).mean() - 2.1) < 0.2  # of one labelling: of both the means are near 0
    sure = fit.probabilities["z"].max(1)
    assert sure.min() > 0.9


@pytest.mark.full
@pytest.mark.parametrize("method", ["nuts", "ais", "laplace"])
def test_every_method_counts_the_labellings(method):
    found, truth = run(mixture, FEW, method, seed=1), of_mixture()
    assert abs(found.verified.value - truth) < 4 * found.verified.se
    assert abs(abs(found.parameters["mu"]).mean() - 2.1) < 0.2
    if method == "laplace":
        assert abs(found.claimed.value - truth) < 0.2 and "log 2 is added" in found.notes["labels_in_the_claim"]
    else:
        near(found.claimed, truth)


@pytest.mark.parametrize(("shift", "count"), [(0.0, 2), (0.02, 1), (1e-4, 1)])
def test_labels_are_told_apart_however_large_the_density_is(shift, count):
    x = np.stack([[-2.0, 2.0, -1.8, 2.1], np.full(4, 1000.0)], 1)
    target = Target(task_of(shifted, x, shift=shift))
    at = torch.tensor([[-2.0, 2.0], [-1.5, 1.7]], dtype=torch.float64)
    assert target.log_density(at).max() < -2e6 + 10
    assert Labels(target, at).count == count


@pytest.mark.full
def test_labels_of_a_run_in_float32_are_counted():
    x = np.concatenate([np.random.default_rng(s).normal(m, 1, (150, 1)) for s, m in ((0, -2), (1, 2.2))])
    single, double = (run(mixture, x, method="laplace", dtype=d) for d in ("float32", "float64"))
    assert single.fit.notes["relabellings"] == 2
    assert abs(single.verified.value - double.verified.value) < 0.02
