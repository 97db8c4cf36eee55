"""The pictures of a run: their numbers against closed forms, their files against what was asked for."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from drawing import picture_of
from matplotlib import image as reader
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Ellipse
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from inference import infer, run
from inference._pictures import _draw
from inference._pictures._draw import plot
from inference._pictures._views.density import SHARES, cells, density_of, hdr_levels
from inference._pictures._views.mixture import left_out
from inference._pictures._views.scene import Scene, scene_of
from inference._pictures._views.style import OKABE_ITO, blend, component_colors, evidence_line
from inference._pictures.clusters import telling_pair
from inference._pictures.missing import _bands
from inference._run import folder as _store
from zoo._errors import UsageError

PROGRAMS = """
import pyro, torch
import pyro.distributions as dist
from torch.distributions import constraints

def simplex(k):
    return pyro.param("w", torch.full((k,), 1 / k), constraint=constraints.simplex)

def poisson(x=None, size=None):
    w = simplex(2)
    r = pyro.param("r", torch.tensor([[2.0, 9.0], [9.0, 3.0]]), constraint=constraints.positive)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Poisson(r[z]).to_event(1), obs=x)

def exponential(x=None, size=None):
    w = simplex(2)
    r = pyro.param("r", torch.tensor([[1.0, 0.2], [0.1, 1.0]]), constraint=constraints.positive)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Exponential(r[z]).to_event(1), obs=x)

def bernoulli(x=None, size=None, components=3):
    w = simplex(components)
    D = 64 if x is None else x.shape[1]
    p = pyro.param("p", 0.3 + 0.4 * torch.rand(components, D), constraint=constraints.unit_interval)
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        return pyro.sample("x", dist.Bernoulli(p[z]).to_event(1), obs=x)

def regression(x=None, size=None):
    a = pyro.param("a", torch.tensor([0.0, 2.0]))
    b = pyro.param("b", torch.tensor([1.0, -1.0]))
    n = size if x is None else len(x)
    u = torch.zeros(n) if x is None else x[:, 0]
    with pyro.plate("data", n):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        return pyro.sample("y", dist.Normal(a[z] + b[z] * u, 0.5), obs=None if x is None else x[:, 1])

def continuous(x=None, size=None):
    w = pyro.param("w", torch.tensor([1.0, 1.0]))
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        return pyro.sample("x", dist.LogNormal(w * z, 0.5).to_event(1), obs=x)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("programs") / "mine.py"
    path.write_text(PROGRAMS)
    return f"{path}:"


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "faithful"
    run("gmm", "faithful", "em", restarts=3, out=folder)
    return folder


def scene(folder: Path) -> Scene:
    return scene_of(_store.load(folder))


@pytest.fixture(scope="module")
def found(faithful: Path) -> Scene:
    return scene(faithful)


def names(paths: list[Path]) -> set[str]:
    return {p.name for p in paths}


def pixels(path: Path) -> np.ndarray:
    """An image [height, width, 3], which must have ink on it."""
    out = reader.imread(path)[..., :3]
    assert 0.01 < (out < 0.9).any(-1).mean() < 0.9
    return out


def holds(image: np.ndarray, color: str) -> bool:
    """Whether an image has at least ten pixels of a colour."""
    wanted = np.array(matplotlib.colors.to_rgb(color))
    return int((np.abs(image - wanted).max(-1) < 0.02).sum()) >= 10


