"""A density and its gradient as a plain list of tensor operations, without the program's own Python.

Every tensor operation that depends on the coordinates is noted as it is carried out once; what depends on constants alone is
a constant. The list, with equal operations done once, is run by TorchScript, which takes a microsecond an operation where
Python takes five. It is used only where it gives what the program gives; a program that decides by its latents' values, or
does anything else that cannot be noted, is evaluated by itself.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

Density = Callable[[Tensor], Tensor]  # [C, d] ↦ [C]
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # [C, d] ↦ log-densities [C], gradients [C, d]
VALUES_DECIDE = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


def recorded(step: Step, like: Tensor) -> Step | None:
    """A step as its list of tensor operations, for inputs shaped as `like`; None where it has none, or gives another value."""
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = _scripted(_record(step, like), like)
        for points in (like, like.flip(0), like.roll(1, -1)):
            if not all(_close(a, b) for a, b in zip(found(points), step(points), strict=True)):
                return None
        return found
    return None


class Gradient:
    """flat [C, d] ↦ log-densities [C] and gradients [C, d], as arrays, for as many points as in `like`."""

    def __init__(self, density: Density, like: Tensor) -> None:
        self.density = density
        self.recorded: Step | None = None
        self.evaluations = 0
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.recorded = _scripted(_record(self._by_program, like), like)
        if self.keep_if_right(like):
            self.keep_if_right(like.flip(0) * 0.9)

    def __call__(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.evaluations += 1
        points = torch.from_numpy(flat)
        if self.recorded is None:
            value, gradient = self._by_program(points)
        else:
            with torch.no_grad():
                value, gradient = self.recorded(points)
        return value.numpy(), gradient.numpy()

    def keep_if_right(self, flat: Tensor) -> bool:
        """Whether the record gives at these points what the program gives; it is dropped where it does not."""
        if self.recorded is None:
            return False
        try:
            with torch.no_grad():
                found = self.recorded(flat)
            right = all(_close(a, b) for a, b in zip(found, self._by_program(flat), strict=True))
        except RuntimeError:
            right = False
        if not right:
            self.recorded = None
        return right

    def _by_program(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            flat = flat.detach().requires_grad_()
            value = self.density(flat)
            (gradient,) = torch.autograd.grad(value.sum(), flat)
        return value.detach(), gradient


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two evaluations are alike up to the order of their sums."""
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-7, atol=1e-9 * (1 + scale), equal_nan=True)


class _Recorder(TorchDispatchMode):
    """Notes the operations that depend on the tensor `input`."""

    def __init__(self, input: Tensor) -> None:
        super().__init__()
        self.graph, self.constants = Graph(), torch.nn.Module()
        self.nodes: dict[int, Node] = {}  # of what depends on the input
        self.known: dict[int, Node] = {}  # of constants
        self.held: list[Tensor] = []  # so that no two tensors have had one id
        self.note(input, self.graph.placeholder("flat"))

    def note(self, value: object, node: Node) -> None:
        if isinstance(value, Tensor):
            node.meta["shape"] = (tuple(value.shape), value.dtype)
            self.nodes[id(value)] = node
            self.held.append(value)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
        if not any(id(v) in self.nodes for v in given):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name in VALUES_DECIDE or torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(f"{name} of what depends on the latents")
        noted, words = tree_map(self._argument, args), tree_map(self._argument, kwargs)
        found = func(*args, **kwargs)
        node = self.graph.call_function(func, noted, words)
        if isinstance(found, tuple | list):
            for i, value in enumerate(found):
                if isinstance(value, Tensor):
                    self.note(value, self.graph.call_function(_item, (node, i)))
        else:
            self.note(found, node)
        return found

    def _argument(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.nodes:
            return self.nodes[id(value)]
        if id(value) not in self.known:
            name = f"constant{len(self.known)}"
            self.constants.register_buffer(name, value.detach().clone())
            self.known[id(value)] = self.graph.get_attr(name)
            self.held.append(value)
        return self.known[id(value)]


def _item(values: Any, i: int) -> Any:
    return values[i]


def _record(step: Step, like: Tensor) -> GraphModule:
    """The operations of a step."""
    flat = like.detach().clone()
    recorder = _Recorder(flat)
    with recorder:
        found = step(flat)
    recorder.graph.output(tuple(recorder.nodes[id(v)] for v in found))
    graph = GraphModule(recorder.constants, recorder.graph)
    _simplify(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _simplify(graph: GraphModule) -> None:
    """Do equal operations on equal arguments once, and nothing that changes nothing."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    for node in nodes:
        _without_writing(node)
    if any(_writes(node) for node in nodes):
        return  # what is written into may not be one with anything
    seen: dict[object, Node] = {}
    for node in nodes:
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            continue
        key = (str(node.target), repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _without_writing(node: Node) -> None:
    """Make an operation that writes into a tensor which nothing else sees one that does not."""
    of = node.args[0] if node.args else None
    if not _writes(node) or not isinstance(of, Node) or len(of.users) > 1:
        return
    schema = getattr(of.target, "_schema", None)
    if schema is None or any(r.alias_info is not None for r in schema.returns):
        return  # a view, whose tensor others see
    target: Any = node.target
    name, overload = target._schema.name.split("::")[-1], target._schema.overload_name or "default"
    other = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
    if name.endswith("_") and other is not None:
        node.target = other


def _changes_nothing(node: Node) -> bool:
    aten, of = torch.ops.aten, node.args[0] if node.args else None
    if not isinstance(of, Node) or "shape" not in of.meta or of.meta["shape"] != node.meta.get("shape"):
        return False
    if node.target in (aten.detach.default, aten.alias.default, aten.view.default, aten.expand.default):
        return True
    if node.target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return isinstance(node.args[1], int | float) and node.args[1] == 1
    if node.target in (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar):
        return isinstance(node.args[1], int | float) and node.args[1] == 0
    return False


def _scripted(graph: GraphModule, like: Tensor) -> Step:
    """The graph run by TorchScript, where torch still has it."""
    try:
        with torch.no_grad():
            traced = torch.jit.trace(graph, (like,), check_trace=False)
            frozen: Step = torch.jit.freeze(traced.eval())
            for _ in range(3):
                frozen(like)
    except Exception:
        return graph
    return frozen
