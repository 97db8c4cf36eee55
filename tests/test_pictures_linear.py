"""The pictures of linear-Gaussian runs: the rotation and the shares against algebra, the files against what is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from drawing import picture_of
from matplotlib import image as reader
from matplotlib.collections import PathCollection

from inference import run
from inference._pictures._draw import plot
from inference._pictures._views.factors import Factors, principal_rotation
from inference._pictures._views.fits import explained
from inference._pictures._views.images import few_images
from inference._pictures._views.scene import Scene, scene_of
from inference._pictures.missing import _imputed
from inference._run import folder as _store

PROGRAMS = """
import pyro, torch
import pyro.distributions as dist
from torch.distributions import constraints

def chain(x=None, size=None):  # latents that depend on each other, a normal with full covariance
    n = size if x is None else len(x)
    w = pyro.param("w", torch.tensor([[1.0, 0.5, -0.5], [0.2, -1.0, 0.3]]))
    b = pyro.param("b", torch.zeros(3))
    tril = pyro.param("tril", 0.5 * torch.eye(3), constraint=constraints.lower_cholesky)
    with pyro.plate("data", n):
        u = pyro.sample("u", dist.Normal(0.5, 2.0))
        v = pyro.sample("v", dist.Normal(0.7 * u, 0.5))
        z = torch.stack([u, v], -1)
        return pyro.sample("x", dist.MultivariateNormal(z @ w + b, scale_tril=tril), obs=x)

def analysers(x=None, size=None):  # a mixture of factor analysers
    n = size if x is None else len(x)
    w = pyro.param("w", torch.tensor([[1.0, 0.5, -0.5, 0.1], [0.2, -1.0, 0.3, 0.4]]))
    b = pyro.param("b", torch.tensor([[0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]]))
    s = pyro.param("s", torch.ones(4), constraint=constraints.positive)
    with pyro.plate("data", n):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(w[k] * z.unsqueeze(-1) + b[k], s).to_event(1), obs=x)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("programs") / "mine.py"
    path.write_text(PROGRAMS)
    return f"{path}:"


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "wine"
    run("factor_analysis", "wine", "em", standardize=True, latents=2, max_iter=30, out=folder)
    return folder


def scene(folder: Path) -> Scene:
    return scene_of(_store.load(folder))


def factors_of(folder: Path) -> Factors:
    found = scene(folder).factors
    assert found is not None
    return found


def inked(paths: list[Path]) -> set[str]:
    """The pictures' names; each must have ink on it, and not be full of it."""
    for path in paths:
        assert 0.01 < (reader.imread(path)[..., :3] < 0.9).any(-1).mean() < 0.9
    return {p.stem for p in paths}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("D", "L"), [(7, 3), (5, 5), (2, 4)])
def test_the_rotation_diagonalises_the_signal_and_changes_nothing_else(D: int, L: int, full: bool) -> None:
    rng = np.random.default_rng(0)
    B, root = rng.normal(size=(D, L)), rng.normal(size=(D, D))
    noise = root @ root.T + np.eye(D) if full else rng.uniform(0.2, 2.0, D)
    rotation = principal_rotation(B, noise)
    turned = B @ rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(L), atol=1e-12)
    np.testing.assert_allclose(turned @ turned.T, B @ B.T, atol=1e-12)
    signal = turned.T @ np.linalg.inv(noise if full else np.diag(noise)) @ turned
    np.testing.assert_allclose(signal, np.diag(np.diag(signal)), atol=1e-10)
    assert (np.diff(np.diag(signal)) <= 1e-10).all()
    kept = turned[:, : min(D, L)]
    assert (kept[np.abs(kept).argmax(0), range(kept.shape[1])] > 0).all()


def test_loadings_and_shares_are_the_fits(wine: Path) -> None:
    theta, found = _store.load(wine).parameters(), factors_of(wine).loadings(0)
    (W,) = (v for v in theta.values() if v.shape == (13, 2))
    np.testing.assert_allclose(found.coefficients @ found.coefficients.T, W @ W.T, atol=1e-10)
    covariance = W @ W.T + np.diag(found.noise)
    np.testing.assert_allclose(found.variance, np.diag(covariance))
    assert found.shares.sum() + found.noise.sum() / np.trace(covariance) == pytest.approx(1)
    np.testing.assert_allclose(np.square(found.correlations).sum(1) + found.noise_shares, 1)


def test_scores_reproduce_the_posterior_means(wine: Path) -> None:
    factors, stored = factors_of(wine), _store.load(wine)
    block, (mean, covariance) = factors.loadings(0), factors.scores()
    np.testing.assert_allclose(mean @ block.coefficients.T + block.offset, factors.signal, atol=1e-10)
    B, psi = block.coefficients, block.noise
    cov = np.linalg.inv(np.eye(2) + (B.T / psi) @ B)
    np.testing.assert_allclose(covariance[0], cov, atol=1e-10)
    np.testing.assert_allclose(mean, (stored.x - block.offset) / psi @ B @ cov, atol=1e-8)


