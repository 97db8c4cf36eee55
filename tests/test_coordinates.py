"""Bijections onto every support, and the logarithm of their Jacobians against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import constraints

from inference._numerics.coordinates import Coordinates, bijection


def lower(matrix: torch.Tensor, strict: bool = False) -> torch.Tensor:
    """The entries on and below the diagonal (or below it), as one vector."""
    row, column = torch.tril_indices(*matrix.shape[-2:], offset=-1 if strict else 0)
    return matrix[..., row, column]


# support → what of a value is free (an independent set of its entries), and how many numbers that takes for size D
SUPPORTS = {
    "real": (constraints.real, lambda v: v, lambda D: D),
    "positive": (constraints.positive, lambda v: v, lambda D: D),
    "unit interval": (constraints.unit_interval, lambda v: v, lambda D: D),
    "interval": (constraints.interval(-2.0, 5.0), lambda v: v, lambda D: D),
    "simplex": (constraints.simplex, lambda v: v[..., :-1], lambda D: D - 1),
    "lower_cholesky": (constraints.lower_cholesky, lower, lambda D: D * (D + 1) // 2),
    "positive_definite": (constraints.positive_definite, lower, lambda D: D * (D + 1) // 2),
    "corr_cholesky": (constraints.corr_cholesky, lambda v: lower(v, strict=True), lambda D: D * (D - 1) // 2),
}


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("D", [2, 3, 4])
def test_onto_the_support_and_back(name, D):
    support, _, size = SUPPORTS[name]
    u = torch.randn(5, size(D), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value = bijection(support)(u)
    assert bool(torch.as_tensor(support.check(value)).all())
    torch.testing.assert_close(bijection(support).inv(value), u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("D", [2, 3, 4])
def test_the_jacobian_is_that_of_autograd(name, D):
    """log |det ∂(free entries)/∂u|: what turns a density over values into one over u."""
    support, free, size = SUPPORTS[name]
    u = torch.randn(size(D), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    transform = bijection(support)
    jacobian = torch.autograd.functional.jacobian(lambda u: free(transform(u)), u)
    assert jacobian.shape == (size(D), size(D))  # as many free numbers as the support has dimensions: no flat direction
    expected = torch.linalg.slogdet(jacobian)[1]
    got = transform.log_abs_det_jacobian(u, transform(u)).sum()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


VALUES = {
    "weights": (torch.tensor([0.25, 0.5, 0.25]), constraints.simplex),
    "locs": (torch.tensor([[1.0, -2.0], [0.5, 3.0]]), constraints.real),
    "variances": (torch.tensor([0.5, 2.0, 7.0]), constraints.positive),
    "tril": (torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[0.3, 0.0], [-1.0, 0.7]]]), constraints.lower_cholesky),
    "corr": (
        torch.linalg.cholesky(torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)),
        constraints.corr_cholesky,
    ),
    "scalar": (torch.tensor(1.5), constraints.positive),
    "events": (torch.tensor([0.1, 0.9]), constraints.independent(constraints.unit_interval, 1)),
}


def layout() -> tuple[Coordinates, dict[str, torch.Tensor]]:
    values = {n: v.double() for n, (v, _) in VALUES.items()}
    return Coordinates(values, {n: s for n, (_, s) in VALUES.items()}), values


def test_a_flat_vector_and_back():
    coordinates, values = layout()
    assert coordinates.d == 2 + 4 + 3 + 2 * 3 + 1 + 1 + 2
    flat = coordinates.flatten(values)
    assert flat.shape == (coordinates.d,)
    for n, v in coordinates.unflatten(flat).items():
        torch.testing.assert_close(v, values[n], rtol=1e-9, atol=1e-9)


def test_many_vectors_at_once():
    coordinates, values = layout()
    flat = torch.randn(7, 3, coordinates.d, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    many = coordinates.unflatten(flat)
    assert {n: v.shape for n, v in many.items()} == {n: (7, 3, *values[n].shape) for n in values}
    for n, v in coordinates.unflatten(flat[4, 1]).items():
        torch.testing.assert_close(many[n][4, 1], v)
    torch.testing.assert_close(coordinates.log_abs_det(flat)[4, 1], coordinates.log_abs_det(flat[4, 1]))


def test_the_jacobian_of_all_of_it_is_the_sum():
    coordinates, _ = layout()
    u = torch.randn(coordinates.d, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    free = {
        "weights": lambda v: v[..., :-1],
        "tril": lower,
        "corr": lambda v: lower(v, strict=True),
    }

    def all_free(u):
        return torch.cat([free.get(n, lambda v: v)(v).reshape(-1) for n, v in coordinates.unflatten(u).items()])

    expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(all_free, u))[1]
    torch.testing.assert_close(coordinates.log_abs_det(u), expected, rtol=1e-9, atol=1e-9)


def test_a_part_is_a_layout_of_its_own():
    coordinates, values = layout()
    some, places = coordinates.part({"variances", "tril"})
    assert list(some.shapes) == ["variances", "tril"] and some.d == len(places) == 9
    flat = coordinates.flatten(values)
    for n, v in some.unflatten(flat[places]).items():
        torch.testing.assert_close(v, values[n])
    nothing, places = coordinates.part(set())
    assert nothing.d == 0 and len(places) == 0
    assert nothing.flatten({}).shape == (0,)
    assert float(nothing.log_abs_det(torch.zeros(0, dtype=torch.float64))) == 0.0


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(SUPPORTS)),
    D=st.integers(2, 6),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_any_point_goes_there_and_back(name, D, scale, seed):
    support, _, size = SUPPORTS[name]
    u = scale * torch.randn(size(D), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    transform = bijection(support)
    value = transform(u)
    assert bool(value.isfinite().all())
    torch.testing.assert_close(transform(transform.inv(value)), value, rtol=1e-7, atol=1e-9)


def test_a_density_over_values_integrates_to_one_over_the_free_numbers():
    """Dirichlet(2, 3) with its Jacobian, summed over a grid of u."""
    transform = bijection(constraints.simplex)
    u = torch.linspace(-15, 15, 4001, dtype=torch.float64).unsqueeze(-1)
    value = transform(u)
    log_density = torch.distributions.Dirichlet(torch.tensor([2.0, 3.0], dtype=torch.float64)).log_prob(value)
    total = (log_density + transform.log_abs_det_jacobian(u, value)).exp().sum() * 30 / 4000
    assert float(total) == pytest.approx(1.0, abs=1e-6)
