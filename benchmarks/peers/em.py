"""EM on a Gaussian mixture, against scikit-learn's GaussianMixture and pomegranate: time over time at equal likelihood.

All sides take the same data and the same start, alternating in one process, each with the threads that it takes by itself. Ours
is the general engine on the program `zoo/gmm.py`, the E- and M-steps that `em` takes: nothing in it knows that the model is
a Gaussian mixture. The peers run with no regularisation and no early stop.

All do the same work: 20 M-steps and 21 E-steps, because scikit-learn's `fit` ends on one more E-step, and so does `em`;
pomegranate's does not, so it is given one. What is timed is the fit itself, on our side with finding out which parameters
have an update in closed form. All log-likelihoods are taken at the end in float64, from each side's parameters.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks._suite.documents import Document
from benchmarks.peers._turns import OURS, Side, timed, turns
from inference._families._family import Floor
from inference._method.start import FLOOR
from inference._method.task import Task
from inference._run.cost import versions
from zoo._options import Count
from zoo._program.describe import describe
from zoo._program.load import load

QUICK = 5_000
SEED = 0
Values = Tensor | np.ndarray
Covariance = Literal["full", "diagonal", "spherical"]
THEIRS = {"full": "full", "diagonal": "diag", "spherical": "spherical"}  # scikit-learn's names
SQUARE = 1024  # rows and columns of the products whose rate is taken


def measure(
    *,
    covariance: Covariance = "full",
    dtype: Literal["float64", "float32"] = "float64",
    n: Count = 200_000,
    d: Count = 16,
    k: Count = 10,
    iterations: Count = 20,
    rounds: Count = 5,
    quick: bool = False,
) -> Document:
    """The document: times, their ratios, log-likelihoods, and who is not installed."""
    x = _data(QUICK if quick else n, d, k)
    task = _task(x.to(getattr(torch, dtype)), covariance, k)
    start = {name: v.detach().clone() for name, v in task.program.values().items()}
    sides: dict[str, Side] = {OURS: lambda: _ours(task, start, iterations, x)}
    sides["scikit-learn"] = lambda: _sklearn(task.x, start, iterations, x)
    skipped = []
    try:
        import pomegranate.gmm  # noqa: F401

        sides["pomegranate"] = lambda: _pomegranate(task.x, start, iterations, x)
    except ImportError:
        skipped.append("pomegranate is not installed")
    out = turns(sides, rounds)
    sizes = {"n": len(x), "d": d, "k": k, "iterations": iterations}
    what = f"EM, Gaussian mixture, {covariance} covariance, {dtype}: " + ", ".join(
        f"{a}={v:,}" for a, v in sizes.items()
    )
    return {
        "benchmark": "peers/em",
        "what": what,
        "short": f"em {covariance} {dtype}",
        **out,
        "products": _products(task.x, covariance, k, iterations) / out["seconds"][OURS],
        "skipped": skipped,
        **sizes,
        "covariance": covariance,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _products(x: Tensor, covariance: Covariance, k: int, iterations: int) -> float:
    """Seconds for the products of all steps, at the rate of large square ones: the best of three."""
    n, d = x.shape
    e_step, m_step = (k * d, k * (d + 1)) if covariance == "full" else (2 * k, 2 * k)  # numbers for each entry of x
    square = torch.rand(SQUARE, SQUARE, dtype=x.dtype)
    rate = 2 * SQUARE**3 / min(timed(lambda: square @ square) for _ in range(3))
    return 2 * n * d * ((iterations + 1) * e_step + iterations * m_step) / rate


def _data(n: int, d: int, k: int) -> Tensor:
    """Draws from a mixture whose components overlap [n, d]."""
    rng = np.random.default_rng(SEED)
    locs = 0.6 * rng.normal(size=(k, d))
    factors = np.eye(d) + 0.2 * np.tril(rng.normal(size=(k, d, d)))
    z = rng.integers(k, size=n)
    return torch.as_tensor(locs[z] + (factors[z] @ rng.normal(size=(n, d, 1)))[..., 0])


def _task(x: Tensor, covariance: str, k: int) -> Task:
    program = load("gmm", x, {"components": k, "covariance": covariance})
    return Task(program, describe(program, x), x, seed=SEED, quiet=True)


def steps(task: Task, start: dict[str, Tensor], iterations: int) -> tuple[float, float]:
    """So many M-steps from a start, and one E-step more: seconds, and log p(x) at the end."""
    task.program.assign(start)
    began = time.perf_counter()
    task = Task(task.program, task.structure, task.x)  # an engine that has seen nothing yet
    how, floor = task.plan({}), Floor(FLOOR, set())
    stats = task.engine.e_step()
    for _ in range(iterations):
        task.m_step(how, stats, {}, floor)
        stats = task.engine.e_step()
    return time.perf_counter() - began, stats.log_joint


def _ours(task: Task, start: dict[str, Tensor], iterations: int, x: Tensor) -> tuple[float, float]:
    seconds, _ = steps(task, start, iterations)
    values = task.program.values()
    return seconds, _log_likelihood(values["weights"], values["locs"], _covariances(values), x)


def _covariances(values: dict[str, Tensor]) -> Tensor:
    """[k, d, d], or variances [k, d] or [k]."""
    if "scale_tril" in values:
        return values["scale_tril"] @ values["scale_tril"].mT
    return values["scales"].square()


def _kind(values: dict[str, Tensor]) -> Covariance:
    if "scale_tril" in values:
        return "full"
    return "diagonal" if values["scales"].dim() == 2 else "spherical"


def _sklearn(data: Tensor, start: dict[str, Tensor], iterations: int, x: Tensor) -> tuple[float, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    covariances, kind = _covariances(start), _kind(start)
    mixture = GaussianMixture(
        len(start["weights"]),
        covariance_type=THEIRS[kind],
        tol=0.0,
        reg_covar=0.0,
        max_iter=iterations,
        weights_init=start["weights"].numpy(),
        means_init=start["locs"].numpy(),
        precisions_init=(torch.linalg.inv(covariances) if kind == "full" else 1 / covariances).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds = timed(lambda: mixture.fit(data.numpy()))
    return seconds, _log_likelihood(mixture.weights_, mixture.means_, mixture.covariances_, x)


def _pomegranate(data: Tensor, start: dict[str, Tensor], iterations: int, x: Tensor) -> tuple[float, float]:
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    covariances, kind = _covariances(start), {"full": "full", "diagonal": "diag", "spherical": "sphere"}[_kind(start)]
    parts = [
        Normal(m.clone(), torch.atleast_1d(c).clone(), covariance_type=kind, check_data=False)
        for m, c in zip(start["locs"], covariances, strict=True)
    ]
    mixture = GeneralMixtureModel(parts, start["weights"].clone(), max_iter=iterations, tol=-math.inf, check_data=False)
    began = time.perf_counter()
    mixture.fit(data)
    mixture.log_probability(data).sum()  # the E-step that the others end on
    seconds = time.perf_counter() - began
    locs, found = (torch.stack([getattr(p, name).detach() for p in parts]) for name in ("means", "covs"))
    return seconds, _log_likelihood(mixture.priors.detach(), locs, found, x)


@torch.no_grad()
def _log_likelihood(weights: Values, locs: Values, covariances: Values, x: Tensor) -> float:
    """Of a mixture, in float64; `covariances` are [k, d, d], or variances [k, d] or [k]."""
    weights, locs, covariances = (torch.as_tensor(v).detach().double() for v in (weights, locs, covariances))
    total = 0.0
    for rows in x.split(20_000):
        terms = []
        for weight, loc, covariance in zip(weights / weights.sum(), locs, covariances, strict=True):
            if covariance.dim() == 2:
                part = torch.distributions.MultivariateNormal(loc, covariance).log_prob(rows)
            else:
                part = torch.distributions.Normal(loc, covariance.sqrt()).log_prob(rows).sum(-1)
            terms.append(part + weight.log())
        total += float(torch.stack(terms).logsumexp(0).sum())
    return total