def test_dependent_latents_and_full_covariances(programs: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(60, 3)) @ np.diag([1.0, 2.0, 0.5])
    x[:10, 0] = np.nan
    run(programs + "chain", x, "em", max_iter=2, out=tmp_path / "run")
    factors, theta = factors_of(tmp_path / "run"), _store.load(tmp_path / "run").parameters()
    block = factors.loadings(0)
    prior = np.array([[4.0, 2.8], [2.8, 0.49 * 4 + 0.25]])  # of (u, v)
    np.testing.assert_allclose(block.coefficients @ block.coefficients.T, theta["w"].T @ prior @ theta["w"], atol=1e-10)
    np.testing.assert_allclose(block.offset, np.array([0.5, 0.35]) @ theta["w"] + theta["b"], atol=1e-10)
    np.testing.assert_allclose(block.noise, np.square(theta["tril"]).sum(1), atol=1e-10)
    mean, _ = factors.scores()
    np.testing.assert_allclose(mean @ block.coefficients.T + block.offset, factors.signal, atol=1e-8)
    wanted = {"loadings", "latents", "reconstruction", "trace", "missing"}
    assert inked(plot(tmp_path / "run", dpi=40)) == wanted


@pytest.mark.full
def test_a_mixture_has_loadings_for_each_component(programs: str, tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(80, 4)) + np.where(np.arange(80) < 30, 0.0, 4.0)[:, None]
    run(programs + "analysers", x, "em", max_iter=5, out=tmp_path / "run")
    assert inked(plot(tmp_path / "run", dpi=40)) == {"loadings", "reconstruction", "trace"}
    factors, theta = factors_of(tmp_path / "run"), _store.load(tmp_path / "run").parameters()
    assert factors.weights.sum() == pytest.approx(1)
    for k in range(2):
        B = factors.loadings(k).coefficients
        np.testing.assert_allclose(B @ B.T, np.outer(theta["w"][k], theta["w"][k]), atol=1e-10)


def test_r2_is_of_the_observed_entries() -> None:
    x = np.array([[0.0, 1.0, 5.0], [2.0, np.nan, 5.0], [4.0, 3.0, 5.0]])
    r2 = explained(x, np.array([[0.0, 2.0, 5.0], [2.0, 9.0, 5.0], [4.0, 2.0, 5.0]]))
    np.testing.assert_allclose(r2, [1.0, 0.0, math.nan])


def test_a_table_is_drawn_with_its_labels(wine: Path, tmp_path: Path) -> None:
    assert inked(plot(wine, tmp_path, dpi=40)) == {"loadings", "latents", "reconstruction", "trace"}
    found = scene(wine)
    (points,) = (c for c in picture_of("latents", found).axes[0].collections if isinstance(c, PathCollection))
    assert len(np.unique(points.get_facecolors(), axis=0)) == 3
    heat = picture_of("loadings", found).axes[0].images[0].get_array()
    assert found.factors is not None and heat is not None
    np.testing.assert_allclose(heat, found.factors.loadings(0).correlations)


@pytest.mark.full
def test_images_are_drawn_as_images(tmp_path: Path) -> None:
    run("ppca", "digits", "em", latents=4, rows=100, missing="bottom", max_iter=5, out=tmp_path / "run")
    wanted = {"loadings", "latents", "reconstruction", "samples", "trace", "missing"}
    assert inked(plot(tmp_path / "run", dpi=40)) == wanted
    found = scene(tmp_path / "run")
    assert found.factors is not None
    B = found.factors.loadings(0).coefficients
    shown = [axes.images[0].get_array() for axes in picture_of("loadings", found).axes if axes.images][:4]
    for k, image in enumerate(shown):
        assert image is not None
        np.testing.assert_allclose(image, B[:, k].reshape(8, 8))
    assert found.labels is not None
    assert sorted(found.labels[few_images(100, found.labels)]) == list(range(10))


def test_one_latent_is_a_histogram(tmp_path: Path) -> None:
    run("ppca", "iris", "em", latents=1, max_iter=3, out=tmp_path / "run")
    assert inked(plot(tmp_path / "run", dpi=40)) == {"loadings", "latents", "reconstruction", "trace"}
    bars = picture_of("latents", scene(tmp_path / "run")).axes[0].patches
    assert sum(p.get_height() for p in bars) == pytest.approx(150)


def test_what_is_missing_is_imputed_in_the_datas_own_units(tmp_path: Path) -> None:
    options = {"standardize": True, "missing": "random:0.3", "rows": 50, "max_iter": 5, "latents": 1}
    fit = run("ppca", "wine", "em", out=tmp_path / "run", **options)
    rows, found = _imputed(scene(tmp_path / "run"))
    assert found is not None
    np.testing.assert_allclose(found.mean, fit.impute(draws=1).mean[rows], rtol=1e-6)
    bars = [axes for axes in picture_of("missing", scene(tmp_path / "run")).axes if axes.containers]
    assert len(bars) == 6
