"""What the methods claim of a program of the grammar, held against its truth."""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from soundness_programs import NoTruth, Program, Truth

from inference import run
from zoo._errors import UsageError

ROUNDING = 1e-6  # of the value, for an exact claim
SMALL = 0.02  # nats beside the standard errors of an estimate, which are estimates themselves
UNSURE = re.compile(r"trust|k-hat|too low|lower bound|differ|disagree|not independent", re.IGNORECASE)
OPTIONS: dict[str, dict[str, Any]] = {
    "em": {},
    "importance": {"proposal": "prior", "samples": 400, "epochs": 0},
    "guided": {"epochs": 3, "samples": 400},
    "svi": {"epochs": 3, "batch": 3},
    "weighted svi": {"epochs": 3, "particles": 5},
    "laplace": {"max_iter": 50, "epochs": 2},
    "modes": {"proposal": "laplace", "samples": 400},
    "ais": {"temperatures": 10, "leapfrog": 2},
}
METHOD = {"guided": "importance", "weighted svi": "svi", "modes": "importance"}
_numbers = itertools.count()


class FalseClaim(AssertionError):
    """A claim that the truth contradicts, or an end that is neither a claim nor a refusal."""


@dataclass
class Outcome:
    """What came of one method on one program: exact, bounded, estimated, refused or disagreed; and in words."""

    kind: str
    says: str


def outcome(program: Program, way: str, folder: Path, seed: int = 0) -> Outcome:
    """Run one method and check all that it claims. Raises `FalseClaim`."""
    path = folder / f"program{next(_numbers)}.py"
    path.write_text(program.source, encoding="utf-8")
    options = dict(OPTIONS[way])
    if way == "importance" and program.params:
        options["epochs"] = 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = run(f"{path}:model", program.x, METHOD.get(way, way), seed=seed, **options)
    except UsageError as refusal:
        _one_or_two_sentences(program, way, str(refusal))
        return Outcome("refused", str(refusal))
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("zoo", "inference"):  # exact values that differ, and says so
            return Outcome("disagreed", str(error))
        raise _false(program, way, f"{type(error).__name__}: {error}") from error
    if program.must_refuse:
        raise _false(program, way, "a claim where a covariate is missing", fit)
    truths: dict[bool, Truth] = {}
    for evidence in (fit.claimed, fit.verified):
        if evidence is not None:
            _check(program, way, fit, evidence, truths)
    if way == "em" and fit.converged:
        _at_an_optimum(program, fit)
    return Outcome("no claim" if fit.claimed is None else fit.claimed.kind, "")


def _check(program: Program, way: str, fit: Any, evidence: Any, truths: dict[bool, Truth]) -> None:
    """One claim against the truth at the fit's own θ, given the globals where the claim is."""
    values, given = {k: np.asarray(v) for k, v in fit.parameters.items()}, bool(evidence.given)
    try:
        truth = truths.get(given) or (program.given(values) if given else program.evidence(values))
    except NoTruth:
        return
    truths[given] = truth
    sound = is_sound(evidence, fit.warnings, truth)
    if not sound:
        whose = "claimed" if evidence is fit.claimed else "verified"
        said = f"{whose} {evidence.value:.6f} ± {evidence.se} {evidence.kind} {evidence.given}"
        raise _false(program, way, f"{said}; the truth is {truth.value:.6f} ± {truth.error:.1g}", fit)


def is_sound(evidence: Any, warnings: list[str], truth: Truth) -> bool:
    """Whether what an evidence says of its value, by its kind, is true."""
    away, slack, se = (
        evidence.value - truth.value,
        10 * truth.error + ROUNDING * (1 + abs(truth.value)),
        evidence.se or 0.0,
    )
    if evidence.kind == "exact":
        return abs(away) <= slack
    if evidence.kind == "estimate":
        unsure = evidence.se is None or any(UNSURE.search(w) for w in warnings)
        return unsure or abs(away) <= 5 * se + slack + SMALL
    above = away if evidence.kind == "lower bound" else -away
    return above <= 4 * se + slack + (SMALL if se else 0.0)


def _at_an_optimum(program: Program, fit: Any) -> None:
    """ "Converged" is said where no small step in a parameter or a global raises log p(x, globals)."""
    names = [s.name for s in (*program.globals, *program.params)]
    values = {k: np.asarray(v, dtype=float) for k, v in fit.parameters.items() if k in names}
    here = program.log_joint(values)
    for name in values:
        for step in (-0.02, 0.02):
            gain = program.log_joint({**values, name: values[name] + step}) - here
            if gain > 1e-3:
                raise _false(program, "em", f"converged, and {name} {step:+} is {gain:.4f} nats better", fit)


def _one_or_two_sentences(program: Program, way: str, text: str) -> None:
    if "Traceback" in text or "should not happen" in text or len(text) > 900 or not text.strip():
        raise _false(program, way, f"a refusal that is none: {text}")


def _false(program: Program, way: str, says: str, fit: Any = None) -> FalseClaim:
    more = "" if fit is None else f"\nwarnings: {fit.warnings}\nparameters: {fit.parameters}"
    return FalseClaim(f"{way}: {says}{more}\n\n{program.source}\nx = np.array({program.x.tolist()})")
