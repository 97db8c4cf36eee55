"""Deep Markov models and the smoothing guide: against a grid over the states, and the Kalman filter's evidence."""

from __future__ import annotations

import numpy as np
import profit_programs as programs
import pyro
import pytest
import torch
from helpers import in_full, structure_of, task_of
from torch.nn.functional import softplus

import guides
from benchmarks import chorales
from inference import importance, run, svi
from inference._sampling import sequential, weights
from inference._training import elbo
from zoo._data import datasets
from zoo._errors import Refusal, UsageError

MODEL = "deep_markov"
GRID = torch.linspace(-14, 14, 1401, dtype=torch.float64)[:, None]  # of a state of one number


def task(n=3, T=5, D=3, seed=0, **options):
    """A task on series that the model simulates at large weights, with an early end, a gap and a hole; θ is kept."""
    torch.manual_seed(seed)
    like = task_of(MODEL, torch.randint(2, (n, T, D)), latents=1, hidden=4, emission=4, **options)
    like.program.assign(
        {k: v + 0.7 * torch.randn_like(v) * (k not in ("scales", "stay.weight")) for k, v in like.theta().items()}
    )
    x = like.program(None, size=n).detach()
    x[0, 3:], x[1, 1], x[2, 2, 0] = torch.nan, torch.nan, torch.nan
    made = task_of(MODEL, x, latents=1, hidden=4, emission=4, **options)
    made.program.assign(like.theta())
    made.learn = False
    return made


@torch.no_grad()
def on_a_grid(made):
    """log p(x) [n]: the state's density is carried from step to step on a grid of its values."""
    net, step = made.program.module, float(GRID[1, 0] - GRID[0, 0])

    def move(z):
        fn = net._move(z, {name: getattr(net, name) for name in net.nets}, net.theta()).base_dist
        return torch.distributions.Normal(fn.loc, fn.scale).log_prob(GRID.T).exp() * step  # [from, to]

    alpha, total = move(net.first[None]), torch.zeros(len(made.x), dtype=torch.float64)
    logits = net.emission(GRID)  # [grid, D]
    for t in range(made.x.shape[1]):
        x = made.x[:, t, None]  # [n, 1, D]
        given = torch.where(x.isnan(), 0.0, x.nan_to_num() * logits - softplus(logits)).sum(-1)  # [n, grid]
        alpha = alpha * given.exp()
        total += alpha.sum(1).log()
        alpha = alpha / alpha.sum(1, keepdim=True) @ move(GRID)
    return total


@pytest.mark.parametrize("transition", ["gated", *in_full("linear")])
def test_particles_a_bound_and_a_grid_agree(transition):
    made = task(transition=transition)
    truth = on_a_grid(made)
    torch.manual_seed(0)
    drawn = sequential.draw(made.program, made.structure, made.x, 4000, 40)
    value, se = weights.log_mean(drawn.log_weights, 40)
    assert (abs(value - truth) < 4 * se).all()
    q = guides.make("smoothing", made.structure, made.x, hidden=(8, 8))
    bound = weights.draw(made.program, made.structure, made.x, q, 500).log_weights
    assert (bound.mean(0) < truth + 4 * bound.std(0) / 500**0.5).all()


@pytest.mark.slow
def test_what_is_claimed_is_right():
    made = task()
    truth = float(on_a_grid(made).sum())
    torch.manual_seed(0)
    bound = svi.fit(made, guide="smoothing", epochs=1500, hidden=(16, 16), lr=0.01)
    assert (
        bound.claimed.kind == "lower bound" and -0.15 * len(made.x) < bound.claimed.value - truth < 4 * bound.claimed.se
    )
    estimates = [importance.fit(made, proposal="sequential", samples=4000)]
    estimates.append(importance.fit(made, guide="smoothing", epochs=500, hidden=(16, 16)))
    for fit in estimates:
        assert fit.claimed.kind == "estimate" and abs(fit.claimed.value - truth) < 4 * fit.claimed.se


@pytest.mark.slow
def test_the_guide_reaches_the_evidence_of_a_gaussian_chain():
    T, x = 6, np.random.default_rng(0).normal(size=(4, 6))
    truth = float(sum(programs.kalman(row[None], [0.9] * T, [0.5] * T, 0.4)[0][0] for row in x))
    made = task_of(programs.gaussian_chain(T), x)
    fit = svi.fit(made, guide="smoothing", epochs=3000, hidden=(32, 32), lr=0.01, optimizer="adam")
    assert -0.1 < fit.claimed.value - truth < 4 * fit.claimed.se


# ------------------------------------------------------------------------------------------------------------ the guide


def of_state(made, q, x, z):
    """q(z_t | z_{t−1} = z, x) at each step: its means and scales [T, n]."""
    values = {s.name: torch.full((len(x), 1), z, dtype=x.dtype) for s in made.structure.local_latents}
    found = pyro.poutine.trace(pyro.poutine.condition(q, data=values)).get_trace(x)
    sites = [found.nodes[s.name]["fn"].base_dist for s in made.structure.local_latents]
    return torch.stack([torch.stack([fn.loc[:, 0], fn.scale[:, 0]]) for fn in sites])


