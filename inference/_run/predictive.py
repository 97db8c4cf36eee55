"""What ArviZ wants of a fit besides its draws: log p(x_i | draw of θ), and data simulated at draws.

A fit whose θ is one point has no pointwise log-likelihood here. ArviZ's `loo` would take it for the training likelihood of
every draw and find nothing to correct: such a figure always prefers the larger model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyro
import torch
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact.reading import is_same
from inference._loadings.affine import places_of
from inference._method.fit import Arrays, Fit
from inference._method.task import Task
from inference._numerics.slices import slices
from inference._run._own.disagreement import tolerance
from zoo._errors import Refusal, UsageError
from zoo._program.source import blame
from zoo._program.trace import drawn_in_full, is_masked, is_one, node_of, outside_log_prob, sample_nodes

DRAW_NUMBERS = 4_000_000  # numbers in the draws of one site
MOST_SIMULATED = 50  # data sets
ROWS = 16_384  # that are simulated at once: a program may hold far more numbers for a row than x does
LOOKED_AT = 20  # rows, to see what observes and returns x
UNKNOWN_ROWS = (
    "'{}' returns no rows of x when it simulates: let it return x, [n, …] in the order of the columns of the data."
)
WHOLE = "x"  # the name of all data, in `observed_data` and `posterior_predictive`


@dataclass(frozen=True)
class Predicted:
    """Observed and simulated data at a fit's draws, and their log-likelihood."""

    observed: Arrays = field(default_factory=dict)  # observed site -> its part of x [n, ...]
    simulated: Arrays = field(default_factory=dict)  # the same, and "x" -> simulated [draws, n, ...]
    log_likelihood: np.ndarray | None = None  # [draws, n] log p(x_i | θ draw), only where θ has draws


