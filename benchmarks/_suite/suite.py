"""A suite file → its cells, everything checked before any work.

A suite is TOML. The comment it begins with says what it is for. `[budget]` holds `seconds` and `memory_mb` of a cell, and
`jobs`, the most cells at once. Then blocks, each a product of its lists:

    [[fit]]        models × data × methods × seeds
    [[swap]]       one θ for each of models × data, by the method `theta`; then methods × seeds at that θ
    [[impute]]     models × data × hide × methods × seeds, beside `baselines`
    [[scaling]]    models × methods × seeds on synthetic data of n × d, with one size at a time varied
    [[benchmark]]  programs of this folder, by name

Paths to programs and data files are relative to the suite's file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._suite import checks, names
from benchmarks._suite.cells import Cell
from benchmarks._suite.documents import Document
from zoo._errors import UsageError

BUDGET = ("seconds", "memory_mb", "jobs")
COMMON = ("seeds", "seconds", "memory_mb", "pictures")
DRAWS = 19  # with 19 draws, all but the lowest and the highest rank cover 90%


@dataclass(frozen=True)
class Suite:
    """A checked suite. `spec` is what names it on the command line."""

    name: str
    spec: str
    about: str
    cells: tuple[Cell, ...]
    jobs: int | None  # at once, at the most


def load(spec: str) -> Suite:
    """Read and check the suite that `spec` names. Raises `UsageError` for an error in it."""
    path = names.find(spec)
    if path is None:
        raise UsageError(f"Expected a suite, got the benchmark '{spec}'.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"'{spec}' cannot be read as TOML: {error}") from error
    base = path.absolute().parent
    cells: dict[str, Cell] = {}
    try:
        checks.known(document, ["budget", *BLOCKS], "a suite")
        budget = document.get("budget", {})
        checks.known(budget, BUDGET, "[budget]")
        jobs = None if "jobs" not in budget else checks.whole(budget["jobs"], "jobs", 1)
        for kind, number, block in _blocks(document):
            try:
                cells |= {cell.id: cell for cell in _cells_of(kind, block, budget, base)}
            except UsageError as error:
                raise UsageError(f"[[{kind}]] {number}: {error}") from error
        if not cells:
            raise UsageError(f"the suite is empty; add a block: {', '.join(f'[[{b}]]' for b in BLOCKS)}.")
    except UsageError as error:
        raise UsageError(f"{path.name}, {str(error).replace(str(base) + '/', '')}") from error
    # results hold no paths of the machine
    spoken = Path(spec).name if Path(spec).is_absolute() else spec
    return Suite(path.stem, spoken, "\n".join(names.about(path)).strip(), tuple(cells.values()), jobs)


def _blocks(document: Document) -> Iterator[tuple[str, int, Document]]:
    """Kind, number from 1, and content of each block."""
    for kind in BLOCKS:
        blocks = document.get(kind, [])
        if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in blocks):
            raise UsageError(f"write the block as [[{kind}]], with two brackets.")
        for number, block in enumerate(blocks, 1):
            yield kind, number, block


def _cells_of(kind: str, block: Document, budget: Document, base: Path) -> Iterator[Cell]:
    expand, keys, needed = BLOCKS[kind]
    checks.known(block, (*keys, *COMMON), f"[[{kind}]]")
    for key in needed:
        if key not in block:
            raise UsageError(f"'{key}' is missing; add it.")
    seconds, memory = (checks.positive(block.get(k, budget.get(k)), k) for k in ("seconds", "memory_mb"))
    pictures = checks.flag(block.get("pictures", False), "pictures")
    seeds = checks.seeds(block.get("seeds", 1))
    for cell in expand(block, seeds, base):
        first = cell.content.get("seed") == seeds[0] and cell.content["kind"] in ("fit", "infer") and not cell.keeps
        content = {**cell.content, **({"pictures": True} if pictures and first else {})}
        yield replace(cell, content=content, base=str(base), seconds=seconds, memory_mb=memory)


def _programs(block: Document, base: Path) -> list[Document]:
    """models × data."""
    models = [checks.model(e, base) for e in checks.entries(block["models"], "models")]
    data = [checks.data(e, base) for e in checks.entries(block["data"], "data")]
    return [{**m, **d} for d in data for m in models]


def _fit(block: Document, seeds: list[int], base: Path) -> Iterator[Cell]:
    methods = [checks.method(e) for e in checks.methods(block["methods"])]
    for program in _programs(block, base):
        for method in methods:
            for seed in seeds:
                yield Cell({"kind": "fit", **program, **method, "seed": seed})


def _swap(block: Document, seeds: list[int], base: Path) -> Iterator[Cell]:
    methods = [checks.method(e) for e in checks.methods(block["methods"])]
    thetas = [checks.method(e) for e in checks.entries(block["theta"], "theta")]
    if len(thetas) != 1:
        raise UsageError(f"theta expects one method, which fits θ, got {len(thetas)}.")
    for program in _programs(block, base):
        theta = Cell({"kind": "theta", **program, **thetas[0], "seed": seeds[0]}, keeps=True)
        yield theta
        for method in methods:
            for seed in seeds:
                content = {"kind": "infer", **program, **method, "seed": seed, "theta": theta.content}
                yield Cell(content, needs=theta.id)


def _impute(block: Document, seeds: list[int], base: Path) -> Iterator[Cell]:
    draws = checks.whole(block.get("draws", DRAWS), "draws", DRAWS)
    if (draws + 1) % (DRAWS + 1):
        raise UsageError(f"draws expects 19, 39, 59, …, so that ranks can hold 90% of them, got {draws}.")
    methods = [checks.method(e) for e in checks.methods(block["methods"])]
    baselines = [checks.baseline(e) for e in checks.entries(block.get("baselines", "mean"), "baselines")]
    data = [checks.data(e, base) for e in checks.entries(block["data"], "data")]
    models = [checks.model(e, base) for e in checks.entries(block["models"], "models")]
    hide = block["hide"] if isinstance(block["hide"], list) else [block["hide"]]
    ways = [{**m, **d} for m in models for d in methods] + baselines
    for one in data:
        for pattern in map(checks.hiding, hide):
            for way in ways:
                for seed in seeds:
                    yield Cell({"kind": "impute", **one, "hide": pattern, **way, "draws": draws, "seed": seed})


def _scaling(block: Document, seeds: list[int], base: Path) -> Iterator[Cell]:
    sizes = {k: checks.whole(block[k], k, 2) for k in ("n", "d")}
    vary = block["vary"]
    for name, options in checks.entries(block["models"], "models"):
        for method in (checks.method(e) for e in checks.methods(block["methods"])):
            for axis, values in vary.items() if isinstance(vary, dict) else [("", vary)]:
                for value in [v[axis] for v in checks.combinations({axis: values}, "[[scaling]]")]:
                    at = {**sizes, axis: checks.whole(value, axis, 1)}
                    data = {"name": "synthetic", "n": at["n"], "d": at["d"]}
                    given = {**options, **({} if axis in sizes else {axis: value})}
                    program = {**checks.model((name, given), base), "data": data}
                    for seed in seeds:
                        yield Cell({"kind": "scaling", **program, **method, "axis": axis, "at": value, "seed": seed})


def _benchmark(block: Document, seeds: list[int], base: Path) -> Iterator[Cell]:
    for name, options in checks.entries(block["names"], "names"):
        yield Cell({"kind": "benchmark", **checks.benchmark(name, options)})


BLOCKS: dict[str, tuple[Callable[..., Iterator[Cell]], tuple[str, ...], tuple[str, ...]]] = {
    # block → how it becomes cells, its keys, and those of them that it must have
    "fit": (_fit, ("models", "data", "methods"), ("models", "data", "methods")),
    "swap": (_swap, ("models", "data", "theta", "methods"), ("models", "data", "theta", "methods")),
    "impute": (
        _impute,
        ("models", "data", "hide", "methods", "baselines", "draws"),
        ("models", "data", "hide", "methods"),
    ),
    "scaling": (_scaling, ("models", "methods", "n", "d", "vary"), ("models", "methods", "n", "d", "vary")),
    "benchmark": (_benchmark, ("names",), ("names",)),
}
