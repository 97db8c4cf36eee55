"""A few points in place of the data: the same moments and evidence as a pass over all rows, where that can be."""

from __future__ import annotations

import linear_programs as linear
import numpy as np
import pytest
import torch
from helpers import hide, task_of

from inference import em, laplace
from inference._exact.choose import normal_engine
from inference._exact.compressed import Compressed

RNG = np.random.default_rng(3)
SHAPED = RNG.normal(size=(90, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(90, 5)) + 50.0
PROGRAMS = {
    "ppca": ("ppca", SHAPED),
    "factor_analysis": ("factor_analysis", SHAPED),
    "random_intercept": (linear.random_intercept, SHAPED),
    "two_latents_that_add": (linear.two_latents_that_add, SHAPED),
    "correlated_noise": (linear.correlated_noise, SHAPED),
}


def task(name: str):
    model, x = PROGRAMS[name]
    return task_of(model, x, **({"latents": 2} if isinstance(model, str) else {}))


def both(it):
    """The engine with a few points in place of the data, and the one without."""
    assert isinstance(it.exact, Compressed)
    return it.exact, normal_engine(it.program, it.structure, it.x)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_sums_are_those_over_the_data(name):
    small, engine = both(task(name))
    mine, full = small.e_step(), engine.e_step()
    assert float(mine.per_datum.sum()) == pytest.approx(float(full.per_datum.sum()), rel=1e-12)
    torch.testing.assert_close(mine.counts, full.counts)
    torch.testing.assert_close(mine.zz, full.zz, rtol=1e-9, atol=1e-9)
    assert mine.sites.keys() == full.sites.keys()
    for site, stats in full.sites.items():
        for part, value in stats.items():
            torch.testing.assert_close(mine.sites[site][part], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_evidence_has_the_same_gradient(name):
    it = task(name)
    gradients = []
    for engine in both(it):
        leaves = {n: v.detach().clone().requires_grad_() for n, v in it.program.values().items()}
        gradients.append(torch.autograd.grad(engine.log_evidence(leaves)[0], list(leaves.values())))
    for mine, full in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-8, atol=1e-8)


def test_only_where_the_sums_are_quadratic_and_the_data_are_many():
    assert isinstance(task_of("ppca", SHAPED[:11], latents=2).exact, Compressed)
    others = [
        task_of("ppca", hide(SHAPED, 0.2), latents=2),
        task_of("ppca", SHAPED[:10], latents=2),
        task_of(linear.mixture_of_factor_analysers, SHAPED),
        task_of(linear.rows_of_their_own_noise, SHAPED),
    ]
    assert not any(isinstance(it.exact, Compressed) for it in others)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_far_from_the_origin_and_at_every_scale(offset, size):
    x = size * (SHAPED - SHAPED.mean(0) + offset)
    x[:, 1] = x[:, 0]  # a column twice
    fit = em.fit(task_of("factor_analysis", x, latents=2), max_iter=100)
    trace = fit.trace["log_likelihood"]
    assert np.all(np.diff(trace) >= -1e-8 * (1 + np.abs(trace[:-1])))
    assert fit.claimed.value == pytest.approx(trace[-1], rel=1e-7)


@pytest.mark.full
def test_laplace_climbs_to_where_em_does():
    fits = [method.fit(task("factor_analysis")) for method in (em, laplace)]
    assert fits[1].claimed.value == pytest.approx(fits[0].claimed.value, abs=0.01)  # EM is slow at the end
