"""Calibration of evidence: draw a model, draw data from it; are the models' posterior probabilities right?

Under equal prior probabilities p(model | x) is in proportion to p(x | model), the evidence. A method that claims too much for
one model, or whose claims differ more or less than they should, gives probabilities that are not how often the models are true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks._calibration import chances, picture, uniform
from benchmarks._calibration.calibrate import ROWS, SIMULATIONS, asked, batches, carried_out, checked_counts
from benchmarks._calibration.outcomes import Document, Outcomes
from benchmarks._calibration.quantity import LEVEL
from benchmarks._calibration.simulation import STREAM, Lost, drawn, fitted, prepared_task
from benchmarks._select.trial import Trial
from benchmarks._suite.folder import Results
from inference._method.fit import Evidence
from inference._run.entrance import entrance
from inference._run.prepare import find, method_module
from zoo import _options
from zoo._data.options import PREPARATIONS
from zoo._errors import Refusal, UsageError, unknown
from zoo._program.load import option_schema, simulated

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 1.0  # nats: the error of a log Bayes factor that has to be found for "passes"


@dataclass(frozen=True)
class Contest(Trial):
    """A cell of simulations from several models."""

    rivals: tuple[Trial, ...] = field(default=(), repr=False, compare=False)


def calibrate_models(
    models: Sequence[object],
    method: str = "em",
    *,
    data: object = None,
    simulations: int = SIMULATIONS,
    rows: int | None = None,
    jobs: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    quiet: bool = True,
    **keywords: object,
) -> EvidenceCalibration:
    """Draw one of the models, and data from it, so many times: are the probabilities that the method's evidence gives to the
    models how often they are the true one?

        >>> import pyro, pyro.distributions as dist
        >>> from latent_zoo import calibrate_models
        >>> def coins(heads):
        ...     def model(x=None, size=None):
        ...         p = pyro.sample("p", dist.Beta(heads, 2.0))
        ...         with pyro.plate("data", size if x is None else len(x)):
        ...             return pyro.sample("x", dist.Binomial(10, p), obs=x)
        ...     return model
        >>> calibrate_models([coins(1.0), coins(4.0)], "em", simulations=3, rows=1, jobs=1).verdict
        'too few simulations'

    The keywords are those of `calibrate`; an option goes to those models that have it.
    """
    checked_counts(simulations, 9, seed)
    found = [find(m, seed) for m in models]
    if len(found) < 2:
        raise UsageError(f"Expected two models or more, separated by commas, got {len(found)}.")
    rivals = _rivals(found, method, data, rows, seed, keywords)
    content: Document = {"kind": "calibrate evidence", "model": ",".join(t.content["model"] for t in rivals)}
    content |= {"model_options": {}, "data": rivals[0].content["data"], "method": method}
    content |= {"method_options": rivals[0].content["method_options"], "seed": seed}
    content["models"] = [t.content for t in rivals]
    base = Contest(content, rivals[0].base, dataset=rivals[0].dataset, rivals=rivals)
    results = carried_out(list(batches(base, content, simulations, contest)), out, jobs, quiet, "calibrate")
    outcomes = [s for document in results for s in document["simulations"]]
    names = [t.content["model"].rpartition(":")[2] for t in rivals]
    calibration = EvidenceCalibration(names, method, rivals[0].data.x.shape, outcomes)
    if out is not None:
        calibration.write(Path(out))
    return calibration


def _rivals(
    found: Sequence[Any], method: str, data: object, rows: int | None, seed: int, keywords: Mapping[str, object]
) -> tuple[Trial, ...]:
    schemas = [{*option_schema(f.target)} for f in found]
    common = {*_options.schema(method_module(method).fit), *PREPARATIONS}
    for key in keywords:
        if not any(key in known for known in (common, *schemas)):
            raise unknown(f"option of the models or the method '{method}'", key, set().union(common, *schemas))
    if data is None:
        own = {k: v for k, v in keywords.items() if k in schemas[0]}
        data = simulated(found[0].target, found[0].name, own, rows or ROWS, seed).numpy()
    given = [{k: v for k, v in keywords.items() if k in known | common} for known in schemas]
    return tuple(asked(f, method, data, None, rows, seed, g) for f, g in zip(found, given, strict=True))


@entrance
def contest(cell: Contest, results: Results, work: Path) -> Document:
    """The simulations of a cell: the true model, and what each model's evidence is claimed to be."""
    first, count = cell.content["first"], cell.content["count"]
    sources = [prepared_task(t, t.data.x) for t in cell.rivals]
    out: list[Document] = []
    for index in range(first, first + count):
        numbers = np.random.default_rng([cell.content["seed"], STREAM, index])
        true = int(numbers.integers(len(sources)))
        x, _ = drawn(sources[true], numbers)
        seed = int(numbers.integers(2**31))
        try:
            claims = [_evidence(t, x, seed) for t in cell.rivals]
        except Lost as lost:
            out.append({"failed": str(lost)})
            continue
        out.append({"true": true, "log_evidence": [c.value for c in claims], "kinds": [c.kind for c in claims]})
    return {"simulations": out}


def _evidence(trial: Trial, x: np.ndarray, seed: int) -> Evidence:
    """What the method claims of the model on x. Raises `Refusal` where that is not the evidence of the model."""
    method, model = trial.content["method"], trial.content["model"]
    claimed = fitted(trial, x, seed)[1].claimed
    if claimed is None:
        raise Refusal(f"{method} claims no evidence of '{model}'; take em, laplace or svi.")
    if claimed.given:
        raise Refusal(
            f"{method}'s evidence of '{model}' is given {claimed.given}: it is no evidence of the model, and probabilities of "
            "models cannot be made of it. Take laplace or svi, which integrate over it."
        )
    if not np.isfinite(claimed.value):
        raise Lost(f"the log evidence of '{model}' is {claimed.value}")
    return claimed


