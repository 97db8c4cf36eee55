"""Everything in a suite that can be checked before any work: names, options, data, benchmarks. All raise `UsageError`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks._suite import cells
from zoo import _options, _registry
from zoo._errors import UsageError, unknown

PREPARATION = ("rows", "standardize", "binarize", "missing", "seed")
BASELINES: dict[str, tuple[str, ...]] = {"mean": (), "knn": ("n_neighbors",), "iterative": ("max_iter",)}
Entry = tuple[str, dict[str, Any]]  # a name and its options


def known(given: Mapping[str, Any], keys: tuple[str, ...] | list[str], what: str) -> None:
    """No key but these."""
    for key in given:
        if key not in keys:
            raise unknown(f"key of {what}", key, keys)


def entries(value: Any, key: str) -> list[Entry]:
    """`"em"`, `{ name = "svi", epochs = 9 }`, or a list of such; `vary = { latents = [1, 2] }` is one entry for each."""
    out: list[Entry] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            out.append((item, {}))
        elif isinstance(item, dict) and isinstance(item.get("name"), str):
            options = {k: v for k, v in item.items() if k not in ("name", "vary")}
            out += [(item["name"], {**options, **one}) for one in combinations(item.get("vary", {}), key)]
        else:
            raise UsageError(f'{key} takes names, or tables such as {{ name = "…", option = … }}; {item!r} came.')
    if not out:
        raise UsageError(f"{key} is empty.")
    return out


def combinations(vary: Any, where: str) -> Iterator[dict[str, Any]]:
    """{"a": [1, 2], "b": [3]} → {a: 1, b: 3}, {a: 2, b: 3}."""
    if not isinstance(vary, dict) or not all(isinstance(v, list) and v for v in vary.values()):
        raise UsageError(f"vary of {where} takes lists, such as {{ latents = [1, 2] }}; {vary!r} came.")
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def model(entry: Entry, base: Path) -> dict[str, Any]:
    """The part of a cell that says which program; a file of one's own with its checksum."""
    from zoo._program.load import option_schema, resolve

    name, options = entry
    target, _ = resolve(cells.resolved(name, str(base)))
    _convert(option_schema(target), options, f"option of model '{name}'", {})
    part: dict[str, Any] = {"model": name, "model_options": options}
    if name.rpartition(":")[0].endswith(".py"):
        part["model_sha256"] = _sha256(base / name.rpartition(":")[0])
    return part


def method(entry: Entry) -> dict[str, Any]:
    """The part of a cell that says which method."""
    from inference._run import runner

    name, options = entry
    module = runner.method_module(name)
    schema = _options.schema(module.fit)
    elsewhere = {m: _options.schema(runner.method_module(m).fit) for m in _registry.methods() if m != name}
    _convert(schema, options, f"option of {name}", elsewhere)
    return {"method": name, "method_options": options}


def methods(value: Any) -> list[Entry]:
    """The entries of `methods`, where "all" stands for every method there is."""
    out: list[Entry] = []
    for name, options in entries(value, "methods"):
        out += [(m, {}) for m in _registry.methods()] if name == "all" and not options else [(name, options)]
    return out


def baseline(entry: Entry) -> dict[str, Any]:
    """The part of a cell that says which way of filling in without a model."""
    name, options = entry
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    for key, value in options.items():
        if key not in BASELINES[name]:
            raise unknown(f"option of the baseline {name}", key, BASELINES[name])
        whole(value, key, 1)
    return {"method": name, "method_options": options, "baseline": True}


def data(entry: Entry, base: Path) -> dict[str, Any]:
    """The part of a cell that says which data, loaded once to see that they can be; a file with its checksum."""
    from zoo._data import datasets

    name, options = entry
    known(options, PREPARATION, f"the data '{name}'")
    datasets.load(cells.resolved(name, str(base)), **options)
    part: dict[str, Any] = {"name": name, **options}
    if cells.is_data_file(name):
        part["sha256"] = _sha256(base / name)
    return {"data": part}


def benchmark(name: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The part of a cell that calls a benchmark which is a program."""
    if name not in _registry.benchmarks():
        raise unknown("benchmark", str(name), _registry.benchmarks())
    measure = measuring(importlib.import_module("benchmarks." + name.replace("/", ".")))
    _convert(_options.schema(measure), options, f"option of the benchmark {name}", {})
    return {"name": name, "options": options}


def measuring(module: ModuleType) -> Any:
    """The function of a benchmark that returns its document: `measure`, which prints nothing, or else `main`."""
    return getattr(module, "measure", None) or module.main


def hiding(pattern: Any) -> str:
    """A pattern of hidden entries: `random:P`, `high:P`, or half of each image."""
    kind, _, share = str(pattern).partition(":")
    if kind in ("top", "bottom", "left", "right") and not share:
        return str(pattern)
    try:
        fits = {"random": 0 < float(share) < 1, "high": 0 < float(share) <= 0.5}[kind]
    except (ValueError, KeyError):
        fits = False
    if not fits:
        rule = "random:P with 0 < P < 1, high:P with 0 < P ≤ 0.5, top, bottom, left or right"
        raise UsageError(f"hide takes {rule}; {pattern!r} came.")
    return str(pattern)


def seeds(value: Any) -> list[int]:
    """5 → 0 to 4; a list stands as it is."""
    if isinstance(value, list) and value:
        from inference._run.prepare import LARGEST_SEED

        if any(isinstance(v, int) and v > LARGEST_SEED for v in value):
            raise UsageError(f"seeds takes whole numbers from 0 to {LARGEST_SEED:,}.")
        return [whole(v, "seeds", 0) for v in value]
    return list(range(whole(value, "seeds", 1)))


def whole(value: Any, key: str, least: int) -> int:
    """A whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{key} takes a whole number, {least} or more; {value!r} came.")
    return value


def positive(value: Any, key: str) -> float | None:
    """A number above zero, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UsageError(f"{key} takes a number above zero; {value!r} came.")
    return float(value)


def flag(value: Any, key: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{key} is true or false; {value!r} came.")
    return value


def _convert(
    schema: Mapping[str, Any], options: Mapping[str, Any], what: str, elsewhere: Mapping[str, Mapping[str, Any]]
) -> None:
    for key in options:
        owners = [name for name, theirs in elsewhere.items() if key in theirs]
        if key not in schema and owners and not difflib.get_close_matches(key, schema, cutoff=0.8):
            listed = f"known: {', '.join(sorted(schema))}."
            raise UsageError(f"unknown {what} '{key}', which belongs to {' and '.join(owners)}; {listed}")
    _options.convert(schema, options, what)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
