"""Laplace's approximation over global latents, or over θ: a Gaussian at the mode, or a grid about it.

With global latents (parameters with priors) the Gaussian is over them, in unconstrained coordinates, and gives log p(x)
(MacKay 2003, §27; Tierney & Kadane 1986); up to three of them are integrated on a grid (`grid`). What is left of the local
latents is integrated out inside (`inner`). A program without globals has no more to approximate, and the Gaussian is the
large-sample one over θ itself, from the observed information (Efron & Hinkley 1978): standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from inference._density import local
from inference._laplace import grid
from inference._laplace.inner import Exact, Inner, Nested
from inference._laplace.search import MOST_ON_A_GRID, Options, Search
from inference._laplace.weighed import MOST as MOST_WEIGHED
from inference._mcmc.diagnose import AGREE
from inference._method.fit import Arrays, Evidence, Fit, GlobalGaussian
from inference._method.task import Task
from inference._numerics import definite
from inference._numerics.coordinates import Coordinates
from inference._numerics.peak import SADDLE, SMALLEST_EIGENVALUE, Peak
from inference._numerics.psis import psis
from inference._sampling.khat import LIMIT, of_globals
from inference._training.integrated import Integrated
from zoo._errors import Refusal

MOST_BELOW = 0.01  # nats from θ to the mode near it, for a curvature at θ to say how well the data fix θ
MOST_PARAMETERS = 3000  # a Hessian of more is neither cheap nor telling
LEAST_EFFECTIVE = 0.1  # of the Gaussian's draws: of many numbers a few have all the weight before k-hat shows it
LEAST_BESIDE = 0.01  # of the mass, in other modes, that a claim has to speak of
FROM_CHAINS = 1800  # draws that the fit holds, at least
FLAT = 1e-6  # of a Hessian with ones on its diagonal, an eigenvalue below which a direction is not known
CHEAP = 2**17  # numbers in an evaluation, up to which a grid is the usual way


def fit(task: Task, inner: Inner, options: Options) -> Fit:
    """Climb to the mode by L-BFGS, finish with Newton steps, and take the Hessian there.

    A Hessian that is not positive definite is damped, and the fit says so. `inner` is of a task in float64, or of `task`.
    """
    search = Search(task, inner, options)
    if search.coordinates.d > MOST_PARAMETERS:
        raise Refusal(
            f"laplace would need a Hessian over {search.coordinates.d:,} numbers, more than {MOST_PARAMETERS:,}. Methods that "
            "need none: em, svi, importance."
        )
    peaks = search.peaks()
    peak = peaks[0]
    if task.learn:
        learned = {n: v for n, v in search.values(peak.flat).items() if n in search.theta}
        for own in {id(t): t for t in (task, inner.task)}.values():
            own.program.assign({n: v.to(own.x.dtype) for n, v in learned.items()})
    found = _result(search, peaks)
    kept = not (task.learn or search.globals or not search.coordinates.d)
    return _at_kept_theta(found, search.density, peak) if kept else found


def approximation(task: Task) -> GlobalGaussian | None:
    """Laplace's Gaussian over the global latents, the local ones integrated out; None where there is none to be had.

    There is none at a peak that is flat in some direction, as rotated loadings are, or whose climb ended on a slope: with its
    Hessian damped a standard deviation is 1,000 and more. θ that is learned is at its peak beside the globals, and the
    program keeps its own.
    """
    structure = task.structure
    if any(site.discrete for site in structure.global_latents):
        return None
    try:
        inner: Inner = Exact(task)
        if not structure.is_exact:
            if local.refusal(structure, given_globals=True) is not None:
                return None
            inner = Nested(task.doubled(), 100, 1e-9, 10, 0, None)
        search = Search(task, inner, Options(200, 1e-6, 1, "laplace", "auto"))
        if search.coordinates.d > MOST_PARAMETERS:
            return None
        peak = search.peaks()[0]
        flat = int(definite.raised(peak.hessian[search.places][:, search.places], FLAT)[1])
        return None if flat else _at(search, peak)
    except (Refusal, ArithmeticError, ValueError, RuntimeError):  # no mode: whoever asks begins elsewhere
        return None


def _at(search: Search, peak: Peak) -> GlobalGaussian:
    """The Gaussian over the globals at a peak."""
    tril = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(search.precision(peak))))
    return _in_dtype(search.task, search.layout, peak.flat[search.places], tril)


@dataclass
class _Outer:
    """An approximation over the globals and θ: the unconstrained draws [S, d], and what a fit says of them."""

    draws: Tensor
    errors: dict[str, Tensor]
    evidence: Evidence | None  # None where there is no mode
    gaussian: GlobalGaussian | None
    point: dict[str, Tensor]  # of the globals
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    chains: Arrays = field(default_factory=dict)  # as of `Fit`
    far: bool = False  # whether the Gaussian is too far from the posterior for weights


def _gaussian(search: Search, peak: Peak) -> _Outer:
    """Laplace's approximation at the peak."""
    coordinates = search.coordinates
    hessian, low = definite.raised(peak.hessian, SMALLEST_EIGENVALUE)
    raised = int(low)
    point = {n: v for n, v in search.values(peak.flat).items() if n in search.globals}
    out = _Outer(
        _gaussian_draws(search, peak),
        _standard_errors(coordinates, peak.flat, _spread(peak.hessian)),
        _evidence(search, peak, point),
        None,
        point,
        notes={"over": list(coordinates.sizes), "eigenvalues_raised": raised, "evaluations": len(peak.trace)},
    )
    if point:
        out.gaussian = _at(search, peak)
    if point and _is_saddle(peak.hessian[search.places][:, search.places]):
        out.evidence = None
        out.warnings.append(
            "the climb ended where the density still bends upwards: there is no mode here, and no log p(x) by one. Take nuts, "
            "svi or ais."
        )
    elif raised:
        out.warnings.append(
            f"the Hessian at the mode is not positive definite: {raised} of its {len(hessian)} eigenvalues were damped. The "
            "data do not identify those directions (rotated loadings, an empty component); standard errors leave them out."
        )
    if out.gaussian is not None and not isinstance(search.inner, Exact):  # else the verifier says
        _weigh(search, peak, out.gaussian, out)
    return out


