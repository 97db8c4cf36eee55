"""The parts of the page that are not fits side by side: imputation, costs, peers, tables that programs of this folder made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks._report import figures
from benchmarks._report import rank as _rank
from benchmarks._report.figures import Curve, Figure
from benchmarks._report.tables import (
    NOTHING,
    Column,
    Entry,
    Table,
    chosen,
    mean,
    number,
    plain,
    seconds,
    share,
    words,
)
from benchmarks._suite import cells as _cells

Cells = Sequence[dict[str, Any]]
Series = Callable[[str], int]


@dataclass
class Section:
    """A heading, tables and charts."""

    anchor: str
    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Figure] = field(default_factory=list)
    legend: list[tuple[str, int]] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    troubles: list[tuple[str, str]] = field(default_factory=list)


def sections(cells: Cells, series: Callable[[], Series]) -> list[Section]:
    """Every part that these cells have something for; each numbers its `series` by itself."""
    parts = [*_imputation(_of(cells, "impute"), series()), *_scaling(_of(cells, "scaling"), series())]
    return [*parts, *_benchmarks(_of(cells, "benchmark")), *_made(_of(cells, "row"))]


def _of(cells: Cells, kind: str) -> list[dict[str, Any]]:
    return [c for c in cells if c["cell"]["kind"] == kind]


def _grouped(cells: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        out.setdefault(json.dumps(key(cell["cell"])), []).append(cell)
    return out


def _section(anchor: str, title: str, note: str, cells: Cells) -> Section:
    """With what was refused, and what did not end well, and why; each reason once."""
    refused: dict[tuple[str, str], None] = {}
    others: dict[tuple[str, str], None] = {}
    for cell in cells:
        c = {**cell["cell"], "seed": "any"} if "seed" in cell["cell"] else cell["cell"]
        name = _cells.title(c).removesuffix(", seed any")
        if cell["status"] == "refused":
            refused[(name, cell["reason"])] = None
        elif cell["status"] != "ok":
            others[(name, f"{cell['status']}: {cell['reason'] or 'not run yet'}")] = None
    return Section(anchor, title, note, refusals=list(refused), troubles=list(others))


def _ok(cells: Cells) -> list[dict[str, Any]]:
    return [c for c in cells if c["status"] == "ok"]


# ---- imputation ------------------------------------------------------------------------------------------------------

IMPUTATION = (
    Column("rank", help="By error. Equal where 95% intervals overlap, taken of differences seed by seed."),
    Column("way", numeric=False, key=True),
    Column("RMSE", help="Root of the mean squared error of hidden entries."),
    Column("± SE", help="Standard error over seeds."),
    Column("MAE", help="Mean absolute error of hidden entries."),
    Column("90% holds", help="The share of hidden entries within their 90% intervals: 90% is right."),
    Column("width", help="Mean width of the 90% intervals."),
    Column("held-out log p", help="log p(hidden | seen), nats an entry."),
    Column("kind", numeric=False, help="Of the held-out log p."),
    Column("seconds", help="Of the fit."),
    Column("seeds"),
)


def _imputation(cells: Cells, series: Series) -> list[Section]:
    out = []
    for n, (key, found) in enumerate(_grouped(cells, lambda c: c["data"]).items(), 1):
        data = _cells.data(json.loads(key))
        unit = "standard deviations" if json.loads(key).get("standardize") else "the data's own"
        note = f"Entries are hidden, filled in, and compared with what was there; units are {unit}."
        section = _section(f"i{n}", f"Imputation: {data}", note, found)
        for pattern, alike in _grouped(found, lambda c: c["hide"]).items():
            section.tables.append(_imputed(json.loads(pattern), alike, series))
        for kind in dict.fromkeys(c["cell"]["hide"].partition(":")[0] for c in found):
            section.charts += _shares(kind, [c for c in _ok(found) if c["cell"]["hide"].startswith(kind)], series, data)
        section.legend = list(dict.fromkeys((_way(c["cell"]), series(_way(c["cell"]))) for c in _ok(found)))
        out.append(section)
    return out


def _way(content: dict[str, Any]) -> str:
    method = _cells.spoken(content["method"], content["method_options"])
    return (
        method if content.get("baseline") else f"{_cells.spoken(content['model'], content['model_options'])}, {method}"
    )


def _named(content: dict[str, Any]) -> dict[str, Any]:
    """A way's name without its options, these, and the seed."""
    options = [chosen(content.get("model_options", {})), chosen(content["method_options"])]
    name = content["method"] if content.get("baseline") else f"{content['model']}, {content['method']}"
    return {"name": name, "options": "; ".join(filter(None, options)), "seed": content["seed"]}


