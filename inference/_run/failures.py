"""What a user's program, numbers or machine can make go wrong while a method runs, as one or two sentences.

An error of this package itself passes unchanged: the command reports it as a bug.
"""

from __future__ import annotations

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from zoo._errors import UsageError

_ROOT = Path(__file__).parent.parent.parent
_NOT_PROGRAMS = (
    "site-packages",
    "<frozen ",
    sysconfig.get_path("stdlib"),
    str(_ROOT / "zoo" / "_"),
    *(str(_ROOT / room) for room in ("guides", "inference", "benchmarks")),
)
_RUNNING = (
    str(_ROOT / "zoo" / "_program" / "program.py"),
    str(Path("pyro") / "poutine"),
)  # what calls a program, or a guide


@contextlib.contextmanager
def in_words(program: str, what: str) -> Iterator[None]:
    """Around a method's work (`what`: its name) on a program.

    - the program raises at some values of its latents or parameters: `UsageError`, with the place in the user's file;
    - a matrix cannot be factored: `ArithmeticError`; memory runs out: `MemoryError`.
    """
    try:
        yield
    except (UsageError, MemoryError, OSError):
        raise
    except torch.OutOfMemoryError:
        raise MemoryError(_too_large(what)) from None
    except (Exception, SystemExit) as error:
        if "allocate memory" in str(error) or "not enough memory" in str(error):
            raise MemoryError(_too_large(what)) from error
        if "derivative for" in str(error) and "not implemented" in str(error):
            operation = str(error).split("derivative for ")[1].split(" is ")[0].removeprefix("aten::")
            raise UsageError(
                f"{what} needs the derivatives of '{program}', and torch has none for {operation}. Methods that need none: "
                "importance with proposal=prior."
            ) from error
        if "device-side assert" in str(error):  # an index out of range, say: the GPU cannot tell where, nor go on
            raise UsageError(
                f"'{program}', or its guide, failed on the GPU, which this process cannot use any more: {_first(error)} Run it "
                "with device=cpu to see where."
            ) from error
        where = _place(error)
        if isinstance(error, torch.linalg.LinAlgError):
            raise ArithmeticError(
                f"{what} met a matrix that cannot be factored{where}: a covariance of '{program}' became singular or not "
                "finite. Standardize the data, drop redundant columns, or take fewer components or latents."
            ) from error
        if where:
            raise UsageError(
                f"the program '{program}', or its guide, raised {type(error).__name__}{where}, at some values of its latents "
                f"or parameters: {_first(error).rstrip(':.')}"
            ) from error
        raise


def _first(error: BaseException) -> str:
    """The first line of what an error says, as a sentence."""
    return " ".join(str(error).strip().split("\n")[0].split()).rstrip(":.") + "."


def _too_large(what: str) -> str:
    return f"{what} needs more memory than there is; take fewer rows, draws or components, or dtype=float32."


def _place(error: BaseException) -> str:
    """ " at file:line" of the innermost line of a program; "" where no program was running."""
    frames = traceback.extract_tb(error.__traceback__)
    runs = [i for i, f in enumerate(frames) if any(part in f.filename for part in _RUNNING)]
    mine = [f for f in frames[runs[0] :] if not any(part in f.filename for part in _NOT_PROGRAMS)] if runs else []
    return f" at {Path(mine[-1].filename).name}:{mine[-1].lineno}" if mine else ""
