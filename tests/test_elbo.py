"""The bounds, their gradients and the guides, against closed forms and enumeration."""

from __future__ import annotations

import itertools

import linear_programs as linear
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import simulated, task_of
from torch.distributions import constraints

import guides
from guides import at
from inference import run
from inference._sampling import weights
from inference._training import elbo, loop
from zoo._errors import Refusal, UsageError


def two_latents(n=40):
    return simulated(linear.two_latents_that_add, np.zeros((3, 5)), n)


def bits(x=None, size=None):
    """Three binary latents that an exclusive or ties together: no factorised q is exact."""
    slope = pyro.param("slope", torch.tensor(1.3))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
        mean = slope * (z[..., :1] + z[..., 1:2] - 2 * z[..., :1] * z[..., 1:2]) + z[..., 2:]
        return pyro.sample("x", dist.Normal(mean.expand(*mean.shape[:-1], 2), 0.7).to_event(1), obs=x)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_closed_divergence_changes_the_noise_and_not_the_bound(covariance):
    task = task_of(linear.two_latents_that_add, two_latents())
    guide = guides.make("amortized", task.structure, task.x, covariance=covariance)
    torch.manual_seed(1)
    closed, open_ = elbo.Bound(task, guide, 1), elbo.Bound(task, guide, 1)
    closed.surrogate(slice(None), task.x)
    open_.analytic = dict.fromkeys(("z", "u"), False)
    assert closed.analytic["u"] is False  # its mean in the program depends on z, which the guide draws after it
    assert closed.analytic["z"] is (covariance == "diagonal")  # no closed form between a full and an independent normal
    with torch.no_grad():
        values = [[float(b.surrogate(slice(None), task.x)) for _ in range(150)] for b in (closed, open_)]
    (a, b), (sa, sb) = np.mean(values, 1), np.std(values, 1) / 150**0.5
    assert abs(a - b) < 4 * np.hypot(sa, sb)


def test_a_bound_with_a_closed_form_for_two_layers_is_right():
    """The guide draws z1 and then z2 given z1: p(z1 | z2) has its condition drawn after it, so no closed form for z1."""
    x = np.random.default_rng(0).normal(size=(30, 4))
    task = task_of("deep_latent_gaussian", x, layers=2, latents=2, hidden=(8,))
    guide = guides.make("amortized", task.structure, task.x)
    assert [s.name for s in guide.sites] == ["z1", "z2"]
    bound = elbo.Bound(task, guide, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        values = [float(bound.surrogate(slice(None), task.x)) for _ in range(200)]
        drawn = weights.draw(task.program, task.structure, task.x, guide, 200)
    assert bound.analytic == {"z1": False, "z2": True}
    direct = drawn.log_weights.mean(1).numpy()
    assert abs(np.mean(values) - direct.mean()) < 4 * np.hypot(np.std(values), direct.std()) / 200**0.5


def test_more_particles_a_tighter_bound_below_the_truth():
    task = task_of(linear.two_latents_that_add, two_latents())
    truth = float(task.exact.per_datum().mean())
    guide = guides.make("amortized", task.structure, task.x)
    torch.manual_seed(0)
    means, errors = [], []
    for K in (1, 5, 50):
        bound = elbo.Bound(task, guide, K)
        with torch.no_grad():
            values = [float(bound.surrogate(slice(None), task.x)) for _ in range(60)]
        means.append(np.mean(values))
        errors.append(np.std(values) / 60**0.5)
    slack = 4 * max(errors)
    assert means[0] < means[1] + slack and means[1] < means[2] + slack and means[2] < truth + slack
    assert means[2] > means[0] + slack


@pytest.mark.parametrize("guide", ["amortized", "mean_field"])
def test_a_full_covariance_reaches_the_evidence_of_a_linear_program(guide):
    """The posterior of a linear-Gaussian program is a Gaussian, so that only the training stands between bound and truth."""
    x = simulated("factor_analysis", 3 * np.random.default_rng(0).normal(size=(9, 4)), 40)
    how = {"guide": guide, "epochs": 200, "batch": 40, "lr": 0.05, "schedule": "cosine"}
    fit = run("factor_analysis", x, "svi", guide_covariance="full", **how)
    assert fit.verified.kind == "exact" and fit.claimed.kind == "lower bound"
    assert fit.claimed.value <= fit.verified.value + 4 * fit.claimed.se
    assert fit.claimed.value > fit.verified.value - 0.1 * len(x)


def test_no_latents_is_maximum_likelihood_and_exact():
    x = 2 + 3 * np.random.default_rng(1).normal(size=(80, 2))

    def gaussian(x=None, size=None):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    fit = run(gaussian, x, "svi", lr=0.1, epochs=400, batch=80)
    assert (fit.claimed.kind, fit.verified.kind) == ("exact", "exact")
    np.testing.assert_allclose(fit.parameters["loc"], x.mean(0), atol=0.02)
    np.testing.assert_allclose(fit.parameters["scale"], x.std(0), rtol=0.02)
    assert fit.claimed.value == pytest.approx(fit.verified.value, rel=1e-12)


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(bound, task, guide, draws):
    """[draws, numbers] of the guide's last layer."""
    out = []
    for _ in range(draws):
        guide.zero_grad()
        bound.surrogate(slice(None), task.x).backward()
        out.append(torch.cat([p.grad.reshape(-1) for p in guide.heads.parameters()]))
    return torch.stack(out).numpy()


@pytest.mark.parametrize("particles", [1, 3])
def test_the_gradient_for_discrete_draws_is_unbiased(particles):
    """Against the exact gradient: all joint values of all draws, weighed by their probability."""
    task = task_of(bits, simulated(bits, np.zeros((3, 2)), 6), limit=4)
    assert task.structure.exact == "no"
    torch.manual_seed(3)
    guide = guides.make("amortized", task.structure, task.x, hidden=(5,))
    K = particles if particles > 1 else elbo.SCORE_DRAWS
    found = gradients(elbo.Bound(task, guide, particles), task, guide, 600)
    guide.zero_grad()
    table = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)  # [8, 3]
    values = {"z": table.unsqueeze(1).expand(8, len(task.x), 3)}
    with weights.draws_plate(task.structure, 8), task.program.settings():
        q = pyro.poutine.trace(pyro.poutine.condition(guide, data=values)).get_trace(task.x)
    with weights.draws_plate(task.structure, 8):
        p = task.program.trace(task.x, latents=values)
    log_q = q.nodes["z"]["fn"].log_prob(values["z"])  # [8, n]
    log_p = sum(p.nodes[n]["fn"].log_prob(p.nodes[n]["value"]) for n in ("z", "x"))
    if particles == 1:
        exact = (log_q.exp() * (log_p - log_q)).sum(0).mean()
    else:
        joint = torch.tensor(list(itertools.product(range(8), repeat=K)))  # [8^K, K]
        weight = log_q[joint].sum(1).exp()  # [8^K, n]
        exact = (weight * ((log_p - log_q)[joint].logsumexp(1) - np.log(K))).sum(0).mean()
    exact.backward()
    truth = torch.cat([p.grad.reshape(-1) for p in guide.heads.parameters()]).numpy()
    z = (found.mean(0) - truth) / (found.std(0) / len(found) ** 0.5 + 1e-12)
    assert np.abs(z).max() < 4.5
    assert np.abs(truth).max() > 1e-3