def mixed(seed: int, n: int, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals around the means [K, D], and which."""
    rng = np.random.default_rng(seed)
    z = rng.integers(len(means), size=n)
    return means[z] + rng.normal(size=(n, means.shape[1])), z


# ---- colours, densities, columns -------------------------------------------------------------------------


def test_blend_of_one_component_is_its_colour_and_of_all_lies_between() -> None:
    palette = component_colors(3)
    np.testing.assert_allclose(blend(np.eye(3), palette), palette, atol=1e-12)
    middle = blend(np.full((1, 3), 1 / 3), palette)[0]
    assert (middle > palette.min(0) - 1e-12).all() and (middle < palette.max(0) + 1e-12).all()


def test_blend_mixes_light_and_not_numbers() -> None:
    half = blend(np.array([[0.5, 0.5]]), np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(half, 1.055 * 0.5 ** (1 / 2.4) - 0.055)  # the sRGB standard's half of white


def test_component_colours_differ() -> None:
    palette = component_colors(21)
    distances = np.abs(palette[:, None] - palette).max(-1) + np.eye(21)
    assert palette.shape == (21, 3) and distances.min() > 0.05
    assert component_colors(100).shape == (100, 3)


def test_hdr_levels_of_a_normal_are_the_analytic_ones() -> None:
    axis = np.linspace(-6, 6, 301)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    log_density = -0.5 * (x**2 + y**2) - math.log(2 * math.pi)
    levels = hdr_levels(log_density, np.multiply.outer(cells(axis), cells(axis)))
    for share, level in levels.items():  # mass q lies within radius² = −2 log(1 − q)
        assert level == pytest.approx(math.log(1 - share) - math.log(2 * math.pi), abs=0.01)
    assert set(levels) == set(SHARES)


def test_hdr_levels_leave_out_what_the_grid_does_not_hold() -> None:
    axis = np.linspace(-1, 1, 101)  # 68 % of a normal
    levels = hdr_levels(-0.5 * axis**2 - 0.5 * math.log(2 * math.pi), cells(axis))
    assert set(levels) == {0.25, 0.5}


def test_cells_integrate_on_an_uneven_axis() -> None:
    axis = np.array([0.0, 0.1, 0.5, 2.0])
    assert (cells(axis) * (3 * axis + 1)).sum() == pytest.approx(3 * 2.0**2 / 2 + 2.0)


def test_the_telling_pair_is_where_the_components_differ() -> None:
    means = np.zeros((3, 6))
    means[:, 1], means[:, 4] = [0, 6, 0], [0, 0, 6]
    x, z = mixed(0, 600, means)
    x[:, 2] = 7.0
    assert telling_pair(x, np.eye(3)[z]) == (1, 4)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    assert telling_pair(x, np.eye(3)[z]) == (1, 4)


def test_the_telling_pair_needs_no_components() -> None:
    assert telling_pair(mixed(0, 50, np.zeros((1, 4)))[0], np.ones((50, 1))) == (0, 1)


# ---- what the program says -------------------------------------------------------------------------------


def test_weights_means_and_responsibilities_are_the_fits(faithful: Path, found: Scene) -> None:
    oracle, theta = found.oracle, _store.load(faithful).parameters()
    assert oracle is not None
    np.testing.assert_allclose(oracle.weights, theta["weights"], atol=1e-9)
    np.testing.assert_allclose(oracle.means, theta["locs"])
    np.testing.assert_allclose(oracle.responsibilities, found.stats["z_probability"], atol=1e-9)
    covariance = theta["scale_tril"] @ theta["scale_tril"].transpose(0, 2, 1)
    np.testing.assert_allclose(oracle.covariance([1, 0]), covariance[:, ::-1, ::-1])
    assert oracle.caption(0) == f"z = 0, {100 * theta['weights'][0]:.0f} %"


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_the_density_of_two_columns_is_the_mixtures_marginal(covariance: str, tmp_path: Path) -> None:
    x, _ = mixed(1, 200, np.array([[0.0, 0.0, 0.0], [5.0, 3.0, -4.0]]))
    fit = run(
        "gmm", x @ np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]), "em", covariance=covariance, out=tmp_path / "run"
    )
    oracle = scene(tmp_path / "run").oracle
    assert oracle is not None
    density = density_of(oracle, [0, 2], 40)
    blocks = oracle.covariance([0, 2])
    assert density is not None and blocks is not None
    components = torch.distributions.MultivariateNormal(
        torch.as_tensor(fit.parameters["locs"][:, [0, 2]]), torch.as_tensor(blocks)
    )
    weights = torch.distributions.Categorical(torch.as_tensor(fit.parameters["weights"]))
    truth = torch.distributions.MixtureSameFamily(weights, components)
    grid = torch.as_tensor(np.stack(np.meshgrid(*density.axes, indexing="ij"), -1))
    np.testing.assert_allclose(density.log_density, truth.log_prob(grid), atol=1e-8)
    assert (np.exp(density.log_density) * density.cell).sum() == pytest.approx(1, abs=0.01)
    rows = np.full((25, 3), np.nan)
    rows[:, [0, 2]] = grid.reshape(-1, 2)[::250][:25]
    np.testing.assert_allclose(oracle.marginal(rows[:, [0, 2]], [0, 2]), oracle.joint(rows), atol=1e-8)


def test_regions_hold_their_share_of_simulated_data(found: Scene) -> None:
    oracle = found.oracle
    assert oracle is not None
    density = density_of(oracle, [0, 1], 180)
    assert density is not None
    levels = hdr_levels(density.log_density, density.cell)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        drawn = oracle.task.program.trace(None, size=20_000).nodes["x"]["value"].numpy()
    log_p = np.logaddexp.reduce(oracle.joint(drawn), axis=1)
    for share, level in levels.items():
        assert (log_p > level).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5 + 0.005)


def test_the_density_keeps_to_the_support(programs: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = rng.exponential(np.array([[1.0, 5.0], [9.0, 1.0]])[rng.integers(2, size=200)])
    run(programs + "exponential", x, "em", out=tmp_path / "run")
    oracle = scene(tmp_path / "run").oracle
    assert oracle is not None
    density = density_of(oracle, [0, 1], 120)
    assert density is not None and min(axis[0] for axis in density.axes) >= 0
    assert (np.exp(density.log_density) * density.cell).sum() == pytest.approx(1, abs=0.03)


def test_what_is_no_density_of_the_columns_gets_no_contours(programs: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    u = rng.normal(size=100)
    x = np.stack([u, np.where(rng.random(100) < 0.5, u, 2 - u) + 0.3 * rng.normal(size=100)], 1)
    run(programs + "regression", x, "em", max_iter=3, out=tmp_path / "run")
    found = scene(tmp_path / "run")
    assert found.oracle is not None and density_of(found.oracle, [0, 1], 60) is None
    assert found.oracle.covariance([0, 1]) is None
    assert "clusters.png" in names(plot(tmp_path / "run", dpi=40))


# ---- what is drawn ---------------------------------------------------------------------------------------


def test_points_have_the_colour_of_their_responsibilities(found: Scene) -> None:
    axes = picture_of("clusters", found).axes[0]
    assert found.oracle is not None
    (points,) = (c for c in axes.collections if isinstance(c, PathCollection))
    at = {tuple(np.round(p, 9)): c[:3] for p, c in zip(points.get_offsets(), points.get_facecolors(), strict=True)}
    wanted = blend(found.oracle.responsibilities, component_colors(2))
    for row, color in zip(found.x, wanted, strict=True):
        np.testing.assert_allclose(at[tuple(np.round(row, 9))], color, atol=1e-6)


def test_ellipses_are_one_and_two_standard_deviations(found: Scene) -> None:
    axes = picture_of("clusters", found).axes[0]
    ellipses = [p for p in axes.patches if isinstance(p, Ellipse)]
    assert found.oracle is not None and len(ellipses) == 4
    covariance, mean = found.oracle.covariance([0, 1]), found.oracle.means
    assert covariance is not None
    for ellipse in ellipses:
        a = int(np.abs(mean - np.array(ellipse.center)).sum(1).argmin())
        border = ellipse.get_patch_transform().transform(np.array([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])) - mean[a]
        radius = np.sqrt(np.einsum("ni,ij,nj->n", border, np.linalg.inv(covariance[a]), border))
        assert np.allclose(radius, 1) or np.allclose(radius, 2)


def test_rows_seen_in_one_column_are_ticks_on_its_axis(tmp_path: Path) -> None:
    x, _ = mixed(4, 120, np.array([[0.0, 0.0], [6.0, 6.0]]))
    x[:7, 0], x[7:10, 1], x[10] = np.nan, np.nan, np.nan
    run("gmm", x, "em", out=tmp_path / "run")
    axes = picture_of("clusters", scene(tmp_path / "run")).axes[0]
    ticks = sorted(len(c.get_segments()) for c in axes.collections if isinstance(c, LineCollection))
    assert ticks == [3, 7]
    assert names(plot(tmp_path / "run", dpi=40)) == {"clusters.png", "trace.png", "missing.png"}


def test_rows_are_sorted_by_their_pattern() -> None:
    missing = np.zeros((10, 3), dtype=bool)
    missing[[1, 4, 5], 0] = missing[7] = True
    order, bands = _bands(missing)
    assert bands == [(0, 6), (6, 9), (9, 10)]
    assert order.tolist() == [0, 2, 3, 6, 8, 9, 1, 4, 5, 7]


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ({"value": -1130.26396, "se": 0.0, "kind": "exact"}, "log p(x) = −1130.264 nats (exact)"),
        ({"value": -1131.5, "se": 0.12, "kind": "lower bound"}, "log p(x) ≥ −1131.50 ± 0.12 nats (lower bound)"),
        ({"value": -1175.93, "se": None, "kind": "estimate"}, "log p(x) ≈ −1175.930 nats (estimate)"),
        (
            {"value": -5.0, "se": 0, "kind": "exact", "given": "the mode"},
            "log p(x) = −5.000 nats (exact, given the mode)",
        ),
    ],
)
def test_the_title_says_what_kind_of_number_it_is(evidence: dict, text: str) -> None:
    assert evidence_line({"verified_log_evidence": None, "log_evidence": evidence}) == text


def test_trace_falls_to_its_end_and_shows_the_restarts(found: Scene) -> None:
    left, right = picture_of("trace", found).axes
    assert right.get_yscale() == "log"
    assert sum(not line.get_clip_on() for line in left.lines) == 3


# ---- files -----------------------------------------------------------------------------------------------


def test_pictures_of_faithful(faithful: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = plot(faithful, tmp_path / "deep" / "out", dpi=100)
    assert names(paths) == {"clusters.png", "trace.png"} == {p.name for p in (tmp_path / "deep" / "out").iterdir()}
    image = pixels(tmp_path / "deep" / "out" / "clusters.png")
    assert image.shape == (540, 720, 3)
    assert all(holds(image, color) for color in OKABE_ITO[:2]) and not holds(image, OKABE_ITO[2])
    assert dict(matplotlib.rcParams) == before


def test_pictures_go_into_the_run_and_can_be_drawn_again(faithful: Path) -> None:
    first = plot(faithful, dpi=40)
    assert {p.parent for p in first} == {faithful / "plots"}
    assert plot(faithful, dpi=40) == first
    _store.load(faithful)


@pytest.mark.parametrize(("format", "magic"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_formats(faithful: Path, tmp_path: Path, format: str, magic: bytes) -> None:
    for path in plot(faithful, tmp_path, format):  # type: ignore[arg-type]
        assert path.suffix == f".{format}" and path.read_bytes().startswith(magic) and path.stat().st_size > 5000


def test_what_cannot_be_is_said(faithful: Path, found: Scene, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected png, pdf or svg"):
        plot(faithful, tmp_path, "gif")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dpi"):
        plot(faithful, tmp_path, dpi=0)
    with pytest.raises(UsageError, match="is not a run"):
        plot(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        plot(faithful, tmp_path / "file")
    nothing = replace(found, oracle=None, trace={}, stats={})
    with pytest.raises(UsageError, match="nothing to draw"):
        _draw.subjects(nothing)


def test_a_program_that_is_gone_leaves_what_the_folder_holds(programs: str, tmp_path: Path) -> None:
    path = Path(programs[:-1]).with_name("gone.py")
    path.write_text(PROGRAMS)
    run(f"{path}:poisson", np.arange(20.0).reshape(10, 2), "em", out=tmp_path / "run")
    path.unlink()
    with pytest.warns(UserWarning, match=r"no pictures of the model itself: .*gone\.py"):
        assert names(plot(tmp_path / "run", dpi=40)) == {"trace.png"}


# ---- programs and methods --------------------------------------------------------------------------------


@pytest.mark.full
def test_every_method_gets_the_clusters(faithful: Path, tmp_path: Path) -> None:
    run("gmm", "faithful", "laplace", priors=True, covariance="spherical", rows=60, out=tmp_path / "laplace")
    run("gmm", "faithful", "svi", epochs=1, rows=60, out=tmp_path / "svi")
    infer(faithful, "importance", samples=20, epochs=1, out=tmp_path / "importance")
    infer(faithful, "em", out=tmp_path / "em")
    assert set(_draw.subjects(scene(tmp_path / "laplace"))) == {"clusters", "trace"}
    assert set(_draw.subjects(scene(tmp_path / "svi"))) == {"clusters", "trace", "khat"}
    assert names(plot(tmp_path / "importance", dpi=40)) == {"clusters.png", "trace.png", "khat.png"}
    assert set(_draw.subjects(scene(tmp_path / "em"))) == {"clusters"}  # nothing was iterated
    laplace = scene(tmp_path / "laplace")
    assert laplace.oracle is not None
    np.testing.assert_allclose(laplace.oracle.means, _store.load(tmp_path / "laplace").parameters()["locs"])


def test_khat_of_untrustworthy_estimates(programs: str, tmp_path: Path) -> None:
    x = np.exp(3 * np.random.default_rng(5).normal(size=(60, 2)))
    fit = run(programs + "continuous", x, "importance", proposal="prior", samples=30, epochs=2, out=tmp_path / "run")
    assert fit.khat is not None and (fit.khat > 0.7).any()
    figure = picture_of("khat", scene(tmp_path / "run"))
    assert "above 0.7: their estimates cannot be trusted" in figure.get_suptitle()
    assert str(int(fit.khat.argmax())) in {t.get_text().split()[0] for t in figure.axes[0].texts}
    pixels(next(p for p in plot(tmp_path / "run", dpi=60) if p.name == "khat.png"))


def test_a_users_mixture_of_counts(programs: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    x = rng.poisson(np.array([[2.0, 10.0], [8.0, 3.0]])[rng.integers(2, size=300)]).astype(float)
    fit = run(programs + "poisson", x, "em", out=tmp_path / "run")
    paths = plot(tmp_path / "run", dpi=60)
    assert names(paths) == {"clusters.png", "components.png", "trace.png"}
    for path in paths:
        pixels(path)
    oracle = scene(tmp_path / "run").oracle
    assert oracle is not None and oracle.covariance([0, 1]) is None
    np.testing.assert_allclose(oracle.means, fit.parameters["r"])
    density = density_of(oracle, [0, 1], 0)
    assert density is not None and density.whole
    assert np.exp(density.log_density).sum() == pytest.approx(1, abs=0.01)


def test_one_column_is_a_histogram(tmp_path: Path) -> None:
    x, _ = mixed(7, 200, np.array([[0.0], [6.0]]))
    fit = run("gmm", x, "em", out=tmp_path / "run")
    assert names(plot(tmp_path / "run", dpi=40)) == {"clusters.png", "trace.png"}
    axes = picture_of("clusters", scene(tmp_path / "run")).axes[0]
    areas = sorted(
        (cells(line.get_xdata()) * line.get_ydata()).sum() for line in axes.lines if len(line.get_xdata()) > 9
    )
    np.testing.assert_allclose(areas, [*sorted(fit.parameters["weights"]), 1.0], atol=1e-3)


def test_a_few_columns_are_also_drawn_in_pairs(tmp_path: Path) -> None:
    x, _ = mixed(8, 100, np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 5.0]]))
    header = "price in $ of a $thing,a name that is very much longer than any label may be,c"
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header=header, comments="")
    run("gmm", tmp_path / "x.csv", "em", out=tmp_path / "run")
    paths = plot(tmp_path / "run", dpi=80)
    assert names(paths) == {"clusters.png", "pairs.png", "trace.png"}
    for path in paths:
        pixels(path)
    axes = picture_of("clusters", scene(tmp_path / "run")).axes[0]
    assert axes.get_xlabel() == r"price in \$ of a \$thing" and axes.get_ylabel() == "c"


def test_many_columns_get_the_telling_two_and_the_profiles(tmp_path: Path) -> None:
    means = np.zeros((2, 60))
    means[1, [17, 45]] = 8
    run("gmm", mixed(9, 300, means)[0], "em", covariance="diagonal", out=tmp_path / "run")
    assert names(plot(tmp_path / "run", dpi=40)) == {"clusters.png", "components.png", "trace.png"}
    axes = picture_of("clusters", scene(tmp_path / "run")).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x17", "x45")


@pytest.mark.full
def test_images_show_each_components_mean(programs: str, tmp_path: Path) -> None:
    options = {"binarize": 8, "rows": 200, "missing": "top", "components": 3}
    fit = run(programs + "bernoulli", "digits", "em", max_iter=5, out=tmp_path / "run", **options)
    assert names(plot(tmp_path / "run", dpi=40)) == {"components.png", "samples.png", "trace.png", "missing.png"}
    found = scene(tmp_path / "run")
    shown = [axes.images[0].get_array() for axes in picture_of("components", found).axes if axes.images]
    assert found.oracle is not None and len(shown) == 3
    for a, image in zip(found.oracle.order, shown, strict=True):
        assert np.ma.getmaskarray(image)[:4].all()  # nothing was learned of what was never observed
        np.testing.assert_allclose(image[4:], fit.parameters["p"][a].reshape(8, 8)[4:], atol=1e-6)


def test_awkward_data_are_drawn_too(tmp_path: Path) -> None:
    x, _ = mixed(10, 10, np.array([[0.0, 0.0]]))
    run("gmm", x, "em", components=1, out=tmp_path / "few")
    run("gmm", np.c_[x, np.full(10, 3.0)], "em", components=2, out=tmp_path / "constant")
    run("gmm", np.c_[x[:, :1], np.full(10, np.nan)], "em", components=2, out=tmp_path / "unseen")
    run("gmm", np.r_[np.zeros((10, 2)), x + 9], "em", components=2, out=tmp_path / "collapsed")
    assert "clusters.png" in names(plot(tmp_path / "few", dpi=40))
    assert {"clusters.png", "pairs.png"} < names(plot(tmp_path / "constant", dpi=40))
    assert {"clusters.png", "missing.png"} < names(plot(tmp_path / "unseen", dpi=40))
    assert "clusters.png" in names(plot(tmp_path / "collapsed", dpi=40))


@pytest.mark.full
def test_many_rows_are_quick_and_counted(tmp_path: Path) -> None:
    x, _ = mixed(11, 25_000, np.array([[0.0, 0.0], [4.0, 4.0]]))
    run("gmm", x, "em", max_iter=2, out=tmp_path / "run")
    began = time.process_time()
    plot(tmp_path / "run", format="pdf")
    assert time.process_time() - began < 10
    assert (tmp_path / "run" / "plots" / "clusters.pdf").stat().st_size < 2_000_000  # points rasterised
    oracle = scene(tmp_path / "run").oracle
    assert oracle is not None and left_out(oracle) == "20\u202f000 of 25\u202f000 rows drawn"


@pytest.mark.full
def test_pixels_that_theta_knows_are_not_tinted(tmp_path: Path) -> None:
    """θ was learned from whole images: what it fills in where the data at hand have nothing is to be seen."""
    run("missing_pixels", "digits", "svi", net="logistic", binarize=8, rows=60, epochs=2, out=tmp_path / "theta")
    infer(tmp_path / "theta", "importance", data="digits", rows=4, binarize=8, missing="top", proposal="sequential",
          samples=50, out=tmp_path / "filled")  # fmt: skip
    assert names(plot(tmp_path / "theta", dpi=40)) == {"components.png", "samples.png", "trace.png"}
    assert {"samples.png", "missing.png"} <= names(plot(tmp_path / "filled", dpi=40))
    assert scene(tmp_path / "filled").tint == "; tinted: unobserved"
    images = np.ones((1, 64))
    np.testing.assert_array_equal(scene(tmp_path / "filled").tinted(images), images)


def test_one_picture_by_its_name(faithful: Path) -> None:
    stored = _store.load(faithful)
    assert len(_draw.figure(stored, "trace").axes) == 2
    with pytest.raises(UsageError, match=r"Expected a picture of this run \(clusters, trace\), got 'khat'"):
        _draw.figure(stored, "khat")


class Coins(PyroModule):
    def __init__(self, x):
        super().__init__()
        self.weights = PyroParam(torch.ones(2) / 2, constraints.simplex)
        self.probs = PyroParam(torch.tensor([[0.3], [0.7]]).repeat(1, x.shape[1]), constraints.unit_interval)

    def forward(self, x=None, size=None):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights))
            return pyro.sample("x", dist.Bernoulli(self.probs[z]).to_event(1), obs=x)


def test_pictures_of_zeros_and_ones_have_axes_of_their_own(here):
    """Bars at 0 and 1 whose heights are shares; names in lines, inside the figure; imputed probabilities without whiskers."""
    x = np.where(np.random.default_rng(0).random((60, 2)) < [0.2, 0.7], 1.0, 0.0)
    names = ["tired in the morning after sleeping", "well"]
    one = run(Coins, pd.DataFrame(x[:, :1], columns=names[:1]), "em")
    axes = one.plot("clusters").axes[0]
    assert axes.get_ylim()[1] < 1.2 and axes.get_xticks().tolist() == [0, 1]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)
    hidden = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)
    figure = run(Coins, pd.DataFrame(hidden, columns=names), "em").plot("missing")
    figure.canvas.draw()
    panels = [a for a in figure.axes if a.get_title(loc="left")]
    assert len(panels) == 2 and all(a.get_ylim() == (-0.08, 1.08) for a in panels)
    shown = [label for a in figure.axes for label in (*a.get_xticklabels(), a.title)]
    boxes = [label.get_window_extent() for label in shown if label.get_text()]
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.width + 1 for box in boxes)
