"""A reference posterior: read and written, ours or posteriordb's.

Ours is one JSON object: `names`, and of each number `mean`, `mean_square` and `sd`, each with its Monte Carlo error
(`mcse_…`), log p(x) where it is known, how it was made, and what it was validated against.

posteriordb's (Magnusson et al. 2024, github.com/stan-dev/posteriordb) are draws, a list of chains, each an object of name →
numbers; or summary statistics, `names` with `mean_value` or `mean_squared_value`, and `mcse_mean`. Either may be in a .zip.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._references.moments import KEYS, Moments, chains_of, numbered, of_draws
from inference._method.fit import Fit
from zoo import _atomic
from zoo._errors import UsageError

FOLDER = Path(__file__).parent.parent / "references"
FORMAT = 1
MEANS = ("mean_value", "mean")  # the second in posteriordb's earlier files
SQUARES = ("mean_squared_value", "mean_value_squared", "mean_squared_value.")
DIGITS = 8


@dataclass(frozen=True)
class Reference:
    """What is known of a posterior, and from where."""

    name: str
    moments: Moments
    log_evidence: Mapping[str, Any] | None = None  # value and its error se, in nats; how it is known
    made: Mapping[str, Any] = field(default_factory=dict)
    validated: list[Mapping[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The document of its file."""
        numbers = {key: [_short(v) for v in getattr(self.moments, key)] for key in KEYS}
        about = {"made": dict(self.made), "validated": list(self.validated), "log_evidence": self.log_evidence}
        return {"format": FORMAT, "name": self.name, **about, "names": self.moments.names, **numbers}

    def write(self, path: Path) -> None:
        """Put it on disk, a line a list."""
        lines = (f' "{k}": {json.dumps(v, ensure_ascii=False)}' for k, v in self.to_json().items())
        _atomic.write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _short(value: float) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.{DIGITS}g}")


def bundled() -> list[str]:
    """The names of the references in the package."""
    return sorted(p.stem for p in FOLDER.glob("*.json"))


def of_name(name: str) -> Reference:
    """A reference in the package."""
    return load(FOLDER / f"{name}.json")


def load(*paths: str | Path) -> Reference:
    """The reference in a file; of posteriordb's summary statistics two files may be given, of means and of squares.

    Raises `UsageError` for a file that is none.
    """
    documents = [_document(Path(path)) for path in paths]
    name = Path(paths[0]).name.split(".")[0]
    if len(documents) == 1 and isinstance(documents[0], dict) and documents[0].get("format") == FORMAT:
        return _ours(documents[0])
    if len(documents) == 1 and isinstance(documents[0], list):
        return _of_chains(name, documents[0], str(paths[0]))
    if all(isinstance(d, dict) and "names" in d for d in documents):
        return Reference(name, _of_summaries(documents, str(paths[0])), made={"by": "posteriordb summary statistics"})
    raise _no_reference(str(paths[0]))


def _no_reference(path: str) -> UsageError:
    return UsageError(
        f"Expected a reference posterior in '{path}': a file of `zoo bench references`, or posteriordb's draws (a list of "
        "chains) or summary statistics (names with mean_value or mean_squared_value)."
    )


def _document(path: Path) -> Any:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                text = archive.read(archive.namelist()[0]).decode()
        else:
            text = _atomic.place(path).read_text(encoding="utf-8")
        return json.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no file '{path}'; check the path.") from None
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, IndexError):
        raise _no_reference(str(path)) from None


def _ours(document: Mapping[str, Any]) -> Reference:
    moments = Moments(document["names"], *(np.array(document[key], dtype=float) for key in KEYS))
    known = {key: document[key] for key in ("log_evidence", "made", "validated")}
    return Reference(document["name"], moments, **known)


def _of_chains(name: str, chains: list[Any], path: str) -> Reference:
    """posteriordb's draws; of one chain the draws count as independent."""
    try:
        names = list(chains[0])
        draws = np.array([[chain[n] for n in names] for chain in chains], dtype=float)  # [C, m, S]
    except (KeyError, TypeError, ValueError, IndexError):
        raise _no_reference(path) from None
    if draws.ndim != 3 or not draws.size:
        raise _no_reference(path)
    return Reference(name, of_draws(names, draws.transpose(1, 0, 2)), made={"by": "posteriordb draws"})


def _of_summaries(documents: list[dict[str, Any]], path: str) -> Moments:
    names = documents[0]["names"]
    nothing = np.full(len(names), np.nan)
    found = dict.fromkeys(KEYS, nothing)
    for document in documents:
        at = [document["names"].index(n) for n in names] if set(document["names"]) == set(names) else None
        key = next((k for k in (*MEANS, *SQUARES) if k in document), None)
        if at is None or key is None or "mcse_mean" not in document:
            raise _no_reference(path)
        what = "mean" if key in MEANS else "mean_square"
        found[what] = np.array(document[key], dtype=float)[at]
        found[f"mcse_{what}"] = np.array(document["mcse_mean"], dtype=float)[at]
    variance = found["mean_square"] - found["mean"] ** 2
    with np.errstate(invalid="ignore"):
        found["sd"] = np.sqrt(np.where(variance > 0, variance, np.nan))
        found["mcse_sd"] = found["mcse_mean"] / 2**0.5  # as of a normal: posteriordb states none
    return Moments(names, *(found[key] for key in KEYS))


# ---------------------------------------------------------------------------------------------------------------- export


def export(fit: Fit, folder: Path, name: str) -> list[Path]:
    """A fit's draws and summary statistics as posteriordb has them: the three files that were written."""
    names, draws = numbered(chains_of(fit))
    if not names:
        raise UsageError("posteriordb holds draws of continuous latents, and this run has none: take nuts, say.")
    found = of_draws(names, draws)
    chains = [{n: [float(v) for v in draws[k, c]] for k, n in enumerate(names)} for c in range(draws.shape[1])]
    mean = {"names": names, "mean_value": found.mean.tolist(), "mcse_mean": found.mcse_mean.tolist()}
    square = {
        "names": names,
        "mean_squared_value": found.mean_square.tolist(),
        "mcse_mean": found.mcse_mean_square.tolist(),
    }
    parts = {"draws": chains, "mean_value": mean, "mean_squared_value": square}
    return [_atomic.write(folder / f"{name}.{part}.json", json.dumps(doc)) for part, doc in parts.items()]
