"""The cells of a selection: a fit, a fold held out, a simulated data set. Each is one piece of work with one result file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks._suite.cells import Cell, resolved
from inference._run.prepare import Found
from zoo._data.datasets import Dataset

Theta = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trial(Cell):
    """A cell with the data themselves, and the program where it has no name: neither is part of its identity, the data's
    checksum is.

    - `theta`: of the fit from which data are simulated, where they are.
    """

    dataset: Dataset | None = field(default=None, repr=False, compare=False)
    program: object = field(default=None, repr=False, compare=False)
    theta: Theta | None = field(default=None, repr=False, compare=False)

    @property
    def data(self) -> Dataset:
        """The data."""
        assert self.dataset is not None
        return self.dataset

    @property
    def model(self) -> object:
        """What names the program, with a file's path as it is found from here; or the callable."""
        return self.program or resolved(self.content["model"], self.base)

    @property
    def title(self) -> str:
        """A few words for the progress display."""
        words = super().title
        if "fold" in self.content:
            words += f", fold {self.content['fold'] + 1} of {self.content['folds']}"
        if "replicate" in self.content:
            words += f", simulated data {self.content['replicate'] + 1}"
        if "first" in self.content:
            words += f", simulations from {self.content['first'] + 1}"
        return words


def checksum(data: Dataset) -> str:
    """16 hexadecimal digits that stand for the numbers, their shape and the weights of the rows."""
    digest = hashlib.sha256(repr(data.x.shape).encode())
    for values in (data.x, data.weights):
        if values is not None:
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def rows_of(data: Dataset, rows: np.ndarray) -> Dataset:
    """Some rows of the data, in this order."""

    def taken(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[rows]

    names = None if data.row_names is None else tuple(data.row_names[i] for i in rows)
    out = replace(data, x=np.ascontiguousarray(data.x[rows]), labels=taken(data.labels), truth=None, row_names=names)
    return replace(out, weights=taken(data.weights), warnings=())


def name_of(found: Found) -> str:
    """A program's name in a result."""
    return str(found.model) if isinstance(found.model, str) else found.name
