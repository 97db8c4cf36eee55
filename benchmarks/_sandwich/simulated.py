"""Data that a program simulates, with the latents that made them: exact draws of the posterior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._method.task import Task
from inference._run._own.disagreement import tolerance
from zoo._errors import Refusal
from zoo._program.describe import describe
from zoo._program.source import blame
from zoo._program.structure import Site
from zoo._program.trace import drawn_in_full, is_local, is_masked, is_plain, local_log_prob, node_of, sample_nodes


@dataclass(frozen=True)
class Simulated:
    """A task on simulated data, and the latents that made them: site → value, [n, inner plates, event]."""

    task: Task
    latents: dict[str, Tensor]

    def of(self, site: Site, chains: int, rows: slice = slice(None)) -> Tensor:
        """A latent's value in some rows as often as there are chains, [chains, plates with those rows among them, event]."""
        axes, value = self.task.structure.axes, self.latents[site.name][rows]
        return axes.expand(axes.as_program(value, site), site, len(value), chains)


@torch.no_grad()
def simulate(task: Task, n: int) -> Simulated:
    """n rows from the program at the θ of a task.

    Raises `Refusal` where what it simulates is not drawn from its own density p(x, z): then its latents are no draws of the
    posterior.
    """
    program, name = task.program, task.program.name
    if program.completes:
        raise Refusal(
            f"'{name}' was built on data whose missing entries are latents; a sandwich needs data without missing entries."
        )
    with blame(name):
        drawn = program.trace(None, size=n)
    _check_drawn(drawn, name)
    x, latents, axes = _rows(drawn, task, n), {}, task.structure.axes
    for site in task.structure.local_latents:
        if site.name not in drawn.nodes:
            raise _other(name)
        value = axes.expand(drawn_in_full(node_of(drawn, site.name)), site, n, 1)
        latents[site.name] = axes.by_datum(value, site)[0]
    found = Simulated(replace(task, structure=describe(program, x, task.limit), x=x, weights=None), latents)
    _check_density(found, drawn)
    return found


def _check_drawn(drawn: Trace, name: str) -> None:
    for node in sample_nodes(drawn):
        if node["is_observed"]:
            raise Refusal(
                f"'{name}' has a density at '{node['name']}' that nothing is drawn from when it simulates (pyro.factor, or "
                "obs= with a value of its own), so that simulated latents are no draws of the posterior."
            )
        if not is_plain(node) or is_masked(node):
            raise Refusal(
                f"'{name}' scales or masks the density of '{node['name']}', so that simulated latents are no draws of the "
                "posterior. Take the scale or mask off."
            )
        if not is_local(node):
            raise Refusal(
                f"a sandwich looks at one row at a time, and '{node['name']}' of '{name}' is outside the plate 'data'"
            )


def _rows(drawn: Trace, task: Task, n: int) -> Tensor:
    """x [n, …]: what the program returns, or else the value of the one site that it observes."""
    row = task.x.shape[1:]
    observed = [s.name for s in task.structure.observed]
    found = [drawn.nodes["_RETURN"]["value"]]
    found += [drawn.nodes[s]["value"] for s in observed if len(observed) == 1 and s in drawn.nodes]
    for value in found:
        if isinstance(value, Tensor) and value.dim() and len(value) == n and value.numel() == n * row.numel():
            x = value.detach().to(task.x.dtype).reshape(n, *row)
            if bool(x.isfinite().all()):
                return x
    raise Refusal(
        f"'{task.program.name}' returns no rows of x when it simulates: let it return x, [n, …] in the order of the columns of "
        "the data, without missing entries."
    )


def _check_density(found: Simulated, drawn: Trace) -> None:
    """The density that x and z were drawn from is the one that is evaluated at them."""
    task, n = found.task, len(found.task.x)
    latents = {s.name: found.of(s, 1)[0] for s in task.structure.local_latents}
    with blame(task.program.name), pyro.validation_enabled(False):
        given = task.program.trace(task.x, latents=latents)
    one, other = (local_log_prob(t, task.structure.data_dim, n).double().reshape(-1) for t in (drawn, given))
    near = tolerance(task.x.dtype)
    if len(one) != n or len(other) != n or not bool(torch.isclose(one, other, rtol=near, atol=near).all()):
        raise _other(task.program.name)


def _other(name: str) -> Refusal:
    return Refusal(
        f"what '{name}' simulates is not drawn from the density that it has at data: its latents, or log p(x, z) at what it "
        "drew, are others. A sandwich needs the same program with and without data."
    )
