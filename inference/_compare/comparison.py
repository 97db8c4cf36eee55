"""`compare`: several methods on one program and data, held against a reference, with a recommendation."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference._compare import picture
from inference._compare.judge import GOOD_ENOUGH, NOT_CONVERGED, Judgement, is_exact, judge
from inference._compare.reference import BY_PROPOSAL, way_of
from inference._run.entrance import entrance
from inference._run.folder import check_out
from inference._run.prepare import device_of
from inference._run.record import Refused
from inference._run.request import Request
from inference._run.result import Run
from inference._run.runner import Marks, Names, prepared_for, request_of, run_prepared
from zoo import _atomic, _options
from zoo._data.options import PREPARATIONS
from zoo._errors import NotWritten, Refusal, UsageError
from zoo._program.structure import ENUMERATION_LIMIT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


ALIKE = 2.0  # times as long is as good: then what is exact is taken, and else the first
DEFAULT_METHODS = ("em", "laplace", "svi", "importance")


class Comparison(list[Run | Refused]):
    """The runs of `compare`, in the order of the methods, and what they show beside each other.

    >>> from latent_zoo import compare
    >>> found = compare("gmm", "faithful", ["em", "importance"], epochs=5)
    >>> found.recommendation[0]
    'em'
    """

    @cached_property
    def judgements(self) -> dict[str, Judgement]:
        """Method → how its run stands, for those that were not refused."""
        return self._judged()

    @entrance
    def _judged(self) -> dict[str, Judgement]:
        runs = [r for r in self if isinstance(r, Run)]
        return {j.run.method: j for j in judge(runs)}

    @property
    def recommendation(self) -> tuple[str | None, str]:
        """The cheapest method that is good enough, and why.

        Where none is, "A, then importance" if importance sampling can be trusted at the θ of A, and otherwise None.
        """
        return recommend(list(self.judgements.values()))

    def to_json(self) -> dict[str, object]:
        """`{"runs": […], "recommendation": {method, why}, "good_enough": …}`."""
        runs = []
        for r in self:
            document = r.to_json()
            if isinstance(r, Run):
                document |= self.judgements[r.method].to_json()
            runs.append(document)
        method, why = self.recommendation
        return {"runs": runs, "recommendation": {"method": method, "why": why}, "good_enough": GOOD_ENOUGH}

    def plot(self) -> Figure | None:
        """Accuracy against time; None where the accuracy of no method is known."""
        return picture.draw(list(self.judgements.values()))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `compare.json` and `compare.png` into a folder; returns their paths."""
        place = _atomic.place(folder)
        place.mkdir(parents=True, exist_ok=True)
        out = [_atomic.write(place / "compare.json", json.dumps(self.to_json(), indent=2) + "\n")]
        if (figure := self.plot()) is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=150)
            out.append(_atomic.write(place / "compare.png", content.getvalue()))
        return out

    def to_frame(self) -> pd.DataFrame:
        """The comparison as a table, a line for each method."""
        import pandas as pd

        lines = {}
        for name, j in self.judgements.items():
            d = {} if j.distance is None else j.distance.to_json()
            lines[name] = {
                "gap_per_row": j.gap,
                "mean_error": d.get("mean"),
                "sd_error": d.get("sd"),
                "label_error": d.get("labels"),
                "seconds": j.run.seconds,
                "good_enough": j.good,
            }
        return pd.DataFrame.from_dict(lines, orient="index")


def recommend(judgements: Sequence[Judgement]) -> tuple[str | None, str]:
    """The method to take, and why."""
    if not judgements:
        return None, "no method served the program"
    good = [j for j in judgements if j.good]
    if good:
        best = min(_as_quick(good), key=lambda j: not is_exact(j.run))
        others = _listed(j.run.method for j in good if j is not best)
        worse = _listed(j.run.method for j in judgements if j.good is False)
        why = [f"{best.verdict}, in {best.run.seconds:.1f} s"]
        why += [f"{others} would do too"] if others else []
        why += [f"not good enough: {worse}"] if worse else []
        return best.run.method, "; ".join(why)
    structure = judgements[0].run.at_theta().structure
    if (then := _then(judgements)) is not None:
        return then
    proposals = "proposal=laplace" if structure.continuous_locals else "guide=autoregressive"
    more = f"try importance with {proposals}, or with more samples"
    serve = {"em": "em is exact here", "nuts": "nuts would be the reference", "importance": more}[way_of(structure)]
    if rising := [j.run for j in judgements if j.faults == (NOT_CONVERGED,)]:
        more = "take more warmup and samples" if any(run.fit.chains for run in rising) else "raise epochs, or lr"
        serve = f"{_listed(run.method for run in rising)} had only not converged: {more}"
    if doubts := {j.doubt: None for j in judgements if j.doubt}:
        serve = "; ".join(doubts)
    if all(j.good is None for j in judgements):
        return None, f"nothing here can check a posterior; {serve}"
    known = "known to be " if any(j.good is None for j in judgements) else ""
    return None, f"none of these is {known}good enough; {serve}"


