"""A fit's DataTree as one netCDF file: written and read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Hashable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import xarray as xr

from inference._run.datatree import allow_certain_draws
from zoo import _atomic

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

COMPRESS_ABOVE = 100_000  # bytes
IN_MEMORY = 64 << 20  # bytes, of which a file is made in memory


def write_netcdf(tree: xr.DataTree, path: Path) -> None:
    """Write a tree as one new netCDF file. Raises `OSError` where the disk is full.

    There the HDF5 library would end the process. So a file is made in memory, or, if it is large, in a place that the disk
    has given it beforehand.
    """
    size = sum(v.nbytes for node in tree.subtree for v in node.to_dataset(inherit=False).variables.values())
    if size <= IN_MEMORY:
        path.write_bytes(netcdf(tree))
        _atomic.flush(path)
        return
    with Reserved(path, size + size // 10 + IN_MEMORY) as file:
        _write(tree, file)


def netcdf(tree: xr.DataTree) -> bytes:
    """A tree as the bytes of one netCDF file."""
    file = io.BytesIO()
    _write(tree, file)
    return file.getvalue()


class Reserved(io.RawIOBase):
    """A new file, to be written in any order, with `most` bytes of the disk reserved from the start."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._end = self._place = 0
        try:
            os.posix_fallocate(self._descriptor, 0, most)
        except OSError:
            os.close(self._descriptor)
            raise

    def __exit__(self, *raised: object) -> None:
        """Give back what was not used."""
        try:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def close(self) -> None:
        """Nothing: xarray closes a file before it is at its end."""

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._end}[whence]
        self._place = start + offset
        return self._place

    def truncate(self, size: int | None = None) -> int:
        self._end = self._place if size is None else size
        return self._end

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._descriptor, [view[: max(0, self._end - self._place)]], self._place)
        self._place += count
        return count

    def write(self, content: ReadableBuffer) -> int:
        view = memoryview(content).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self._place + done)
        self._place += done
        self._end = max(self._end, self._place)
        return done


def _write(tree: xr.DataTree, file: io.BytesIO | Reserved) -> None:
    """With numeric arrays above 100 kB compressed."""
    with h5py.File(file, "w", track_order=True) as out:
        first = 0
        for node in tree.subtree:
            group = out if node.path == "/" else out.create_group(node.path, track_order=True)
            first = _write_group(group, _with_attrs(node.to_dataset(inherit=False), _storable), first)


def read_netcdf(content: bytes) -> xr.DataTree:
    """The tree that `netcdf` wrote, all of it in memory."""
    allow_certain_draws()
    found = dict[str, xr.Dataset]()
    with h5py.File(io.BytesIO(content)) as file:
        _read_group(file, found, {})
    return xr.DataTree.from_dict(found)


# ------------------------------------------------------------------------------------------------------------ groups

# h5netcdf looks up all dimensions of a group again for each variable: a program with thousands of sites took minutes. This
# lays out what netCDF-4 asks of HDF5 (https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html): a
# dimension is a dataset with CLASS, NAME and a number of its own, and a variable's DIMENSION_LIST refers to its dimensions.
HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. "


def _write_group(group: h5py.Group, dataset: xr.Dataset, first: int) -> int:
    """Write a group, whose dimensions are numbered from `first`; return the next number."""
    variables, attrs = xr.conventions.encode_dataset_coordinates(dataset)
    group.attrs.update({name: _attribute(value) for name, value in attrs.items()})
    scales, numbers = dict[Hashable, h5py.Dataset](), dict(zip(dataset.sizes, count(first)))
    for name, size in dataset.sizes.items():
        if name in variables:
            scale, label = _write_variable(group, name, variables.pop(name)), str(name)
        else:
            scale, label = group.create_dataset(str(name), size, ">f4"), f"{NO_VARIABLE}{size:10d}"
        scale.make_scale(label)
        scale.attrs["_Netcdf4Dimid"] = np.int32(numbers[name])
        scales[name] = scale
    for name, variable in variables.items():
        written = _write_variable(group, name, variable)
        if variable.dims:
            refs = np.empty(variable.ndim, object)
            refs[:] = [np.array([scales[d].ref], h5py.ref_dtype) for d in variable.dims]
            written.attrs.create("DIMENSION_LIST", refs, dtype=h5py.vlen_dtype(h5py.ref_dtype))
            written.attrs["_Netcdf4Coordinates"] = np.array([numbers[d] for d in variable.dims], np.int32)
    return first + len(scales)


