"""A run folder: `run.json`, `fit.nc`, `state.safetensors`. Written whole or not at all.

Everything goes into a temporary folder beside the final one, is flushed to the disk, and is renamed into place.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference._fit import Fit
from zoo._errors import UsageError

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A run folder, read back."""

    folder: Path
    json: dict[str, Any]
    tree: Any  # xarray.DataTree
    state: dict[str, Tensor]

    @property
    def x(self) -> np.ndarray:
        """The observed data [n, …]."""
        return self.tree["observed_data"]["x"].values

    def parameters(self) -> dict[str, np.ndarray]:
        """Every parameter's point value, constrained."""
        if "constant_data" not in self.tree:
            return {}
        return {k: v.values for k, v in self.tree["constant_data"].data_vars.items() if v.dims != ("data",)}

    def probabilities(self) -> dict[str, np.ndarray]:
        """Discrete local site → the posterior of its values [n, …, support]."""
        end = "_probability"
        stats = self.tree["sample_stats"].data_vars if "sample_stats" in self.tree else {}
        return {k.removesuffix(end): v.values for k, v in stats.items() if k.endswith(end)}

    def labels(self) -> np.ndarray | None:
        """Class labels of the data, where they have any."""
        if "constant_data" not in self.tree:
            return None
        return next((v.values for v in self.tree["constant_data"].data_vars.values() if v.dims == ("data",)), None)


def check_out(out: str | os.PathLike[str]) -> Path:
    """The folder a run shall be written to. Raises `UsageError` when it exists already or cannot be written."""
    if not isinstance(out, str | os.PathLike):
        raise UsageError(f"Expected the path of a folder for out, got {out!r}.")
    folder = Path(out)
    if folder.exists():
        raise UsageError(f"'{folder}' exists already; name another folder with --out.")
    parent = folder.absolute().parent
    while not os.path.lexists(parent):  # nothing is made before there is something to write
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to '{folder.parent}': {error.strerror or error}.") from error
    return folder


def save(fit: Fit, folder: Path) -> Path:
    """Write `fit` to `folder`. If another run took that name meanwhile, a number is added to it."""
    from safetensors.torch import save_file

    from inference._netcdf import write_netcdf

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_netcdf(fit.idata, temporary / "fit.nc")
        state = {f"program.{k}": v.contiguous() for k, v in fit.program.state_dict().items()}
        if fit.guide is not None:
            state |= {f"guide.{k}": v.contiguous() for k, v in fit.guide.state_dict().items()}
        save_file({k: v.clone() for k, v in state.items()}, temporary / "state.safetensors", {"format": str(FORMAT)})
        final = free(folder)
        fit.run = str(final)
        document = {"format": FORMAT, **fit.to_json(), "columns": list(fit.columns), **_extras(fit)}
        (temporary / "run.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        temporary.chmod(0o755)
        final = _rename(temporary, final)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        fit.run = None
        raise
    return final


def _extras(fit: Fit) -> dict[str, Any]:
    units = {
        k: None if v is None else np.asarray(v).tolist() for k, v in (("center", fit.center), ("scale", fit.scale))
    }
    return units | {
        "image_shape": fit.image_shape,
        "learned": fit.learned,
        "guide": None if fit.guide is None else fit.guide.recipe,
    }


def save_imputation(found: Any, folder: Path, columns: list[str], source: str) -> list[Path]:
    """Write mean, sd and draws to `folder`, whole or not at all: .csv for a table with named columns, .npz if the data came
    from one, else .npy. The draws of a .csv stand under each other, with a first column `draw`."""
    parts = {"mean": found.mean, "sd": found.sd, "draws": found.draws}
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if ".npz" in source:
            np.savez_compressed(temporary / "imputed.npz", missing=found.missing, **parts)
        elif columns and found.mean.ndim == 2 and ".npy" not in source:
            for name, values in parts.items():
                _write_csv(temporary / f"{name}.csv", values, columns)
        else:
            for name, values in parts.items():
                np.save(temporary / f"{name}.npy", values)
        for path in temporary.iterdir():
            _flush(path)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(folder.iterdir())


def _write_csv(path: Path, values: np.ndarray, columns: list[str]) -> None:
    header = list(columns)
    if values.ndim == 3:
        number = np.repeat(np.arange(len(values)), values.shape[1])
        values, header = np.column_stack([number, values.reshape(-1, values.shape[2])]), ["draw", *header]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        # repr of a float is the shortest text that reads back as the same number; a draw's number stays whole
        writer.writerows(
            [int(v) if h == "draw" else float(v) for h, v in zip(header, row, strict=True)] for row in values
        )


def free(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, … that is not taken."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _rename(temporary: Path, final: Path) -> Path:
    while True:
        try:
            os.rename(temporary, final)
            return final
        except OSError:  # taken since we looked: a folder that is not empty cannot be renamed over
            if not final.exists():
                raise
            final = free(final)
            document = json.loads((temporary / "run.json").read_text(encoding="utf-8")) | {"run": str(final)}
            (temporary / "run.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder. Raises `UsageError` when it is not one, or was written by a newer version."""
    from safetensors.torch import load_file

    from inference._netcdf import read_netcdf

    path = Path(folder)
    if not (path / "run.json").is_file():
        raise UsageError(f"'{path}' is not a run: it holds no run.json. `zoo run … --out FOLDER` makes one.")
    try:
        document = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if document.get("format", 0) > FORMAT:
            raise UsageError(
                f"'{path}' was written by a newer version of this package; this one reads format {FORMAT}."
            )
        return Run(path, document, read_netcdf(path / "fit.nc"), load_file(path / "state.safetensors"))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"'{path}' cannot be read: {type(error).__name__}: {error}".rstrip(".") + ".") from error


def restore(module: torch.nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Load the tensors under `prefix` into `module`."""
    module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
