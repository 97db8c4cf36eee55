"""`zoo check`: a method, or a run that is there, against a reference; or all of them, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks._references import cases, reference
from benchmarks._references.cases import Case
from benchmarks._references.check import Check, check, said
from benchmarks._references.reference import Reference
from inference._method.fit import Evidence, Fit
from inference._run.entrance import entrance, seeded
from inference._run.prepare import prepare
from inference._run.result import load as load_run
from inference._run.runner import run_prepared
from inference._run.verify import verify
from zoo import _show
from zoo._errors import Refusal, UsageError
from zoo._program.structure import ENUMERATION_LIMIT

DRAWS = 1000  # of the posterior, that a method is asked for
MANY = 4000  # where local latents are exact, or those are too few
MORE = {"importance": {"samples": "16000"}}  # where its usual draws are too few to be judged
METHODS = ("nuts", "laplace", "importance")


@dataclass(frozen=True)
class Asked:
    """What is to be checked, as the command has it."""

    model: str | None
    data: str | None = None
    method: str | None = None
    options: Mapping[str, str] | None = None
    preparation: Mapping[str, Any] | None = None
    references: Sequence[str | Path] = ()
    seed: int = 0
    limit: int = ENUMERATION_LIMIT


@entrance
def checked(asked: Asked, export: Path | None = None) -> tuple[Check, list[Path]]:
    """One check, and the files that its draws were exported to.

    Raises `UsageError` where there is no reference, `Refusal` where the method cannot serve the program.
    """
    if asked.model is None:
        raise UsageError("zoo check expects a MODEL, a RUN, or --all.")
    if Path(asked.model, "run.json").is_file():
        run = load_run(asked.model)
        fit, method, evidences = run.fit, run.method, [run.fit.claimed, run.verified]
        truth = _reference(asked, None) if asked.references or export is None else None
    else:
        case, truth = _case(asked, needed=export is None)
        method = asked.method or ("nuts" if case.posterior else "em")
        fit, evidences = _fitted(case, method, asked, truth)
    written = [] if export is None else reference.export(fit, export, Path(asked.model).stem)
    found = check(truth, fit, method, evidences) if truth else Check("no reference", method, [], True, [], None)
    return found, written


def _case(asked: Asked, needed: bool) -> tuple[Case, Reference | None]:
    """What `run` is asked for, and the reference."""
    model, data = str(asked.model), asked.data
    name = cases.of_run(model, data, asked.options or {}, asked.preparation or {})
    if name is not None:
        return cases.case(name), _reference(asked, name)
    if data is None and model in cases.names():
        raise UsageError(
            f"the reference '{model}' is of its own data and options: leave out what prepares or changes them."
        )
    if data is None:
        raise UsageError(f"zoo check expects --data, or the name of a reference: {', '.join(cases.names())}.")
    truth = _reference(asked, None) if asked.references or needed else None
    return Case(model, model, data, asked.options or {}, asked.preparation or {}), truth


def _reference(asked: Asked, name: str | None) -> Reference:
    if asked.references:
        return reference.load(*asked.references)
    if name is None or name not in reference.bundled():
        known = ", ".join(reference.bundled())
        raise UsageError(
            f"there is no reference for '{asked.model}' on these data; give --reference FILE. Known: {known}."
        )
    return reference.of_name(name)


def _fitted(case: Case, method: str, asked: Asked, truth: Reference | None) -> tuple[Fit, list[Evidence | None]]:
    """A fit of the method, and its evidences; by more draws where its usual ones are too few to be judged."""
    found, given = _once(case, method, asked, truth), dict(asked.options or {})
    more = {name: value for name, value in MORE.get(method, {}).items() if name not in given}
    if truth is None or check(truth, found[0], method, found[1]).verdict != "too few draws":
        return found
    return _once(case, method, replace(asked, options={**given, **more}), truth, MANY)


def _once(
    case: Case, method: str, asked: Asked, truth: Reference | None, draws: int = DRAWS
) -> tuple[Fit, list[Evidence | None]]:
    """The fit of a method, and the evidence that it claims and that is verified where the reference has one."""
    options = {**case.options, **(asked.options or {})}
    prepared = prepare(case.model, case.data, options, [method], seed=asked.seed, limit=asked.limit, **case.preparation)
    draws = MANY if prepared.structure.is_exact else draws
    run = run_prepared(prepared, method, options, seed=asked.seed, verified=False, draws=draws)
    if truth is None or truth.log_evidence is None or run.live is None:
        return run.fit, [run.fit.claimed]
    with seeded(asked.seed):
        fit, evidence = verify(run.live, run.fit)
    return fit, [fit.claimed, evidence]


# ----------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class NotServed:
    """A method that refuses a program, or fails on it."""

    reference: str
    method: str
    verdict: str
    reason: str

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return dict(vars(self))


def everything(methods: Iterable[str], seed: int, told: Callable[[str], None]) -> list[Check | NotServed]:
    """Every bundled posterior by these methods, and every model of the zoo by `em`; `told` hears of each before it is run."""
    out: list[Check | NotServed] = []
    for name in reference.bundled():
        case = cases.case(name)
        for method in methods if case.posterior else ("em",):
            told(f"{name} by {method}")
            out.append(_cell(name, case, method, seed))
    return out


@entrance
def _cell(name: str, case: Case, method: str, seed: int) -> Check | NotServed:
    truth = reference.of_name(name)
    try:
        fit, evidences = _fitted(case, method, Asked(name, seed=seed), truth)
    except Refusal as refusal:
        return NotServed(name, method, "refused", str(refusal))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError) as error:
        return NotServed(name, method, "failed", f"{type(error).__name__}: {error}")
    return check(truth, fit, method, evidences)


def cell(found: Check | NotServed) -> str:
    """A few words for the table: ✓, or what is wrong."""
    if isinstance(found, NotServed):
        return found.verdict
    log_p = f", log p(x) {found.evidence['difference']:+.3f}" if found.evidence else ""
    if found.verdict == "agrees":
        return f"✓{log_p}"
    worst = found.worst
    return (said(worst) if worst is not None and worst.wrong > 1 else found.verdict) + log_p


def show(found: Check, written: Iterable[Path]) -> None:
    """One check, in words and with the numbers that are farthest off."""
    out = _show.console()
    if found.numbers:
        table = _show.new_table("number", "z of the mean", "z of the mean square", "mean, in sds", "sd / reference's")
        for n in sorted(found.numbers, key=lambda n: -n.wrong)[:12]:
            table.add_row(
                _show.escape(n.name),
                f"{n.z_mean:+.2f}",
                *(_figure(v) for v in (n.z_square, n.shift)),
                _figure(n.ratio, ""),
            )
        out.print(table)
    if found.reference != "no reference":
        out.print(_show.escape(found.sentence()), soft_wrap=True)
    for path in written:
        out.print(str(path), soft_wrap=True, markup=False)


def _figure(value: float | None, sign: str = "+") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def show_all(found: Sequence[Check | NotServed], methods: Sequence[str]) -> None:
    """The table: references by methods, with ✓, what is off, or a refusal; and the reasons of the refusals below."""
    out = _show.console()
    columns = [*methods, *(["em"] if "em" not in methods else [])]
    table = _show.new_table("reference", *columns)
    for name in dict.fromkeys(f.reference for f in found):
        row = {f.method: cell(f) for f in found if f.reference == name}
        table.add_row(name, *(_show.escape(row.get(m, "-")) for m in columns))
    out.print(table)
    for f in found:
        if isinstance(f, NotServed):
            out.print(_show.escape(f"{f.reference} by {f.method}: {f.reason}"), soft_wrap=True)
