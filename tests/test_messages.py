"""What a user can make go wrong ends in one or two sentences that say what to do: no traceback, and no "should not happen"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from test_cli import refused, zoo
from torch.distributions import constraints

from inference import compare, infer, run
from inference._run import folder
from inference._run.failures import in_words
from zoo._errors import UsageError

X = np.random.default_rng(0).normal(size=(30, 2))


def says(pattern, call, *args, **options):
    with pytest.raises(UsageError, match=pattern) as caught:
        call(*args, **options)
    text = str(caught.value)
    assert "\n" not in text and "came" not in text.split()
    return text


# ---- programs that fail where a method takes them


def raises_far(x=None, size=None):
    """A list of a hundred numbers, looked up at a latent: it ends where |z| is over 4."""
    table = torch.linspace(-1.0, 1.0, 100)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z**3 + table[(25 * z.abs()).long()]
        return pyro.sample("x", dist.Normal(loc.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("method", ["svi", "laplace", "importance"])
def test_a_program_that_raises_at_some_values_is_named_with_its_line(method):
    options = {"epochs": 100, "lr": 0.5} if method != "laplace" else {}
    text = says(r"raised IndexError at test_messages\.py:\d+", run, raises_far, X * 100, method, **options)
    assert "'raises_far'" in text and "out of " in text


def test_failures_in_words():
    def inside(error):
        with in_words("mine", "em"):
            raise error

    with pytest.raises(MemoryError, match="em needs more memory than there is; take fewer rows"):
        inside(RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 8 GB"))

    def program():
        raise KeyError("a")

    with (
        pytest.raises(UsageError, match=r"'mine', or its guide, raised KeyError at test_messages\.py"),
        in_words("mine", "em"),
    ):
        pyro.poutine.trace(program).get_trace()
    for kept in (UsageError("x"), OSError("disk"), MemoryError("no"), KeyError("ours")):
        with pytest.raises(type(kept)):
            inside(kept)
    with pytest.raises(
        ArithmeticError, match=r"^em met a matrix that cannot be factored.*'mine'.*Standardize the data"
    ):
        inside(torch.linalg.LinAlgError("linalg.cholesky: The factorization could not be completed"))


@pytest.mark.parametrize("hole", [False, True])
def test_a_density_that_is_no_number_is_blamed_on_what_it_comes_from(hole):
    """Of latents where nothing is missing; of the missing entry where one is read."""

    def program(x=None, size=None):
        mu = pyro.param("mu", torch.tensor(0.5))
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = mu + z + (0 if x is None else x[:, 1]) if hole else torch.where(z > 0, torch.nan, mu + z)
            seen = None if x is None else x[:, :1]
            return pyro.sample("x", dist.Normal(loc.unsqueeze(-1), 1.0, validate_args=False).to_event(1), obs=seen)

    x = X.copy()
    if hole:
        x[4, 1] = np.nan
    text = says(r"the density of site 'x' of 'program' is not a number at row \d+", run, program, x, "svi", epochs=5)
    assert ("missing there" in text and "row 4 " in text) if hole else "for some values of its latents" in text


def test_a_density_without_latents_is_blamed_on_parameters():
    def program(x=None, size=None):
        scale = pyro.param("scale", torch.tensor(-1.0))
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(0.0, scale.log(), validate_args=False).expand([2]).to_event(1), obs=x)

    says("is not a number at row 0 .*at the values its parameters start from", run, program, X, "svi")


# ---- many of a kind are one line


def test_many_empty_or_collapsed_components_are_one_warning():
    fit = run("gmm", np.ones((30, 2)), "em", components=9)
    assert [w for w in fit.warnings if "empty" in w] == [
        "8 of 9 components are empty: each holds less than one of 30 rows."
    ]
    x = np.repeat(np.eye(6) * 100, 5, 0)
    fit = run("gmm", x, "em", components=6)
    assert sum("collapsed" in w for w in fit.warnings) == 1
    assert fit.warnings[0].startswith("6 of 6 components collapsed: in each a variance is at the floor")


# ---- what is asked for


def test_requests_that_cannot_be(here):
    for seed in (-1, 2**32, 1.5, "a", True, None):
        says("Expected a whole number from 0 to 4,000,000,000 for seed", run, "gmm", X, seed=seed)
    says("Expected a whole number of 1 or more for limit, got 0", run, "gmm", X, limit=0)
    says(r"unknown dtype 'torch\.float32'", run, "gmm", X, dtype=torch.float32)
    says("unknown method '3'", run, "gmm", X, 3)
    says("unknown method ''", run, "gmm", X, "")
    says("Expected the path of a folder for out, got 3", run, "gmm", X, out=3)
    says(r"Expected a list of methods to compare, got \[\]", compare, "gmm", X, [])
    says("Expected a list of methods to compare, got 'em'", compare, "gmm", X, "em")
    says("above 1e18, whose squares float32 cannot hold", run, "gmm", X * 1e30, dtype="float32")
    assert list(here.iterdir()) == []


def test_numbers_of_numpy_are_numbers(here):
    fit = run(
        "gmm", X, "svi", seed=np.int64(3), rows=np.int64(20), components=np.int32(2), epochs=np.int64(1), out="run",
        lr=np.float32(0.01),
    )  # fmt: skip
    assert fit.seed == 3 and fit.options["model"] == {"components": 2} and fit.n == 20
    assert run("deep_latent_gaussian", X, "svi", hidden=8, latents=1, epochs=1).parameters


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("4,000,000,000 for seed", ("run", "gmm", "--data", "faithful", "--seed", "4294967296")),
        ("4,000,000,000 for seed", ("run", "gmm", "--data", "faithful", "--seed", "9" * 30)),
        ("Expected a list of methods", ("compare", "gmm", "--data", "faithful", "--methods", "")),
        ("cannot be read: No such file or directory", ("run", "gmm", "--data", "faithful", "--missing", "no.npy")),
        ("unknown method ''", ("run", "gmm", "--data", "faithful", "--method", "")),
    ],
)
def test_commands_that_cannot_be(words, arguments, here):
    refused(words, *arguments)


def test_a_mask_that_is_no_array(here):
    Path("mask.npy").write_text("0,1")
    refused(
        "is not a .npy file of numbers; save an array of 0 and 1",
        "run",
        "gmm",
        "--data",
        "faithful",
        "--missing",
        "mask.npy",
    )


def test_training_that_runs_off_is_a_failure_in_plain_words(here):
    status, out, err = zoo("run", "gmm", "--data", "faithful", "--method", "svi", "--set", "lr=1e300")
    assert status == 1 and out == ""
    assert "training stopped at step" in err and "smaller lr" in err and "should not happen" not in err


def test_nothing_to_impute_in_a_program_without_latents(here):
    def regression(x=None, size=None):
        slope, noise = user.real("slope"), pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with user.rows(x, size):
            pyro.sample("y", dist.Normal(slope * x[:, 0], noise), obs=x[:, 1])

    fit = run(regression, X, "em")
    says("nothing is missing", fit.impute)
    fit.dataset = replace(fit.dataset, x=np.where(np.arange(60).reshape(30, 2) == 5, np.nan, fit.x))
    fit.task.x = torch.as_tensor(fit.x)
    says(r"imputing needs a site that observes a whole row of x, of shape \(2,\); 'y'", fit.impute)
    run(f"{user.__file__}:poisson", np.ones((9, 3)), "em", out="run", max_iter=2)
    refused("nothing is missing in the data of 'run'", "impute", "run")


# ---- runs that meet another program or other latents


def test_a_program_that_was_changed_since_its_run(here):
    text = (
        "import pyro, torch, pyro.distributions as dist\n"
        "def model(x=None, size=None):\n    loc = pyro.param('loc', torch.zeros({}))\n"
        "    with pyro.plate('data', size if x is None else len(x)):\n"
        "        return pyro.sample('x', dist.Normal(loc.expand(2), 1.0).to_event(1), obs=x)\n"
    )
    Path("mine.py").write_text(text.format(2))
    run("mine.py:model", X, "em", out="run")
    Path("mine.py").write_text(text.format(1))
    says("the program changed since this run: 'mine.py:model'", infer, "run", "em", model="mine.py:model")
    pattern = "the θ of 'run' does not fit the model 'mine.py:model' as it is now.*Was its file changed"
    says(pattern, infer, "run", "em", model="mine.py:model", changed_program=True)


def test_a_guide_that_was_changed_since_its_run(here):
    def program(x=None, size=None):
        with user.rows(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1) ** 3, 1.0).expand([*z.shape, 2]).to_event(1), obs=x)

    text = (
        "import pyro, torch, pyro.distributions as dist\n"
        "def guide(x=None, size=None):\n    loc = pyro.param('loc', torch.zeros({}))\n"
        "    with pyro.plate('data', len(x)):\n        pyro.sample('z', dist.Normal(loc[0], 1.0))\n"
    )
    Path("q.py").write_text(text.format(2))
    run(program, X, "svi", guide="q.py:guide", epochs=1, lr=1e-6, out="run")
    Path("q.py").write_text(text.format(1))
    how = {"model": program, "proposal": "guide"}
    says("would execute the Python file of its guide", infer, "run", "importance", **how)
    says("the guide of 'run' does not fit 'q.py:guide' as it is now", infer, "run", "importance", trust=True, **how)


def test_large_data_get_no_simulated_data(monkeypatch):
    monkeypatch.setattr("inference._run.predictive.DRAW_NUMBERS", X.size - 1)
    fit = run("gmm", X, "em", components=2)
    assert not fit.predictive and fit.notes["posterior_predictive"] == "left out: the data are over 59 numbers"
    monkeypatch.setattr("inference._run.predictive.DRAW_NUMBERS", X.size)
    assert len(run("gmm", X, "em", components=2).predictive["x"]) == 1


def test_a_guide_of_other_latents_is_left_behind(here):
    """The run's guide draws what is missing; in the new rows nothing is, and log p(x) is exact."""
    x = (np.random.default_rng(0).random((40, 6)) < 0.5).astype(float)
    holes = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)
    run("missing_pixels", holes, "svi", hidden="4", epochs=2, out="run")
    fit = infer("run", "svi", data=x[:1], epochs=1)
    assert fit.guide is None and fit.claimed.kind == "exact"
    assert folder.load("run").json["guide"] is not None
    more = np.where(np.arange(6) < 5, np.nan, x[:1])  # more are missing than in any row of the run
    assert np.isfinite(infer("run", "svi", data=more, epochs=1).claimed.value)


