"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same machine: the same numbers.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Binarize = Annotated[str | None, typer.Option("--binarize", help="fixed, dynamic, or a threshold.", show_default=False)]
Named = Annotated[
    str | None,
    typer.Option(
        "--model", help="The run's program, if it is in a Python file: path/to/file.py:callable.", show_default=False
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Execute the Python files that the run names.")]
Changed = Annotated[bool, typer.Option("--changed-program", help="Use the program although it changed since the run.")]
