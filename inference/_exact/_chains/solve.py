"""Elimination of normal latents by the steps of a plan, for all rows at once: roots, means, covariances, draws.

All sites together say that Σ ‖J_f z − r_f‖² / 2 is minus the log joint, with J_f and r_f in units of the noise. A step joins
the tables of its latents' fronts, and leaves p(z_own | z_rest, x) as

    R z_own + W z_rest = y + ε,    ε ~ N(0, I),    R upper triangular,

and a message to the rest. Tables are [S, A, R, columns, columns + M]: of S factors, under A joint values of the discrete
latents, for R groups of rows with M right-hand sides each. R = 1 and M = n where all rows have the same J, else R = n and
M = 1. They hold JᵀJ and Jᵀr (`by_products`), or J and r themselves, which keeps twice the digits and takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference._exact._chains.plan import Elimination, Front, Piece, Slot

LOG_2PI = math.log(2 * math.pi)


@dataclass
class Solved:
    """R [G, A, R, d, d] and [W | y] [G, A, R, d, k + M] of each step."""

    plan: Elimination
    roots: list[Tensor]
    rights: list[Tensor]

    def log_det(self) -> Tensor:
        """½ log det P [A, R] of the posterior precision P."""
        each = [root.diagonal(dim1=-2, dim2=-1).abs().log().sum((0, -1)) for root in self.roots]
        return torch.stack(each).sum(0)

    def squares(self) -> Tensor:
        """‖y‖² [A, R, M]."""
        each = []
        for front, right in zip(self.plan.fronts, self.rights, strict=True):
            each.append(right[..., front.rest.shape[1] :].square().sum((0, -2)))
        return torch.stack(each).sum(0)


def eliminate(plan: Elimination, groups: Sequence[Tensor], by_products: bool = True) -> Solved:
    """Eliminate all latents. Raises `LinAlgError` where the precision is not positive definite."""
    tables, roots, rights = list(groups), list[Tensor](), list[Tensor]()
    step = _step if by_products else _step_by_rows
    for front in plan.fronts:
        parts = [_joined(slot, tables, front, by_products) for slot in front.slots]
        root, right, message = step(parts, front.own.shape[1], front.own.shape[1] + front.rest.shape[1])
        roots.append(root)
        rights.append(right)
        tables.append(message)
    return Solved(plan, roots, rights)


def _step(parts: list[Tensor], d: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    whole = sum(parts[1:], start=parts[0])
    factor = torch.linalg.cholesky(whole[..., :d, :d])
    right: Tensor = torch.linalg.solve_triangular(factor, whole[..., :d, d:], upper=False)
    return factor.mT, right, whole[..., d:, d:] - right[..., : c - d].mT @ right


def _step_by_rows(parts: list[Tensor], d: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    whole = torch.cat(parts, -2)
    # large rows first, or Householder's reflections would drown the small ones' digits
    order = whole[..., :c].norm(dim=-1).argsort(-1, descending=True)
    whole = whole.gather(-2, order.unsqueeze(-1).expand_as(whole))
    Q, R = torch.linalg.qr(whole[..., :c])
    found = torch.cat([R, Q.mT @ whole[..., c:]], -1)
    return found[..., :d, :d], found[..., :d, d:], found[..., d:, d:]


def _joined(slot: Slot, tables: Sequence[Tensor], front: Front, by_products: bool) -> Tensor:
    """The tables of a slot, one for each front, over all of the front's numbers."""
    c = front.own.shape[1] + front.rest.shape[1]
    parts = [_placed(tables[p.source], p, c, by_products) for p in slot.pieces]
    if (
        not by_products and len({p.shape[-2] for p in parts}) > 1
    ):  # messages of unlike steps: rows of zeros change nothing
        most = max(p.shape[-2] for p in parts)
        parts = [torch.nn.functional.pad(p, (0, 0, 0, most - p.shape[-2])) for p in parts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if slot.order is None else whole[slot.order]


def _placed(table: Tensor, piece: Piece, c: int, by_products: bool) -> Tensor:
    chosen = table[piece.members]
    size = len(piece.place)
    if size == c and torch.equal(piece.place, torch.arange(c)):
        return chosen
    M = chosen.shape[-1] - size
    columns = torch.cat([piece.place, torch.arange(c, c + M)])
    rows = c if by_products else chosen.shape[-2]
    out = chosen.new_zeros(*chosen.shape[:3], rows, c + M)
    if by_products:
        out[..., piece.place.unsqueeze(-1), columns] = chosen
    else:
        out[..., columns] = chosen
    return out


# ------------------------------------------------------------------------------------------------------ the way back


def solutions(found: Solved, L: int, draws: int = 0) -> Tensor:
    """The posterior mean of z [L, A, R, M]; with `draws`, so many joint draws instead [L, A, R, M · draws]."""
    first = found.rights[0]
    _, A, R, _, _ = first.shape
    M = first.shape[-1] - found.plan.fronts[0].rest.shape[1]
    z = first.new_zeros(L, A, R, M * max(1, draws))
    for front, root, right in zip(*map(reversed, (found.plan.fronts, found.roots, found.rights)), strict=True):
        k = front.rest.shape[1]
        target = right[..., k:]
        if draws:
            target = target.repeat_interleave(draws, -1)
            target = target + torch.randn(target.shape, dtype=target.dtype)
        if k:
            target = target - right[..., :k] @ z[front.rest].movedim(1, -2)
        z[front.own] = torch.linalg.solve_triangular(root, target, upper=True).movedim(-2, 1)
    return z


def root_column(found: Solved, L: int, column: int) -> Tensor:
    """A column of S [L, A, R, 1], S Sᵀ the posterior covariance: what number `column` of z leaves where its ε is 1."""
    first = found.roots[0]
    z = first.new_zeros(L, *first.shape[1:3], 1)
    for front, root, right in zip(*map(reversed, (found.plan.fronts, found.roots, found.rights)), strict=True):
        k = front.rest.shape[1]
        target = (front.own == column).to(z.dtype)[:, None, None, :, None] - right[..., :k] @ z[front.rest].movedim(
            1, -2
        )
        z[front.own] = torch.linalg.solve_triangular(root, target, upper=True).movedim(-2, 1)
    return z


def log_density(found: Solved, z: Tensor) -> Tensor:
    """log q(z) [A, R, K] at z [L, A, R, K], nats; for R = 1 each row's z stand by each other, as `solutions` leaves them."""
    total = found.log_det().unsqueeze(-1) - 0.5 * len(z) * LOG_2PI
    for front, root, right in zip(found.plan.fronts, found.roots, found.rights, strict=True):
        k = front.rest.shape[1]
        y = right[..., k:]
        y = y.repeat_interleave(z.shape[-1] // y.shape[-1], -1)
        white = root @ z[front.own].movedim(1, -2) + right[..., :k] @ z[front.rest].movedim(1, -2) - y
        total = total - 0.5 * white.square().sum((0, -2))
    return total


def covariances(found: Solved) -> list[Tensor]:
    """The posterior covariance [G, A, R, c, c] of the numbers of each step's fronts."""
    out = list[Tensor]()
    for front, root, right in zip(*map(reversed, (found.plan.fronts, found.roots, found.rights)), strict=True):
        d, k = front.own.shape[1], front.rest.shape[1]
        identity = torch.eye(d, dtype=root.dtype).expand_as(root)
        inverse = torch.linalg.solve_triangular(root, identity, upper=True)
        own = inverse @ inverse.mT
        if front.above is None:
            out.append(own)
            continue
        rest = _of_above(front.above, out, len(found.plan.fronts))  # [G, A, R, k, k]
        gain = inverse @ right[..., :k]
        cross = gain @ rest
        upper = torch.cat([own + cross @ gain.mT, -cross], -1)
        out.append(torch.cat([upper, torch.cat([-cross.mT, rest], -1)], -2))
    return out[::-1]


def _of_above(slot: Slot, done: Sequence[Tensor], steps: int) -> Tensor:
    parts = []
    for p in slot.pieces:
        parts.append(done[steps - 1 - p.source][p.members][..., p.place.unsqueeze(-1), p.place])
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if slot.order is None else whole[slot.order]


def of_groups(plan: Elimination, of_fronts: Sequence[Tensor]) -> list[Tensor]:
    """The covariance [S, A, R, columns, columns] of each factor's columns, from those of the fronts."""
    parts: list[list[Tensor]] = [[] for _ in range(plan.groups)]
    members: list[list[Tensor]] = [[] for _ in range(plan.groups)]
    for front, covariance in zip(plan.fronts, of_fronts, strict=True):
        for slot in front.slots:
            for p in slot.pieces:
                if p.source < plan.groups:
                    parts[p.source].append(covariance[p.fronts][..., p.place.unsqueeze(-1), p.place])
                    members[p.source].append(p.members)
    return [torch.cat(p)[torch.cat(m).argsort()] for p, m in zip(parts, members, strict=True)]


def digits_lost(found: Solved, diagonal: Tensor) -> float:
    """The most by which a diagonal entry of the precision [L, A, R] exceeds what elimination leaves of it."""
    worst = 1.0
    for front, root in zip(found.plan.fronts, found.roots, strict=True):
        left = root.detach().diagonal(dim1=-2, dim2=-1).square()
        worst = max(worst, float((diagonal[front.own].movedim(1, -1) / left).max()))
    return worst if math.isfinite(worst) else math.inf
