"""Gaussians at the modes of log p(x_i, a, z) over z, for all data i and assignments a at once, by damped Newton steps.

Every pair (i, a) climbs with a step control of its own and drops out of the work when its Newton decrement says that less
than `tol` nats are left to gain (Nocedal & Wright 2006, §3.4, algorithm 3.2; Boyd & Vandenberghe 2004, §9.5). Where minus
the Hessian H is not positive definite its eigenvalues are replaced by their sizes, in units of its diagonal (Dauphin et al.
2014), and at a saddle the step goes along the most negative one.

Laplace's method then gives log p(x_i) ≈ log Σ_a p(x_i, a, ẑ_a) (2π)^{L/2} (det H_a)^{−1/2}, summed over distinct modes
where there are several (MacKay 2003, §27; Tierney & Kadane 1986). It is exact where the log joint is quadratic in z: one step
goes to the mode from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inference._density.local import LocalDensity
from inference._density.sparse import Pattern
from inference._numerics import definite

LOG_2PI = math.log(2 * math.pi)
COPIES = 16  # of a row's width that derivatives keep, roughly
STEP_FLOOR = 1e-4  # of an eigenvalue in a step, with ones on the diagonal
FLOOR = 1e-9  # of one at the mode, where rounding allows
QUASI_STEPS = 15  # at most, between two Hessians
HALVINGS = 40
ARMIJO = 1e-4


@dataclass
class Modes:
    """A Gaussian N(z; mean, scale_tril scale_trilᵀ) at each of C modes for each of n data, in the coordinates of z.

    `modes` finds one for each of the A assignments, so that C = A and column a belongs to assignment a. `all_modes` finds M
    at most for each: C = A·M, column a·M + m is the m-th mode of assignment a, and one that is not there has −∞ nats.
    Everything is detached. `log_evidence_each` [n, C] are Laplace's log p(x_i, a) of the one mode, nats.
    """

    mean: Tensor  # [n, C, L] ẑ
    scale_tril: Tensor  # [n, C, L, L] lower; times its transpose it is the inverse of H
    log_evidence_each: Tensor  # [n, C]
    decrement: Tensor  # [n, C] nats that one more Newton step would gain
    converged: Tensor  # [n, C] bool: the decrement came under the tolerance
    damped: Tensor  # [n, C] bool: H at ẑ is not positive definite, and was made so
    steps: Tensor  # [n, C] steps taken, Newton and quasi-Newton
    assignment: Tensor  # [n, C] which assignment the column belongs to

    @property
    def each(self) -> int:
        """M, columns for each assignment."""
        return int((self.assignment[:1] == 0).sum()) or 1

    @property
    def several(self) -> Tensor:
        """Which rows have more than one mode under some assignment [n], bool."""
        return (self.log_evidence_each.isfinite().unflatten(1, (-1, self.each)).sum(-1) > 1).any(1)

    @property
    def log_evidence(self) -> Tensor:
        """log p(x_i) [n], nats: the sum over assignments and modes."""
        return self.log_evidence_each.logsumexp(1)

    @property
    def weights(self) -> Tensor:
        """q(a, m | x_i) [n, C]: of each column."""
        return self.log_evidence_each.softmax(1)

    @property
    def assignment_weights(self) -> Tensor:
        """q(a | x_i) [n, A]."""
        return self.weights.unflatten(1, (-1, self.each)).sum(-1)

    def rows(self, index: Tensor | slice) -> Modes:
        """Those of some data."""
        return Modes(*(getattr(self, f.name)[index] for f in fields(self)))

    def draw(self, draws: int) -> tuple[Tensor, Tensor]:
        """z [draws, n, L] and assignments [draws, n] from q(a, z | x_i) = Σ_m q(a, m | x_i) N(z; …)."""
        n, _, L = self.mean.shape
        chosen = torch.multinomial(self.weights, draws, replacement=True).mT
        index = torch.arange(n, device=self.mean.device)
        noise = torch.randn(draws, n, L, dtype=self.mean.dtype, device=self.mean.device)
        if self.mean.shape[1] == 1:
            return self.mean[:, 0] + torch.einsum("nij,snj->sni", self.scale_tril[:, 0], noise), chosen
        z = self.mean[index, chosen] + (self.scale_tril[index, chosen] @ noise.unsqueeze(-1)).squeeze(-1)
        return z, self.assignment[index, chosen]

    def log_prob(self, z: Tensor, assignment: Tensor) -> Tensor:
        """log q(a, z | x_i) [..., n] of z [..., n, L] and assignments [..., n], nats."""
        M = self.each
        if M == 1:
            return self._log_prob(z, assignment)
        return torch.stack([self._log_prob(z, assignment * M + m) for m in range(M)]).logsumexp(0)

    def _log_prob(self, z: Tensor, column: Tensor) -> Tensor:
        """log q(a, m, z | x_i) of one column [..., n] each."""
        index = torch.arange(z.shape[-2], device=z.device)
        log_weight = self.log_evidence_each.log_softmax(1)[index, column]
        if self.mean.shape[1] == 1:
            tril, away = self.scale_tril[:, 0], z - self.mean[:, 0]
            flat = away.reshape(-1, *away.shape[-2:]).permute(1, 2, 0)  # [n, L, draws]: one solve per row
            white = torch.linalg.solve_triangular(tril, flat, upper=False).square().sum(1).mT.reshape(away.shape[:-1])
        else:
            tril, away = self.scale_tril[index, column], z - self.mean[index, column]
            solved = torch.linalg.solve_triangular(tril, away.unsqueeze(-1), upper=False)
            white = solved.squeeze(-1).square().sum(-1)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_weight - 0.5 * white - log_det - 0.5 * z.shape[-1] * LOG_2PI


@torch.no_grad()
def modes(
    density: LocalDensity,
    *,
    start: Tensor | None = None,
    tries: int = 10,
    max_iter: int = 100,
    tol: float = 1e-9,
    step: Callable[[int], object] | None = None,
) -> Modes:
    """The modes over z of `density` for each row and assignment, with the Gaussians there.

    - `start` [n, A, L]: where to begin. Besides, or alone where None, the prior's middle and `tries` draws from the prior
      are looked at, and each pair begins at the place of highest density; with `start` and `tries=0` at `start`.
    - `tol`: the Newton decrement, in nats, at which a mode counts as found (not less than rounding allows).
    - `step`: called with the number of data each time some are done.

    Raises `ArithmeticError` with the row where the density is not finite at any of the starting places.
    """
    found = []
    for rows in density.chunks(density.A, COPIES):
        begin = None if start is None else start[rows]
        found.append(_modes(density, rows, begin, tries, max_iter, tol))
        if step is not None:
            step(rows.stop - rows.start)
    return joined(found)


def joined(found: list[Modes]) -> Modes:
    """Those of several chunks of data, one after the other."""
    return Modes(*(torch.cat([getattr(m, f.name) for m in found]) for f in fields(Modes)))


def _modes(density: LocalDensity, rows: slice, start: Tensor | None, tries: int, max_iter: int, tol: float) -> Modes:
    A, L, n = density.A, density.L, rows.stop - rows.start
    device = density.x.device
    row = torch.arange(rows.start, rows.stop, device=device).repeat_interleave(A)  # of each pair
    assignment = torch.arange(A, device=device).repeat(n)
    z = _begin(density.rows(row), assignment, None if start is None else start.reshape(-1, L), tries, A, rows.start)
    climb = _Climb(density, row, assignment, z, tol)
    climb.run(max_iter)
    precision, damped = definite.positive_definite(climb.hessian, FLOOR)
    tril = definite.inverse_tril(precision)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # −½ log det H
    log_evidence = climb.value + 0.5 * L * LOG_2PI + log_det
    return Modes(
        climb.z.reshape(n, A, L),
        tril.reshape(n, A, L, L),
        log_evidence.reshape(n, A),
        climb.decrement.reshape(n, A),
        (climb.decrement <= climb.tolerance()).reshape(n, A),
        damped.reshape(n, A),
        climb.steps.reshape(n, A),
        assignment.reshape(n, A),
    )


@torch.no_grad()
def _begin(density: LocalDensity, assignment: Tensor, start: Tensor | None, tries: int, A: int, first: int) -> Tensor:
    """The place [pairs, L] of highest density among the start given, the prior's middle, and draws from the prior."""
    if start is not None and not tries:
        return start
    places = [density.middle(assignment), *(density.prior(1, assignment)[0] for _ in range(tries))]
    best = start if start is not None else places[0]
    highest = density.log_joint(best, assignment)
    for place in places if start is not None else places[1:]:
        value = density.log_joint(place, assignment)
        better = (value > highest) | (~highest.isfinite() & value.isfinite())
        best, highest = torch.where(better.unsqueeze(1), place, best), torch.where(better, value, highest)
    if not bool(highest.isfinite().all()):
        row = first + int((~highest.isfinite()).nonzero()[0, 0]) // A
        raise ArithmeticError(
            f"log p(x, z) of row {row} (counting from 0) is not finite at any of {len(places)} places tried for z: the "
            "program's density there is zero, or overflows. Standardize the data, or give the latents a narrower prior."
        )
    return best


