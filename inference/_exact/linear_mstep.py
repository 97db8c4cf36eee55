"""The M-step of a (conditionally) linear-Gaussian program: regression where the coefficients are the program's parameters.

A normal site's mean is B z + b. Where every entry of B, b and the scale is a constant or a copy of an entry of θ (found by
`copies`) the maximum is weighted least squares of x on the posterior moments of [z, 1], and the scale follows from the
residual: Rubin & Thayer 1982 for factor analysis, Tipping & Bishop 1999 for PPCA, and any other program of that form.
Everything else is numeric, through the moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from inference._exact import copies
from inference._exact.copies import Copy, Given, parts_of
from inference._exact.engine import Plan, Values
from inference._exact.gaussian import Gaussian
from inference._exact.linear_model import SiteData, Sites
from inference._exact.moments import Moments
from inference._exact.reading import Priors, hypers, priors_now, serves, split
from inference._families._family import Family, Floor, Pool, tiny
from inference._families._prior import covariance_mode, precision_of, spread_mode
from zoo._program.program import Program

DENSE_UNKNOWNS = 2000  # of a regression whose rows share coefficients
REGRESSED = ("coefficients", "offset")  # the parts of a normal site that are found by regression: B and b


class Model(Protocol):
    """A program with normal sites, each of which is what several of a long chain share, or one of its own."""

    @property
    def program(self) -> Program: ...

    @property
    def x(self) -> Tensor: ...

    @property
    def weights(self) -> Tensor | None: ...

    @property
    def N(self) -> int: ...

    @property
    def L(self) -> int: ...

    @property
    def assignments(self) -> dict[str, Tensor]: ...

    @property
    def families(self) -> dict[str, Family]: ...

    @property
    def data(self) -> SiteData: ...

    def sites(self, parameters: Values | None = None, globals: Values | None = None) -> Sites: ...


@dataclass(frozen=True)
class LinearPlan(Plan):
    """`copies` of the parts of normal sites (B, b, the scale) and of the parameters of the others."""

    units: dict[str, Tensor]  # normal site → what its standard deviations are measured in [E]

    def regressed(self, site: str) -> dict[str, Copy]:
        """The θ that make up B and b of a site."""
        return {n: c for n, c in self.copies.items() if c.site == site and c.parameter in REGRESSED}

    def scale(self, g: Gaussian) -> tuple[str, Copy] | None:
        """The θ that is the scale of a site."""
        return next(((n, c) for n, c in self.copies.items() if (c.site, c.parameter) == (g.name, g.form)), None)


def plan(model: Model, globals: Values) -> LinearPlan:
    """Find, by differentiation, which parameters and global latents have a closed-form update."""
    priors = Priors.asked(model.program, model.x, globals)

    def look(at: Values) -> tuple[list[Given], list[Tensor]]:
        sites = model.sites(**split(at, globals))
        if not globals:
            return _parts(model, sites), [sites.log_prior, *sites.rest]
        now = Priors.at(model.program, model.x, at, globals)
        return [*_parts(model, sites), *now.parts()], [now.rest(), *sites.rest]

    found, sites = copies.find(model.program, look, globals, priors.supports()), model.sites(None, globals)
    values, gaussians = {**model.program.values(), **globals}, {g.name: g for g in sites.gaussians}
    families, scales = {}, {}
    regressions: dict[str, dict[str, Copy]] = {}  # site → the θ that make up its B and b
    for theta, copy in found.items():
        if copy is None or not (copy.site in sites.others or copy.site in gaussians):
            continue
        family = gaussians[copy.site].family if copy.site in gaussians else model.families[copy.site]
        if theta in globals and not _served(family, copy, priors.of([theta]).get(theta)):
            continue
        pool = Pool(theta, values[theta].detach(), copy.places)
        if copy.site in sites.others:
            if model.families[copy.site].closed(copy.parameter, pool, sites.others[copy.site]):
                families[theta] = copy
        elif copy.parameter in REGRESSED:
            regressions.setdefault(copy.site, {})[theta] = copy
        elif gaussians[copy.site].diagonal or pool.blocks(gaussians[copy.site].given[0].numel()) is not None:
            scales[theta] = copy
    unsolved = [s for s, parts in regressions.items() if not _solvable(gaussians[s], parts, values, globals)]
    solved = {n: c for site, parts in regressions.items() if site not in unsolved for n, c in _ordered(parts)}
    closed = {**families, **solved, **scales}
    late = [n for site in unsolved for n, _ in _ordered(regressions[site])]
    numeric = [n for n in found if n not in closed and n not in late and n not in globals]
    return LinearPlan(closed, (*numeric, *late), _units(model, gaussians), **priors.plan(found))


def _served(family: Family | type[Family], copy: Copy, prior: Distribution | None) -> bool:
    """Whether a global latent with this prior has a closed form."""
    if copy.parameter in REGRESSED:
        return type(prior) is dist.Normal
    return serves(family, copy, prior)


def _ordered(parts: Mapping[str, Copy]) -> list[tuple[str, Copy]]:
    """The θ of one part of a site together, the part that comes first first."""
    order = list(dict.fromkeys(copy.parameter for copy in parts.values()))
    return sorted(parts.items(), key=lambda item: order.index(item[1].parameter))


def _parts(model: Model, sites: Sites) -> list[Given]:
    """The parameters of all sites; of a normal one B, b and its scale."""
    out = []
    for g in sites.gaussians:
        location = g.family.parameters[g.family.location]
        out += [
            Given(g.name, part, value, location)
            for part, value in (("coefficients", g.coefficients), ("offset", g.offset))
        ]
        out.append(Given(g.name, g.form, g.given, g.family.parameters[g.form], forms=g.family.forms.get(g.form, ())))
    for site, params in sites.others.items():
        out += parts_of(site, model.families[site], params)
    return out


def _solvable(g: Gaussian, parts: Mapping[str, Copy], values: Values, globals: Values) -> bool:
    """Rows that share no coefficient are solved one by one, others all at once; correlated noise needs them all free.

    With priors they are solved one by one, with independent noise.
    """
    index, _ = _unknowns(g, _ordered(parts), values)
    free = index[index >= 0]
    alone = len(free.unique()) == len(free)
    if any(theta in globals for theta in parts):
        return alone and g.diagonal
    if not g.diagonal:
        return alone and bool((index >= 0).all())
    return alone or len(free.unique()) <= DENSE_UNKNOWNS


def _unknowns(g: Gaussian, parts: Iterable[tuple[str, Copy]], values: Values) -> tuple[Tensor, dict[str, int]]:
    """Which unknown each entry of [B | b] is [A, E, L+1], −1 for a constant; where each θ begins among the unknowns."""
    # Say A = 1, B = [[w_0, 0], [w_1, w_0]] and b = [c, 0]. Then the unknowns are (w_0, w_1, c), w begins at 0 and c at 2,
    # and the index is [[0, −1, 2], [1, 0, −1]]. The two rows share w_0, so that they must be solved together.
    index = torch.full((*g.offset.shape, g.coefficients.shape[-1] + 1), -1, dtype=torch.long)
    begins, at = {}, 0
    for theta, copy in parts:
        begins[theta] = at
        entries = index[..., :-1] if copy.parameter == "coefficients" else index[..., -1]
        entries.copy_(torch.where(copy.index >= 0, copy.index + at, entries))
        at += values[theta].numel()
    return index, begins


def smallest(model: Model, moments: Moments) -> float:
    """The smallest variance of an observed site, as a share of its data's own."""
    found = [torch.inf]
    for g in moments.seen.gaussians:
        if g.place is None:
            scale = g.scale / model.data.spreads[g.name].unsqueeze(-1 if not g.diagonal else 0)
            found.append(float(scale.amin() if g.diagonal else torch.linalg.svdvals(scale).amin()) ** 2)
    for site, params in moments.seen.others.items():
        least = model.families[site].smallest(params) if site not in model.assignments else None
        found += [] if least is None else [float(least.amin())]
    return min(found)