def test_baselines_lower_the_variance():
    task = task_of(bits, simulated(bits, np.zeros((3, 2)), 6), limit=4)
    torch.manual_seed(3)
    guide = guides.make("amortized", task.structure, task.x, hidden=(5,))
    with_baseline = gradients(elbo.Bound(task, guide, 1), task, guide, 100).var(0).sum()
    original = elbo._leave_one_out
    try:
        elbo._leave_one_out = lambda value: value / len(value)
        without = gradients(elbo.Bound(task, guide, 1), task, guide, 100).var(0).sum()
    finally:
        elbo._leave_one_out = original
    assert with_baseline < without / 3


# ---- guides ---------------------------------------------------------------------------------------------------------


def test_a_later_site_sees_an_earlier_one():
    task = task_of(linear.mixture_of_factor_analysers, np.random.default_rng(0).normal(size=(10, 5)))
    guide = guides.make("amortized", task.structure, task.x)
    assert [s.name for s in guide.sites] == ["k", "z"]
    means = []
    for k in (0, 1):
        given = pyro.poutine.condition(guide, data={"k": torch.full((10,), k)})
        with task.program.settings():
            means.append(pyro.poutine.trace(given).get_trace(task.x).nodes["z"]["fn"].base_dist.loc)
    assert not torch.allclose(means[0], means[1])


def test_mean_field_holds_a_q_for_each_datum():
    task = task_of(user.two_sites, 2 * np.random.default_rng(2).normal(size=(60, 3)))
    guide = guides.make("mean_field", task.structure, task.x)
    with torch.no_grad():
        guide.tables["z1"][7, 0] = 9.0
    rows = torch.tensor([3, 7])
    with task.program.settings():
        q = pyro.poutine.trace(at(guide, rows)).get_trace(task.x[rows]).nodes["z1"]["fn"]
        assert bool(q.probs[1, 0] > 0.99) and bool(q.probs[0, 0] < 0.99)
        with pytest.raises(UsageError, match="expects its own 60 rows, got"):
            guide(task.x[:5])


