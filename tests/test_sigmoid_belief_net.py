"""Sigmoid belief nets: against sums over all causes, and samplers against each other where no sum can be had."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers import in_full, task_of, zoo_refusal
from scipy.special import log_expit, logsumexp
from scipy.stats import norm

from inference import ais, gibbs, importance, svi
from zoo._errors import UsageError

MODEL = "sigmoid_belief_net"


def net(causes, D, n=3, layers=1, limit=10_000, seed=0, holes=True):
    """A task on data that a net with large weights simulates, some of them hidden; θ is kept."""
    task = task_of(
        MODEL, (np.random.default_rng(seed).random((n, D)) < 0.5).astype(float), causes=causes, layers=layers
    )
    torch.manual_seed(seed)
    scale = 3.0 / causes**0.5
    task.program.assign({k: scale * torch.randn(v.shape).double() for k, v in task.theta().items()})
    x = task.program(None, size=n).detach().numpy()
    x[0, : D // 3] = np.nan if holes else x[0, : D // 3]
    theta = task.theta()
    task = task_of(MODEL, x, limit=limit, causes=causes, layers=layers)
    task.program.assign(theta)
    task.learn = False
    return task, {k: v.numpy() for k, v in theta.items()}, x


def log_bits(bits, logits):
    """Σ log p of bits, a missing one left out."""
    each = np.where(bits == 1, log_expit(logits), log_expit(-logits))
    return np.where(np.isnan(bits), 0.0, each).sum(-1)


def by_all_causes(theta, x, layers=1):
    """log p(x, z) [n, 2^K] of every z, the causes of causes summed out; and all z."""
    z = np.array(list(product([0.0, 1.0], repeat=len(theta["logits"]))))
    if layers == 1:
        prior = log_bits(z, theta["logits"])
    else:
        given = log_bits(z[:, None], z @ theta["between.weight"].T + theta["between.bias"])  # [z, z2]
        prior = logsumexp(given + log_bits(z, theta["logits"]), axis=1)
    return prior + log_bits(x[:, None], z @ theta["below.weight"].T + theta["below.bias"]), z


@pytest.mark.parametrize(("causes", "layers"), [(6, 1), *in_full((10, 1), (4, 2))])
def test_log_p_is_the_sum_over_all_causes(causes, layers):
    task, theta, x = net(causes, 12, layers=layers)
    assert task.structure.is_exact
    truth = logsumexp(by_all_causes(theta, x, layers)[0], axis=1)
    assert np.allclose(task.engine.per_datum().detach().numpy(), truth, atol=1e-9)


def test_thirty_causes_are_refused_with_the_size_of_their_table():
    task, _, _ = net(30, 5)
    assert not task.structure.is_exact and "1,073,741,824 entries" in zoo_refusal("em", task.structure)
    assert not any(method.refusal(task.structure) for method in (ais, gibbs, importance, svi))


def test_other_data_than_bits_are_refused():
    with pytest.raises(UsageError, match=r"table \(n × D\) of 0 and 1, got shape \(2, 1\) and numbers from 0 to 7"):
        task_of(MODEL, [[0.0], [7.0]])


def test_a_poor_proposal_is_no_estimate():
    task, theta, x = net(10, 60, limit=64)
    fit = importance.fit(task, proposal="prior", samples=50)
    truth = logsumexp(by_all_causes(theta, x)[0], axis=1).sum()
    assert fit.claimed.kind == "lower bound" and fit.claimed.value < truth


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_samplers_are_right_where_the_sum_can_be_had(layers):
    causes = 10 if layers == 1 else 5
    task, theta, x = net(causes, 12, layers=layers, limit=8)
    assert not task.structure.is_exact
    joint, z = by_all_causes(theta, x, layers)
    truth, mean = logsumexp(joint, axis=1), np.exp(joint - logsumexp(joint, axis=1, keepdims=True)) @ z
    torch.manual_seed(0)
    walked = ais.fit(task, temperatures=200, chains=400)
    drawn = importance.fit(task, epochs=300, samples=4000)
    for fit in (walked, drawn):
        assert fit.claimed.kind == "estimate"
        assert abs(fit.claimed.value - truth.sum()) < 4 * fit.claimed.se
    bound = svi.fit(task, epochs=300)
    assert bound.claimed.kind == "lower bound" and bound.claimed.value < truth.sum() + 4 * bound.claimed.se
    chains = gibbs.fit(task, sweeps=2000, chains=8)
    assert abs(chains.means["z"] - mean).max() < 0.03


@pytest.mark.slow
def test_samplers_agree_on_thirty_causes():
    task, _, _ = net(30, 20, n=2)
    torch.manual_seed(0)
    walked = ais.fit(task, temperatures=200, chains=400)
    drawn = importance.fit(task, epochs=500, samples=20_000, guide="autoregressive")
    assert walked.claimed.kind == drawn.claimed.kind == "estimate"
    assert abs(walked.claimed.value - drawn.claimed.value) < 4 * np.hypot(walked.claimed.se, drawn.claimed.se)
    chains = gibbs.fit(task, sweeps=500, chains=8)
    share, size = walked.probabilities["z"][..., 1], min(walked.ess.min(), 500)
    assert abs(chains.means["z"] - share).max() < 5 * np.sqrt(0.25 / size)  # a share's standard error, at most


def test_with_priors_the_weights_are_latents():
    """log p(x | globals) is the sum over both causes, and log p(globals) SciPy's."""
    x = (np.random.default_rng(0).random((12, 3)) < 0.4).astype(float)
    task = task_of("sigmoid_belief_net", x, causes=2, priors=True)
    at = task.global_start()
    g = {n: v.numpy() for n, v in at.items()}
    assert sorted(g) == ["below.bias", "below.weight", "logits"] and abs(g["below.weight"]).max() > 0.1
    each = []
    for z in product((0, 1), repeat=2):
        logits = g["below.weight"] @ z + g["below.bias"]
        each.append((x * logits - np.logaddexp(0, logits)).sum(1) + 2 * np.log(0.5))
    np.testing.assert_allclose(task.engine.per_datum(globals=at).numpy(), logsumexp(each, axis=0), rtol=1e-9)
    prior = norm(0, 2.5).logpdf(g["logits"]).sum() + norm(0, 2.5 / 2**0.5).logpdf(g["below.weight"]).sum()
    prior += norm(g["below.bias"], 2.5).logpdf(g["below.bias"]).sum()
    assert float(task.engine.log_prior(globals=at)) == pytest.approx(prior, rel=1e-9)
