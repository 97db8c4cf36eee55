"""Around a run of a program: its parameter statements noted or answered, modules' parameters lent, the sites visited."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict, cast

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from zoo._errors import UsageError
from zoo._program.trace import Node


class WithPriors(PyroModule):
    """A model whose parameters are θ or, where its `priors` are on, global latents drawn from `prior(name, start)`."""

    priors: bool
    names: tuple[str, ...] = ()

    def begin(self, name: str, value: Tensor, support: constraints.Constraint) -> None:
        """A parameter and its first value, or where its latent starts."""
        self.names = (*self.names, name)
        if self.priors:
            self.register_buffer(f"{name}_start", value)
        else:
            setattr(self, name, PyroParam(value, support))

    def theta(self) -> dict[str, Tensor]:
        """The parameters by name, or draws from their priors."""
        if not self.priors:
            return {name: getattr(self, name) for name in self.names}
        starts: dict[str, Any] = {name: {"init": getattr(self, f"{name}_start")} for name in self.names}
        return {n: pyro.sample(n, self.prior(n, s["init"]), infer=s) for n, s in starts.items()}

    def prior(self, name: str, start: Tensor) -> TorchDistribution:
        """The prior of a parameter, which starts at `start`."""
        raise NotImplementedError


class Statement(TypedDict):
    """One `pyro.param` statement, as handlers see it."""

    name: str
    fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Tensor
    done: bool


class Lent:
    """Tensors in the place of modules' parameters, for a while; afterwards all is as it was, the order too."""

    def __init__(self) -> None:
        self._before: dict[nn.Module, dict[str, nn.Parameter | None]] = {}
        self._leaves: list[tuple[nn.Module, str]] = []

    def put(self, owner: nn.Module, leaf: str, value: Tensor) -> None:
        self._before.setdefault(owner, dict(owner._parameters))
        del owner._parameters[leaf]
        object.__setattr__(owner, leaf, value)
        self._leaves.append((owner, leaf))

    def give_back(self) -> None:
        for owner, leaf in self._leaves:
            object.__delattr__(owner, leaf)
        for owner, parameters in self._before.items():
            owner._parameters.clear()
            owner._parameters.update(parameters)


class Collect(Messenger):
    """Notes each parameter statement: its unconstrained leaf and its constraint."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.function = function  # rather than a module, which owns its parameters
        self.statements: dict[str, tuple[nn.Parameter, constraints.Constraint]] = {}
        self._made: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Statement) -> None:
        if msg["name"] in self._made:
            msg["value"], msg["done"] = self._made[msg["name"]], True
            return
        if getattr(msg["fn"], "__name__", "") == "<lambda>":  # a PyroModule's own statement: it brings its value
            if self.function:
                raise ValueError(
                    f"'{msg['name']}' belongs to a PyroModule that the function calls: make the module the model"
                )
            return
        if self.function and "$$$" in msg["name"]:
            raise ValueError(f"'{msg['name']}' comes from pyro.module imported by name: call it as pyro.module(…)")
        args = msg["args"]
        if len(args) < 2:
            raise ValueError(f"pyro.param('{msg['name']}') is read before it is given an initial value")
        value = args[1]() if callable(args[1]) and not isinstance(args[1], Tensor) else args[1]
        constraint = msg["kwargs"].get("constraint", constraints.real)
        leaf = (
            value
            if isinstance(value, nn.Parameter) and constraint is constraints.real and not self.function
            else nn.Parameter(transform_to(constraint).inv(value.detach()).clone().contiguous())
        )
        self.statements[msg["name"]] = (leaf, constraint)
        self._made[msg["name"]] = transform_to(constraint)(leaf)
        msg["value"], msg["done"] = self._made[msg["name"]], True

    def _pyro_post_param(self, msg: Statement) -> None:
        if msg["name"] in self._made:
            return
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self.statements[msg["name"]] = (cast(nn.Parameter, leaf), msg["kwargs"].get("constraint", constraints.real))


class InDtype(Messenger):
    """Brings what was made in another precision, such as a distribution at the top of a user's file, to that of the data."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def _pyro_sample(self, msg: Node) -> None:
        msg["fn"] = self._of(msg["fn"])

    def _of(self, fn: TorchDistribution) -> TorchDistribution:
        state = getattr(fn, "__dict__", {})
        wrong = {
            k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point() and v.dtype != self.dtype
        }
        base = state.get("base_dist")
        inner = base if base is None else self._of(base)
        if not wrong and inner is base:
            return fn
        fn = copy.copy(fn)
        fn.__dict__.update({k: v.to(self.dtype) for k, v in wrong.items()})
        if base is not None:
            fn.__dict__["base_dist"] = inner
        return fn


class Visited(Messenger):
    """Notes the sites that a run has come to; none of them twice, for a trace holds one of each name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_sample(self, msg: Node) -> None:
        if msg["name"] in self.names and type(msg["fn"]).__name__ != "_Subsample":
            raise UsageError(f"site '{msg['name']}' of the program is there twice; give each site its own name.")
        self.names.add(msg["name"])


class Parameters(Messenger):
    """Answers parameter statements with the values given."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Statement) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def localize(module: nn.Module) -> None:
    """Let a PyroModule that was made with Pyro's global parameter store run without it."""
    for part in module.modules():
        context = getattr(part, "_pyro_context", None)
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}


@contextlib.contextmanager
def settings(dtype: torch.dtype) -> Iterator[None]:
    """Parameters local to modules, constants in the dtype of the data; both put back afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        torch.set_default_dtype(before)
