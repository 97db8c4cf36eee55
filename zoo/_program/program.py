"""A user's Pyro callable as a `Program`, which owns its parameters and runs with any values in their place.

Every other file talks to a program through `Program.trace`. Nothing here touches Pyro's global parameter store, so two
programs never see each other's parameters, and a function with `pyro.param` serves as well as a `PyroModule`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from zoo._program.missing import Counting, Gaps, Unobserved, holds_nan
from zoo._program.noise import Begin
from zoo._program.parameters import Collect, InDtype, Lent, Parameters, Visited, localize, settings

ParentsOf = Callable[["Program", Tensor], frozenset[str]]


def _unread(program: Program, x: Tensor) -> frozenset[str]:
    raise AssertionError("a program on data with missing entries has to be read; use `load` or `load.read`")


class Program(nn.Module):
    """A Pyro program p(x, z; θ) with its parameters θ.

    `parameters` of this module are the unconstrained θ, so optimisers, `.to()` and `state_dict` work as always.
    Building one runs the program once, on the first rows of `x`, to find the parameters it uses; and, where missing entries
    become a latent, on all incomplete rows, so that this latent has the same shape in every batch.

    - `scalar`: the program takes a table of one column as [n], since it observes scalars; here x is [n, 1] all the same.
    - `parents_of`: tells which observed sites other sites are computed from, asked where x has missing entries. `load.read`
      has it read off the program's operations.

    Errors of the program pass through; `load` adds where they were raised.
    """

    recipe: dict[str, object]  # of a guide alone: what it can be made again from

    def __init__(
        self,
        model: Callable[..., object],
        x: Tensor,
        name: str = "model",
        scalar: bool = False,
        parents_of: ParentsOf = _unread,
    ) -> None:
        super().__init__()
        self.name, self.scalar = name, scalar
        self.source: dict[str, str] | None = None  # the fingerprint of its text, once loaded: see `source`
        self.dtype = x.dtype
        self.constraints: dict[str, constraints.Constraint] = {}
        self.module: nn.Module | None = None
        self._function: Callable[..., object] | None = model
        self._method = ""
        self._given: Mapping[str, Tensor] = {}
        owner = getattr(model, "__self__", None)
        if isinstance(owner, nn.Module) and not isinstance(model, nn.Module):  # vae.model, say
            model, self._method = owner, str(model.__name__)
        if isinstance(model, nn.Module):
            self.module = copy.deepcopy(model).to(x.dtype)
            localize(self.module)
            self._function = None
        self._unconstrained: dict[str, nn.Parameter] = {}
        self._plain: dict[str, tuple[nn.Module, str]] = {}
        self._gaps = Gaps()
        self._hidden: Tensor | None = None
        self._sites: frozenset[str] = frozenset()  # all that the program visits
        completed = self._collect(x[: min(len(x), 3)])
        if holds_nan(x):
            parents = parents_of(self, x)
            if completed or parents:
                self._gaps = self._count_slots(x, parents)

    def _collect(self, x: Tensor) -> bool:
        """Find the parameters; returns whether there is a site at which a missing entry becomes a latent."""
        found, counting, visited = Collect(self.module is None), Counting(), Visited()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), found, counting, visited:
            try:
                self._run(x)
            except AttributeError as error:
                if "param_state" in str(error):  # made without module_local_params, and not ours to change
                    raise ValueError(
                        "a PyroModule that the function calls cannot be learned; make the module the model"
                    ) from None
                raise
        self._sites = frozenset(visited.names)
        if self.module is not None:
            owned = {id(p): n for n, p in self.module.named_parameters()}
            for name, (parameter, constraint) in found.statements.items():
                if id(parameter) in owned:
                    self._unconstrained[name] = parameter
                    self.constraints[name] = constraint
            seen = {id(p) for p in self._unconstrained.values()}
            for path, parameter in self.module.named_parameters():
                owner, _, leaf = path.rpartition(".")
                if leaf.endswith("_unconstrained") and id(parameter) not in seen:
                    continue  # a PyroParam that no statement reached: nothing can be learned about it
                name = next((n for n, p in self._unconstrained.items() if p is parameter), path)
                if not leaf.endswith("_unconstrained"):
                    self._plain[name] = (self.module.get_submodule(owner), leaf)
                    self._unconstrained[name] = parameter
                    self.constraints[name] = constraints.real
        else:
            for name, (parameter, constraint) in found.statements.items():
                parameter.data = parameter.data.to(x.dtype)  # ours: `Collect` made a copy
                self._unconstrained[name] = parameter
                self.constraints[name] = constraint
            self._owned = nn.ParameterList(self._unconstrained.values())
        return bool(counting.most)

    @torch.no_grad()
    def _count_slots(self, x: Tensor, parents: frozenset[str]) -> Gaps:
        """How many slots those latents need over all data x, so that every batch has as many."""
        counting = Counting(parents)
        with torch.random.fork_rng(devices=[]), self._values_in_place({}), pyro.validation_enabled(False):
            for rows in x[x.isnan().flatten(1).any(1)].split(4096):
                self._run(rows, handler=counting)
        return Gaps.of(x, counting)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the model decided from the data it was built on, in sentences: its attribute `notes`."""
        return tuple(map(str, getattr(self.module, "notes", ())))

    @property
    def many_optima(self) -> bool:
        """Whether the model says that its likelihood has many optima, by its attribute `many_optima`."""
        return bool(getattr(self.module, "many_optima", False))

    # ---------------------------------------------------------------------------------------------- parameters

    @property
    def has_networks(self) -> bool:
        """Whether some of its parameters are plain ones of torch modules, such as a network's weights."""
        return bool(self._plain)

    def unconstrained(self) -> dict[str, nn.Parameter]:
        """Name → the unconstrained parameter itself."""
        return dict(self._unconstrained)

    def values(self) -> dict[str, Tensor]:
        """Name → the constrained value of each parameter, differentiable with respect to the unconstrained one."""
        return {n: transform_to(self.constraints[n])(p) for n, p in self._unconstrained.items()}

    @torch.no_grad()
    def elsewhere(self, step: float = 0.3) -> dict[str, Tensor]:
        """Name → a value near the parameter's own, for checks: at the starting values, effects may be zero by chance."""
        generator = torch.Generator().manual_seed(5)
        out = {}
        for name, p in self._unconstrained.items():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            out[name] = transform_to(self.constraints[name])(p + step * noise)
        return out

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters to the constrained `values`."""
        for name, value in values.items():
            u = transform_to(self.constraints[name]).inv(value)
            self._unconstrained[name].copy_(u)

    # ------------------------------------------------------------------------------------------------- running

    def trace(
        self,
        x: Tensor | None,
        *,
        size: int | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        latents: Mapping[str, Tensor] | None = None,
        raw: bool = False,
    ) -> pyro.poutine.Trace:
        """Run the program and return its trace.

        - `x` [n, ...]: the data, NaN where unobserved; None simulates `size` data.
        - `parameters`: constrained values in place of the program's own (differentiable).
        - `latents`: values of latent sites; they become observed, so nothing is drawn for them.
        - `raw`: leave NaN entries of observed sites as they are (latents that stand for them are in the trace all the same).
        """
        if self._hidden is not None and x is not None:
            x = x.masked_fill(self._hidden, torch.nan)
        tracer = pyro.poutine.trace()
        with contextlib.ExitStack() as stack:
            stack.enter_context(tracer)
            if latents:
                stack.enter_context(pyro.poutine.condition(data=dict(latents)))
            if raw:  # what is computed from a missing entry is NaN
                stack.enter_context(pyro.validation_enabled(False))
            with self._values_in_place(parameters or {}):
                returned = self._run(x, size, Unobserved(self._gaps, raw))
        tracer.trace.add_node("_RETURN", name="_RETURN", type="return", value=returned)
        return tracer.trace

    def joint_trace(
        self,
        x: Tensor,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        latents: Mapping[str, Tensor] | None = None,
        apart: bool = False,
    ) -> pyro.poutine.Trace:
        """`trace` where all latents have values, for their density.

        `apart`: the density that the latents are drawn from is at their own sites, also where some of them are summed out.
        """
        return self.trace(x, parameters=parameters, latents=latents)

    def forward(self, x: Tensor | None = None, size: int | None = None) -> object:
        """The Pyro callable, for Pyro's own inference: NaN entries are handled, parameters are this module's."""
        with self._values_in_place({}):
            return self._run(x, size)

    @contextlib.contextmanager
    def hiding(self, missing: Tensor) -> Iterator[None]:
        """In this context, these entries of x [n, …] count as missing, for the n rows that are traced."""
        self._hidden = missing
        try:
            yield
        finally:
            self._hidden = None

    @property
    def is_hiding(self) -> bool:
        """Whether entries of x are hidden now."""
        return self._hidden is not None

    @property
    def completes(self) -> tuple[str, ...]:
        """The observed sites that a latent site completes: those whose missing entries cannot be left out."""
        return tuple(self._gaps.slots)

    def settings(self) -> contextlib.AbstractContextManager[None]:
        """For Pyro's own inference around the program: parameters local to modules, constants in the dtype of the data."""
        return settings(self.dtype)

    def _run(self, x: Tensor | None, size: int | None = None, handler: Messenger | None = None) -> object:
        call = self.module if self.module is not None else self._function
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        assert call is not None
        if self._method:
            call = getattr(self.module, self._method)
            context = getattr(self.module, "_pyro_context", context)
        visited = Visited()
        around = settings(self.dtype), handler or Unobserved(self._gaps), context, self._networks(), visited
        with contextlib.ExitStack() as stack:
            for each in (*around, Begin(x is None), InDtype(self.dtype)):
                stack.enter_context(each)
            if x is None:
                with _nothing_from_none():
                    return call(None, size=size)
            try:
                return call(x.squeeze(-1) if self.scalar else x)
            except RuntimeError:
                # with many values of the latents at once, what the program returns may not broadcast; it is not used here
                if self._sites and self._sites <= visited.names:
                    return None
                raise

    @contextlib.contextmanager
    def _networks(self) -> Iterator[None]:
        """A function's `pyro.module(name, network)`: for a run, the network holds this program's tensors, not its own.

        The network is a global of the user's file, which all programs made from the file share. Say it is
        `net = nn.Linear(1, 1)` with the weight W₀, and the function says `pyro.module("net", net)`. At the first run this
        program makes a copy W of W₀, its parameter "net.weight". From that statement to the end of each run `net` holds W, or
        V under `trace(parameters={"net.weight": V})`; afterwards it holds W₀ again. Pyro's own `module` puts nothing in the
        place of a network's tensors, so `pyro.module` itself is another function for the time of the run.
        """
        if self.module is not None:
            yield
            return
        original = pyro.module
        lent = Lent()
        names: dict[int, str] = {}

        def module(name: str, network: nn.Module, update_module_params: bool = False) -> nn.Module:
            for path, parameter in list(network.named_parameters(remove_duplicate=False)):
                full = names.setdefault(id(parameter), f"{name}.{path}")
                if full not in self._unconstrained:
                    self._unconstrained[full] = nn.Parameter(parameter.detach().to(self.dtype, copy=True))
                    self.constraints[full] = constraints.real
                owner, _, leaf = path.rpartition(".")
                lent.put(network.get_submodule(owner), leaf, self._given.get(full, self._unconstrained[full]))
            return network

        pyro.module = module  # type: ignore[assignment]
        try:
            yield
        finally:
            pyro.module = original
            lent.give_back()

    @contextlib.contextmanager
    def _values_in_place(self, given: Mapping[str, Tensor]) -> Iterator[None]:
        plain = {n: v for n, v in given.items() if n in self._plain}
        # a PyroModule computes its own PyroParams; for a function we do
        own = {} if self.module is not None else self.values()
        statements = {**own, **{n: v for n, v in given.items() if n not in plain}}
        lent = Lent()
        for name, value in plain.items():
            lent.put(*self._plain[name], value)
        before, self._given = self._given, statements
        try:
            with Parameters(statements):
                yield
        finally:
            self._given = before
            lent.give_back()


@contextlib.contextmanager
def _nothing_from_none() -> Iterator[None]:
    """Say what to do where a program takes something from x, which is None while rows are simulated."""
    try:
        yield
    except (AttributeError, TypeError) as error:
        if "NoneType" in str(error):
            advice = "x is None where rows are simulated; take its length alone, and what explains x from covariates"
            error.args = (f"{error}: {advice}",)
        raise