PATTERNS = {"random": "hidden completely at random", "high": "hidden not at random, large values more often"}


def _imputed(pattern: str, cells: Cells, series: Series) -> Table:
    kind, _, part = pattern.partition(":")
    what = f"{float(part):.0%} {PATTERNS[kind]}" if part else f"the {kind} half of each image hidden"
    ways: dict[str, list[dict[str, Any]]] = {}
    for cell in _ok(cells):
        ways.setdefault(_way(cell["cell"]), []).append({**cell["result"], **_named(cell["cell"])})
    spread = {w: _mean_se([r["rmse"] for r in results]) for w, results in ways.items()}
    standings = [_rank.Standing(-m, -m - se, -m + se, "estimate") for m, se in _paired(ways)]
    ranks = _rank.ranks(standings)
    table = Table(IMPUTATION, caption=what)
    for (way, results), rank in sorted(
        zip(ways.items(), ranks, strict=True), key=lambda p: (p[1] or 0, spread[p[0][0]])
    ):
        held = [r["held_out"] for r in results if r.get("held_out")]
        table.add(
            Entry(f"{rank}{'=' if ranks.count(rank) > 1 else ''}", rank),
            Entry(results[0]["name"], way, series=series(way), small=results[0]["options"]),
            number(spread[way][0], 4),
            number(spread[way][1], 4),
            number(mean([r["mae"] for r in results]), 4),
            share(mean([r["coverage"] for r in results])),
            number(mean([r["width"] for r in results]), 3),
            number(mean([h["per_entry"] for h in held]), 4),
            words(max((h["kind"] for h in held), key=_rank.ORDER.index, default=""), "kind"),
            seconds(mean([r["seconds"] for r in results])),
            Entry(str(len(results)), len(results)),
        )
    return table.trimmed()


def _paired(ways: dict[str, list[dict[str, Any]]]) -> list[tuple[float, float]]:
    """Mean error of each way, and half a 95% interval of it without what a seed does to all ways alike.

    With one seed it is the error over the entries that were hidden, which is larger.
    """
    several = [results for results in ways.values() if len(results) > 1]
    seeds = set.intersection(*({r["seed"] for r in results} for results in several)) if several else set()
    level = {s: sum(r["rmse"] for rs in several for r in rs if r["seed"] == s) / len(several) for s in seeds}
    out = []
    for results in ways.values():
        middle, _ = _mean_se([r["rmse"] for r in results])
        _, se = _mean_se([r["rmse"] - level[r["seed"]] for r in results if r["seed"] in seeds] or [0.0])
        out.append((middle, _rank.Z95 * results[0]["rmse_se"] if se is None else _t95(len(seeds) - 1) * se))
    return out


