"""The pictures of runs whose posterior is not exact: what is drawn against the program's own formulas and the run's draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import picture_of
from helpers import task_of
from local_programs import both_kinds
from matplotlib import image as reader
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy import special, stats
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from inference import infer, run
from inference._loadings.affine import columns_of
from inference._pictures import _draw
from inference._pictures._draw import plot
from inference._pictures._views.decoder import Decoder
from inference._pictures._views.images import grey_range, greys, montage
from inference._pictures._views.scene import Scene, scene_of
from inference._pictures._views.style import FAINT, UNSEEN, component_colors
from inference._pictures.decoder_grid import GRID
from inference._pictures.interpolation import STEPS, between, image_pairs
from inference._pictures.latent_plane import principal
from inference._pictures.samples import correlations
from inference._run import folder as _store
from zoo._errors import UsageError

ALWAYS = {"samples", "reconstructions", "latent_plane"}
LOCAL = f"{Path(__file__).parent / 'local_programs.py'}:"

PROGRAMS = """
import pyro, torch
import pyro.distributions as dist

def pixels(x=None, size=None, latents=2):  # binary images of 64 pixels
    W = pyro.param("W", torch.linspace(-2.0, 2.0, 64 * latents).sin().reshape(latents, 64))
    b = pyro.param("b", torch.linspace(-1.0, 1.0, 64))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
        return pyro.sample("x", dist.Bernoulli(logits=z @ W + b).to_event(1), obs=x)

def curve(x=None, size=None):
    a = pyro.param("a", torch.tensor([1.0, -1.0, 0.5]))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal((a * z.unsqueeze(-1)).tanh(), 0.3).to_event(1), obs=x)

def skewed(x=None, size=None):  # no quantiles by formula, and a discrete latent besides
    with pyro.plate("data", size if x is None else len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))
        z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
        p = torch.where(k.unsqueeze(-1) == 1, (-z[..., :1] * torch.linspace(0, 2, 64)).exp(), torch.tensor(0.05))
        return pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)

def one_way(x=None, size=None):  # cannot simulate
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z.tanh().unsqueeze(-1), 0.3).to_event(1), obs=x)

def heavy(x=None, size=None):  # has no mean
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Cauchy(z.tanh(), 0.3).to_event(1), obs=x)

def switch(x=None, size=None):  # not exact, and nothing continuous
    with pyro.plate("data", size if x is None else len(x)):
        k = pyro.sample("k", dist.Poisson(1.0))
        return pyro.sample("x", dist.Normal(k.unsqueeze(-1), 0.3).to_event(1), obs=x)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("programs") / "mine.py"
    path.write_text(PROGRAMS)
    return f"{path}:"


