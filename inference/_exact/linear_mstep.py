"""The M-step of a (conditionally) linear-Gaussian program: regression where the coefficients are the program's parameters.

A normal site's mean is B z + b. Where every entry of B, b and the scale is a constant or a copy of an entry of θ (found as
in `mstep`, by vector-Jacobian products) the maximum is weighted least squares of x on the posterior moments of [z, 1], and
the scale follows from the residual: Rubin & Thayer 1982 for factor analysis, Tipping & Bishop 1999 for PPCA, and any other
program of that form. Everything else is numeric: through the moments, or, where rows differ in their parameters, through
the log joint at 2L sigma points, whose mean is the exact expectation of a quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference._exact.gaussian import Gaussian
from inference._exact.linear import LinearGaussian, Values
from inference._exact.moments import Moments
from inference._exact.mstep import climb_numerically, still_copies, usage
from inference._families._family import Floor, Pool, tiny
from inference._numerics.threads import one_thread

DENSE_UNKNOWNS = 2000  # of a regression whose rows share coefficients


@dataclass
class Plan:
    """How each parameter is updated."""

    regressions: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)  # site → part → θ → index
    scales: dict[str, tuple[str, Tensor]] = field(default_factory=dict)  # site → (θ, index)
    spreads: dict[str, Tensor] = field(default_factory=dict)  # site in `scales` → units of its deviations [E]
    families: dict[str, tuple[str, str, Tensor]] = field(default_factory=dict)  # θ → (site, parameter, index)
    numeric: tuple[str, ...] = ()

    @property
    def closed(self) -> tuple[str, ...]:
        """Names of the parameters with a closed form."""
        regressed = [t for parts in self.regressions.values() for thetas in parts.values() for t in thetas]
        return (*self.families, *regressed, *(t for t, _ in self.scales.values()))


def plan(engine: LinearGaussian, globals: Values) -> Plan:
    """Find, by differentiation, which parameters have a closed-form update."""
    leaves = {n: v.detach() for n, v in engine.program.values().items()}
    if not leaves or not engine.fast:
        return Plan(numeric=tuple(leaves))

    def look(at: Values) -> tuple[list[tuple[str, str, Tensor]], list[Tensor]]:
        gaussians, others, prior = engine.sites(at, globals)
        tensors = [(g.name, part, value) for g in gaussians for part, value in _parts(g)]
        tensors += [(site, name, value) for site, params in others.items() for name, value in params.items()]
        return tensors, [prior]

    uses, found = usage(engine.program, look)
    gaussians, others, _ = engine.sites(None, globals)
    return _sort(engine, leaves, uses, found, {g.name: g for g in gaussians}, others)


def _parts(g: Gaussian) -> list[tuple[str, Tensor]]:
    return [("coefficients", g.coefficients), ("offset", g.offset), (g.form, g.given)]


def _sort(engine, leaves, uses, found, gaussians, others) -> Plan:
    out, numeric, spreads = Plan(), [], _spreads(engine, gaussians)
    for theta, where in uses.items():
        copied = found.get(theta)
        if not where:
            continue
        if len(where) > 1 or copied is None:
            numeric.append(theta)
            continue
        site, part = where[0]
        if site in others:
            pool = Pool(theta, leaves[theta].detach(), copied)
            closed = engine.families[site].closed(part, pool, others[site])
            if closed:
                out.families[theta] = (site, part, copied)
        elif part in ("coefficients", "offset"):
            closed = True
            out.regressions.setdefault(site, {}).setdefault(part, {})[theta] = copied
        else:
            size = gaussians[site].given[0].numel()
            closed = part == "scale" or Pool(theta, leaves[theta].detach(), copied).blocks(size) is not None
            if closed:
                out.scales[site], out.spreads[site] = (theta, copied), spreads[site]
        if not closed:
            numeric.append(theta)
    for site in list(out.regressions):
        if not _solvable(gaussians[site], out.regressions[site], leaves):
            numeric += [t for thetas in out.regressions.pop(site).values() for t in thetas]
    out.numeric = tuple(numeric)
    return out


def _solvable(g: Gaussian, parts: dict[str, dict[str, Tensor]], leaves: dict[str, Tensor]) -> bool:
    """Rows that share no coefficient are solved one by one, others all at once; correlated noise needs them all free."""
    index, _ = _unknowns(g, parts, {n: v.detach() for n, v in leaves.items()})
    free = index[index >= 0]
    alone = len(free.unique()) == len(free)
    if not g.diagonal:
        return alone and bool((index >= 0).all())
    return alone or len(free.unique()) <= DENSE_UNKNOWNS


def _unknowns(g: Gaussian, parts: dict[str, dict[str, Tensor]], values: Values) -> tuple[Tensor, dict[str, int]]:
    """Which unknown each entry of [B | b] is [A, E, L+1], −1 for a constant; where each θ begins among the unknowns."""
    blank = torch.full_like(g.offset, -1, dtype=torch.long)
    index = torch.cat([torch.full_like(g.coefficients, -1, dtype=torch.long), blank.unsqueeze(-1)], -1)
    begins, at = {}, 0
    for part, thetas in parts.items():
        for theta, copied in thetas.items():
            begins[theta] = at
            shifted = torch.where(copied >= 0, copied + at, copied)
            view = index[..., :-1] if part == "coefficients" else index[..., -1]
            view.copy_(torch.where(shifted >= 0, shifted, view))
            at += values[theta].numel()
    return index, begins


def m_step(
    engine: LinearGaussian,
    plan: Plan,
    moments: Moments,
    globals: dict[str, Tensor],
    supports: dict[str, object],
    floor: Floor,
    responsibilities: Tensor | None = None,
    iterations: int = 10,
) -> dict[str, Tensor]:
    """Maximise the expected complete log joint over θ (in place) and the global latents (returned)."""
    if plan.closed:
        with torch.no_grad(), one_thread():  # its matrices are small: threads cost more than they save
            _closed(engine, plan, moments, floor)
    if not plan.numeric and not globals:
        return globals

    def objective(parameters: Values, point: Values) -> Tensor:
        return expected(engine, moments, parameters, point)

    return climb_numerically(engine.program, plan.numeric, globals, supports, objective, engine.N, iterations)


def expected(
    engine: LinearGaussian,
    moments: Moments,
    parameters: Values,
    globals: Values,
    responsibilities: Tensor | None = None,
) -> Tensor:
    """E_q[log p(x, z, globals)] up to a constant, nats; differentiable in parameters and globals."""
    if moments.posterior is not None:
        return _by_sigma_points(engine, moments, parameters, globals)
    return expected_log_joint(engine, moments, parameters, globals)


def smallest(engine: LinearGaussian, moments: Moments) -> float:
    """The smallest variance of an observed site, as a share of its data's own; ∞ where sites are not read."""
    if moments.seen is None:
        return torch.inf
    gaussians, others, _ = moments.seen
    found = [torch.inf]
    for g in gaussians:
        if g.place is None:
            scale = g.scale / engine.spreads[g.name].unsqueeze(-1 if not g.diagonal else 0)
            found.append(float(scale.amin() if g.diagonal else torch.linalg.svdvals(scale).amin()) ** 2)
    for site, params in others.items():
        least = engine.families[site].smallest(params) if site not in engine.assignments else None
        found += [] if least is None else [float(least.amin())]
    return min(found)


