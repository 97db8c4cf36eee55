"""The interface of exact engines: which one serves a program, and what all of them promise."""

from __future__ import annotations

import linear_programs as linear
import local_programs as local
import numpy as np
import pytest
import torch
from helpers import hide, task_of

from inference._exact.compressed import Compressed
from inference._exact.engine import Engine
from inference._exact.enumeration import Enumeration
from inference._exact.linear import LinearGaussian
from inference._exact.quadratic import Quadratic
from inference._families._family import Floor

RNG = np.random.default_rng(5)
X = RNG.normal(size=(40, 2)) @ RNG.normal(size=(2, 5)) + RNG.normal(size=(40, 5))
SERVED = {
    "gmm": ("gmm", X, Enumeration),
    "factor_analysis": ("factor_analysis", X, Compressed),
    "with holes": ("factor_analysis", hide(X, 0.2), LinearGaussian),
    "a mixture": (linear.mixture_of_factor_analysers, X, LinearGaussian),
    "rows of their own": (linear.rows_of_their_own_noise, X, Quadratic),
}


def served(name: str):
    model, x, _ = SERVED[name]
    options = {"gmm": {"components": 2}, "factor_analysis": {"latents": 2}}
    return task_of(model, x, **(options[model] if isinstance(model, str) else {}))


@pytest.mark.parametrize("name", SERVED)
def test_which_engine_serves_a_program(name):
    assert type(served(name).exact) is SERVED[name][2]


def test_none_where_the_posterior_is_not_exact():
    task = task_of(local.counts, np.abs(np.round(X[:, :1])))
    assert task.exact is None
    with pytest.raises(TypeError, match="is not exact"):
        task.engine  # noqa: B018


@pytest.mark.parametrize("name", SERVED)
def test_a_step_of_em_by_the_interface_alone(name):
    task = served(name)
    engine = task.engine
    assert isinstance(engine, Engine) and engine.size >= 1
    plan, before = engine.plan({}), engine.e_step()
    assert set(plan.closed) | set(plan.numeric) == set(task.theta())
    assert not engine.broken(plan, engine.look())
    engine.m_step(plan, before, {}, {}, Floor(1e-6, set()))
    after = engine.e_step()
    assert after.log_joint > before.log_joint
    assert after.log_joint == pytest.approx(float(engine.per_datum().sum()), rel=1e-9)
    assert after.log_joint == pytest.approx(float(engine.per_datum(own=True).sum()), rel=1e-9)
    assert after.log_joint == pytest.approx(float(engine.log_evidence()[0].detach()), rel=1e-9)


@pytest.mark.parametrize("name", SERVED)
def test_what_leaves_the_closed_forms_is_numeric(name):
    plan = served(name).engine.plan({})
    for theta in plan.closed:
        less = plan.without({theta})
        assert theta not in less.closed and less.numeric == (*plan.numeric, theta)
    assert plan.without({"another"}) is plan


@pytest.mark.parametrize("name", [n for n in SERVED if n != "gmm"])
def test_points_have_the_posteriors_mean_and_spread(name):
    engine = served(name).engine
    means, deviations = engine.summary()
    rows = slice(3, 12)
    (site,) = means
    total = second = torch.zeros(())
    for weights, values in engine.points(rows):
        z = values[site].reshape(9, -1)
        total, second = total + weights.unsqueeze(1) * z, second + weights.unsqueeze(1) * z.square()
    torch.testing.assert_close(total, means[site][rows].reshape(9, -1))
    torch.testing.assert_close((second - total.square()).sqrt(), deviations[site][rows].reshape(9, -1))


def test_points_of_an_enumeration_are_its_assignments():
    engine = served("gmm").engine
    weights = torch.stack([w for w, _ in engine.points(slice(0, 40))], 1)
    torch.testing.assert_close(weights, engine.responsibilities())
