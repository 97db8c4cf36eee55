"""Which divergence: the best Gaussian under KL(q‖p) and under KL(p‖q), and Laplace's at each mode, for targets of two numbers.

A correlated normal with an isotropic q, where both answers have closed forms; two modes from several starts; and, with
`model=file.py:callable`, the posterior of one row of a program. Expectations under p and under q are sums over
grids of their own.
"""

from __future__ import annotations

import json as json_
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from benchmarks._images import divergences_picture
from benchmarks._suite.documents import Document
from inference._density import local
from inference._run.cost import versions
from inference._run.prepare import prepare
from zoo._errors import Refusal, UsageError

RESULTS = Path(__file__).parent / "results"
CORRELATION = 0.9
APART = 2.5  # of each mode from the middle
STEP, REACH = 0.1, 7.0  # of the points for expectations under q, in its standard deviations
GRID = 241
WIDTH = 6.0  # standard deviations of p that the grid reaches
SAME = 1e-3  # between two answers
FLAT = 1e-4  # a gradient of an answer
Density = Callable[[Tensor], Tensor]  # [..., 2] → log p up to a constant
A = TypeVar("A")
Place = tuple[np.ndarray, np.ndarray]  # a mean [2] and a covariance [2, 2]


@dataclass
class Target:
    """A density of two numbers: what is known of it on a grid."""

    name: str
    log_density: Density
    middle: np.ndarray
    reach: np.ndarray  # [2] half the sides of the grid
    starts: list[Place]
    isotropic: bool = False
    axes: tuple[np.ndarray, np.ndarray] = field(init=False)
    values: np.ndarray = field(init=False)  # log p [GRID, GRID], normalised: the first coordinate changes along columns

    def __post_init__(self) -> None:
        self._lay()
        mean, covariance = self.moments()
        wide = WIDTH * np.sqrt(np.diag(covariance))
        if (wide < 0.7 * self.reach).any() or (wide > self.reach).any():
            self.middle, self.reach = mean, wide
            self._lay()

    def _lay(self) -> None:
        self.axes = tuple(np.linspace(m - r, m + r, GRID) for m, r in zip(self.middle, self.reach, strict=True))  # type: ignore[assignment]
        points = torch.as_tensor(np.stack(np.meshgrid(*self.axes), -1))
        with torch.no_grad():
            values = self.log_density(points).numpy()
        cell = (self.axes[0][1] - self.axes[0][0]) * (self.axes[1][1] - self.axes[1][0])
        top = values.max()
        self.log_mass = top + np.log(np.exp(values - top).sum() * cell)
        self.values = values - self.log_mass
        self.shares = np.exp(self.values) * cell

    def moments(self) -> Place:
        """The mean and the covariance of p."""
        points = np.stack(np.meshgrid(*self.axes), -1).reshape(-1, 2)
        share = self.shares.reshape(-1)
        mean = share @ points
        away = points - mean
        return mean, (away * share[:, None]).T @ away

    def edge(self) -> float:
        """The share of p at the edge of the grid."""
        return float(self.shares[[0, -1]].sum() + self.shares[:, [0, -1]].sum())


# ---- answers -----------------------------------------------------------------------------------------------------------


def exclusive(target: Target, start: Place) -> tuple[float, Place] | None:
    """A local optimum of KL(q‖p), nats, that a climb from `start` reaches; None where it reaches none."""

    def lack(v: Tensor) -> Tensor:
        mean, tril = _gaussian(v)
        z = mean + POINTS @ tril.mT
        energy = (WEIGHTS * target.log_density(z)).sum()
        return -energy + target.log_mass - tril.diagonal().log().sum() - 1 - np.log(2 * np.pi)

    def slope(v: np.ndarray) -> tuple[float, np.ndarray]:
        place = torch.as_tensor(v).requires_grad_()
        value = lack(place)
        return float(value.detach()), torch.autograd.grad(value, place)[0].numpy()

    found = optimize.minimize(slope, _numbers(start, target.isotropic), jac=True, method="BFGS", options={"gtol": 1e-8})
    at = torch.as_tensor(found.x)
    curvature = torch.autograd.functional.hessian(lack, at)
    if not np.isfinite(found.fun) or np.abs(found.jac).max() > FLAT or torch.linalg.eigvalsh(curvature).min() <= 0:  # type: ignore[no-untyped-call]
        return None
    mean, tril = _gaussian(at)
    return float(found.fun), (mean.numpy(), (tril @ tril.mT).numpy())


