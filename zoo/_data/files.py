"""Files of data: text, NumPy's, and what pandas reads (Parquet, Feather, Excel); packed ones; standard input."""

from __future__ import annotations

import bz2
import difflib
import gzip
import hashlib
import io
import lzma
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo._data import mapped as mapped_file
from zoo._data.catalogue import SETS
from zoo._data.raw import Raw, from_array
from zoo._data.table import Table, from_frame
from zoo._data.text import from_records, from_text
from zoo._errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

STANDARD_INPUT = "-"
TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
NUMPY = (".npy", ".npz")
FRAMES = (".parquet", ".pq", ".feather", ".arrow")
SHEETS = {".xlsx": "openpyxl", ".xlsm": "openpyxl", ".xls": "xlrd", ".ods": "odfpy"}  # and who reads them for pandas
ENGINES = {"odfpy": "odf"}  # what pandas calls a package, where that is another name
KINDS = (*TEXT, *NUMPY, *FRAMES, *SHEETS)
GIVE = "a .csv, .tsv, .parquet, .feather, .xlsx, .npy or .npz file"
STARTS = ((b"\x93NUMPY", ".npy"), (b"PAR1", ".parquet"), (b"ARROW1", ".feather"))  # the first bytes of files


def _unzipped(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(archive.namelist()[0])


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zip": _unzipped,
}


def is_data_file(path: Path) -> bool:
    """Whether a file's name says that it holds data."""
    return path.suffix.lower() in (*KINDS, *PACKED)


def read_standard_input() -> Raw | Table:
    """The data on standard input: text, or any of the other kinds, known by their first bytes."""
    content = sys.stdin.buffer.read()
    source = f"standard input, sha256 {hashlib.sha256(content).hexdigest()[:16]}"
    return _parsed(content, "", "standard input", source)


def read_file(path: Path, spec: object) -> tuple[Raw | Table, str]:
    """The data in a file, or in the parts in a folder, and its name without what tells its kind. `spec`: the path as given.

    Raises `UsageError` where it cannot be read.
    """
    if path.is_dir():
        return _read_folder(path, spec)
    try:
        if whole := not mapped_file.worth_mapping(path):
            content = path.read_bytes()
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"'{spec}' cannot be read: {error.strerror or error}.") from None
    if not whole:
        return from_numpy(path, f"'{spec}'", f"{path.name}, sha256 {digest[:16]}"), path.stem
    source = f"{path.name}, sha256 {hashlib.sha256(content).hexdigest()[:16]}"
    name = Path(path.stem) if path.suffix.lower() in PACKED else path
    return _parsed(content, path.name, f"'{spec}'", source), name.stem if is_data_file(name) else name.name


def _read_folder(path: Path, spec: object) -> tuple[Table, str]:
    """The table whose rows are parts in a folder, as Dask and Spark write it: Parquet or Feather files, in the order of names.

    Raises `UsageError` where there are none, or their columns differ.
    """
    import pandas as pd

    try:
        parts = sorted(f for f in path.iterdir() if f.suffix.lower() in FRAMES and not f.name.startswith((".", "_")))
        contents = [part.read_bytes() for part in parts]
    except OSError as error:
        raise UsageError(f"'{spec}' cannot be read: {error.strerror or error}.") from None
    if not parts:
        raise UsageError(f"'{spec}' is a folder without {' or '.join(FRAMES)} files; give {GIVE} in it.")
    frames = [
        _frame(content, part.suffix.lower(), f"'{Path(str(spec)) / part.name}'")
        for content, part in zip(contents, parts, strict=True)
    ]
    for part, frame in zip(parts, frames, strict=True):
        if list(frame.columns) != list(frames[0].columns):
            raise UsageError(
                f"the parts in '{spec}' have different columns: {_few(frames[0].columns)} in {parts[0].name}, "
                f"{_few(frame.columns)} in {part.name}. Write them with the same columns in the same order."
            )
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    table = from_frame(
        pd.concat(frames, ignore_index=isinstance(frames[0].index, pd.RangeIndex)),
        f"'{spec}'",
        f"{path.name}, {len(parts)} parts, sha256 {digest[:16]}",
    )
    assert table is not None
    return table, path.stem


