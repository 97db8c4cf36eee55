"""The runner's own evaluation of log p(x): the best evaluator that a program has, at a fit's own θ.

- exact programs: the exact value by each site's own `log_prob`, and on a sample of rows by a route that shares nothing with the
  method (`own_route`). Exact values that differ beyond rounding end the run.
- global latents with a Gaussian q: importance sampling from it, the local latents summed exactly; labels that can be exchanged
  are, so that all K! modes of a mixture are in the value;
- no local latents: the program's own density, in one run;
- otherwise: importance sampling from a mixture of the proposals available at this θ: the fit's guide, the Gaussians at
  the modes (Laplace), and the prior; and a particle filter where the program has one.

Where a claim can be checked against a better value it is: an estimate that lies below it by more than 4 standard errors is
called a lower bound, and a warning says so. An upper bound below an exact value or a lower bound ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from guides import at
from inference._density import guide, local
from inference._density import modes as _all_modes
from inference._globals.engine_points import EnginePoints
from inference._globals.labels import POINTS, Labels
from inference._globals.modes import SHARE
from inference._globals.one_gaussian import ONE_MODE, OTHERS, OneGaussian, of_others
from inference._globals.target import refusal
from inference._method.estimates import Estimates
from inference._method.fit import Evidence, Fit, GlobalGaussian
from inference._method.summed import summed
from inference._method.task import Task
from inference._run._own import own_route
from inference._run._own import posterior as own_posterior
from inference._run._own.disagreement import Disagreement, tolerance
from inference._sampling import sequential, weights
from inference._sampling.khat import of_globals
from inference._training.integrated import Integrated
from zoo._program.trace import is_local, log_prob, per_datum, sample_nodes

OWN_NUMBERS = 2**30  # of data × joint values, some twenty seconds of them
GLOBAL_SAMPLES = 1000
GLOBAL_POINTS = 20  # at which an exact posterior of the global latents is looked at, and as many further away
ALIKE = 2**20  # values that are compared at once
LOCAL_SAMPLES = 1000
LEAST_SAMPLES = 50
DEFENSIVE = 0.1
CLIMB = 60  # evaluations that a climb takes, and those for each latent number
CLIMB_NUMBERS = 2**27  # numbers that climbing to all modes may take: some ten seconds of a network's
SITES = 100_000  # that a particle filter may pass, at about 0.2 ms
SITES_OF_CLIMBS = 200_000  # that the gradients of a climb to all modes may pass
FAR = 4.0  # standard errors
ONE_LABELLING = "one labelling, of too many to count"
APART = 0.99  # of the probability that a draw is in its own labelling


@dataclass
class _Said:
    """Warnings and notes collected while a fit is verified."""

    warnings: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    labels: Labels | None = None  # that can be exchanged
    exact_at: dict[str, Tensor] | None = (
        None  # the values of the global latents, where the posterior is said to be exact
    )
    missed: float = 0.0  # the share of the posterior that is at modes which the fit's Gaussian does not see
    apart: float = 0.0  # how far the modes of these are from each other, 1 where they do not overlap


@torch.no_grad()
def verify(task: Task, fit: Fit) -> tuple[Fit, Evidence | None]:
    """Evidence for `fit`, whose θ the program of `task` holds; None where there is nothing better than the claim.

    The fit that comes back has more warnings, and its claim may be called a lower bound. Raises `Disagreement` where two
    exact values differ.
    """
    said, claimed = _Said(), fit.claimed
    found = _verified(task, fit, said)
    if claimed is not None and said.labels is not None:
        claimed = _of_all_labels(claimed, fit, said.labels, said)
    if found is not None and claimed is not None:
        claimed, found = _compared(task, claimed, found, said)
    if claimed is not None:
        claimed = _of_one_mode(claimed, fit, said)
    if said.exact_at is not None:
        own_posterior.check(task, fit, said.exact_at)
    return replace(fit, claimed=claimed).with_notes(said.warnings, said.notes), found


def _verified(task: Task, fit: Fit, said: _Said) -> Evidence | None:
    if task.structure.is_exact:
        given = "" if fit.claimed is None else fit.claimed.given
        if task.structure.integrable and not given and task.x.dtype == torch.float64 and not task.engine.delicate:
            return _integrated(task)
        if fit.global_gaussian is not None and not task.structure.improper:
            found = _integrate_globals(task, fit.global_gaussian, said)
            return _of_all_modes(task, fit, found, said)
        point = {s.name: torch.as_tensor(fit.parameters[s.name]) for s in task.structure.global_latents}
        if point and not given:
            if (
                fit.claimed is not None
            ):  # with the globals integrated out: no point of them is a value to hold it against
                return None
            given = f"the point values of {', '.join(point)}"
        if fit.claimed is not None and fit.claimed.kind == "exact":
            said.exact_at = point
        exact = Evidence.from_per_datum(_exactly(task, point).numpy(), "exact", given=given, weights=task.times)
        return exact.plus(task.outside(point))
    if task.structure.global_latents:
        return None
    found = _by_importance(task, fit, said) if task.structure.local_latents else _density(task)
    return found.plus(task.outside({}))


# ------------------------------------------------------------------------------------------------------------- exact


def _exactly(task: Task, point: dict[str, Tensor]) -> Tensor:
    """log p(x_i | θ, globals) [N] of an exact program, nats."""
    if task.x.dtype == torch.float32:  # in float64: what is called exact is right in every digit that is shown
        task, point = task.doubled(), {n: v.double() for n, v in point.items()}
    each = max(1, task.x[0].numel() * task.structure.assignments)
    found: Tensor = task.engine.per_datum(None, point, own=len(task.x) * each <= OWN_NUMBERS)
    confirm(task, found, point)
    return found


def confirm(task: Task, found: Tensor, point: dict[str, Tensor]) -> None:
    """Hold exact values log p(x_i | θ, globals) [N] against the program run by itself on a sample of the rows.

    Raises `Disagreement` where they differ, or the program does not run on some rows alone.
    """
    rows = own_route.rows_of(task)
    seen = _seen(task, rows, point)
    if seen is None or not _alike(found[rows], seen):
        whole = own_route.in_place(task, point)
        seen = whole[rows] if whole is not None else seen
    if seen is None:
        raise Disagreement(
            f"log p(x) of '{task.program.name}' was treated as exact and cannot be checked: the program does not run on a "
            "subset of the rows. Nothing is reported. Let it read only the columns of x."
        )
    if not _alike(found[rows], seen):
        raise _differ(task, rows, found[rows], seen, "by the exact engine", "by the program alone")


def _seen(task: Task, rows: Tensor, point: dict[str, Tensor]) -> Tensor | None:
    """The witness's values of some rows; None where the program does not run on them by themselves."""
    try:
        return own_route.log_evidence(task, rows, point)
    except (RuntimeError, ValueError, IndexError):
        return None


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether exact values of some rows are equal to rounding; NaN where the second route has no answer."""
    near = tolerance(one.dtype)
    for mine, theirs in zip(one.split(ALIKE), other.split(ALIKE), strict=True):
        known = ~theirs.isnan()
        if not torch.allclose(mine[known], theirs[known], rtol=near, atol=near, equal_nan=True):
            return False
    return True


def _differ(task: Task, rows: Tensor, one: Tensor, other: Tensor, of_one: str, of_other: str) -> Disagreement:
    away = (one - other).abs().nan_to_num(torch.inf)
    k = int(away.argmax())
    return Disagreement(
        f"two exact values of log p(x) of '{task.program.name}' differ: row {int(rows[k])} (counting from 0) has "
        f"{float(one[k]):.6f} nats {of_one} and {float(other[k]):.6f} {of_other}. Nothing is reported as exact. The rows may "
        "depend on each other or on their place, or the program on something that tracing cannot see; a method that samples "
        "(importance, ais) may serve it."
    )


def _density(task: Task) -> Evidence:
    """log p(x | θ) of a program without latents: one run on all rows, which may depend on each other."""
    trace = task.program.trace(task.x)
    structure, total = task.structure, torch.zeros(len(task.x), dtype=task.x.dtype)
    for node in sample_nodes(trace):
        if is_local(node):
            total = total + per_datum(node, log_prob(node), structure.data_dim, structure.max_plate_nesting).reshape(-1)
    return Evidence.from_per_datum(total.numpy(), "exact", weights=task.times)


# --------------------------------------------------------------------------------------------------------- estimates


def _integrate_globals(task: Task, q: GlobalGaussian, said: _Said) -> Evidence:
    """log E_q[p(x, globals) / q(globals)], the mass of the posterior that q can see: one labelling of a mixture, say."""
    normal = _normal(q)
    flat = normal.sample((GLOBAL_SAMPLES,))
    points, found = EnginePoints(task.doubled(), q.coordinates), []
    with task.progress("verifying", GLOBAL_SAMPLES) as step:
        for u in flat:
            found.append(points.of_one(u))
            step()
    labels = Labels(points, flat[:POINTS])
    log_q = labels.spread(normal.log_prob, flat)
    told = Estimates.of((torch.stack(found) - log_q).unsqueeze(1))
    if labels.groups:
        said.notes |= labels.notes()
        said.labels = labels
        # how surely a draw of q is in q's own labelling: 1 where the modes are apart
        said.apart = float((normal.log_prob(flat) - log_q - labels.log_count).exp().mean())
    khat = float(told.khat[0])
    said.notes["khat_of_globals"] = khat
    if bool(told.doubtful[0]):
        said.warnings.append(
            f"{of_globals(khat)} with {float(told.ess[0]):.0f} effective draws of "
            f"{GLOBAL_SAMPLES}: its posterior is not close to Gaussian, and the verified evidence is a lower bound."
        )
    evidence = replace(told.evidence(), per_datum=None, se_per_datum=None)
    if labels.counted or labels.keep(normal):
        return evidence
    said.warnings.append(
        f"the labels can be exchanged in exp({labels.log_count:.1f}) ways, which are too many to count: the verified evidence "
        "is a lower bound, of one labelling at least."
    )
    return replace(evidence, value=float(told.log_mean[0]), kind="lower bound")


def _normal(q: GlobalGaussian) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(q.mean.double(), scale_tril=q.scale_tril.double())


def _of_all_modes(task: Task, fit: Fit, found: Evidence, said: _Said) -> Evidence:
    """The mass that one Gaussian sees is a lower bound where climbs from far apart find a mode that it does not.

    A method whose claim has a standard error has looked for modes itself.
    """
    q, claimed = fit.global_gaussian, "" if fit.claimed is None else fit.claimed.kind
    own = fit.claimed is not None and claimed == "estimate" and fit.claimed.se is not None
    if own or q is None or "estimate" not in (claimed, found.kind) or refusal(task.structure) is not None:
        return found
    gaussian = OneGaussian(task, q)
    if (share := gaussian.missed()) >= SHARE:
        said.missed = share
        if not any(w.startswith(OTHERS) for w in fit.warnings):  # the fit has looked itself
            said.warnings.append(f"{of_others(share)} The verified evidence is a lower bound.")
        return replace(found, kind="lower bound")
    if found.kind == "estimate" and (beyond := gaussian.beyond()):
        said.warnings.append(
            f"{beyond:.0%} of short walks from the fit's Gaussian end where weights are larger than any draw's. A part of the "
            "posterior is missing, as the end of a ridge is: the verified evidence is a lower bound. nuts goes there."
        )
        return replace(found, kind="lower bound")
    return found


def _of_one_mode(claimed: Evidence, fit: Fit, said: _Said) -> Evidence:
    """A claim made at one mode says so, where climbs of the runner or of the method itself ended at others."""
    if claimed.kind != "estimate" or claimed.se is not None or claimed.given:
        return claimed
    masses, missed = fit.notes.get("modes"), said.missed
    if isinstance(masses, list):  # of the method's own climbs, the relabelled among them
        total = torch.tensor([m["log_evidence"] for m in masses], dtype=torch.float64).logsumexp(0)
        missed = max(missed, -math.expm1(min(0.0, claimed.value - float(total))))
    return replace(claimed, given=ONE_MODE) if missed >= SHARE else claimed


def _of_all_labels(claimed: Evidence, fit: Fit, labels: Labels, said: _Said) -> Evidence:
    """A claim made of one Gaussian, times the number of modes that are like its own, where they are apart."""
    q = fit.global_gaussian
    if claimed.kind != "estimate" or claimed.se is not None or claimed.given or q is None:
        return claimed
    if not labels.counted and not labels.keep(_normal(q)):
        return replace(claimed, given=ONE_LABELLING)
    if said.apart < APART:
        said.notes["labels_in_the_claim"] = (
            "those that the one Gaussian covers: the modes of the others overlap with it"
        )
        return claimed
    said.notes["labels_in_the_claim"] = (
        f"all: log {labels.count:,} is added to the one labelling that the Gaussian covers"
    )
    return replace(claimed, value=claimed.value + labels.log_count)


def _integrated(task: Task) -> Evidence:
    """log p(x; θ) where the global latents can be integrated out: log p(x, g) − log q(g), the same at every g.

    Raises `Disagreement` where it is not: at the middle of q(g), at draws from it, and further away.
    """
    whole = Integrated.of(task)
    q, generator = whole.posterior(), torch.Generator().manual_seed(0)
    near, far = q.draw(GLOBAL_POINTS, generator), q.draw(GLOBAL_POINTS, generator, wide=5.0)
    points = torch.cat([q.mean.unsqueeze(0), near, far])
    densities = torch.stack([q.log_density(g) for g in points])
    values = torch.stack([whole.log_joint(g) for g in points]) - densities
    size = (values.abs() + densities.abs()).clamp(min=1.0)
    if not bool(((values - values[0]).abs() <= tolerance(values.dtype) * size).all()):
        raise Disagreement(
            f"log p(x) of '{task.program.name}' was treated as exact, but the posterior of the global latents is not what it "
            "was taken for: the value would be wrong. Nothing is reported. Use a method that does not need that: svi."
        )
    return Evidence(float(values[0]), 0.0, "exact")


def _by_importance(whole: Task, fit: Fit, said: _Said) -> Evidence:
    samples = weights.affordable(whole.x, LOCAL_SAMPLES, LEAST_SAMPLES)
    found, task = _filtered(whole, samples), _summed(whole, fit)
    modes = _modes(task, fit)
    proposals = [q for q in (fit.guide, modes) if q is not None]
    if proposals or found is None:
        defensive = DEFENSIVE if proposals else 1.0
        mixed = _estimated(
            task,
            samples,
            lambda rows, x: weights.draw_mixture(
                task.program, task.structure, x, [at(q, rows) for q in proposals], samples, defensive
            ),
        )
        found = mixed if found is None else _better(found, mixed)
    names = [n for n, q in (("the fit's guide", fit.guide), ("the modes", modes)) if q is not None]
    remedy = f"It comes from {', '.join([*names, 'the prior'])}, {samples} draws a row."
    if (warning := found.warning("the verified evidence", remedy)) is not None:
        said.warnings.append(warning)
    return found.evidence(task.times)


def _filtered(task: Task, samples: int) -> Estimates | None:
    """By a particle filter; None where there is none, or it would take too long."""
    if sequential.refusal(task.program, task.structure, task.x) is not None:
        return None
    runs = len(list(weights.chunks(task.x, samples))) * len(task.structure.local_latents)
    if runs * len(task.structure.sites) > SITES:
        return None
    filters = sequential.share(samples)
    try:
        return _estimated(
            task, samples, lambda rows, x: sequential.draw(task.program, task.structure, x, samples, filters), filters
        )
    except (ArithmeticError, RuntimeError):  # the program takes no draws side by side: the other proposals serve
        return None


def _summed(task: Task, fit: Fit) -> Task:
    """The task without the discrete latents that can be summed out, unless the fit's guide draws them."""
    return summed(replace(task, guide=fit.guide))