def inclusive(target: Target) -> tuple[float, Place]:
    """The optimum of KL(p‖q), nats: p's own mean and covariance, or its mean variance."""
    mean, covariance = target.moments()
    covariance = np.eye(2) * np.trace(covariance) / 2 if target.isotropic else covariance
    away = np.stack(np.meshgrid(*target.axes), -1) - mean
    squares = np.einsum("abi,ij,abj->ab", away, np.linalg.inv(covariance), away)
    log_q = -0.5 * (squares + np.linalg.slogdet(covariance)[1]) - np.log(2 * np.pi)
    inside = target.shares > 0
    return float((target.shares * (target.values - log_q))[inside].sum()), (mean, covariance)


def laplace(target: Target, start: Place) -> Place | None:
    """The normal at the mode that a climb from `start` reaches; None where it reaches none."""

    def slope(z: np.ndarray) -> tuple[float, np.ndarray]:
        place = torch.as_tensor(z).requires_grad_()
        value = -target.log_density(place)
        return float(value.detach()), torch.autograd.grad(value, place)[0].numpy()

    found = optimize.minimize(slope, start[0], jac=True, method="BFGS", options={"gtol": 1e-8})
    precision = torch.autograd.functional.hessian(lambda z: -target.log_density(z), torch.as_tensor(found.x)).numpy()  # type: ignore[no-untyped-call]
    if np.abs(found.jac).max() > FLAT or np.linalg.eigvalsh(precision).min() <= 0:
        return None
    return found.x, np.linalg.inv(precision)


