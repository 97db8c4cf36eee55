"""The gap taken apart: against closed forms of linear-Gaussian programs, enumeration, and quadrature."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import in_full
from scipy import integrate, optimize, stats
from typer.testing import CliRunner

from inference import run
from inference._gap import picture
from inference._gap.gap import PARTS, gap
from zoo.__main__ import app
from zoo._errors import Refusal

RNG = np.random.default_rng(0)
LOADINGS = np.array([[1.0, 0.5, -1.0, 0.3], [0.6, 1.0, 0.5, -0.5]])
X = RNG.normal(size=(40, 2)) @ LOADINGS + 0.6 * RNG.normal(size=(40, 4))
GLOBAL = {"optimizer": "adam", "method": "svi", "epochs": 1}
FEW = {"method": "svi", "epochs": 15, "hidden": (4,)}


@pytest.fixture(scope="module", params=["diagonal", *in_full("full")])
def linear(request):
    return run("factor_analysis", X, latents=2, guide_covariance=request.param, **FEW)


def posterior(found):
    """Precision [L, L] and means [n, L] of the latents, by the formulas of the book."""
    W, noise = found.parameters["loadings"], found.parameters["noise"] ** 2
    P = np.eye(W.shape[1]) + W.T @ (W / noise[:, None])
    return P, (found.x - found.parameters["mean"]) @ (W / noise[:, None]) @ np.linalg.inv(P)


def test_a_linear_gaussian_program_has_the_gaps_of_the_formulas(linear):
    P, mean = posterior(linear)
    found = gap(linear)
    whole = np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1]
    diagonal = "diagonal" in found.family_of_q
    assert found.family.per_datum == pytest.approx(0.5 * whole if diagonal else 0.0, abs=1e-6)
    q = pyro.poutine.trace(linear.guide).get_trace(linear.task.x).nodes["z"]["fn"]
    covariance = (
        np.stack([np.diag(v) for v in q.variance.detach().numpy()])
        if diagonal
        else q.covariance_matrix.detach().numpy()
    )
    away = q.mean.detach().numpy() - mean
    kl = 0.5 * (np.einsum("nij,ji->n", covariance, P) + np.einsum("ni,ij,nj->n", away, P, away) - 2)
    kl -= 0.5 * (np.linalg.slogdet(P)[1] + np.linalg.slogdet(covariance)[1])
    assert found.kl.per_datum == pytest.approx(kl, abs=1e-6)
    assert {getattr(found, p).kind for p in PARTS} == {"exact", "estimate"} and found.left.value < 1e-4
    assert found.elbo.value + found.amortization.value + found.family.value == pytest.approx(found.log_p.value)
    assert abs(found.check[0]) < 4 * found.check[1]


def test_at_the_optimum_of_a_linear_encoder_nothing_is_amortized():
    found = run("ppca", X, latents=2, method="svi", epochs=1, hidden=(4,))
    P = np.eye(2) + found.parameters["loadings"].T @ found.parameters["loadings"] / found.parameters["noise"] ** 2
    W, noise = found.parameters["loadings"], found.parameters["noise"]
    pull = torch.as_tensor(np.linalg.solve(P, W.T) / noise**2)

    class Linear(torch.nn.Module):
        def forward(self, x=None, size=None):
            with pyro.plate("data", len(x)):
                loc = (x - torch.as_tensor(found.parameters["mean"])) @ pull.mT
                pyro.sample("z", dist.Normal(loc, torch.as_tensor(np.diag(P) ** -0.5)).to_event(1))

    found = gap(_with_guide(found, Linear()))
    assert found.amortization.per_datum == pytest.approx(0.0, abs=1e-6)
    assert found.family.value == pytest.approx(20 * (np.log(np.diag(P)).sum() - np.linalg.slogdet(P)[1]), abs=1e-5)


def _with_guide(found, guide):
    return replace(found, fit=replace(found.fit, guide=guide))


def test_a_mean_field_guide_has_no_amortization_and_says_so():
    found = gap(run("ppca", X[:10], latents=2, guide="mean_field", method="svi", epochs=3))
    assert found.by_row and found.lost == "optimization gap"


def curve(x=None, size=None):
    """z ~ N(0, 1), x | z ~ N(z², ½²): two modes, where x is large."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(torch.stack([z**2, 0.5 * z], -1), 0.5).to_event(1), obs=x)