def _is_saddle(hessian: Tensor) -> bool:
    """Whether an eigenvalue is negative beyond rounding: the volume of a Gaussian would be that of the damping."""
    return float(definite.eigen(definite.unit_diagonal(hessian)[0])[0][0]) < -SADDLE


@torch.no_grad()
def _weigh(search: Search, peak: Peak, q: GlobalGaussian, out: _Outer) -> None:
    """k-hat of the Gaussian over the globals, the local latents as they are integrated out inside."""
    normal = torch.distributions.MultivariateNormal(q.mean.double(), scale_tril=q.scale_tril.double())
    u = out.draws[:, search.places]
    found = search.beside(peak)(u) - normal.log_prob(u)
    khat, ess = (float(v[0]) for v in psis(found.nan_to_num(-torch.inf).unsqueeze(1).double().numpy()))
    out.notes["khat_of_globals"] = khat
    if not khat <= LIMIT or ess < LEAST_EFFECTIVE * len(found):
        out.far = True
        out.warnings.append(
            f"{of_globals(khat)} with {ess:.0f} effective draws of {len(found)}: its posterior is not close to Gaussian. "
            "nuts samples it."
        )


def _on_a_grid(search: Search, peak: Peak) -> _Outer | None:
    """The globals integrated on a grid at the θ of the peak; None where a grid is not wanted, or takes too many points."""
    asked = search.options.globals
    if not search.globals or asked == "laplace":
        return None
    G, task = len(search.places), search.task
    if asked == "grid" and G > MOST_ON_A_GRID:
        raise Refusal(
            f"globals=grid serves at most {MOST_ON_A_GRID} numbers, and the global latents have {G}: take globals=laplace"
        )
    width = task.x.numel() * task.structure.assignments
    known = task.structure.integrable == "normal" and task.structure.is_exact
    if asked == "auto" and (G > MOST_ON_A_GRID or known or width > CHEAP or not peak.converged):
        return None

    block = peak.hessian[search.places][:, search.places]
    densities = search.beside(peak)
    try:
        found = grid.explore(densities, peak.flat[search.places], block)
    except grid.Endless as error:
        raise Refusal(_endless(search, error)) from error
    if found is not None and found.holds(densities, torch.Generator().manual_seed(task.seed)):
        return _of_grid(search, peak, found)
    if asked == "auto":
        return None
    why = "take too many points" if found is None else "pass by much of the posterior between its points"
    raise Refusal(f"globals=grid would {why}, the posterior is too far from a Gaussian: take nuts")