@torch.no_grad()
def predict(task: Task, fit: Fit, simulated: bool = True) -> tuple[Fit, Predicted]:
    """The pointwise log-likelihood where θ or the global latents have draws, and posterior predictive data.

    What cannot be computed is named in the warnings or notes of the returned fit. Without `simulated` no data are simulated.
    """
    at = _Draws(task, fit)
    data = _Data(task)
    found = Predicted(data.observed())
    if at.theta_varies and task.structure.is_exact:
        try:
            rows = [task.engine.per_datum(at.theta(d), at.globals(d)).numpy() for d in range(at.count)]
            found = replace(found, log_likelihood=np.stack(rows))
        except (ValueError, torch.linalg.LinAlgError):
            warning = (
                "the program has zero density at some draws of θ: the data hardly identify θ, and its standard errors "
                "mean little. No pointwise log-likelihood and no posterior predictive data are given."
            )
            return fit.with_notes([warning]), found
    if not at.count:
        return fit, found
    if not simulated:
        return fit.with_notes([], {"posterior_predictive": "left out: not asked for"}), found
    if task.x.numel() > DRAW_NUMBERS:
        left_out = f"left out: the data are over {DRAW_NUMBERS:,} numbers"
        return fit.with_notes([], {"posterior_predictive": left_out}), found
    width = task.x.numel() + sum(v.size for v in found.observed.values())
    count = max(1, min(at.count, MOST_SIMULATED, DRAW_NUMBERS // width))
    try:
        drawn = data.simulations(at, count)
    except UsageError as error:
        why = str(error) if data.given is not None else f"model(None, size=n) does not simulate ({error})"
        return fit.with_notes([f"no posterior predictive data: {why.rstrip('.')}."]), found
    return fit, replace(found, simulated=drawn)


class Given(pyro.poutine.messenger.Messenger):
    """Draws what the program observes, given its covariates: the columns of x [n, D] that it does not observe."""

    def __init__(self, observed: set[str], covariates: np.ndarray) -> None:
        super().__init__()
        self._observed, self._covariates = observed, covariates

    def alone(self, x: Tensor) -> Tensor:
        """Rows of covariates, all else missing: of a program that computes with it too, the draws would be no numbers."""
        out = torch.full_like(x, torch.nan)
        out[:, self._covariates] = x[:, self._covariates]
        return out

    def _pyro_sample(self, msg: Message[..., object]) -> None:
        if msg["name"] in self._observed:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@torch.no_grad()
def simulate(task: Task, n: int) -> np.ndarray:
    """n new rows [n, …] from the program at its θ and the task's globals, in the units of the task's data.

    Raises `UsageError` where the program does not simulate, or its rows are not known from what it returns.
    """
    at, data = _Draws(task, Fit({k: v.numpy() for k, v in task.globals.items()}, None)), _Data(task)
    parts = []
    for rows in slices(n, ROWS):
        found = data.rows(at.simulate(slice(0, 1), rows, None), rows.stop - rows.start)
        if found is None:
            raise UsageError(UNKNOWN_ROWS.format(task.program.name))
        parts.append(found.numpy())
    return np.concatenate(parts) if parts else np.zeros((0, *task.x.shape[1:]))


@torch.no_grad()
def simulate_jointly(task: Task, n: int | None = None) -> tuple[np.ndarray, Arrays]:
    """n rows drawn by the program at its θ together with all latents, the global ones too: exact draws of their posterior.

    Without n as many rows as the task has, with the covariates and the holes of its data. Returns x [n, …], and latent site →
    its value, as a fit holds one draw.

    Raises `UsageError` where the program does not simulate, or its rows are not known from what it returns, and `Refusal` where
    what it simulates is not drawn from the density that it has on data.
    """
    data, program, structure, holes = _Data(task), task.program, task.structure, n is None
    n = len(task.x) if n is None else n
    if data.given is not None and not holes:
        raise Refusal(f"'{program.name}' draws its rows given covariates, which new rows do not have.")
    with blame(program.name), data.given or contextlib.nullcontext():
        x = None if data.given is None else data.given.alone(task.x)
        trace = program.trace(x, size=n, raw=x is not None)
    found = data.rows(trace, n) if data.given is None else None
    found = data.by_columns(trace, n) if found is None else found
    if found is None:
        raise UsageError(UNKNOWN_ROWS.format(program.name))
    if not bool(found.isfinite().all()):
        raise UsageError(
            f"'{program.name}' simulates numbers that are not finite: its priors are too wide, or it fails."
        )
    _check_density(task, trace, found)
    latents = {}
    for site in (*structure.global_latents, *(s for s in structure.local_latents if s.completes is None)):
        value = drawn_in_full(node_of(trace, site.name))
        if site.scope == "local":
            value = structure.axes.by_datum(structure.axes.expand(value, site, n, 1), site)[0]
        latents[site.name] = value.numpy()
    return (found.masked_fill(task.x.isnan(), torch.nan) if holes else found).numpy(), latents


def _check_density(task: Task, trace: Trace, x: Tensor) -> None:
    """Raise `Refusal` where what was simulated is not drawn from the density that the program has on data."""
    name, sites = task.program.name, [s for s in task.structure.sites if s.completes is None]
    for node in sample_nodes(trace):
        if node["is_observed"] or not is_one(node["scale"]) or is_masked(node):
            raise Refusal(
                f"'{name}' weighs its density at '{node['name']}' (a factor, scale, mask, or obs= with a value of its own), "
                "and what it simulates is not drawn from that density."
            )
    if missing := [s.name for s in sites if s.name not in trace.nodes]:
        raise Refusal(f"'{name}' has no site '{missing[0]}' when it simulates. Write one program for both.")
    latents = {s.name: node_of(trace, s.name)["value"] for s in sites if s.role == "latent"}
    again, near = task.program.trace(x, latents=latents), tolerance(x.dtype)
    for site in sites:
        one, other = (float(outside_log_prob(t, [site.name])) for t in (trace, again))
        if not np.isclose(one, other, rtol=near, atol=near):
            raise Refusal(
                f"'{name}' simulates '{site.name}' from another density than it has on data: log p is {one:.6g} where it "
                f"was drawn, and {other:.6g} given those data. Write one program for both."
            )


class _Draws:
    """A fit's draws, as a program takes them; what has no draws stays at its point value."""

    def __init__(self, task: Task, fit: Fit) -> None:
        self._task = task
        self._draws = {k: torch.as_tensor(v) for k, v in fit.draws.items()}
        self._point = {k: torch.as_tensor(v) for k, v in fit.parameters.items()}
        self._theta = [k for k in self._draws if k in task.program.constraints]
        self._globals = [s.name for s in task.structure.global_latents]
        self.count = len(next(iter(self._draws.values()))) if self._draws else 0
        # a θ that is kept may be no mode of these data: its draws then say nothing of how sure they are
        globals = [k for k in self._globals if k in self._draws]
        self.theta_varies = self._vary([*(self._theta if task.learn else ()), *globals])
        self.rows_vary_alone = not self._vary([*self._theta, *globals])  # all draws have the same θ and globals

    def _vary(self, names: Sequence[str]) -> bool:
        return any(bool((self._draws[k] != self._draws[k][:1]).any()) for k in names)

    def theta(self, d: int) -> dict[str, Tensor]:
        return {k: self._draws[k][d] for k in self._theta}

    def globals(self, d: int) -> dict[str, Tensor]:
        return {k: self._draws[k][d] if k in self._draws else self._point[k] for k in self._globals}

    def simulate(self, draws: slice, rows: slice, given: Given | None) -> Trace:
        """The program's trace of that many rows, at each of these draws, of one θ; under those rows' covariates, if any."""
        d, D, program = draws.start, draws.stop - draws.start, self._task.program
        latents = self.globals(d) | self.locals(draws, rows)
        with blame(program.name):
            if given is None:
                size = D * (rows.stop - rows.start)
                return program.trace(None, size=size, parameters=self.theta(d), latents=latents)
            with given:
                x = given.alone(self._task.x[rows]).repeat(D, 1)
                return program.trace(x, parameters=self.theta(d), latents=latents, raw=True)

    def locals(self, draws: slice, rows: slice) -> dict[str, Tensor]:
        """The draws of the local latents of these rows, one draw below the other."""
        structure = self._task.structure
        sites = [s for s in structure.local_latents if s.name in self._draws]
        return {s.name: structure.axes.as_program(self._draws[s.name][draws, rows].flatten(0, 1), s) for s in sites}


class _Data:
    """What the program's observed sites are of x, and whether it returns x: seen on a few rows of the data."""

    def __init__(self, task: Task) -> None:
        self._task, observed = task, task.structure.observed
        x = task.x[:LOOKED_AT]
        with torch.random.fork_rng(devices=[]):
            trace = task.program.trace(x, raw=True)
        sites = _values(task, trace, len(x))
        self.one_site = len(observed) == 1 and _same(sites[observed[0].name], x)  # which observes x itself
        value = node_of(trace, observed[0].name)["value"]
        self.shared = self.one_site and isinstance(value, Tensor) and is_same(value, x)  # without a copy
        self.returned = _same(node_of(trace, "_RETURN")["value"], x)
        local = {k: v.reshape(len(x), -1) for k, v in sites.items() if x.dim() == 2 and v.shape[:1] == x.shape[:1]}
        self.columns = dict(zip(local, places_of(list(local.values()), x), strict=True))
        self.given = self._covariates(x, sites)
        self.outside = {
            _name(s.name) for s in observed if s.scope != "local"
        }  # the plate `data`: the same for all rows

    def _covariates(self, x: Tensor, sites: dict[str, Tensor]) -> Given | None:
        """How to draw data given the columns that no site observes; None where all of x is observed."""
        if x.dim() != 2 or self.one_site:
            return None
        left = np.setdiff1d(np.arange(x.shape[1]), np.concatenate([[-1], *self.columns.values()]))
        return Given(set(sites), left) if len(left) and len(left) < x.shape[1] else None

    def observed(self) -> dict[str, np.ndarray]:
        """Each observed site's own part of the data, NaN where unobserved; none for a single site that is `x` itself."""
        if self.one_site and self._task.structure.observed[0].name == WHOLE:
            return {}
        if self.shared:
            return {self._task.structure.observed[0].name: self._task.x.numpy()}
        with torch.random.fork_rng(devices=[]):
            values = _values(self._task, self._task.program.trace(self._task.x, raw=True), len(self._task.x))
        return {_name(k): v.numpy() for k, v in values.items()}

    def simulations(self, at: _Draws, count: int) -> Arrays:
        """So many data sets, one at each draw: what `_simulated` gives, [count, n, …]; several in one run where they can be."""
        each = max(1, ROWS // len(self._task.x)) if at.rows_vary_alone and not self.outside else 1
        blocks = [self._block(at, draws) for draws in slices(count, each)]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _block(self, at: _Draws, draws: slice) -> Arrays:
        """The data sets at these draws, of one θ, [draws, n, …], some rows at a time."""
        D, N = draws.stop - draws.start, len(self._task.x)
        parts = []
        for rows in slices(N, ROWS):
            found = self._simulated(at.simulate(draws, rows, self.given), D * (rows.stop - rows.start))
            parts.append(
                {k: v.reshape(D, -1, *v.shape[1:]) if k not in self.outside else v[None] for k, v in found.items()}
            )
        first = parts[0]
        return {k: v if k in self.outside else np.concatenate([p[k] for p in parts], 1) for k, v in first.items()}

    def _simulated(self, trace: Trace, n: int) -> Arrays:
        """Each observed site of a simulation of n rows [n, …] under its own name, and all of a row together as `x`."""
        sites, whole = _values(self._task, trace, n), self.rows(trace, n)
        out = {} if self.one_site and WHOLE in sites else {_name(k): v for k, v in sites.items()}
        if whole is not None:
            out[WHOLE] = whole
        if self.given is not None and any(bool(v.isnan().any()) for v in out.values()):
            raise UsageError("what it observes is computed from other entries of x besides the covariates")
        return {k: v.numpy() for k, v in out.items()}

    def rows(self, trace: Trace, n: int) -> Tensor | None:
        """All of each row of a simulation, [n, …] as in x; None where it is not known."""
        whole = None
        if self.one_site:
            whole = next(iter(_values(self._task, trace, n).values()))
        elif self.returned:
            whole = node_of(trace, "_RETURN")["value"]
        row = self._task.x.shape[1:]
        if not isinstance(whole, Tensor) or len(whole) != n or whole.numel() != n * row.numel():
            return None
        return whole.detach().to(self._task.x.dtype).reshape(n, *row)

    def by_columns(self, trace: Trace, n: int) -> Tensor | None:
        """All of each row of a simulation, [n, …], each site's values in the columns that it observes, beside covariates of x.

        None where those are not known, or two of them are equal in the rows that were looked at and may be exchanged.
        """
        x, sites = self._task.x, _values(self._task, trace, n)
        observed = np.concatenate([[], *self.columns.values()]).astype(int)
        looked = x[:LOOKED_AT][:, observed]
        if not len(observed) or observed.min() < 0 or len(torch.unique(looked.nan_to_num(), dim=1).mT) < len(observed):
            return None
        out = x.clone() if self.given is not None else x.new_full((n, *x.shape[1:]), torch.nan)
        for name, columns in self.columns.items():
            out[:, columns] = sites[name].reshape(n, -1).to(x.dtype)
        return out


def _same(value: object, x: Tensor) -> bool:
    """Whether a value is x [n, …], NaN included; of scalars [n] as well, where x is [n, 1]."""
    if not isinstance(value, Tensor) or value.numel() != x.numel() or len(value) != len(x):
        return False
    return bool(torch.isclose(value.detach().to(x.dtype).reshape(x.shape), x, rtol=1e-5, equal_nan=True).all())


def _name(site: str) -> str:
    """`x` means all data: a site of that name that observes only a part gets another name."""
    return "x_site" if site == WHOLE else site


def _values(task: Task, trace: Trace, n: int) -> dict[str, Tensor]:
    """Observed site → its value in a trace of n rows, [n, inner plates, event]; as it is outside the plate `data`."""
    structure, out = task.structure, {}
    for site in structure.observed:
        if site.name not in trace.nodes:
            raise UsageError(f"there is no site '{site.name}' without data")
        value = torch.as_tensor(node_of(trace, site.name)["value"]).detach()
        if site.scope == "local":
            try:
                full = structure.axes.expand(value, site, n, 1)
            except RuntimeError:
                shape = (*(size for size in structure.axes.sizes(site, n) if size != 1), *site.event_shape)
                raise UsageError(
                    f"site '{site.name}' has values of shape {tuple(value.shape)}, expected {shape}"
                ) from None
            value = structure.axes.by_datum(full, site)[0]
        out[site.name] = value
    return out