def _estimated(
    task: Task, samples: int, draw: Callable[[slice, Tensor], weights.Draws], filters: int | None = None
) -> Estimates:
    parts = []
    with task.progress("verifying", len(task.x)) as step:
        for rows in weights.chunks(task.x, samples):
            x = task.x[rows]
            drawn = draw(rows, x)
            alone = weights.lone_states(drawn.values, drawn.log_weights, task.structure, x)
            parts.append(Estimates.of(drawn.log_weights, filters, alone))
            step(len(x))
    return Estimates.joined(parts)


def _better(one: Estimates, other: Estimates) -> Estimates:
    """Of two that are lower bounds in expectation: the one with fewer rows in doubt, else the higher."""
    if one.doubtful.sum() != other.doubtful.sum():
        return min(one, other, key=lambda e: int(e.doubtful.sum()))
    return max(one, other, key=lambda e: float(e.log_mean.sum()))


def _modes(task: Task, fit: Fit) -> guide.ModeGuide | None:
    """The Gaussians at each row's modes, as a guide; None where there are none, or climbing to them would take too long."""
    structure = task.structure
    if isinstance(fit.guide, guide.ModeGuide) or not structure.continuous_locals:
        return None
    if local.refusal(structure) is not None:
        return None
    density = local.LocalDensity(task.program, structure, task.x)
    work = density.n * density.A * (task.x[:1].numel() + density.L) * CLIMB * (1 + density.L)
    passed = CLIMB * (1 + density.L) * len(structure.sites)
    if work > CLIMB_NUMBERS or passed > SITES_OF_CLIMBS or guide.refusal(density) is not None:
        return None
    try:
        return guide.ModeGuide(density, _all_modes.with_wide(_all_modes.all_modes(density), density))
    except (ArithmeticError, RuntimeError, ValueError):  # no derivative, no finite start: the other proposals serve
        return None