def _gaussian(v: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the factor of the covariance that 3 (isotropic) or 5 numbers stand for."""
    if len(v) == 3:
        return v[:2], torch.eye(2, dtype=v.dtype) * v[2].exp()
    zero = torch.zeros((), dtype=v.dtype)
    return v[:2], torch.stack([torch.stack([v[2].exp(), zero]), torch.stack([v[3], v[4].exp()])])


def _numbers(place: Place, isotropic: bool) -> np.ndarray:
    """The opposite of `_gaussian`."""
    mean, covariance = place
    if isotropic:
        return np.array([*mean, 0.5 * np.log(np.trace(covariance) / 2)])
    tril = np.linalg.cholesky(covariance)
    return np.array([*mean, np.log(tril[0, 0]), tril[1, 0], np.log(tril[1, 1])])


def _quadrature() -> tuple[Tensor, Tensor]:
    """Points and weights for expectations under N(0, I): the trapezoidal rule, accurate for what is smooth."""
    axis = np.arange(-REACH, REACH + STEP / 2, STEP)
    weights = np.exp(-0.5 * axis**2)
    weights = weights / weights.sum()
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return torch.as_tensor(points), torch.as_tensor(np.outer(weights, weights).reshape(-1))


POINTS, WEIGHTS = _quadrature()


def distinct(places: list[A], place_of: Callable[[A], Place]) -> list[A]:
    """Those that differ, the first of each."""
    out: list[A] = []
    for one in places:
        flat = _flat(place_of(one))
        if all(np.abs(flat - _flat(place_of(other))).max() > SAME for other in out):
            out.append(one)
    return out


def _flat(place: Place) -> np.ndarray:
    return np.concatenate([place[0], place[1].ravel()])


def answers(target: Target) -> Document:
    """All answers for a target, JSON-ready."""
    found = [a for s in target.starts if (a := exclusive(target, s)) is not None]
    optima = sorted(distinct(found, lambda a: a[1]), key=lambda a: a[0])
    value, place = inclusive(target)
    modes = distinct([m for s in target.starts if (m := laplace(target, s)) is not None], lambda m: m)
    return {
        "target": target.name,
        "q": "isotropic normal" if target.isotropic else "normal",
        "starts": len(target.starts),
        "kl_q_p": [{"nats": nats, **_written(at)} for nats, at in optima],
        "kl_p_q": [{"nats": value, **_written(place)}],
        "laplace": [_written(m) for m in modes],
        "outside_the_grid": target.edge(),
    }


def _written(place: Place) -> Document:
    return {"mean": place[0].tolist(), "covariance": place[1].tolist()}


# ---- targets -----------------------------------------------------------------------------------------------------------


def correlated(correlation: float = CORRELATION) -> Target:
    """A normal with two correlated numbers of variance 1, and an isotropic q."""
    covariance = np.array([[1.0, correlation], [correlation, 1.0]])
    p = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.as_tensor(covariance))
    start = (np.array([0.5, -0.5]), np.eye(2))
    return Target("a correlated normal", p.log_prob, np.zeros(2), np.full(2, WIDTH), [start], isotropic=True)


def two_modes(apart: float = APART) -> Target:
    """An even mixture of two normals, each round."""
    away = torch.tensor([apart, 0.4 * apart], dtype=torch.float64)

    def log_density(z: Tensor) -> Tensor:
        each = torch.stack([-0.5 * (z - away).square().sum(-1), -0.5 * (z + away).square().sum(-1)])
        return each.logsumexp(0) - np.log(4 * np.pi)

    reach = WIDTH * np.sqrt(1 + away.numpy() ** 2)
    return Target("two modes", log_density, np.zeros(2), reach, _dispersed(np.zeros(2), np.diag(reach / WIDTH) ** 2))


def _dispersed(mean: np.ndarray, covariance: np.ndarray) -> list[Place]:
    """Starts over a target: a broad one at its mean, and narrow and broad ones at nine places."""
    sd = np.sqrt(np.diag(covariance))
    grid = [mean + sd * np.array([a, b]) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)]
    return [(mean, covariance), *((at, scale * covariance) for at in grid for scale in (0.1, 1.0))]


def of_program(model: str, data: str, row: int) -> Target:
    """The posterior of a program's latents for one row of data, in unconstrained coordinates."""
    prepared = prepare(model, data, {}, [])
    structure = prepared.structure
    if not 0 <= row < len(prepared.x):
        raise UsageError(f"Expected a row from 0 to {len(prepared.x) - 1}, got {row}.")
    why = local.refusal(structure)
    if structure.global_latents:
        why = f"'{structure.global_latents[0].name}' is a global latent, and belongs to all rows"
    if why is not None:
        raise Refusal(f"zoo bench divergences needs the posterior of one row: {why}")
    density = local.LocalDensity(prepared.program(), structure, prepared.x[row : row + 1].double())
    if density.L != 2:
        raise Refusal(
            f"zoo bench divergences draws two continuous latents of a row, and '{prepared.name}' has {density.L}"
        )

    def log_density(z: Tensor) -> Tensor:
        """Σ over the discrete latents, at z [..., 2]."""
        flat = z.reshape(-1, 1, 2)
        each = [density.log_joint(flat, torch.full(flat.shape[:2], a)) for a in range(density.A)]
        return torch.stack(each).logsumexp(0).reshape(z.shape[:-1])

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        draws = torch.stack([density.prior(1, torch.zeros(1, 1, dtype=torch.long))[0, 0] for _ in range(200)]).numpy()
    middle, reach = draws.mean(0), WIDTH * draws.std(0)
    target = Target(f"{prepared.name}, row {row}", log_density, middle, reach, [])
    target.starts = _dispersed(*target.moments())
    if target.edge() > 1e-3:
        raise Refusal("the posterior has mass beyond 6 standard deviations of its prior: rescale the latents")
    return target


# ---- the benchmark ------------------------------------------------------------------------------------------------------


def main(
    json: bool = False,
    model: str | None = None,
    data: str | None = None,
    row: int = 0,
    out: Path | None = None,
) -> Document:
    """Find and draw all answers; print them (with `json` as a document); returns them.

    `model`, `data`, `row`: a program with two continuous latents, in place of the two targets. `out`: a folder for the
    picture and the document; when None the project's own results, of a program the working folder.
    """
    if (model is None) != (data is None):
        raise UsageError(
            "zoo bench divergences takes model and data together: zoo bench divergences MODEL --set data=…."
        )
    targets = [correlated(), two_modes()] if model is None or data is None else [of_program(model, data, row)]
    folder = out or (RESULTS if model is None else Path())
    folder.mkdir(parents=True, exist_ok=True)
    found = [answers(t) for t in targets]
    document = {
        "benchmark": "divergences",
        "targets": found,
        "command": "zoo bench divergences",
        "versions": versions(),
    }
    divergences_picture.draw(
        folder / "divergences.png", [(t.axes, t.values, f) for t, f in zip(targets, found, strict=True)]
    )
    text = json_.dumps(document, indent=1, ensure_ascii=False)
    (folder / "divergences.json").write_text(text + "\n", encoding="utf-8")
    print(text if json else "\n".join(_line(f) for f in found) + f"\n{folder / 'divergences.png'}")
    return document


def _line(found: Document) -> str:
    each = ", ".join(f"{a['nats']:.4f}" for a in found["kl_q_p"])
    return (
        f"{found['target']}, q {found['q']}: KL(q‖p) at its optima {each} nats; KL(p‖q) {found['kl_p_q'][0]['nats']:.4f} nats; "
        f"{len(found['laplace'])} mode{'s' * (len(found['laplace']) > 1)}"
    )
