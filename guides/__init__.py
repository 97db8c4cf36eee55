"""q(z | x): one guide a file; `make` builds one by name, `at` turns it to some rows of the data."""

from __future__ import annotations

from guides._heads import Covariance, Derived, free_shape
from guides._make import at, make, refusal

__distribution__ = "latent-zoo"
__all__ = ["Covariance", "Derived", "at", "free_shape", "make", "refusal"]
