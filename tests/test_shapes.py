"""The fourteen covariance shapes of gmm: mclust's figures, its counts of parameters, and optima found by SciPy alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import task_of, tensor
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.datasets import load_iris

from inference import run
from inference._numerics.coordinates import Coordinates
from zoo._data import datasets
from zoo._errors import UsageError
from zoo._program import covariances

FAITHFUL = datasets.load("faithful").x
NAMES = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
# each letter I frees to E or V, and E to V
NESTED = [
    (a, b)
    for a in NAMES
    for b in NAMES
    if a != b and all(x == y or x == "I" or y == "V" for x, y in zip(a, b, strict=True))
]


def mclust_parameters(name: str, K: int, D: int) -> int:
    """`nMclustParams` of R's mclust (Scrucca et al. 2016, table 3)."""
    volume = 1 if name[0] == "E" else K
    shape = {"I": 0, "E": D - 1, "V": K * (D - 1)}[name[1]]
    orientation = {"I": 0, "E": D * (D - 1) // 2, "V": K * D * (D - 1) // 2}[name[2]]
    return K - 1 + K * D + volume + shape + orientation


def bic(value: float, name: str, K: int) -> float:
    """In mclust's sign: larger is better."""
    return 2 * value - mclust_parameters(name, K, FAITHFUL.shape[1]) * np.log(len(FAITHFUL))


def fitted(name: str, K: int) -> float:
    fit = run("gmm", FAITHFUL, "em", components=K, covariance=name)
    assert fit.converged and fit.warnings == [] and fit.verified.kind == "exact"
    return fit.verified.value


def covariance_by_hand(name: str, free: np.ndarray, K: int) -> tuple[np.ndarray, int]:
    """Σ_k [K, 2, 2] from free numbers, and how many were used: log λ, half the log ratio of the axes, an angle."""
    used, parts = 0, []
    for letter in name:
        count = {"I": 0, "E": 1, "V": K}[letter]
        part = free[used : used + count] if count else np.zeros(1)
        parts.append(np.broadcast_to(part, K))
        used += count
    out = np.empty((K, 2, 2))
    for k, (size, ratio, turn) in enumerate(zip(*parts, strict=True)):
        c, s = np.cos(turn), np.sin(turn)
        D = np.array([[c, -s], [s, c]])
        out[k] = np.exp(size) * D @ np.diag([np.exp(ratio), np.exp(-ratio)]) @ D.T
    return out, used


def optimum_by_hand(name: str, K: int) -> float:
    """The largest log p(x) that SciPy finds from several starts, without EM and without our parametrisation."""
    x = (FAITHFUL - FAITHFUL.mean(0)) / FAITHFUL.std(
        0
    ).mean()  # one scale for both columns: all shapes stay what they are
    rng, best = np.random.default_rng(0), np.inf

    def loss(u: np.ndarray) -> float:
        logits, locs = np.append(u[: K - 1], 0), u[K - 1 : K - 1 + 2 * K].reshape(K, 2)
        sigma, _ = covariance_by_hand(name, u[K - 1 + 2 * K :], K)
        joint = logits - np.logaddexp.reduce(logits)
        white = np.einsum("nki,kij,nkj->nk", x[:, None] - locs, np.linalg.inv(sigma), x[:, None] - locs)
        joint = joint - 0.5 * (white + np.linalg.slogdet(sigma)[1] + 2 * np.log(2 * np.pi))
        return -np.logaddexp.reduce(joint, 1).sum()

    count = covariance_by_hand(name, np.zeros(3 * K), K)[1]
    assert K - 1 + 2 * K + count == mclust_parameters(name, K, 2)
    for _ in range(4):
        centers = x[rng.choice(len(x), K, replace=False)]
        start = np.concatenate([np.zeros(K - 1), np.sort(centers, 0).ravel(), 0.1 * rng.normal(size=count) - 0.5])
        found = minimize(loss, start, method="BFGS", options={"gtol": 1e-6, "maxiter": 2000})
        best = min(best, found.fun)
    return -best - FAITHFUL.size * np.log(FAITHFUL.std(0).mean())


def test_mclusts_choice_on_faithful():
    assert bic(fitted("VVV", 2), "VVV", 2) == pytest.approx(-2322.2, abs=0.05)
    assert bic(fitted("EEE", 3), "EEE", 3) == pytest.approx(-2314.3, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "K", "published"), [("VEV", 2, -561.7285), ("VVV", 2, -574.0178), ("VEV", 3, -562.55)]
)
def test_mclusts_figures_on_iris(name, K, published):
    """Scrucca et al. 2016; mclust stops a little before the top for three components."""
    x = load_iris().data
    fit = run("gmm", x, "em", components=K, covariance=name)
    value = 2 * fit.verified.value - mclust_parameters(name, K, 4) * np.log(len(x))
    assert value == pytest.approx(published, abs=5e-3)


