"""The posteriors that references are kept of: programs with global latents here, and models of the zoo on bundled data.

A reference is of a posterior, not of a program: `hmm` sums its states out, and its reference is that of the same model with
the states summed out by Pyro's `DiscreteHMM`, which shares no code with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._references import programs
from zoo._program.load import option_schema, resolve


@dataclass(frozen=True)
class Case:
    """One posterior: what `run` is asked for, and how its reference is made."""

    name: str
    model: object
    data: object
    options: Mapping[str, Any] = field(default_factory=dict)  # of the model
    preparation: Mapping[str, Any] = field(default_factory=dict)
    walked: Callable[..., object] | None = None  # the program that the long run takes, where that is another one
    how: Mapping[str, Any] = field(default_factory=dict)  # options of the long run

    @property
    def posterior(self) -> bool:
        """Whether the reference is of a posterior; else of log p(x) at the maximum likelihood."""
        return self.name in programs.DATA


WALKED = {"hmm": programs.hmm_summed}
HOW = {"poisson_gp": {"mass": "dense"}}
WINE: dict[str, Any] = {"data": "wine", "preparation": {"standardize": True}}
OF_THE_ZOO: dict[str, dict[str, Any]] = {
    "gmm-faithful": {"model": "gmm", "data": "faithful"},
    "gmm-iris": {"model": "gmm", "data": "iris", "options": {"components": 2}},
    "ppca-wine": {"model": "ppca", "options": {"latents": 2}, **WINE},
    "factor_analysis-wine": {"model": "factor_analysis", "options": {"latents": 2}, **WINE},
    "ppca-digits": {"model": "ppca", "data": "digits", "options": {"latents": 10}},
}


def _of_program(name: str) -> Case:
    data: np.ndarray = programs.DATA[name]()
    return Case(name, programs.MODELS[name], data, walked=WALKED.get(name), how=HOW.get(name, {}))


def names() -> list[str]:
    """All cases."""
    return [*programs.DATA, *OF_THE_ZOO]


def case(name: str) -> Case:
    """The case of this name."""
    return _of_program(name) if name in programs.DATA else Case(name, **OF_THE_ZOO[name])


def of_run(
    model: str, data: str | None, options: Mapping[str, object], preparation: Mapping[str, object]
) -> str | None:
    """The name of the reference of a model on data, with just these options of the model; None where there is none.

    Without data `model` may be the name of a reference.
    """
    if data is None and not preparation and model in programs.DATA:
        return model
    if data is None and not preparation and model in OF_THE_ZOO:
        named = case(model)
        model, data, preparation = str(named.model), str(named.data), named.preparation
        options = {**named.options, **options}
    for name, known in OF_THE_ZOO.items():
        if (model, data, dict(preparation)) == (known["model"], known["data"], known.get("preparation", {})):
            schema = option_schema(resolve(model)[0])
            given, wanted = (
                {k: str(of.get(k, p.default)) for k, p in schema.items()} for of in (options, known.get("options", {}))
            )
            if given == wanted:
                return name
    return None
