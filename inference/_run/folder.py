"""A run folder: `run.json`, `fit.nc`, `state.safetensors`, and tables for people. Written whole or not at all.

All of it is made in memory, goes into a temporary folder beside the final one, is flushed to the disk, and is renamed into
place. `run.json` holds the SHA-256 of the other files, of the program's text, and of itself: what is damaged is refused. The
tables (`parameters.csv`, `rows.csv`, `README.txt`) are never read back, so a user may change them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inference._run import checkpoint
from inference._run.netcdf import read_netcdf
from inference._run.record import ROW_WEIGHTS
from zoo import _atomic, _registry
from zoo._atomic import digest_of
from zoo._errors import UsageError, unknown
from zoo._program import source as _source

if TYPE_CHECKING:
    import xarray as xr

    from inference._answers.impute import Imputation
from inference._answers.table import Table

FORMAT = 2  # 1 held no digests: it is read, and nothing of it can be checked
FILES = ("fit.nc", "state.safetensors")
KEYS = {  # what reading a run takes from run.json, and its types
    "model": str, "data": str, "method": str, "seed": int, "options": dict, "columns": list,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A run folder, read back."""

    folder: Path
    json: dict[str, Any]
    tree: xr.DataTree
    state: dict[str, Tensor]
    model: object = None  # the program, named again by the user
    trust: bool = False  # the Python file that the folder names may be executed
    changed_program: bool = False  # accept a program that has changed

    def spec(self) -> object:
        """What to load the program from. Raises `UsageError` where that would execute a file that the user has not named."""
        if self.model is not None:
            return self.model
        self.permit(self.json["model"], "program", "give it again (--model FILE.py:CALLABLE, in Python model=…)")
        return self.json["model"]

    def may_execute(self) -> bool:
        """Whether the program can be loaded without executing a file that the user has not named."""
        spec = self.json["model"]
        return self.model is not None or spec in _registry.models() or self.trust

    def permit(self, spec: str, what: str, remedy: str) -> None:
        """Raise `UsageError` unless the file that `spec` names may be executed."""
        if _source.is_file(spec) and not self.trust and not _source.was_executed(spec):
            raise UsageError(
                f"'{self.folder}' would execute the Python file of its {what}, '{spec}'. If you know that file, {remedy}; "
                "or trust the folder (--trust, in Python trust=True)."
            )

    def check_program(self, target: object) -> None:
        """Raise `UsageError` where `target` is not the program that the run was made with."""
        then, now = self.json.get("program"), _source.fingerprint(target)
        if then is None or now == then or self.changed_program:
            return
        raise UsageError(
            f"the program changed since this run: '{self.json['model']}' differs from the one of '{self.folder}'. Run it "
            "again, or accept the new one with --changed-program (in Python changed_program=True)."
        )

    @property
    def x(self) -> np.ndarray:
        """The observed data [n, …]."""
        return self.tree["observed_data"].data_vars["x"].values

    def parameters(self) -> dict[str, np.ndarray]:
        """Every parameter's point value, constrained."""
        if "constant_data" not in self.tree:
            return {}
        return {str(k): v.values for k, v in self.tree["constant_data"].data_vars.items() if v.dims != ("data",)}

    def probabilities(self) -> dict[str, np.ndarray]:
        """Discrete local site → the posterior of its values [n, …, support]."""
        end = "_probability"
        stats = self.tree["sample_stats"].data_vars if "sample_stats" in self.tree else {}
        return {str(k).removesuffix(end): v.values for k, v in stats.items() if str(k).endswith(end)}

    def labels(self) -> np.ndarray | None:
        """Class labels of the data, where they have any."""
        return self._of_rows("data_labels", "labels")

    def weights(self) -> np.ndarray | None:
        """How many times each row counts, where it is not once."""
        return self._of_rows(ROW_WEIGHTS)

    def row_names(self) -> tuple[str, ...] | None:
        """Names of the rows, where they have any."""
        names = self.tree["observed_data"]["x"].coords.get("data")
        return None if names is None or names.dtype.kind in "iuf" else tuple(map(str, names.values))

    def _of_rows(self, *names: str) -> np.ndarray | None:
        """The first of these variables that has one value for each row."""
        held = self.tree["constant_data"].data_vars if "constant_data" in self.tree else {}
        return next((held[n].values for n in names if n in held and held[n].dims == ("data",)), None)


def check_out(out: str | os.PathLike[str]) -> Path:
    """The folder a run shall be written to. Raises `UsageError` when it exists already or cannot be written."""
    if not isinstance(out, str | os.PathLike):
        raise UsageError(f"Expected the path of a folder for out, got {out!r:.40}.")
    folder = _atomic.place(out)
    if os.path.lexists(folder):
        raise UsageError(f"'{folder}' exists already; name another folder with --out.")
    _atomic.check_parent(folder)
    checkpoint.sweep(folder.parent)
    return folder


def write(folder: Path, fill: Callable[[Path], tuple[str, ...]], describe: Callable[[str], dict[str, object]]) -> Path:
    """Write a run to `folder`; returns its path. If another run took that name meanwhile, a number is added to it.

    `fill(work)` puts `FILES` and tables into the folder `work` and returns the names of the tables; `describe(path)` is what
    `run.json` says of the run in the folder of that name.
    """
    with _atomic.workspace(folder) as work:
        tables = fill(work)
        for name in tables:
            _atomic.flush(work / name)
        digests = {name: _digest(work / name) for name in (*FILES, *tables)}
        final = free(folder)
        while True:
            document = {"format": FORMAT, **describe(str(final)), "files": digests}
            put(work / "run.json", text_of(document).encode())
            _atomic.flush(work)
            try:
                os.rename(work, final)
                break
            except OSError:  # taken since we looked: a folder that is not empty cannot be renamed over
                if not os.path.lexists(final):
                    raise
                final = free(final)
        _atomic.flush(folder.parent)
    return final


