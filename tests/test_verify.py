"""The verifier: exact claims are held against the program itself, estimates against better proposals."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import hide, task_of
from scipy import special, stats

from inference import run
from inference._method.fit import Evidence, Fit
from inference._run import verify
from inference._run._own import own_route
from zoo._program.structure import Structure


def rows(x, size):
    return pyro.plate("data", size if x is None else len(x))


def mixture(x=None, size=None):
    """A mixture of two regressions on z: conditionally linear-Gaussian."""
    with rows(x, size):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        slope = torch.tensor([[1.0, -2.0], [0.5, 3.0]])[k]
        return pyro.sample(
            "x", dist.Normal((slope * z).sum(-1, keepdim=True) + k.unsqueeze(-1), 0.5).to_event(1), obs=x
        )


def tempered(x=None, size=None):
    with rows(x, size):
        with pyro.poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def three_bits(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x), dim=-1):
        with pyro.plate("bits", 3, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        total = z.sum(-2, keepdim=True) if z.dim() > 1 else z
        loc = total.squeeze(-2) if total.shape[-2:-1] == (1,) else total
        return pyro.sample("x", dist.Normal(2.0 * loc.unsqueeze(-1), 1.0).to_event(1), obs=x)


def seen(program, x):
    task = task_of(program, x)
    return own_route.log_evidence(task, torch.arange(len(x)), {}).numpy()


# ---- the witness is right --------------------------------------------------------------------------------------------


def test_a_mixture_with_continuous_latents_against_its_closed_form():
    x = np.random.default_rng(0).normal(size=(7, 1)) * 3
    each = [
        np.log(w) + stats.norm.logpdf(x[:, 0], k, np.sqrt(a * a + b * b + 0.25))
        for k, (w, a, b) in enumerate([(0.3, 1.0, -2.0), (0.7, 0.5, 3.0)])
    ]
    truth = special.logsumexp(each, axis=0)
    np.testing.assert_allclose(seen(mixture, x), truth, rtol=1e-10)
    task = task_of(mixture, x)
    np.testing.assert_allclose(own_route.in_place(task, {}).numpy(), truth, rtol=1e-10)


def test_a_scaled_latent_against_quadrature():
    x = np.random.default_rng(1).normal(size=(5, 1)) * 2
    g = np.linspace(-15, 15, 8001)
    truth = [
        special.logsumexp(stats.norm.logpdf(v, g, 1) + 0.5 * stats.norm.logpdf(g)) + np.log(g[1] - g[0])
        for v in x[:, 0]
    ]
    np.testing.assert_allclose(seen(tempered, x), truth, rtol=1e-9)


def test_copies_in_a_plate_against_brute_force():
    x = np.random.default_rng(2).normal(size=(6, 1)) * 2 + 2
    each = [stats.binom.logpmf(k, 3, 0.3) + stats.norm.logpdf(x[:, 0], 2 * k, 1) for k in range(4)]
    np.testing.assert_allclose(seen(three_bits, x), special.logsumexp(each, axis=0), rtol=1e-10)


def test_missing_entries_against_the_engine():
    x = hide(np.random.default_rng(3).normal(size=(20, 3)), 0.3)
    task = task_of("factor_analysis", x, latents=2)
    np.testing.assert_allclose(seen_of(task), task.exact.per_datum().detach().numpy(), rtol=1e-9)


def seen_of(task):
    return own_route.log_evidence(task, torch.arange(len(task.x)), {}).numpy()


# ---- false claims end the run -----------------------------------------------------------------------------------------


def claimed_exact(monkeypatch, exact: str, **facts):
    """From here on every program is taken for exact, as a detection that errs would."""
    from inference._run import prepare

    original = prepare.describe

    def trusting(*args, **kwargs):
        from dataclasses import replace

        found: Structure = original(*args, **kwargs)
        return replace(found, exact=exact, reason="it says so", **facts)

    monkeypatch.setattr(prepare, "describe", trusting)


def kinked(x=None, size=None):
    """Linear but beyond 1.5: no curvature shows it near the origin."""
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(torch.where(z > 1.5, 3 * z, z).unsqueeze(-1), 1.0).to_event(1), obs=x)


def test_a_log_joint_that_is_not_quadratic(monkeypatch):
    claimed_exact(monkeypatch, "linear-gaussian")
    with pytest.raises(ArithmeticError, match=r"not quadratic in 'z' at row \d+.*importance or ais"):
        run(kinked, np.random.default_rng(4).normal(size=(50, 1)), "em")


def sharp(x=None, size=None):
    """Quadratic, of numbers of which float64 keeps fewer digits than the noise has."""
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1e6))
        return pyro.sample("x", dist.Normal(z.unsqueeze(-1).repeat_interleave(2, -1), 1e-7).to_event(1), obs=x)


def test_what_rounding_hides_is_not_called_another_form():
    x = 1e6 * np.random.default_rng(0).normal(1.0, 1.0, (20, 1)) + 1e-7 * np.random.default_rng(1).normal(size=(20, 2))
    with pytest.raises(
        ArithmeticError, match=r"cannot be told at row \d+.*last digits of 'z' move it by .*--standardize"
    ):
        run(sharp, x, "em")


def joined(x=None, size=None):
    """Each row's mean depends on the state of the row before."""
    with rows(x, size):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        before = torch.cat([torch.zeros_like(k[..., :1]), k[..., :-1]], -1)
        return pyro.sample("x", dist.Normal((k + 2 * before).unsqueeze(-1), 1.0).to_event(1), obs=x)


