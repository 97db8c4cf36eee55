"""How the parameters of each site come from one positive latent: is a rate c · z, a scale c / √z, a probability z itself?

The same watch over a program's operations as in `sites`, with another algebra in the place of degrees. An entry is a constant,
z itself, 1 − z, or a constant times z, √z, 1/z or 1/√z; whatever else is done to z is `OTHER`, and proves nothing. For example
`exposure * z` is `TIMES`, `(exposure * z).rsqrt()` is `TIMES_INVERSE_ROOT`; `z + 1`, `z.clamp(1e-6)` and `z * z` are `OTHER`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from zoo._program.program import Program
from zoo._program.trace import is_local, node_of, sample_nodes
from zoo._reading import operations
from zoo._reading.operations import OTHER
from zoo._reading.reader import FIRST_SITE, Reader, rows_along
from zoo._reading.shadow import Operation, Shadow

ITSELF, TIMES, TIMES_ROOT, TIMES_INVERSE, TIMES_INVERSE_ROOT, ONE_MINUS, WHOLE, SUM = 1, 2, 4, 5, 6, 7, 8, 9  # 3: OTHER
_INVERSES = {ITSELF: TIMES_INVERSE, TIMES: TIMES_INVERSE, TIMES_ROOT: TIMES_INVERSE_ROOT, TIMES_INVERSE: TIMES,
             TIMES_INVERSE_ROOT: TIMES_ROOT}  # fmt: skip
_ROOTS = {ITSELF: TIMES_ROOT, TIMES: TIMES_ROOT, TIMES_INVERSE: TIMES_INVERSE_ROOT}
_SQUARES = {TIMES_ROOT: TIMES, TIMES_INVERSE_ROOT: TIMES_INVERSE}
_SCALED = {ITSELF: TIMES, **{code: code for code in (TIMES, TIMES_ROOT, TIMES_INVERSE, TIMES_INVERSE_ROOT)}}
_KEPT = {code: code for code in (ITSELF, TIMES, TIMES_ROOT, TIMES_INVERSE, TIMES_INVERSE_ROOT, ONE_MINUS, WHOLE)}


@dataclass(frozen=True)
class SitePowers:
    """What one site has of the latent z."""

    touched: bool  # whether its density, its parameters or its value depend on z
    parameters: Mapping[str, frozenset[int]]  # a parameter's name → what its entries are; those without z left out
    value: bool  # whether its value is computed from z, other than being z


def read_powers(
    program: Program, x: Tensor, latents: Mapping[str, Tensor], name: str, data_dim: int
) -> dict[str, SitePowers]:
    """Run `program` on x [n, …] at `latents`, and follow what it does with the continuous latent `name`: site → its share."""
    latents = {k: v.clone() for k, v in latents.items()}
    values = {k: v.detach().clone() for k, v in program.values().items()}
    x = x.clone()
    with torch.no_grad(), pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        before = node_of(program.trace(x, latents=latents, raw=True), name)
        events = len(before["fn"].event_shape)
        reader = _Powers(len(x), size=latents[name].shape[-1] if events else 0)
        z = latents[name]
        whole = str(before["fn"].support).startswith("Simplex")
        rows = rows_along(z, data_dim - events) if is_local(before) else torch.tensor(0)
        reader.put(z, rows | torch.tensor(1 << FIRST_SITE), WHOLE if whole else ITSELF)
        with reader.reading():
            trace = program.trace(x, parameters=values, latents=latents, raw=True)
        nodes = sample_nodes(trace)
        # before a density adds others that are worked out from them
        taken = {n["name"]: _parameters(reader, n["fn"]) for n in nodes}
        with reader.reading():
            densities = [(n, n["fn"].log_prob(n["value"])) for n in nodes]
        found = dict[str, SitePowers]()
        for node, log_prob in densities:
            site, parameters = node["name"], taken[node["name"]]
            computed = site != name and bool(_of(reader, node["value"])[0])
            weighed = bool(_of(reader, node["mask"])[0] or _of(reader, node["scale"])[0])
            touched = computed or weighed or bool(_of(reader, log_prob)[0]) or bool(parameters and site != name)
            found[site] = SitePowers(touched, parameters, computed)
        return found


def _parameters(reader: Reader, fn: object) -> dict[str, frozenset[int]]:
    """A distribution's tensors that come from z: their names, and what their entries are."""
    out = dict[str, frozenset[int]]()
    while hasattr(fn, "base_dist"):
        mask = getattr(fn, "_mask", None)
        if _of(reader, mask)[0]:
            out["mask"] = _of(reader, mask)[1]
        fn = fn.base_dist
    for name, value in vars(fn).items():
        if isinstance(value, torch.distributions.Distribution):  # a multinomial's categorical
            out |= _parameters(reader, value)
        elif isinstance(value, Tensor) and name != "_param":  # which is another name of one of them
            mask, codes = _of(reader, value)
            if mask:
                out[name] = codes
    return out


def _of(reader: Reader, value: object) -> tuple[int, frozenset[int]]:
    """Whether entries of a tensor come from z, and what they are; of anything else, that none do."""
    if not isinstance(value, Tensor):
        return 0, frozenset()
    shadow = reader.of(value)
    bits, _ = shadow.union()
    return bits & (1 << FIRST_SITE), frozenset(shadow.degree.unique().tolist()) if bits else frozenset()