@pytest.fixture(scope="module")
def folder(programs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pixels"
    run(
        programs + "pixels", "digits", "svi", rows=80, binarize=8, epochs=4, lr=0.01, hidden=(8,), held_out=0.2, out=out
    )
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> Scene:
    return scene(folder)


def scene(folder: Path) -> Scene:
    return scene_of(_store.load(folder))


def decoder_of(found: Scene) -> Decoder:
    assert found.decoder is not None
    return found.decoder


def belonging(folder: Path) -> set[str]:
    return set(_draw.subjects(scene(folder)))


def inked(paths: list[Path]) -> set[str]:
    """The pictures' names; each must have ink on it, and not be full of it."""
    for path in paths:
        assert 0.01 < (reader.imread(path)[..., :3] < 0.9).any(-1).mean() < 0.95
    return {p.stem for p in paths}


def mean_of_pixels(found: Scene, z: np.ndarray) -> np.ndarray:
    theta = _store.load(found.folder).parameters()
    return special.expit(z @ theta["W"] + theta["b"])


def own_means(found: Scene) -> np.ndarray:
    """The posterior means of z, from the run's draws."""
    return found.draws["z"][0].mean(0)


def pictures_of(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def tiles(picture: np.ndarray, shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    """The images of a montage [rows, across, h, w], black as 1."""
    h, w = shape
    down, across = (picture.shape[0] - 1) // (h + 1), (picture.shape[1] - 1) // (w + 1)
    grid = picture[: down * (h + 1), : across * (w + 1), 0].reshape(down, h + 1, across, w + 1)
    return 1 - grid[:, 1:, :, 1:].transpose(0, 2, 1, 3)


def close(drawn: np.ndarray, wanted: np.ndarray) -> None:
    """Greys against numbers from 0 to 1: 256 steps of grey."""
    np.testing.assert_allclose(drawn.reshape(-1, 64), wanted.reshape(-1, 64), atol=0.01)


# ---- pieces ----------------------------------------------------------------------------------------------


def test_a_montage_has_frames_tints_and_greys() -> None:
    images = np.array([[0.0, 1.0, 0.5, np.nan, 0.0, 0.0]] * 3)
    out = montage(images, (2, 3), 2, (0.0, 1.0))
    assert out.shape == (7, 9, 3)
    np.testing.assert_allclose(out[0, :], [to_rgb(FAINT)] * 9)
    np.testing.assert_allclose(out[1, 1:4, 0], [1.0, 0.0, 0.5], atol=0.01)
    np.testing.assert_allclose(out[2, 1], to_rgb(UNSEEN))
    np.testing.assert_allclose(out[4:, 5:], 1.0)  # no fourth image


def test_the_grey_range_is_the_datas() -> None:
    """Ink is black, and the light of photographs white."""
    for values, ends in (([0.0, 0.9, np.nan], (0.0, 1.0)), ([-2.0, 16.0], (-2.0, 16.0)), ([3.0] * 4, (3.0, 4.0))):
        for data, white_and_black in (("digits", ends), ("frey_face", ends[::-1])):
            seen: Any = Scene(Path(), {"data": data}, np.zeros((1, 1)), {}, {}, {})
            assert grey_range(seen, np.array(values)) == white_and_black
            assert greys(seen)(0.0)[0] == (1.0 if data == "digits" else 0.0)


def test_columns_are_known_again_when_some_are_equal() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 7.0, 2.0], [2.0, 0.0, 0.0, 8.0, torch.nan]])
    assert columns_of(x[:, :4], x).tolist() == [0, 1, 2, 3]
    assert columns_of(x[:, [4, 3, 1]], x).tolist() == [4, 3, 1]
    assert columns_of(-x[:, [2, 3]], x).tolist() == [1, -1]


def test_principal_axes_are_those_of_pca() -> None:
    means = np.random.default_rng(0).normal(size=(50, 4)) * [1.0, 5.0, 2.0, 0.1]
    at, axes, shares = principal(means)
    pca = PCA(2).fit(means)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_)
    np.testing.assert_allclose(np.abs(at), np.abs(pca.transform(means)), atol=1e-9)
    assert (axes[np.abs(axes).argmax(0), [0, 1]] > 0).all()
    assert np.isfinite(principal(means[:1])[0]).all()


def test_pairs_are_of_different_labels_and_of_rows_with_something_observed() -> None:
    labels = np.repeat([0, 1, 2, 3], 5)
    x = np.zeros((20, 2))
    x[[0, 5]] = np.nan
    pairs = image_pairs(x, labels)
    assert len(pairs) == 6 and all(labels[a] != labels[b] for a, b in pairs)
    assert not {0, 5} & {row for pair in pairs for row in pair}
    assert len(image_pairs(x, None)) == 6
    assert image_pairs(x[:2], None) == [] and image_pairs(x[1:3], None) == [(0, 1)]


def test_correlations_are_numpys_over_the_rows_seen_in_both() -> None:
    x = np.random.default_rng(1).normal(size=(60, 3)) @ np.array([[1, 0.5, 0], [0, 1, -1], [0, 0, 1.0]])
    np.testing.assert_allclose(correlations(x), np.corrcoef(x.T))
    x[:20, 0], x[50:, 1] = np.nan, np.nan
    np.testing.assert_allclose(correlations(x)[0, 1], np.corrcoef(x[20:50, :2].T)[0, 1])
    assert np.isnan(correlations(np.c_[x, np.ones(60)])[3]).all()


# ---- images ----------------------------------------------------------------------------------------------


def test_pictures_of_images(folder: Path, tmp_path: Path) -> None:
    assert inked(plot(folder, tmp_path, dpi=50)) == ALWAYS | {
        "interpolation",
        "latent_kl",
        "decoder_grid",
        "trace",
        "khat",
        "worst_khat",
    }