def _of_grid(search: Search, peak: Peak, found: grid.Grid) -> _Outer:
    candidates, weights = found.weighted(torch.Generator().manual_seed(search.task.seed))
    notes: dict[str, object] = {"grid_points": len(found.values), "evaluations": len(peak.trace) + len(found.values)}
    return _averaged(search, peak, candidates, weights, found.log_integral, notes)


def _by_weights(search: Search, peak: Peak, plain: _Outer) -> _Outer:
    """The globals by draws that are weighed, where those weights can be trusted; else `plain`, which says what they say."""
    if not _can_be_weighed(search, peak, plain):
        return plain
    assert plain.gaussian is not None
    if plain.far and isinstance(search.inner, Nested) and search.inner.by_nodes and search.inner.side_by_side:
        return _by_chains(search, peak, plain) or plain
    covariance = plain.gaussian.scale_tril @ plain.gaussian.scale_tril.mT
    found = search.weighed(peak, covariance.to(peak.flat))
    khat, ess = float(found.told.khat[0]), float(found.told.ess[0])
    if not found.trusted:
        plain.notes["khat_of_weighed_draws"] = khat
        return plain
    notes: dict[str, object] = {
        "global_draws": "weighed by their density and resampled; Laplace's Gaussian was the first proposal",
        "khat_of_globals": khat,
        "effective_draws": ess,
        "rounds": found.rounds,
        "log_evidence_se_of_weights": float(found.told.evidence().se or 0.0),
    }
    return _averaged(search, peak, found.flat, found.shares, found.told.evidence().value, notes)


def _by_chains(search: Search, peak: Peak, plain: _Outer) -> _Outer | None:
    """The globals by chains on their density; None where these cannot be trusted."""
    assert plain.gaussian is not None
    found = search.walked(peak, plain.gaussian.scale_tril.double())
    if found is None:
        return None
    told, draws = found.told, search.task.draws
    kept = found.drawn.kept(max(FROM_CHAINS, draws) if draws >= 200 else draws)  # fewer of large data
    flat, chosen = found.flat.flatten(0, 1), found.flat[:, kept].flatten(0, 1)
    notes: dict[str, object] = {
        "global_draws": "chains on their density with the local latents integrated out, begun at Laplace's Gaussian",
        "rhat_of_globals": max(told.rhat.values()),
        "effective_draws": min(*told.ess_bulk.values(), *told.ess_tail.values()),
    }
    shares = torch.full((len(flat),), 1 / len(flat), dtype=flat.dtype)
    out = _averaged(search, peak, flat, shares, search.mass(peak), notes)
    own = _gaussian_draws(search, peak)[torch.arange(len(chosen)) % draws]
    out.draws = own.index_copy(1, search.places, chosen)
    out.chains = found.drawn.told(kept)
    if max(told.rhat.values()) >= AGREE:
        out.warnings.append(
            f"R-hat of the chains over the global latents is {max(told.rhat.values()):.3f}, and should be below {AGREE}: the "
            "draws are better than the Gaussian's, and not as good as those of a long run of nuts."
        )
    return out


def _can_be_weighed(search: Search, peak: Peak, plain: _Outer) -> bool:
    structure = search.task.structure
    if plain.gaussian is None or search.options.globals == "laplace" or not peak.converged:
        return False
    exactly = structure.is_exact and structure.integrable == "normal"  # the Gaussian is the posterior itself
    return not exactly and len(search.places) <= MOST_WEIGHED and search.quick


