"""Two thousand generated wrong inputs: each is refused in one or two sentences, with status 2, and nothing is written.

The 2,000 are marked slow: about 4 minutes on one core, in parts that pytest-xdist runs side by side.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from wrong_inputs import KINDS, Wrong, make, spoil

from zoo.__main__ import app
from zoo._errors import UsageError

PARTS, EACH = 10, 200


@pytest.fixture
def spoiled(here: Path) -> set[Path]:
    spoil()
    return set(here.rglob("*"))


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?= [A-Z]|$)", " ".join(text.split())))


def is_refused(wrong: Wrong, before: set[Path]) -> None:
    if wrong.call is not None:
        with pytest.raises(UsageError) as caught:
            wrong.call()
        said = str(caught.value)
    else:
        result = CliRunner().invoke(app, list(wrong.command))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert (result.exit_code, result.stdout) == (2, ""), (wrong, result.exit_code, result.stdout, result.stderr)
        said = (
            result.stderr.removeprefix("zoo: ") if result.stderr.startswith("zoo: ") else ""
        )  # click's own are in a frame
        assert "\x1b[2J" not in result.stderr and result.stderr.strip(), wrong
    assert not any(w in said for w in ("Traceback", "should not happen", "pickle")), (wrong, said)
    assert sentences(said) <= 2 and len(said) < 1500, (wrong, said)
    assert set(Path.cwd().rglob("*")) == before, wrong
    assert torch.get_default_dtype() is torch.float32


def test_some_of_each_kind(spoiled: set[Path]) -> None:
    for seed in range(4 * len(KINDS)):
        is_refused(make(seed), spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_two_thousand(part: int, spoiled: set[Path]) -> None:
    for seed in range(1000 + part * EACH, 1000 + (part + 1) * EACH):
        is_refused(make(seed), spoiled)