def _few(names: Iterable[object]) -> str:
    """The first names, in words."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:5]) + (f" … ({len(listed)})" if len(listed) > 5 else "")


def _parsed(content: bytes, name: str, what: str, source: str) -> Raw | Table:
    """The data in these bytes, whose kind the end of the name tells, or else the bytes."""
    path = Path(name)
    kind = path.suffix.lower()
    if not kind:
        kind = next((k for start, k in STARTS if content.startswith(start)), "")
        kind = kind or _kind_of_archive(content)
    if kind in PACKED:
        inner, unpacked = path.stem, _unpacked(content, kind, what)
        if kind == ".zip" and Path(inner).suffix.lower() not in KINDS:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inner = Path(archive.namelist()[0]).name
        return _parsed(unpacked, inner if Path(inner).suffix.lower() in KINDS else "", what, source)
    if kind in NUMPY:
        return from_numpy(content, what, source)
    if kind in FRAMES or kind in SHEETS:
        return _by_pandas(content, kind, what, source)
    return from_text(content, what, source, blanks=kind not in (".csv", ".tsv"))


def _kind_of_archive(content: bytes) -> str:
    """What kind of file bytes are that begin as an archive does; "" for any other."""
    packed = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}
    found = next((kind for start, kind in packed.items() if content.startswith(start)), "")
    if not content.startswith(b"PK"):
        return found
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile:
        return ".zip"
    if any(m.startswith("xl/") for m in members):
        return ".xlsx"
    return ".npz" if all(m.endswith(".npy") for m in members) else ".zip"


def _unpacked(content: bytes, kind: str, what: str) -> bytes:
    if kind == ".zip":
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [i.filename for i in archive.infolist() if not i.is_dir()]
        except zipfile.BadZipFile:
            members = ["damaged"]
        if len(members) != 1:
            listed = ", ".join(members[:5]) or "nothing"
            raise UsageError(f"{what} holds {len(members)} files ({listed}); pack one, or unpack it and name one.")
    try:
        return PACKED[kind](content)
    except MemoryError:
        raise UsageError(f"{what} unpacks to more than the memory of this machine; save fewer rows.") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, ValueError):
        raise UsageError(f"{what} is empty, damaged or cut short, and cannot be unpacked; save it again.") from None


# ---- what pandas reads


def _by_pandas(content: bytes, kind: str, what: str, source: str) -> Table:
    import pandas as pd

    told, needs = list[str](), SHEETS.get(kind, "pyarrow")
    try:
        if kind in FRAMES:
            table = from_frame(_frame(content, kind, what), what, source)
        else:
            with pd.ExcelFile(io.BytesIO(content), engine=ENGINES.get(needs, needs)) as book:
                sheets = [str(name) for name in book.sheet_names]
                if len(sheets) > 1:
                    told = [f"{what} has {len(sheets)} sheets; the first, '{sheets[0]}', was read."]
                cells = book.parse(0, header=None, dtype=object, keep_default_na=False)
            records = [(i + 1, list(row)) for i, row in enumerate(cells.itertuples(index=False, name=None))]
            return from_records([r for r in records if any(map(_is_written, r[1]))], what, source, told)
    except UsageError:
        raise
    except Exception as error:  # damaged bytes raise many kinds
        raise _unreadable(error, kind, what, needs) from None
    assert table is not None
    return table


def _frame(content: bytes, kind: str, what: str) -> pd.DataFrame:
    """The data frame in a Parquet or Feather file."""
    import pandas as pd

    read = pd.read_parquet if kind in (".parquet", ".pq") else pd.read_feather
    try:
        return read(io.BytesIO(content))
    except Exception as error:
        raise _unreadable(error, kind, what, "pyarrow") from None


def _unreadable(error: Exception, kind: str, what: str, needs: str) -> UsageError:
    if isinstance(error, ImportError):
        return UsageError(f"reading {what} needs the package {needs}: install it (pip install {needs}).")
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UsageError(f"{what} cannot be read as a {kind} file: {first[:200]}.")


def _is_written(cell: object) -> bool:
    """Whether a cell of a sheet holds anything."""
    return not (cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()))


# ---- NumPy's files


def from_numpy(content: bytes | Path, what: str, source: str) -> Raw | Table:
    """The array of a .npy file; of a .npz file the only array, or the one named x, and its labels if any.

    `content`: the file's bytes, or its path, where it is to be mapped.
    """
    try:
        if isinstance(content, Path):
            loaded = mapped_file.open_private(content)
        else:
            loaded = np.load(io.BytesIO(content), allow_pickle=False)
        _check_size(loaded)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except MemoryError:
        raise UsageError(f"{what} unpacks to more than the memory of this machine; save fewer rows.") from None
    except Exception as error:  # damaged bytes raise a dozen kinds: of zip, zlib, tokenize, numpy
        if str(error).startswith(("Object arrays", "Array can't be memory-mapped: Python objects")):
            raise UsageError(f"{what} holds Python objects, which are not loaded; save numbers.") from None
        # Not numpy's own text: for any bytes that it does not know it speaks of pickles.
        raise UsageError(f"{what} is empty, cut short or not a NumPy file; save it again.") from None
    data = ["x"] if "x" in arrays else [k for k in arrays if k not in ("labels", "y")] or list(arrays)
    if len(data) != 1:
        raise UsageError(f"{what} holds {', '.join(arrays) or 'nothing'}; name the data x, and any labels y.")
    labels = next((arrays[k] for k in ("labels", "y") if k in arrays and k != data[0]), None)
    if arrays[data[0]].dtype.names is not None and labels is None:
        table = from_frame(arrays[data[0]], what, source)
        assert table is not None
        return table
    return from_array(arrays[data[0]], what, source, labels)


def _check_size(loaded: object) -> None:
    """Raise `MemoryError` for an archive that unpacks to more than the machine's memory, before it kills the process."""
    archive = getattr(loaded, "zip", None)
    if archive is None:
        return
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return
    if sum(info.file_size for info in archive.infolist()) > memory:
        raise MemoryError


def near_files(path: Path) -> str:
    """What to do about a file that is not there."""
    try:
        files = [f.name for f in path.parent.iterdir() if is_data_file(f)]
    except (OSError, ValueError):
        return f"there is no folder '{path.parent}' either."
    if near := difflib.get_close_matches(path.name, files, n=3):
        return f"did you mean {' or '.join(near)}?"
    named = f"the data set is called '{path.stem}', with no suffix."
    return named if path.stem in SETS else f"give the path of {GIVE}."


def read_idx(path: Path) -> np.ndarray:
    """The bytes in a gzipped IDX file: two zeros, type, number of dimensions, the dimensions, the data."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(tuple(map(int, shape)))