def best_normal(x):
    """The best ELBO of a normal q by SciPy, its expectation by Gauss–Hermite; and log p(x) by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def joint(z):
        return stats.norm.logpdf(z) + stats.norm.logpdf(x[0], z**2, 0.5) + stats.norm.logpdf(x[1], 0.5 * z, 0.5)

    def lack(v):
        z = v[0] + np.exp(v[1]) * nodes
        return -(weights @ joint(z) + v[1] + 0.5 * np.log(2 * np.pi * np.e))

    starts = [(m, s) for m in (-1.5, 0.0, 1.5) for s in (-1.0, 0.0)]
    value = max(
        -optimize.minimize(lack, s, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6}).fun for s in starts
    )
    return value, np.log(integrate.quad(lambda z: np.exp(joint(z)), -8, 8, epsabs=1e-12)[0])


@pytest.mark.full
def test_a_program_that_is_not_exact_against_quadrature():
    z = np.random.default_rng(2).normal(size=8)
    x = np.stack([z**2, 0.5 * z], 1) + 0.5 * np.random.default_rng(3).normal(size=(8, 2))
    found = gap(run(curve, x, **FEW))
    best, log_p = np.array([best_normal(row) for row in x]).T
    reached = found.log_p.per_datum - found.family.per_datum
    se = found.family.se_per_datum + 1e-3
    assert (reached < best + 4 * se).all()  # nothing above the best q
    assert (
        best < reached + found.left.per_datum + 4 * found.left.se_per_datum + 4 * se
    ).all()  # what is left reaches it
    assert found.log_p.value == pytest.approx(log_p.sum(), abs=4 * found.log_p.se + 1e-3)
    assert (np.abs(best - reached) < 0.02 + 4 * se).all()
    difference, se = found.check
    assert abs(difference) < 4 * se


@pytest.mark.full
def test_discrete_latents_are_summed_out():
    found = gap(run("gmm", "faithful", rows=30, components=3, **FEW))
    assert found.family.per_datum == pytest.approx(0.0, abs=5e-4)  # a categorical q has every posterior
    assert found.kl.kind == found.amortization.kind == "exact"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "gmm", "data": "faithful", "method": "em"}, "has none"),
        *in_full(({"model": "gmm", "data": "faithful", "rows": 40, "priors": "true", **GLOBAL}, "global latents")),
    ],
)
def test_what_has_no_such_parts_is_refused(asked, said):
    with pytest.raises(Refusal, match=said):
        gap(run(**asked))


def test_the_command(tmp_path):
    folder = str(tmp_path / "run")
    run("ppca", "wine", rows=30, latents=2, standardize=True, out=folder, **FEW)
    shown = CliRunner().invoke(app, ["gap", folder, "--rows", "12", "--json"])
    told = json.loads(shown.stdout)
    assert told["rows"] == 12 and told["of"] == 30 and {"label", "row", *PARTS} <= set(told["worst"][0])
    assert (tmp_path / "run" / "plots" / "gap.png").stat().st_size > 10_000
    shown = CliRunner().invoke(app, ["gap", folder, "--rows", "3", "--out", str(tmp_path / "a.svg")])
    assert "amortization gap" in shown.stdout and shown.exit_code == 0
    assert CliRunner().invoke(app, ["gap", folder, "--out", "a.txt"]).exit_code == 2
    assert picture.FORMATS


@pytest.mark.full
def test_a_deep_decoder_adds_up():
    found = gap(
        run("deep_latent_gaussian", "wine", standardize=True, latents=2, hidden=(20,), method="svi", epochs=30), rows=60
    )
    parts = found.elbo.value + found.amortization.value + found.family.value
    se = np.hypot(found.check[1], found.log_p.se)
    assert abs(parts - found.log_p.value) < 4 * se
    assert found.amortization.value > 0 and found.family.value > -4 * found.family.se
