"""θ from a run, or learned for the purpose; data simulated at it; and the bounds on their log p(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks._sandwich.bounds import Sandwich, exact_evidence, refusal, sandwiches
from benchmarks._sandwich.simulated import simulate
from inference._method.fit import Evidence
from inference._method.task import Task
from inference._run.entrance import entrance, seeded
from inference._run.failures import in_words
from inference._run.prepare import prepare
from inference._run.result import load
from inference._run.runner import run_prepared
from zoo._errors import Refusal, UsageError

Start = Literal["modes", "prior", "guide"]
THETA = ("em", "svi")  # what learns θ: the first where the program is exact


@dataclass(frozen=True)
class Asked:
    """What a sandwich is asked for."""

    model: object  # a name, `file.py:callable`, the callable, or the folder of a run
    data: object = None
    method: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    preparation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: Sequence[int] = (100,)
    chains: int = 16
    leapfrog: int = 5
    rows: int = 20
    datasets: int = 1
    start: Start = "modes"
    quiet: bool = True


@dataclass(frozen=True)
class Found:
    """Sandwiches by their numbers of steps, and the exact value where there is one; of all data sets together."""

    model: str
    rows: int
    sandwiches: list[Sandwich]
    exact: Evidence | None

    @property
    def last(self) -> Sandwich:
        """That of the longest path."""
        return self.sandwiches[-1]

    def parts(self) -> list[tuple[Sandwich, Evidence | None]]:
        """The longest path's, data set by data set, with the exact values."""
        out = []
        for at in range(0, self.last.n, self.rows):
            rows = slice(at, at + self.rows)
            each = None if self.exact is None else self.exact.per_datum
            out.append((self.last.part(rows), None if each is None else Evidence.from_per_datum(each[rows], "exact")))
        return out

    @property
    def held(self) -> int | None:
        """In how many data sets the exact value lies between the bounds, within three standard errors."""
        found = [s.contains(exact) for s, exact in self.parts() if exact is not None]
        return sum(found) if found else None

    def to_json(self) -> dict[str, object]:
        """All of it but the values of each row."""
        n, exact = self.last.n, self.exact
        return {
            "benchmark": "sandwich",
            "model": self.model,
            "n": n,
            "datasets": n // self.rows,
            "exact": None if exact is None else exact.to_json(n),
            "sandwiches": [
                {
                    "steps": s.steps,
                    "lower": s.lower.to_json(n),
                    "upper": s.upper.to_json(n),
                    "width_per_row": s.width,
                    "width_per_row_se": s.width_se,
                    "interval_95": list(s.interval),
                }
                for s in self.sandwiches
            ],
            "each": [
                {
                    "lower": s.lower.to_json(s.n),
                    "upper": s.upper.to_json(s.n),
                    "exact": None if e is None else e.to_json(s.n),
                    "contains": None if e is None else s.contains(e),
                }
                for s, e in self.parts()
            ],
            "contained": self.held,
        }

    def sentence(self) -> str:
        """What the longest path says, in plain words."""
        s, low, high = self.last, *self.last.interval
        spread = "" if s.width_se is None else f" ± {s.width_se:.3f}"
        said = f"{s.n} simulated rows, {s.steps} steps: the bounds are {s.width:.3f}{spread} nats a row apart; "
        said += f"log p(x) of all lies in [{low:.2f}, {high:.2f}] with a probability of at least 95 %"
        if self.held is None:
            return said + "."
        count = self.last.n // self.rows
        return (
            said
            + f"; the exact value lies between them within 3 se in {self.held} of {count} data set{'s' * (count > 1)}."
        )


@entrance
def sandwich(asked: Asked) -> Found:
    """Simulate data at θ and bound their log p(x) from both sides.

    Raises `UsageError` for a request that cannot be carried out, `Refusal` where the program cannot be served, `Disagreement`
    where the bounds contradict each other or an exact value.
    """
    task = _task(asked)
    if (reason := refusal(task, asked.start)) is not None:
        raise Refusal(reason)
    steps = sorted(set(asked.steps))
    with seeded(asked.seed), in_words(task.program.name, "its sandwich"):
        found = simulate(task, asked.rows * asked.datasets)
        exact = exact_evidence(found.task)
        bounds = sandwiches(found, steps, asked.chains, asked.leapfrog, asked.start)
    for one in bounds:
        one.check(exact)
    return Found(task.program.name, asked.rows, bounds, exact)


def _task(asked: Asked) -> Task:
    """A task at θ, in float64."""
    if isinstance(asked.model, str) and Path(asked.model, "run.json").is_file():
        if asked.data is not None or asked.method or asked.options or asked.preparation:
            raise UsageError("a run has its own model, data and θ: give no data, method or other options beside it.")
        return load(asked.model).at_theta().doubled()
    if asked.model is None or asked.data is None:
        raise UsageError("a sandwich needs a MODEL and data=…, which θ is learned from, or the folder of a RUN.")
    methods = [asked.method] if asked.method else list(THETA)
    prepared = prepare(asked.model, asked.data, asked.options, methods, seed=asked.seed, **asked.preparation)
    if not prepared.structure.learnable:
        own = Task(prepared.program(asked.seed), prepared.structure, prepared.x, learn=False, limit=prepared.limit)
        return own.doubled()
    method = asked.method or THETA[not prepared.structure.is_exact]
    how: dict[str, Any] = {"seed": asked.seed, "verified": False, "simulated": False, "quiet": asked.quiet}
    return run_prepared(prepared, method, asked.options, **how).at_theta().doubled()