def test_the_mean_of_x_is_the_programs(found: Scene) -> None:
    decoder, z = decoder_of(found), np.random.default_rng(0).normal(size=(7, 2))
    made = decoder.decoded({"z": torch.as_tensor(z)})
    assert made is not None
    np.testing.assert_allclose(made, mean_of_pixels(found, z))
    np.testing.assert_allclose(decoder.reconstructed(np.array([3, 9])), mean_of_pixels(found, own_means(found)[[3, 9]]))


def test_reconstructions_stand_below_their_originals(found: Scene) -> None:
    pictures = [tiles(p) for p in pictures_of(picture_of("reconstructions", found))]
    assert [p.shape for p in pictures] == [(2, 10, 8, 8)] * 3
    rows = np.array(
        [np.flatnonzero((found.x == image.reshape(-1).round()).all(1))[0] for p in pictures for image in p[0]]
    )
    assert found.labels is not None and sorted(found.labels[rows]) == sorted([*range(10)] * 3)
    made = mean_of_pixels(found, own_means(found))
    close(np.concatenate([p[1] for p in pictures]), made[rows])
    r2 = 1 - np.square(found.x - made).sum() / np.square(found.x - found.x.mean()).sum()
    assert f"R² over all pixels {r2:.3g}".replace("-", "−") in picture_of("reconstructions", found).get_suptitle()


def test_samples_are_draws_and_their_means(found: Scene) -> None:
    decoder = decoder_of(found)
    data, means, drawn = (tiles(p) for p in pictures_of(picture_of("samples", found)))
    assert data.shape == means.shape == drawn.shape == (6, 6, 8, 8)
    simulated = decoder.simulated(36)
    assert simulated is not None and simulated[1] is not None
    close(means, simulated[1])
    close(drawn, simulated[0])
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert {tuple(v) for v in data.reshape(36, 64).round()} <= {tuple(v) for v in found.x}


def test_simulated_data_have_the_priors_moments(found: Scene) -> None:
    simulated, n = decoder_of(found).simulated(2000), 2000
    assert simulated is not None and simulated[1] is not None
    z = np.random.default_rng(3).normal(size=(4000, 2))
    truth = mean_of_pixels(found, z)
    se = np.sqrt(truth.mean(0) * (1 - truth.mean(0)) / n + truth.var(0) / 4000)
    assert (np.abs(simulated[0].mean(0) - truth.mean(0)) < 4.5 * se).all()
    assert (np.abs(simulated[0].mean(0) - simulated[1].mean(0)) < 4.5 * se).all()


def test_interpolation_goes_from_mean_to_mean_in_a_straight_line(found: Scene) -> None:
    decoder, means = decoder_of(found), own_means(found)
    made = between(decoder, (4, 60), 5)
    line = np.linspace(0, 1, 5)[:, None] * (means[60] - means[4]) + means[4]
    np.testing.assert_allclose(made, mean_of_pixels(found, line))
    pairs = image_pairs(decoder.x, found.labels)
    (picture,) = pictures_of(picture_of("interpolation", found))
    first = picture[:10, 12:-12]  # ends of ten pixels, gaps of two
    close(tiles(first)[0], between(decoder, pairs[0], STEPS))  # type: ignore[arg-type]
    close(tiles(picture[:10, :10])[0], found.x[pairs[0][0]])
    close(tiles(picture[:10, -10:])[0], found.x[pairs[0][1]])
    assert len(picture) == 10 * len(pairs)


def test_the_grid_is_of_the_priors_quantiles(found: Scene) -> None:
    (picture,) = pictures_of(picture_of("decoder_grid", found))
    shown = tiles(picture)
    assert shown.shape[:2] == (GRID, GRID)
    q = stats.norm.ppf((np.arange(GRID) + 0.5) / GRID)
    for i, j in ((0, 0), (2, 5), (14, 1)):  # the second number upwards, the first to the right
        close(shown[GRID - 1 - j, i], mean_of_pixels(found, np.array([q[i], q[j]])))
    labels = [t.get_text() for t in picture_of("decoder_grid", found).axes[0].get_xticklabels()]
    assert labels[0] == f"{q[0]:.2f}".replace("-", "−") and labels[-1] == f"{q[-1]:.2f}"


