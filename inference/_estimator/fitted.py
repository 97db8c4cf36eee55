"""A fitted program asked about other rows: log p, the posterior of their latents, simulated rows, rows at given latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import guides
from inference._method.fit import Evidence, Fit
from inference._method.task import Task
from inference._numerics.coordinates import bijection
from inference._run import folder as _store
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.predictive import simulate
from inference._run.prepare import Prepared, find, method_module, prepare
from inference._run.result import Run
from zoo._data import blockwise, datasets
from zoo._data.datasets import Dataset
from zoo._errors import UsageError
from zoo._program.program import Program
from zoo._program.structure import Site, Structure
from zoo._program.trace import node_of


@dataclass(frozen=True)
class Posterior:
    """What the data say of the latents of each row."""

    probabilities: dict[str, np.ndarray]  # discrete site → [n, K]
    values: dict[str, np.ndarray]  # discrete site → its K values
    means: dict[str, np.ndarray]  # continuous site → [n, numbers]


def labelled(structure: Structure) -> list[Site]:
    """The discrete latents of which each row has one value: what rows can be labelled by."""
    sites = structure.discrete_locals if structure.is_exact else ()
    return [s for s in sites if s.inner == 1 and not s.event_shape and s.completes is None]


def located(structure: Structure) -> list[Site]:
    """The continuous latents of each row: where it lies."""
    return [s for s in structure.continuous_locals if s.completes is None]


def invertible(structure: Structure) -> bool:
    """Whether a row has an expectation given its latents: they are all continuous, and it is one draw."""
    latents = structure.local_latents
    plain = bool(latents) and list(latents) == located(structure) and structure.max_plate_nesting == 1
    return plain and len(structure.observed) == 1


@dataclass(frozen=True)
class Fitted:
    """A run, its program at θ, and what the program was made from."""

    run: Run
    prepared: Prepared

    @property
    def structure(self) -> Structure:
        return self.prepared.structure

    def point(self) -> dict[str, Tensor]:
        """The point values of the global latents."""
        return {s.name: torch.as_tensor(self.run.parameters[s.name]) for s in self.structure.global_latents}

    # ------------------------------------------------------------------------------------------------- other rows

    def task(self, x: np.ndarray) -> Task:
        """The program at its θ on the rows x [n, …], in the data's own units, NaN where unobserved."""
        data = self.run.dataset
        if data.center is not None and data.scale is not None:
            x = (x - data.center) / data.scale
        own, rows = self.run.task, torch.tensor(x, dtype=self.prepared.x.dtype)
        guide = None if getattr(self.run.guide, "by_row", False) else self.run.guide
        if self._has_no_new_holes(rows):
            program, structure = own.program, own.structure
        else:
            program, structure, guide = *self._read_again(rows), None
        task = Task(program, structure, rows, learn=False, guide=guide, globals=self.point())
        return replace(task, seed=own.seed, limit=own.limit, quiet=True, draws=200)

    def _has_no_new_holes(self, rows: Tensor) -> bool:
        """Whether missing entries ask nothing of the program that the run's own data did not."""
        if any(s.completes for s in self.structure.local_latents):
            return False  # as many latents as there are holes
        holes = rows.isnan().flatten(1).any(0)
        return not bool((holes & ~self.prepared.x.isnan().flatten(1).any(0)).any())

    def _read_again(self, rows: Tensor) -> tuple[Program, Structure]:
        """The program, read on rows whose holes are others, at the same θ."""
        old = self.prepared
        found = find(old.model) if isinstance(old.model, str) else old.model
        like, dtype = old.x if old.like is None else old.like, str(old.x.dtype).removeprefix("torch.")
        x = rows.double().numpy()
        new = prepare(found, x, old.options, [], like=like.numpy(), limit=old.limit, dtype=dtype)
        program = new.program()
        program.load_state_dict(self.run.task.program.state_dict())
        return program, new.structure

    # --------------------------------------------------------------------------------------------------- questions

    @entrance
    def evidence(self, x: np.ndarray, weights: np.ndarray | None = None) -> Evidence:
        """log p(x) in the data's own units, with its kind; given the point values of the global latents."""
        task = self.task(x)
        given = f"the point values of {', '.join(task.globals)}" if task.globals else ""
        with seeded(task.seed), in_words(self.run.model, "scoring"):
            if task.structure.is_exact:
                told = Evidence.from_per_datum(task.engine.per_datum(None, task.globals).numpy(), "exact", given=given)
                told = replace(told, kind="estimate", se=None) if task.engine.delicate else told
            else:
                claimed = self._inferred(task).claimed
                assert claimed is not None  # both methods claim one
                told = claimed
        if told.per_datum is None:
            raise UsageError(f"log p(x) of '{self.run.model}' is not a sum over rows.")
        rows, errors = told.per_datum - self._stretch(x), told.se_per_datum
        out = Evidence.from_per_datum(rows, told.kind, errors, given, weights)
        return out if errors is not None or told.kind == "exact" else replace(out, se=None)

    def _stretch(self, x: np.ndarray) -> np.ndarray | float:
        """Σ_j log s_j over the seen entries of each row, where the data were divided by s: the Jacobian of that."""
        scale = self.run.dataset.scale
        if scale is None:
            return 0.0
        return np.where(np.isnan(x), 0.0, np.log(np.broadcast_to(scale, x.shape))).reshape(len(x), -1).sum(1)

    @entrance
    def posterior(self, x: np.ndarray) -> Posterior:
        """What rows x say of their latents."""
        task = self.task(x)
        with seeded(task.seed), in_words(self.run.model, "the latents' posterior"):
            if not task.structure.is_exact:
                fit = self._inferred(task)
                means = fit.means or {s.name: fit.draws[s.name].mean(0) for s in located(task.structure)}
                return Posterior({}, {}, {n: _flat(v) for n, v in means.items()})
            engine, sites = task.engine, labelled(task.structure)
            found = engine.marginals(engine.responsibilities(None, task.globals), task.globals) if sites else {}
            values = {s.name: engine.values_of(s.name).numpy() for s in sites}
            probabilities = {s.name: found[s.name].numpy() for s in sites}
            summary = engine.summary(task.globals)[0] if located(task.structure) else {}
            return Posterior(probabilities, values, {s.name: _flat(summary[s.name]) for s in located(task.structure)})

    def _inferred(self, task: Task) -> Fit:
        """The posterior of rows that is not exact: by Laplace's approximation where θ was found by it, else by weighted
        draws from the run's guide."""
        found: Fit = method_module("laplace" if self.run.method == "laplace" else "importance").fit(task)
        return found

    @entrance
    @torch.no_grad()
    def sample(self, n: int, seed: int) -> np.ndarray:
        """n rows simulated from the program [n, …], in the data's own units; given the point of the global latents."""
        with seeded(seed), in_words(self.run.model, "simulating"):
            return self._in_units(simulate(self.run.at_theta(), n).astype(float))

    @entrance
    @torch.no_grad()
    def at_latents(self, z: np.ndarray) -> np.ndarray:
        """E[x | z] of each row of z [n, numbers], which holds the continuous latents one site after the other."""
        task, n, at, latents = self.run.task, len(z), 0, self.point()
        for site in located(self.structure):
            size = int(np.prod(site.event_shape, dtype=int)) * site.inner
            value = torch.as_tensor(z[:, at : at + size], dtype=task.x.dtype)
            latents[site.name] = self.structure.axes.as_program(value, site)
            at += size
        with in_words(self.run.model, "the rows at these latents"):
            trace = task.program.trace(None, size=n, latents=latents)
            fn = node_of(trace, self.structure.observed[0].name)["fn"]
            mean = fn.mean
        return self._in_units(mean.reshape(n, *self.prepared.x.shape[1:]).double().numpy())

    def _in_units(self, x: np.ndarray) -> np.ndarray:
        data = self.run.dataset
        return x if data.center is None or data.scale is None else x * data.scale + data.center

    # -------------------------------------------------------------------------------------------------- to be kept

    def frozen(self) -> Frozen:
        """The same as plain values, from which it can be made again."""
        run, old = self.run, self.prepared
        guide = run.fit.guide
        kept = replace(
            run,
            live=None,
            prepared=None,
            request=replace(run.request, model=None, data=None),
            fit=replace(run.fit, guide=None, global_gaussian=None),
        )
        state = {k: v.cpu().numpy() for k, v in _store.state_of(run.task.program, guide).items()}
        dtype = str(old.x.dtype).removeprefix("torch.")
        return Frozen(kept, old.model, dict(old.options), old.limit, dtype, state, getattr(guide, "recipe", None))


