"""Sites of a long program that are alike: the transitions of a chain have one table and one set of parameters.

Sites with the same family and shapes make a group, which is to an M-step what one site is to it in a mixture. Within a group,
sites whose parameters are equal whatever θ is make a kind. That is found at random values of θ: two functions of θ that agree
at several of them to the last bit are the same. A kind's data are those of all its sites, one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from inference._exact import copies
from inference._families._family import Params
from inference._families._registry import base_of, family_of
from zoo._program.program import Program
from zoo._program.trace import Node, is_plain, node_of
from zoo._reading.enumerated import Enumerated

LEAST_PLACES = 3  # values of θ at which sites must agree to be alike


@dataclass(frozen=True)
class Kind:
    """Sites whose parameters are equal at all θ; the first stands for all."""

    sites: tuple[str, ...]
    latent: bool


@dataclass(frozen=True)
class Group:
    """Kinds of one family and shape: A joint values of the latents that their parameters depend on."""

    name: str
    kinds: tuple[Kind, ...]
    A: int

    @property
    def latent(self) -> bool:
        """Whether its sites are latents."""
        return self.kinds[0].latent


def parameters(every: Enumerated, node: Node) -> Params | None:
    """The parameters of a site's distribution, [A, E] and so on, over the joint values of the latents that it depends on.

    None where its family is not known, or they differ from row to row. `node`: of a trace of `every`.
    """
    family, base, site = family_of(node["fn"]), base_of(node["fn"]), node["name"]
    if family is None or not is_plain(node) or every.axes.depth > 1:
        return None
    entries = len(node["fn"].event_shape) - (1 if family.joint else 0)
    out = {}
    for name, constraint in family.parameters.items():
        value = base.__dict__.get(name)
        if value is None:
            continue
        events = constraint.event_dim + entries
        rows = value.dim() - events - 1
        if rows < 0 or (value.shape[rows] > 1 and value.stride(rows) != 0):
            return None
        value = every.in_order(site, value.narrow(rows, 0, 1), events)[0]
        scope = every.scopes[site]
        if site in scope:  # a latent's own values are not what its parameters depend on
            value = value.select(scope.index(site), 0)
        lead = value.dim() - events
        value = value.reshape(-1, *value.shape[lead:])
        if not family.joint:
            value = value.reshape(len(value), -1, *value.shape[1 + entries :])
        out[name] = value
    return out if family.given(out) else None


def groups(
    program: Program, every: Enumerated, few: Tensor, sites: Sequence[str], plain: Mapping[str, bool]
) -> list[Group]:
    """The groups of those `sites` that have a family and the same parameters in all rows.

    `few`: some rows of the data; `plain`: whether a site is a latent.
    """
    looks = list[Trace]()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        for number, values in enumerate(copies.places(program)):
            try:
                looks.append(every.trace(few, values, raw=True))
            except (ValueError, RuntimeError):
                if number == 0:
                    raise
    found: dict[tuple[object, ...], dict[tuple[object, ...], list[str]]] = {}
    for site in sites:
        seen = [parameters(every, node_of(look, site)) for look in looks]
        if any(params is None for params in seen):
            continue
        known = [params for params in seen if params is not None]
        shapes = tuple((name, tuple(value.shape)) for name, value in known[0].items())
        support = _bytes(every.support[site]) if plain[site] else b""
        shape = type(base_of(node_of(looks[0], site)["fn"])), shapes, _cards(every, site), plain[site], support
        same = tuple(_bytes(value) for params in known for value in params.values())
        # at too few values of θ nobody can tell
        key = same if len(looks) >= LEAST_PLACES else (site,)
        found.setdefault(shape, {}).setdefault(key, []).append(site)
    out = []
    for kinds in found.values():
        members = [Kind(tuple(names), plain[names[0]]) for names in kinds.values()]
        first = members[0].sites[0]
        params = parameters(every, node_of(looks[0], first))
        assert params is not None
        out.append(Group(first, tuple(members), len(next(iter(params.values())))))
    return out


def hold(every: Enumerated, trace: Trace, kind: Kind) -> Tensor:
    """Whether the sites of a kind are still alike, in a trace at any θ; a tensor, so that a record can tell it too."""
    found = [parameters(every, node_of(trace, site)) or {} for site in kind.sites]
    first, no = found[0], torch.tensor(False)
    if any({n: v.shape for n, v in f.items()} != {n: v.shape for n, v in first.items()} for f in found):
        return no
    same = [
        torch.stack([f[name] for f in found]).detach().nan_to_num(torch.inf, torch.inf, -torch.inf) for name in first
    ]
    return torch.stack([(values == values[:1]).all() for values in same]).all() if same else no


def unlike(program: str) -> str:
    """What to say where they are not."""
    return (
        f"sites of '{program}' that share their parameters at most θ do not at this one, so their sums cannot be shared: write "
        "the choice as a latent, or keep θ away from it."
    )


def _cards(every: Enumerated, site: str) -> tuple[int, ...]:
    return tuple(every.cards[n] for n in every.scopes[site])


def _bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().numpy().tobytes()