@dataclass
class EvidenceCalibration(Outcomes):
    """Whether models are true as often as a method's evidence says.

    >>> import numpy as np
    >>> random = np.random.default_rng(1)
    >>> log_odds = random.normal(size=400)
    >>> true = random.uniform(size=400) < 1 / (1 + np.exp(-log_odds))
    >>> outcomes = [{"true": int(t), "log_evidence": [0.0, o], "kinds": ["exact"] * 2} for t, o in zip(true, log_odds)]
    >>> EvidenceCalibration(["a", "b"], "em", (50, 1), outcomes).verdict
    'passes'
    """

    name: ClassVar[str] = "evidence"
    counted: ClassVar[str] = "simulations"
    models: list[str]
    method: str
    shape: tuple[int, ...]
    outcomes: Sequence[Mapping[str, Any]]
    folder: Path | None = field(default=None, compare=False)

    @cached_property
    def true(self) -> np.ndarray:
        """The true model of each simulation [n]."""
        return np.array([o["true"] for o in self.fits])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Those of the models [n, K]."""
        return chances.probabilities(np.array([o["log_evidence"] for o in self.fits]))

    @cached_property
    def tests(self) -> list[chances.Test]:
        """The tests, their p-values not adjusted for their number."""
        return chances.tests(self.probabilities, self.true, self.models, seed=0)

    @property
    def adjusted(self) -> np.ndarray:
        """The tests' p-values, adjusted for their number (Holm 1979)."""
        return uniform.holm(np.array([t.p for t in self.tests]))

    @cached_property
    def shown(self) -> float:
        """The error in nats of one model's log evidence that these simulations would show 9 times in 10."""
        return chances.smallest_shift(self.probabilities, LEVEL / len(self.tests))

    def _fails(self) -> bool:
        return bool(self.adjusted.min() < LEVEL)

    def _shows(self) -> bool:
        return self.shown <= ENOUGH

    @property
    def sentences(self) -> list[str]:
        """The verdict in plain words, and what it rests on."""
        n = len(self.fits)
        right = float(self.probabilities[np.arange(n), self.true].mean())
        out = [self._failing()] if self.verdict == "fails" else [self._not_failing()]
        out.append(f"the true model is given {right:.2f} on average, in {n} simulations of {len(self.models)} models.")
        kinds = Counter(k for o in self.fits for k in o["kinds"])
        if set(kinds) != {"exact"}:
            said = ", ".join(f"{'an' if k == 'estimate' else 'a'} {k} in {c} fits" for k, c in kinds.items())
            out.append(f"the evidence that {self.method} claims is {said}.".replace("a exact", "exact"))
        if lost := self.lost:
            out.append(f"{len(lost)} of {len(self.outcomes)} simulations are left out, for a fit failed: {lost[0]}")
        return out

    def _failing(self) -> str:
        said = []
        for test, p in zip(self.tests, self.adjusted, strict=True):
            if p >= LEVEL:
                continue
            if "log probability" in test.name:
                said.append(f"{'too sure of itself' if test.away < 0 else 'not sure enough'} (p {p:.2g})")
            elif "share" in test.name:
                name = test.name.removeprefix("the share of ")
                k = self.models.index(name)
                given, was = self.probabilities[:, k].mean(), (self.true == k).mean()
                said.append(f"{name} is given {given:.2f} on average and is true in {was:.2f} (p {p:.2g})")
        return f"{self.method}'s evidence fails: {'; '.join(said) or 'the reliability curve leaves its band'}."

    def _not_failing(self) -> str:
        would = f"9 times in 10 they would show an error of {self.shown:.2g} nats in the log evidence of any one model"
        if np.isinf(self.shown):
            would = "they would hardly show any error"
        if self.verdict == "passes":
            return f"{self.method}'s evidence passes: the models are true as often as it says; {would}."
        if self.verdict == "too many failed fits":
            return f"no verdict: {len(self.lost)} of {len(self.outcomes)} simulations failed."
        return f"no verdict: nothing wrong was found, but {would}. Take more simulations, or fewer rows."

    @property
    def table(self) -> pd.DataFrame:
        """A row for each test."""
        import pandas as pd

        rows = zip(self.tests, self.adjusted, strict=True)
        return pd.DataFrame([{"test": t.name, "p": t.p, "p_adjusted": a, "away": t.away} for t, a in rows])

    def plot(self) -> Figure:
        """The reliability curve with the band that holds it where all is right."""
        title = f"{' or '.join(self.models)} by {self.method}'s evidence, {len(self.fits)} simulations: {self.verdict}"
        return picture.reliability(chances.curve(self.probabilities, self.true), title)

    def to_json(self) -> Document:
        """The object that `zoo calibrate --models … --json` prints."""
        return {
            "models": self.models,
            "method": self.method,
            "shape": list(self.shape),
            "simulations": len(self.outcomes),
            "failed": len(self.lost),
            "verdict": self.verdict,
            "sentences": self.sentences,
            "level": LEVEL,
            "would_show_nats": self.shown if np.isfinite(self.shown) else None,
            "tests": self.table.to_dict("records"),
            "true": self.true.tolist(),
            "probabilities": self.probabilities.tolist(),
            "folder": None if self.folder is None else str(self.folder),
        }

    def __repr__(self) -> str:
        return "\n  ".join([f"Calibration of {self.method}'s evidence: {self.verdict}", *self.sentences])