def test_a_state_is_told_of_the_present_and_the_future_alone():
    made = task(T=6)
    q = guides.make("smoothing", made.structure, made.x, hidden=(8, 8))
    x = made.x.nan_to_num(0.0)
    y = x.clone()
    y[:, 2] = 1 - y[:, 2]
    one, other = of_state(made, q, x, 0.3), of_state(made, q, y, 0.3)
    assert torch.equal(one[3:], other[3:]) and (one[:3] != other[:3]).all()
    ended, longer = x.clone(), x.clone()
    ended[:, 3:], longer[:, 4:] = torch.nan, torch.nan
    nothing = of_state(made, q, torch.full_like(x, torch.nan), 0.3)
    assert torch.equal(of_state(made, q, ended, 0.3)[3:], nothing[3:])
    assert (of_state(made, q, longer, 0.3)[3] != nothing[3]).all()


@pytest.mark.parametrize("model", ["gmm", "ppca"])
def test_the_guide_refuses_what_is_no_chain(model):
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(Refusal, match="guide=smoothing expects a chain of latents of one kind"):
        guides.make("smoothing", structure_of(model, x), torch.as_tensor(x))


def test_a_series_of_another_length_is_refused():
    made = task()
    with pytest.raises(UsageError, match=r"expects x \[n, 5, …\], a step a latent, got \[3, 4, 3\]"):
        guides.make("smoothing", made.structure, made.x[:, :4])


@pytest.mark.full
def test_its_divergences_are_in_closed_form():
    made = task()
    q = guides.make("smoothing", made.structure, made.x, hidden=(8, 8))
    bound = elbo.Bound(made, q, 1)
    with torch.no_grad():
        closed = torch.cat([bound.each(slice(None), made.x) for _ in range(100)])
    assert all(bound.analytic.values())
    plain = weights.draw(made.program, made.structure, made.x, q, 4000).log_weights.detach()
    se = (closed.var(0) / 100 + plain.var(0) / 4000) ** 0.5
    assert (abs(closed.mean(0) - plain.mean(0)) < 4 * se).all()


# ------------------------------------------------------------------------------------------------------------- the data


def test_chords_are_the_same_on_every_machine():
    x = datasets.load("chords").x
    assert x.shape == (100, 16, 24) and np.nansum(x) == 3522
    lengths = (~np.isnan(x).all(2)).sum(1)
    assert lengths.min() == 10 and lengths.max() == 16
    assert all(np.isnan(piece[k:]).all() and not np.isnan(piece[:k]).any() for piece, k in zip(x, lengths, strict=True))


def test_other_data_than_series_of_bits_are_refused():
    with pytest.raises(UsageError, match=r"series of 0 and 1 \(n × T × D\), got shape \(2, 2\)"):
        task_of(MODEL, [[0.0, 1.0], [1.0, 1.0]])


@pytest.mark.slow
def test_a_run_on_chords_is_saved_and_read_back(tmp_path):
    fit = run(MODEL, "chords", "svi", guide="smoothing", epochs=60, out=tmp_path / "run", quiet=True)
    assert fit.claimed.kind == "lower bound" and fit.claimed.value > -100 * 13 * 24 * np.log(2)


def test_windows_cover_every_step():
    x = np.arange(2 * 7.0).reshape(2, 7, 1)
    x[1, 5:] = np.nan
    found = chorales.windows(x, 3)[..., 0].tolist()
    assert found == [[0, 1, 2], [3, 4, 5], [4, 5, 6], [7, 8, 9], [9, 10, 11]]


@pytest.mark.slow
def test_bounds_of_whole_series_lie_below_the_particle_filter(monkeypatch):
    monkeypatch.setattr(chorales, "SIZES", {"latents": 2, "hidden": 4, "emission": 4})
    test = chorales.main(quick=True)["test"]
    assert test["steps"] == 266 and test["particle_filter_kind"] == "estimate"
    assert test["elbo"] < test["weighted_bound"] < test["particle_filter"] + 4 * test["particle_filter_se"]


@pytest.mark.full
def test_with_priors_the_weights_are_latents_with_the_same_density():
    """p(x, z | weights) is that of the same weights as θ, and the priors are Neal's."""
    x = torch.randint(2, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    plain, drawn = (task_of(MODEL, x, latents=2, hidden=3, emission=3, priors=p) for p in (False, True))
    at = drawn.global_start()
    assert not drawn.structure.learnable and sorted(at) == sorted(plain.theta())
    z = {f"z_{t}": torch.randn(2, 2, generator=torch.Generator().manual_seed(t)).double() for t in range(3)}
    plain.program.assign(at)
    traces = [made.program.trace(made.x, latents=z | g) for made, g in ((plain, {}), (drawn, at))]
    prior = 0.0
    for name, value in at.items():
        wide = 2.5 if name.startswith("emission.4") else 1.0
        center = value if name.endswith("bias") else 0.0
        scale = wide / value.shape[1] ** 0.5 if name.endswith("weight") else wide
        prior += float(torch.distributions.Normal(torch.as_tensor(center).double(), scale).log_prob(value).sum())
    one, other = (float(trace.log_prob_sum().detach()) for trace in traces)
    assert other == pytest.approx(one + prior, rel=1e-9)
