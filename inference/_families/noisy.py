"""Gaussian components beside one of noise: with independent entries, and with a covariance."""

from __future__ import annotations

from torch.distributions import constraints

from inference._families._noisy import Noisy
from inference._families.multivariate_normal import MultivariateNormal
from inference._families.normal import Normal
from zoo._program import noise


class NoisyNormal(Noisy):
    of = Normal
    distribution = noise.NoisyNormal
    parameters = {**Normal.parameters, "noise": constraints.boolean, "low": constraints.real, "high": constraints.real}


class NoisyMultivariateNormal(Noisy):
    of = MultivariateNormal
    distribution = noise.NoisyMultivariateNormal
    joint = True
    parameters = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "noise": constraints.boolean,
        "low": constraints.real_vector,
        "high": constraints.real_vector,
    }
