"""Estimates: unbiased logarithms whose errors cover, and lower bounds where the weights cannot be trusted."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of
from scipy import special, stats

from inference import ais, importance, run
from inference._density.guide import ModeGuide
from inference._density.local import LocalDensity
from inference._density.modes import all_modes, with_wide
from inference._method.estimates import Estimates
from inference._sampling import weights
from zoo._errors import Refusal


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def seeded(seed, call):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()


def sampled(program, x, seed=0, **options):
    task = task_of(program, x)
    task.learn = False
    return seeded(seed, lambda: importance.fit(task, **options))


def quadrature(log_joint, low, high, size=40_001):
    g = np.linspace(low, high, size)
    return special.logsumexp(log_joint(g)) + np.log(g[1] - g[0])


# ---- many rows ------------------------------------------------------------


def five(x=None, size=None):
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(torch.ones(5) / 5))
        return pyro.sample("x", dist.Normal(4.0 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)


def test_the_error_covers_over_seeds_and_rows():
    """Uncorrected, the logarithm's bias of ½ se² a row is several standard errors of the total."""
    rng = np.random.default_rng(21)
    x = (4 * rng.integers(0, 5, 1000) + rng.normal(size=1000))[:, None]
    truth = special.logsumexp(stats.norm.logpdf(x, 4 * np.arange(5)) + np.log(0.2), axis=1).sum()
    task = task_of(five, x)
    z, raw = [], []
    for seed in range(40):
        drawn = seeded(seed, lambda: weights.draw(task.program, task.structure, task.x, None, 200))
        told = Estimates.of(drawn.log_weights)
        value, se = float(told.corrected.sum()), float(told.se.square().sum().sqrt())
        z.append((value - truth) / se)
        raw.append((float(told.log_mean.sum()) - truth) / se)
    assert np.mean(np.abs(z) < 1.96) >= 0.875 and abs(np.mean(z)) < 4 / np.sqrt(40)
    assert np.mean(raw) < np.mean(z) - 0.8


def test_what_is_a_lower_bound_holds_the_uncorrected_value():
    log_w = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = Estimates.of(log_w)
    found = told.evidence()
    assert found.kind == "lower bound" and found.se > 0
    np.testing.assert_allclose(found.per_datum, weights.log_mean(log_w)[0])
    assert "fewer than 100 effective draws for 4 of 4 rows" in told.warning("it", "")


def test_an_exact_proposal_is_an_estimate():
    told = Estimates.of(torch.full((200, 3), -1.5, dtype=torch.float64))
    found = told.evidence()
    assert found.kind == "estimate" and found.se < 1e-12 and told.warning("it", "") is None
    np.testing.assert_allclose(found.per_datum, -1.5)


def test_weights_that_are_all_zero():
    told = Estimates.of(torch.full((200, 2), -torch.inf, dtype=torch.float64))
    assert told.evidence().kind == "lower bound" and told.evidence().value == -np.inf


# ---- what was never visited ------------------------------------------------------------


