"""Posterior collapse: KL by number, active units and mutual information against PPCA's closed form; warning and picture."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from drawing import picture_of
from helpers import task_of, tensor

from inference import run
from inference._pictures._views.scene import scene_of
from inference._training.collapse import collapse


def with_covariance(covariance, n, seed=0):
    """Rows whose mean is 0 and whose covariance is exactly this one."""
    z = np.random.default_rng(seed).normal(size=(n, len(covariance)))
    z -= z.mean(0)
    root = np.linalg.cholesky(np.linalg.inv(z.T @ z / n)) @ np.eye(len(covariance))
    return z @ root @ np.linalg.cholesky(covariance).T


def ppca(columns, n=600):
    """Data with two directions above the noise of variance ½, at θ̂ with more latents: `columns` of W, the others 0."""
    covariance = 0.5 * np.eye(6)
    covariance[0, 0], covariance[1, 1] = 4.5, 1.5
    task = task_of("ppca", with_covariance(covariance, n), latents=len(columns))
    W = torch.zeros(6, len(columns), dtype=torch.float64)
    for k, size in enumerate(columns):
        W[int(size == 1), k] = size
    task.program.assign({"loadings": W, "mean": torch.zeros(6), "noise": tensor(0.5).sqrt()})
    return task, W


class Exact(torch.nn.Module):
    """q(z | x) = p(z | x) of PPCA with orthogonal columns."""

    def __init__(self, W, variance):
        super().__init__()
        self.W, self.variance = W, variance

    def forward(self, x=None, size=None):
        precision = (self.W.square().sum(0) + self.variance) / self.variance
        mean = x @ self.W / self.variance / precision
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, precision.rsqrt().expand_as(mean)).to_event(1))


def test_kl_by_number_is_the_closed_form():
    """At the maximum likelihood the mean KL of a column is ½ log(λ / σ²), its eigenvalue over the noise; 0 of one of zeros."""
    task, W = ppca([2, 0, 0, 1, 0])
    warnings, notes = collapse(task, Exact(W, 0.5))
    closed = [0.5 * np.log(9), 0, 0, 0.5 * np.log(3), 0]
    assert np.allclose(notes["kl_by_dimension"]["z"], closed, atol=1e-9)
    assert notes["active_units"] == {"z": 2}
    mutual = notes["mutual_information"]
    assert abs(mutual["nats"] - sum(closed)) < 4 * mutual["se"]  # the mean of q over the rows is the prior, nearly
    assert mutual["nats"] < mutual["at_most"]
    assert np.isclose(mutual["at_most"], np.log(600), rtol=1e-12)
    assert warnings == [
        "3 of 5 latents carry no information: in z[1], z[2], z[4] q(z | x) is the prior for all rows, to 0.01 nats a row "
        "(posterior collapse)."
    ]


def test_a_guide_that_tells_the_rows_apart_is_not_called_collapsed():
    task, W = ppca([2, 1])
    warnings, notes = collapse(task, Exact(W, 0.5))
    assert warnings == []
    assert notes["active_units"] == {"z": 2}


def test_a_row_that_counts_twice_is_two_rows():
    task, W = ppca([2, 0], n=60)
    times = tensor(np.r_[np.full(20, 3.0), np.full(20, 0.0), np.full(20, 1.0)])
    twice = task_of("ppca", task.x.numpy().repeat(times.long().numpy(), 0), latents=2)
    twice.program.assign(task.theta())
    task.weights = times
    (_, weighted), (_, listed) = collapse(task, Exact(W, 0.5)), collapse(twice, Exact(W, 0.5))
    assert np.allclose(weighted["kl_by_dimension"]["z"], listed["kl_by_dimension"]["z"])
    one, other = weighted["mutual_information"], listed["mutual_information"]
    assert abs(one["nats"] - other["nats"]) < 4 * np.hypot(one["se"], other["se"])


def test_numbers_that_tell_only_together_are_not_called_collapsed():
    """q has the prior's margins in every row, and a correlation that is the row's own."""

    class Tied(torch.nn.Module):
        def forward(self, x=None, size=None):
            with pyro.plate("data", len(x)):
                r = 0.9 * x[:, :1].sign().unsqueeze(-1)
                covariance = torch.eye(2) + r * (1 - torch.eye(2))
                pyro.sample("z", dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), covariance))

    warnings, notes = collapse(ppca([2, 1], n=60)[0], Tied())
    assert np.allclose(notes["kl_by_dimension"]["z"], 0, atol=1e-12)
    assert warnings == []
    assert "mutual_information" not in notes


def test_missing_entries_are_no_latents_that_collapse():
    def program(x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0), obs=None if x is None else x[:, 0])
            b = pyro.sample("b", dist.Normal(a.tanh() / 1000, 1.0), obs=None if x is None else x[:, 1])
            return torch.stack([a, b], -1)

    class Prior(torch.nn.Module):
        def forward(self, x=None, size=None):
            with pyro.plate("data", len(x)):
                pyro.sample("a_missing", dist.Normal(torch.zeros(len(x), dtype=x.dtype), 1.0))

    task = task_of(program, np.array([[np.nan, 1.0], [0.5, 2.0]]))
    assert [s.name for s in task.structure.continuous_locals] == ["a_missing"]
    assert collapse(task, Prior()) == ([], {})


@pytest.mark.full
def test_svi_finds_the_collapsed_latents_and_draws_them(tmp_path):
    x = ppca([2, 1], n=2000)[0].x.numpy()
    found = run("ppca", x, "svi", latents=4, epochs=200, schedule="cosine", hidden=(32,), out=tmp_path / "run")
    kl = np.sort(found.fit.notes["kl_by_dimension"]["z"])[::-1]
    assert np.allclose(kl, [0.5 * np.log(9), 0.5 * np.log(3), 0, 0], atol=0.06)
    figure = picture_of("latent_kl", scene_of(found))
    bars = figure.axes[0].patches
    assert np.allclose([b.get_height() for b in bars], kl)


@pytest.mark.full
def test_nothing_is_said_of_what_has_no_normal_prior():
    found = run("deep_latent_gaussian", ppca([2, 1], n=100)[0].x.numpy(), "svi", latents=2, prior="mixture", epochs=2)
    assert "kl_by_dimension" not in found.fit.notes
