"""A fit's DataTree as one netCDF file: written and read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    encoding = {group: _compression(dataset) for group, dataset in groups.items()}
    out = xr.DataTree.from_dict({group: _with_attrs(ds, _storable) for group, ds in groups.items()})
    out.to_netcdf(file, engine="h5netcdf", encoding={k: v for k, v in encoding.items() if v})


def read_netcdf(content: bytes) -> xr.DataTree:
    """The tree that `netcdf` wrote, all of it in memory."""
    allow_certain_draws()
    with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as tree:
        # rebuilt, since what is opened remembers its file and chunks, and would take them to the next file
        groups = {node.path: node.to_dataset(inherit=False).load().drop_encoding() for node in tree.subtree}
    return xr.DataTree.from_dict({group: _with_attrs(ds, _restored) for group, ds in groups.items()})


def _compression(dataset: xr.Dataset) -> dict[str, dict[str, bool | int]]:
    return {
        str(name): {"zlib": True, "complevel": 2, "shuffle": True}
        for name, values in dataset.data_vars.items()
        if values.dtype.kind in "biuf" and values.nbytes > COMPRESS_ABOVE
    }


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
