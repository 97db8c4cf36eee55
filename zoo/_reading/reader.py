"""Follows the tensor operations that a program runs, and keeps what every number depends on beside it.

A shadow (`operations`) lies beside each storage, in the same order, so that views and writes in place need no rules of their
own. What leaves torch for Python, where it cannot be followed, is noted with its line.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo._program.missing import only_looks
from zoo._reading import operations
from zoo._reading.lines import HANDLERS, called_from, line
from zoo._reading.operations import OTHER, UNKNOWN, Rule
from zoo._reading.shadow import NO_DEGREE, Operation, Shadow, constant, tensors

ROWS = 10  # bits 0 … 9 of a mask: the rows
DATA, PLACE, THETA, GLOBAL, RANDOM = (1 << b for b in range(10, 15))  # and bit 15 is UNKNOWN
FIRST_SITE = 16  # of the bits that stand for sites, see `codes`
ROW_BITS = (1 << ROWS) - 1

# functions of tensors whose results torch's dispatcher does not see
_LEAVES = {"tolist", "numpy", "__array__", "__deepcopy__", "__reduce_ex__", "__dlpack__", "untyped_storage", "storage",
           "data_ptr", "set_", "apply_", "map_"}  # fmt: skip
_BUILDERS = {"tensor", "as_tensor", "asarray", "new_tensor", "scalar_tensor"}  # from lists of tensors
_LOOKED_AT = _LEAVES | _BUILDERS


def rows_along(value: Tensor, dim: int) -> Tensor:
    """A bit for each row, along the rows' dimension of `value`."""
    return _rows_along(value.shape, dim)


@functools.cache
def _rows_along(whole: torch.Size, dim: int) -> Tensor:
    shape = [1] * len(whole)
    shape[dim] = whole[dim]
    bits = torch.tensor([1 << i for i in range(whole[dim])], dtype=torch.int64)
    return bits.reshape(shape).expand(whole)


class _Beside:
    """A storage (to keep it alive), and beside it the bits and the degree of each entry."""

    def __init__(self, storage: UntypedStorage, itemsize: int) -> None:
        self.storage, self.bytes = storage, storage.nbytes()
        self.count = self.bytes // itemsize
        self.mask = torch.zeros(self.count, dtype=torch.int64)
        self.degree: Tensor | None = None  # where all are 0
        self.union: tuple[int, int] | None = None  # of all entries, where it is known

    def covered_by(self, t: Tensor) -> bool:
        """Whether t holds all entries, each once."""
        return t.numel() == self.count and t.is_contiguous()

    @property
    def whole(self) -> Shadow:
        """Of all entries."""
        degree = NO_DEGREE.expand(self.count) if self.degree is None else self.degree
        return Shadow(self.mask, degree, self.degree is None)

    def rising(self) -> Tensor:
        """The degrees, to be written to."""
        if self.degree is None:
            self.degree = torch.zeros(self.count, dtype=torch.int8)
        return self.degree


