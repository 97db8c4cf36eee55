"""The deep latent Gaussian model: its special cases against exact answers, a small one on digits, and bad input."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import in_full, structure_of, task_of
from scipy import special, stats
from sklearn.datasets import load_digits

from inference import infer, load, run
from inference._run import prepare
from zoo._data import datasets
from zoo._data.roles import Roles
from zoo._errors import Refusal, UsageError

WINE = datasets.load("wine", standardize=True).x
BITS = (np.random.default_rng(0).random((60, 9)) < 0.4).astype(float)


# ---- special cases --------------------------------------------------------------------------------------------------


def test_a_linear_decoder_is_factor_analysis():
    """The same density, found to be linear-Gaussian by the structure, so that exact EM runs and agrees."""
    assert structure_of("deep_latent_gaussian", WINE, decoder="linear", latents=2).exact == "linear-gaussian"
    deep = run("deep_latent_gaussian", WINE, "em", decoder="linear", latents=2, tol=1e-9)
    assert deep.verified.value == pytest.approx(-2747.191, abs=0.005)
    factors = run("factor_analysis", WINE, "em", latents=2, tol=1e-9)
    assert deep.verified.value == pytest.approx(factors.verified.value, abs=1e-3)


def test_em_says_why_not():
    with pytest.raises(Refusal, match=r"not quadratic in the continuous latents 'z'.*svi"):
        run("deep_latent_gaussian", WINE, "em")


def test_the_density_is_the_formula():
    """log p(x, z) by NumPy, with one hidden layer."""
    task = task_of("deep_latent_gaussian", WINE, latents=2, hidden=(7,), activation="tanh")
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    z = np.random.default_rng(1).normal(size=(178, 2))
    h = np.tanh(z @ theta["decoder.0.weight"].T + theta["decoder.0.bias"])
    out = h @ theta["decoder.2.weight"].T + theta["decoder.2.bias"]
    scale = np.log1p(np.exp(out[:, 13:])) + 0.01  # in units of the columns' own: they are standardised
    truth = stats.norm(out[:, :13], scale).logpdf(WINE).sum(1)
    trace = task.program.trace(task.x, latents={"z": torch.as_tensor(z)})
    np.testing.assert_allclose(trace.nodes["x"]["fn"].log_prob(task.x).detach().numpy(), truth, rtol=1e-10)


def test_a_mixture_prior_and_its_evidence_by_quadrature():
    task = task_of(
        "deep_latent_gaussian",
        BITS,
        likelihood="bernoulli",
        latents=1,
        prior="mixture",
        components=3,
        hidden=(5,),
        activation="tanh",
    )
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    grid = np.linspace(-9, 9, 4001)
    prior = special.logsumexp(
        np.log(theta["weights"]) + stats.norm(theta["locs"][:, 0], theta["scales"][:, 0]).logpdf(grid[:, None]), axis=1
    )
    h = np.tanh(grid[:, None] @ theta["decoder.0.weight"].T + theta["decoder.0.bias"])
    logits = h @ theta["decoder.2.weight"].T + theta["decoder.2.bias"]  # [grid, 9]
    log_x = BITS @ logits.T - np.logaddexp(0, logits).sum(1)  # [n, grid]
    truth = special.logsumexp(log_x + prior, axis=1) + math.log(grid[1] - grid[0])
    fit = run(
        "deep_latent_gaussian", BITS, "importance", likelihood="bernoulli", latents=1, prior="mixture", components=3,
        hidden=(5,), activation="tanh", proposal="prior", samples=4000, epochs=1, lr=1e-12,
    )  # fmt: skip
    assert abs(fit.claimed.value - truth.sum()) < 4 * fit.claimed.se + 1e-6


def test_with_labels_the_decoder_is_told():
    """p(x | z, label): with the labels of others the evidence is another, and a label outside of the classes is refused."""
    labels = np.random.default_rng(3).integers(3, size=60)
    x = np.column_stack([BITS, labels])
    options = {"likelihood": "bernoulli", "latents": 2, "classes": 3, "hidden": (8,)}
    task = task_of("deep_latent_gaussian", x, **options)
    assert {s.name: s.event_shape for s in task.structure.sites} == {"z": (2,), "x": (9,)}
    z = {"z": torch.zeros(60, 2, dtype=torch.float64)}
    other = task.x.clone()
    other[:, -1] = (other[:, -1] + 1) % 3
    logits = [task.program.trace(v, latents=z).nodes["x"]["fn"].base_dist.logits for v in (task.x, other)]
    assert not torch.allclose(*logits)
    assert run("deep_latent_gaussian", x, "svi", epochs=2, **options).claimed.kind == "lower bound"
    with pytest.raises(UsageError, match="a label from 0 to 1 in"):
        run("deep_latent_gaussian", x, "svi", **options | {"classes": 2})


def test_labels_become_codes_in_the_last_column():
    table = pd.DataFrame({"kind": ["b", "a", "b"], "v": [1.0, 2.0, 3.0]})
    found = datasets.load(table, labels="kind", standardize=True, told=True)
    assert found.columns == ("v", "kind") and found.x[:, 1].tolist() == [1, 0, 1] and abs(found.x[:, 0].sum()) < 1e-12
    assert found.center.tolist() == [2, 0] and datasets.load(table[["v"]], told=True).columns == ("v",)
    like = Roles.stored(found.columns, found.options)
    assert datasets.load(table[:1], like=like).x[0].tolist() == [1, 1]  # of one row, `b` is still the run's 1
    assert datasets.load("digits", told=True).x[:, 64].tolist() == datasets.load("digits").labels.tolist()
    for wrong, words in (
        ({"kind": ["b", "c"], "v": [1, 2]}, "Expected labels of the run .a, b., got 'c'"),
        ({"v": [1]}, "has none"),
        ({"kind": ["b", ""], "v": [1, 2]}, "row 1 .counting from 0. has none"),
    ):
        with pytest.raises(UsageError, match=words):
            datasets.load(pd.DataFrame(wrong), like=like)
    with pytest.raises(UsageError, match="binarize=dynamic and labels"):
        datasets.load("digits", told=True, binarize="dynamic")


@pytest.mark.full
def test_labels_of_the_data_are_what_the_decoder_is_told(tmp_path):
    """The same numbers as with the codes in x, also of new rows of fewer labels; intensities are binarised as the run's."""
    options = {"likelihood": "bernoulli", "latents": 2, "hidden": (8,), "epochs": 2, "classes": 3, "binarize": 8.0}
    bunch = load_digits(n_class=3)
    x, y = bunch.data[:60], bunch.target[:60]
    table = pd.DataFrame(x).add_prefix("p").assign(digit=np.array(["nought", "one", "two"])[y])
    found = run("deep_latent_gaussian", table, "svi", labels="digit", out=tmp_path / "run", **options)
    bits = np.c_[x > 8, y].astype(float)
    other = run("deep_latent_gaussian", bits, "svi", **{k: v for k, v in options.items() if k != "binarize"})
    assert found.claimed.value == other.claimed.value
    for of in (found, load(tmp_path / "run")):
        some = of.score(table[y == 2])  # their only label is the run's third
        np.testing.assert_allclose(some.per_datum, of.score(table).per_datum[y == 2], atol=1.5)
        assert abs(some.value - other.score(bits[y == 2]).value) < 4 * some.se + 1e-9


