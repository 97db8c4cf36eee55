"""The particle filter through missing entries, and wake-sleep: truths by enumeration, by Pyro, by the pixels' order."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import task_of
from pyro.infer import ReweightedWakeSleep

import guides
from inference import run
from inference._sampling import particles, weights
from inference._training.wake_sleep import Phases, asleep
from zoo._errors import Refusal
from zoo._program.slots import slots

RANDOM = np.random.default_rng(3)
BITS = (RANDOM.random((300, 9)) < np.linspace(0.2, 0.8, 9)).astype(float)
BITS[:, 4] = np.where(RANDOM.random(300) < 0.9, BITS[:, 0], 1 - BITS[:, 0])
BITS[:, 8] = np.where(RANDOM.random(300) < 0.9, BITS[:, 2] * BITS[:, 3], BITS[:, 8])
HOLES = BITS[:6].copy()
HOLES[0, [0, 2, 5]] = np.nan
HOLES[1, [0, 1, 2, 3]] = np.nan
HOLES[2, [7, 8]] = np.nan
HOLES[3] = np.nan  # nothing observed; nothing is missing in row 4
HOLES[5, [0, 2, 4, 6, 8]] = np.nan


def trained(x, data=BITS, **options):
    """A task of x under an autoregressive program that was fitted to `data`."""
    options = {"net": "made", "hidden": (8,), **options}
    task = task_of("missing_pixels", x, **options)
    task.program.load_state_dict(theta_of(data.tobytes(), len(data), **options))
    task.learn = False
    return task


@functools.cache
def theta_of(data, rows, **options):
    x = np.frombuffer(data).reshape(rows, -1)
    return run("missing_pixels", x, "svi", epochs=30, lr=0.02, batch=50, **options).program.state_dict()


def by_enumeration(task, row):
    """log p(x_observed), and the mean of the row's completion under the posterior."""
    missing = np.flatnonzero(np.isnan(row))
    whole = np.tile(row, (2 ** len(missing), 1))
    whole[:, missing] = list(itertools.product([0.0, 1.0], repeat=len(missing)))
    x = torch.as_tensor(whole)
    log_p = task.program.trace(x, raw=True).nodes["x"]["fn"].log_prob(x).detach()
    return float(log_p.logsumexp(0)), (log_p.softmax(0) @ x).numpy()


def completed(task, drawn):
    """Draws of x [S, n, D]."""
    value = drawn.values["x_missing"]
    index, real = slots(task.x, value.shape[-1])
    whole = task.x.nan_to_num(0.0).expand(len(value), *task.x.shape).clone()
    for i, j in (real).nonzero().tolist():
        whole[:, i, index[i, j]] = value[:, i, j]
    return whole


def test_the_filter_against_enumeration():
    task = trained(HOLES)
    torch.manual_seed(0)
    drawn = particles.draw(task.program, task.structure, task.x, 5000, 100)
    value, se = weights.log_mean(drawn.log_weights, 100)
    shares = drawn.log_weights.softmax(0)
    means = (shares.unsqueeze(-1) * completed(task, drawn)).sum(0)
    for i, row in enumerate(HOLES):
        if np.isnan(row).all():
            assert value[i] == 0 and se[i] == 0
            continue
        truth, mean = by_enumeration(task, row)
        assert abs(value[i] - truth) < 4 * se[i] + 1e-9
        np.testing.assert_allclose(means[i], mean, atol=0.05)
    assert se[4] == 0 and not np.isnan(HOLES[4]).any()  # nothing is missing: the program's own log p(x)


def test_the_estimate_of_few_particles_is_unbiased():
    """Filters of three particles: their mean is p(x_observed), whatever resampling does."""
    task = trained(HOLES[[1, 5]])
    truth = np.array([by_enumeration(task, row)[0] for row in HOLES[[1, 5]]])
    torch.manual_seed(1)
    drawn = particles.draw(task.program, task.structure, task.x, 15_000, 5000)
    each = drawn.log_weights.unflatten(0, (5000, 3)).exp().mean(1).numpy() / np.exp(truth)
    assert np.all(np.abs(each.mean(0) - 1) < 4 * each.std(0) / math.sqrt(5000))


