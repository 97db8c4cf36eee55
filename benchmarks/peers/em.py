"""EM on a full-covariance Gaussian mixture, against scikit-learn's GaussianMixture: time over time at equal likelihood.

Both sides take the same data and the same start, in float64, in turn in one process, each with the threads that it takes
by itself. Ours is the general engine on the program `zoo/gmm.py`, the E- and M-steps that `em` takes: nothing in it knows
that the model is a Gaussian mixture. scikit-learn runs with no regularisation and no early stop.

Both do the same work: 20 M-steps and 21 E-steps, because scikit-learn's `fit` ends on one more E-step, and so does `em`.
What is timed is the fit itself, on our side with finding out which parameters have an update in closed form.
"""

from __future__ import annotations

import statistics
import time
import warnings
from json import dumps
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from inference._family import Floor
from inference._runner import versions
from inference._start import FLOOR
from inference._task import Task
from zoo import _program
from zoo._structure import describe

N, N_QUICK, D, K = 200_000, 5_000, 16, 10
ITERATIONS = 20
SEED = 0
AGREEMENT = 1e-6  # the largest relative difference between the log-likelihoods at which times can be compared


def main(json: bool = False, rounds: int = 5, quick: bool = False) -> dict[str, Any]:
    """Time both sides in turn, `rounds` times; print a table, or with `json` the document that is returned.

    `quick`: on a few thousand data, to see that it works. Raises `ArithmeticError` where the log-likelihoods differ.
    """
    task = _task(_data(N_QUICK if quick else N))
    start = {n: v.detach().clone() for n, v in task.program.values().items()}
    _ours(task, start, iterations=1)  # what only the first call pays for is nobody's time
    _peer(task.x, start, iterations=1)
    times = []
    for _ in range(rounds):
        seconds, ours = _ours(task, start, ITERATIONS)
        peer_seconds, peer = _peer(task.x, start, ITERATIONS)
        if not abs(ours - peer) <= AGREEMENT * abs(peer):
            raise ArithmeticError(f"the two log-likelihoods differ, {ours!r} (ours) and {peer!r}: no ratio of times.")
        times.append((seconds, peer_seconds))
    out = _document(times, len(task.x), {"ours": ours, "peer": peer})
    print(dumps(out, indent=2) if json else _table(out))
    return out


def _data(n: int) -> Tensor:
    """Draws from a mixture whose components overlap [n, D]."""
    rng = np.random.default_rng(SEED)
    locs = 0.6 * rng.normal(size=(K, D))
    factors = np.eye(D) + 0.2 * np.tril(rng.normal(size=(K, D, D)))
    z = rng.integers(K, size=n)
    return torch.as_tensor(locs[z] + (factors[z] @ rng.normal(size=(n, D, 1)))[..., 0])


def _task(x: Tensor) -> Task:
    program = _program.load("gmm", x, {"components": K, "covariance": "full"})
    return Task(program, describe(program, x), x, seed=SEED, quiet=True)


def _ours(task: Task, start: dict[str, Tensor], iterations: int) -> tuple[float, float]:
    """Seconds, and the log-likelihood at the end (nats)."""
    task.program.assign(start)
    began = time.perf_counter()
    task = Task(task.program, task.structure, task.x)  # an engine that has seen nothing yet
    how, floor = task.plan({}), Floor(FLOOR, set())
    stats = task.exact.e_step()
    for _ in range(iterations):
        task.m_step(how, stats, {}, floor)
        stats = task.exact.e_step()
    return time.perf_counter() - began, float(stats.per_datum.sum())


def _peer(x: Tensor, start: dict[str, Tensor], iterations: int) -> tuple[float, float]:
    """Seconds, and the log-likelihood at the end (nats)."""
    data = x.numpy()
    mixture = GaussianMixture(
        K,
        covariance_type="full",
        tol=0.0,
        reg_covar=0.0,
        max_iter=iterations,
        weights_init=start["weights"].numpy(),
        means_init=start["locs"].numpy(),
        precisions_init=torch.cholesky_inverse(start["scale_tril"]).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        began = time.perf_counter()
        mixture.fit(data)
        seconds = time.perf_counter() - began
    return seconds, float(mixture.score_samples(data).sum())


def _document(times: list[tuple[float, float]], n: int, log_likelihood: dict[str, float]) -> dict[str, Any]:
    ratios = [ours / peer for ours, peer in times]
    return {
        "benchmark": "peers/em",
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours_seconds": statistics.median(ours for ours, _ in times),
        "peer_seconds": statistics.median(peer for _, peer in times),
        "log_likelihood": log_likelihood,
        "n": n,
        "d": D,
        "k": K,
        "iterations": ITERATIONS,
        "rounds": len(times),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _table(out: dict[str, Any]) -> str:
    peer = f"scikit-learn {out['versions']['scikit-learn']}"
    return "\n".join(
        [
            f"EM, Gaussian mixture, full covariance: N={out['n']:,}, D={out['d']}, K={out['k']}, float64,",
            f"{out['iterations']} iterations from the same start, {out['threads']} threads, {out['rounds']} rounds",
            "",
            f"{'':22}{'seconds':>10}{'log-likelihood':>20}",
            f"{'zoo gmm, em':22}{out['ours_seconds']:>10.3f}{out['log_likelihood']['ours']:>20.4f}",
            f"{peer:22}{out['peer_seconds']:>10.3f}{out['log_likelihood']['peer']:>20.4f}",
            f"{'ratio':22}{out['ratio']:>10.3f}   ({out['ratio_min']:.3f} to {out['ratio_max']:.3f})",
        ]
    )
