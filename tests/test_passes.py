"""Passes over the rows: the same sums on any threads, and wherever the data lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import task_of

from inference._exact import densities
from inference._families._family import Floor
from inference._numerics.slices import evenly
from inference._numerics.threads import side_by_side

A, E, N = 6, 4, 200
rng = np.random.default_rng(0)
ROOTS = np.eye(E) + 0.3 * np.tril(rng.normal(size=(A, E, E)))
LOCS = rng.normal(size=(A, E))
Z = rng.integers(A, size=N)
X = LOCS[Z] + np.einsum("nij,nj->ni", ROOTS[Z], rng.normal(size=(N, E)))


@pytest.mark.full
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_likelihood_does_not_depend_on_where_the_data_lie(covariance):
    found = []
    for shift in (0.0, 1e6):
        task = task_of("gmm", X + shift, components=A, covariance=covariance)
        task.program.assign({"locs": torch.as_tensor(LOCS + shift)})
        stats = task.engine.e_step()
        for _ in range(5):
            task.m_step(task.plan({}), stats, {}, Floor(1e-6, set()))
            before, stats = stats.log_joint, task.engine.e_step()
            assert stats.log_joint >= before
        found.append(stats.log_joint)
    assert found[1] == pytest.approx(found[0], rel=1e-9)


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", [pytest.param("full", marks=pytest.mark.full), "diagonal"])
def test_threads_change_no_more_than_the_order_of_sums(covariance, monkeypatch):
    monkeypatch.setattr(densities, "CHUNK_NUMBERS", 1)  # slices of 64 rows
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            stats = task_of("gmm", X, components=A, covariance=covariance).engine.e_step()
            found.append([stats.per_datum, stats.counts, *stats.sites["x"].values()])
    finally:
        torch.set_num_threads(before)
    for one, two, three, again in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(three, one, rtol=1e-12, atol=1e-12)
        assert torch.equal(three, again)


def test_torch_has_one_thread_in_each_of_pythons():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert side_by_side(lambda part: (part, torch.get_num_threads()), [1, 2, 3]) == [(1, 1), (2, 1), (3, 1)]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda part: 1 / part, [1, 0])
        assert side_by_side(abs, []) == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 5, 64, 999])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shares_are_even_and_hold_each_row_once(rows, parts):
    shares = evenly(10, 10 + rows, 64, parts)
    taken = [i for share in shares for rows in share for i in range(rows.start, rows.stop)]
    assert taken == list(range(10, 10 + rows))
    sizes = [rows.stop - rows.start for share in shares for rows in share]
    assert max(sizes) <= 64 and max(sizes) - min(sizes) <= 1 and len(shares) == parts


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_recorded_linear_program_shows_its_sites_wherever_its_parameters_go():
    engine = task_of("factor_analysis", X, latents=2).engine
    program = engine.program
    for step in range(12):
        program.assign({n: v * (1 + 0.1 * step) for n, v in program.elsewhere().items()})
        with torch.no_grad():
            found = engine.sites()
        plain = engine.sites()  # where gradients are on, the program runs
        for one, other in zip(found.gaussians, plain.gaussians, strict=True):
            assert one.name == other.name and one.family is other.family
            torch.testing.assert_close(one.coefficients, other.coefficients.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(one.offset, other.offset.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(one.scale, other.scale.detach(), rtol=1e-12, atol=1e-12)
    assert engine._replayed.graph is not None