def test_a_guide_of_ones_own(tmp_path):
    """θ stays, the guide is a function with parameters of its own: an exact posterior has no gap."""
    x = simulated(linear.random_intercept, np.zeros((3, 5)), 50)
    (tmp_path / "mine.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\nfrom torch.distributions import constraints\n"
        "def guide(x=None, size=None):\n"
        "    a = pyro.param('a', torch.tensor(0.5))\n"
        "    s = pyro.param('s', torch.tensor(0.5), constraint=constraints.positive)\n"
        "    b = pyro.param('b', torch.tensor(0.0))\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('effect', dist.Normal(a * x.mean(-1) + b, s))\n"
        "def other(x=None, size=None):\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('zz', dist.Normal(x.mean(-1), 1.0))\n"
    )
    fit = run(linear.random_intercept, x, "svi", guide=f"{tmp_path}/mine.py:guide", epochs=300, out=tmp_path / "run")
    assert fit.claimed.value > fit.verified.value - 0.02 * len(x)
    with pytest.raises(UsageError, match=r"must draw the latents of .* \(effect\), got zz"):
        run(linear.random_intercept, x, "svi", guide=f"{tmp_path}/mine.py:other")
    with pytest.raises(UsageError, match="unknown guide 'amortised'; did you mean amortized"):
        run(linear.random_intercept, x, "svi", guide="amortised")


def test_particles_need_data_that_are_weighed_one_by_one():
    with pytest.raises(Refusal, match="particles=1"):
        run(user.normal_mean, np.zeros((10, 1)), "svi", particles=5)


# ---- missing pixels as latents --------------------------------------------------------------------------------------


def test_the_guide_completes_pixels_wherever_they_are_missing():
    """Holes that differ from row to row: the bound lies below the enumerated truth, the estimate on it, and a q that was
    learned is better than uniform completions."""
    rng = np.random.default_rng(0)
    images = (rng.random((120, 1)) < 0.5) ^ (rng.random((120, 9)) < 0.1)
    x = np.where(rng.random(images.shape) < 0.35, np.nan, images.astype(float))
    task = task_of("missing_pixels", x, hidden=(16,))
    assert task.structure.exact == "enumerable"
    truth = task.exact.per_datum().detach()
    guide = guides.make("amortized", task.structure, task.x)
    gaps, spreads = [], []
    for particles in (1, 20):
        torch.manual_seed(0)
        bound = elbo.Bound(task, guide, particles)
        optimiser = torch.optim.Adam(guide.parameters(), lr=0.02)
        for _ in range(60 if particles == 1 else 0):
            optimiser.zero_grad()
            (-bound.surrogate(slice(None), task.x)).backward()
            optimiser.step()
        with torch.no_grad():
            values = [float(bound.surrogate(slice(None), task.x)) for _ in range(40)]
        gaps.append(float(truth.mean()) - np.mean(values))
        spreads.append(np.std(values) / 40**0.5)
    assert gaps[0] > -4 * spreads[0] and gaps[1] > -4 * spreads[1] and gaps[1] < gaps[0] + 4 * spreads[0]
    with torch.no_grad():
        learned = weights.draw(task.program, task.structure, task.x, guide, 400).log_weights
        naive = weights.draw(task.program, task.structure, task.x, None, 400).log_weights
    for log_w in (learned, naive):
        estimate, error = weights.log_mean(log_w)
        assert float(((estimate - truth).abs() / (error + 1e-9)).median()) < 1.5
    assert float(learned.var(0).mean()) < float(naive.var(0).mean())


def test_slots_left_over_cost_nothing():
    """A row with nothing missing beside one with many: its weight is p(x), whatever is drawn."""
    x = (np.random.default_rng(1).random((6, 9)) < 0.5).astype(float)
    x[0, :5] = np.nan
    task = task_of("missing_pixels", x, hidden=(8,))
    guide = guides.make("amortized", task.structure, task.x)
    with torch.no_grad():
        log_w = weights.draw(task.program, task.structure, task.x, guide, 20).log_weights
    assert float(log_w[:, 1:].std(0).max()) < 1e-9 < float(log_w[:, 0].std())


# ---- few rows -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_each_of_few_rows_has_several_draws():
    """Their mean is the same bound, with less noise; θ stands still here."""
    made = task_of("ppca", np.random.default_rng(0).normal(size=(4, 3)), latents=1)
    q = guides.make("amortized", made.structure, made.x, hidden=(4,))
    objective = elbo.objective(made, q, 1)
    draws = elbo.draws_of_few(made, q, 4)

    def train(draws):
        torch.manual_seed(0)
        plan = loop.Plan(epochs=60, batch=4, lr=1e-12, tol=1e-4, schedule="constant", draws=draws)
        return loop.train(made, {"guide": q}, objective, plan, step=lambda *_, **__: None).objective

    one, many = train(1), train(draws)
    assert draws == 16 and abs(one.mean() - many.mean()) < 4 * one.std() / 60**0.5
    assert many.std() == pytest.approx(one.std() / 4, rel=0.5)  # 4 standard errors of a ratio


@pytest.mark.parametrize(("model", "rows", "batch"), [("ppca", 40, 40), ("ppca", 100, 4), ("gmm", 4, 4)])
def test_many_rows_or_no_noise_ask_for_no_more_draws(model, rows, batch):
    made = task_of(model, np.random.default_rng(0).normal(size=(rows, 3)))
    q = guides.make("amortized", made.structure, made.x, hidden=(4,))
    assert elbo.draws_of_few(made, q, batch) == 1