class _Climb:
    """Climbs of m pairs (row, assignment) side by side.

    A Hessian costs L passes backward through the program (fewer where the program's graph leaves entries 0, see `sparse`) and a
    gradient one. So between two looks each pair continues by
    quasi-Newton steps, its inverse Hessian brought up to date by its gradients (BFGS; Nocedal & Wright 2006, §6.1).

    Every tensor here has a place for each of the m pairs, and every set of pairs is a tensor of their numbers. With m = 4:
    `live` = [0, 2, 3] still climb; of these `pairs` = [0, 3] take one more quasi-Newton step; of these `waiting` = [3] have
    not risen yet, and try half the step. `self.z[waiting]` is always what it says.
    """

    def __init__(self, density: LocalDensity, row: Tensor, assignment: Tensor, z: Tensor, tol: float) -> None:
        m, L = z.shape
        self.density, self.row, self.assignment, self.z, self.tol = density, row, assignment, z.clone(), tol
        self.value, self.decrement = z.new_full((m,), -torch.inf), z.new_full((m,), torch.inf)
        self.gradient, self.push = torch.zeros_like(z), torch.zeros_like(z)
        self.hessian, self.inverse = z.new_zeros(m, L, L), z.new_zeros(m, L, L)
        self.steps = torch.zeros(m, dtype=torch.long, device=z.device)
        everybody = torch.arange(m, device=z.device)
        self._held = (everybody, density.rows(row))

    def tolerance(self) -> Tensor:
        """Per pair: no decrement can be seen below the rounding of the density itself."""
        return (torch.finfo(self.z.dtype).eps * self.value.abs()).clamp(min=self.tol)

    def _goal(self) -> Tensor:
        """Per pair: where quasi-Newton steps, being cheap, may stop. The determinant feels an error of the mode to first
        order, the decrement to second."""
        rounding = torch.finfo(self.z.dtype).eps * (1 + self.value.abs())
        return rounding.square().clamp(min=1e-6 * self.tol)

    def _at(self, pairs: Tensor) -> LocalDensity:
        """The density of those pairs; kept, for it is mostly asked for the same ones."""
        if len(self._held[0]) != len(pairs) or not torch.equal(self._held[0], pairs):
            self._held = (pairs, self.density.rows(self.row[pairs]))
        return self._held[1]

    def run(self, max_iter: int) -> None:
        """Look, and step, until no pair is live; at most `max_iter` steps after a look.

        Who rises by less than the tolerance between two looks, though more was promised, is at a kink, and is dropped too.
        """
        live, before = self._held[0], torch.full_like(self.value, -torch.inf)
        for _ in range(max_iter):
            self.look(live)
            rises = (self.decrement > self.tolerance()) & (self.value - before > self.tolerance())
            live = live[rises[live]]
            if len(live):
                before[live] = self.value[live]
                live = self._step(live)
            if not len(live):
                return
        self.look(live)

    def look(self, live: Tensor) -> None:
        """Value, derivatives and decrement of those pairs; their inverse Hessians made positive definite, and pushes off
        saddles."""
        value, gradient, hessian = derivatives(self._at(live), self.z[live], self.assignment[live])
        inverse, push, away = _ascent(gradient, hessian)
        decrement = 0.5 * (gradient * (inverse @ gradient.unsqueeze(-1)).squeeze(-1)).sum(1)
        self.value[live], self.gradient[live], self.hessian[live] = value, gradient, hessian
        self.inverse[live], self.push[live] = inverse, push
        self.decrement[live] = torch.where(away, torch.inf, decrement).nan_to_num(torch.inf, torch.inf)

    def _step(self, live: Tensor) -> Tensor:
        """A Newton step of those pairs, then quasi-Newton ones while they pay; who could take the first step."""
        newton, slope = self._directions(live)
        direction = (newton + self.push[live]).nan_to_num(0.0, 0.0, 0.0)
        risen = pairs = self._search(live, direction, slope.nan_to_num(0.0))
        for _ in range(QUASI_STEPS):
            direction, slope = self._directions(pairs)
            going = (0.5 * slope > self._goal()[pairs]) & slope.isfinite()
            pairs = pairs[going]
            if not len(pairs):
                break
            pairs = self._search(pairs, direction[going], slope[going])
        return risen

    def _directions(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """H⁻¹ gradient [pairs, L], and the slope of the density along it [pairs]."""
        gradient = self.gradient[pairs]
        direction = (self.inverse[pairs] @ gradient.unsqueeze(-1)).squeeze(-1)
        return direction, (gradient * direction).sum(1)

    def _search(self, pairs: Tensor, direction: Tensor, slope: Tensor) -> Tensor:
        """Armijo's rule, each pair for itself: halve the step until the density has risen by a share of what it promised.

        Moves the pairs that find such a step, brings their inverse Hessians up to date, and returns which they are.
        """
        way, length, promise = (torch.zeros_like(v) for v in (self.z, self.value, self.value))
        way[pairs], length[pairs], promise[pairs] = direction, 1.0, ARMIJO * slope
        origin, before, turned = self.z.clone(), self.value.clone(), self.gradient.clone()
        slack = 16 * torch.finfo(origin.dtype).eps * (1 + before.abs())
        waiting = pairs
        for _ in range(HALVINGS):
            trial = origin[waiting] + length[waiting, None] * way[waiting]
            value, gradient = slopes(self._at(waiting), trial, self.assignment[waiting])
            least = before[waiting] + length[waiting] * promise[waiting] - slack[waiting]
            fine = (value >= least) & value.isfinite() & gradient.isfinite().all(1)
            taken, waiting = waiting[fine], waiting[~fine]
            self.z[taken], self.value[taken], self.gradient[taken] = trial[fine], value[fine], gradient[fine]
            self.steps[taken] += 1
            if not len(waiting):
                break
            length[waiting] *= 0.5
        risen = pairs[~torch.isin(pairs, waiting)]
        moved, turned = self.z[risen] - origin[risen], turned[risen] - self.gradient[risen]
        self.inverse[risen] = _bfgs(self.inverse[risen], moved, turned)
        return risen


def _bfgs(inverse: Tensor, moved: Tensor, turned: Tensor) -> Tensor:
    """Inverse Hessians [n, L, L] after steps `moved` [n, L] along which minus the gradient turned by `turned`."""
    product = (moved * turned).sum(1)
    fit = product > 1e-10 * moved.norm(dim=1) * turned.norm(dim=1)
    rate = torch.where(fit, 1 / product, torch.zeros_like(product))[:, None, None]
    s, y = moved.unsqueeze(-1), turned.unsqueeze(-1)
    Hy = inverse @ y
    return inverse + (1 + rate * (y * Hy).sum(1, keepdim=True)) * rate * (s @ s.mT) - rate * (Hy @ s.mT + s @ Hy.mT)


def slopes(density: LocalDensity, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_i, a, z) [n] and its gradient [n, L] at z [n, L]; detached."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = density.log_joint(z, assignment)
        (gradient,) = torch.autograd.grad(value.sum(), z, materialize_grads=True)
    return value.detach(), gradient


def derivatives(density: LocalDensity, z: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_i, a, z) [n], its gradient [n, L], and H, minus its Hessian [n, L, L], at z [n, L]; detached."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = density.log_joint(z, assignment)
        gradient, hessian = curvature(value, z, keep=False, pattern=density.pattern)
    return value.detach(), gradient.detach(), hessian


def curvature(value: Tensor, z: Tensor, keep: bool, pattern: Pattern | None = None) -> tuple[Tensor, Tensor]:
    """Gradient [n, L] of value [n] in z [n, L], each row's own, and H [n, L, L]; `keep`: H is differentiable again.

    `pattern`: which entries of H may differ from 0.

    Raises `ArithmeticError` where another one does.
    """
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
    L = z.shape[1]
    if not gradient.requires_grad:  # linear in z
        return gradient, z.new_zeros(len(z), L, L)
    seeds = torch.eye(L, dtype=z.dtype, device=z.device) if pattern is None else pattern.seeds.to(z)
    probe = torch.linspace(1.0, 2.0, L, dtype=z.dtype, device=z.device).sin()
    vectors = list(seeds if pattern is None else torch.cat([seeds, probe.unsqueeze(0)]))
    products = torch.stack(
        [
            torch.autograd.grad(
                gradient,
                z,
                v.expand_as(z),
                retain_graph=keep or k + 1 < len(vectors),
                create_graph=keep,
                materialize_grads=True,
            )[0]
            for k, v in enumerate(vectors)
        ],
        1,
    )
    if pattern is None:
        hessian = -products
    else:
        hessian = -pattern.read(products[:, :-1])
        _check(hessian.detach() @ probe, -products[:, -1].detach())
    return gradient, (hessian + hessian.mT) / 2


def _check(found: Tensor, whole: Tensor) -> None:
    """Raise `ArithmeticError` where a Hessian read off few products has not the product that the Hessian has."""
    near = 1e-6 if whole.dtype == torch.float64 else 1e-2
    size = whole.abs().amax(1, keepdim=True) * near
    known = whole.isfinite().all(1) & found.isfinite().all(1)
    if not bool(((found - whole).abs() <= size + near)[known].all()):
        raise ArithmeticError("a density depends on latents together that its program was found not to join")


def _ascent(gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For steps uphill: H⁻¹ made positive definite [n, L, L]; a push off each saddle, else 0 [n, L]; where H shows a way up
    that the gradient does not [n]."""
    scaled, size = definite.unit_diagonal(hessian)
    factor, good = definite.cholesky(scaled)
    inverse, push = torch.zeros_like(scaled), torch.zeros_like(gradient)
    inverse[good] = torch.cholesky_inverse(factor[good])
    away = torch.zeros_like(good)
    if not bool(good.all()):
        bad = ~good
        values, vectors = definite.eigen(scaled[bad])
        length = values.abs().clamp(min=STEP_FLOOR)
        inverse[bad] = (vectors / length.unsqueeze(-2)) @ vectors.mT
        along = (vectors.mT @ (gradient / size)[bad].unsqueeze(-1)).squeeze(-1) / length
        away[bad] = values[:, 0] < -STEP_FLOOR
        still = away[bad] & (along.abs().amax(1) < 1e-6)  # the gradient would not leave the saddle
        push[bad] = torch.where(still.unsqueeze(1), vectors[:, :, 0] / length[:, :1].sqrt(), 0.0) / size[bad]
    return inverse / (size.unsqueeze(-1) * size.unsqueeze(-2)), push, away


def log_evidence(density: LocalDensity, at: Modes) -> Tensor:
    """Laplace's log p(x_i) [n], nats, as a function of θ alone: its gradient is the total one.

    The modes move with θ: ẑ + H⁻¹ ∂ log p / ∂z, with ẑ and H held fixed and the gradient not, has the value ẑ at a mode and
    the derivative dẑ/dθ that the implicit function theorem gives; the determinant is taken there.
    """
    n, A, L = at.mean.shape
    row = torch.arange(n, device=at.mean.device).repeat_interleave(A)
    assignment = at.assignment.reshape(-1)
    here = density.rows(row)
    fixed = at.mean.reshape(-1, L).detach().requires_grad_()
    tril = at.scale_tril.reshape(-1, L, L)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(
            here.log_joint(fixed, assignment).sum(), fixed, create_graph=True, materialize_grads=True
        )
        move = (tril @ (tril.mT @ gradient.unsqueeze(-1))).squeeze(-1)
        z = fixed.detach() + torch.where(at.converged.reshape(-1, 1), move, move.detach())
        z = z if z.requires_grad else z.requires_grad_()
        value = here.log_joint(z, assignment)
        _, hessian = curvature(value, z, keep=True, pattern=here.pattern)
        raised, _ = definite.positive_definite(hessian.detach(), FLOOR)
        precision = hessian + (raised - hessian.detach())
        log_det = torch.linalg.cholesky(precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = value + 0.5 * L * LOG_2PI - log_det
    return each.reshape(n, A).logsumexp(1)