# -------------------------------------------------------------------------------------------------------- comparisons


def _compared(task: Task, claimed: Evidence, found: Evidence, said: _Said) -> tuple[Evidence, Evidence]:
    """Claim and verified value, held against each other: exact ones have to be equal, estimates within their errors."""
    if claimed.given != found.given:
        return claimed, found
    if claimed.kind == "exact" and found.kind == "exact":
        _compare_exact(task, claimed, found)
    if claimed.se is None or not (math.isfinite(claimed.value) and math.isfinite(found.value)) or found.se is None:
        return claimed, found
    away = claimed.value - found.value
    rounding = tolerance(task.x.dtype) * max(1.0, abs(found.value))
    limit = FAR * math.hypot(claimed.se, found.se) + rounding
    if claimed.kind == "upper bound":
        _check_above(task, away, limit, found)
    if claimed.kind in ("exact", "upper bound") or (found.kind == "lower bound" and away > 0):
        return claimed, found
    if away < -limit and claimed.kind == "estimate":
        said.warnings.append(
            f"the evidence claimed lies {-away:.4g} nats below the verified {found.kind} value, more than {FAR:g} standard "
            "errors: the draws missed a part of the posterior. It is a lower bound, not an estimate."
        )
        return replace(claimed, kind="lower bound"), found
    if away > limit:
        said.warnings.append(
            f"the evidence claimed ({claimed.kind}) lies {away:.4g} nats above the verified {found.kind} value, more than "
            f"{FAR:g} standard errors: one of the two is wrong. Repeat with another seed and more samples."
        )
        if found.kind == "estimate":
            found = replace(found, kind="lower bound")
    return claimed, found


def _check_above(task: Task, away: float, limit: float, found: Evidence) -> None:
    if away < -limit and found.kind in ("exact", "lower bound"):
        raise Disagreement(
            f"the upper bound claimed on log p(x) of '{task.program.name}' lies {-away:.4g} nats below the verified "
            f"{found.kind}, more than {FAR:g} standard errors: the method's claim is wrong."
        )


def _compare_exact(task: Task, claimed: Evidence, found: Evidence) -> None:
    if claimed.per_datum is not None and found.per_datum is not None:
        one, other = (torch.as_tensor(e.per_datum) for e in (claimed, found))
        if one.shape == other.shape and not _alike(one, other.to(one.dtype)):
            raise _differ(task, torch.arange(len(one)), one, other, "as claimed", "as verified")
    if abs(claimed.value - found.value) > tolerance(task.x.dtype) * max(1.0, abs(found.value)):
        raise Disagreement(
            f"two exact values of log p(x) of '{task.program.name}' differ: {claimed.value:.6f} nats as claimed, "
            f"{found.value:.6f} as verified. Nothing is reported as exact. The method's claim "
            "is wrong, or the program does what reading it cannot see."
        )
