"""Row weights: a row of weight w counts as w rows. The fit on the repeated rows is the independent answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

import guides
from inference import em, infer, load, run
from inference._method.task import Task
from inference._numerics.coordinates import bijection
from inference._run.prepare import prepare
from inference._run.runner import run_prepared
from inference._training import elbo
from inference._training.fixed_draws import FixedDraws
from zoo._data import datasets
from zoo._errors import Refusal, UsageError


def faithful(n: int = 60) -> np.ndarray:
    return datasets.load("faithful", rows=n, standardize=True).x


def factors(n: int = 40, d: int = 5) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + 0.5 * rng.normal(size=(n, d)) + rng.normal(size=d)


def with_holes(x: np.ndarray) -> np.ndarray:
    return np.where(np.random.default_rng(3).random(x.shape) < 0.15, np.nan, x)


def counts(n: int) -> np.ndarray:
    """Whole numbers, some of them 0."""
    return np.random.default_rng(2).integers(0, 4, n).astype(float)


def weighted(x: np.ndarray, weights: np.ndarray | None) -> datasets.Dataset:
    return replace(datasets.load(x), weights=weights)


def both(model: object, x: np.ndarray, method: str = "em", **options: object) -> tuple[Any, Any, np.ndarray]:
    """The fit with weights, and that on the repeated rows, from the same start."""
    w = counts(len(x))
    one = run(model, weighted(x, w), method, **options)
    return one, run(model, np.repeat(x, w.astype(int), 0), method, **options), w


def check(one: Any, other: Any, w: np.ndarray, near: float = 1e-6) -> None:
    assert one.claimed.kind == other.claimed.kind
    assert one.claimed.value == pytest.approx(other.claimed.value, rel=1e-9)
    assert one.verified.value == pytest.approx(other.verified.value, rel=1e-9)
    for name, value in other.parameters.items():
        np.testing.assert_allclose(one.parameters[name], value, rtol=near, atol=near, err_msg=name)
    rows = np.repeat(one.verified.per_datum, w.astype(int)) if one.verified.per_datum is not None else None
    if rows is not None:  # each row's own value is that of the row once
        np.testing.assert_allclose(rows, other.verified.per_datum, rtol=near, atol=near)


class HeavyTails(PyroModule):
    """A family without sufficient statistics here: its M-step is numeric, and sees the responsibilities."""

    def __init__(self, x):
        super().__init__()
        self.share = PyroParam(torch.ones(2) / 2, constraints.simplex)
        self.locs = PyroParam(torch.tensor([[-1.0], [1.0]]).repeat(1, x.shape[1]), constraints.real)
        self.scale = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(self.share))
            return pyro.sample("x", dist.StudentT(5.0, self.locs[z], self.scale).to_event(1), obs=x)


class RowNoise(PyroModule):
    """Linear in z, with noise that differs from row to row: the posterior of each row by autograd."""

    def __init__(self, x):
        super().__init__()
        self.loading = PyroParam(torch.tensor(0.5), constraints.real)
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            known = torch.ones(1) if x is None else 1.0 + x[:, :1].abs()  # the first column is a covariate
            loc, seen = self.loading * z[..., None] * torch.ones(2), None if x is None else x[:, 1:]
            return pyro.sample("x", dist.Normal(loc, self.noise * known).to_event(1), obs=seen)


class Rates(PyroModule):
    """A Gamma rate for each row under its counts: a conjugate latent."""

    def __init__(self, x):
        super().__init__()
        self.shape = PyroParam(torch.tensor(1.0), constraints.positive)
        self.rate = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Gamma(self.shape, self.rate))
            return pyro.sample("x", dist.Poisson(z[..., None] * torch.ones(2)).to_event(1), obs=x)


EXACT = {
    "gmm": ("gmm", faithful, {"components": 2}),
    "gmm with holes": ("gmm", lambda: with_holes(faithful()), {"components": 2}),
    "diagonal": ("gmm", faithful, {"components": 2, "covariance": "diagonal"}),
    "ppca, few points": ("ppca", factors, {"latents": 2}),
    "factor analysis": ("factor_analysis", factors, {"latents": 1}),
    "factor analysis with holes": ("factor_analysis", lambda: with_holes(factors()), {"latents": 1}),
    "no sufficient statistics": (HeavyTails, faithful, {}),
    "conjugate latents": (Rates, lambda: np.random.default_rng(0).negative_binomial(3, 0.4, (30, 2)).astype(float), {}),
    "noise of each row": (RowNoise, lambda: factors(d=3), {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_em_with_weights_is_em_on_repeated_rows(name: str) -> None:
    model, data, options = EXACT[name]
    one, other, w = both(model, data(), "em", start="program", **options)
    assert one.converged
    turned = name.startswith(("ppca", "factor"))  # the loadings' rotation is free
    if turned:
        for found in (one, other):
            loadings = found.parameters["loadings"]
            found.parameters["loadings"] = loadings @ loadings.T
    check(one, other, w, near=2e-3 if turned or "no" in name else 1e-5)


def test_a_row_of_weight_0_is_no_row() -> None:
    x, w = faithful(), np.ones(60)
    x[:5] = 1e6
    w[:5] = 0
    one, other = run("gmm", weighted(x, w), "em", components=2), run("gmm", x[5:], "em", components=2)
    assert one.claimed.value == pytest.approx(other.claimed.value, rel=1e-9)
    for name, value in other.parameters.items():
        np.testing.assert_allclose(one.parameters[name], value, rtol=1e-6, atol=1e-6)
    assert len(one.probabilities["z"]) == 60  # it is still told what it would be


def test_kmeans_start_weighs_rows() -> None:
    """The largest cluster comes first: the one with most weight."""
    x = np.concatenate(
        [np.random.default_rng(0).normal(-5, 1, (30, 1)), np.random.default_rng(1).normal(5, 1, (10, 1))]
    )
    w = np.r_[np.ones(30), np.full(10, 9.0)]
    found = run("gmm", weighted(x, w), "em", components=2, start="kmeans")
    assert found.parameters["locs"][0, 0] == pytest.approx(5, abs=1)
    np.testing.assert_allclose(found.parameters["weights"], [0.75, 0.25], atol=1e-3)


def test_fractions_scale_the_evidence() -> None:
    x = faithful()
    once = run("gmm", x, "em", components=2)
    half = run("gmm", weighted(x, np.full(60, 0.5)), "em", components=2)
    assert half.claimed.value == pytest.approx(once.claimed.value / 2, rel=1e-9)
    np.testing.assert_allclose(half.parameters["locs"], once.parameters["locs"], atol=1e-5)
    assert half.to_json()["count"] == 30 and half.to_json()["log_evidence"]["per_datum_mean"] == pytest.approx(
        once.claimed.value / 60, rel=1e-9
    )


@pytest.mark.parametrize("priors", [False, True])
def test_laplace_with_weights_is_laplace_on_repeated_rows(priors: bool) -> None:
    x, options = faithful(30), {"components": 1, "priors": priors, "covariance": "spherical"}
    data = weighted(x, counts(30)), np.repeat(x, counts(30).astype(int), 0)
    one, other = (
        run_prepared(prepare("gmm", d, options, ["laplace"]), "laplace", options, verified=False) for d in data
    )
    assert one.claimed is not None and other.claimed is not None
    assert one.claimed.value == pytest.approx(other.claimed.value, abs=1e-5)
    for name, value in other.standard_errors.items():
        np.testing.assert_allclose(one.standard_errors[name], value, rtol=1e-3, atol=1e-6)


def tasks(model: object, x: np.ndarray, options: dict[str, object], w: np.ndarray | None = None) -> tuple[Task, Task]:
    """A task with weights, and one on the repeated rows; both built on the latter."""
    w = counts(len(x)) if w is None else w
    one = prepare(model, weighted(x, w), options, ["svi"])
    other = prepare(model, np.repeat(x, w.astype(int), 0), options, ["svi"])
    return (
        Task(one.program(), one.structure, one.x, weights=one.weights, quiet=True),
        Task(other.program(), other.structure, other.x, quiet=True),
    )


def guide_of(task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    globals = task.global_start()
    bijections = {n: bijection(s) for n, s in task.global_supports.items()}
    return guides.make("amortized", task.structure, task.x, globals, bijections, hidden=(4,), covariance="diagonal")


def test_bound_with_discrete_latents_summed_out() -> None:
    one, other = tasks("gmm", faithful(40), {"components": 2})
    guide, bounds = guide_of(one), []
    for task in (one, other):
        task.program.assign(other.theta())
        bounds.append(elbo.objective(task, guide, 1)(slice(None), task.x))
    torch.testing.assert_close(bounds[0], bounds[1])
    found, wanted = (torch.autograd.grad(b, list(guide.parameters()), retain_graph=True) for b in bounds)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    # mini-batches stand for all rows: their mean is the whole
    parts = [elbo.objective(one, guide, 1)(rows, one.x[rows]) for rows in torch.arange(40).split(10)]
    torch.testing.assert_close(torch.stack(parts).mean(), bounds[0])


def test_bound_with_draws() -> None:
    """0 or 1 times each row: the first rows draw the same numbers, whether others follow or not (torch fills 16 at a time)."""
    x, w = factors(), np.r_[np.ones(24), np.zeros(16)]
    one, other = tasks("ppca", x, {"latents": 2}, w)
    guide, bounds = guide_of(one), []
    for task in (one, other):
        torch.manual_seed(1)
        bounds.append(elbo.objective(task, guide, 1)(slice(None), task.x))
    torch.testing.assert_close(bounds[0], bounds[1])


def test_bound_by_fixed_draws() -> None:
    one, other = tasks("gmm", faithful(40), {"components": 2, "covariance": "diagonal", "priors": True})
    guide, found = guide_of(one), []
    for task in (one, other):
        fixed = FixedDraws(task, guide)
        noise = fixed.draw(4, torch.Generator().manual_seed(0))
        found.append(fixed.all_values(noise))
    torch.testing.assert_close(found[0], found[1])


def test_svi_of_a_program_without_latents_is_exact() -> None:
    x, w = factors(30, 2), counts(30)
    found = run("gmm", weighted(x, w), "svi", components=2, epochs=2)
    assert found.claimed.kind == "lower bound" and found.claimed.value <= found.verified.value + 1e-6
    assert found.verified.value == pytest.approx(float(w @ found.verified.per_datum), rel=1e-9)


@pytest.mark.parametrize("method", ["importance"])
def test_a_method_that_counts_each_row_once_refuses(method: str) -> None:
    with pytest.raises(Refusal, match=r"these rows have weights\. Methods that take weights: em, laplace, svi"):
        run("gmm", weighted(faithful(), counts(60)), method)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), "a weight for each of 60 rows"),
        (np.full(60, -1.0), "weights of 0 or more, got -1 at row 0"),
        (np.full(60, np.nan), "weights of 0 or more, got nan"),
        (np.zeros(60), "above 0 for at least one row"),
    ],
)
def test_what_is_no_weight(weights: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run("gmm", weighted(faithful(), weights))


def test_a_saved_run_keeps_its_weights(tmp_path: Any) -> None:
    x, w = faithful(), counts(60)
    found = run("gmm", weighted(x, w), "em", components=2, out=tmp_path / "run")
    again = load(tmp_path / "run")
    np.testing.assert_array_equal(again.dataset.weights, w)
    assert again.labels is None
    assert again.parameters["weights"].shape == (2,)
    kept = infer(tmp_path / "run", "em")
    assert kept.claimed.value == pytest.approx(found.claimed.value, rel=1e-9)
    assert infer(tmp_path / "run", "em", data=x).claimed.value == pytest.approx(
        float(found.claimed.per_datum.sum()), rel=1e-9
    )
    with pytest.raises(UsageError, match="loo counts every row once"):
        run("gmm", weighted(x, w), "laplace", components=1).loo()


def test_a_method_that_forgets_the_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = em.fit
    monkeypatch.setattr(em, "fit", lambda task: fit(replace(task, weights=None)))
    with pytest.raises(UsageError, match="whose weighted sum is"):
        run("gmm", weighted(faithful(), counts(60)), "em")


@pytest.mark.parametrize("fraction", [False, True])
def test_a_column_of_weights(tmp_path: Any, fraction: bool) -> None:
    """From a file: standardised by the weighted mean and deviation, and fitted to the weighted rows."""
    x, w = datasets.load("faithful", rows=60).x, counts(60)
    times = w / 2 if fraction else w
    file = tmp_path / "data.csv"
    lines = [f"{a},{b},{c}" for (a, b), c in zip(x, times, strict=True)]
    file.write_text("\n".join(["eruptions,waiting,times", *lines]))
    found = run("gmm", file, weights="times", standardize=True, components=2)
    many = np.repeat(x, w.astype(int), 0)
    np.testing.assert_allclose(found.center, many.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.scale, many.std(0), rtol=1e-12)
    other = run("gmm", many, standardize=True, components=2)
    assert found.verified.value == pytest.approx(other.verified.value / (2 if fraction else 1), rel=1e-8)


def test_priors_from_the_data_are_told_of() -> None:
    """Whole weights: the model's priors are those of the repeated rows. Others: of each row once, and a warning."""
    x, w = faithful(30), counts(30)
    whole, half = (prepare("gmm", weighted(x, v), {"priors": True}, ["laplace"]) for v in (w, w / 2))
    other = prepare("gmm", np.repeat(x, w.astype(int), 0), {"priors": True}, ["laplace"])
    torch.testing.assert_close(whole.program().module.center, other.program().module.center)
    assert not any("each row once" in s for s in whole.data.warnings)
    assert any("each row once" in s for s in half.data.warnings)


class SharedMean(PyroModule):
    """A global latent that is jointly normal with the data: integrated out."""

    def __init__(self, x):
        super().__init__()
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x=None, size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", dist.Normal(mean, self.noise).expand([2]).to_event(1), obs=x)


def test_global_latents_that_are_integrated_out() -> None:
    one, other, _ = both(SharedMean, faithful(20), "em")
    assert one.claimed.kind == "exact"
    assert one.claimed.value == pytest.approx(other.claimed.value, rel=1e-9)
    assert one.verified.value == pytest.approx(other.verified.value, rel=1e-9)
    assert float(one.parameters["mean"]) == pytest.approx(float(other.parameters["mean"]), rel=1e-6)
