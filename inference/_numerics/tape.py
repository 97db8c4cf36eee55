"""A function of tensors as a plain list of tensor operations, without the Python that called them.

Every tensor operation that depends on the inputs is noted as it is carried out once; what depends on constants alone is a
constant. Equal operations are done once, and those that no output needs are left out. What decides by a value that depends on
the inputs cannot be noted, nor, unless asked for, what draws random numbers from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NOT_WRITING = {"normal_": "normal_functional"}  # others are called like the operation that writes
FILLED = ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")  # only shapes of inputs count
VALUES_DECIDE = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


def record(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    *,
    held: Sequence[Tensor] = (),
    random: bool = False,
) -> GraphModule:
    """The operations of a function, which maps as many tensors as there are `inputs` to some others.

    - `held`: tensors that the function reads without being given them, parameters for instance; the graph takes their values
      after the inputs.
    - `random`: note draws of random numbers too; the graph then draws as many, in the same order. Otherwise those that
      depend on no input are constants.

    Raises `NotImplementedError` where an operation cannot be noted.

    >>> graph = record(lambda a, b: (a * 2 + b, b.exp()), [torch.ones(3), torch.zeros(3)])
    >>> graph(torch.zeros(3), torch.zeros(3))[1]
    tensor([1., 1., 1.])
    """
    given = [value.detach().clone() for value in inputs]
    recorder = _Recorder([*given, *held], random)
    with recorder:
        found = function(*given)
    recorder.graph.output(tuple(recorder.argument(v) for v in found))
    graph = GraphModule(recorder.constants, recorder.graph)
    _simplify(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class _Recorder(TorchDispatchMode):
    """Notes the operations that depend on the inputs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a second, to keep it from compiling this mode

    def __init__(self, inputs: Sequence[Tensor], random: bool) -> None:
        super().__init__()
        self.random = random
        self.graph, self.constants = Graph(), torch.nn.Module()
        self.nodes: dict[int, Node] = {}  # of what depends on the inputs
        self.known: dict[int, Node] = {}  # of constants
        self.filled: set[int] = set()
        self.held: list[Tensor] = []  # so that no two tensors have had one id
        for i, value in enumerate(inputs):
            self.note(value, self.graph.placeholder(f"input{i}"))

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
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if not any(id(v) in self.nodes for v in given) and not (draws and self.random):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name in FILLED:
            self.held.append(func(*args, **kwargs))
            self.filled.add(id(self.held[-1]))
            return self.held[-1]
        if name in VALUES_DECIDE or (draws and not self.random) or self._picks(name, args):
            raise NotImplementedError(f"{name} of what depends on the inputs")
        for value in _written(func, args, kwargs):
            if id(value) not in self.nodes and id(value) not in self.filled and not draws:
                raise NotImplementedError(f"{name} writes what depends on the inputs into a constant")
            if id(value) not in self.nodes:  # as `torch.empty(3).normal_()` does: write into a copy
                self.note(value, self.graph.call_function(torch.ops.aten.clone.default, (self.argument(value),)))
        noted, words = tree_map(self.argument, args), tree_map(self.argument, kwargs)
        found = func(*args, **kwargs)
        node = self.graph.call_function(func, noted, words)
        if isinstance(found, tuple | list):
            for i, value in enumerate(found):
                if isinstance(value, Tensor):
                    self.note(value, self.graph.call_function(_item, (node, i)))
        else:
            self.note(found, node)
        return found

    def _picks(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a mask that depends on the inputs decides how many entries there are."""
        if name not in ("index", "index_put", "index_put_") or (name != "index" and args[2].numel() == 1):
            return False
        return any(v is not None and v.dtype in (torch.bool, torch.uint8) and id(v) in self.nodes for v in args[1])

    def argument(self, value: Any) -> Any:
        """What stands for a value in the graph."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.nodes:
            return self.nodes[id(value)]
        if id(value) not in self.known:
            name = f"constant{len(self.known)}"
            self.constants.register_buffer(name, _copy(value.detach()))
            self.known[id(value)] = self.graph.get_attr(name)
            self.held.append(value)
        return self.known[id(value)]


def _copy(value: Tensor) -> Tensor:
    """A copy that holds no more numbers than the tensor does: an expanded one stays expanded."""
    once = tuple(slice(1) if stride == 0 else slice(None) for stride in value.stride())
    return value[once].clone().expand(value.shape)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes into."""
    given = zip(func._schema.arguments, args, strict=False)
    named = {a.name: a for a in func._schema.arguments}
    pairs = [*given, *((named[name], value) for name, value in kwargs.items())]
    return [value for a, value in pairs if a.alias_info is not None and a.alias_info.is_write]


def _item(values: Any, i: int) -> Any:
    return values[i]


def _simplify(graph: GraphModule) -> None:
    """Do equal operations on equal arguments once, and nothing that changes nothing."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    for node in nodes:
        _without_writing(node)
    if any(_writes(node) for node in nodes):
        return  # what is written into may not be one with anything
    _share(graph)
    seen: dict[object, Node] = {}
    for node in nodes:
        if (same := _equal_to(node, graph)) is not None:
            node.replace_all_uses_with(same)
            continue
        if _draws(node):
            continue
        key = (str(node.target), repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node


def _share(graph: GraphModule) -> None:
    """Keep one of constants that are equal, so that operations on them are equal too."""
    seen: dict[object, Node] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, str(node.target))
            key = value.dtype, value.shape, value.stride(), value.numpy().tobytes()
            if (first := seen.setdefault(key, node)) is not node:
                node.replace_all_uses_with(first)


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


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
    plain = NOT_WRITING.get(name, name.removesuffix("_"))
    other = getattr(getattr(torch.ops.aten, plain, None), overload, None)
    if name.endswith("_") and other is not None:
        node.target = other
        if of.target is torch.ops.aten.clone.default:  # which was made to be written into
            node.args = (of.args[0], *node.args[1:])


def _equal_to(node: Node, graph: GraphModule) -> Node | None:
    """The argument of an operation that it changes nothing of, or that of the operation before, which it undoes."""
    aten, of = torch.ops.aten, node.args[0] if node.args else None
    if not isinstance(of, Node):
        return None
    if node.target is aten.t.default and of.target is aten.t.default:
        first = of.args[0]
        return first if isinstance(first, Node) else None
    other = node.args[1] if len(node.args) > 1 else None
    if node.target is aten.mul.Tensor and isinstance(other, Node) and of.op == "get_attr":
        of, other = other, of
    if "shape" not in of.meta or of.meta["shape"] != node.meta.get("shape"):
        return None
    if node.target in (aten.detach.default, aten.alias.default, aten.view.default, aten.expand.default):
        return of
    if node.target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar):
        return of if _is(other, 1, graph) else None
    if node.target in (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar):
        return of if _is(other, 0, graph) else None
    return None


def _is(value: object, number: int, graph: GraphModule) -> bool:
    """Whether an argument is this number, or a constant of nothing else."""
    if isinstance(value, Node):
        return value.op == "get_attr" and bool((getattr(graph, str(value.target)) == number).all())
    return isinstance(value, int | float) and value == number
