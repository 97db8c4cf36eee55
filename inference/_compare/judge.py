"""Is a method good enough for this program and data, and if not, by how much? In numbers, and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from inference._compare.distance import Distance, distance, shared
from inference._compare.labelling import aligned
from inference._compare.moments import supports_of
from inference._compare.reference import BY_ITS_GUIDE, EXACT, ITSELF, Reference, References, can_be_trusted, untrusted
from inference._method.fit import Evidence, Fit, finite
from inference._run.result import Run
from inference._sampling.khat import LIMIT

MEANS, DEVIATIONS, LABELS = 0.1, 0.1, 0.02  # posterior sds; relative; total variation
EVIDENCE, THETA = 0.1, 0.05  # nats a row
NO_BOUND = ("exact", "estimate")
NOT_CONVERGED = "not converged"
MOST = 7.0  # logarithm of a ratio of sds that is worth a number
CONTRADICTION = 0.5  # posterior sds between two methods that are both trusted
ROWS = 0.05  # of the rows that may have weights which cannot be trusted
GOOD_ENOUGH = (
    f"good enough: posterior means within {MEANS} sd and sds within {DEVIATIONS:.0%} of the reference's (root mean square), "
    f"labels within {LABELS} (total variation), evidence within {EVIDENCE} nats a row, θ within {THETA} nats a row of the "
    f"best of these, k-hat above {LIMIT} for at most {ROWS:.0%} of the rows"
)


@dataclass(frozen=True)
class Judgement:
    """What is known of one method's run beside the others.

    - `reference`: what its posterior is held against, at its own θ; None where nothing can be.
    - `gap`, `gap_se`: its claim less the verified log p(x) at its own θ, nats a row; below 0 for a bound. `se` is of the
      difference. Where the verified value is a lower bound itself, the claim is at least as far below; None where it is above.
    - `behind`: how far the verified log p(x) is below that of the best θ, nats a row.
    - `good`: None where there is no telling.
    - `faults`: what it is not good enough in, in words.
    """

    run: Run
    reference: str | None
    distance: Distance | None
    gap: float | None
    gap_se: float | None
    behind: float | None
    missing: tuple[str, ...] = ()  # latents of which the reference has a posterior, and the run has none
    unheld: tuple[str, ...] = ()  # latents of which both have one, in forms that cannot be compared
    against: str = ""  # what another run says against a reference
    doubt: str = ""  # why what would be the reference is none
    faults: tuple[str, ...] = ()
    good: bool | None = None

    @property
    def rising(self) -> bool:
        """Whether its training is known to have stopped too soon. `converged` may be False for weights that are in doubt."""
        return self.run.converged is False and self.run.fit.notes.get("training_converged") is not True

    @property
    def theta_is_good(self) -> bool:
        """Whether θ can be taken, whatever the posterior at it is: it converged, and is not behind the best that is known."""
        return not self.rising and (self.behind or 0.0) <= THETA

    @property
    def verdict(self) -> str:
        """One line."""
        return _sentence(self)

    def to_json(self) -> dict[str, object]:
        """As plain JSON types."""
        return {
            "reference": self.reference,
            "distance": None if self.distance is None else self.distance.to_json(),
            "gap_per_row": finite(self.gap),
            "gap_per_row_se": finite(self.gap_se),
            "behind_per_row": finite(self.behind),
            "good_enough": self.good,
            "verdict": self.verdict,
        }


def judge(runs: Sequence[Run]) -> list[Judgement]:
    """A judgement of each run; all are of the same program and data."""
    found, references = [], References(runs).held()
    for run, held in zip(runs, references, strict=True):
        gap, se = _gap(run)
        if held.what == ITSELF and held.fit is not None:
            against = f"{run.method} has missed a part: {held.doubt}" if held.doubt else _contradicted(run, runs)
            found.append(Judgement(run, ITSELF, None, gap, se, None, against=against))
        elif held.doubt:
            doubt = f"{held.what}, which would be the reference, has missed a part: {held.doubt}"
            found.append(Judgement(run, None, None, gap, se, None, doubt=doubt))
        else:
            found.append(_held(Judgement(run, None, None, gap, se, None), held))
    behind = _behind(runs, [held.fit for held in references])
    return [_judged(replace(j, behind=far)) for j, far in zip(found, behind, strict=True)]


def _held(j: Judgement, held: Reference) -> Judgement:
    """The distance of a run's posterior from its reference."""
    if held.fit is None:
        return j
    task = j.run.at_theta()
    parents = {s.name: s.parents for s in task.structure.sites}
    mine, reference = aligned(j.run.fit, held.fit, supports_of(task), parents)
    missing = tuple(sorted(reference.sites - mine.sites))
    unheld = tuple(sorted((reference.sites & mine.sites) - shared(mine, reference)))
    return replace(j, reference=held.what, distance=distance(mine, reference), missing=missing, unheld=unheld)


def _contradicted(run: Run, runs: Sequence[Run]) -> str:
    """What speaks against chains that are trusted by their own diagnostics: they tell nothing of a mode that none reached."""
    task = run.at_theta()
    parents, supports, theta = {s.name: s.parents for s in task.structure.sites}, supports_of(task), task.theta()
    for other in runs if run.method == "nuts" else ():
        if other.method != "importance" or not can_be_trusted(other.fit, other):
            continue
        if not all(bool((theta[n] == v).all()) for n, v in other.at_theta().theta().items()):
            continue
        here, there = aligned(run.fit, other.fit, supports, parents)
        if (d := distance(here, there)) is not None and (d.mean or 0.0) > CONTRADICTION:
            return f"importance, whose weights can be trusted, has another posterior: means {d.mean:.2g} sd apart"
    return ""


