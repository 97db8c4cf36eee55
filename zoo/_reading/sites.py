"""What each site's log-density depends on, and how, read off the tensor operations that a program runs.

`read` runs a program once, on a few rows, and follows every operation (`reader`, by the rules of `operations`). With every
number goes what it depends on: which rows, which sites, the parameters; and its degree in the continuous local latents. So it
is proved, rather than measured, that a log-density is quadratic in them, and that no row reaches another row's density. What
holds of the operations holds at all values, unless the program chooses what to do by a value: a Python `if`, `int()` or
`.item()` on something that depends on data, draws or parameters is noted, with its line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from zoo._program.missing import complete_data
from zoo._program.program import Program
from zoo._program.trace import Node, is_deterministic, is_latent, is_local, sample_nodes
from zoo._reading.codes import BITS, Codes, Colours
from zoo._reading.density import Density, densities
from zoo._reading.lines import line
from zoo._reading.listing import MOST_NAMED
from zoo._reading.operations import MISSING, OTHER, UNKNOWN
from zoo._reading.reader import (
    DATA,
    FIRST_SITE,
    GLOBAL,
    PLACE,
    RANDOM,
    ROW_BITS,
    THETA,
    Reader,
    rows_along,
)


@dataclass(frozen=True)
class SiteReading:
    """How one site's log-density comes about."""

    degree: int  # in the continuous local latents: 0, 1, 2, or OTHER
    curved_by: str  # the operation that made it OTHER, with its line; "" where that is the density itself
    joined: bool  # whether it depends on other rows than its own
    joined_by: str  # the operation that brought rows together, with its line; "" where none did
    unknown: bool  # whether an operation without a rule lies on the way
    unknown_by: str  # which, with its line
    place: bool  # whether it depends on where in the batch its row stands
    random: bool  # whether it depends on random numbers that are no site
    missing: bool  # whether it depends on an entry of x that is missing
    parents: frozenset[
        str
    ]  # the other sites it depends on; of a program of many sites perhaps more: see `Reading.again`
    reads_data: bool  # whether it depends on data other than what it observes itself
    moved: bool  # whether what it observes is computed from other sites
    support_from: frozenset[str]  # what its support depends on: names of sites, "the data"


@dataclass(frozen=True)
class Reading:
    """What a run of a program showed."""

    sites: Mapping[str, SiteReading]
    choices: tuple[str, ...]  # where a value that depends on data, draws or θ became a Python value
    detached: str = ""  # where a continuous latent was detached
    cut: str = ""  # where a parameter or a global latent was, or was used under `torch.no_grad`
    covariates: bool = True  # whether the program does anything with x besides observing views of it
    again: Codes | None = None  # bits for a second reading, where sites may have more parents here than in truth

    def parents_of_others(self) -> frozenset[str]:
        """The sites that other sites are computed from."""
        return frozenset().union(*(s.parents for s in self.sites.values()))


def read(
    program: Program,
    x: Tensor,
    latents: Mapping[str, Tensor],
    data_dim: int,
    continuous: frozenset[str] = frozenset(),
    raw: bool = True,
    codes: Codes | None = None,
    drawn: Sequence[Node] = (),
) -> Reading:
    """Run `program` on x [n, …], n ≤ 10, with its latent sites at `latents`, and follow what it does.

    `data_dim`: the batch dimension of the rows. `continuous`: the local latents that degrees are counted in. Where x has
    missing entries, pass `raw=False`, and read nothing off the result but degrees and what depends on those entries.
    `codes`: of a first reading (its `again`), to tell the parents of each site exactly. `drawn`: the sites of a run on x, if
    there was one.
    """
    reader = Reader(len(x))
    x, latents = x.clone(), {k: v.clone() for k, v in latents.items()}
    values = {k: v.detach().clone() for k, v in program.values().items()}
    with torch.no_grad(), pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        reader.put(x, DATA | rows_along(x, 0) | x.isnan() * MISSING, 0)
        for value in values.values():
            reader.put(value, THETA, 0)
        drawn = drawn or sample_nodes(program.trace(x, latents=latents, raw=True))
        nodes = {n["name"]: n for n in drawn}
        sites = _Sites(reader, codes or Codes(list(latents), [n for n in nodes if n not in latents]), latents, x)
        dims = {name: _data_dimension(nodes.get(name), data_dim) for name in latents}
        for name, value in latents.items():
            bits, dim = sites.bit(name), dims[name]
            more = rows_along(value, dim) if dim is not None else torch.tensor(GLOBAL)
            reader.put(value, more | bits, 1 if name in continuous else 0)
        whole = complete_data() if not bool(x.isnan().any()) else contextlib.nullcontext()
        with whole, torch.enable_grad(), reader.reading(), sites:
            trace = program.trace(x, parameters=values, latents=latents, raw=raw)
        each = densities(reader, visited := sample_nodes(trace))
        parents = {n["name"]: sites.within.get(n["name"], 0) | d.given for n, d in zip(visited, each, strict=True)}
        found = {
            n["name"]: _site(reader, sites, n, parents[n["name"]], d, data_dim)
            for n, d in zip(visited, each, strict=True)
        }
        covariates = sites.computed or any(d.given & DATA for d in each)
    again = None
    if codes is None and not all(sites.codes.exact(_of_sites(bits)) for bits in parents.values()):
        again = Colours(sites.codes, {name: site.parents for name, site in found.items()})
    return Reading(found, tuple(dict.fromkeys(reader.choices)), reader.detached, reader.cut, covariates, again)