@pytest.mark.parametrize(
    "options", [{"layers": 2}, {"prior": "mixture"}, *in_full({"activation": "relu"}), {"hidden": ()}]
)
def test_every_option_runs_bounds_and_simulates(options):
    fit = run("deep_latent_gaussian", WINE[:40], "svi", epochs=3, latents=2, **{"hidden": (8,), **options})
    slack = 4 * math.hypot(fit.claimed.se, fit.verified.se)
    assert fit.claimed.value <= fit.verified.value + slack
    assert fit.predictive["x"].shape[1:] == (40, 13)


# ---- priors ----------------------------------------------------------------------------------------------------------------


def test_with_priors_the_weights_are_latents_with_neals_scales():
    """log p(x, z, weights) by SciPy; the weights begin where they do without priors, not at the saddle of all 0."""
    options = {"latents": 2, "hidden": (7,), "activation": "tanh", "priors": True}
    task = task_of("deep_latent_gaussian", WINE, **options)
    assert not task.structure.learnable
    g = {n: v.numpy() for n, v in task.global_start().items()}
    assert {n: v.shape for n, v in g.items()} == {
        "decoder.0.weight": (7, 2), "decoder.0.bias": (7,), "decoder.2.weight": (26, 7), "decoder.2.bias": (26,),
    }  # fmt: skip
    assert min(abs(g[f"decoder.{k}.weight"]).max() for k in (0, 2)) > 0.1
    z = np.random.default_rng(1).normal(size=(178, 2))
    out = np.tanh(z @ g["decoder.0.weight"].T + g["decoder.0.bias"]) @ g["decoder.2.weight"].T + g["decoder.2.bias"]
    truth = (
        stats.norm(out[:, :13], np.log1p(np.exp(out[:, 13:])) + 0.01).logpdf(WINE).sum() + stats.norm.logpdf(z).sum()
    )
    for k, inputs in ((0, 2), (2, 7)):
        truth += stats.norm(0, inputs**-0.5).logpdf(g[f"decoder.{k}.weight"]).sum()
        truth += stats.norm.logpdf(g[f"decoder.{k}.bias"]).sum()
    trace = task.program.trace(task.x, latents={**task.global_start(), "z": torch.as_tensor(z)})
    assert float(trace.log_prob_sum()) == pytest.approx(truth, rel=1e-10)


