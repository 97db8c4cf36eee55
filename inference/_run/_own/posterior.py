"""A second look at the posterior of an exact fit: on a few rows, from the program alone, by the route of `own_route`.

Probabilities, means and standard deviations have to be those that the program gives, to rounding. Draws have to have them
within what chance allows: of normal latents the mean, the spread and every correlation, of labels how often each is drawn.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from inference._method.fit import Fit
from inference._method.task import Task
from inference._run._own.batch import Batch, assignments
from inference._run._own.disagreement import Disagreement
from inference._run._own.implied import Gaussian
from inference._run._own.own_route import rows_of

ROWS = 8
FAR = 6.0  # standard errors of a sum of draws
LEAST = 25.0  # the variance of a number of draws from which it is nearly normal


@torch.no_grad()
def check(task: Task, fit: Fit, point: dict[str, Tensor]) -> None:
    """Raise `Disagreement` where the fit's posterior of the local latents is not the program's; `point`: the globals' values.

    Programs whose latents are listed or normal are looked at; summed out one by one, or conjugate: their evidence alone is.
    """
    structure = task.structure
    normal = [s.name for s in structure.continuous_locals]
    if structure.eliminable or structure.conjugate or any(s.completes for s in structure.local_latents):
        return
    rows = rows_of(task)
    rows = rows[:: max(1, len(rows) // ROWS)]
    try:
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(0)
            row, known, log_p, mean, covariance = _gaussians(task, rows, point)
    except (RuntimeError, ValueError, IndexError):
        return  # it does not run on some rows alone: the check of its evidence says so
    top = torch.full((len(rows),), -torch.inf, dtype=log_p.dtype).scatter_reduce(0, row, log_p, "amax")
    share = (log_p - top[row]).exp()
    share = share / torch.zeros_like(top).index_add(0, row, share)[row]
    for site in structure.discrete_locals:
        if site.name in fit.probabilities and site.inner == 1 and not site.event_shape:
            _labels(task, fit, site.name, rows, (row, known[site.name][:, 0], share))
    if mean is not None and covariance is not None:
        _normals(task, fit, normal, rows, _mixed(row, share, mean, covariance, len(rows)), len(row) == len(rows))


def _gaussians(
    task: Task, rows: Tensor, point: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor | None, Tensor | None]:
    """Pairs of a row and joint values: which row [m], the values, log p(x_i, a) [m], and of the normal latents given both the
    mean [m, L] and covariance [m, L, L]; NaN where it is not known in these digits."""
    row, known = assignments(task, rows, point)
    batch = Batch(task, rows[row], known, point)
    if not task.structure.continuous_locals:
        return row, known, batch.log_joint({}), None, None
    log_p = batch.integrated()
    own = batch.own
    assert isinstance(own, Gaussian)
    return row, known, log_p, own.middle, torch.cholesky_inverse(own.factor)


def _mixed(row: Tensor, share: Tensor, mean: Tensor, covariance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean [n, L] and covariance [n, L, L] of each row's mixture of normals."""
    middle = mean.new_zeros(n, mean.shape[1]).index_add(0, row, share[:, None] * mean)
    away = mean - middle[row]
    square = covariance + away.unsqueeze(-1) * away.unsqueeze(-2)
    return middle, torch.zeros_like(square[:n]).index_add(0, row, share[:, None, None] * square)


def _labels(task: Task, fit: Fit, name: str, rows: Tensor, own: tuple[Tensor, Tensor, Tensor]) -> None:
    row, value, share = own
    values = value.unique()
    known = torch.stack(
        [torch.zeros(len(rows), dtype=share.dtype).index_add(0, row, share * (value == v)) for v in values], 1
    )
    mine = torch.as_tensor(fit.probabilities[name])[rows].double().reshape(len(rows), -1)
    if mine.shape != known.shape:
        return  # a support that differs from row to row
    if not torch.allclose(mine, known.double(), rtol=0.0, atol=_near(task)):
        raise _wrong(task, name, "probabilities")
    if name in fit.draws:
        drawn = torch.as_tensor(fit.draws[name])[:, rows].double().reshape(-1, len(rows))
        times = torch.stack([(drawn == v).sum() for v in values.double()]).double()
        spread = (len(drawn) * known * (1 - known)).sum(0)
        far = (times - len(drawn) * known.sum(0)).abs() > FAR * spread.sqrt()
        if bool((far & (spread > LEAST)).any()):
            raise _wrong(task, name, "draws")


def _normals(task: Task, fit: Fit, names: list[str], rows: Tensor, own: tuple[Tensor, Tensor], single: bool) -> None:
    mean, covariance = own
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    near, whole = _near(task) * (sd + 1e-3 * mean.abs()), ", ".join(names)
    for what, found, truth in (("means", fit.means, mean), ("standard deviations", fit.deviations, sd)):
        if all(n in found for n in names):
            mine = torch.cat([torch.as_tensor(found[n])[rows].double().reshape(len(rows), -1) for n in names], 1)
            if not bool(((mine - truth).abs() <= near).logical_or(truth.isnan()).all()):
                raise _wrong(task, whole, what)
    if single and all(n in fit.draws for n in names):
        drawn = torch.cat(
            [torch.as_tensor(fit.draws[n])[:, rows].double().flatten(2) if fit.draws[n].ndim > 2
             else torch.as_tensor(fit.draws[n])[:, rows].double().unsqueeze(-1) for n in names], 2)  # fmt: skip
        factor, bad = torch.linalg.cholesky_ex(covariance)
        if bool(bad.any()) or bool(covariance.isnan().any()):
            return
        white = torch.linalg.solve_triangular(factor, (drawn - mean).unsqueeze(-1), upper=False).squeeze(-1)
        count = white.shape[0] * white.shape[1]
        of_means = white.mean(0).abs() * len(white) ** 0.5  # N(0, 1) each
        square = torch.einsum("dnl,dnm->lm", white, white) / count - torch.eye(white.shape[2], dtype=white.dtype)
        if float(of_means.max()) > FAR or float(square.abs().max()) > FAR * (2 / count) ** 0.5 + FAR**2 / count:
            raise _wrong(task, whole, "draws")


def _near(task: Task) -> float:
    """Of probabilities, and of means and deviations in standard deviations: far above rounding, far below an error."""
    return 1e-2 if task.x.dtype == torch.float32 else 1e-4


def _wrong(task: Task, name: str, what: str) -> Disagreement:
    return Disagreement(
        f"the posterior {what} of '{name}' in '{task.program.name}' were said to be exact, and running the program alone gives "
        "others. Nothing is reported. A method that samples (importance, ais) may serve it."
    )
