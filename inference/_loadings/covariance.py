"""Whether log p(x) of a program depends on the data through their number, mean and covariance alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inference._exact.latent_program import LatentProgram
from inference._exact.linear_model import LinearModel, site_data
from inference._loadings.affine import places_of
from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.source import blame
from zoo._program.structure import Structure


def check_needs_no_rows(program: Program, structure: Structure, x: Tensor) -> None:
    """Raise `UsageError` for a program of which a covariance matrix does not say log p(x)."""
    if (why := _needs_rows(program, structure, x)) is not None:
        raise UsageError(
            f"'{program.name}' needs the rows themselves: {why}. A covariance matrix (covariance_of) serves programs whose "
            "rows are normal and alike, such as factor analysis."
        )


def _needs_rows(program: Program, structure: Structure, x: Tensor) -> str | None:
    if structure.discrete_locals:
        return f"it has the discrete latent '{structure.discrete_locals[0].name}'"
    if not (structure.linear_gaussian or structure.enumerable):
        return structure.reason
    with blame(program.name), torch.no_grad():
        latent = LatentProgram(program, structure, x)
        data = site_data(latent)
        if data is None:
            return "its sites differ from row to row, or are not normal"
        if others := list(LinearModel(program, structure, x, data).sites().others):
            return f"its site '{others[0]}' is not normal"
    flat = x.reshape(len(x), -1)
    places = places_of(list(data.values.values()), flat)
    found = np.sort(np.concatenate(places)) if places else np.zeros(0, dtype=int)
    if not np.array_equal(found, np.arange(flat.shape[1])):
        return "it does not observe each column as it is"
    return None
