"""Everything in a suite that can be checked before any work: names, options, data, benchmarks. All raise `UsageError`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from benchmarks._suite import cells
from benchmarks._suite.documents import Document
from inference._run import runner
from inference._run.prepare import LARGEST_SEED
from zoo import _options, _registry
from zoo._data import datasets
from zoo._errors import UsageError, called, unknown
from zoo._program.load import option_schema, resolve

PREPARATION = ("rows", "standardize", "binarize", "missing", "seed")
BASELINES: dict[str, tuple[str, ...]] = {"mean": (), "knn": ("n_neighbors",), "iterative": ("max_iter",)}
MOST_SEEDS = 10_000  # of a block: each is a cell of its own
Schema = Mapping[str, inspect.Parameter]  # of options, by name
Entry = tuple[str, Document]  # a name and its options


def known(given: Mapping[str, object], keys: tuple[str, ...] | list[str], what: str) -> None:
    """No key but these."""
    if not isinstance(given, Mapping):
        raise UsageError(f"Expected a table for {what}, got {given!r:.40}.")
    for key in given:
        if key not in keys:
            raise unknown(f"key of {what}", key, keys)


def entries(value: object, key: str) -> list[Entry]:
    """`"em"`, `{ name = "svi", epochs = 9 }`, or a list of such; `vary = { latents = [1, 2] }` is one entry for each."""
    out: list[Entry] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            out.append((item, {}))
        elif isinstance(item, dict) and isinstance(item.get("name"), str):
            options = {k: v for k, v in item.items() if k not in ("name", "vary")}
            out += [(item["name"], {**options, **one}) for one in combinations(item.get("vary", {}), key)]
        else:
            raise UsageError(f'{key} expects names, or tables such as {{ name = "…", option = … }}, got {item!r}.')
    if not out:
        raise UsageError(f"{key} is empty; name at least one.")
    return out


def combinations(vary: object, where: str) -> Iterator[Document]:
    """{"a": [1, 2], "b": [3]} → {a: 1, b: 3}, {a: 2, b: 3}."""
    if not isinstance(vary, dict) or not all(isinstance(v, list) and v for v in vary.values()):
        raise UsageError(f"vary of {where} expects lists, such as {{ latents = [1, 2] }}, got {vary!r}.")
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def model(entry: Entry, base: Path) -> Document:
    """The part of a cell that names the program; a user's file with its checksum."""
    name, options = entry
    target, _ = resolve(cells.resolved(name, str(base)))
    _convert(option_schema(target), options, f"option of model '{name}'", {})
    part: Document = {"model": name, "model_options": options}
    if name.rpartition(":")[0].endswith(".py"):
        part["model_sha256"] = _sha256(base / name.rpartition(":")[0])
    return part


def method(entry: Entry) -> Document:
    """The part of a cell that says which method."""
    name, options = entry
    module = runner.method_module(name)
    schema = _options.schema(module.fit)
    elsewhere = {m: _options.schema(runner.method_module(m).fit) for m in _registry.methods() if m != name}
    _convert(schema, options, f"option of {name}", elsewhere)
    return {"method": name, "method_options": options}


def methods(value: object) -> list[Entry]:
    """The entries of `methods`, where "all" means every method."""
    out: list[Entry] = []
    for name, options in entries(value, "methods"):
        out += [(m, {}) for m in _registry.methods()] if name == "all" and not options else [(name, options)]
    return out


def baseline(entry: Entry) -> Document:
    """The part of a cell that says which way of filling in without a model."""
    name, options = entry
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    for key, value in options.items():
        if key not in BASELINES[name]:
            raise unknown(f"option of the baseline {name}", key, BASELINES[name])
        whole(value, key, 1)
    return {"method": name, "method_options": options, "baseline": True}


def data(entry: Entry, base: Path) -> Document:
    """The part of a cell that says which data, loaded once to see that they can be; a file with its checksum."""
    name, options = entry
    known(options, PREPARATION, f"the data '{name}'")
    datasets.load(cells.resolved(name, str(base)), **options)
    part: Document = {"name": name, **options}
    if cells.is_data_file(name):
        part["sha256"] = _sha256(base / name)
    return {"data": part}


def benchmark(name: object, options: Document) -> Document:
    """The part of a cell that calls a benchmark which is a program."""
    if name not in _registry.benchmarks():
        raise unknown("benchmark", str(name), _registry.benchmarks())
    measure = measuring(importlib.import_module("benchmarks." + name.replace("/", ".")))
    _convert(_options.schema(measure), options, f"option of the benchmark {name}", {})
    return {"name": name, "options": options}


def measuring(module: ModuleType) -> Callable[..., Document]:
    """The function of a benchmark that returns its document: `measure`, which prints nothing, or else `main`."""
    found: Callable[..., Document] = getattr(module, "measure", None) or module.main
    return found


def hiding(pattern: object) -> str:
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
        raise UsageError(f"hide expects {rule}, got {pattern!r}.")
    return str(pattern)


def seeds(value: object) -> list[int]:
    """5 → 0 to 4; a list stands as it is."""
    if isinstance(value, list) and value:
        for seed in value:
            if whole(seed, "seeds", 0) > LARGEST_SEED:
                raise UsageError(f"seeds expects whole numbers from 0 to {LARGEST_SEED:,}, got {seed}.")
        return value
    count = whole(value, "seeds", 1)
    if count > MOST_SEEDS:
        raise UsageError(
            f"seeds expects a whole number from 1 to {MOST_SEEDS:,}, or a list of seeds, got {count}: each seed is a cell."
        )
    return list(range(count))


def whole(value: object, key: str, least: int) -> int:
    """A whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{key} expects a whole number, {least} or more, got {value!r}.")
    return value


def positive(value: object, key: str) -> float | None:
    """A number above zero, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UsageError(f"{key} expects a number above zero, got {value!r}.")
    return float(value)


def flag(value: object, key: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{key} expects true or false, got {value!r}.")
    return value


def _convert(schema: Schema, options: Document, what: str, elsewhere: Mapping[str, Schema]) -> None:
    for key in options:
        owners = [name for name, theirs in elsewhere.items() if key in theirs]
        if key not in schema and owners and not difflib.get_close_matches(key, schema, cutoff=0.8):
            listed = f"known: {', '.join(sorted(schema))}."
            raise UsageError(f"unknown {called(what, key)}, which belongs to {' and '.join(owners)}; {listed}")
    _options.convert(schema, options, what)
    _options.check_used([schema], options)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