def _averaged(
    search: Search, peak: Peak, candidates: Tensor, weights: Tensor, log_evidence: float, notes: dict[str, object]
) -> _Outer:
    """The globals by candidates [M, d] and weights [M], which sum to 1."""
    task, out = search.task, _gaussian_draws(search, peak)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        out[:, search.places] = candidates[torch.multinomial(weights, len(out), replacement="grid_points" not in notes)]
    mean = weights @ candidates
    away = (candidates - mean) * weights.sqrt().unsqueeze(1)
    tril = torch.linalg.cholesky(away.mT @ away)
    point, errors = {}, _standard_errors(search.coordinates, peak.flat, _spread(peak.hessian))
    for name, value in search.layout.unflatten(candidates).items():
        each = weights.reshape(-1, *(1,) * (value.dim() - 1))
        point[name] = (each * value).sum(0)
        errors[name] = (each * (value - point[name]).square()).sum(0).sqrt()
    about = {"point": "posterior means", "log_evidence_by_laplace": search.mass(peak)}
    return _Outer(
        out,
        errors,
        Evidence(log_evidence, None, "estimate"),
        _in_dtype(task, search.layout, mean, tril),
        point,
        notes={"over": list(search.coordinates.sizes), **about, **notes},
    )


def _endless(search: Search, error: grid.Endless) -> str:
    place = dict(search.layout.unflatten(error.flat))
    where = ", ".join(f"'{n}' at {v.detach().flatten()[0]:.3g}" for n, v in place.items())
    return (
        f"the posterior of the global latents seems improper: {error} ({where}), so that it has no integral. Give them proper "
        "priors"
    )


def _result(search: Search, peaks: list[Peak]) -> Fit:
    task, peak = search.task, peaks[0]
    outer = _on_a_grid(search, peak) or _by_weights(search, peak, _gaussian(search, peak))
    draws = {n: v.detach() for n, v in search.coordinates.unflatten(outer.draws).items()}
    local = search.inner.locals({n: v for n, v in draws.items() if n in search.globals}, outer.point)
    warnings = [*outer.warnings]
    if not peak.converged:
        warnings.append("laplace did not reach the mode to the tolerance asked for; raise max_iter or tol.")
    if search.runs_away(peak):
        warnings.append(
            "θ has gone to an edge of its domain beside the global latents: a prior that closes in on its latents may have no "
            "mode. em or svi integrate the latents out."
        )
    theta = {n: v.detach().numpy() for n, v in task.program.values().items()}
    dtype = task.x.numpy().dtype
    fit = Fit(
        parameters={**theta, **{n: v.numpy().astype(dtype) for n, v in outer.point.items()}},
        claimed=outer.evidence,
        draws={**{n: v.numpy().astype(dtype) for n, v in draws.items()}, **local.draws},
        means=local.means,
        deviations=local.deviations,
        probabilities=local.probabilities,
        standard_errors={n: v.numpy() for n, v in outer.errors.items()},
        khat=local.khat,
        ess=local.ess,
        trace={"log_joint" if search.globals else "log_likelihood": np.asarray(peak.trace)} if peak.trace else {},
        chains=outer.chains,
        converged=peak.converged,
        warnings=[*warnings, *local.warnings],
        notes=outer.notes | local.notes,
        global_gaussian=outer.gaussian,
    )
    return _with_others(fit, search, peaks, outer.draws) if len(peaks) > 1 else fit


def _evidence(search: Search, peak: Peak, point: dict[str, Tensor]) -> Evidence:
    task = search.task
    if not point:
        exact = Evidence.from_per_datum(task.engine.per_datum().numpy(), "exact", weights=task.times)
        # what is observed outside the data plate belongs to no row
        return replace(exact, value=exact.value + float(task.engine.log_prior().detach()))
    structure = task.structure
    if (
        structure.is_exact and structure.integrable == "normal" and not task.engine.delicate
    ):  # the Gaussian is the posterior
        if (
            task.learn and task.structure.learnable
        ):  # θ may be where a prior closes in on g, too near for the Hessian at g
            return Evidence(float(Integrated.of(task).evidence().detach()), 0.0, "exact")
        return Evidence(search.mass(peak), 0.0, "exact")  # the Gaussian is the posterior itself
    return Evidence(search.mass(peak), None, "estimate")


def _in_dtype(task: Task, layout: Coordinates, mean: Tensor, tril: Tensor) -> GlobalGaussian:
    return GlobalGaussian(layout, mean.to(task.x.dtype), tril.to(task.x.dtype))


