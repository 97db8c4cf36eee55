"""Particle filters along chains of local latents, against Kalman filters, forward algorithms, grids and brute force."""

from __future__ import annotations

from dataclasses import replace

import chain_programs as chains
import numpy as np
import profit_programs as programs
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, simulated, task_of
from scipy.stats import multivariate_normal

from inference import importance
from inference._method.estimates import Estimates
from inference._run.verify import verify
from inference._sampling import sequential, weights

RNG = np.random.default_rng(0)


def filtered(model, x, samples=2000, filters=40, seed=0, **options):
    task = task_of(model, x, **options)
    torch.manual_seed(seed)
    assert sequential.refusal(task.program, task.structure, task.x) is None
    return task, sequential.draw(task.program, task.structure, task.x, samples, filters)


def near(drawn, truth, filters=40, far=4.0):
    value, se = weights.log_mean(drawn.log_weights, filters)
    away = (value.numpy() + 0.5 * se.numpy() ** 2 - truth) / se.numpy()
    assert (abs(away) < far).all(), away


@pytest.mark.parametrize("late", [False, *in_full(True)])
def test_a_gaussian_chain_against_the_kalman_filter(late):
    T, x = 8, np.random.default_rng(0).normal(size=(3, 8))
    x[1, 3:5] = np.nan
    truth = [programs.kalman(row[None], [0.9] * T, [0.5] * T, 0.4) for row in x[[0, 2]]]
    seen = ~np.isnan(x[1])
    _, drawn = filtered(programs.gaussian_chain(T, late=late), x, 4000)
    part = weights.Draws(drawn.values, drawn.log_weights[:, [0, 2]], None, drawn.log_proposal[:, [0, 2]])
    near(part, np.array([total[0] for total, _ in truth]))
    share = drawn.log_weights.softmax(0)
    for row, (_, mean) in zip((0, 2), truth, strict=True):
        found = [float((share * drawn.values[f"z{t}"]).sum(0)[row]) for t in range(T)]
        assert abs(np.array(found) - mean[0]).max() < 0.25
    whole = np.linalg.inv(np.eye(T) - 0.9 * np.eye(T, k=-1)) * 0.5
    whole = (whole @ whole.T + 0.16 * np.eye(T))[np.ix_(seen, seen)]
    gap = weights.Draws(drawn.values, drawn.log_weights[:, [1]], None, drawn.log_proposal[:, [1]])
    near(gap, multivariate_normal.logpdf(x[1, seen], cov=whole))


@pytest.mark.parametrize("family", in_full("normal", "poisson", "categorical"))
def test_a_hidden_markov_model_against_the_forward_algorithm(family):
    model = chains.hmm(10, 3, family)
    x = simulated(model, np.ones((5, 10)), 4, seed=3)
    task, drawn = filtered(model, x)
    truth, each, _ = chains.forward_backward(x, {k: v.numpy() for k, v in task.theta().items()}, family)
    near(drawn, truth)
    last = ((drawn.values["z9"][..., None] == torch.arange(3)) * drawn.log_weights.softmax(0).unsqueeze(-1)).sum(0)
    assert abs(last.numpy() - each[:, -1]).max() < 0.1


@pytest.mark.full
def test_a_switching_chain_against_all_its_paths():
    x = np.random.default_rng(1).normal(size=(3, 8))
    truth = programs.switching_truth(x)[0]
    task, drawn = filtered(programs.switching(8), x, 4000, limit=16)
    near(drawn, truth)
    task.learn = False
    torch.manual_seed(1)
    fit = importance.fit(task, proposal="sequential", samples=4000)
    found = verify(task, fit)[1]
    away = found.value - truth.sum()
    assert away < 4 * found.se and (found.kind == "lower bound" or away > -4 * found.se)


@pytest.mark.full
def test_stochastic_volatility_on_a_grid():
    T, h = 40, np.zeros(40)
    for t in range(1, T):
        h[t] = 0.95 * h[t - 1] + 0.25 * RNG.normal()
    x = np.exp(h / 2) * RNG.normal(size=(2, T))
    x[0, 10:15] = np.nan
    task, drawn = filtered(programs.volatility(T), x)
    near(drawn, programs.volatility_truth(x))
    assert Estimates.of(drawn.log_weights, 40).evidence().kind == "estimate"
    task.learn = False
    few = importance.fit(task, proposal="sequential", samples=80)
    assert few.claimed.kind == "lower bound" and any("descend from fewer" in w for w in few.warnings)