def broken(model: Model, plan: LinearPlan, moments: Moments) -> list[str]:
    """The parameters with a closed form that the sites, as the last E-step saw them, do not copy where they stand."""
    parts = {(part.site, part.name): part.value for part in _parts(model, moments.seen)}
    values = {**model.program.values(), **moments.globals}
    return [n for n, copy in plan.copies.items() if not copy.holds(parts[copy.site, copy.parameter], values[n])]


def closed(model: Model, plan: LinearPlan, moments: Moments, floor: Floor, globals: Values) -> dict[str, Tensor]:
    """Put the parameters that have a closed form at their best value; returns the globals that have one."""
    if not plan.copies:
        return hypers(model.program, model.x, plan, globals, floor)
    values, new = {n: v.detach() for n, v in {**model.program.values(), **globals}.items()}, {}
    priors = priors_now(model.program, model.x, plan, globals)
    pools = {n: Pool(n, values[n], copy.places, priors.get(n), copy.form) for n, copy in plan.copies.items()}
    for theta, copy in plan.copies.items():
        if copy.site in moments.seen.others:
            pool, stats = pools[theta], moments.sites[copy.site]
            family, params = model.families[copy.site], moments.seen.others[copy.site]
            new[theta] = family.maximise(copy.parameter, pool, stats, params, floor)
    for g in moments.seen.gaussians:
        stats, center = _moments_of(g, moments), _center(model, g)
        beta = torch.cat([g.coefficients, (g.offset - center).unsqueeze(-1)], -1)  # [A, E, L+1]
        if parts := plan.regressed(g.name):
            index, begins = _unknowns(g, parts.items(), values)
            known = _known([pools[n] for n in parts]) if any(n in globals for n in parts) else None
            beta, solved = _regress(g, beta, center, index, stats, known)
            for theta, begin in begins.items():
                old = values[theta].reshape(-1)
                mine = solved[begin : begin + len(old)]
                new[theta] = torch.where(mine.isnan(), old, mine).reshape(values[theta].shape)
        if (found := plan.scale(g)) is not None:
            theta, copy = found
            new[theta] = _scale(g, beta, pools[theta], stats, floor, plan.units[g.name])
    model.program.assign({n: v for n, v in new.items() if n not in globals})
    found_globals = {n: v for n, v in new.items() if n in globals}
    return found_globals | hypers(model.program, model.x, plan, {**globals, **found_globals}, floor)