def test_a_model_is_built_on_the_data_of_its_theta(here):
    """The order in which pixels are drawn, and so the masks of the network, belong to θ, not to the new rows."""
    x = (np.random.default_rng(0).random((40, 6)) < 0.5).astype(float)
    x[:, 2] = np.nan
    first = run("missing_pixels", x, "svi", hidden="4", order="observed-first", epochs=2, out="run")
    other = x[:3].copy()
    other[:, 2], other[:, 5] = 1.0, np.nan
    again = infer("run", "em", data=other)
    np.testing.assert_array_equal(again.program.module.order, first.program.module.order)
    # p(x_obs) is the sum over what is missing of the completed rows' densities, under the first run's own network
    both = []
    for bit in (0.0, 1.0):
        full = torch.as_tensor(np.where(np.isnan(other), bit, other))
        both.append(first.program.trace(full).nodes["x"]["fn"].log_prob(full).detach().numpy())
    np.testing.assert_allclose(again.claimed.per_datum, np.logaddexp(*both), rtol=1e-9)


def test_a_program_that_reads_x_where_there_is_none_hears_what_x_is():
    def by_group(x=None, size=None):
        rates = pyro.param("rates", torch.ones(2), constraint=constraints.positive)
        group = x[:, 1].long()
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Exponential(rates[group]), obs=x[:, 0])

    fit = run(by_group, np.array([[1.5, 0.0], [0.2, 1.0], [0.7, 1.0]]))
    says("x is None where rows are simulated; take its length alone", fit.sample, 3)
