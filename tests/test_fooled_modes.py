"""Posteriors made to fool a Gaussian or a grid at one mode: close modes, modes of very different widths, ridges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of
from nuts_programs import rows
from scipy import special, stats

from benchmarks._references import programs
from inference import laplace
from inference._globals.one_gaussian import OneGaussian
from inference._run.verify import verify
from zoo._errors import Refusal

EXACT = 0.02  # nats
ONE = np.array([[3.0]])
FEW = np.ones((4, 1))


def modes_at(
    at: list[float], sd: list[float], share: list[float], d: int = 1
) -> tuple[Callable[..., object], np.ndarray]:
    """Modes of `at` [d] where its likelihood is a mixture of normals; and the masses of each."""

    def program(x=None, size=None):
        place = pyro.sample("at", dist.Normal(torch.zeros(d), 10.0).to_event(1))
        each = dist.Normal(place - torch.tensor(at)[:, None], torch.tensor(sd)[:, None].expand(-1, d)).to_event(1)
        with rows(x, size):
            return pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor(share)), each), obs=x)

    return program, np.array(
        [w * stats.norm.pdf(m, 0, math.hypot(10, s)) ** d for m, s, w in zip(at, sd, share, strict=True)]
    )


def hyperbola(x=None, size=None):
    """Only the product of a and b is known: two ridges, which bend."""
    a, b = pyro.sample("a", dist.Normal(0.0, 2.0)), pyro.sample("b", dist.Normal(0.0, 2.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(a * b, 0.05), obs=x)


def parabola(x=None, size=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 2.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with rows(x, size):
        return pyro.sample("x", dist.Normal(b - a * a, 0.1), obs=x)


def of_hyperbola() -> float:
    """log p(x) of one ridge: over a > 0, with b integrated out at each a."""
    a = np.linspace(1e-4, 14, 400_001)
    log_p = stats.norm.logpdf(a, 0, 2) + stats.norm.logpdf(3, 0, np.hypot(2 * a, 0.05))
    return float(special.logsumexp(log_p) + np.log(a[1] - a[0]))


@pytest.mark.full
@pytest.mark.parametrize("restarts", [1, 6])
@pytest.mark.parametrize("d", [1, 3])
def test_a_grid_over_close_modes_is_of_both(d, restarts):
    program, masses = modes_at([-1.1, 1.1], [0.75, 0.75], [0.6, 0.4], d)
    fit = laplace.fit(task_of(program, np.zeros((1, d))), restarts=restarts)
    assert not fit.claimed.given and abs(fit.claimed.value - np.log(masses.sum())) < EXACT
    share, far = masses / masses.sum(), 1.1 * 100 / (100 + 0.75**2)
    assert abs(fit.parameters["at"] - (share[1] - share[0]) * far).max() < 0.05


@pytest.mark.full
@pytest.mark.parametrize("d", [1, 4, 12])
def test_the_widest_of_three_modes_is_one_of_several(d):
    """Its labels are the 12 numbers: too many to count, and one Gaussian has them all."""
    narrow = 0.02 if d == 1 else 0.05 if d == 4 else 0.3
    program, masses = modes_at([-6.0, 0.0, 7.0], [narrow, 0.5, 2.0 if d < 12 else 1.0], [0.2, 0.4, 0.4], d)
    task = task_of(program, np.zeros((1, d)))
    fit, found = verify(task, laplace.fit(task))
    assert found.kind == "lower bound"
    covered = masses[1:].sum() if d == 1 else masses[1]  # a grid goes on to the wide mode, and passes by the narrow one
    assert abs(fit.claimed.value - np.log(covered)) < EXACT and "one of several" in fit.claimed.given
    assert not any("too many to count" in w for w in fit.warnings)


@pytest.mark.full
def test_a_fit_of_rows_without_latents_says_itself_that_there_is_another_mode():
    program, _ = modes_at([-6.0, 7.0], [0.3, 0.5], [0.4, 0.6])
    fit = laplace.fit(task_of(program, np.zeros((1, 1))))
    assert "one of several" in fit.claimed.given and any(
        "ends at others" in w or "end at others" in w for w in fit.warnings
    )


@pytest.mark.full
@pytest.mark.parametrize("restarts", [1, 6])
def test_what_is_claimed_of_a_ridge_is_right_or_told(restarts):
    fit = laplace.fit(task_of(hyperbola, ONE), restarts=restarts)
    assert abs(fit.claimed.value - of_hyperbola()) < 0.1 and ", one of " in fit.claimed.given
    fit, found = verify(task_of(parabola, FEW), laplace.fit(task_of(parabola, FEW), restarts=restarts))
    assert "grid_points" not in fit.notes and found.kind == "lower bound"
    assert any("not close to Gaussian" in w or "short walks" in w for w in fit.warnings)


@pytest.mark.full
def test_walks_find_the_ends_of_a_ridge():
    """The Gaussian sees the middle of it, where its weights are even for most seeds."""
    fit = laplace.fit(task := task_of(parabola, FEW))
    assert all(OneGaussian(replace(task, seed=seed), fit.global_gaussian).beyond() > 0 for seed in range(4))


def test_a_grid_that_passes_by_a_ridge_is_refused():
    with pytest.raises(Refusal, match="between its points"):
        laplace.fit(task_of(parabola, FEW), globals="grid")


@pytest.mark.full
def test_labellings_that_are_too_many_to_count_stand_in_the_claim():
    def clusters(x=None, size=None):
        mean = pyro.sample(
            "mean", dist.Normal(torch.zeros(7), 20.0).to_event(1), infer={"init": torch.arange(7) * 6.0 - 18}
        )
        with rows(x, size):
            z = pyro.sample("z", dist.Categorical(torch.ones(7) / 7))
            return pyro.sample("x", dist.Normal(mean[z], 0.5), obs=x)

    x = np.random.default_rng(0).normal(np.repeat(np.arange(7) * 6.0 - 18, 3), 0.5)[:, None]
    task = task_of(clusters, x)
    fit, found = verify(task, laplace.fit(task))
    assert found.kind == "lower bound" and fit.claimed.given == "one labelling, of too many to count"


@pytest.mark.full
def test_a_chain_of_many_states_is_summed_out_before_other_modes_are_looked_for():
    """Its 2^25 joint values are never listed."""
    x = programs.DATA["hmm"]()[:2]
    task = task_of(programs.hmm, x)
    fit, found = verify(task, laplace.fit(task))
    assert fit.claimed.kind == found.kind == "estimate" and abs(fit.claimed.value - found.value) < 4 * found.se + 0.2