def _t95(freedom: int) -> float:
    """Student's: with few seeds an interval is wide."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, freedom), 0.975))


def _mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    middle = sum(values) / len(values)
    if len(values) < 2:
        return middle, None
    return middle, (sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5


def _shares(kind: str, cells: Cells, series: Series, data: str) -> list[Figure]:
    """Error, coverage and held-out log-likelihood against the share of entries that are hidden."""
    if kind not in PATTERNS or len({c["cell"]["hide"] for c in cells}) < 2:
        return []
    out = []
    for label, pick, level, scale in (
        ("RMSE", lambda r: r["rmse"], None, "linear"),
        ("share within 90% interval", lambda r: r["coverage"], 0.9, "linear"),
        ("held-out log p, nats an entry", lambda r: (r.get("held_out") or {}).get("per_entry"), None, "both"),
    ):
        found: dict[str, dict[float, list[float]]] = {}
        for cell in cells:
            if (value := pick(cell["result"])) is not None:
                at = float(cell["cell"]["hide"].partition(":")[2])
                found.setdefault(_way(cell["cell"]), {}).setdefault(at, []).append(value)
        lines = [Curve(way, series(way), points) for way, points in found.items()]
        caption = f"{label[0].upper()}{label[1:]}: {PATTERNS[kind]}. Whiskers span the seeds."
        drawn = figures.curves(lines, f"{label}: {data}", "share hidden", label, caption, y_scale=scale, level=level)
        out += [drawn] if drawn else []
    return out


# ---- costs -----------------------------------------------------------------------------------------------------------


def _scaling(cells: Cells, series: Series) -> list[Section]:
    if not cells:
        return []
    note = (
        "Cost against one size at a time, all else fixed, with the power of the size that it grows with: least squares on "
        "logarithms over the larger half of the sizes. Memory is what a fit takes beyond what its process held before."
    )
    section = _section("costs", "Costs", note, cells)
    table = Table(
        (
            Column("program", numeric=False, key=True),
            Column("method", numeric=False),
            Column("size", numeric=False, help="What is varied: n rows, d columns, or an option of the program."),
            Column("from"),
            Column("to"),
            Column("seconds at most"),
            Column("time grows as", numeric=False),
            Column("MB at most"),
            Column("memory grows as", numeric=False),
        )
    )
    for axis, alike in _grouped(_ok(cells), lambda c: c["axis"]).items():
        size = json.loads(axis)
        times, memory = [], []
        for found in _grouped(alike, lambda c: [c["model"], _fixed(c), c["method"], c["method_options"]]).values():
            content = found[0]["cell"]
            name = f"{content['model']}, {content['method']}"
            spent, held = _points(found, "seconds"), _points(found, "extra_memory_mb")
            times.append(Curve(name, series(name), spent))
            memory.append(Curve(name, series(name), held))
            method = _cells.spoken(content["method"], content["method_options"])
            table.add(
                Entry(content["model"], name, series=times[-1].series, small=chosen(_fixed(content))),
                Entry(content["method"], method, small=chosen(content["method_options"])),
                words(size),
                number(min(spent), 0),
                number(max(spent), 0),
                seconds(max(max(v) for v in spent.values())),
                _power(spent, size),
                number(max((max(v) for v in held.values()), default=None), 0),
                _power(held, size),
            )
        for lines, label in ((times, "seconds"), (memory, "MB beyond the start")):
            caption = f"{label[0].upper()}{label[1:]} against {size}."
            drawn = figures.curves(lines, caption, size, label, caption, "log", "log")
            section.charts += [drawn] if drawn else []
        section.legend = list(dict.fromkeys([*section.legend, *figures.legend(times)]))
    section.tables = [table.trimmed()]
    return [section]


def _fixed(content: dict[str, Any]) -> dict[str, Any]:
    """The options that are not varied."""
    return {k: v for k, v in content["model_options"].items() if k != content["axis"]}


def _points(cells: Cells, key: str) -> dict[float, list[float]]:
    out: dict[float, list[float]] = {}
    for cell in cells:
        if (value := cell["result"].get(key)) and value > 0:
            out.setdefault(cell["cell"]["at"], []).append(value)
    return out


def _power(points: dict[float, list[float]], size: str) -> Entry:
    found = figures.exponent(points)
    if found is None:
        return Entry(NOTHING)
    return Entry(f"{size}^{plain(found[0], 2)} ± {found[1]:.2f}", found[0])


# ---- peers, and what programs of this folder made ----------------------------------------------------------------------


PEERS = (
    Column("what", numeric=False),
    Column("peer", numeric=False, key=True),
    Column("ratio", help="Our time over theirs: the median of the rounds."),
    Column("lowest"),
    Column("highest"),
    Column("ours", help="Seconds, median."),
    Column("theirs", help="Seconds, median."),
    Column("threads"),
    Column("log-likelihood"),
    Column("theirs"),
)


def _benchmarks(cells: Cells) -> list[Section]:
    if not cells:
        return []
    note = "The same work from the same start, in turn in one process. A ratio below 1 says that ours takes less time."
    section = _section("peers", "Peers", note, cells)
    table, drawn = Table(PEERS), []
    for cell in cells:
        result = _peer_by_peer(cell.get("result") or {})
        if result and "ratios" not in result:
            section.tables.append(_facts(cell))
        for why in result.get("skipped", []):
            if (skipped := (cell["cell"]["name"], f"skipped: {why}")) not in section.troubles:
                section.troubles.append(skipped)
        for peer, ratio in result.get("ratios", {}).items():
            _compared(table, result, result.get("what") or _cells.title(cell["cell"]), peer)
            short = result.get("short") or cell["cell"]["name"].rpartition("/")[2]
            drawn.append((f"{short}, {peer}", *(ratio[k] or ratio["median"] for k in ("median", "min", "max"))))
    if table.rows:
        section.tables.insert(0, table.trimmed())
    figure = figures.ratios(drawn, "Our time over the peers'")
    section.charts = [figure] if figure else []
    return [section]


def _peer_by_peer(result: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's document with `ratios` and times by peer, also where it has but one peer and says `ratio`."""
    if "ratios" in result or not isinstance(result.get("ratio"), float):
        return result
    peer = result.get("peer", "by hand")
    ratio = {"median": result["ratio"], "min": result.get("ratio_min"), "max": result.get("ratio_max")}
    times = {"zoo": result.get("ours_seconds"), peer: result.get("peer_seconds")}
    return {**result, "ratios": {peer: ratio}, "seconds": {k: v for k, v in times.items() if v is not None}}