def test_the_plane_holds_the_posterior_means_by_label(found: Scene) -> None:
    axes = picture_of("latent_plane", found).axes[0]
    (points,) = (c for c in axes.collections if isinstance(c, PathCollection))
    at = np.asarray(points.get_offsets())
    means = own_means(found)
    order = np.array([np.abs(means - p).sum(1).argmin() for p in at])
    assert sorted(order) == list(range(80))
    np.testing.assert_allclose(at, means[order], atol=1e-12)
    assert found.labels is not None
    np.testing.assert_allclose(points.get_facecolors()[:, :3], component_colors(10)[found.labels[order].astype(int)])
    ellipse = next(p for p in axes.patches if isinstance(p, Ellipse))
    row = np.abs(means - np.array(ellipse.center)).sum(1).argmin()
    values = np.linalg.eigvalsh(np.cov(found.draws["z"][0][:, row].T))
    np.testing.assert_allclose(sorted([ellipse.width, ellipse.height]), 2 * np.sqrt(values))


def test_more_latents_are_drawn_on_principal_axes(programs: str, tmp_path: Path) -> None:
    options = {"rows": 60, "binarize": 8, "epochs": 2, "guide": "mean_field", "latents": 3}
    run(programs + "pixels", "digits", "svi", out=tmp_path / "run", **options)
    assert belonging(tmp_path / "run") == ALWAYS | {"interpolation", "latent_kl", "trace", "khat", "worst_khat"}
    found = scene(tmp_path / "run")
    figure, pca = picture_of("latent_plane", found), PCA(2).fit(own_means(found))
    (points,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    wanted, drawn = np.abs(pca.transform(own_means(found))), np.abs(np.asarray(points.get_offsets()))
    np.testing.assert_allclose(np.sort(drawn, 0), np.sort(wanted, 0), atol=1e-9)
    share = pca.explained_variance_ratio_
    assert f"{100 * share.sum():.0f} % of their variance" in figure.get_suptitle()
    assert figure.axes[0].get_xlabel() == f"principal axis 1 ({100 * share[0]:.0f} %)"
    asked = Decoder(decoder_of(found).task, {}).centers(rows := np.array([5, 41]))  # its own q for each row
    assert asked is not None
    spread = found.draws["z"][0].std(0)[rows]
    away = np.abs(asked["z"].numpy() - own_means(found)[rows]) / spread
    assert away.max() < 4.5 * (1 / 100 + 1 / len(found.draws["z"][0])) ** 0.5


def test_other_priors_and_discrete_latents(programs: str, tmp_path: Path) -> None:
    options = {"rows": 60, "binarize": 8, "epochs": 1, "samples": 40}
    run(programs + "skewed", "digits", "importance", proposal="prior", out=tmp_path / "run", **options)
    assert inked(plot(tmp_path / "run", dpi=50)) == ALWAYS | {"interpolation", "khat", "worst_khat"}
    decoder = decoder_of(scene(tmp_path / "run"))
    centers = decoder.centers(np.arange(60))
    assert centers is not None and set(centers["k"].tolist()) <= {0, 1}
    assert centers["z"].shape == (60, 2) and bool((centers["z"] > 0).all())
    drawn = decoder._trace(None, 4000, {}).nodes["z"]
    quantiles = _quantiles_of(drawn)
    np.testing.assert_allclose(quantiles[:, 1], 1.0, atol=0.05)  # the median of a standard log-normal


def _quantiles_of(node: Any) -> np.ndarray:
    from inference._pictures._views.decoder import _quantiles

    return _quantiles(node["fn"], node["value"], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).numpy()


def test_two_layers_are_seen_from_the_top(tmp_path: Path) -> None:
    options = {"layers": 2, "latents": 2, "likelihood": "bernoulli", "hidden": (6,), "epochs": 2}
    run("deep_latent_gaussian", "digits", "svi", rows=60, binarize=8, missing="top", out=tmp_path / "run", **options)
    assert belonging(tmp_path / "run") == ALWAYS | {
        "interpolation",
        "latent_kl",
        "decoder_grid",
        "trace",
        "missing",
        "khat",
        "worst_khat",
    }
    found = scene(tmp_path / "run")
    decoder = decoder_of(found)
    assert decoder.top.name == "z2" and decoder.plane is not None
    np.testing.assert_allclose(decoder.plane[0], found.draws["z2"][0].mean(0))
    grid = decoder.over_prior(np.array([0.25, 0.75]))
    module: Any = decoder.task.program.module
    assert grid is not None
    z2 = torch.tensor([stats.norm.ppf(0.75), stats.norm.ppf(0.25)])
    with torch.no_grad():
        made = module.decoder(module.between(z2).chunk(2, -1)[0]).sigmoid()
    np.testing.assert_allclose(grid[1][0, 1], made, rtol=1e-6)
    (picture,) = pictures_of(picture_of("interpolation", found))
    np.testing.assert_allclose(picture[1:5, 13:21], np.broadcast_to(to_rgb(UNSEEN), (4, 8, 3)))  # no datum has them


# ---- tables ----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_table_is_drawn_beside_what_is_simulated(programs: str, tmp_path: Path) -> None:
    x = np.tanh(np.random.default_rng(0).normal(size=(90, 1)) * [1.0, -1.0, 0.5])
    x += 0.3 * np.random.default_rng(1).normal(size=x.shape)
    x[:9, 1] = np.nan
    run(programs + "curve", x, "svi", epochs=3, hidden=(6,), out=tmp_path / "run")
    assert inked(plot(tmp_path / "run", dpi=50)) == ALWAYS | {"trace", "missing", "khat"}
    found = scene(tmp_path / "run")
    axes = picture_of("samples", found).axes
    first, second = (c for c in axes[3].collections if isinstance(c, PathCollection))  # x1 against x0
    observed, simulated = (np.ma.getdata(c.get_offsets()) for c in (first, second))
    np.testing.assert_allclose(observed, x[:, :2])
    expected = decoder_of(found).simulated(90)
    assert expected is not None
    np.testing.assert_allclose(simulated, expected[0][:, :2])
    a, z = _store.load(tmp_path / "run").parameters()["a"], own_means(found)
    figure = picture_of("reconstructions", found)
    for d, panel in enumerate(figure.axes[:3]):
        (points,) = panel.collections
        np.testing.assert_allclose(np.ma.getdata(points.get_offsets())[:, 0], np.tanh(a[d] * z))


def test_one_latent_is_a_histogram(programs: str, tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(2100, 3))
    run(programs + "curve", x, "importance", proposal="prior", samples=5, epochs=1, batch=2100, out=tmp_path / "run")
    found = scene(tmp_path / "run")
    figure = picture_of("latent_plane", found)
    assert sum(p.get_height() for p in figure.axes[0].patches) == pytest.approx(2000)  # no more are drawn
    assert "2\u202f000 of 2\u202f100 rows drawn" in figure.get_suptitle()


def test_many_columns_are_heat_maps_and_their_correlations(tmp_path: Path) -> None:
    options = {"latents": 2, "hidden": (8,), "epochs": 3, "lr": 0.005}
    run("deep_latent_gaussian", "wine", "svi", standardize=True, rows=70, out=tmp_path / "run", **options)
    assert belonging(tmp_path / "run") == ALWAYS | {"latent_kl", "trace", "khat"}
    found = scene(tmp_path / "run")
    observed, simulated, pairs = picture_of("samples", found).axes[:3]
    assert observed.images[0].get_array().shape == simulated.images[0].get_array().shape == (60, 13)  # type: ignore[union-attr]
    (points,) = pairs.collections
    truth = np.corrcoef(found.x.T)[np.triu_indices(13, 1)]
    np.testing.assert_allclose(np.asarray(points.get_offsets())[:, 0], truth, atol=1e-9)


def test_a_label_that_the_decoder_is_told_is_no_column_of_the_pictures(tmp_path: Path) -> None:
    bunch = load_iris()
    x = np.c_[bunch.data, bunch.target].astype(float)
    run("deep_latent_gaussian", x, "svi", classes=3, latents=2, hidden=(6,), epochs=2, out=tmp_path / "run")
    decoder = decoder_of(scene(tmp_path / "run"))
    assert decoder.columns.tolist() == [0, 1, 2, 3] and not decoder.whole
    made = decoder.reconstructed(np.array([0, 149]))
    module: Any = decoder.task.program.module
    z = torch.as_tensor(own_means(scene(tmp_path / "run"))[[0, 149]])
    told = torch.cat([z, torch.eye(3, dtype=z.dtype)[[0, 2]]], 1)
    with torch.no_grad():
        np.testing.assert_allclose(made, module.center + module.spread * module.decoder(told)[:, :4])
    assert belonging(tmp_path / "run") == ALWAYS | {"latent_kl", "trace", "khat"}


@pytest.mark.parametrize("program", ["several", "in_a_plate", "nested_bounds", "unbounded_choice"])
def test_programs_of_all_shapes_are_drawn(program: str, tmp_path: Path) -> None:
    columns = {"several": 3, "in_a_plate": 3, "nested_bounds": 2, "unbounded_choice": 1}[program]
    x = np.random.default_rng(0).poisson(1.5, size=(30, columns)).astype(float)
    run(LOCAL + program, x, "importance", proposal="prior", samples=50, epochs=1, out=tmp_path / "run")
    found = scene(tmp_path / "run")
    pictures = _draw.subjects(found)
    assert pictures.keys() == ALWAYS | {"khat"}
    for name in ALWAYS:
        assert picture_of(name, found).axes


def test_global_latents_stand_at_their_point() -> None:
    x = np.random.default_rng(0).poisson(1.5, size=(30, 1)).astype(float)
    task = task_of(both_kinds, x)
    task.globals = {"level": torch.tensor(-2.0, dtype=torch.float64)}
    decoder = Decoder(task, {"z": np.zeros((1, 30))})
    z = decoder._trace(None, 2000, {}).nodes["z"]["value"]
    assert float(z.mean()) == pytest.approx(-2.0, abs=4.5 / 2000**0.5)
    np.testing.assert_allclose(decoder.reconstructed(np.arange(30)), 1.0)


# ---- where the latents come from -------------------------------------------------------------------------


def test_a_guide_is_asked_where_the_run_has_few_draws(found: Scene) -> None:
    task = decoder_of(found).task
    few = Decoder(task, {"z": found.draws["z"][0][:1]})
    means = few.centers(np.arange(80))
    assert means is not None
    spread = found.draws["z"][0].std(0)
    away = (means["z"].numpy() - own_means(found)) / spread
    assert np.abs(away).max() < 4.5 * (1 / 100 + 1 / len(found.draws["z"][0])) ** 0.5
    without = Decoder(replace(task, guide=None), {"z": found.draws["z"][0][:1]})
    np.testing.assert_allclose(without.centers(np.array([5]))["z"], found.draws["z"][0][0, [5]])  # type: ignore[index]


def test_without_draws_and_guide_the_prior_is_left(found: Scene) -> None:
    bare = replace(found, decoder=Decoder(replace(decoder_of(found).task, guide=None), {}), trace={})
    assert set(_draw.subjects(bare)) == {"samples", "decoder_grid", "khat", "worst_khat", "latent_kl"}


def test_runs_without_a_guide(programs: str, tmp_path: Path) -> None:
    options = {"rows": 30, "binarize": 8, "max_iter": 5, "samples": 30}
    run(programs + "pixels", "digits", "laplace", out=tmp_path / "laplace", **options)
    infer(tmp_path / "laplace", "ais", temperatures=5, chains=4, leapfrog=2, out=tmp_path / "ais")
    images = ALWAYS | {"interpolation", "decoder_grid"}
    assert belonging(tmp_path / "laplace") == images | {"trace", "khat", "worst_khat"}
    assert belonging(tmp_path / "ais") == images
    found = scene(tmp_path / "ais")
    made = decoder_of(found).reconstructed(np.arange(30))
    np.testing.assert_allclose(made, mean_of_pixels(found, own_means(found)))


# ---- checks ----------------------------------------------------------------------------------------------


def lines_of(axes: Any) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_the_trace_shows_training_and_held_out(found: Scene) -> None:
    left, right = picture_of("trace", found).axes
    lines, watched = lines_of(left), found.trace["elbo_per_datum_held_out"]
    np.testing.assert_allclose(lines["training rows"], found.trace["elbo_per_datum"])
    np.testing.assert_allclose(lines["held out"], watched)
    best = f"best on the rows held out (epoch {watched.argmax() + 1}): kept"
    np.testing.assert_allclose(lines[best], [watched.max()])
    np.testing.assert_allclose(lines_of(right)["held out"], watched[1:])  # a third of four epochs later


@pytest.mark.parametrize(
    ("rates", "drops"),
    [([1.0, 0.9, 0.5, 0.1, 0.01], 0), ([1.0, 1.0, 1.0, 0.5, 0.5], 1), ([1.0, 0.5, 0.5, 0.25], 2), ([1.0, 0.5], 0)],
)
def test_a_rate_that_falls_all_the_time_has_no_drops(found: Scene, rates: Sequence[float], drops: int) -> None:
    climbed = {"elbo_per_datum": np.linspace(-9.0, -1.0, len(rates)), "lr": np.array(rates)}
    left = picture_of("trace", replace(found, trace=climbed)).axes[0]
    upright = [line for line in left.lines if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type]
    assert len(upright) == drops


def test_the_worst_khat_beside_the_best(folder: Path, tmp_path: Path) -> None:
    fit = infer(folder, "importance", samples=40, out=tmp_path / "run")
    assert fit.khat is not None
    found = scene(tmp_path / "run")
    figure = picture_of("worst_khat", found)
    worst, best = (tiles(p) for p in pictures_of(figure))
    order = np.argsort(fit.khat, kind="stable")
    close(best[0], found.x[order[:10]])
    close(worst[0], found.x[order[::-1][:10]])
    close(worst[1], mean_of_pixels(found, own_means(found)[order[::-1][:10]]))
    texts = [t.get_text().replace("−", "-").split("\n") for t in figure.axes[0].get_xticklabels()]
    assert [t[0] for t in texts] == [f"row {row}" for row in order[::-1][:10]]
    np.testing.assert_allclose([float(t[1]) for t in texts], fit.khat[order[::-1][:10]], atol=0.006)
    assert {"khat", "worst_khat"} < belonging(tmp_path / "run")
    plain = replace(found, decoder=None, task=None, stats=found.stats | {"khat": np.where(order < 3, np.nan, fit.khat)})
    assert next(t.get_text() for t in picture_of("worst_khat", plain).axes[0].get_xticklabels()).endswith("∞")
    assert tiles(pictures_of(picture_of("worst_khat", plain))[0]).shape == (1, 10, 8, 8)


def test_what_is_missing_of_images_is_drawn_several_times(programs: str, tmp_path: Path) -> None:
    options = {"rows": 40, "binarize": 8, "missing": "random:0.4", "epochs": 2, "hidden": (8,)}
    run(programs + "pixels", "digits", "svi", out=tmp_path / "run", **options)
    found = scene(tmp_path / "run")
    panels = {a.get_ylabel(): i for i, a in enumerate(picture_of("missing", found).axes) if a.images}
    names = ["observed", "mean", "sd", "draw 1", "draw 2", "draw 3"]
    assert [n for n in panels if n in names] == names
    axes = picture_of("missing", found).axes
    first = {n: np.ma.filled(axes[panels[n]].images[0].get_array(), np.nan).reshape(-1) for n in names}
    missing = np.isnan(first["observed"])
    row = np.flatnonzero((np.isnan(found.x) == missing).all(1))[0]
    for name in ("mean", "draw 1", "draw 2", "draw 3"):
        np.testing.assert_allclose(first[name][~missing], found.x[row][~missing])
    assert set(first["draw 1"]) <= {0.0, 1.0} and not (first["draw 1"] == first["draw 2"]).all()
    z = found.draws["z"][0][:, row]
    np.testing.assert_allclose(first["mean"][missing], mean_of_pixels(found, z).mean(0)[missing])


# ---- what cannot be drawn --------------------------------------------------------------------------------


def test_what_a_program_cannot_do_is_left_out(programs: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    options = {"proposal": "prior", "samples": 30, "epochs": 1}
    run(programs + "one_way", x[:, :1], "importance", out=tmp_path / "one_way", **options)
    run(programs + "heavy", x, "importance", out=tmp_path / "heavy", **options)
    assert belonging(tmp_path / "one_way") == {"reconstructions", "latent_plane", "khat"}
    assert belonging(tmp_path / "heavy") == {"samples", "latent_plane", "khat"}


def test_a_program_with_nothing_continuous_has_none_of_them(programs: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).poisson(1.0, size=(20, 1)).astype(float)
    run(programs + "switch", x, "importance", proposal="prior", samples=30, epochs=1, out=tmp_path / "run")
    assert belonging(tmp_path / "run") == {"khat"}
    with pytest.raises(UsageError, match="no exact posterior, no continuous latent; nothing was iterated"):
        _draw.subjects(replace(scene(tmp_path / "run"), stats={}, trace={}))