def rare(x=None, size=None):
    with rows(x, size):
        k = pyro.sample("k", dist.Bernoulli(0.001))
        return pyro.sample("x", dist.Normal(20.0 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_component(seed):
    """Equal weights are no good sign: k = 1 was not drawn for most rows, and holds all of the last."""
    x = np.r_[np.random.default_rng(9).normal(size=49), 20.0][:, None]
    fit = run(rare, x, "importance", proposal="prior", seed=seed)
    assert fit.claimed.kind == "lower bound" and fit.verified.kind == "exact"
    assert any("others were never visited" in w and "of 50" in w for w in fit.warnings)
    assert np.isinf(fit.khat).any()


def test_states_that_were_all_visited_are_no_alarm():
    x = np.repeat([[0.0], [20.0]], 20, axis=0)

    def apart(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            return pyro.sample("x", dist.Normal(20.0 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    fit = run(apart, x, "importance", proposal="prior")
    assert fit.claimed.kind == "estimate" and not fit.warnings
    assert abs(fit.claimed.value - fit.verified.value) < 4 * fit.claimed.se


def test_draws_of_many_bits_that_are_all_the_same():
    def bits(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((30,), 0.5)).to_event(1))
            return pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    task = task_of(bits, np.zeros((2, 1)))
    z = torch.zeros(200, 2, 30, dtype=torch.float64)
    z[:, 1] = torch.bernoulli(torch.full((200, 30), 0.5, dtype=torch.float64))
    alone = weights.lone_states({"z": z}, torch.zeros(200, 2, dtype=torch.float64), task.structure, task.x)
    assert alone.tolist() == [True, False]


def test_a_far_row_among_many_bits():
    """A posterior of one state among 2^25, and a guide that has collapsed on another."""
    rng = np.random.default_rng(3)
    W = torch.as_tensor(rng.normal(size=(25, 12)))

    def factorial(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((25,), 0.3, dtype=W.dtype)).to_event(1))
            return pyro.sample("x", dist.Normal(z @ W, 0.5).to_event(1), obs=x)

    z = (rng.random((6, 25)) < 0.3).astype(float)
    fit = run(factorial, z @ W.numpy() + 0.5 * rng.normal(size=(6, 12)), "importance", proposal="prior", samples=400)
    assert fit.claimed.kind == fit.verified.kind == "lower bound"
    assert any(w.startswith("the evidence claimed is a lower bound") for w in fit.warnings)
    assert any(w.startswith("the verified evidence is a lower bound") for w in fit.warnings)


# ---- scales and masks ------------------------------------------------------------


def scaled(scale):
    def model(x=None, size=None):
        with rows(x, size):
            with pyro.poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    return model


def masked(x=None, size=None):
    """The prior of z counts only where x > 0; elsewhere z is flat."""
    with rows(x, size):
        on = torch.ones(size, dtype=torch.bool) if x is None else x[:, 0] > 0
        with pyro.poutine.mask(mask=on):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
        return pyro.sample("x", dist.StudentT(5.0, z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def in_itself(x=None, size=None):
    """The same by a distribution with a mask."""
    with rows(x, size):
        on = torch.ones(size, dtype=torch.bool) if x is None else x[:, 0] > 0
        z = pyro.sample("z", dist.Normal(0.0, 2.0).mask(on))
        return pyro.sample("x", dist.StudentT(5.0, z.unsqueeze(-1), 1.0).to_event(1), obs=x)


X = np.random.default_rng(2).normal(size=(20, 1)) * 1.5


def scaled_truth(scale):
    def one(v):
        return quadrature(lambda g: stats.norm.logpdf(v, g, 1) + scale * stats.gamma.logpdf(g, 2.0), 1e-9, 40)

    return np.array([one(v) for v in X[:, 0]])


def far(estimate, se, truth):
    return abs(np.sum(estimate) - truth.sum()) / (np.sqrt(np.square(se).sum()) + 1e-4)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("options", [{"proposal": "prior"}, {"proposal": "laplace"}], ids=["prior", "laplace"])
def test_a_scaled_latent_in_importance(scale, options):
    fit = sampled(scaled(scale), X, samples=4000, **options)
    assert far(fit.claimed.per_datum, fit.claimed.se_per_datum, scaled_truth(scale)) < 4


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_scaled_latent_in_ais(scale):
    task = task_of(scaled(scale), X)
    fit = seeded(0, lambda: ais.fit(task, temperatures=60, chains=150, leapfrog=4))
    assert far(fit.claimed.per_datum, fit.claimed.se_per_datum, scaled_truth(scale)) < 4


def test_a_guide_with_a_defensive_share():
    """The share from the prior is weighed by what it was drawn from, whatever the scale."""
    fit = run(scaled(0.3), X, "importance", epochs=80, samples=2000, defensive=0.3)
    assert far(fit.claimed.per_datum, fit.claimed.se_per_datum, scaled_truth(0.3)) < 4


@pytest.mark.parametrize("program", [masked, in_itself])
def test_a_masked_latent_is_refused_by_name(program):
    with pytest.raises(Refusal, match="the latent 'z' is masked"):
        sampled(program, X, samples=400, proposal="laplace", defensive=0.3)


# ---- several modes ------------------------------------------------------------


def wells(x=None, size=None):
    """Three modes at about −√x, 0, √x, of different weights, and a second latent that goes with the first."""
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.5, 4.0))
        y = pyro.sample("y", dist.Normal(torch.sin(z), 0.5))
        loc = z**3 - 9 * z + y
        return pyro.sample("x", dist.Normal(loc.unsqueeze(-1), 1.5).to_event(1), obs=x)


def wells_truth(x):
    """y integrates out: x ~ N(z³ − 9z + sin z, 0.5² + 1.5²)."""
    return np.array(
        [
            quadrature(
                lambda g, v=v: (
                    stats.norm.logpdf(v, g**3 - 9 * g + np.sin(g), np.sqrt(2.5)) + stats.norm.logpdf(g, 0.5, 4)
                ),
                -12,
                12,
            )
            for v in x[:, 0]
        ]
    )


def test_three_modes_are_found_and_mixed():
    x = np.random.default_rng(5).normal(size=(15, 1)) * 2
    task, truth = task_of(wells, x), wells_truth(x)
    density = LocalDensity(task.program, task.structure, task.x)
    modes = seeded(0, lambda: all_modes(density))
    assert modes.log_evidence_each.isfinite().sum(1).min() >= 3
    assert np.abs(modes.log_evidence.numpy() - truth).max() < 0.2
    z, a = seeded(1, lambda: modes.draw(4000))
    told = Estimates.of(density.log_joint(z, a) - modes.log_prob(z, a))
    assert abs(told.corrected.sum() - truth.sum()) < 4 * torch.hypot(told.se.square().sum().sqrt(), told.unsure.sum())
    guide = ModeGuide(density, modes)  # the same mixture, site by site
    drawn = seeded(2, lambda: weights.draw(task.program, task.structure, task.x, guide, 4000, 0.1))
    told = Estimates.of(drawn.log_weights)
    assert far(told.corrected.numpy(), told.se.numpy(), truth) < 4 and not bool(told.doubtful.any())
    drawn = seeded(2, lambda: weights.draw(task.program, task.structure, task.x, guide, 4000))
    own = modes.log_prob(torch.stack([drawn.values["z"], drawn.values["y"]], -1), torch.zeros(4000, 15).long())
    torch.testing.assert_close(drawn.log_proposal, own)


def test_wide_gaussians_beside_those_at_the_modes():
    """A mixture of both, by SciPy; where the posterior has heavier tails than a Gaussian, k-hat falls."""

    def tailed(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.StudentT(3.0, torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    task = task_of(tailed, np.random.default_rng(0).normal(size=(20, 3)) * 2)
    density = LocalDensity(task.program, task.structure, task.x)
    narrow = seeded(0, lambda: all_modes(density))
    wide, each = with_wide(narrow, density), torch.zeros(50, 20, dtype=torch.long)
    z = 2 * torch.randn(50, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, cov = narrow.mean[3, 0].numpy(), (narrow.scale_tril[3, 0] @ narrow.scale_tril[3, 0].mT).numpy()
    two = [stats.multivariate_normal(mean, s**2 * cov).pdf(z[:, 3].numpy()) for s in (1, 1 + 3 / 3**0.5)]
    assert wide.log_prob(z, each)[:, 3].exp().numpy() == pytest.approx(0.75 * two[0] + 0.25 * two[1])

    def told(q):
        draws, chosen = q.draw(1000)
        return Estimates.of(density.log_joint(draws, chosen) - q.log_prob(draws, chosen))

    before, after = (seeded(1, lambda q=q: told(q)).khat for q in (narrow, wide))
    assert float(after.mean()) < float(before.mean()) - 0.2


def test_a_discrete_site_and_modes_of_each():
    def signs(x=None, size=None):
        with rows(x, size):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 3.0).to_event(1))
            return pyro.sample("x", dist.Normal(z**2 + k.unsqueeze(-1), 0.7).to_event(1), obs=x)

    x = np.abs(np.random.default_rng(6).normal(size=(8, 2))) * 3 + 3
    one = np.array(
        [[[quadrature(lambda g, v=v, k=k: stats.norm.logpdf(v, g**2 + k, 0.7) + stats.norm.logpdf(g, 0, 3), -15, 15)
           for v in row] for row in x] for k in (0, 1)]
    ).sum(-1)  # fmt: skip
    truth = special.logsumexp(one + np.log([[0.2], [0.8]]), axis=0)
    task = task_of(signs, x)
    density = LocalDensity(task.program, task.structure, task.x)
    modes = seeded(0, lambda: all_modes(density))
    assert modes.each >= 4  # four signs under each k
    posterior = special.softmax(one + np.log([[0.2], [0.8]]), axis=0).T
    assert np.abs(modes.assignment_weights.numpy() - posterior).max() < 0.05
    drawn = seeded(1, lambda: weights.draw(task.program, task.structure, task.x, ModeGuide(density, modes), 3000))
    told = Estimates.of(drawn.log_weights)
    assert far(told.corrected.numpy(), told.se.numpy(), truth) < 4


def test_one_mode_stays_one():
    def logistic(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            return pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(*z.shape, 3)).to_event(1), obs=x)

    x = (np.random.default_rng(7).random((40, 3)) < 0.5).astype(float)
    task = task_of(logistic, x)
    modes = seeded(0, lambda: all_modes(LocalDensity(task.program, task.structure, task.x)))
    assert modes.each == 1 and not bool(modes.several.any())


def test_heavy_tails():
    """A Cauchy prior under a Gaussian proposal at the mode: an estimate covers, or is called a bound."""

    def cauchy(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            return pyro.sample("x", dist.StudentT(3.0, z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = np.random.default_rng(8).standard_cauchy((30, 1)) * 2
    g = np.tan(np.linspace(-np.pi / 2 + 1e-6, np.pi / 2 - 1e-6, 400_001))  # the prior's own quantiles
    truth = np.array([np.log(np.mean(stats.t.pdf(v, 3, g, 1))) for v in x[:, 0]])
    for options in ({"defensive": 0.0}, {"defensive": 0.3}, {"proposal": "prior"}):
        fit = sampled(cauchy, x, samples=2000, **({"proposal": "laplace"} | options))
        off = (fit.claimed.value - truth.sum()) / fit.claimed.se
        assert off < 4
        assert fit.claimed.kind == "lower bound" or off > -4


def test_a_program_without_derivatives_is_sampled():
    """Nothing but draws is needed where the prior proposes and there is nothing to learn."""

    def step(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.heaviside(z, torch.zeros_like(z)).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    from dataclasses import replace

    from inference._method.task import Task
    from inference._run import verify
    from zoo._program.describe import describe
    from zoo._program.load import load

    def flat(x=None, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal((z > 0).to(z.dtype).unsqueeze(-1), 0.5).to_event(1), obs=x)

    x = torch.as_tensor(np.random.default_rng(0).normal(size=(30, 1)))
    structure = replace(describe(load(flat, x), x), exact="no", reason="it has no derivative in 'z'")
    task = Task(load(step, x), structure, x, learn=False, quiet=True)
    truth = np.logaddexp(*(np.log(0.5) + stats.norm.logpdf(x[:, 0], k, 0.5) for k in (0, 1))).sum()
    fit = seeded(0, lambda: importance.fit(task, proposal="prior"))
    fit, found = seeded(1, lambda: verify.verify(task, fit))
    for evidence in (fit.claimed, found):
        assert evidence.kind == "estimate" and abs(evidence.value - truth) < 4 * evidence.se