COUNTS = np.array([9, 2, 3, 6])  # of the rows (0, 0), (0, 1), (1, 0), (1, 1)
TWO_BITS = np.repeat([[0.0, 0.0], [0, 1], [1, 0], [1, 1]], COUNTS, axis=0)
ONE_UNIT = {"latents": 1, "hidden": (1,), "activation": "tanh", "likelihood": "bernoulli", "priors": True}


def of_one_unit(draws):
    """log p(x) of two bits under one hidden unit, and its standard error: weights from their priors, z by Gauss–Hermite
    quadrature."""
    rng = np.random.default_rng(0)
    z, w = special.roots_hermitenorm(32)
    first, share = rng.normal(size=(2, draws, 1)), TWO_BITS.mean(0)
    second = 2.5 * rng.normal(size=(2, draws, 2)) + np.stack([np.zeros(2), np.log(share / (1 - share))])[:, None]
    h = np.tanh(first[0] * z + first[1])  # [draws, nodes]
    a, b = (special.expit(second[0][:, d, None] * h + second[1][:, d, None]) for d in range(2))
    cells = np.stack([p @ w / w.sum() for p in ((1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b)], 1)
    log_p = np.log(cells) @ COUNTS
    p = np.exp(log_p - log_p.max())
    return log_p.max() + np.log(p.mean()), p.std() / p.mean() / draws**0.5


@pytest.mark.slow
def test_a_network_of_one_unit_against_quadrature():
    """log p(x) with all weights integrated out: annealing finds it, and svi's bound lies below."""
    truth, se = of_one_unit(20_000)
    found = run("deep_latent_gaussian", TWO_BITS, "ais", temperatures=60, chains=60, **ONE_UNIT).claimed
    assert found.kind in ("estimate", "lower bound")
    assert abs(found.value - truth) < 4 * math.hypot(se, found.se)
    bound = run("deep_latent_gaussian", TWO_BITS, "svi", epochs=40, **ONE_UNIT).claimed
    assert bound.kind == "lower bound" and bound.value < truth + 4 * math.hypot(se, bound.se)


@pytest.mark.slow
def test_a_network_of_one_unit_by_nuts():
    truth, se = of_one_unit(200_000)
    fit = run("deep_latent_gaussian", TWO_BITS, "nuts", **ONE_UNIT)
    assert fit.converged and abs(fit.claimed.value - truth) < 4 * math.hypot(se, fit.claimed.se)


@pytest.mark.slow
def test_laplace_claims_nothing_at_a_saddle():
    """Of three units the climb ends on a slope, where the damped Hessian made a log p(x) some 40 nats above svi's bound."""
    x = datasets.load("faithful", standardize=True).x[:100]
    fit = run("deep_latent_gaussian", x, "laplace", latents=1, hidden=(3,), activation="tanh", priors=True)
    assert fit.claimed is None and not fit.converged and "there is no mode here" in fit.warnings[0]


def test_a_linear_decoder_with_priors_is_bayesian_factor_analysis():
    """Given the globals the latents are integrated out exactly: log p(x, globals) is SciPy's."""
    x = WINE[:40, :4]
    task = task_of("deep_latent_gaussian", x, latents=2, decoder="linear", priors=True)
    assert task.structure.exact == "linear-gaussian"
    g = {n: v.numpy() for n, v in task.global_start().items()}
    W, b, noise = g["decoder.0.weight"], g["decoder.0.bias"], g["noise"]
    center, spread = x.mean(0), x.std(0)
    rows = stats.multivariate_normal(
        center + spread * b, np.outer(spread, spread) * (W @ W.T) + np.diag(noise**2)
    ).logpdf(x)
    np.testing.assert_allclose(task.engine.per_datum(globals=task.global_start()).numpy(), rows, rtol=1e-9)
    prior = stats.norm(0, 0.5**0.5).logpdf(W).sum() + stats.norm.logpdf(b).sum()
    prior += stats.halfnorm(scale=spread).logpdf(noise).sum()
    assert float(task.engine.log_prior(globals=task.global_start())) == pytest.approx(prior, rel=1e-9)


@pytest.mark.full
@pytest.mark.parametrize(
    "options", [{"hidden": (4,)}, {"layers": 2, "hidden": (2,)}, {"prior": "mixture", "components": 2, "hidden": (4,)}]
)
def test_priors_by_mini_batches_with_a_hole(options, tmp_path):
    """The run is saved, fills in and answers new rows; predictive draws are of the posterior of the weights."""
    x = WINE[:40, :3].copy()
    x[3, 1] = np.nan
    fit = run(
        "deep_latent_gaussian", x, "svi", latents=1, priors=True, epochs=3, optimizer="adam", globals="diagonal",
        out=tmp_path / "run", **options,
    )  # fmt: skip
    assert fit.claimed.kind == "lower bound"
    assert [v.shape[1:] for v in fit.predictive.values()] == [(40, 3)]
    again = load(tmp_path / "run")
    assert np.isfinite(again.impute(draws=5).mean).all()
    assert len(again.predict(x[:5])) == 5


@pytest.mark.parametrize("options", [{"decoder": "conv"}, {"prior": "flow"}])
def test_priors_of_other_networks_are_refused(options):
    with pytest.raises(UsageError, match="priors=true goes with decoder=mlp or linear and prior=standard or mixture"):
        task_of("deep_latent_gaussian", BITS[:, :16], priors=True, **options)


# ---- images of digits -----------------------------------------------------------------------------------------------------


SMALL = {"epochs": 10, "hidden": (50,), "rows": 10, "temperatures": 200, "chains": 8}
LARGE = {"epochs": 40, "hidden": (100,), "rows": 20, "temperatures": 1000, "chains": 16}


def check_estimates(folder, some, samples, annealing, fail):
    """The importance estimate lies above the ELBO, agrees with annealing, and naive Monte Carlo fails for a share `fail`."""
    weighted = infer(folder, "importance", samples=samples, **some)
    naive = infer(folder, "importance", proposal="prior", samples=samples // 5, **some)
    annealed = infer(folder, "ais", **annealing, **some)
    bound = infer(folder, "svi", epochs=1, lr=1e-9, **some)
    assert bound.claimed.value + 4 * bound.claimed.se < weighted.claimed.value
    error = math.hypot(annealed.claimed.se, weighted.claimed.se)
    assert abs(annealed.claimed.value - weighted.claimed.value) < 4 * error
    assert np.mean(naive.khat > 0.7) > fail  # and says so
    assert naive.claimed.value < weighted.claimed.value


@pytest.mark.full
def test_small_digits(tmp_path, monkeypatch):
    """Of 8 × 8 pixels, in float32 as larger data are."""
    monkeypatch.setattr(prepare, "LARGE_NUMBERS", 10_000)
    fit = run(
        "deep_latent_gaussian", "digits", "svi", rows=600, binarize="dynamic", likelihood="bernoulli", latents=6,
        hidden=(30,), activation="tanh", epochs=60, batch=50, lr=0.01, schedule="cosine", held_out=0.1, out=tmp_path / "run",
    )  # fmt: skip
    assert fit.options["dtype"] == "float32"
    assert -32 < fit.claimed.value / fit.n < -20
    some = {"data": "digits", "rows": 8, "binarize": "fixed"}
    check_estimates(tmp_path / "run", some, 1500, {"temperatures": 100, "chains": 6}, fail=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_mnist5k_in_a_minute(size, tmp_path):
    fit = run(
        "deep_latent_gaussian", "mnist5k", "svi", binarize="dynamic", likelihood="bernoulli", latents=10,
        hidden=size["hidden"], epochs=size["epochs"], schedule="cosine", held_out=0.1, out=tmp_path / "run",
    )  # fmt: skip
    assert fit.seconds < 120 and fit.options["dtype"] == "float32"
    assert -160 < fit.claimed.value / fit.n < -100
    some = {"data": "mnist5k", "rows": size["rows"], "binarize": "fixed"}
    check_estimates(tmp_path / "run", some, 5000, {k: size[k] for k in ("temperatures", "chains")}, fail=0.9)


# ---- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (
            BITS / 2,
            {"likelihood": "bernoulli"},
            "expects data of 0 and 1, got data from 0 to 0.5. Binarise them (--binarize",
        ),
        (WINE, {"likelihood": "bernoulli"}, "expects data of 0 and 1"),
        (np.zeros((4, 3, 2)), {}, "expects a 2-D table"),
        (WINE, {"latents": 0}, "latents must be more than zero"),
        (WINE, {"likelihood": "poisson"}, "likelihood must be one of gaussian, bernoulli"),
        (WINE, {"prior": "mixture", "layers": 2}, "expects layers=1 with prior=mixture"),
    ],
)
def test_bad_input(x, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        run("deep_latent_gaussian", x, "svi", **options)


def test_constant_images_and_a_batch_larger_than_the_data():
    constant = np.tile(BITS[:1], (20, 1))
    fit = run("deep_latent_gaussian", constant, "svi", likelihood="bernoulli", latents=2, epochs=3, batch=1000)
    assert math.isfinite(fit.verified.value)
    fit = run("deep_latent_gaussian", np.ones((20, 4)), "svi", latents=2, epochs=3)
    assert math.isfinite(fit.verified.value)


def test_missing_pixels_are_left_out():
    x = np.where(np.random.default_rng(5).random(BITS.shape) < 0.3, np.nan, BITS)
    x[3] = np.nan
    fit = run("deep_latent_gaussian", x, "svi", likelihood="bernoulli", latents=2, epochs=20)
    assert fit.verified.per_datum[3] == pytest.approx(0, abs=0.1)  # nothing was observed: the empty product
    found = fit.impute(draws=5)
    assert np.array_equal(found.mean[~np.isnan(x)], x[~np.isnan(x)])
    assert np.all((found.mean >= 0) & (found.mean <= 1))
