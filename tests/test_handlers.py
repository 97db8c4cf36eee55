"""`poutine.scale`, `mask` and `infer=` in svi and laplace: what they mean to Pyro, on local, global and observed sites."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import user_programs as user
from helpers import in_full, task_of
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from scipy import special, stats
from torch.distributions import constraints

import guides
from inference import laplace, run, svi
from inference._numerics.coordinates import bijection
from inference._training import elbo as _elbo
from inference._training import fixed_draws
from zoo._errors import Refusal

X = np.random.default_rng(0).normal(1.0, 1.2, (15, 2))
HANDLERS = {
    "none": None,
    "scale": lambda x: pyro.poutine.scale(scale=3.0),
    "mask all": lambda x: pyro.poutine.mask(mask=False),
    "mask some": lambda x: pyro.poutine.mask(mask=x[:, 0] > 0.5),
    "scale some": lambda x: pyro.poutine.scale(scale=1.0 + (x[:, 1] > 1.0)),
}


def program(where: str, handler: str, discrete: bool):
    """A program with one handler around one of its sites."""

    def around(site, x):
        how = HANDLERS[handler] if site == where and x is not None else None
        return pyro.poutine.scale(scale=1.0) if how is None else how(x)

    def model(x=None, size=None):
        with around("global", x):
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0), infer={"note": 1})
        with user.rows(x, size):
            with around("local", x):
                if discrete:
                    z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
                else:
                    z = pyro.sample("z", dist.Normal(0.5, 1.5))
            with around("observed", x):
                loc = (mu + z.sin()).unsqueeze(-1).expand(*z.shape, 2)
                return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model


@pytest.mark.parametrize("discrete", [False, *in_full(True)])
@pytest.mark.parametrize(
    ("where", "handler"),
    [("global", "scale"), ("global", "mask all"), *((w, h) for w in ("local", "observed") for h in list(HANDLERS)[1:])],
)
def test_the_bound_is_pyros(where, handler, discrete):
    """By every way that the bound is worked out, at the same guide."""
    model = program(where, handler, discrete)
    task = task_of(model, X)
    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    torch.manual_seed(0)
    guide = guides.make("mean_field", task.structure, task.x, task.global_start(), bijections)
    with torch.no_grad():
        for table in guide.tables.values():
            table.add_(0.3 * torch.randn_like(table))
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if discrete else Trace_ELBO()
    q = config_enumerate(guide, "parallel", expand=False) if discrete else guide
    ours, fixed = _elbo.objective(task, guide, 1), fixed_draws.FixedDraws(task, guide)
    with task.program.settings(), torch.no_grad():
        theirs = np.array([-elbo.loss(task.program, q, task.x) for _ in range(150)])
        found = [
            np.array([float(ours(slice(None), task.x)) * len(X) for _ in range(80)]),
            fixed.all_values(fixed.draw(1000, torch.Generator().manual_seed(0), plain=True)).numpy(),
        ]
    for values in found:
        error = np.hypot(values.std() / len(values) ** 0.5, theirs.std() / len(theirs) ** 0.5)
        assert abs(values.mean() - theirs.mean()) < 4.5 * error + 1e-9


def test_a_tempered_prior_is_no_bound_above_the_truth():
    def model(x=None, size=None):
        with pyro.poutine.scale(scale=5.0):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with user.rows(x, size):
            return pyro.sample("x", dist.Normal(mu.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)

    x, grid = np.random.default_rng(10).normal(1, 1.1, (60, 1)), np.linspace(-5, 5, 20001)
    joint = stats.norm.logpdf(x, grid, 1).sum(0) + 5 * stats.norm.logpdf(grid)
    truth = special.logsumexp(joint) + np.log(grid[1] - grid[0])
    for method in ("svi", "laplace"):
        assert run(model, x, method).claimed.value == pytest.approx(truth, abs=1e-3)


@pytest.mark.full
def test_a_prior_that_is_masked_out_does_not_pull():
    def model(x=None, size=None):
        with pyro.poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(0.0, 0.1))
        with user.rows(x, size):
            return pyro.sample("x", dist.Normal(mu.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)

    x = np.random.default_rng(10).normal(1, 1.1, (60, 1))
    assert float(run(model, x, "em").parameters["mu"]) == pytest.approx(x.mean(), abs=1e-3)
    for method in ("laplace", "svi"):
        with pytest.raises(Refusal, match="the prior of 'mu' is improper"):
            run(model, x, method)


# ---- outside the plate, inside a discrete latent, beside other rows -----------------------------------------------------


def calibrated(x=None, size=None):
    m = pyro.param("m", torch.tensor(0.0))
    pyro.sample("calibration", dist.Normal(m, 0.1), obs=torch.tensor(5.0))
    with user.rows(x, size):
        return pyro.sample("x", dist.Normal(m.unsqueeze(-1), 1.0).expand([1]).to_event(1), obs=x)


def mixed(x=None, size=None):
    m = pyro.param("m", torch.tensor(0.3))
    pyro.factor("penalty", -10 * m**2)
    with user.rows(x, size):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        return pyro.sample("x", dist.Normal((m + z).unsqueeze(-1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("method", ["laplace", *in_full("svi")])
def test_what_is_observed_outside_the_plate_counts_once(method):
    x = np.random.default_rng(2).normal(size=(20, 1))
    module = {"svi": svi, "laplace": laplace}[method]
    fit = module.fit(task_of(calibrated, x))
    m = float(fit.parameters["m"])
    assert m == pytest.approx((x.sum() + 500) / 120, abs=0.01)
    truth = stats.norm.logpdf(x, m).sum() + stats.norm.logpdf(5, m, 0.1)
    assert fit.claimed.value == pytest.approx(truth, abs=1e-6)
    fit = module.fit(task_of(mixed, x))
    m = float(fit.parameters["m"])
    rows = np.logaddexp(stats.norm.logpdf(x, m), stats.norm.logpdf(x, m + 1)).sum() + 20 * np.log(0.5)
    assert rows - 10 * m**2 - 0.5 < fit.claimed.value <= rows - 10 * m**2 + 1e-6


def switching(x=None, size=None, steps=20):
    """A global indexed by a local latent, and too many joint values to sum over."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with user.rows(x, size):
        z = None
        for i in range(steps):
            stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
            z = pyro.sample(f"z{i}", dist.Categorical(torch.full((2,), 0.5) if z is None else stay[z]))
            pyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=None if x is None else x[..., i])


@pytest.mark.parametrize("columns", [3, *in_full(20)])
def test_a_global_indexed_by_a_discrete_local(columns):
    def model(x=None, size=None):
        return switching(x, size, columns)

    x = np.random.default_rng(0).normal(size=(2, columns)) + 2 * np.sign(np.arange(columns) - columns / 2)
    fit = run(model, x, "svi", epochs=5)
    assert fit.claimed.kind == "lower bound" and np.isfinite(fit.claimed.value)


def test_rows_that_depend_are_refused():
    def model(x=None, size=None):
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with user.rows(x, size):
            m = torch.zeros(size, 1) if x is None else x.mean(0, keepdim=True).expand(len(x), 1)
            return pyro.sample("x", dist.Normal(m, s).to_event(1), obs=x)

    with pytest.raises(Refusal, match="rows are not independent"):
        run(model, X[:, :1], "svi")