def observed_parents(program: Program, x: Tensor) -> frozenset[str]:
    """The observed sites of a program on data x [n, …] that other sites are computed from."""
    rows = x[: min(len(x), 3)].nan_to_num(0.0)
    found = read(program, rows, {}, -1)
    if found.again is not None:
        found = read(program, rows, {}, -1, codes=found.again)
    return found.parents_of_others()


class _At(Messenger):
    """Notes where the program comes to a site."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.line = name, ""

    def _pyro_sample(self, msg: Node) -> None:
        if msg["name"] == self.name:
            self.line = line()


def line_of(program: Program, x: Tensor, name: str) -> str:
    """The line of a site's `pyro.sample`, "file.py:12"; "" where that is not known."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), _At(name) as at:
        torch.manual_seed(0)
        program.trace(x, raw=True)
    return at.line if at.line != "the program" else ""


def _data_dimension(node: Node | None, data_dim: int) -> int | None:
    """The dimension of a latent site's value that the rows lie along; None for a global one."""
    return data_dim - len(node["fn"].event_shape) if node is not None and is_local(node) else None


def _of_sites(bits: int) -> int:
    """The bits of a mask that stand for sites."""
    return bits >> FIRST_SITE & ((1 << BITS) - 1)


class _Sites(Messenger):
    """Gives each observed value a name of its own, so that what is computed from it can be told from what x is used for."""

    def __init__(self, reader: Reader, codes: Codes, latents: Collection[str], x: Tensor) -> None:
        super().__init__()
        self.reader, self.codes, self.x = reader, codes, x
        self.seen = set(latents)
        self.within: dict[str, int] = {}  # observed site → what the value it observes depends on
        self.computed = False  # whether an observed value is anything but a view of x
        reader.named = self._named

    def bit(self, name: str) -> int:
        return self.codes.bits(name) << FIRST_SITE

    def of(self, bits: int, site: str = "") -> frozenset[str]:
        """The names of the sites in the mask of a site's density."""
        return self.codes.sites(_of_sites(bits), site)

    def _named(self, bits: int) -> str:
        """The sites in a mask as a sentence names them; "a site" where it may stand for others too."""
        found = self.of(bits) if self.codes.exact(_of_sites(bits)) else frozenset()
        names = [n for n in self.codes.by_name if n in found]
        return ", ".join(f"'{n}'" for n in names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED) or "a site"

    def _pyro_post_sample(self, msg: Node) -> None:
        value = msg["value"]
        if is_latent(msg) or not isinstance(value, Tensor) or type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["name"] in self.seen or is_deterministic(msg):
            return
        self.seen.add(msg["name"])
        with self.reader.unwatched():
            self.within[msg["name"]] = self.reader.of(value).union()[0]
            # x[:, 0] and x.mT lie in x's own memory, x + 1 and x[:, [0, 1]] do not: those were computed
            self.computed |= value.untyped_storage().data_ptr() != self.x.untyped_storage().data_ptr()
            # the next sites see this one
            msg["value"] = self.reader.renamed(value, DATA, self.bit(msg["name"]))


def _site(
    reader: Reader,
    sites: _Sites,
    node: Node,
    parents: int,
    density: Density,
    data_dim: int,
) -> SiteReading:
    mask, (bits, degree) = density.shadow.mask, density.shadow.union()
    joined = False
    if is_local(node) and mask.dim() >= -data_dim and mask.shape[data_dim] == reader.n:
        joined = bool((mask.numpy() & ROW_BITS & ~rows_along(mask, data_dim).numpy()).any())
    elif is_local(node):
        joined = reader.n > 1 and bool(bits & ROW_BITS)

    def first(what: str) -> str:
        return next((said for t in density.through if (said := reader.first(t, what))), "")

    joined_by, curved_by = first("joined"), first("curved")
    return SiteReading(
        degree=degree,
        curved_by=curved_by if degree == OTHER else "",
        joined=joined,
        joined_by=joined_by if joined else "",
        unknown=bool(bits & UNKNOWN),
        unknown_by=first("unknown") if bits & UNKNOWN else "",
        place=bool(bits & PLACE),
        random=bool(bits & RANDOM),
        missing=bool(bits & MISSING),
        parents=sites.of(parents, node["name"]) - {node["name"]},
        reads_data=bool(density.given & (DATA | MISSING)),
        moved=bool(_of_sites(sites.within.get(node["name"], 0))),
        support_from=_support_from(reader, sites, density.support),
    )


def _support_from(reader: Reader, sites: _Sites, support: constraints.Constraint | None) -> frozenset[str]:
    """What the bounds of a distribution's support depend on."""
    if support is None:
        return frozenset()
    bits = 0
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    for bound in vars(support).values():
        if isinstance(bound, Tensor):
            bits |= reader.of(bound).union()[0]
    named = sites.of(bits) | ({"the data"} if bits & DATA else frozenset())
    return named | ({"a parameter"} if bits & THETA else frozenset())