def _gaussian_draws(search: Search, peak: Peak) -> Tensor:
    """Draws [S, d] of all coordinates from the Gaussian at the peak."""
    generator = torch.Generator().manual_seed(search.task.seed)
    noise = torch.randn(search.task.draws, search.coordinates.d, generator=generator, dtype=torch.float64)
    return peak.flat + noise.to(peak.flat) @ _spread(peak.hessian).mT


def _with_others(fit: Fit, search: Search, peaks: list[Peak], drawn: Tensor) -> Fit:
    """What the fit says of modes beside its own; `drawn` [S, d] are its draws."""
    masses = torch.tensor([search.mass(p) for p in peaks], dtype=torch.float64)
    share = masses.softmax(0).tolist()
    modes = [
        {"log_density": p.value, "log_evidence": float(m), "weight": w}
        for p, m, w in zip(peaks, masses, share, strict=True)
    ]
    found = f"{len(peaks)} modes were found by Laplace's approximation, the first with {share[0]:.0%} of their mass"
    said = f"{found}: draws and evidence cover all of them, and a mean may lie between."
    if (beside := _not_reached(search, peaks, share, drawn)) >= LEAST_BESIDE:
        said = (
            f"{found}: draws and evidence leave out modes with {beside:.0%} of it. The sum of all is "
            f"{float(masses.logsumexp(0)):.3f} nats."
        )
        if search.globals and fit.claimed is not None:
            fit = replace(fit, claimed=replace(fit.claimed, given=f"the mode that the fit is of, one of {len(peaks)}"))
    return fit.with_notes([said] if search.globals else [], {"modes": modes})


def _not_reached(search: Search, peaks: list[Peak], share: list[float], drawn: Tensor) -> float:
    """The mass of the modes near which there are far fewer draws [S, d] than their share."""
    u = drawn[:, search.places].to(peaks[0].flat)
    each = []
    for peak, own in zip(peaks, share, strict=True):
        q = torch.distributions.MultivariateNormal(peak.flat[search.places], precision_matrix=search.precision(peak))
        each.append(q.log_prob(u) + math.log(max(own, 1e-300)))
    nearest = torch.stack(each).argmax(0).bincount(minlength=len(peaks)) / len(u)
    return sum(own for own, near in zip(share[1:], nearest[1:].tolist(), strict=True) if near < own / 4)


def _at_kept_theta(fit: Fit, density: Callable[[Tensor], Tensor], peak: Peak) -> Fit:
    """Without standard errors and draws of θ where θ is not the mode on these data."""
    (slope,) = torch.autograd.grad(density(flat := peak.flat.detach().clone().requires_grad_()), flat)
    below = float((_spread(peak.hessian).mT @ slope).square().sum() / 2)  # the Newton decrement, in nats
    if below <= MOST_BELOW:
        return fit
    said = [w for w in fit.warnings if not w.startswith("the Hessian at the mode")]
    kept = {n: v for n, v in fit.draws.items() if n not in fit.standard_errors}
    told = (
        f"θ is kept, and is not the mode of log p(x; θ) on these data (about {below:.2g} nats below it): it has no standard "
        "errors here. Those of the data it was learned on: zoo infer RUN --method laplace, without other data."
    )
    return replace(fit, standard_errors={}, draws=kept, warnings=[*said, told])


def _spread(hessian: Tensor) -> Tensor:
    """A factor F with F Fᵀ the inverse Hessian on the directions that the data identify; none along the others."""
    if not len(hessian):
        return hessian
    scaled, size = definite.unit_diagonal(hessian)
    values, vectors = definite.eigen(scaled)
    root = torch.where(values > SMALLEST_EIGENVALUE, values.abs().clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return vectors * root / size.unsqueeze(1)


def _standard_errors(coordinates: Coordinates, flat: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """Of the constrained values, by the delta method: √diag(J Σ Jᵀ)."""
    out = {}
    for name in coordinates.sizes:
        jacobian = torch.autograd.functional.jacobian(lambda f, n=name: coordinates.unflatten(f)[n], flat)
        assert isinstance(jacobian, Tensor)
        out[name] = (jacobian @ factor).square().sum(-1).sqrt()
    return out