def state_of(program: torch.nn.Module, guide: torch.nn.Module | None) -> dict[str, Tensor]:
    """Every tensor of a program and a guide, as `state.safetensors` names them."""
    state = {f"program.{k}": v for k, v in program.state_dict().items()}
    return state if guide is None else state | {f"guide.{k}": v for k, v in guide.state_dict().items()}


def state_as_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The content of `state.safetensors`."""
    from safetensors.torch import save as as_bytes

    return as_bytes({k: v.contiguous().clone() for k, v in state.items()})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(path: Path, content: bytes) -> None:
    """Write a file, flushed to the disk."""
    path.write_bytes(content)
    _atomic.flush(path)


def text_of(document: Mapping[str, object]) -> str:
    """`run.json`: the document with a digest of itself."""
    return json.dumps({**document, "digest": digest_of(document)}, indent=1, ensure_ascii=False)


def save_imputation(found: Imputation, folder: Path, columns: list[str], source: str) -> list[Path]:
    """Write mean, sd and draws to `folder`, whole or not at all: .csv for a table with named columns, .npz if the data came
    from one, else .npy. Rows that have names have them in a column `row`, draws stand under each other, by a column `draw`."""
    parts = {"mean": found.mean, "sd": found.sd, "draws": found.draws}
    with _atomic.workspace(folder) as work:
        if ".npz" in source:
            file = work / "imputed.npz"
            np.savez_compressed(file, missing=found.missing, mean=found.mean, sd=found.sd, draws=found.draws)
        elif columns and found.mean.ndim == 2 and ".npy" not in source:
            for name, values in parts.items():
                with (work / f"{name}.csv").open("w", newline="", encoding="utf-8") as text:
                    text.writelines(_table(values, columns, found.names).text())
        else:
            for name, values in parts.items():
                np.save(work / f"{name}.npy", values)
        for path in work.iterdir():
            _atomic.flush(path)
        os.rename(work, folder)
    return sorted(folder.iterdir())


def _table(values: np.ndarray, columns: list[str], names: np.ndarray | None) -> Table:
    """Completed rows [n, D], or draws of them [S, n, D], under the columns of the data; numbers in all their digits."""
    flat, n = values.reshape(-1, values.shape[-1]), values.shape[-2]
    first = {"draw": np.repeat(np.arange(len(values)), n)} if values.ndim == 3 else {}
    if names is not None and names.dtype == object:
        first["row" if "row" not in columns else "name of the row"] = np.tile(names, len(flat) // n)
    once = [
        c if c not in columns[:i] else f"{c}.{columns[:i].count(c)}" for i, c in enumerate(columns)
    ]  # as pandas does
    return Table(first | dict(zip(once, flat.T, strict=True)), full=True)


def free(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, … that is not taken."""
    number, candidate = 1, folder
    while os.path.lexists(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def load(
    folder: str | os.PathLike[str], model: object = None, trust: bool = False, changed_program: bool = False
) -> Stored:
    """Read a run folder; nothing of it is executed.

    - `model`: the program, named again; `trust`: execute whatever file the folder names; `changed_program`: also where its text
      is not what it was.

    Raises `UsageError` when it is not a run, is damaged, or was written by a newer version.
    """
    path = _atomic.place(folder)
    document = _document(path)
    if isinstance(model, str) and not _source.is_file(model) and model not in _registry.models():
        raise unknown("model", model, _registry.models())
    contents = {}
    for name in FILES:
        contents[name] = _content(path / name)
        if document["format"] > 1 and hashlib.sha256(contents[name]).hexdigest() != document["files"].get(name):
            raise UsageError(f"'{path / name}' is damaged: it is not what was written. Run it again.")
    try:
        from safetensors.torch import load as from_bytes

        tree, state = read_netcdf(contents["fit.nc"]), from_bytes(contents["state.safetensors"])
    except Exception as error:
        raise UsageError(f"'{path}' cannot be read: {type(error).__name__}: {_first_line(error)}.") from error
    return Stored(path, document, tree, state, model, trust, changed_program)


def _document(path: Path) -> dict[str, Any]:
    """`run.json`, checked."""
    file = path / "run.json"
    if not file.is_file():
        raise UsageError(f"'{path}' is not a run: it holds no run.json. `zoo run … --out FOLDER` makes one.")
    try:
        document = json.loads(_content(file).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' cannot be read: run.json is damaged ({_first_line(error)}).") from error
    version = document.get("format") if isinstance(document, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UsageError(f"'{file}' is damaged: it does not say its format. Run it again.")
    if version > FORMAT:
        raise UsageError(f"'{path}' was written by a newer version of this package; this one reads format {FORMAT}.")
    whole = True
    if version > 1 or "digest" in document or "files" in document:
        whole = (
            version > 1 and isinstance(document.get("files"), dict) and document.get("digest") == digest_of(document)
        )
    if not whole or any(not isinstance(document.get(k), t) for k, t in KEYS.items()):
        raise UsageError(f"'{file}' is damaged: it is not what was written. Run it again.")
    checked: dict[str, Any] = document
    return checked


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0].rstrip(".")


def restore(module: torch.nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Load the tensors under `prefix` into `module`. Raises `RuntimeError` where they are another program's."""
    module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
