"""Checks of the contract of every program, on the data: its plate, what it observes, shapes, supports, missing entries."""

from __future__ import annotations

from typing import cast

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.source import blame
from zoo._program.trace import DATA_PLATE, Node, is_latent, is_local, plates, sample_nodes, shape_fits, whole_shape


def check_contract(program: Program, nodes: list[Node], rows: int) -> int:
    """The batch dimension of the plate `data`. Raises `UsageError` where the program breaks the contract of its plates."""
    frames = [f for node in nodes for f in node["cond_indep_stack"] if f.name == DATA_PLATE]
    if not frames:
        names = sorted({f.name for node in nodes for f in node["cond_indep_stack"]})
        raise UsageError(
            f"Expected a plate named '{DATA_PLATE}' around the latents and observations of '{program.name}', got "
            f"{'the plates ' + ', '.join(names) if names else 'no plate'}. Write "
            f'`with pyro.plate("{DATA_PLATE}", len(x)):`.'
        )
    if wrong := {f.size for f in frames} - {rows}:
        raise UsageError(
            f"Expected the plate '{DATA_PLATE}' of '{program.name}' to have size len(x) = {rows}, got size {min(wrong)}. "
            f'Write `with pyro.plate("{DATA_PLATE}", len(x)):`.'
        )
    dims = sorted({f.dim for f in frames if f.dim is not None})
    if not dims or any(f.dim is None for f in frames):
        raise UsageError(
            f"the program '{program.name}' loops over the plate '{DATA_PLATE}' with `for`; write "
            f'`with pyro.plate("{DATA_PLATE}", len(x)):` instead, for all rows at once.'
        )
    if len(dims) > 1:
        raise UsageError(
            f"'{program.name}' opens the plate '{DATA_PLATE}' at several dimensions ({', '.join(map(str, dims))}); "
            "open it once, or always with the same `dim`."
        )
    for node in nodes:
        for frame in node["cond_indep_stack"]:
            if getattr(frame, "full_size", None) not in (None, frame.size):
                raise UsageError(
                    f"the plate '{frame.name}' of '{program.name}' subsamples {frame.size} of {frame.full_size}. Leave out "
                    "`subsample` and `subsample_size`: the method makes the batches."
                )
    if not any(node["is_observed"] and is_local(node) for node in nodes):
        raise UsageError(f"the program '{program.name}' observes nothing inside the plate '{DATA_PLATE}'; pass obs=x.")
    return dims[0]


def check_growth(program: Program, probe: Tensor, nodes: list[Node]) -> None:
    """Sites outside the plate `data` must not grow with the rows."""
    if len(probe) < 2:
        return
    fewer = {n["name"]: n for n in sample_nodes(program.trace(probe[:-1]))}
    for node in nodes:
        other = fewer.get(node["name"])
        if is_local(node) or other is None:
            continue
        shapes = [whole_shape(n["fn"]) for n in (node, other)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"site '{node['name']}' of '{program.name}' grows with the rows (shape {shapes[0]} for {len(probe)} rows), but "
                f"is outside the plate '{DATA_PLATE}'. Move it into that plate; no other plate over the rows is needed."
            )


def check_support(program: Program, x: Tensor, matrices: bool, trace: pyro.poutine.Trace | None = None) -> None:
    """Every observed value must lie in the support of its site; the first that does not is named.

    `matrices`: the program may make a matrix for each row. `trace`: of a run on all of x, if there was one.
    """
    size = len(x) if trace else _rows_at_once(x, matrices)
    for start in range(0, len(x), size):
        _check_rows(program, x[start : start + size], start, trace)


def _rows_at_once(x: Tensor, matrices: bool) -> int:
    return max(16, min(8192, 2**22 // max(1, x[0].numel() ** (2 if matrices else 1))))


def _check_rows(program: Program, x: Tensor, start: int, trace: pyro.poutine.Trace | None) -> None:
    if trace is None:
        with blame(program.name, x), pyro.poutine.block(), pyro.validation_enabled(False):
            trace = program.trace(x)
    latents = any(is_latent(node) for node in sample_nodes(trace))
    for node in sample_nodes(trace):
        if is_latent(node) or not isinstance(node["value"], Tensor):
            continue
        fn, value = node["fn"], node["value"]
        _check_shape(program, node)
        support = cast(constraints.Constraint, fn.support)
        ok = torch.as_tensor(support.check(value))
        dim = next((p.dim for p in plates(node) if p.name == DATA_PLATE), -1)
        if bool(ok.all()):
            _check_density(program, node, dim, start, x, latents)
            continue
        row = int((~ok).nonzero()[0, dim]) if ok.dim() else 0
        axis = dim - len(fn.event_shape)
        shown = value.select(axis, row).flatten()[:4].tolist() if value.dim() >= -axis else value.flatten()[:4].tolist()
        raise UsageError(
            f"the data lie outside the support of site '{node['name']}' of '{program.name}', which is "
            f"{plain(support)}: row {start + row} (counting from 0) holds {shown}{_made_of(x[row], shown)}."
        )


def _made_of(row: Tensor, shown: list[float]) -> str:
    """What x holds, where a site's values are computed from it, as the numbers of categories are from their codes."""
    given = row.flatten().tolist()
    return "" if given[: len(shown)] == shown else f", made of {given[:12]} in x"


def _check_density(program: Program, node: Node, dim: int, start: int, x: Tensor, latents: bool) -> None:
    """Refuse a density that is not a number, as where the program computes with a missing entry of x."""
    with blame(program.name), pyro.validation_enabled(False):
        bad = node["fn"].log_prob(node["value"]).isnan()
    if bad.any():
        row = int(bad.nonzero()[0, dim]) if bad.dim() else 0
        where = f"the density of site '{node['name']}' of '{program.name}' is not a number at row {start + row}"
        if bool(x[row].isnan().any()):
            raise UsageError(
                f"{where} (counting from 0). Does it compute with an entry of x that is missing there? Only what a site "
                "observes may be missing."
            )
        cause = "for some values of its latents" if latents else "at the values its parameters start from"
        raise UsageError(
            f"{where} (counting from 0) {cause}, though nothing is missing there; check what it is computed from."
        )


def _check_shape(program: Program, node: Node) -> None:
    """An observed value must have the shape of its distribution: broadcasting would pair every row with every other."""
    fn, value = node["fn"], node["value"]
    whole = whole_shape(fn)
    fits = shape_fits(node)
    if not fits:
        raise UsageError(
            f"site '{node['name']}' of '{program.name}' expects values of its distribution's shape {whole}, got shape "
            f"{tuple(value.shape)}. For a table, put the columns into the event: `.to_event(1)`."
        )


def plain(constraint: constraints.Constraint) -> str:
    """A support or constraint in words."""
    if isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    bounds = {k: v for k, v in vars(constraint).items() if k in ("lower_bound", "upper_bound")}
    if any(isinstance(v, Tensor) for v in bounds.values()):
        shown = ", ".join(f"{k.replace('_', '')}={_bound(v)}" for k, v in bounds.items())
        return f"{type(constraint).__name__.replace('_', '')}({shown})"
    return str(constraint).removesuffix("()").replace("_", "")


def _bound(value: object) -> str:
    """A bound that is the same for all as a number."""
    if not isinstance(value, Tensor):
        return str(value)
    first = value.reshape(-1)[0]
    return f"{float(first):g}" if bool((value == first).all()) else "varying"
