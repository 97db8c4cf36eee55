"""Programs that observe scalars: a column of data reaches them as [n], and everything else holds it as [n, 1]."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scalar_programs as user
import torch
from helpers import in_full, task_of
from scipy import integrate, stats

from inference import infer, run
from inference._pictures import _draw
from zoo._errors import UsageError

FIVE = np.array([0.0, 1, 10, 11, 12])
COUNTS = np.random.default_rng(0).poisson(np.repeat([1.0, 9.0], 30)).astype(float)


def path(name: str) -> str:
    return f"{user.__file__}:{name}"


@pytest.mark.parametrize("data", [FIVE, FIVE[:, None], FIVE.tolist()])
def test_the_tutorial_of_pyro_finds_its_mode(data):
    """As a table the mode is at 10.98 and 0.499, and log p(x | mode) = −8.770."""
    fit = run(user.tutorial, data, "em", restarts=4)
    weights, locs, scale = (fit.parameters[k] for k in ("weights", "locs", "scale"))
    np.testing.assert_allclose(np.sort(locs), [0.499, 10.984], atol=2e-3)
    density = np.log((weights * stats.norm.pdf(FIVE[:, None], locs, scale)).sum(1))
    np.testing.assert_allclose(fit.claimed.per_datum, density, rtol=1e-9)
    assert fit.claimed.value == pytest.approx(-8.770, abs=1e-3)
    assert fit.x.shape == (5, 1) and fit.idata["observed_data"]["x"].shape == (5, 1)
    assert fit.predictive["obs"].shape[1:] == (5,) and fit.predictive["x"].shape[1:] == (5, 1)


@pytest.mark.parametrize("method", ["em", "laplace"])
def test_scalars_and_a_column_of_one_entry_are_one_model(method):
    scalar, column = (run(program, COUNTS, method) for program in (user.mixture, user.mixture_of_columns))
    assert scalar.claimed.value == pytest.approx(column.claimed.value, rel=1e-9)
    for name, value in column.parameters.items():
        np.testing.assert_allclose(scalar.parameters[name], value, rtol=1e-6)


def test_a_linear_gaussian_program_of_scalars_is_exact():
    x = np.random.default_rng(1).normal(3, 2, size=50)
    x[7] = np.nan
    fit = run(user.level, x, "em")
    mean, noise = fit.parameters["mean"], fit.parameters["noise"]
    exact = stats.norm.logpdf(x, mean, np.sqrt(1 + noise**2))
    exact[7] = 0
    np.testing.assert_allclose(fit.claimed.per_datum, exact, rtol=1e-8)
    assert fit.parameters["mean"] == pytest.approx(np.nanmean(x), rel=1e-4)
    imputed = fit.impute()
    assert imputed.mean.shape == (50, 1) and imputed.draws.shape == (20, 50, 1)
    assert imputed.mean[7, 0] == pytest.approx(mean, rel=1e-6)
    assert imputed.sd[7, 0] == pytest.approx(np.sqrt(1 + noise**2), rel=1e-6)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("laplace", {}),
        ("svi", {"epochs": 3}),
        ("importance", {"epochs": 3, "samples": 200}),
        ("importance", {"proposal": "laplace", "samples": 200}),
        ("importance", {"proposal": "prior", "samples": 500}),
        *in_full(("ais", {"temperatures": 100, "chains": 8})),
    ],
)
def test_every_method_serves_scalars(method, options):
    x = np.array([0.2, -0.5, 1.5, np.nan])
    fit = run(user.bent, x, method, **options)

    def density(z, x):
        return stats.norm.pdf(z) * stats.norm.pdf(x, z + 0.3 * z**2, 0.5)

    exact = [np.log(integrate.quad(density, -9, 9, (v,), points=(-4, -1, 0, 1), limit=200)[0]) for v in x[:3]] + [0.0]
    if method == "svi":
        assert np.all(fit.claimed.per_datum < np.array(exact) + 4 * fit.claimed.se_per_datum + 1e-9)
    elif method == "importance" or method == "ais":
        assert np.all(np.abs(fit.claimed.per_datum - exact) < 5 * fit.claimed.se_per_datum + 1e-2)
    found = fit.verified
    assert np.all(np.abs(found.per_datum - exact) < 5 * found.se_per_datum + 1e-6)
    assert np.isfinite(fit.impute(draws=5).mean).all()


def test_gibbs_serves_scalars(here):
    run(path("mixture"), COUNTS, "em", out="run")
    assert infer("run", "gibbs", sweeps=20, warmup=5).probabilities["z"].shape == (60, 2)


def test_a_run_of_scalars_is_kept_drawn_and_met_again(here):
    x = np.concatenate([FIVE, [np.nan]])
    first = run(path("tutorial"), x, "em", out="run")
    assert {p.stem for p in _draw.plot("run")} >= {"clusters", "trace", "missing"}
    again = infer("run", "em")
    np.testing.assert_array_equal(again.x, first.x)
    row = infer("run", "em", data=np.array([10.0]))
    np.testing.assert_allclose(row.claimed.per_datum, first.claimed.per_datum[2:3], rtol=1e-9)


def test_a_class_of_scalars_is_built_on_scalars():
    fit = run(user.Built, FIVE, "em")
    assert fit.parameters["mean"] == pytest.approx(FIVE.mean())


def test_a_program_that_takes_a_column_gets_a_column():
    seen = []

    def program(x=None, size=None):
        seen.append(None if x is None else x.dim())
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=None if x is None else x[:, 0])

    task = task_of(program, FIVE[:, None])
    assert not task.program.scalar and set(seen) == {2}
    assert not task_of("gmm", FIVE[:, None]).program.scalar
    for n in (1, 2):  # so few rows that a mix-up would fit
        assert not task_of(user.mixture_of_columns, COUNTS[:n, None]).program.scalar
        assert task_of(user.mixture, COUNTS[:n, None]).program.scalar


def test_a_table_of_two_columns_is_no_data_for_scalars():
    with pytest.raises(UsageError, match=r"expects values of its distribution's shape \(30,\), got shape \(30, 2\)"):
        run(user.mixture, COUNTS.reshape(30, 2), "em")


def test_a_program_that_takes_neither_is_refused_for_what_it_does_with_a_column():
    def raises(x=None, size=None):
        with user.rows(x, size):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    with pytest.raises(UsageError, match=r"expects values of its distribution's shape \(5, 3\), got shape \(5, 1\)"):
        run(raises, FIVE, "em")
    with pytest.raises(UsageError, match="outside the support of site 'x'"):
        run(user.mixture, FIVE - 0.5, "em")
