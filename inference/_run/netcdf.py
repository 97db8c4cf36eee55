"""A fit's DataTree as one netCDF file, there and back."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from inference._run.datatree import allow_certain_draws

COMPRESS_ABOVE = 100_000  # bytes


def netcdf(tree: xr.DataTree) -> bytes:
    """A tree as the bytes of one netCDF file, with numeric arrays above 100 kB compressed.

    In memory: where the disk is full, the HDF5 library ends the process.
    """
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    encoding = {group: _compression(dataset) for group, dataset in groups.items()}
    out = xr.DataTree.from_dict({group: _with_attrs(ds, _storable) for group, ds in groups.items()})
    file = io.BytesIO()
    out.to_netcdf(file, engine="h5netcdf", encoding={k: v for k, v in encoding.items() if v})
    return file.getvalue()


def read_netcdf(content: bytes) -> xr.DataTree:
    """The tree that `netcdf` wrote, all of it in memory."""
    allow_certain_draws()
    with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as tree:
        # rebuilt, since what is opened remembers its file and chunks, and would take them to the next file
        groups = {node.path: node.to_dataset(inherit=False).load().drop_encoding() for node in tree.subtree}
    return xr.DataTree.from_dict({group: _with_attrs(ds, _restored) for group, ds in groups.items()})


def _compression(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    return {
        str(name): {"zlib": True, "complevel": 2, "shuffle": True}
        for name, values in dataset.data_vars.items()
        if values.dtype.kind in "biuf" and values.nbytes > COMPRESS_ABOVE
    }


def _with_attrs(dataset: xr.Dataset, convert: Callable[[Any], Any]) -> xr.Dataset:
    """A shallow copy in which each attribute, the variables' too, has gone through `convert`."""
    out = dataset.copy(deep=False)
    out.attrs = {name: convert(value) for name, value in out.attrs.items()}
    for variable in out.variables.values():
        variable.attrs = {name: convert(value) for name, value in variable.attrs.items()}
    return out


def _storable(value: Any) -> Any:
    """netCDF has no boolean attributes: here one byte is a boolean, and nothing else is one byte."""
    return np.int8(value) if isinstance(value, bool | np.bool_) else value


def _restored(value: Any) -> Any:
    """The Python value of an attribute read from netCDF."""
    if isinstance(value, np.int8):
        return bool(value)
    return value.item() if isinstance(value, np.generic) else value
