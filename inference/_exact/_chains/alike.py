"""Sites of a chain that share parameters, and the sums of their statistics that an M-step needs.

Sites whose coefficients and scales are equal at several random values of θ, to the last bit, make a kind: all transitions of a
chain, all its emissions. Kinds of one family and size make a class, which is one site to the M-step (`linear_mstep`): its
"assignments" are the kinds. Say z0 ~ N(0, q) and z_t ~ N(φ z_{t−1}, q): two kinds of one class, whose scales are both q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference._exact._chains.sites import Group, Seen
from inference._exact.gaussian import Gaussian

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Class:
    """K kinds of sites of one family and size."""

    name: str
    parts: tuple[
        tuple[int, Tensor, Group], ...
    ]  # group, [S] the kind of each site, the first site of each kind as a group
    K: int
    p: int  # the most numbers of parents


def classes(groups: Sequence[Group], looks: Sequence[Sequence[Seen]], closed: Sequence[bool]) -> list[Class]:
    """The classes of those groups that are `closed`; `looks`: the groups at several θ."""
    found: dict[tuple[object, ...], list[int]] = {}
    for k, g in enumerate(groups):
        if closed[k]:
            found.setdefault((g.family, g.form, g.latent, g.E), []).append(k)
    out = []
    for members in found.values():
        parts, K = list[tuple[int, Tensor, Group]](), 0
        for k in members:
            g = groups[k]
            flat = torch.cat([_flat(look[k], len(g.names)) for look in looks], 1)
            _, kinds = torch.unique(flat, dim=0, return_inverse=True)
            first = _first(kinds)
            order = first.argsort()  # the kinds as they come in the program
            kinds, first = order.argsort()[kinds], first[order]
            parts.append((k, kinds, _only(g, first)))
            K += len(first)
        name = groups[members[0]].names[0]
        out.append(Class(name, tuple(parts), K, max(groups[k].points.shape[1] for k in members)))
    return out


def _flat(look: Seen, S: int) -> Tensor:
    parts = [look.coefficients, look.offset, look.given]
    return torch.cat([p.detach().reshape(S, -1) for p in parts], 1).double() + 0.0  # no −0


def _only(g: Group, which: Tensor) -> Group:
    chosen = which.tolist()
    return replace(
        g,
        names=tuple(g.names[i] for i in chosen),
        scopes=tuple(g.scopes[i] for i in chosen),
        columns=g.columns[which],
        points=g.points[which],
    )


def hold(found: Sequence[Class], at: Sequence[Seen]) -> bool:
    """Whether the sites of every kind are still alike."""
    for c in found:
        for k, kinds, _ in c.parts:
            flat = _flat(at[k], len(kinds))
            if not torch.equal(flat[_first(kinds)][kinds], flat):
                return False
    return True


def firsts(found: Sequence[Class], at: Sequence[Seen]) -> list[list[Seen]]:
    """The first site of each kind, by class and group."""
    return [[at[k].some(_first(kinds)) for k, kinds, _ in c.parts] for c in found]


def _first(kinds: Tensor) -> Tensor:
    return torch.stack([(kinds == kind).nonzero()[0, 0] for kind in range(int(kinds.max()) + 1)])


def as_site(c: Class, firsts: Sequence[Seen], groups: Sequence[Group]) -> Gaussian:
    """A class as one site, from the first sites of its kinds."""
    g, pad = groups[c.parts[0][0]], torch.nn.functional.pad
    B = torch.cat([pad(s.coefficients[:, :, 0], (0, c.p - s.coefficients.shape[-1])) for s in firsts])
    b, given, scale = (torch.cat([v[:, :, 0] for v in vs]) for vs in _parts(firsts))
    place = slice(0, g.E) if g.latent else None
    B, b, given, scale = (v.flatten(0, 1) for v in (B, b, given, scale))
    return Gaussian(c.name, B, b, scale, g.family, g.form, given, place)


def _parts(firsts: Sequence[Seen]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return [s.offset for s in firsts], [s.given for s in firsts], [s.scale for s in firsts]


def site_sums(g: Group, J: Tensor, u: Tensor, z: Tensor, C: Tensor, weights: Tensor) -> Sums:
    """Of each site [S, A, …]: Σ w E[u z̃ᵀ], E[u²] (or u uᵀ), E[z̃ z̃ᵀ], u = r − J z its residual and z̃ = [its parents, 1].

    u [S, A, R, E, M] and z [S, A, R, p, M] at the posterior mean; C [S, A, R, c, c] the covariance; weights [S, A, R, M, E
    or 1].
    """
    ones = z.new_ones(*z.shape[:3], 1, z.shape[-1])
    extended = torch.cat([z, ones.expand(*z.shape[:3], 1, z.shape[-1])], -2)
    by_row, JC = weights.sum(3), J @ C  # [S, A, R, E or 1], [S, A, R, E, c]
    uz = ((weights.mT * u) @ extended.mT).sum(2)
    uz[..., :-1] -= (by_row.unsqueeze(-1) * JC[..., g.own :]).sum(2)
    zz = torch.einsum("sarme,sarpm,sarqm->saepq", weights, extended, extended)
    p = z.shape[-2]
    zz[..., :p, :p] += torch.einsum("sare,sarpq->saepq", by_row, C[..., g.own :, g.own :])
    if g.family.joint:
        uu = ((weights.mT * u) @ u.mT).sum(2) + (by_row.unsqueeze(-1) * (JC @ J.mT)).sum(2)
    else:
        uu = (weights.mT * u.square()).sum((2, -1)) + (by_row * (JC * J).sum(-1)).sum(2)
    return {"uz": uz, "uu": uu, "zz": zz}


def summed(c: Class, sums: Sequence[Sums], at: Gaussian) -> Sums:
    """The statistics of a class from those of its sites, one `Sums` a group; `at` is the class where they were taken."""
    out: dict[str, list[Tensor]] = {}
    entries = max(s["zz"].shape[2] for s in sums)
    for (_, kinds, first), s in zip(c.parts, sums, strict=True):
        for name, value in s.items():
            total = value.new_zeros(len(first.names), *value.shape[1:]).index_add(0, kinds, value)
            if name == "zz":
                total = total.expand(*total.shape[:2], entries, *total.shape[3:])
            out.setdefault(name, []).append(_padded(total, c.p, {"uz": 1, "zz": 2}.get(name, 0)))
    found = {name: torch.cat(values).flatten(0, 1) for name, values in out.items()}
    beta = torch.cat([at.coefficients, at.offset.unsqueeze(-1)], -1).detach()  # [K·A, E, p+1]
    fitted = (found["zz"] @ beta.unsqueeze(-1)).squeeze(-1)
    found["at"], found["xz"] = beta, found["uz"] + fitted
    if at.diagonal:
        found["xx"] = found["uu"] + (beta * (2 * found["uz"] + fitted)).sum(-1)
    else:
        cross = found["uz"] @ beta.mT
        found["xx"] = found["uu"] + cross + cross.mT + beta @ found["zz"][:, 0] @ beta.mT
    return found


def _padded(total: Tensor, p: int, dims: int) -> Tensor:
    """With zeros for parents that a site does not have, before the last number (the constant) of its last dimensions."""
    for dim in range(-dims, 0):
        less = p + 1 - total.shape[dim]
        if less:
            shape = list(total.shape)
            shape[dim] = less
            body, last = total.split([total.shape[dim] - 1, 1], dim)
            total = torch.cat([body, total.new_zeros(shape), last], dim)
    return total
