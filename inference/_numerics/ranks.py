"""Several processes of one run, started by `torchrun`: each sums over its share of the rows, and the sums are added up.

All processes do the same with the same data and the same seed, and so are at the same θ; only a pass over the rows is shared.
What they exchange are sums (K·D² numbers for a mixture, whatever the number of rows; a gradient, of a training step), so each
of them goes on with the sums over all rows. Alone, everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from zoo._errors import UsageError

T = TypeVar("T")
LOST = "another process of this run has ended, so that its share of the rows is missing; start the run again."
UNLIKE = (
    "the processes of this run begin with other data or another θ than each other: give all of them the same files."
)
LEAST_ROWS = 1024
PATIENCE = timedelta(minutes=10)  # how long a process waits for the others


def started() -> int:
    """How many processes this run was started as; the first call joins them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not dist.is_available():
        return 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return size()


def size() -> int:
    """How many processes share the rows."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return size() == 1 or dist.get_rank() == 0


def check_alike(*values: Tensor) -> None:
    """Raise `UsageError` where the processes do not hold the same tensors, of which each would add up another share."""
    if size() > 1:
        digest = torch.tensor([zlib.crc32(v.detach().contiguous().reshape(-1).numpy().data) for v in values])
        if any(not torch.equal(digest, other) for other in _gathered(digest)):
            raise UsageError(UNLIKE)


def mine(chunks: Iterable[slice], rows: int) -> Iterator[slice]:
    """What of these chunks of 0 … `rows` − 1 this process takes: rows 0:5 of two processes are 0:2 and 2:5."""
    if not _share(rows):
        yield from chunks
        return
    first, last = (rows * (dist.get_rank() + i) // size() for i in (0, 1))
    for chunk in chunks:
        start, stop = max(chunk.start, first), min(chunk.stop, last)
        if start < stop:
            yield slice(start, stop)


def total(sums: T, rows: int) -> T:
    """Sums of tensors, in any nest of dictionaries and lists, over the shares of all processes."""
    if not _share(rows):
        return sums
    parts, spec = tree_flatten(sums)
    flat = torch.cat([part.reshape(-1).double() for part in parts])
    _all_reduce(flat)
    each = flat.split([part.numel() for part in parts])
    found: T = tree_unflatten(
        [new.reshape(old.shape).to(old.dtype) for new, old in zip(each, parts, strict=True)], spec
    )
    return found


def part(rows: Tensor) -> Tensor:
    """What of the rows of a mini-batch this process takes; all of them where there are fewer rows than processes."""
    return rows if len(rows) < size() else rows.tensor_split(size())[dist.get_rank() if size() > 1 else 0]


def mean(values: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Means over the rows of a mini-batch, each over this process's part of `rows` rows, as means over all of its rows."""
    if size() == 1:
        return list(values)
    flat = torch.cat([v.detach().reshape(-1) for v in values] + [values[0].new_ones(1)]) * rows
    _all_reduce(flat)
    flat = flat[:-1] / flat[-1]
    return [new.reshape(old.shape) for new, old in zip(flat.split([v.numel() for v in values]), values, strict=True)]


@contextlib.contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """In here each process draws random numbers of its own; afterwards all go on with the same."""
    if size() == 1:
        yield
        return
    state = torch.get_rng_state()
    torch.manual_seed(1000 * seed + dist.get_rank())
    try:
        yield
    finally:
        torch.set_rng_state(state)


def gathered(value: Tensor, rows: int) -> list[Tensor]:
    """A tensor of one shape from every process."""
    return _gathered(value) if _share(rows) else [value]


def _gathered(value: Tensor) -> list[Tensor]:
    out = [torch.empty_like(value) for _ in range(size())]
    try:
        dist.all_gather(out, value.contiguous())
    except RuntimeError as error:
        raise UsageError(LOST) from error
    return out


def _all_reduce(flat: Tensor) -> None:
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise UsageError(LOST) from error


def _share(rows: int) -> bool:
    """Whether there are several processes, and rows enough for sharing them to pay."""
    return size() > 1 and rows >= LEAST_ROWS