def _known(pools: list[Pool]) -> tuple[Tensor, Tensor]:
    """The prior precision of each unknown of a regression, and that times its prior mean; 0 without a prior."""
    found = [(torch.zeros_like(p.value).reshape(-1), precision_of(p)) for p in pools]
    return torch.cat([zero + p for zero, (p, _) in found]), torch.cat([zero + at for zero, (_, at) in found])


def _center(model: Model, g: Gaussian) -> Tensor:
    """What a site's moments are taken about [E]: its data's means, or 0 for a latent site."""
    return model.data.centers.get(g.name, torch.zeros_like(g.offset[0]))


def _moments_of(g: Gaussian, moments: Moments) -> dict[str, Tensor]:
    """xz [A, E, L+1], xx [A, E(, E)], zz [A, 1 or E, L+1, L+1] of a site; a latent site's x is a part of z."""
    if g.name in moments.sites:
        stats = moments.sites[g.name]
        return {**stats, "zz": stats.get("zz", moments.zz.unsqueeze(1))}
    xz = moments.zz[:, g.place]
    xx = xz[:, :, g.place]
    return {"xz": xz, "xx": xx.diagonal(dim1=-2, dim2=-1) if g.diagonal else xx, "zz": moments.zz.unsqueeze(1)}


def _regress(
    g: Gaussian,
    beta: Tensor,
    center: Tensor,
    index: Tensor,
    stats: dict[str, Tensor],
    known: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Weighted least squares for the unknowns: the new [B | b − center], and the unknowns (NaN where none was met).

    `known` of the unknowns by their priors: each is one more observation of an entry of [B | b], in units of the noise.
    """
    free = index >= 0
    constant = torch.where(free, torch.zeros_like(beta), beta)
    constant[..., -1] = torch.where(free[..., -1], -center.expand_as(g.offset), beta[..., -1])
    zz = stats["zz"]
    target = stats["xz"] - (zz @ constant.unsqueeze(-1)).squeeze(-1)  # [A, E, L+1]
    if known is not None:
        precision, product = (
            torch.where(free, v[index.clamp(min=0)], 0.0) * g.scale.square()[..., None] for v in known
        )
        zz, target = zz + precision.diag_embed(), target + product
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
    if bool(free.all()) and zz.shape[1] == 1:
        together: Tensor = torch.linalg.solve(_ridge(zz[:, 0]), target.mT).mT
        return together
    if bool(free.all()):
        each: Tensor = torch.linalg.solve(_ridge(zz), target.unsqueeze(-1)).squeeze(-1)
        return each
    mask = free.to(zz.dtype)
    system = zz * mask.unsqueeze(-1) * mask.unsqueeze(-2) + torch.diag_embed(1 - mask)
    masked: Tensor = torch.linalg.solve(_ridge(system), (target * mask).unsqueeze(-1)).squeeze(-1) * mask
    return masked


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
    if "at" in stats:  # moments about the fit of the E-step: nothing cancels near it
        beta, xz, xx = beta - stats["at"], stats["uz"], stats["uu"]
    if g.diagonal:
        return xx - 2 * (beta * xz).sum(-1) + (beta * (zz @ beta.unsqueeze(-1)).squeeze(-1)).sum(-1)
    cross = xz @ beta.mT
    return xx - cross - cross.mT + beta @ zz[:, 0] @ beta.mT


def _scale(g: Gaussian, beta: Tensor, pool: Pool, stats: dict[str, Tensor], floor: Floor, spread: Tensor) -> Tensor:
    residual, count = _residual(g, beta, stats), stats["zz"][:, :, -1, -1]  # [A, 1 or E]
    if g.diagonal:
        n = pool.total(count.expand_as(residual))
        if pool.prior is not None:
            return spread_mode(pool, pool.total(residual).clamp(min=0), n).reshape(pool.value.shape)
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
    if pool.prior is not None:
        together = residual.new_zeros(groups, E, E).index_add(0, blocks, residual)
        return covariance_mode(pool, together, n).reshape(pool.value.shape)
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
    return g.family.in_form(g.form, covariance).reshape(pool.value.shape)


def _lowest(g: Gaussian, theta: str, share: Tensor, known: Tensor, floor: Floor) -> Tensor:
    """The smallest share of the data's variance for each entry of θ; a latent site's own may go to almost nothing."""
    return floor.lowest(theta, share, known) if g.place is None else torch.full_like(share, floor.least(share.dtype))


def _note(g: Gaussian, floor: Floor, assignments: list[int]) -> None:
    if g.place is None:
        floor.reached.update(assignments)
    elif assignments:
        floor.latent.add(g.name)


def _units(model: Model, gaussians: dict[str, Gaussian]) -> dict[str, Tensor]:
    """Normal site → what its standard deviations are measured in [E].

    For an observed site those of its data; for a latent one the size that moves some site below it by as much as that
    site's own unit, so that data in other units get another floor.
    """
    out: dict[str, Tensor] = {}
    for g in reversed(list(gaussians.values())):
        if g.name in model.data.spreads:
            out[g.name] = model.data.spreads[g.name]
            continue
        moved = torch.zeros_like(g.offset[0])
        for name, unit in out.items():
            effect = gaussians[name].coefficients[..., g.place].abs() / unit.unsqueeze(-1)  # [A, E of it, E]
            moved = torch.maximum(moved, effect.amax((0, 1)))
        own = (g.scale if g.diagonal else g.scale.square().sum(-1).sqrt()).amax(0)
        out[g.name] = torch.where(moved > 0, moved.reciprocal(), own)
    return out


def expected(model: Model, moments: Moments, parameters: Values, globals: Values) -> Tensor:
    """E_q[log p(x, z, globals)] up to a constant, nats, from the moments; differentiable in parameters and globals."""
    sites = model.sites(parameters, globals)
    total = sites.log_prior
    for g in sites.gaussians:
        stats, center = _moments_of(g, moments), _center(model, g)
        beta = torch.cat([g.coefficients, (g.offset - center).unsqueeze(-1)], -1)
        if (
            g.place is not None and g.name not in moments.sites
        ):  # its value is a part of z itself: the residual is (E − B) z − b
            beta = beta - torch.cat([g.selected(model.L), torch.zeros(len(center), 1, dtype=beta.dtype)], 1)
            stats = {**stats, "xz": torch.zeros_like(stats["xz"]), "xx": torch.zeros_like(stats["xx"])}
        residual, count = _residual(g, beta, stats), stats["zz"][:, :, -1, -1]
        if g.diagonal:
            total = total - 0.5 * (residual / g.scale.square()).sum() - (count * g.scale.log()).sum()
        else:
            solved = torch.cholesky_solve(residual, g.scale).diagonal(dim1=-2, dim2=-1).sum()
            total = total - 0.5 * solved - (count[:, 0] * g.log_det()).sum()
    for site, params in sites.others.items():
        total = total + model.families[site].expected(moments.sites[site], params)
    return total
