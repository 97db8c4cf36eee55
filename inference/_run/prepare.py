"""A program on data, checked: names, options, the data and the program's contract, before any work."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter
from types import ModuleType
from typing import Any

import numpy as np
import torch

from inference._loadings.covariance import check_needs_no_rows
from inference._method.task import keeps_theta
from inference._numerics import ranks
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from zoo import _options, _registry
from zoo._data import blockwise, datasets, mapped
from zoo._errors import Refusal, UsageError, unknown
from zoo._program import source
from zoo._program.describe import describe
from zoo._program.load import build, option_schema, resolve
from zoo._program.program import Program
from zoo._program.structure import ENUMERATION_LIMIT, Structure

DTYPES = {"float64": torch.float64, "float32": torch.float32}
DEVICES = ("auto", "cpu", "cuda")
MOST_DRAWS = 1_000_000  # of an imputation
LARGEST_SEED = 4_000_000_000
FLOAT32_SQUARES = 1e18  # the largest number that float32 can square, and add up
MOST_COPIED = 2**22  # numbers, of rows copied by their weights for a model to be built on
ONCE_EACH = (
    "the model was built on each row once, because its weights are no whole numbers or too large: priors that it takes from "
    "the data are not weighted."
)
LARGE_NUMBERS = 1_000_000  # of data, from which what is not exact, or a network, runs in float32 unless told otherwise


@dataclass(frozen=True)
class Prepared:
    """A program on data, with its structure: what every method starts from."""

    model: object  # as given: a name, `file.py:callable`, or the callable
    target: Callable[..., object]  # the callable: a file is executed once, and its callable kept
    name: str
    data: datasets.Dataset
    x: torch.Tensor
    options: dict[str, object]  # the model's, as given
    structure: Structure
    limit: int  # of enumeration
    intensities: torch.Tensor | None = None  # of which x is one binarisation, where training is to draw its own
    like: torch.Tensor | None = None  # the data that the model is built on, where x is other data than those of its θ
    source: dict[str, str] | None = None  # the fingerprint of the program's text
    weights: torch.Tensor | None = None  # [n] how many times each row counts; None: once each

    def program(self, seed: int = 0) -> Program:
        """A program of its own for each run, so that no two share a parameter; `seed` for what it draws in building."""
        program = build(self.target, self.name, self.x, self.options, seed, self.like)
        program.source = self.source
        return program


@dataclass(frozen=True)
class Found:
    """A program that was looked up: as it was given, the callable, and its name."""

    model: object
    target: Callable[..., object]
    name: str


@entrance
def find(model: object, seed: int = 0) -> Found:
    """The callable that `model` names. A Python file is executed, with all random state set from `seed`."""
    if isinstance(model, Found):
        return model
    with seeded(seed):
        return Found(model, *resolve(model))


@entrance
def prepare(
    model: object,
    data: object,
    options: Mapping[str, object],
    methods: list[str],
    *,
    seed: int = 0,
    limit: int = ENUMERATION_LIMIT,
    dtype: str = "auto",
    like: np.ndarray | None = None,
    **preparation: Any,
) -> Prepared:
    """Check everything that can be checked before any work: names, options, the data, the program's contract.

    `model`: what names a program, or what `find` found.
    `like`: the data of the run whose θ the program will hold, where they are not `data`: the model is built on them.
    """
    check_seed(seed)
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or not 1 <= limit <= _options.LARGEST:
        raise UsageError(f"Expected a whole number of 1 or more for limit, got {limit!r:.40}.")
    if dtype not in ("auto", *DTYPES):
        raise unknown("dtype", dtype, ("auto", *DTYPES))
    modules = [method_module(name) for name in methods]
    found = find(model, int(seed))
    target, name = found.target, found.name
    mine = _split(options, option_schema(target), modules, methods, name)
    if preparation.get("covariates"):
        _check_takes_covariates(target, name)
    told = _reads_labels(target, mine)
    loaded = data if isinstance(data, datasets.Dataset) else datasets.load(data, seed=seed, told=told, **preparation)
    mine |= _counted_covariates(loaded, mine)
    x, intensities = torch.as_tensor(loaded.x, dtype=DTYPES.get(dtype, torch.float64)), None
    if x.dtype == torch.float64 and not mapped.is_private(loaded.x):
        x = x.clone()  # the caller's own array stays his; in memory that torch aligned, else the last bits may differ
    if loaded.options.get("binarize") == "dynamic":
        x, intensities = _one_binarisation(x, seed), x
    elif x.dtype == torch.float64:  # one copy of the data is enough
        loaded = replace(loaded, x=x.numpy())
    if x.dtype == torch.float32 and blockwise.any_above(x, FLOAT32_SQUARES):
        raise UsageError("the data hold numbers above 1e18, whose squares float32 cannot hold; take dtype=float64.")
    weights = None if loaded.weights is None else _weights(loaded.weights, len(x))
    built_on = None if like is None else torch.as_tensor(like, dtype=x.dtype)
    if built_on is None and weights is not None:
        built_on = counted(x, weights)
    program = build(target, name, x, mine, like=built_on)
    with in_words(name, "reading the program"):
        structure = describe(program, x, limit)
    if not loaded.has_rows:
        check_needs_no_rows(program, structure, x)
    network = program.has_networks and not any(
        s.role == "latent" for s in structure.sites
    )  # exact, and trained all the same
    large = dtype == "auto" and (not structure.is_exact or network) and x.numel() > LARGE_NUMBERS
    if large and not blockwise.any_above(x, FLOAT32_SQUARES):
        x, intensities = x.float(), None if intensities is None else intensities.float()
    text = source.fingerprint(target)
    if weights is not None and built_on is not None:
        if structure.global_latents and like is None and len(built_on) != float(weights.sum()):
            loaded = replace(loaded, warnings=(*loaded.warnings, ONCE_EACH))
        weights, built_on = weights.to(x.dtype), built_on.to(x.dtype)
    return Prepared(found.model, target, name, loaded, x, mine, structure, limit, intensities, built_on, text, weights)


def _weights(given: np.ndarray, n: int) -> torch.Tensor:
    """The rows' weights [n], float64. Raises `UsageError` unless they are finite, none below 0 and some above."""
    weights = np.array(given, dtype=np.float64)
    if weights.shape != (n,):
        raise UsageError(f"Expected a weight for each of {n} rows, got shape {weights.shape}.")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise UsageError(f"Expected weights of 0 or more, got {weights[row]:g} at row {row} (counting from 0).")
    if not weights.any():
        raise UsageError("Expected a weight above 0 for at least one row, got 0 for all.")
    return torch.as_tensor(weights)


