"""What a fit says of components that are empty or collapsed, and what to do about them."""

from __future__ import annotations

from torch import Tensor

from inference._method.task import Task
from zoo._data import blockwise

MOST_NAMED = 3  # components, or columns, in a sentence: more are counted


def component(task: Task, assignment: int) -> str:
    """What to call an assignment of the discrete latents."""
    return f"component {task.engine.label(assignment)}" if task.structure.assignments > 1 else "the one component"


def remedy(task: Task, many: bool = False) -> str:
    """What to do where a variance goes to 0."""
    if same := blockwise.constant_columns(task.x):
        shown = ", ".join(map(str, same[:MOST_NAMED])) + " and others" * (len(same) > MOST_NAMED)
        return f"Leave out what is constant or never observed: column{'s' * (len(same) > 1)} {shown} (counting from 0)"
    return "Ask for fewer components or priors" if many else "Leave out columns that are functions of others"


def empty(task: Task, empty: list[int], counts: Tensor) -> list[str]:
    """A warning for each empty component, or one for all where there are many."""
    N, states = len(task.x), task.structure.assignments
    if len(empty) > MOST_NAMED:
        return [f"{len(empty):,} of {states:,} components are empty: each holds less than one of {N} rows."]
    return [f"{component(task, a)} is empty: it holds {float(counts[a]):.2g} of {N} rows." for a in empty]
