"""Networks: distributions that add up to 1 and are drawn from as they say, priors with the density of their draws, images."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import task_of

import guides
from inference import load, run
from zoo._data import datasets
from zoo._errors import Refusal, UsageError
from zoo._nets.layers import Deconvolution, image_shape
from zoo._nets.pixels import PixelNet, Pixels
from zoo._nets.priors import AutoregressivePrior, FlowPrior
from zoo._program.describe import describe
from zoo._program.load import load as load_program

MODEL = "deep_latent_gaussian"
BITS = (np.random.default_rng(0).random((30, 36)) < 0.4).astype(float)
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)  # image of 3 × 4


def moved(net, size=0.5):
    """A network away from where it begins."""
    torch.manual_seed(0)
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * torch.randn_like(p))
    return net


def pixels():
    return Pixels(moved(PixelNet((3, 4), 3, "silu"), 0.3), torch.linspace(-2, 2, 12, dtype=torch.float64))


def test_pixels_add_up_to_one_and_depend_on_those_before():
    p = pixels()
    with torch.no_grad():
        assert torch.isclose(p.log_prob(EVERY).exp().sum(), torch.ones((), dtype=torch.float64), atol=1e-12)
    x = EVERY[1234].clone().requires_grad_()
    slopes = torch.autograd.functional.jacobian(p.logits, x)
    assert torch.equal(slopes.triu(), torch.zeros_like(slopes))  # the logit of t by the pixels t, t + 1, …
    assert bool((slopes.tril(-1)[4:] != 0).any(1).all())


def test_pixels_are_drawn_as_they_say():
    p, n = pixels(), 4000
    torch.manual_seed(1)
    drawn = p.sample((n,))
    with torch.no_grad():
        share = p.log_prob(EVERY).exp()
    mean, second = share @ EVERY, EVERY.mT @ (share[:, None] * EVERY)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * 0.5 / n**0.5).all())
    assert bool(((drawn.mT @ drawn / n - second).abs() < 5 * 0.5 / n**0.5).all())


def test_pixels_begin_independent():
    given = torch.linspace(-2, 2, 12).expand(3, 12)
    own = torch.distributions.Bernoulli(logits=given).log_prob(EVERY[:3].float()).sum(-1)
    assert torch.allclose(Pixels(PixelNet((3, 4), 3, "tanh"), given).log_prob(EVERY[:3].float()), own)
    assert Pixels(PixelNet((3, 4), 3, "tanh"), given).expand((2, 3)).sample().shape == (2, 3, 12)


@pytest.mark.parametrize("kind", [AutoregressivePrior, FlowPrior])
def test_a_learned_prior_has_the_density_of_its_draws(kind):
    start = kind(3).distribution()
    z = torch.randn(5, 3)
    assert torch.allclose(start.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1), atol=1e-5)
    prior = moved(kind(2), 0.05).float().distribution()
    side = torch.linspace(-12, 12, 401)
    with torch.no_grad():
        grid = torch.cartesian_prod(side, side)
        density = prior.log_prob(grid).exp() * (side[1] - side[0]) ** 2
        torch.manual_seed(2)
        drawn = prior.sample((20_000,))
    assert abs(float(density.sum()) - 1) < 1e-3
    mean, variance = density @ grid, density @ grid.square() - (density @ grid).square()
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (variance / 20_000).sqrt()).all())
    assert torch.allclose(drawn.var(0), variance, rtol=0.1)
    assert bool((prior.log_prob(grid[:7]) != torch.distributions.Normal(0.0, 1.0).log_prob(grid[:7]).sum(-1)).all())


def test_convolutions_end_in_an_image():
    net = Deconvolution(3, (7, 9), 2, 4, "silu")
    assert net(torch.randn(5, 2, 3)).shape == (5, 2, 2 * 63)
    assert image_shape(784, "it") == (28, 28)
    with pytest.raises(UsageError, match="square images"):
        image_shape(60, "it")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "conv"}, "square images"),
        ({"decoder": "pixelcnn"}, "take likelihood=bernoulli"),
        ({"prior": "flow", "latents": 1}, "latents=2 or more"),
        ({"prior": "autoregressive", "layers": 2}, "layers=1 with prior=autoregressive"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        run(MODEL, np.zeros((9, 6)) + np.arange(6), "svi", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"decoder": "conv", "channels": 8},
        {"decoder": "pixelcnn", "channels": 8, "hidden": (32,)},
        {"prior": "flow", "hidden": (32,)},
        {"prior": "autoregressive", "hidden": (32,)},
    ],
)
def test_each_learns_digits_and_simulates(options, tmp_path):
    x = datasets.load("digits", binarize="8", rows=60).x
    first, later = (
        run(
            "deep_latent_gaussian",
            x,
            "svi",
            likelihood="bernoulli",
            latents=3,
            epochs=e,
            out=tmp_path / f"{e}",
            **options,
        )
        for e in (1, 30)
    )
    assert later.claimed.kind == "lower bound"
    assert later.claimed.value > first.claimed.value + 4 * later.claimed.se
    assert later.claimed.value < later.verified.value + 4 * (later.verified.se or 0)
    simulated = later.sample(3)
    assert len(simulated) == 3


def test_a_convolutional_guide_sees_images_and_what_comes_after():
    x = torch.rand(7, 37).round()
    x[0, 3] = torch.nan
    encoder = guides.make(
        "convolutional", task_of(MODEL, BITS, likelihood="bernoulli", latents=2).structure, x, hidden=(9,)
    )
    features, _ = encoder.look(x, None)
    assert features.shape == (7, 9)
    other = x.clone()
    other[1, 36], other[2, 0] = 1 - other[1, 36], 1 - other[2, 0]
    moved = (encoder.look(other, None)[0] != features).any(-1)
    assert moved.tolist() == [False, True, True, False, False, False, False]
    with pytest.raises(UsageError, match="square images"):
        guides.make("convolutional", task_of(MODEL, BITS, likelihood="bernoulli").structure, x[:, :30])


@pytest.mark.full
def test_a_convolutional_guide_learns_is_saved_and_read_back(tmp_path):
    x = datasets.load("digits", binarize="8", rows=200).x
    options = {"likelihood": "bernoulli", "latents": 2, "decoder": "conv", "channels": 8, "guide": "convolutional"}
    found = run(MODEL, x, "svi", epochs=15, out=tmp_path / "run", **options)
    assert found.claimed.value < found.verified.value + 4 * (found.verified.se or 0)
    again = load(tmp_path / "run")
    assert np.allclose(again.transform(x[:5]).to_numpy(), found.transform(x[:5]).to_numpy())


@pytest.mark.parametrize("prior", ["flow", "autoregressive"])
def test_rounding_of_an_inverse_is_no_state_of_the_program(prior):
    x = torch.as_tensor(datasets.load("digits", binarize="8", rows=60).x, dtype=torch.float32)
    program = load_program(MODEL, x, {"likelihood": "bernoulli", "latents": 3, "prior": prior, "hidden": (32,)})
    assert "two runs" not in describe(program, x).obstacle


def test_a_count_of_runs_beside_a_transformed_latent_is_a_state():
    runs = itertools.count(1)

    def counts(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0 + 0.1 * next(runs)), obs=x)

    with pytest.raises(Refusal, match="two runs with the same values"):
        run(counts, np.linspace(0.0, 2.0, 9), "svi", epochs=1)
