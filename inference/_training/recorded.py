"""A training step, objective and gradient, as a plain list of tensor operations, without what found them.

Recorded once (`tape`), and used only where it gives what the program itself gives, to the last bit, values and gradients: on
the batch it was recorded on, on another at parameters a little aside, then after 1, 2, 4, 8, … uses and at last every 500,
whenever an epoch begins. A program whose steps depend on the data, or on a state of its own, so goes the slow way,
as does one whose recording fails. A state is also looked for in the program's Python (`state`), around its second step: what
happens at a 1000th call is in no record. Batches of another size, such as the last of an epoch, have a record of their own.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from inference._numerics import tape
from inference._training.elbo import Index, Objective
from inference._training.state import fingerprint
from zoo._program.missing import complete_data

WORTH = 200  # steps from which recording pays
ASIDE = 1e-3  # how far parameters are moved for a check
WARM = 2  # calls before a recording; around the last of them a state is looked for
SELDOM = 500  # uses between two checks of a record, at most


@dataclass
class _Record:
    """The operations of one shape of batches."""

    graph: GraphModule
    touched: list[int]  # the parameters that the objective depends on
    uses: int = 0
    check_at: int = 1  # uses


class Compiled:
    """The step of `objective(rows, x)`, recorded for each shape of batches that it is prepared for.

    `modules`: what the objective calls, in which a state may be.
    """

    def __init__(self, objective: Objective, parameters: Sequence[Tensor], modules: Sequence[nn.Module] = ()) -> None:
        self.objective, self.parameters, self.modules = objective, list(parameters), list(modules)
        self.calls = 0
        self.stateful = False
        self.records: dict[torch.Size, _Record | None] = {}  # None: the record was not right

    def __call__(self, rows: Index, x: Tensor) -> Tensor:
        """The objective, a scalar; the gradients of its negative go to the parameters' `grad`."""
        record = self.records.get(x.shape)
        self.calls += 1
        look = self.calls == WARM and record is None
        before = fingerprint([self.objective, *self.modules]) if look else None
        value, gradients = self._by_program(rows, x) if record is None else self._recorded(record, rows, x)
        if look:
            self.stateful = before is None or before != fingerprint([self.objective, *self.modules])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return value

    def _by_program(self, rows: Index, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        value = self.objective(rows, x)
        return value.detach(), list(torch.autograd.grad(-value, self.parameters, allow_unused=True))

    @torch.no_grad()
    def _recorded(self, record: _Record, rows: Index, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        record.uses += 1
        value, *found = record.graph.forward(rows, x, *self.parameters)
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        for i, gradient in zip(record.touched, found, strict=True):
            gradients[i] = gradient
        return value, gradients

    def prepare(self, rows: Tensor, x: Tensor, other_rows: Tensor, other_x: Tensor) -> None:
        """Record the step on a batch, or check the record of its shape on it where that is due; keeps what is right.

        `other_rows`, `other_x`: another batch of as many rows.
        """
        if self.stateful:
            return
        if x.shape not in self.records:
            fails = None in self.records.values()  # it does for batches of another size
            with _buffers_kept(self.modules):
                self.records[x.shape] = None if fails else self._record(rows, x)
                self._check(rows, x)
                with _elsewhere(self.parameters):
                    self._check(other_rows, other_x)
        elif (record := self.records[x.shape]) is not None and record.uses >= record.check_at:
            self._check(rows, x)

    def _record(self, rows: Tensor, x: Tensor) -> _Record | None:
        state = torch.get_rng_state()
        first = self._by_program(rows, x)[1]  # what only the first call does is not to be recorded
        touched = [i for i, gradient in enumerate(first) if gradient is not None]

        def step(rows: Tensor, x: Tensor) -> list[Tensor]:
            value, gradients = self._by_program(rows, x)
            return [value, *(g for i in touched if (g := gradients[i]) is not None)]

        record = None
        before = fingerprint([self.objective, *self.modules])
        with contextlib.suppress(Exception), warnings.catch_warnings(), complete_data():
            warnings.simplefilter("ignore")
            record = _Record(tape.record(step, [rows, x], held=self.parameters, random=True), touched)
        torch.set_rng_state(state)
        same = before is not None and before == fingerprint([self.objective, *self.modules])
        return record if same else None

    def _check(self, rows: Tensor, x: Tensor) -> None:
        """Compare record and program on a batch, and drop all records if they differ; leaves the random state alone."""
        record = self.records[x.shape]
        if record is None:
            return
        state = torch.get_rng_state()
        try:
            found = []
            for way in (self._by_program, functools.partial(self._recorded, record)):
                torch.set_rng_state(state)
                value, gradients = way(rows, x)
                found.append((value, *gradients, torch.get_rng_state()))
            same = all(_same(a, b) for a, b in zip(*found, strict=True))
        except Exception:
            same = False
        torch.set_rng_state(state)
        record.check_at = record.uses + min(record.uses, SELDOM)
        if not same:
            self.records = dict.fromkeys(self.records)


@contextlib.contextmanager
def _buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """In here a step may change buffers, a running mean for instance: afterwards they are as they were."""
    parts = [part for module in modules for part in module.modules()]
    kept = [
        (p._buffers, dict(p._buffers), {n: b.clone() for n, b in p._buffers.items() if b is not None}) for p in parts
    ]
    try:
        yield
    finally:
        for buffers, before, values in kept:
            buffers.update(before)
            for name, value in values.items():
                if (buffer := buffers[name]) is not None and not torch.equal(buffer, value):
                    buffer.detach().copy_(value)


@contextlib.contextmanager
def _elsewhere(parameters: Sequence[Tensor]) -> Iterator[None]:
    """In here the parameters are a little aside, and other numbers are drawn: a record that holds a value of either shows."""
    state, kept = torch.get_rng_state(), [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn_like(p), alpha=ASIDE)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
        torch.set_rng_state(state)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)