def test_observed_first_is_exact():
    """Where the observed pixels come first, every particle has the same weight, and it is p(x_observed)."""
    holes = BITS[:40].copy()
    holes[:, [1, 4, 6]] = np.nan
    task = trained(
        holes, np.vstack([BITS, holes[:1]]), order="observed-first"
    )  # one image tells which pixels come last
    assert task.program.module.order.tolist()[-3:] == [1, 4, 6]
    torch.manual_seed(0)
    drawn = particles.draw(task.program, task.structure, task.x, 1000, 20)
    value, se = weights.log_mean(drawn.log_weights, 20)
    truth = [by_enumeration(task, row) for row in holes]
    np.testing.assert_allclose(value, [t[0] for t in truth], atol=1e-9)
    np.testing.assert_allclose(se, 0, atol=1e-9)
    means = completed(task, drawn).mean(0).numpy()
    exact = np.array([t[1] for t in truth]).clip(0, 1)
    error = np.sqrt(exact * (1 - exact) / 1000)
    assert np.all(np.abs(means - exact) < 5 * error + 1e-9)
    fn = task.program.trace(task.x, raw=True).nodes["x"]["fn"]
    ancestral = torch.stack([fn.fill(task.x)[0] for _ in range(300)]).mean(0).numpy()
    assert np.all(np.abs(ancestral - exact) < 5 * np.sqrt(exact * (1 - exact) / 300) + 1e-9)


def test_the_method_by_name():
    fit = run(
        "missing_pixels", HOLES, "importance", hidden=(8,), proposal="sequential", samples=500, epochs=20, particles=10
    )
    assert fit.claimed.kind == "estimate" and fit.notes["filters"] == 40
    assert fit.verified.kind == "exact"
    assert abs(fit.claimed.value - fit.verified.value) < 5 * fit.claimed.se + 1e-9


@pytest.mark.full
def test_theta_is_learned_with_holes():
    """By the filter's weights, close to the maximum of the exact likelihood that EM climbs."""
    x = np.where(np.random.default_rng(0).random(BITS.shape) < 0.2, np.nan, BITS)
    options = {"net": "logistic", "lr": 0.05, "batch": 50}
    found = run(
        "missing_pixels", x, "importance", proposal="sequential", epochs=60, particles=10, samples=100, **options
    )
    exact = run("missing_pixels", x, "em", net="logistic")
    assert found.verified.kind == exact.claimed.kind == "exact"
    assert found.verified.value > exact.claimed.value - 0.02 * len(x)


@pytest.mark.parametrize(
    ("model", "x", "options", "words"),
    [
        ("missing_pixels", HOLES, {"net": "mixture", "components": 2}, "one autoregressive site, and the latents of"),
        ("gmm", np.random.default_rng(0).normal(size=(20, 2)), {}, "one autoregressive site"),
        (user.poisson, BITS[:20, :3], {}, "one autoregressive site"),
    ],
)
def test_refusals(model, x, options, words):
    with pytest.raises(Refusal, match=words):
        run(model, x, "importance", proposal="sequential", **options)


def test_a_distribution_without_steps():
    def pairs(x=None, size=None):
        """Bits in pairs that agree or do not."""
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", Pairs(torch.tensor(0.8)), obs=x)

    x = BITS[:20, :2].copy()
    x[3, 0] = np.nan
    with pytest.raises(Refusal, match=r"gives its entries one by one \(`steps`\), and 'x' is a Pairs"):
        run(pairs, x, "importance", proposal="sequential")


class Pairs(dist.TorchDistribution):
    """Two bits, alike with probability p."""

    arg_constraints: dict = {}
    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def __init__(self, p, batch_shape=()):
        self.p = p
        super().__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Pairs(self.p, batch_shape)

    def sample(self, sample_shape=()):
        first = torch.bernoulli(torch.full((*sample_shape, *self.batch_shape), 0.5))
        same = torch.bernoulli(torch.full_like(first, float(self.p)))
        return torch.stack([first, torch.where(same > 0, first, 1 - first)], -1)

    def log_prob(self, value):
        alike = value[..., 0] == value[..., 1]
        return torch.where(alike, self.p.log(), (-self.p).log1p()) - math.log(2)