def test_the_estimate_of_p_is_unbiased():
    x = RNG.normal(size=(1, 4))
    truth = float(programs.volatility_truth(x)[0])
    task = task_of(programs.volatility(4), x.repeat(2000, 0))
    torch.manual_seed(0)
    found = weights.log_mean(sequential.draw(task.program, task.structure, task.x, 4, 1).log_weights)[0]
    ratio = (found - truth).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 2000**0.5


def test_an_observation_of_everything_leaves_nothing_to_filter():
    def program(x=None, size=None):
        with user.rows(x, size):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a.sin(), 1.0))
            return pyro.sample("x", dist.Normal(torch.stack([a, b], -1), 1.0).to_event(1), obs=x)

    task = task_of(program, RNG.normal(size=(5, 2)))
    assert "are 'a', 'b', of which every observed site needs the last" in sequential.refusal(
        task.program, task.structure, task.x
    )


def test_a_wrong_graph_is_noticed():
    task = task_of(programs.volatility(6), RNG.normal(size=(3, 6)))
    lost = [replace(s, parents=()) if s.name == "x3" else s for s in task.structure.sites]
    structure = replace(task.structure, sites=tuple(lost))
    with pytest.raises(ArithmeticError, match="found not to depend on"):
        sequential.draw(task.program, structure, task.x, 200, 4)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["normal", "states"])
def test_pasts_that_are_drawn_again_are_the_posteriors(kind):
    T, rows = 20, 60
    if kind == "normal":
        x = np.random.default_rng(2).normal(size=(1, T))
        x[0, 4] = np.nan
        model = programs.gaussian_chain(T)
        seen, whole = ~np.isnan(x[0]), np.linalg.inv(np.eye(T) - 0.9 * np.eye(T, k=-1)) * 0.5
        prior = whole @ whole.T
        gain = prior[:, seen] @ np.linalg.inv(prior[np.ix_(seen, seen)] + 0.16 * np.eye(T - 1))
        mean, covariance = gain @ x[0, seen], prior - gain @ prior[seen]
        truth = mean[[0, 1, 10]], (covariance + np.outer(mean, mean))[[0, 1, 10], [1, 2, 11]]
    else:
        model = chains.hmm(T, 2, "poisson", seed=1)
        x = simulated(model, np.ones((3, T)), 1, seed=3)
        theta = {k: v.numpy() for k, v in task_of(model, x).theta().items()}
        _, each, _ = chains.forward_backward(x, theta, "poisson")
        truth = each[0, [0, 1, 10], 1], None
    task = task_of(model, x.repeat(rows, 0))
    torch.manual_seed(0)
    before = sequential.draw(task.program, task.structure, task.x, 400, 1)
    torch.manual_seed(0)
    after = sequential.draw(task.program, task.structure, task.x, 400, 1, least_lines=10**6)
    torch.testing.assert_close(before.log_weights, after.log_weights)
    assert (
        sequential.lines(after.origin) > 5 * sequential.lines(before.origin)
    ).double().mean() > 0.9 or kind == "states"
    share = after.log_weights.softmax(0)
    for k, t in enumerate((0, 1, 10)):
        z, following = after.values[f"z{t}"], after.values[f"z{t + 1}"]
        for found, value in ((z, truth[0]), (z * following, truth[1])):
            if value is not None:
                each = (share * found).sum(0)  # one filter for each row
                assert abs(float(each.mean()) - value[k]) < 4 * float(each.std()) / rows**0.5 + 1e-3


@pytest.mark.full
def test_learning_by_the_filter():
    def program(x=None, size=None):
        noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        with user.rows(x, size):
            z, out = 0.0, []
            for t in range(6):
                z = pyro.sample(f"z{t}", dist.Normal(0.9 * z, noise))
                out.append(pyro.sample(f"x{t}", dist.Normal(z, 0.4), obs=None if x is None else x[:, t]))
            return torch.stack(out, -1)

    x = RNG.normal(size=(40, 6)) * 0.8
    torch.manual_seed(0)
    fit = importance.fit(task_of(program, x), proposal="sequential", particles=200, epochs=60, lr=0.03)
    grid = np.linspace(0.2, 1.2, 101)
    best = grid[np.argmax([programs.kalman(x, [0.9] * 6, [s] * 6, 0.4)[0].sum() for s in grid])]
    assert abs(float(fit.parameters["noise"]) - best) < 0.06
