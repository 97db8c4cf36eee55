"""What kind of column each is: categories, 0 and 1, counts or measurements."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo._errors import UsageError

Type = Literal["auto", "categorical", "bernoulli", "poisson", "normal"]
AUTO_CATEGORIES = 10  # of more different values, `auto` does not take a column for categories
MOST_CATEGORIES = 1000
OVERDISPERSED = 10  # times its mean: of a larger variance, `auto` does not take a column for counts


def types_of(x: Tensor, types: tuple[Type, ...]) -> tuple[list[str], list[Tensor]]:
    """Each column's site, and its different values in ascending order."""
    D = x.shape[1]
    if len(types) not in (1, D):
        raise UsageError(f"types expects one type, or one for each of the {D} columns, got {len(types)}.")
    kinds, levels = [], []
    for d, kind in enumerate(types * (D if len(types) == 1 else 1)):
        values = x[:, d][~x[:, d].isnan()]
        level = values.unique()
        levels.append(level)
        kind = _guess(values, level) if kind == "auto" else kind
        if wrong := _misfit(kind, level):
            raise UsageError(f"column {d} (counting from 0) does not fit type {kind}: it expects {wrong}.")
        kinds.append(f"{kind}_{len(level)}" if kind == "categorical" else kind)
    return kinds, levels


def _guess(values: Tensor, level: Tensor) -> Type:
    if set(level.tolist()) <= {0.0, 1.0}:
        return "bernoulli"
    if bool((level != level.round()).any()):
        return "normal"
    if len(level) <= AUTO_CATEGORIES and len(values) >= 5 * len(level):
        return "categorical"
    mean, variance = float(values.mean()), float(values.var(correction=0))
    error = mean * (2 / len(values)) ** 0.5  # of the variance of as many counts
    return "poisson" if level[0] >= 0 and mean - 3 * error <= variance <= OVERDISPERSED * mean else "normal"


def _misfit(kind: str, level: Tensor) -> str:
    """What the type expects of a column, where its values `level` are not that."""
    if kind in ("categorical", "normal") and len(level) < 2:
        what = f"only {float(level[0]):g}" if len(level) else "no value at all"
        return f"values that vary, and there is {what}. Leave the column out"
    if kind == "categorical" and len(level) > MOST_CATEGORIES:
        return f"at most {MOST_CATEGORIES} different values, and there are {len(level)}. Take another of the types"
    if kind == "bernoulli" and not set(level.tolist()) <= {0.0, 1.0}:
        return "the values 0 and 1. Others are of type categorical"
    if kind == "poisson" and not bool(((level == level.round()) & (level >= 0)).all()):
        return "whole numbers from 0 on. Others are of type normal"
    return ""


def told(kinds: list[str]) -> str:
    """Which type each column got, in a sentence."""
    parts = []
    for kind in dict.fromkeys(k.partition("_")[0] for k in kinds):
        mine = [str(d) for d, other in enumerate(kinds) if other.partition("_")[0] == kind]
        shown = ", ".join(mine if len(mine) <= 12 else [*mine[:10], "…", mine[-1]])
        parts.append(f"{kind} for column{'s' * (len(mine) > 1)} {shown}")
    return f"types=auto took {'; '.join(parts)} (counting from 0). Set types to overrule it."
