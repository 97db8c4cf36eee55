"""What was asked for: one value that the commands, the Python functions, checkpoints, run folders and suites share.

    >>> asked = Request("gmm", "faithful", "em", {"components": 3}, seed=1)
    >>> asked.command()
    'zoo run gmm --data faithful --method em --set components=3 --seed 1'
    >>> Request.from_json(asked.to_json()) == asked
    True

It imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo._data import catalogue
from zoo._data.options import COLUMN, COLUMNS, ENTRIES, MADE, PREPARATIONS

DRAWN = ("rows", "binarize", "missing")  # preparations that a seed may decide
LIMIT = 10_000  # zoo._program.structure's ENUMERATION_LIMIT, which costs torch to look up; a test holds them equal
NAMED = ("model", "data", "method")  # what has to be given again when it has no name


@dataclass(frozen=True)
class Request:
    """A model, data and a method, with all that was said of them, as it was given.

    - `model`: a name in the zoo, `"file.py:callable"`, or the callable; `data`: a name, a file, or an array [n, …].
    - `options`: the model's and the method's; `preparation`: of the data (columns, labels, …, rows, standardize,
      binarize, missing, and its own `seed` where that is another than the method's).
    - `of`: the run whose θ is kept (`zoo infer`); its own data are meant where `data` is None.
    - `init`: the run or file at whose θ learning begins.
    """

    model: object
    data: object
    method: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    preparation: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    limit: int = LIMIT
    dtype: str = "auto"
    device: str = "auto"
    of: str | None = None
    init: str | None = None

    def to_json(self) -> dict[str, object]:
        """JSON-ready; a model or data that have no name are None."""
        document: dict[str, object] = {
            "model": _name(self.model),
            "data": _name(self.data),
            "method": self.method,
            "seed": self.seed,
            "limit": self.limit,
            "dtype": self.dtype,
            "device": self.device,
            "preparation": {**{k: None for k in ENTRIES if k != "series"}, "standardize": False, **self.preparation},
            "options": self.options,
        }
        document |= {k: v for k, v in (("of", self.of), ("init", self.init)) if v is not None}
        out: dict[str, object] = json.loads(json.dumps(document, default=_plain))
        return out

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Request:
        """The request of `to_json`, or the one that a `run.json` tells of: there the data may be a file of which only the
        name is known, and what was `auto` says what it became."""
        if isinstance(document.get("request"), Mapping):
            document = _mapping(document["request"])
        if "preparation" in document:
            given = {k: v for k, v in _mapping(document["preparation"]).items() if v is not None and v is not False}
            options, limit = _mapping(document["options"]), document["limit"]
            dtype, device = document["dtype"], document["device"]
        else:
            chosen = _mapping(document["options"])
            data = _mapping(chosen.get("data", {}))
            given = {k: data[k] for k in (*PREPARATIONS, "seed") if k in data}
            given |= {"categories": list(_mapping(data["categories"]))} if "categories" in data else {}
            options = {**_mapping(chosen.get("model", {})), **_mapping(chosen.get("method", {}))}
            limit, dtype, device = chosen.get("limit", LIMIT), chosen.get("dtype", "auto"), chosen.get("device", "auto")
            if str(document["data"]).partition(":")[0] not in catalogue.names() or document.get("learned") is False:
                document = {**document, "data": None}
        method, of, init, seed = document.get("method"), document.get("of"), document.get("init"), document["seed"]
        assert isinstance(seed, int) and isinstance(limit, int)
        return cls(
            document["model"],
            document["data"],
            None if method is None else str(method),
            options,
            given,
            seed,
            limit,
            str(dtype),
            str(device),
            None if of is None else str(of),
            None if init is None else str(init),
        )

    def command(self) -> str | None:
        """The line that repeats it; None where none does: the model or the data have no name, an option is an object, or
        the data were drawn by a seed of their own."""
        own_data = self.of is not None and self.data is None
        model, data = _name(self.model), _name(self.data)
        if (model is None and self.of is None) or (data is None and not own_data):
            return None
        if (
            any(self.preparation.get(k) is not None for k in DRAWN)
            and self.preparation.get("seed", self.seed) != self.seed
        ):
            return None
        if any(not _written_out(v) for v in self.options.values()):
            return None
        words = ["zoo", "run", str(model)] if self.of is None else ["zoo", "infer", self.of]
        words += [] if own_data else ["--data", str(data)]
        words += _of_columns(self.preparation)
        for key in DRAWN:
            if self.preparation.get(key) is not None:
                words += [f"--{key}", str(self.preparation[key])]
        words += ["--standardize"] if self.preparation.get("standardize") else []
        if self.preparation.get(MADE) is not None:
            words += ["--covariance-of", str(self.preparation[MADE])]
        words += ["--series"] if self.preparation.get("series") else []
        words += ["--method", "em" if self.method is None else self.method]
        for key, value in self.options.items():
            words += ["--set", f"{key}={written(value)}"]
        if self.of is None:
            words += ["--limit", str(self.limit)] if self.limit != LIMIT else []
            words += ["--dtype", self.dtype] if self.dtype != "auto" else []
            words += [] if self.init is None else ["--init", self.init]
        words += ["--device", self.device] if self.device != "auto" else []
        return shlex.join([*words, "--seed", str(self.seed)])


def _of_columns(preparation: Mapping[str, object]) -> list[str]:
    """The words that say what columns are for. A name with a comma in it stands alone."""
    words = []
    for key in COLUMNS:
        names = preparation.get(key)
        listed = [names] if isinstance(names, str) else list(names) if isinstance(names, list | tuple) else []
        alone = [str(n) for n in listed if "," in str(n)]
        together = ",".join(str(n) for n in listed if "," not in str(n))
        for each in ([together] if together else []) + alone:
            words += [f"--{key}", each]
    for key in COLUMN:
        if preparation.get(key) is not None:
            words += [f"--{key.replace('_', '-')}", str(preparation[key])]
    marks = preparation.get("na")
    for mark in marks if isinstance(marks, list | tuple) else [] if marks is None else [marks]:
        words += ["--na", str(mark)]
    return words


def written(value: object) -> str:
    """An option's value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(written, value)) if isinstance(value, list | tuple) else str(value)


def _written_out(value: object) -> bool:
    """Whether `--set` can say a value."""
    if isinstance(value, list | tuple):
        return all(map(_written_out, value))
    return isinstance(value, str | int | float)


def _name(value: object) -> str | None:
    return str(value) if isinstance(value, str | os.PathLike) else None


def _mapping(value: object) -> dict[str, object]:
    assert isinstance(value, Mapping)
    return dict(value)


def _plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else str(value)
