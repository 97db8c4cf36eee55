"""A cell of a suite: one piece of work with one result file. Its identity is a hash of what it says."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference._run.request import Request, written


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    - `content`: what is to be done, JSON-ready, with paths as the suite's file has them: the cell's identity.
    - `base`: the folder that those paths are relative to.
    - `seconds`, `memory_mb`: budgets, which are no part of the identity; None for no limit.
    - `needs`: the id of the cell whose θ this one takes; `keeps`: its run folder stays, for others to take θ from.
    - `act`: what does the work, of a cell whose `kind` is none of a suite's: the cell, the results and a folder → its result.
    """

    content: dict[str, Any]
    base: str = "."
    seconds: float | None = None
    memory_mb: float | None = None
    needs: str | None = None
    keeps: bool = False
    act: Callable[[Any, Any, Path], dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        """16 hexadecimal digits; a changed option, data file or program file gives another."""
        return identity(self.content)

    @property
    def title(self) -> str:
        """A few words for the progress display."""
        return title(self.content)


def identity(content: Mapping[str, Any]) -> str:
    """The hash of a cell's content."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def title(content: Mapping[str, Any]) -> str:
    """What a cell is, in a few words: "gmm components=3, faithful, em, seed 0"."""
    if content["kind"] == "benchmark":
        return spoken(content["name"], content["options"])
    parts = [spoken(content["model"], content["model_options"])] if "model" in content else []
    parts.append(data(content["data"]))
    if "hide" in content:
        parts.append(content["hide"])
    parts.append(spoken(content["method"], content["method_options"]))
    return ", ".join([*parts, f"seed {content['seed']}"])


def spoken(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options: "svi epochs=100"."""
    return " ".join([name, *(f"{k}={written(v)}" for k, v in options.items())])


def data(given: Mapping[str, Any]) -> str:
    """A data set with its preparation: "wine, standardized"."""
    said = {
        "rows": lambda v: f"{v} rows",
        "standardize": lambda v: "standardized" if v else "",
        "binarize": lambda v: f"binarized ({v})",
        "missing": lambda v: f"missing {v}",
    }
    words = [
        said.get(k, lambda v, k=k: f"{k}={written(v)}")(v) for k, v in given.items() if k not in ("name", "sha256")
    ]
    return ", ".join([given["name"], *filter(None, words)])


def command(content: Mapping[str, Any], suite: str) -> str:
    """What to type to get this cell's result again: `zoo run …` where that says it all, else the suite's own call."""
    again = shlex.join(["zoo", "bench", suite, "--only", identity(content)])
    if content["kind"] not in ("fit", "theta"):
        return again
    return request(content).command() or again


def request(content: Mapping[str, Any], base: str | None = None) -> Request:
    """The fit that a cell asks for; its files as they are found from the folder `base`, where one is given."""
    given = {"seed": 0, **{k: v for k, v in content["data"].items() if k not in ("name", "sha256")}}
    names = content["model"], content["data"]["name"]
    model, data = names if base is None else (resolved(name, base) for name in names)
    options = {**({} if content["kind"] == "infer" else content["model_options"]), **content["method_options"]}
    return Request(model, data, content["method"], options, given, content["seed"])


def resolved(name: str, base: str) -> str:
    """A model or data file of a suite, from where the suite's file lies; a plain name stays as it is."""
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(base, path)}:{attribute}"
    return str(Path(base, name)) if is_data_file(name) else name


def is_data_file(name: str) -> bool:
    """Whether a data set is given by its file."""
    return Path(name).suffix.lower() in (".csv", ".npy", ".npz")