def _write_variable(group: h5py.Group, name: Hashable, variable: xr.Variable) -> h5py.Dataset:
    encoded = xr.conventions.encode_cf_variable(variable, name=name)
    values, attrs = np.asarray(encoded.values), dict(encoded.attrs)
    how: dict[str, object] = {"fillvalue": attrs.get("_FillValue")}
    if values.dtype.kind in "UO":
        how["dtype"], values = h5py.string_dtype(), values.astype(object)
    elif values.dtype.kind in "biuf" and values.nbytes > COMPRESS_ABOVE:
        how |= {"compression": "gzip", "compression_opts": 2, "shuffle": True}
    if 0 in values.shape:  # of no fixed length to netCDF
        how["maxshape"] = tuple(size or None for size in values.shape)
    out = group.create_dataset(str(name), data=values, track_order=True, **how)
    out.attrs.update({key: _attribute(value) for key, value in attrs.items()})
    return out


def _attribute(value: object) -> object:
    return value if isinstance(value, str | bytes) else np.atleast_1d(np.asarray(value))


def _read_group(group: h5py.Group, found: dict[str, xr.Dataset], names: dict[int, str]) -> None:
    """Read a group and those in it; `names` of the dimensions by their numbers."""
    inner, items = list[h5py.Group](), dict[str, h5py.Dataset]()
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            inner.append(item)
        else:
            items[name] = item
            if "CLASS" in item.attrs:
                names[int(item.attrs["_Netcdf4Dimid"])] = name
    variables = {
        name: _read_variable(name, item, names)
        for name, item in items.items()
        if not item.attrs.get("NAME", b"").startswith(NO_VARIABLE.encode())
    }
    dataset = xr.decode_cf(xr.Dataset(variables, attrs=_attributes(group))).load().drop_encoding()
    found[group.name] = _with_attrs(dataset, _restored)
    for each in inner:
        _read_group(each, found, names)


def _read_variable(name: str, item: h5py.Dataset, names: dict[int, str]) -> xr.Variable:
    dims = [names[number] for number in item.attrs.get("_Netcdf4Coordinates", [])] or [name] * item.ndim
    return xr.Variable(dims, item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()], _attributes(item))


def _attributes(item: h5py.Group | h5py.Dataset) -> dict[str, object]:
    found = {name: item.attrs[name] for name in item.attrs if name not in HIDDEN}
    return {name: v[0] if isinstance(v, np.ndarray) and v.shape == (1,) else v for name, v in found.items()}


# -------------------------------------------------------------------------------------------------------- attributes


def _with_attrs(dataset: xr.Dataset, convert: Callable[[object], object]) -> xr.Dataset:
    """A shallow copy in which each attribute, the variables' too, has gone through `convert`."""
    out = dataset.copy(deep=False)
    out.attrs = {name: convert(value) for name, value in out.attrs.items()}
    for variable in out.variables.values():
        variable.attrs = {name: convert(value) for name, value in variable.attrs.items()}
    return out


def _storable(value: object) -> object:
    """netCDF has no boolean attributes: here one byte is a boolean, and nothing else is one byte."""
    return np.int8(value) if isinstance(value, bool | np.bool_) else value


def _restored(value: object) -> object:
    """The Python value of an attribute read from netCDF."""
    if isinstance(value, np.int8):
        return bool(value)
    return value.item() if isinstance(value, np.generic) else value