@pytest.mark.slow
def test_eee_with_three_components_is_the_best_by_bic():
    found = {(name, K): bic(fitted(name, K), name, K) for name in NAMES for K in range(1, 5)}
    assert max(found, key=found.get) == ("EEE", 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("K", "D"), [(1, 2), (3, 4)])
def test_as_many_parameters_as_mclust(name, K, D):
    x = np.random.default_rng(0).normal(size=(20, D))
    program = task_of("gmm", x, components=K, covariance=name).program
    assert Coordinates(program.values(), program.constraints).d == mclust_parameters(name, K, D)


@pytest.mark.parametrize(
    "name",
    ["VEI", "EVE", "VEV", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in ("VEI", "EVE", "VEV"))],
)
def test_the_optimum_is_scipys(name):
    assert fitted(name, 2) == pytest.approx(optimum_by_hand(name, 2), abs=1e-4)


@pytest.mark.slow
def test_a_wider_shape_is_no_worse():
    found = {name: fitted(name, 2) for name in NAMES}
    for narrow, wide in NESTED:
        assert found[wide] >= found[narrow] - 1e-6, (narrow, wide)


def test_the_parts_make_the_covariance():
    rng = np.random.default_rng(3)
    volume, shape, angles = rng.uniform(1, 2, 2), rng.uniform(1, 2, (2, 4)), rng.normal(size=(2, 6))
    turn = covariances.rotation(tensor(angles), 4)
    tril = covariances.scale_tril(covariances.axes(tensor(volume), tensor(shape)), turn)
    sigma = (tril @ tril.mT).numpy()
    for k in range(2):
        eigenvalues = volume[k] * shape[k] / np.prod(shape[k]) ** 0.25
        assert np.linalg.eigvalsh(sigma[k]) == pytest.approx(np.sort(eigenvalues))
        D = turn[k].numpy()
        assert pytest.approx(np.eye(4)) == D @ D.T and np.linalg.det(D) == pytest.approx(1)
        assert D @ np.diag(eigenvalues) @ D.T == pytest.approx(sigma[k])
    assert bool((tril.diagonal(dim1=-2, dim2=-1) > 0).all()) and bool((tril.triu(1) == 0).all())


@pytest.mark.parametrize("name", ["VEV", "EVI"])
def test_holes_are_integrated_out(name):
    x = FAITHFUL[:80].copy()
    x[::7, 0] = np.nan
    x[4::7, 1] = np.nan
    task = task_of("gmm", x, components=2, covariance=name)
    torch.manual_seed(1)
    task.program.assign(task.program.elsewhere())
    scale = task.program.module._scale().detach()
    sigma = [(np.diag(s.numpy() ** 2) if name[2] == "I" else (s @ s.mT).numpy()) for s in scale]
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    for row, value in zip(x, task.engine.per_datum().numpy(), strict=True):
        seen = np.flatnonzero(~np.isnan(row))
        by_hand = [
            np.log(theta["weights"][k])
            + multivariate_normal(theta["locs"][k][seen], sigma[k][np.ix_(seen, seen)]).logpdf(row[seen])
            for k in range(2)
        ]
        assert value == pytest.approx(np.logaddexp(*by_hand))


@pytest.mark.parametrize("pair", [("full", "VVV"), ("tied", "EEE"), ("diagonal", "VVI"), ("spherical", "VII")])
def test_two_names_of_one_shape_are_the_same_to_the_bit(pair):
    one, other = (task_of("gmm", FAITHFUL[:50], components=2, covariance=name) for name in pair)
    assert torch.equal(one.engine.per_datum(), other.engine.per_datum())
    assert one.theta().keys() == other.theta().keys()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(UsageError, match="gmm has no priors for covariance=VEV"):
        task_of("gmm", FAITHFUL, covariance="VEV", priors=True)
    with pytest.raises(UsageError, match="covariance=EVE expects two columns or more, got one"):
        task_of("gmm", FAITHFUL[:, :1], covariance="EVE")


@pytest.mark.parametrize("components", [1, 2])
def test_a_constant_column_is_named_with_what_to_do(components):
    x = np.column_stack([FAITHFUL, np.full(len(FAITHFUL), 3.0)])
    fit = run("gmm", x, "em", components=components)
    assert all(
        "Leave out what is constant or never observed: column 2 (counting from 0)" in warning
        for warning in fit.warnings
    )
    assert len(fit.warnings) == components