def _compared(table: Table, r: dict[str, Any], what: str, peer: str) -> None:
    """A row of the table of peers."""
    ratio = r["ratios"][peer]
    unit, spent = (1e-3, r["milliseconds"]) if "milliseconds" in r else (1.0, r.get("seconds", {}))
    likelihood = r.get("log_likelihood") or {}
    name, _, sizes = what.partition(": ")  # on a line of their own: a phone is narrow
    table.add(
        Entry(name, what, small=sizes),
        words(peer),
        number(ratio["median"], 3),
        number(ratio["min"], 3),
        number(ratio["max"], 3),
        seconds(unit * spent["zoo"] if "zoo" in spent else None),
        seconds(unit * spent[peer] if peer in spent else None),
        Entry(str(r.get("threads", NOTHING)), r.get("threads")),
        number(likelihood.get("zoo"), 3),
        number(likelihood.get(peer), 3),
    )


def _facts(cell: dict[str, Any]) -> Table:
    """Whatever single numbers and words a benchmark returned."""
    table = Table((Column("what", numeric=False), Column("value")), caption=_cells.title(cell["cell"]))
    for key, value in cell["result"].items():
        if isinstance(value, str | int | float | bool):
            table.add(words(key), Entry(f"{value:.6g}" if isinstance(value, float) else str(value), str(value)))
    return table


def _made(cells: Cells) -> list[Section]:
    """Cells of kind `row`: `table` says which table, `row` is its name, the result's `columns` what stands in it."""
    out = []
    for n, (title, found) in enumerate(_grouped(cells, lambda c: c["table"]).items(), 1):
        names = list(dict.fromkeys(k for c in _ok(found) for k in c["result"]["columns"]))
        table = Table([Column("", numeric=False), *(Column(n, numeric=_numeric(found, n)) for n in names)])
        for cell in _ok(found):
            values = cell["result"]["columns"]
            table.add(words(str(cell["cell"]["row"])), *(_any(values.get(name)) for name in names))
        note = next((c["result"]["note"] for c in _ok(found) if c["result"].get("note")), "")
        section = _section(f"t{n}", json.loads(title), note, found)
        section.tables = [table.trimmed()]
        out.append(section)
    return out


def _numeric(cells: Cells, name: str) -> bool:
    values = [c["result"]["columns"].get(name) for c in _ok(cells)]
    return all(isinstance(v, int | float | dict | None) for v in values)


def _any(value: Any) -> Entry:
    """A number, words, or evidence as `{value, se, kind}`."""
    if isinstance(value, dict):
        se = f" ± {plain(value['se'], 2)}" if value.get("se") else ""
        sign = {"exact": "=", "estimate": "≈", "lower bound": "≥"}.get(value.get("kind", ""), "")
        return Entry(f"{sign}\u2009{plain(value['value'], 2)}{se}", value["value"])
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return words(NOTHING if value is None else str(value))
    return number(float(value), 0 if isinstance(value, int) else 3)