def _gap(run: Run) -> tuple[float | None, float | None]:
    a, b = run.claimed, run.verified
    if a is None or b is None or a.given != b.given or (b.kind == "lower bound" and a.value >= b.value):
        return None, None
    return (a.value - b.value) / run.count, math.hypot(a.se or 0.0, b.se or 0.0) / run.count


def _behind(runs: Sequence[Run], references: Sequence[Fit | None]) -> list[float | None]:
    """How far each θ is behind the best: what is known of log p(x) there and is no bound, against what any is at least.

    Where the run itself knows a bound alone, its reference may know more. Integrated evidence alone.
    """
    told = [_told(run, known) for run, known in zip(runs, references, strict=True)]
    own = [next((e for e in some if e.kind in NO_BOUND), None) for some in told]
    bounds = [e for some in told for e in some if e.kind == "lower bound"]
    best = max((e.value - 2 * (e.se or 0.0) for e in [*own, *bounds] if e is not None), default=None)
    return [
        None if e is None or best is None else max(0.0, best - e.value - 2 * (e.se or 0.0)) / run.count
        for run, e in zip(runs, own, strict=True)
    ]


def _told(run: Run, reference: Fit | None) -> list[Evidence]:
    """What is known of log p(x) at a run's θ, the best first: no estimate without a standard error."""
    told = run.verified, run.claimed, None if reference is None else reference.claimed
    known = [e for e in told if e is not None and not e.given and math.isfinite(e.value)]
    return [e for e in known if e.kind != "estimate" or e.se is not None]


def _judged(j: Judgement) -> Judgement:
    faults = list[str]()
    d = j.distance
    if d is not None:
        if d.mean is not None and not _sure(d.mean, d.slack) <= MEANS:
            faults.append(f"posterior means off by {d.mean:.2g} sd")
        if d.sd is not None and not _sure(d.sd, d.sd_slack) <= DEVIATIONS:
            way = "small" if (d.sd_bias or 0.0) < 0 else "large"
            off = math.expm1(d.sd) if d.sd < MOST else math.inf
            faults.append(
                f"posterior sds too {way}, off by {off:.0%}"
                if off < math.inf
                else "posterior sds are wrong: 0, or no number"
            )
        if d.labels is not None and not _sure(d.labels, d.labels_slack) <= LABELS:
            faults.append(f"probabilities of labels off by {d.labels:.2g}")
    if j.against:
        faults.append(j.against)
    if j.missing:
        faults.append(f"no posterior of {', '.join(j.missing)}")
    if j.gap is not None and not abs(j.gap) - 2 * (j.gap_se or 0.0) <= EVIDENCE:
        faults.append(f"evidence {abs(j.gap):.2g} nats a row {'short' if j.gap < 0 else 'too high'}")
    if j.behind is not None and j.behind > THETA:
        faults.append(f"its θ is {j.behind:.2g} nats a row behind the best")
    if (bad := untrusted(j.run.fit)) > ROWS and j.run.claimed is not None and j.run.claimed.kind != "exact":
        faults.append(f"k-hat above {LIMIT} for {bad:.0%} of the rows")
    if j.rising and not _only_rising(j):
        faults.append(NOT_CONVERGED)
    vague = d is not None and ((d.mean or 0.0) > MEANS or (d.sd or 0.0) > DEVIATIONS or (d.labels or 0.0) > LABELS)
    known = (d is not None and not j.unheld and not vague) or is_exact(j.run) or j.reference == ITSELF
    return replace(j, faults=tuple(faults), good=False if faults else True if known else None)


def _only_rising(j: Judgement) -> bool:
    """Whether what did not converge is θ alone: its posterior was held against a reference at that θ, where log p(x) is known,
    and no other method's θ is better."""
    return j.distance is not None and not j.unheld and j.behind is not None and j.behind <= THETA


def _sure(error: float, slack: float) -> float:
    """What is left of a root mean square where chance is given the benefit of the doubt."""
    return math.sqrt(max(0.0, error**2 - slack))


def is_exact(run: Run) -> bool:
    """Whether its evidence is exact, as claimed and as verified."""
    return all(e is not None and e.kind == "exact" and not e.given for e in (run.claimed, run.verified))


def _sentence(j: Judgement) -> str:
    held = f"held against {j.reference}, itself an approximation"
    approximate = j.distance is not None and j.reference not in (EXACT, BY_ITS_GUIDE)
    if j.faults:
        return "; ".join([*j.faults, *([held] if approximate else [])])
    said = ["exact"] if is_exact(j.run) else []
    d = j.distance
    if d is not None and not said:
        known = [(d.mean, "means within {:.2g} sd"), (d.sd, "sds within {:.0%}"), (d.labels, "labels within {:.2g}")]
        floors = (0.01, 0.01, 0.001)
        said += [text.format(max(v, low)) for (v, text), low in zip(known, floors, strict=True) if v is not None]
    if j.gap is not None and j.gap <= 0 and j.run.claimed is not None and j.run.claimed.kind == "lower bound":
        least = "at least " if j.run.verified is not None and j.run.verified.kind == "lower bound" else ""
        said.append(f"its bound is {least}{-j.gap:.2g} nats a row short")
    if j.reference == ITSELF:
        said.append("the reference itself, by its own diagnostics")
    if j.reference == BY_ITS_GUIDE and d is not None:
        said.append("as far as draws of its own guide can tell")
    if approximate:
        said.append(held)
    if j.rising:
        said.append("θ was still improving when it stopped")
    if j.good is None:
        said.append("nothing here can check its posterior" if d is None or j.unheld else "too few draws to tell")
    if j.doubt:
        said.append(j.doubt)
    return "; ".join(said)