@dataclass(frozen=True)
class Frozen:
    """A fit as plain values: the request, the data, and the state of program and guide."""

    run: Run
    model: object
    options: dict[str, object]
    limit: int
    dtype: str
    state: dict[str, np.ndarray]
    guide: dict[str, object] | None

    @entrance
    def thawed(self) -> Fitted:
        """The fit, its program made again. A program in a file is executed."""
        made = prepare(self.model, self.run.dataset, self.options, [], limit=self.limit, dtype=self.dtype)
        state = {k: torch.as_tensor(v) for k, v in self.state.items()}
        task = Task(
            made.program(), made.structure, made.x, weights=made.weights, learn=False, limit=made.limit, quiet=True
        )
        _store.restore(task.program, state, "program.")
        point = {s.name: torch.as_tensor(self.run.parameters[s.name]) for s in made.structure.global_latents}
        task.globals, task.seed = point, self.run.seed
        guide = None
        if self.guide is not None:
            bijections = {n: bijection(s) for n, s in task.global_supports.items()}
            name, options = str(self.guide["name"]), self.guide["options"]
            assert isinstance(options, dict)
            structure = task.structure if guides.of_user(name) else task.structure.summed
            guide = guides.make(name, structure, task.x, task.global_start(), bijections, **options)
            _store.restore(guide, state, "guide.")
        task.guide = guide
        asked = replace(self.run.request, model=self.model, data=self.run.dataset)
        fit = replace(self.run.fit, guide=guide)
        return Fitted(replace(self.run, live=task, prepared=made, request=asked, fit=fit), made)


def dataset(x: np.ndarray, columns: tuple[str, ...], weights: np.ndarray | None, standardize: bool) -> Dataset:
    """The data of a fit, in units of their own standard deviations where asked for."""
    loaded = replace(datasets.load(x), name="X", columns=columns, weights=weights)
    if not standardize:
        return loaded
    rows, times = torch.as_tensor(loaded.x), None if weights is None else torch.as_tensor(weights)
    center = blockwise.center(rows, times)
    scale = blockwise.spread(rows, center, weights=times)
    options = {**loaded.options, "standardize": True}
    return replace(
        loaded, x=((rows - center) / scale).numpy(), center=center.numpy(), scale=scale.numpy(), options=options
    )


def _flat(value: Tensor | np.ndarray) -> np.ndarray:
    """[n, numbers]."""
    found = value if isinstance(value, np.ndarray) else value.numpy()
    return found.reshape(len(found), -1)