class _Powers(Reader):
    """A reader whose degrees are the codes above."""

    def __init__(self, n: int, size: int) -> None:
        super().__init__(n)
        self.size = size  # of a simplex

    def shadows(self, op: Operation, more: int) -> list[Shadow]:
        out, found = [], super().shadows(op, more)
        for o, s in zip(op.outs, found, strict=True):
            if s.union()[1] == 0:
                out.append(s)
                continue
            kept = self._power(op, o)
            code = torch.full_like(s.degree, OTHER) if kept is None else kept.expand(s.degree.shape)
            out.append(Shadow(s.mask, torch.where(s.degree > 0, code, s.degree)))
        return out

    def _power(self, op: Operation, out: Tensor) -> Tensor | None:
        """The codes of a result, entry by entry; None where nothing is proved."""
        name, args = op.name, op.args
        if op.func._schema.is_mutable or not args:
            return None
        if name in operations.MOVES or name == "index":
            return _moved(op)
        if not isinstance(args[0], Tensor):
            return None
        first = op.of(args[0]).degree
        second = op.of(args[1]).degree if len(args) > 1 and isinstance(args[1], Tensor) else None
        if name in operations.LINEAR - {"neg"} or (name == "_to_copy" and not _narrow(op)):
            return _mapped(first, _KEPT)
        table = {"reciprocal": _INVERSES, "sqrt": _ROOTS, "square": _SQUARES}.get(name)
        if table is not None:
            return _mapped(first, table)
        if name == "rsqrt":
            return _mapped(_mapped(first, _ROOTS), _INVERSES)
        if name == "pow" and second is None:
            return _raised(first, args[1])
        if name == "mul":
            return _mapped(first, _SCALED) if second is None else _times(first, second)
        if name == "div" and op.kwargs.get("rounding_mode") is None:
            return self._quotient(op, first, second)
        if name == "sum" and self._is_whole(args[0], first) and op.argument("dim") == [-1] and op.argument("keepdim"):
            return torch.full_like(out, SUM, dtype=torch.int8)
        if name in ("sub", "rsub") and _is_one(op, name):
            return _mapped(first if name == "rsub" else second, {ITSELF: ONE_MINUS, ONE_MINUS: ITSELF})
        return None

    def _quotient(self, op: Operation, first: Tensor, second: Tensor | None) -> Tensor:
        """A constant below scales; below a constant z is inverse. A simplex is what it is divided by its own sum."""
        if second is None:
            return _mapped(first, _SCALED)
        first, second = torch.broadcast_tensors(first, second)
        whole = self._is_whole(op.args[0], first) and bool((second == SUM).all())
        over = torch.where(second == 0, _mapped(first, _SCALED), torch.full_like(first, OTHER))
        over = torch.where((first == 0) & (second > 0), _mapped(second, _INVERSES), over)
        return torch.full_like(first, WHOLE) if whole else over

    def _is_whole(self, value: Tensor, codes: Tensor) -> bool:
        """Whether the last dimension holds all entries of the simplex: a part of it, or another order of dimensions, does not
        sum to 1."""
        if value.dim() == 0 or value.shape[-1] != self.size or not bool((codes == WHOLE).all()):
            return False
        return bool(((value.sum(-1) - 1).abs() < 1e-9).all())


def _moved(op: Operation) -> Tensor | None:
    """Entries are what they were, unless an index comes from z; a part of a simplex is no simplex."""
    if op.name not in operations.RULE_OF:
        return None
    degree = operations.RULE_OF[op.name](op)[0].degree
    return _mapped(degree, {k: v for k, v in _KEPT.items() if k != WHOLE})


def _mapped(codes: Tensor | None, table: Mapping[int, int]) -> Tensor:
    assert codes is not None
    out = torch.where(codes > 0, torch.full_like(codes, OTHER), codes)
    for code, new in table.items():
        out = torch.where(codes == code, torch.full_like(codes, new), out)
    return out


def _times(first: Tensor, second: Tensor) -> Tensor:
    first, second = torch.broadcast_tensors(first, second)
    both = torch.where((first > 0) & (second > 0), torch.full_like(first, OTHER), torch.maximum(first, second))
    return _mapped(both, _SCALED)


def _raised(codes: Tensor, power: object) -> Tensor:
    inverse = _mapped(codes, _INVERSES)
    tables = {1: _mapped(codes, _KEPT), 2: _mapped(codes, _SQUARES), 0.5: _mapped(codes, _ROOTS), -1: inverse,
              -0.5: _mapped(inverse, _ROOTS), -2: _mapped(_mapped(codes, _SQUARES), _INVERSES)}  # fmt: skip
    return tables[power] if power in tables else torch.where(codes > 0, torch.full_like(codes, OTHER), codes)  # type: ignore[index]


def _narrow(op: Operation) -> bool:
    return operations.narrower(op.kwargs.get("dtype"), op.args[0].dtype)


def _is_one(op: Operation, name: str) -> bool:
    """Whether z is taken from the number 1: `1 - z` is rsub(z, 1), and sub(1, z) where the 1 is a tensor of ones."""
    if op.argument("alpha", 1) != 1:
        return False
    one = op.args[1] if name == "rsub" else op.args[0]
    if isinstance(one, Tensor):
        return not op.of(one).union()[0] and bool((one == 1).all())
    return bool(one == 1)
