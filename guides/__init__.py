"""q(z | x): one guide a file; `make` builds one by name, `at` turns it to some rows of the data."""

from __future__ import annotations

from guides._heads import Covariance, Derived, GlobalKind, free_shape
from guides._make import at, make, of_user, refusal

__distribution__ = "latent-zoo"
__all__ = [
    "GAUSSIANS",
    "NETWORKS",
    "Covariance",
    "Derived",
    "GlobalKind",
    "at",
    "free_shape",
    "make",
    "of_user",
    "refusal",
]
NETWORKS = ("amortized", "autoregressive", "convolutional", "smoothing")  # the guides that have hidden layers
GAUSSIANS = ("amortized", "convolutional", "mean_field", "smoothing")  # those that have a covariance