def _then(judgements: Sequence[Judgement]) -> tuple[str, str] | None:
    """The θ of one method, and the reference's posterior at it, where the reference is a method that rows can be given to."""
    served = [j for j in judgements if (j.reference or "").startswith(BY_PROPOSAL) and j.theta_is_good]
    if not served:
        return None
    quick = _as_quick(served)
    best = min(quick, key=lambda j: j.run.method == "importance")  # another's θ, if it is as quick
    proposal = str(best.reference).removeprefix(BY_PROPOSAL)
    why = f"of itself {best.run.method} is not good enough ({best.verdict})" if best.faults else best.verdict
    return f"{best.run.method}, then importance", (
        f"{why}; at its θ {best.reference} has weights that can be trusted (zoo infer RUN --method importance --set "
        f"proposal={proposal})"
    )


def _as_quick(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Those that took about as long as the quickest, in their order: seconds that a busy machine decides say nothing."""
    longest = ALIKE * min(j.run.seconds for j in judgements) + 1.0
    return [j for j in judgements if j.run.seconds <= longest]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


@entrance
def compare(
    model: object,
    data: object,
    methods: list[str] | tuple[str, ...] = DEFAULT_METHODS,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    columns: Names = None,
    drop: Names = None,
    labels: str | None = None,
    rows_by: str | None = None,
    na: Marks = None,
    weights: str | None = None,
    covariates: Names | int = None,
    categories: Names = None,
    rows: int | None = None,
    standardize: bool = False,
    binarize: str | float | None = None,
    missing: str | None = None,
    covariance_of: int | None = None,
    series: bool = False,
    series_by: str | None = None,
    limit: int = ENUMERATION_LIMIT,
    dtype: str = "auto",
    device: str = "auto",
    quiet: bool = True,
    **options: object,
) -> Comparison:
    """`run` for each of `methods` on the same data: a list of a `Run`, or a `Refused` with the reason, for each.

    The list says more of them beside each other: `judgements`, `recommendation`, `to_frame()`, `plot()`. With `out`, each run
    goes to a folder of its method's name in it.

        >>> from latent_zoo import compare
        >>> [one.claimed.kind for one in compare("gmm", "faithful", ["em", "laplace"])]
        ['exact', 'exact']
    """
    preparation = {k: v for k, v in locals().items() if k in PREPARATIONS}
    _options.flags(standardize=standardize, series=series)
    request = request_of(model, data, None, options, seed, limit, dtype, device, preparation)
    return compare_request(request, methods, out=out, quiet=quiet)


@entrance
def compare_request(
    request: Request,
    methods: list[str] | tuple[str, ...] = DEFAULT_METHODS,
    *,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Comparison:
    """`compare`, for a request."""
    if not isinstance(methods, list | tuple) or not methods:
        raise UsageError(f"Expected a list of methods to compare, got {methods!r}.")
    if twice := [str(m) for m in methods if methods.count(m) > 1]:
        raise UsageError(f"Expected each method once, got {twice[0]} {len(twice)} times.")
    _options.flags(quiet=quiet)
    folder = None if out is None else check_out(out)
    where = device_of(request.device)
    prepared = prepared_for(request, list(methods))
    results = Comparison()
    unwritten: str | None = None
    for method in methods:
        place, asked = None if folder is None else folder / method, replace(request, method=method)
        how: dict[str, Any] = {"seed": request.seed, "folder": place, "quiet": quiet, "device": where, "request": asked}
        try:
            results.append(run_prepared(prepared, method, request.options, **how))
        except Refusal as refusal:
            reason = str(refusal)
            results.append(Refused(prepared.name, prepared.data.name, method, request.seed, len(prepared.x), reason))
        except NotWritten as error:
            results.append(error.result)
            unwritten = unwritten or str(error)
    if unwritten is not None:
        raise NotWritten(unwritten, results)
    return results