def broken(engine: LinearGaussian, plan: Plan, moments: Moments) -> list[str]:
    """The parameters with a closed form that the sites, as the last E-step saw them, do not copy where they stand."""
    if moments.seen is None:
        return []
    gaussians, others, _ = moments.seen
    parts = {g.name: dict(_parts(g)) for g in gaussians}
    values = engine.program.values()
    uses = [(theta, others[site][name], index) for theta, (site, name, index) in plan.families.items()]
    for site, of_site in plan.regressions.items():
        uses += [(t, parts[site][part], index) for part, thetas in of_site.items() for t, index in thetas.items()]
    for site, (theta, index) in plan.scales.items():
        form = next(k for k in parts[site] if k not in ("coefficients", "offset"))
        uses.append((theta, parts[site][form], index))
    return [theta for theta, value, index in uses if not still_copies(value, values[theta], index)]


def without(plan: Plan, names: set[str]) -> Plan:
    """The plan with `names` updated numerically."""
    moved = [n for n in plan.closed if n in names]
    if not moved:
        return plan
    regressions = {
        site: {part: {t: i for t, i in thetas.items() if t not in names} for part, thetas in parts.items()}
        for site, parts in plan.regressions.items()
    }
    kept = {
        site: {part: thetas for part, thetas in parts.items() if thetas}
        for site, parts in regressions.items()
        if any(parts.values())
    }
    return Plan(
        kept,
        {site: use for site, use in plan.scales.items() if use[0] not in names},
        plan.spreads,
        {theta: use for theta, use in plan.families.items() if theta not in names},
        (*plan.numeric, *moved),
    )