def numbered(x=None, size=None):
    """Each row's mean is its number, which chunks of rows lose."""
    with rows(x, size):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        n = size if x is None else len(x)
        return pyro.sample("x", dist.Normal((k + torch.arange(n)).unsqueeze(-1), 1.0).to_event(1), obs=x)


def test_rows_that_depend_on_each_other(monkeypatch):
    claimed_exact(monkeypatch, "enumerable", obstacle="", assignments=2)
    with pytest.raises(ArithmeticError, match="two exact values"):
        run(joined, np.random.default_rng(5).normal(size=(40, 1)), "em")


def test_rows_that_read_their_number_are_verified_in_their_place():
    x = np.random.default_rng(6).normal(size=(40, 1)) + np.arange(40)[:, None]
    task = task_of(numbered, x)
    each = [np.log(p) + stats.norm.logpdf(x[:, 0], np.arange(40) + k, 1) for k, p in ((0, 0.6), (1, 0.4))]
    np.testing.assert_allclose(own_route.in_place(task, {}).numpy(), special.logsumexp(each, axis=0), rtol=1e-10)


def test_the_command_ends_with_status_1_and_writes_nothing(monkeypatch, here):
    from pathlib import Path

    from typer.testing import CliRunner

    from zoo.__main__ import app

    def off(task, rows, point):
        return task.exact.per_datum(None, point)[rows] + 1e-3

    monkeypatch.setattr(own_route, "log_evidence", off)
    monkeypatch.setattr(own_route, "in_place", lambda task, point: None)
    np.savetxt("x.csv", np.random.default_rng(7).normal(size=(30, 2)), delimiter=",", header="a,b", comments="")
    done = CliRunner().invoke(
        app, ["run", "gmm", "--data", "x.csv", "--method", "em", "--out", "one", "--set", "components=2"]
    )
    assert done.exit_code == 1 and done.stdout == ""
    assert "two exact values of log p(x)" in done.stderr and "Traceback" not in done.stderr
    assert not Path("one").exists()


def test_a_claim_that_differs_from_the_verified_value():
    task = task_of(user.bernoulli, (np.random.default_rng(8).random((30, user.D)) < 0.4).astype(float))
    right = task.exact.per_datum().detach().numpy()
    for value in (right + 1e-3, np.where(np.arange(30) == 7, right - 1e-4, right)):
        fit = Fit(parameters={}, claimed=Evidence.from_per_datum(value, "exact"))
        with pytest.raises(ArithmeticError, match=r"as claimed and .* as verified"):
            verify.verify(task, fit)


# ---- estimates ----------------------------------------------------------------------------------------------------------


def squares(x=None, size=None):
    with rows(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        return pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), 0.5).to_event(1), obs=x)


def test_methods_at_one_theta_are_verified_alike_and_right():
    """x ~ N(z², ½): two modes. Each method sees what it sees; the verifier sees both."""
    rng = np.random.default_rng(9)
    x = ((10 * rng.choice([-1, 1], 12) * rng.uniform(0.4, 1.5, 12)) ** 2 + 0.5 * rng.normal(size=12))[:, None]
    g = np.linspace(-60, 60, 600_001)
    truth = sum(
        special.logsumexp(stats.norm.logpdf(v, g**2, 0.5) + stats.norm.logpdf(g, 0, 10)) + np.log(g[1] - g[0])
        for v in x[:, 0]
    )
    fits = [
        run(squares, x, "laplace"),
        run(squares, x, "importance", epochs=20, samples=400),
        run(squares, x, "importance", proposal="laplace"),
    ]
    for fit in fits:
        assert fit.verified.kind == "estimate", fit.warnings
        assert abs(fit.verified.value - truth) < 4 * fit.verified.se
        assert fit.claimed.kind != "estimate" or abs(fit.claimed.value - truth) < 0.2


def test_a_claim_below_the_verified_value_is_a_lower_bound():
    x = np.random.default_rng(10).normal(size=(20, 1)) * 1.2
    task = task_of(mixture, x)
    right = task.exact.per_datum().detach().numpy()
    fit = Fit(parameters={}, claimed=Evidence.from_per_datum(right - 0.5, "estimate", np.full(20, 0.01)))
    fit, _ = verify.verify(task, fit)
    assert fit.claimed.kind == "lower bound" and any(
        "10 nats below the verified exact value" in w for w in fit.warnings
    )
    fit = Fit(parameters={}, claimed=Evidence.from_per_datum(right + 0.5, "lower bound", np.full(20, 0.01)))
    fit, _ = verify.verify(task, fit)
    assert any("(lower bound) lies 10 nats above the verified exact value" in w for w in fit.warnings)


def test_a_program_without_latents_whose_rows_depend():
    def centred(x=None, size=None):
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        with rows(x, size):
            m = torch.zeros(size, 1) if x is None else x.mean(0, keepdim=True).expand(len(x), 1)
            return pyro.sample("x", dist.Normal(m, s).to_event(1), obs=x)

    x = np.random.default_rng(11).normal(size=(30, 1)) + 1
    task = task_of(centred, x)
    _, found = verify.verify(task, Fit(parameters={}, claimed=None))
    assert found.value == pytest.approx(stats.norm.logpdf(x, x.mean(), 1.0).sum())
