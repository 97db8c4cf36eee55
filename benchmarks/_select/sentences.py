"""A selection in sentences: who wins by which criterion, where they disagree, and what is to be doubted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks._select.ard import Relevance
from benchmarks._select.bootstrap import LEVEL, Ratio
from benchmarks._select.criteria import LARGER, SMALLER, SPOKEN, Entry, best, better_but_barred
from benchmarks._select.parallel import Parallel
from inference._run.request import written

MOST_NAMED = 4

FEWEST = 19  # simulated data sets: of these the smallest p is 1 / 20


def of(entries: Sequence[Entry], by: str, winners: Sequence[Entry], grid: Mapping[str, Sequence[object]]) -> list[str]:
    """All sentences on the entries, the winner's first."""
    out = [*_winner(entries, by, winners), *_others(entries, by, winners)]
    if by in SMALLER:
        out += _barred(entries, by, winners)
    out += [*_edges(winners, grid), *_doubts(entries, winners)]
    return out


def _named(entries: Sequence[Entry]) -> str:
    names = [e.name for e in entries[:MOST_NAMED]]
    if len(entries) > MOST_NAMED:
        names.append(f"{len(entries) - MOST_NAMED} more")
    return " and ".join(("; ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _winner(entries: Sequence[Entry], by: str, winners: Sequence[Entry]) -> Iterator[str]:
    if by not in SPOKEN:
        return
    what = SPOKEN[by]
    if not winners:
        reasons = list(dict.fromkeys(r for e in entries if (r := e.reasons.get(by))))
        yield f"No cell can be chosen by {what}" + (f": {reasons[0].rstrip('.')}." if reasons else ".")
        return
    kind = winners[0].values[by].kind
    typed = "" if kind == "exact" else f" ({kind})"
    if len(winners) == 1:
        yield f"By {what}{typed} the best is {winners[0].name}."
    else:
        how = "by no more than their standard error" if by in LARGER else f"by less than {1e-3:g}"
        yield f"{len(winners)} cells share the best place by {what}{typed}, which differ {how}: {_named(winners)}."
    bad = [e for e in winners if e.ended not in ("ok", "unknown")]
    if bad:
        yield f"Beware: the fit of {_named(bad)} to all rows is marked: {', '.join(sorted({e.ended for e in bad}))}."


def _others(entries: Sequence[Entry], by: str, winners: Sequence[Entry]) -> Iterator[str]:
    """Where another criterion picks other cells."""
    ours, against = {e.name for e in winners}, dict[str, list[str]]()
    for other in (*SMALLER, *LARGER):
        theirs = best(entries, other) if other != by else []
        if theirs and not ours & {e.name for e in theirs}:
            against.setdefault(_named(theirs), []).append(SPOKEN[other])
    if against and winners:
        said = "; ".join(f"{' and '.join(names)} would take {cells}" for cells, names in against.items())
        yield f"The criteria disagree: {said}."


def _barred(entries: Sequence[Entry], by: str, winners: Sequence[Entry]) -> Iterator[str]:
    barred = better_but_barred(entries, by, winners[0] if winners else None)
    for how in ("collapsed", "not converged", "unknown"):
        some = [e for e in barred if e.ended == how]
        if some:
            what = {
                "collapsed": "a variance went to its floor and sets log p(x)",
                "not converged": "no maximum was reached; raise restarts or max_iter",
                "unknown": "the method does not say whether it reached the maximum",
            }[how]
            better = "has a better value" if len(some) == 1 else "have better values"
            if not winners:
                better = "has a value" if len(some) == 1 else "have values"
            yield f"{_named(some)} {better}, but cannot win: {what}."


def _edges(winners: Sequence[Entry], grid: Mapping[str, Sequence[object]]) -> Iterator[str]:
    """A winner at the end of a range of numbers."""
    for name, values in grid.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < 2 or len(numbers) != len(values) or not winners:
            continue
        chosen = {e.options[name] for e in winners}
        if chosen == {max(numbers)}:
            yield f"{name}={written(max(numbers))} is the largest value of the grid: larger ones may be better."
        if chosen == {min(numbers)} and isinstance(min(numbers), float):
            yield f"{name}={written(min(numbers))} is the smallest value of the grid: smaller ones may be better."


def _doubts(entries: Sequence[Entry], winners: Sequence[Entry]) -> Iterator[str]:
    for e in winners:
        if e.result.get("hits") == 1 and e.result.get("tried", 1) > 1:
            of = f"Only 1 of {e.result['tried']} climbs from different starts reached the highest log p(x)"
            yield f"{of} of {e.name}: raise restarts."
    unsure = [e for e in entries if e.ended == "ok" and e.result.get("free_is_sure") is False and "bic" in e.values]
    if unsure:
        yield (
            f"The number of free parameters of {_named(unsure)} counts every dimension of θ; some may have no effect, and "
            "BIC and AIC are then too large."
        )


def of_parallel(found: Parallel, winners: Sequence[Entry]) -> str:
    """What parallel analysis says."""
    k = found.factors
    said = f"Parallel analysis keeps {k} factor{'s' * (k != 1)}: the first {k} eigenvalues are above those of noise"
    if k == 0:
        said = "Parallel analysis keeps no factor: no eigenvalue is above those of noise"
    return f"{said}." if winners else f"{said}. No cell of the grid has as many."


def of_relevance(found: Relevance, winners: Sequence[Entry]) -> str:
    """What automatic relevance determination says."""
    k = found.factors
    said = (
        f"Automatic relevance determination keeps {k} factor{'s' * (k != 1)}, and shrinks the other loadings to nothing"
    )
    return f"{said}." if winners else f"{said}. No cell of the grid has as many."


def of_ratios(ratios: Sequence[Ratio]) -> Iterator[str]:
    """What the bootstrap of likelihood ratios says."""
    for r in ratios:
        pair = f"{r.option}={written(r.null)} against {written(r.alternative)}"
        failed = f"; {r.failed} had no ratio" if r.failed else ""
        yield f"{pair}: likelihood ratio {r.statistic:.3f}, p = {r.p:.3g} ({r.replicates} simulated data sets{failed})."
    few = [r for r in ratios if r.replicates - r.failed < FEWEST]
    if few:
        yield f"Fewer than {FEWEST} simulated data sets cannot reject at the level {LEVEL:g}: nothing follows from these p."
    elif ratios and ratios[-1].p > LEVEL:
        last = ratios[-1]
        yield f"At the level {LEVEL:g} the likelihood ratio keeps {last.option}={written(last.null)}."
    elif ratios:
        yield "Every value of the grid is rejected for the next larger one: a larger one may be needed."