def _closed(engine: LinearGaussian, plan: Plan, moments: Moments, floor: Floor) -> None:
    gaussians, others, _ = moments.seen
    values, new = {n: v.detach() for n, v in engine.program.values().items()}, {}
    for theta, (site, name, index) in plan.families.items():
        pool = Pool(theta, values[theta], index)
        new[theta] = engine.families[site].maximise(name, pool, moments.sites[site], others[site], floor)
    for g in gaussians:
        stats, center = _moments_of(engine, g, moments), engine.centers.get(g.name, torch.zeros_like(g.offset[0]))
        beta = torch.cat([g.coefficients, (g.offset - center).unsqueeze(-1)], -1)  # [A, E, L+1]
        if g.name in plan.regressions:
            index, begins = _unknowns(g, plan.regressions[g.name], values)
            beta, solved = _regress(g, beta, center, index, stats)
            for theta, begin in begins.items():
                old = values[theta].reshape(-1)
                mine = solved[begin : begin + len(old)]
                new[theta] = torch.where(mine.isnan(), old, mine).reshape(values[theta].shape)
        if g.name in plan.scales:
            theta, index = plan.scales[g.name]
            new[theta] = _scale(g, beta, Pool(theta, values[theta], index), stats, floor, plan.spreads[g.name])
    engine.program.assign(new)


def _moments_of(engine: LinearGaussian, g: Gaussian, moments: Moments) -> dict[str, Tensor]:
    """xz [A, E, L+1], xx [A, E(, E)], zz [A, 1 or E, L+1, L+1] of a site; a latent site's x is a part of z."""
    if g.place is None:
        stats = moments.sites[g.name]
        return {**stats, "zz": stats.get("zz", moments.zz.unsqueeze(1))}
    xz = moments.zz[:, g.place]
    xx = xz[:, :, g.place]
    return {"xz": xz, "xx": xx.diagonal(dim1=-2, dim2=-1) if g.diagonal else xx, "zz": moments.zz.unsqueeze(1)}


