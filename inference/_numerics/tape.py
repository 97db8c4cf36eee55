"""A function of tensors as a plain list of tensor operations, without the Python that called them.

Every tensor operation that depends on the inputs is noted as it is carried out once; what depends on constants alone is a
constant. Equal operations are done once, and those that no output needs are left out. What decides by a value that depends on
the inputs cannot be noted, whether torch reads the value or NumPy does; nor what writes into a tensor that was there before,
which is a state; nor, unless asked for, what draws random numbers from the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NOT_WRITING = {"normal_": "normal_functional"}  # others are called like the operation that writes
FILLED = ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")  # only shapes of inputs count
VALUES_DECIDE = ("is_nonzero", "nonzero_static", "_pack_padded_sequence")  # besides those that torch tags so
BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
PICKS = ("index", "index_put", "index_put_")  # they do so where an index is a mask
OF_SHAPE = (
    "is_same_size",
    "size",
    "stride",
    "sym_size",
    "sym_stride",
    "sym_numel",
    "sym_storage_offset",
    "is_contiguous",
)
READS = ("numpy", "tolist", "storage", "untyped_storage", "_typed_storage", "to_dlpack", "_to_dlpack")
# what hands the numbers of a tensor to others, or decides by them unseen
OUT_OF_TORCH = (*READS, *(f"__{name}__" for name in ("dlpack", "array", "repr", "deepcopy", "reduce_ex")))
OUT_OF_TORCH += ("tensor_split", "register_hook")
MAKES = ("tensor", "as_tensor", "asarray", "new_tensor")  # of numbers, which may be tensors in a list


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
    with recorder, _Leaving(recorder):
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
        self.known: dict[tuple[int, int], Node] = {}  # of constants, each as it was at a time
        self.fresh: dict[
            int, bool
        ] = {}  # constants that were made here, which may be written into → whether by any operation
        self.latest: object = None  # of them
        self.made: set[int] = set()  # the memory of constants that were made here
        self.seen_as: set[int] = set()  # that of constants which have views
        self.held: list[Tensor] = []  # so that no two tensors have had one id
        self.given = {_memory(value) for value in inputs}
        for i, value in enumerate(inputs):
            self.note(value, self.graph.placeholder(f"input{i}"))

    def depends(self, value: Tensor) -> bool:
        """Whether a tensor depends on the inputs, or lies in the memory of one that does."""
        return id(value) in self.nodes or any(
            id(v) in self.nodes and _memory(v) == _memory(value) for v in self.held if v.layout == torch.strided
        )

    def note(self, value: object, node: Node) -> None:
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise NotImplementedError("a sparse tensor that depends on the inputs")
            node.meta["shape"] = (tuple(value.shape), value.dtype)
            self.nodes[id(value)] = node
            self.held.append(value)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunction():
            return self._do(func, args, kwargs)

    def _do(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        leaves = tree_flatten((args, kwargs))[0]
        given, written = [v for v in leaves if isinstance(v, Tensor)], _written(func, args, kwargs)
        draws = torch.Tag.nondeterministic_seeded in func.tags
        if draws and any(isinstance(v, torch.Generator) for v in leaves):
            raise NotImplementedError("draws of a generator of its own, which is a state")
        if not any(id(v) in self.nodes for v in given) and not (draws and self.random):
            return self._constant(func, args, kwargs, given, written)
        name = func._schema.name.split("::")[-1]
        if name in FILLED:
            found = func(*args, **kwargs)
            self._keep(found, True)
            return found
        decides = name in VALUES_DECIDE or (name not in PICKS and any(tag in func.tags for tag in BY_VALUE))
        if decides or (draws and not self.random) or self._picks(name, args):
            raise NotImplementedError(f"{name} of what depends on the inputs")
        for value in written:
            self._write(name, value, draws)
        noted, words = tree_map(self.argument, args), tree_map(self.argument, kwargs)
        found = func(*args, **kwargs)
        if not isinstance(found, Tensor | tuple | list | None) and name not in OF_SHAPE:
            raise NotImplementedError(f"{name} gives a number that depends on the inputs")
        node = self.graph.call_function(func, noted, words)
        if isinstance(found, tuple | list):
            for i, value in enumerate(found):
                if isinstance(value, Tensor):
                    self.note(value, self.graph.call_function(_item, (node, i)))
        else:
            self.note(found, node)
        return found

    def _constant(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor], written: list[Any]
    ) -> object:
        """The result of an operation that depends on constants alone."""
        if any(_memory(value) not in self.made for value in written):
            raise NotImplementedError("writes into a tensor that was there before, which is a state")
        memory = {_memory(v) for v in given}
        found = func(*args, **kwargs)
        latest, self.latest = self.latest, None
        if func is torch.ops.aten.detach.default and given[0] is latest:  # torch's own, of what it has just made
            self._keep(found, self.fresh.pop(id(latest)))
            return found
        for value in tree_flatten(found)[0]:
            if isinstance(value, Tensor):
                if _memory(value) in memory:
                    self.seen_as.add(_memory(value))
                else:
                    self._keep(value, False)
        return found

    def _keep(self, value: Any, filled: bool) -> None:
        self.made.add(_memory(value))
        self.held.append(value)
        self.fresh[id(value)] = filled
        self.latest = value

    def _write(self, name: str, value: Tensor, draws: bool) -> None:
        """See to it that a tensor can be written into."""
        if _memory(value) in self.given:
            raise NotImplementedError(f"{name} writes into an input")
        if id(value) in self.nodes:
            return
        if _memory(value) in self.seen_as or not (
            self.fresh.get(id(value), False) or (draws and id(value) in self.fresh)
        ):
            raise NotImplementedError(f"{name} writes what depends on the inputs into a constant")
        # as `torch.empty(3).normal_()` does: write into a copy
        self.note(value, self.graph.call_function(torch.ops.aten.clone.default, (self.argument(value),)))

    def _picks(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether a mask that depends on the inputs decides how many entries there are."""
        if name not in PICKS or (name != "index" and args[2].numel() == 1):
            return False
        return any(v is not None and v.dtype in (torch.bool, torch.uint8) and id(v) in self.nodes for v in args[1])

    def argument(self, value: Any) -> Any:
        """What stands for a value in the graph."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.nodes:
            return self.nodes[id(value)]
        state = id(value), 0 if value.is_inference() else value._version
        if state not in self.known:
            name = f"constant{len(self.known)}"
            self.constants.register_buffer(name, _copy(value.detach()))
            self.known[state] = self.graph.get_attr(name)
            self.held.append(value)
        return self.known[state]


class _Leaving(TorchFunctionMode):
    """Sees what torch's operations do not show: that a number which depends on the inputs is read by others."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in OUT_OF_TORCH or name in MAKES:
            given = tree_flatten((args, kwargs))[0] if name in OUT_OF_TORCH else _in_lists((args, kwargs))
            if any(isinstance(v, Tensor) and self.recorder.depends(v) for v in given):
                raise NotImplementedError(f"{name} of what depends on the inputs")
        if name in ("grad", "backward"):  # in which no more is seen here
            _check_gradient([v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)])
        return func(*args, **kwargs)