class Reader(TorchDispatchMode):
    """Keeps the shadows of all storages, and brings them up to date at every operation."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n  # rows
        self.choices: list[str] = []
        self.named: Callable[[int], str] = lambda bits: "a site"  # the sites in a mask
        self.detached = self.cut = ""  # where a latent was detached; where a parameter or a global latent was
        self._mine = False  # while shadows are worked on
        self.checked = False  # while a function looks at values only to raise where they are out of range
        self._beside: dict[int, _Beside] = {}  # by the address of a storage
        self._whole: dict[int, tuple[Tensor, int, int]] = {}  # the same for tensors without a storage
        self._notes: dict[int, dict[str, str]] = {}  # address → what → where it first happened

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a second, to keep it from compiling this mode

    def reading(self) -> _Both:
        return _Both(self)

    @property
    def busy(self) -> bool:
        """Whether what is done now is not the program's doing."""
        return self._mine or only_looks()

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """In here, what is done is not the program's doing."""
        before, self._mine = self._mine, True
        try:
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # or each step would be looked at
                yield
        finally:
            self._mine = before

    # ------------------------------------------------------------------------------------------------- the shadows

    def put(self, t: Tensor, bits: Tensor | int, degree: int) -> None:
        """Say what all entries of t are."""
        mask = torch.zeros(t.shape, dtype=torch.int64) | bits
        self._write(t, Shadow(mask, torch.full(t.shape, degree, dtype=torch.int8)))

    def renamed(self, t: Tensor, away: int, bits: int) -> Tensor:
        """A copy of t, in all entries of which some bits are taken away and others added."""
        own, old = t.clone(), self.of(t)
        self._write(own, Shadow((old.mask & ~away) | bits, old.degree, old.flat))
        if notes := self._notes.get(_address(t)):
            self._notes[_address(own)] = notes
        return own

    def of(self, t: Tensor) -> Shadow:
        """The shadow of a tensor."""
        if t.layout != torch.strided:  # a sparse one has no storage of its own: all its entries are alike
            _, bits, degree = self._whole.get(id(t), (t, 0, 0))
            return Shadow(torch.full(t.shape, bits), torch.full(t.shape, degree, dtype=torch.int8))
        found = self._beside.get(_address(t)) if t.numel() else None
        if found is None:
            return constant(t)
        if found.bytes // t.itemsize != found.count:  # seen as another type, such as a complex number's parts
            bits, degree = found.whole.union()
            mask = torch.full(t.shape, bits | UNKNOWN if bits else 0, dtype=torch.int64)
            return Shadow(mask, torch.full(t.shape, OTHER if degree else 0, dtype=torch.int8))
        size, stride, offset = t.size(), t.stride(), t.storage_offset()
        degrees = NO_DEGREE.expand(size) if found.degree is None else found.degree.as_strided(size, stride, offset)
        union = found.union if found.covered_by(t) else None
        return Shadow(found.mask.as_strided(size, stride, offset), degrees, found.degree is None, union)

    def _write(self, t: Tensor, shadow: Shadow) -> None:
        if not t.numel():
            return
        if t.layout != torch.strided:
            self._whole[id(t)] = (t, *shadow.union())
            return
        address = _address(t)
        beside = self._beside.get(address)
        if beside is None:
            beside = self._beside[address] = _Beside(t.untyped_storage(), t.itemsize)
        beside.union = shadow.union() if beside.covered_by(t) else None
        if beside.bytes // t.itemsize != beside.count:
            beside.union = None
            bits, degree = shadow.union()
            beside.mask |= bits | UNKNOWN
            if degree:
                beside.rising().clamp_(min=OTHER)
            return
        place = t.size(), t.stride(), t.storage_offset()
        beside.mask.as_strided(*place).copy_(shadow.mask)
        if beside.degree is not None or shadow.union()[1]:
            beside.rising().as_strided(*place).copy_(shadow.degree)

    def first(self, t: Tensor, what: str) -> str:
        """Where it first happened on the way to t."""
        return self._notes.get(_address(t), {}).get(what, "")

    # ----------------------------------------------------------------------------------------------- the operations

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if self.busy:
            return func(*args, **(kwargs or {}))
        self._mine = True
        try:
            with torch._C.DisableTorchFunction():  # else the watch looks at each step of the work on shadows
                return self._operation(func, args, kwargs or {})
        finally:
            self._mine = False

    def _operation(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        name, mutable, seeded, view, entrywise, leaves = _facts(func)
        ins = tensors((args, kwargs))
        known, before = any(map(self._known, ins)), list[Shadow]()
        if not known and not seeded:
            return func(*args, **kwargs)
        if view:
            result = func(*args, **kwargs)
            if all(t.layout == torch.strided and _address(t) == _address(ins[0]) for t in tensors(result)):
                return result  # in the same memory, beside which the shadow lies
        busy = False
        if known:
            before = [self.of(t) for t in ins]  # a write in place comes after
            busy = any(s.union()[0] for s in before)
        if busy and (name == "detach" or not torch.is_grad_enabled()):
            self._loses(before, name == "detach")
        place = PLACE if busy and not seeded and entrywise and self.meets(ins, before) else 0
        result = func(*args, **kwargs)
        if not busy and not seeded and not self._writes(mutable, ins):
            return result
        if busy and (leaves or name.startswith("index")) and self._leaves_torch(name, ins):
            self.choose(ins, name)
        outs = [o for o in tensors(result) if o.numel()]
        fresh = outs
        if not mutable:
            old = {_address(t) for t in ins if t.numel()}
            fresh = [o for o in outs if _address(o) not in old]
        if fresh:
            before = before or [self.of(t) for t in ins]
            seen = {id(t): s for t, s in zip(ins, before, strict=True)}

            def of(t: Tensor) -> Shadow:
                return seen[id(t)] if id(t) in seen else self.of(t)

            plain = name[:-1] if mutable and name.endswith("_") and not name.endswith("__") else name
            op = Operation(plain, func, args, kwargs, fresh, of)
            self._follow(op, ins, before, RANDOM if seeded else place)
        return result

    def _follow(self, op: Operation, ins: list[Tensor], before: list[Shadow], more: int) -> None:
        """Put the shadows of the results beside them; `more`: bits that all of them carry besides."""
        for o, s in zip(op.outs, self.shadows(op, more), strict=True):
            self._note(o, ins, before, s, op.name)
            self._write(o, Shadow(s.mask | more, s.degree, s.flat) if more else s)

    def _loses(self, parts: Sequence[Shadow], all_of_it: bool = True) -> None:
        """Note where derivatives are lost; in the continuous local latents where `all_of_it` is."""
        if all_of_it and not self.detached and any(s.union()[1] > 0 for s in parts):
            self.detached = line(innermost=True)
        if not self.cut and any(s.union()[0] & (THETA | GLOBAL) for s in parts):
            self.cut = line(innermost=True)

    def shadows(self, op: Operation, more: int) -> list[Shadow]:
        """The shadows of the results of an operation."""
        rule: Rule = _in_place if op.func._schema.is_mutable else operations.apply
        if op.name == "where" and called_from(*HANDLERS):  # the handler chooses between what is seen and what is not
            rule = _chosen
        elif more & RANDOM:
            rule = operations.unknown
        try:
            return rule(op)
        except (RuntimeError, IndexError, TypeError, ValueError):  # a form of the operation that its rule does not know
            return operations.unknown(op)

    def _known(self, t: Tensor) -> bool:
        """Whether there is a shadow beside a tensor."""
        return (t.layout != torch.strided) or (t.numel() > 0 and _address(t) in self._beside)

    def _writes(self, mutable: bool, ins: list[Tensor]) -> bool:
        """Whether constants are written where something else stood."""
        return mutable and any(_address(t) in self._beside for t in ins if t.numel())

    def meets(self, ins: Sequence[Tensor], before: Sequence[Shadow]) -> bool:
        """Whether one of them is a constant that differs from row to row."""
        if self.n < 3:
            return False
        for t, s in zip(ins, before, strict=True):
            if self.n not in t.shape or s.union()[0]:
                continue
            for dim, size in enumerate(t.shape):
                if size == self.n and not bool(((t == t.narrow(dim, 0, 1)) | (t != t)).all()):
                    return True
        return False

    def _note(self, out: Tensor, ins: list[Tensor], before: list[Shadow], shadow: Shadow, name: str) -> None:
        """Keep in mind where a degree was first lost, and where rows first came together."""
        notes: dict[str, str] = {}
        for t in (out, *ins):
            if self._notes and (known := self._notes.get(_address(t))):
                notes = {**known, **notes}
        bits, high = shadow.union()
        if "curved" not in notes and high >= OTHER and bool((shadow.degree == OTHER).any()):
            notes["curved"] = _named(name)
        if "joined" not in notes and not _in_rows(shadow, self.n) and all(_in_rows(s, self.n) for s in before):
            notes["joined"] = _named(name)
        if "unknown" not in notes and bits & UNKNOWN:
            notes["unknown"] = _named(name)
        if notes:
            self._notes[_address(out)] = notes

    # -------------------------------------------------------------------------------------------------- choices

    def _leaves_torch(self, name: str, ins: list[Tensor]) -> bool:
        """Whether a value, or a shape, is now known to Python. Indices make a shape only where they are masks."""
        if not name.startswith("index"):
            return True
        return any(self.of(t).union()[0] for t in ins[1:] if t.dtype in (torch.bool, torch.uint8))

    def choose(self, ins: list[Tensor], what: str) -> None:
        """Note that a value became a Python value, if it is the program that did so."""
        bits = 0
        for t in ins:
            bits |= self.of(t).union()[0]
        place = line()
        if not bits or not place or self.checked:
            return
        on = "the data" if bits & DATA else self.named(bits) if bits >= 1 << FIRST_SITE else "a parameter"
        self.choices.append(f"{place} turns a tensor that depends on {on} into a Python value")


class _Both:
    """The reader, and the watch over functions that torch's dispatcher does not see."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.watch = reader, _Watch(reader)

    def __enter__(self) -> None:
        self.watch.__enter__()
        self.reader.__enter__()

    def __exit__(self, *error: object) -> None:
        self.reader.__exit__(*error)
        self.watch.__exit__(*error)


class _Watch(TorchFunctionMode):
    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if self.reader.busy or not (name := _watched(func)):
            return func(*args, **kwargs)
        if name != "one_hot":
            with self.reader.unwatched():
                self._look(func, name, args, kwargs)
            return func(*args, **kwargs)
        self.reader.checked = _classes(*args, **kwargs) > 0
        try:
            return func(*args, **kwargs)
        finally:
            self.reader.checked = False

    def _look(self, func: object, name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        if name in _LEAVES or (name in _BUILDERS and args and not isinstance(args[-1], Tensor)):
            self.reader.choose(tensors((args, kwargs)), name)
            return
        if name == "__get__":
            self.reader._loses([self.reader.of(t) for t in tensors(args)])


@functools.cache
def _watched(func: Callable[..., object]) -> str:
    """The name of a function that has to be looked at; "" for all others."""
    name = getattr(func, "__name__", "")
    data = name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") == "data"
    return name if data or name in _LOOKED_AT or name == "one_hot" else ""


def _classes(of: object, num_classes: int = -1) -> int:
    """How many classes `one_hot` was told there are: where it was not, its shape depends on the values."""
    return num_classes


def _chosen(op: Operation) -> list[Shadow]:
    """Of two branches, entry by entry the one that was taken."""
    one, other = op.of(op.args[1]), op.of(op.args[2])
    mask = torch.where(op.args[0], one.mask, other.mask) | op.of(op.args[0]).mask
    return [
        Shadow(mask.expand(o.shape), torch.where(op.args[0], one.degree, other.degree).expand(o.shape)) for o in op.outs
    ]


def _in_place(op: Operation) -> list[Shadow]:
    """The shadow of what is written over: as that of the function of the same name."""
    if op.name in operations.CONSTANTS:
        if op.name == "fill" and len(op.args) > 1 and isinstance(op.args[1], Tensor):
            bits, degree = op.of(op.args[1]).union()
            return [Shadow(torch.full(o.shape, bits), torch.full(o.shape, degree, dtype=torch.int8)) for o in op.outs]
        return [constant(o) for o in op.outs]
    if op.name == "copy":
        source = op.of(op.args[1])
        narrow = operations.narrower(op.args[0].dtype, op.args[1].dtype)
        kept = operations.curved(source.degree) if narrow else source.degree
        return [Shadow(source.mask.expand(o.shape), kept.expand(o.shape)) for o in op.outs]
    packet = getattr(torch.ops.aten, op.name, None)
    if packet is not None and torch.Tag.pointwise in getattr(packet, packet.overloads()[0]).tags:
        return operations.entrywise(op)
    return operations.apply(op)


def _address(t: Tensor) -> int:
    """Of a tensor's storage; of the tensor itself where it has none."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else id(t)


def _in_rows(shadow: Shadow, n: int) -> bool:
    """Whether entry i along some dimension depends on row i alone, or no entry on more than one row where none is so long."""
    if not shadow.union()[0] & ROW_BITS:
        return True
    rows = (shadow.mask.numpy() & ROW_BITS).astype(np.int16)
    return _each_in_its_own(tuple(shadow.mask.shape), rows.tobytes(), n)


@functools.lru_cache(4096)
def _each_in_its_own(shape: tuple[int, ...], content: bytes, n: int) -> bool:
    rows = np.frombuffer(content, np.int16).reshape(shape)
    dims = [d for d, size in enumerate(shape) if size == n]
    if any(not (rows & ~_rows_along(torch.Size(shape), d).numpy()).any() for d in dims):
        return True
    return not dims and not (rows & (rows - 1)).any()


@functools.cache
def _facts(func: OpOverload) -> tuple[str, bool, bool, bool, bool, bool]:
    """An operation's name; whether it writes into its arguments, draws random numbers, only looks otherwise at memory, works
    entry by entry, and tells Python a value or a shape."""
    name = func.overloadpacket.__name__
    return (
        name,
        func._schema.is_mutable,
        torch.Tag.nondeterministic_seeded in func.tags,
        func.is_view and name != "detach",
        torch.Tag.pointwise in func.tags or name.rstrip("_") in operations.ENTRYWISE,
        torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags,
    )


def _named(name: str) -> str:
    place = line()
    return f"`{name}` at {place}" if place else ""