# ---- wake and sleep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["amortized", "autoregressive"])
def test_the_wake_phases_are_those_of_pyro(name):
    """On one datum: Pyro weighs a batch as a whole."""
    task = trained(HOLES[[1]])
    task.learn = True
    guide = guides.make(name, task.structure, task.x, hidden=(8,))
    parameters = [*task.program.parameters(), *guide.parameters()]
    torch.manual_seed(5)
    Phases(task, guide, 6).objective(slice(None), task.x).backward()
    ours = [None if p.grad is None else p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    torch.manual_seed(5)
    with task.program.settings(), pyro.validation_enabled(False):
        loss = ReweightedWakeSleep(num_particles=6, insomnia=1.0, max_plate_nesting=1)
        wake = loss._loss(task.program, guide, (task.x,), {})
        sum(wake).backward()
    theirs = [p.grad for p in parameters]
    assert any(g is not None and bool(g.any()) for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.zeros(()) if a is None else -a, torch.zeros(()) if b is None else b)


def test_asleep_the_guide_learns_the_posterior():
    """What is learned from simulated pairs is the posterior of data that the program never saw."""
    holes = BITS[:60].copy()
    holes[:, [0, 2, 4]] = np.nan
    task = trained(holes)
    guide = guides.make("autoregressive", task.structure, task.x, hidden=(30,))
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.01)
    torch.manual_seed(0)
    many = task.x.repeat(4, 1)
    for _ in range(300):
        optimiser.zero_grad()
        (-asleep(task, guide, many).mean()).backward()
        optimiser.step()
    with torch.no_grad():
        drawn = weights.draw(task.program, task.structure, task.x, guide, 2000)
    means = completed(task, drawn).mean(0).numpy()
    truth = np.array([by_enumeration(task, row)[1] for row in holes])
    assert np.abs(means - truth).mean() < 0.03 and np.abs(means - truth).max() < 0.2


def test_no_sleep_without_an_encoder():
    with pytest.raises(Refusal, match="learns nothing from simulated data: take insomnia=1"):
        run("missing_pixels", HOLES, "importance", hidden=(8,), guide="mean_field", insomnia=0.5)


# ---- the autoregressive guide -----------------------------------------------------------------------------------------


def test_the_guide_is_a_distribution_of_the_missing_entries():
    """Its probabilities sum to one, its draws follow them, and a slot left over is a fair coin."""
    task = trained(HOLES)
    guide = guides.make("autoregressive", task.structure, task.x, hidden=(7, 6))
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.5 * torch.randn_like(p))
        q = pyro.poutine.trace(guide).get_trace(task.x).nodes["x_missing"]["fn"]
        torch.manual_seed(0)
        values = q.enumerate_support(expand=False)  # [2^M, 1, M]
        log_q = q.log_prob(values)
        np.testing.assert_allclose(log_q.logsumexp(0), 0, atol=1e-12)
        draws = q.expand([5000, 6]).sample().numpy()
    exact = (log_q.exp().unsqueeze(-1) * values).sum(0).numpy()
    assert np.all(np.abs(draws.mean(0) - exact) < 5 * 0.5 / math.sqrt(5000))
    leftover = ~slots(task.x, values.shape[-1])[1].numpy()
    np.testing.assert_allclose(exact[leftover], 0.5)


def test_the_guide_serves_any_vector_of_bits():
    """A sigmoid belief net, whose latents are no part of the data; its bound lies below the exact evidence."""

    def belief_net(x=None, size=None):
        W = pyro.param("W", torch.tensor(np.random.default_rng(1).normal(size=(4, 9))))
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.3)).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=2 * z @ W).to_event(1), obs=x)

    fit = run(belief_net, BITS, "svi", guide="autoregressive", epochs=15, lr=0.02)
    other = run(belief_net, BITS, "svi", guide="amortized", epochs=15, lr=0.02)
    for found in (fit, other):
        assert found.claimed.value - 4 * found.claimed.se < found.verified.value + 4 * (found.verified.se or 0)
    with pytest.raises(Refusal, match="guide=autoregressive expects one local latent, a vector of bits"):
        run("gmm", BITS[:, :2], "svi", guide="autoregressive")
