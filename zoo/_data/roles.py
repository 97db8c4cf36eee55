"""What each column of a table is for: data, labels, names of rows, weights, covariates; the rest is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from zoo._data import looks
from zoo._data.columns import default_names, match
from zoo._data.labelled import LEVELS
from zoo._data.notation import Marks, Numbers, as_float, is_missing, numbers_of
from zoo._data.options import COLUMN, COLUMNS, ROLES, marks, names, one_name
from zoo._data.raw import Raw, shown
from zoo._data.table import Table, as_text
from zoo._errors import UsageError, unknown


@dataclass(frozen=True)
class Roles:
    """The options that say what the columns of a table are for, by name.

    `like`: the roles of the columns of a run that the data are to be put to; there `columns` are its data, in their order, and
    no other column need be there. A column that has no role there is not used. `levels`: the values of its categories.
    """

    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    labels: str | None = None
    rows_by: str | None = None
    weights: str | None = None
    series_by: str | None = None
    na: tuple[str | float, ...] = ()
    categories: tuple[str, ...] = ()
    levels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    series: bool = False  # of a run: whether its rows are series
    told: Sequence[Any] | None = None  # of a run: the labels that are codes in the last column of x
    like: Roles | None = None

    @classmethod
    def of(cls, given: dict[str, object], like: Roles | None = None) -> Roles:
        """The roles that options name. Raises `UsageError` for a value that names no column."""
        if extra := set(given) - set(ROLES):
            raise TypeError(f"load() got an unexpected keyword argument '{min(extra)}'")
        found: dict[str, Any] = {k: names(k, given.get(k)) for k in COLUMNS}
        found |= {k: one_name(k, given.get(k)) for k in COLUMN}
        return cls(**found, na=marks(given.get("na")), like=like)

    @classmethod
    def stored(cls, columns: Sequence[str], options: Mapping[str, Any]) -> Roles:
        """The roles of the columns of a run: its data, and the `options` of its data set."""
        levels, told = options.get("categories", {}), options.get(LEVELS)
        given = {k: options.get(k) for k in ("drop", *COLUMN, "na")}
        return replace(
            cls.of(given),
            columns=tuple(options.get("series_columns", columns if told is None else columns[:-1])),
            levels=levels,
            told=told,
            series="series" in options,
        )

    @property
    def any(self) -> bool:
        """Whether a column has a role, or a table has to be matched."""
        return self.like is not None or any(getattr(self, option) for option in (*COLUMNS, *COLUMN))


@dataclass
class _Chosen:
    """Places of columns."""

    x: list[int]
    labels: int | None = None
    rows_by: int | None = None
    weights: int | None = None
    series_by: int | None = None
    categories: Sequence[int] = ()
    used: dict[str, object] = field(default_factory=dict)


def choose(table: Table, roles: Roles) -> Raw:
    """The data that the table holds, with the columns in their roles.

    Raises `UsageError` for an unknown column, one in two roles, columns of text among the data, or a weight that is none.
    """
    marks = Marks.of(roles.na)
    chosen = _chosen(table, roles)
    x = _data(table, chosen, roles, marks)
    columns = tuple(table.names[j] for j in chosen.x)
    if roles.like is not None:
        columns = roles.like.columns or columns
    raw = Raw(
        x, table.what, table.source, columns, lines=table.lines, warnings=table.warnings, row_names=table.row_names
    )
    if table.raw is not None:
        raw.labels, raw.divisor, raw.peak = table.raw.labels, table.raw.divisor, table.raw.peak
    if chosen.labels is not None:
        raw.labels = _labels(table, chosen.labels, marks)
    if chosen.rows_by is not None:
        raw.row_names = table.text(chosen.rows_by)
        raw.warnings += _of_names(raw.row_names, table.names[chosen.rows_by], table.what)
    if chosen.weights is not None:
        raw.weights = _weights(table, chosen.weights, marks)
    raw.used = chosen.used
    if chosen.series_by is not None:
        raw.series = table.text(chosen.series_by)
    if raw.series is not None or (roles.like is not None and roles.like.series):
        raw.used["series"] = True
    return raw


# ---- which column is what


def _chosen(table: Table, roles: Roles) -> _Chosen:
    like, used = roles.like, dict[str, object]()
    single: dict[str, int | None] = {}
    for option in COLUMN:
        name = getattr(roles, option)
        if name is None and like is not None and getattr(like, option) in table.names:
            name = getattr(like, option)
        single[option] = None if name is None else _place(table, option, name)
        if name is not None:
            used[option] = name
    if single["weights"] is not None and single["weights"] in (single["labels"], single["rows_by"]):
        raise UsageError(f"Expected a column of its own for weights, got '{used['weights']}', which has another role.")
    apart = {j: option for option, j in single.items() if j is not None}
    lists = {option: _places(table, option, getattr(roles, option)) for option in COLUMNS}
    for option, js in lists.items():
        for j in js:
            other = apart.get(j) or ("drop" if option != "drop" and j in lists["drop"] else None)
            if other is not None:
                raise UsageError(
                    f"Expected one role for column '{table.names[j]}' of {table.what}, got {other} and {option}: name it once."
                )
        if js and option != "categories":
            used[option] = [table.names[j] for j in js]
    last = lists["covariates"]
    kept = lists["columns"] or [j for j in range(len(table.names)) if j not in apart and j not in lists["drop"]]
    x = [j for j in kept if j not in last] + last
    if like is not None:
        x = _matched(table, x, like)
    if not [j for j in x if j not in last]:
        raise UsageError(f"no column of {table.what} is left to fit; name fewer with {', '.join(used)}.")
    coded = lists["categories"] or [j for j in x if like is not None and table.names[j] in like.levels]
    if apart_from := [table.names[j] for j in coded if j not in x]:
        raise UsageError(f"Expected categories among the columns to fit, got '{apart_from[0]}', which is none of them.")
    return _Chosen(x, categories=coded, used=used, **single)


def _matched(table: Table, x: list[int], like: Roles) -> list[int]:
    """Of the columns x those of a run, in its order; those that it does not have are told, and not used."""
    if not like.columns:
        return x
    apart = {*like.drop, *(getattr(like, option) for option in COLUMN)} - {*like.columns}
    x = [j for j in x if table.names[j] not in apart]
    given = [table.names[j] for j in x]
    order = match(like.columns, given)
    by_name = table.has_names and like.columns != default_names(len(like.columns))
    extra = [name for name in given if name not in like.columns] if by_name else []
    if extra:
        listed = ", ".join(f"'{name}'" for name in extra[:5]) + ", …" * (len(extra) > 5)
        one = len(extra) == 1
        are = "is not one of the run's, and was" if one else "are none of the run's, and were"
        table.warnings.append(f"the column{'s' * (not one)} {listed} of {table.what} {are} not used.")
    return [x[i] for i in order]


def _place(table: Table, option: str, name: str) -> int:
    if table.names.count(name) != 1:
        if name in table.names:
            raise UsageError(
                f"Expected one column '{name}' in {table.what} for {option}, got {table.names.count(name)}."
            )
        raise unknown(f"column of {table.what}", name, table.names)
    return table.names.index(name)


def _places(table: Table, option: str, listed: Sequence[str]) -> list[int]:
    """The places of listed columns. A listed name that is no column is taken apart at its commas."""
    out: list[int] = []
    for given in listed:
        parts = [given] if given in table.names else [p.strip() for p in given.split(",") if p.strip()]
        for name in parts:
            if option == "drop" and name in table.names:
                out += [j for j, known in enumerate(table.names) if known == name]
            else:
                out.append(_place(table, option, name))
    if len(set(out)) < len(out):
        twice = next(table.names[j] for j in out if out.count(j) > 1)
        raise UsageError(f"Expected each column once in {option}, got '{twice}' twice.")
    return out


# ---- numbers


def _data(table: Table, chosen: _Chosen, roles: Roles, marks: Marks) -> np.ndarray:
    """The columns of data as numbers [n, D]."""
    if table.raw is not None and not marks.numbers and not chosen.categories:
        whole = chosen.x == list(range(len(table.names)))
        return table.raw.x if whole else table.raw.x[:, chosen.x]
    x, bad, marked = np.empty((table.height, len(chosen.x))), dict[int, list[int]](), 0
    for k, j in enumerate(chosen.x):
        found = _coded(table, j, chosen, roles, marks) if j in chosen.categories else numbers_of(table.cells[j], marks)
        x[:, k], marked = found.values, marked + found.marked
        if found.bad:
            bad[j] = found.bad
    if bad:
        raise _not_numbers(table, bad, chosen, roles)
    if roles.na and not marked:
        table.warnings.append(f"na={', '.join(map(str, roles.na))} matches no cell of {table.what}.")
    if roles.like is None and (table.lines is not None or table.has_names) and table.raw is None:
        told = (looks.of_numbers(table.names[j], x[:, k], table.what) for k, j in enumerate(chosen.x))
        table.warnings += [sentence for sentence in told if sentence and len(chosen.x) > 1]
    return x


def _coded(table: Table, j: int, chosen: _Chosen, roles: Roles, marks: Marks) -> Numbers:
    """A column of categories as 0, 1, …, in the order of their names (of numbers: by size), NaN for a missing one."""
    name, text = table.names[j], table.text(j)
    marked = np.array(
        [t.lower() in marks.words or (bool(marks.numbers) and as_float(t) in marks.numbers) for t in text]
    )
    gone = marked | np.array([is_missing(t) for t in text])
    known = None if roles.like is None else roles.like.levels.get(name)
    present = set(text[~gone].tolist())
    levels = (
        sorted(present, key=lambda t: (as_float(t) is None, as_float(t) or 0.0, t)) if known is None else list(known)
    )
    if new := sorted(present - set(levels)):
        row = int(np.flatnonzero(text == new[0])[0])
        listed = ", ".join(levels[:10]) + ", …" * (len(levels) > 10)
        raise UsageError(
            f"{table.what}, {table.place(row)}, column '{name}': Expected a category of the run ({listed}), got '{new[0]}'."
        )
    codes = {level: float(code) for code, level in enumerate(levels)}
    levels_used = chosen.used.setdefault("categories", {})
    assert isinstance(levels_used, dict)
    levels_used[name] = levels
    if known is None:
        listed = ", ".join(f"{level} {code:g}" for level, code in list(codes.items())[:10]) + ", …" * (len(codes) > 10)
        table.warnings.append(f"the categories of column '{name}' are numbers in x: {listed}.")
    return Numbers(
        np.array([np.nan if g else codes[t] for t, g in zip(text, gone, strict=True)]), [], int(marked.sum())
    )


def _not_numbers(table: Table, bad: dict[int, list[int]], chosen: _Chosen, roles: Roles) -> UsageError:
    """The error for cells that are no numbers: columns of text all at once, else the first cell."""
    text = {table.names[j]: table.cells[j] for j, at in bad.items() if looks.is_text(table.cells[j], len(at))}
    if text and roles.like is None:
        named = chosen.rows_by is not None or table.row_names is not None
        return UsageError(looks.said(text, table.what, chosen.labels is not None, named, table.has_names))
    j, row = min(((j, at[0]) for j, at in bad.items()), key=lambda found: (found[1], found[0]))
    name, cell, others = table.names[j], table.cells[j][row], len(bad[j]) - 1
    where = f"{table.what}, {table.place(row)}, column '{name}': {shown(cell)} is not a number"
    more = f" (nor {'are' if others > 1 else 'is'} {others} more of the column)" * bool(others)
    word = f", or read it as missing (--na {looks.quoted(as_text(cell)[:80])})" if isinstance(cell, str) else ""
    return UsageError(f"{where}{more}. Correct it, or drop the column (--drop {looks.quoted(name)}){word}.")


def _labels(table: Table, j: int, marks: Marks) -> np.ndarray:
    """Labels [n]: whole numbers where all are, numbers where all are (NaN for none), else text ("" for none)."""
    found = numbers_of(table.cells[j], marks)
    if found.bad:
        text = table.text(j)
        return np.where([t.lower() in marks.words for t in text], "", text)
    whole = bool((found.values % 1 == 0).all())  # NaN is not
    return found.values.astype(np.int64) if whole else found.values


def _weights(table: Table, j: int, marks: Marks) -> np.ndarray:
    """Weights [n]: finite, none below zero, and not all zero."""
    found = numbers_of(table.cells[j], marks)
    wrong = np.flatnonzero(~(np.isfinite(found.values) & (found.values >= 0)))
    if len(wrong):
        cell = table.cells[j][int(wrong[0])]
        where = f"{table.what}, {table.place(int(wrong[0]))}, column '{table.names[j]}'"
        raise UsageError(
            f"{where}: Expected a weight, a number that is zero or more, got {str(cell).strip()[:40] or 'nothing'}."
        )
    if not found.values.any():
        raise UsageError(f"{table.what}: Expected a weight above zero in column '{table.names[j]}', got zeros alone.")
    return found.values


def _of_names(row_names: np.ndarray, column: str, what: str) -> list[str]:
    """The warnings for names of rows that are missing, or used more than once."""
    empty, told = int((row_names == "").sum()), []
    twice = len(row_names) - empty - len(np.unique(row_names[row_names != ""]))
    if empty:
        told.append(f"{empty} of {len(row_names)} rows of {what} have no name in column '{column}'.")
    if twice:
        told.append(f"the names of rows in column '{column}' of {what} are not unique: {twice} of them repeat another.")
    return told