def _regress(
    g: Gaussian, beta: Tensor, center: Tensor, index: Tensor, stats: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weighted least squares for the unknowns: the new [B | b − center], and the unknowns (NaN where none was met)."""
    free = index >= 0
    constant = torch.where(free, torch.zeros_like(beta), beta)
    constant[..., -1] = torch.where(free[..., -1], -center.expand_as(g.offset), beta[..., -1])
    zz = stats["zz"]
    target = stats["xz"] - (zz @ constant.unsqueeze(-1)).squeeze(-1)  # [A, E, L+1]
    count = int(index.max()) + 1
    used = index[free]
    if len(used.unique()) == len(used):
        solution = _row_by_row(zz, target, free)
        unknown = beta.new_full((count,), torch.nan).index_put((used,), solution[free])
    else:
        unknown = _all_at_once(g, zz, target, index, free, count)
        solution = torch.where(free, unknown[index.clamp(min=0)], torch.zeros_like(beta))
    # an assignment with no data keeps what it has
    empty = zz[:, :, -1, -1] <= 10 * torch.finfo(beta.dtype).eps
    kept = torch.where(empty.unsqueeze(-1), beta, constant + solution)
    lost = index[empty.expand(index.shape[:2])]
    if len(used.unique()) == len(used):
        unknown[lost[lost >= 0]] = torch.nan
    return kept, unknown


def _ridge(matrix: Tensor) -> Tensor:
    """A trace of the identity, far below rounding of what matters, so that an empty system can be solved."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    tiny = (1e-14 * size).clamp(min=1e-30)
    return matrix + tiny[..., None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def _row_by_row(zz: Tensor, target: Tensor, free: Tensor) -> Tensor:
    if bool(free.all()):
        if zz.shape[1] == 1:
            return torch.linalg.solve(_ridge(zz[:, 0]), target.mT).mT
        return torch.linalg.solve(_ridge(zz), target.unsqueeze(-1)).squeeze(-1)
    mask = free.to(zz.dtype)
    system = zz * mask.unsqueeze(-1) * mask.unsqueeze(-2) + torch.diag_embed(1 - mask)
    return torch.linalg.solve(_ridge(system), (target * mask).unsqueeze(-1)).squeeze(-1) * mask


def _all_at_once(g: Gaussian, zz: Tensor, target: Tensor, index: Tensor, free: Tensor, count: int) -> Tensor:
    """Rows that share coefficients, weighted by their precisions."""
    weight = g.scale.square().reciprocal().unsqueeze(-1)  # [A, E, 1]
    weight = weight / weight.max()
    right = target.new_zeros(count).index_add(0, index[free], (weight * target)[free])
    pairs = free.unsqueeze(-1) & free.unsqueeze(-2)
    place = index.clamp(min=0).unsqueeze(-1) * count + index.clamp(min=0).unsqueeze(-2)
    terms = (weight.unsqueeze(-1) * zz).expand(place.shape)
    left = target.new_zeros(count * count).index_add(0, place[pairs], terms[pairs]).reshape(count, count)
    unused = left.diagonal() == 0
    solution = torch.linalg.solve(_ridge(left) + unused.to(left.dtype).diag(), right)
    return torch.where(unused, torch.full_like(solution, torch.nan), solution)


def _residual(g: Gaussian, beta: Tensor, stats: dict[str, Tensor]) -> Tensor:
    """Σ w E[(x − B z − b)²] [A, E], or the matrix [A, E, E]."""
    xz, xx, zz = stats["xz"], stats["xx"], stats["zz"]
    if g.diagonal:
        return xx - 2 * (beta * xz).sum(-1) + (beta * (zz @ beta.unsqueeze(-1)).squeeze(-1)).sum(-1)
    cross = xz @ beta.mT
    return xx - cross - cross.mT + beta @ zz[:, 0] @ beta.mT


def _scale(g: Gaussian, beta: Tensor, pool: Pool, stats: dict[str, Tensor], floor: Floor, spread: Tensor) -> Tensor:
    residual, count = _residual(g, beta, stats), stats["zz"][:, :, -1, -1]  # [A, 1 or E]
    if g.diagonal:
        n = pool.total(count.expand_as(residual))
        known = n > 10 * torch.finfo(n.dtype).eps
        variance, unit = pool.total(residual) / n.clamp(min=tiny(n)), pool.mean((spread**2).expand_as(residual))
        lowest = unit * _lowest(g, pool.theta, variance / unit.clamp(min=tiny(unit)), known, floor)
        low = ~(variance >= lowest) & known
        if low.any():
            hit = (pool.index >= 0) & low[pool.index.clamp(min=0)]
            _note(g, floor, hit.flatten(1).any(1).nonzero()[:, 0].tolist())
            floor.resting[pool.theta] = low
        return pool.fill(torch.where(low, lowest, variance).sqrt(), known)
    E = residual.shape[-1]
    blocks = pool.blocks(E * E)
    assert blocks is not None  # `plan` said so
    groups = pool.value.numel() // (E * E)
    n = residual.new_zeros(groups).index_add(0, blocks, count[:, 0])
    covariance = residual.new_zeros(groups, E, E).index_add(0, blocks, residual) / n.clamp(min=tiny(n))[:, None, None]
    unit = torch.outer(spread, spread)
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2 / unit)
    lowest = _lowest(g, pool.theta, eigenvalues.amin(-1), n > 0, floor)
    low = ~(eigenvalues.amin(-1) >= lowest)
    _note(g, floor, [a for a, b in enumerate(blocks.tolist()) if low[b]])
    if low.any():
        floor.resting[pool.theta] = low
    clipped = (vectors * torch.maximum(eigenvalues, lowest.unsqueeze(-1)).unsqueeze(-2)) @ vectors.mT * unit
    covariance = torch.where(low[:, None, None], clipped, covariance)
    tril = torch.linalg.cholesky(covariance)
    form = {"scale_tril": tril, "covariance_matrix": covariance, "precision_matrix": torch.cholesky_inverse(tril)}
    return form[g.form].reshape(pool.value.shape)


def _lowest(g: Gaussian, theta: str, share: Tensor, known: Tensor, floor: Floor) -> Tensor:
    """The smallest share of the data's variance for each entry of θ; a latent site's own may go to almost nothing."""
    return floor.lowest(theta, share, known) if g.place is None else torch.full_like(share, floor.least(share.dtype))


def _note(g: Gaussian, floor: Floor, assignments: list[int]) -> None:
    if g.place is None:
        floor.reached.update(assignments)
    elif assignments:
        floor.latent.add(g.name)


def _spreads(engine: LinearGaussian, gaussians: dict[str, Gaussian]) -> dict[str, Tensor]:
    """Site → what its standard deviations are measured in [E].

    For an observed site those of its data; for a latent one the size that moves some site below it by as much as that
    site's own unit, so that data in other units get another floor.
    """
    out: dict[str, Tensor] = {}
    for g in reversed(list(gaussians.values())):
        if g.place is None:
            out[g.name] = engine.spreads[g.name]
            continue
        moved = torch.zeros_like(g.offset[0])
        for name, unit in out.items():
            effect = gaussians[name].coefficients[..., g.place].abs() / unit.unsqueeze(-1)  # [A, E of it, E]
            moved = torch.maximum(moved, effect.amax((0, 1)))
        own = (g.scale if g.diagonal else g.scale.square().sum(-1).sqrt()).amax(0)
        out[g.name] = torch.where(moved > 0, moved.reciprocal(), own)
    return out


def expected_log_joint(engine: LinearGaussian, moments: Moments, parameters: Values, globals: Values) -> Tensor:
    """E_q[log p(x, z, globals)] up to a constant, nats, from the moments; differentiable in parameters and globals."""
    gaussians, others, total = engine.sites(parameters, globals)
    for g in gaussians:
        stats, center = _moments_of(engine, g, moments), engine.centers.get(g.name, torch.zeros_like(g.offset[0]))
        beta = torch.cat([g.coefficients, (g.offset - center).unsqueeze(-1)], -1)
        if g.place is not None:  # its value is a part of z itself: the residual is (E − B) z − b
            beta = beta - torch.cat([g.selected(engine.L), torch.zeros(len(center), 1, dtype=beta.dtype)], 1)
            stats = {**stats, "xz": torch.zeros_like(stats["xz"]), "xx": torch.zeros_like(stats["xx"])}
        residual, count = _residual(g, beta, stats), stats["zz"][:, :, -1, -1]
        if g.diagonal:
            total = total - 0.5 * (residual / g.scale.square()).sum() - (count * g.scale.log()).sum()
        else:
            solved = torch.cholesky_solve(residual, g.scale).diagonal(dim1=-2, dim2=-1).sum()
            total = total - 0.5 * solved - (count[:, 0] * g.log_det()).sum()
    for site, params in others.items():
        total = total + engine.families[site].expected(moments.sites[site], params)
    return total


def _by_sigma_points(engine: LinearGaussian, moments: Moments, parameters: Values, globals: Values) -> Tensor:
    """The same over the data: the mean of a quadratic over m ± √L S e_l is its expectation under N(m, S Sᵀ)."""
    L, (_, total) = engine.L, engine.views(parameters, globals)
    for rows, posterior in zip(engine.chunks(), moments.posterior or [], strict=True):
        tril = posterior.tril() * L**0.5  # [n, A, L, L]
        steps = torch.cat([tril.mT, -tril.mT], -2)  # [n, A, 2L, L]
        points = (posterior.mean.unsqueeze(-2) + steps).permute(1, 2, 0, 3)  # [A, 2L, n, L]
        n = rows.stop - rows.start
        value = engine._log_joint(engine.x[rows], points.reshape(-1, n, L), parameters, globals)
        mean = value.reshape(engine.A, 2 * L, n).mean(1)  # [A, n]
        total = total + (posterior.weights.mT * mean).sum()
    return total