def counted(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The data that a model is built on, whose priors may be taken from them: each row as often as its weight says.

    Where weights are no whole numbers, or the copies would be too many, each row with a weight above 0 once.
    """
    times = weights.round().long()
    few = float(weights.sum()) * x[:1].numel() <= MOST_COPIED
    if not (few and torch.equal(times.to(weights), weights)):
        times = (weights > 0).long()
    return x.repeat_interleave(times, 0)


def _check_takes_covariates(target: Callable[..., object], name: str) -> None:
    """Raise `UsageError` for a model without covariates."""
    if "covariates" in option_schema(target):
        return
    able = [m for m in _registry.models() if "covariates" in option_schema(resolve(m)[0])]
    hint = f" Models that do: {', '.join(able)}." if able else ""
    raise UsageError(f"the model '{name}' takes no covariates: it has no such option.{hint}")


def _reads_labels(target: Callable[..., object], options: Mapping[str, object]) -> bool:
    """Whether the model reads a label in the last column of x: if the option that it calls `LABELS` is given, and not 0."""
    return str(options.get(getattr(target, "LABELS", ""), 0)) != "0"


def _counted_covariates(loaded: datasets.Dataset, options: Mapping[str, object]) -> dict[str, object]:
    """The model's option `covariates`, their number, where columns were named as such."""
    if not (named := loaded.options.get("covariates")):
        return {}
    if str(options.get("covariates", len(named))) != str(len(named)):
        raise UsageError(f"Expected covariates={len(named)}, the number of columns named, got {options['covariates']}.")
    return {"covariates": len(named)}


def check_draws(draws: object) -> None:
    """Raise `UsageError` unless `draws` is how many joint draws of missing entries can be written."""
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or not 1 <= draws <= MOST_DRAWS:
        raise UsageError(f"Expected a whole number from 1 to {MOST_DRAWS:,} for draws, got {draws!r:.40}.")


def check_seed(seed: object) -> None:
    """Raise `UsageError` unless `seed` is one that every random generator takes, and restarts can count on from."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"Expected a whole number from 0 to {LARGEST_SEED:,} for seed, got {seed!r:.40}.")


def plain(value: object) -> Any:
    """NumPy's and torch's single numbers as Python's, so that what was asked for can be written down; all else as it is."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return value.item() if isinstance(value, np.generic | torch.Tensor) and value.ndim == 0 else value


def _one_binarisation(intensities: torch.Tensor, seed: int) -> torch.Tensor:
    """What evidence is taken on, where every epoch of training draws its own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(intensities.shape, generator=generator) < intensities
    return torch.where(intensities.isnan(), intensities, drawn.to(intensities.dtype))


def device_of(name: str) -> torch.device:
    """The device of that name: `auto` is a GPU where there is one. Raises `UsageError` where that does not exist."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UsageError("device=cuda: torch finds no GPU here; take device=cpu or auto.")
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def _split(
    options: Mapping[str, object],
    schema: Mapping[str, Parameter],
    modules: list[ModuleType],
    methods: list[str],
    name: str,
) -> dict[str, object]:
    """The model's share of the options. Raises `UsageError` for one that neither it nor any of the methods knows."""
    owners = [schema, *(_options.schema(module.fit) for module in modules)]
    everything = {key for known in owners for key in known}
    for key, value in options.items():
        if key not in everything:
            what = [f"the model '{name}'", *(f"the method '{m}'" for m in methods)]
            raise unknown(f"option of {', '.join(what[:-1])}{' or ' * (len(what) > 1)}{what[-1]}", key, everything)
        for known in owners:
            if key in known:
                _options.convert(known, {key: value}, "option")
    _options.check_used(owners, options)
    return {k: v for k, v in options.items() if k in schema}


def method_module(name: str) -> ModuleType:
    """The module of a method. Raises `UsageError` for an unknown name."""
    if not isinstance(name, str) or name not in _registry.methods():
        raise unknown("method", name, _registry.methods())
    return importlib.import_module(f"inference.{name}")


def serving(structure: Structure, learn: bool = True) -> dict[str, str | None]:
    """For each method: None when it can serve the program, or why not; `learn`: θ is to be learned where there is any."""
    return {name: refusal(name, structure, learn) for name in _registry.methods()}


def _check_processes(method: str, learn: bool) -> None:
    if (processes := ranks.started()) == 1:
        return
    if not learn:
        raise UsageError(
            f"Expected one process where θ is kept, got {processes}: they share the rows to learn θ. Start it without torchrun."
        )
    if not getattr(method_module(method), "SHARES", False):
        able = [name for name in _registry.methods() if getattr(method_module(name), "SHARES", False)]
        raise UsageError(
            f"Expected one process for {method}, got {processes}: the rows are shared among processes by {', '.join(able)}. "
            "Start it without torchrun."
        )


def takes_weights(method: str) -> bool:
    """Whether a method counts rows by their weights: its module says so, `WEIGHTS = True`."""
    return bool(getattr(method_module(method), "WEIGHTS", False))


def refusal(
    method: str, structure: Structure, learn: bool = True, options: Mapping[str, object] | None = None
) -> str | None:
    """Why a method cannot serve the program, or None: what no method can serve comes first.

    `options`: those that are given, which count where the method's module says so by a function `refusal_with`.
    """
    if structure.obstacle:
        return f"no method can serve '{structure.program}': {structure.obstacle}"
    module = method_module(method)
    if structure.improper and not getattr(module, "IMPROPER", False):
        return (
            f"{method} integrates the latents out of log p(x), and the prior of '{structure.improper[0]}' is improper, "
            "so that this is no number"
        )
    by_options = getattr(module, "refusal_with", None) if options else None
    reason: str | None = module.refusal(structure) if by_options is None else by_options(structure, options)
    if reason is None and learn and structure.learnable and not getattr(module, "LEARNS", True):
        return keeps_theta(method, structure.program)
    return reason


def _nobody(structure: Structure) -> str:
    """What to do where no method can serve a program."""
    if structure.obstacle:
        return ""
    name = next((s.name for s in structure.global_latents if s.discrete), None)
    remedy = "" if name is None else f": run it with '{name}' fixed at each of its values, and compare log p(x)"
    return f" No method here can serve it{remedy}."


def check_serves(prepared: Prepared, method: str, learn: bool, options: Mapping[str, object] | None = None) -> None:
    """Raise `Refusal` where the method cannot serve the program with these options, or its rows' weights; `UsageError` where
    several processes were started for a method that does not share the rows among them."""
    _check_processes(method, learn)
    if (reason := refusal(method, prepared.structure, learn, options)) is not None:
        able = [name for name, why in serving(prepared.structure, learn).items() if why is None and name != method]
        hint = f" Methods that can: {', '.join(able)}." if able else ""
        raise Refusal(f"{reason}.{hint or _nobody(prepared.structure)}")
    if prepared.weights is not None and not takes_weights(method):
        able = [name for name in _registry.methods() if takes_weights(name)]
        raise Refusal(
            f"{method} counts every row once, and these rows have weights. Methods that take weights: {', '.join(able)}."
        )