def _check_gradient(of: list[Tensor]) -> None:
    """Raise `NotImplementedError` where a gradient is found by a program's own code: a `Function`, or a hook."""
    nodes, seen = [v.grad_fn for v in of if v.grad_fn is not None], set[Any]()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise NotImplementedError("a gradient of a program's own")
        nodes.extend(n for n, _ in node.next_functions if n is not None)


def _in_lists(given: tuple[tuple[Any, ...], Mapping[str, Any]]) -> list[Any]:
    """What stands in lists and tuples among these arguments."""
    nested = [v for v in (*given[0], *given[1].values()) if isinstance(v, list | tuple)]
    return tree_flatten(nested)[0]


def _memory(value: Tensor) -> int:
    """Where a tensor's numbers lie."""
    return id(value) if value.layout != torch.strided else value.untyped_storage().data_ptr()


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
    if node.target in (aten.sub.Tensor, aten.sub.Scalar):  # not a sum: −0 + 0 is another 0
        return of if _is(other, 0, graph) else None
    return None


def _is(value: object, number: int, graph: GraphModule) -> bool:
    """Whether an argument is this number, or a constant of nothing else."""
    if isinstance(value, Node):
        return value.op == "get_attr" and bool((getattr(graph, str(value.target)) == number).all())
    return isinstance(value, int | float) and value == number
