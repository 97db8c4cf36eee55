"""What the pages of the site run: `{zoo}`, `{python}` and `{file}` blocks, a page after the other in a folder of its own.

The build shows what they print, and a test runs them without Sphinx:

    ```{file} model.py        writes what it shows
    ```{zoo}                  runs each line. `:picture: clusters` shows what `zoo plot` or `zoo gap` drew, `:lines: 8` so much
                              of the output; `:status: 2`: they are refused; `:slow:`: slow tests run them, and not the build
    ```{python}               runs, with the names of the blocks before it
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from zoo.__main__ import app

WITH_WORKERS = ("bench", "calibrate", "select")
DOCS = Path(__file__).parent.parent
BLOCK = re.compile(r"^(`{3,}|:{3,})\{(zoo|python|file)\}[ \t]*(\S*)\n(.*?)^\1[ \t]*$", re.M | re.S)
OPTION = re.compile(r"^:([\w-]+):[ \t]*(.*)\n", re.M)


class Block(NamedTuple):
    kind: str
    argument: str
    options: dict[str, str]
    body: str


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for _, kind, argument, text in BLOCK.findall(page):
        options = {}
        while found := OPTION.match(text):
            options[found[1]], text = found[2], text[found.end() :]
        yield Block(kind, argument, options, text.strip("\n") + "\n")


class Session:
    """A folder with the files of the site, and the names that Python has there."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(DOCS / "files", folder)
        self.folder, self.names, self.plotted = folder, {"__name__": "__main__"}, folder

    def run(self, block: Block) -> str:
        """What the block prints."""
        if block.kind == "file":
            (self.folder / block.argument).write_text(block.body, encoding="utf-8")
            return ""
        if block.kind == "python":
            return self.python(block.body)
        status = int(block.options.get("status", 0))
        return "".join(self.command(line, status) for line in block.body.splitlines() if line.strip())

    def command(self, line: str, status: int = 0) -> str:
        """What a line `zoo …` prints. Raises `ValueError` where it ends with another status."""
        program, *words = shlex.split(line, comments=True)
        if program != "zoo":
            raise ValueError(f"expected a line of the command zoo, got '{line}'.")
        ended, printed = (self.apart if words[0] in WITH_WORKERS else self.here)(words)
        if ended != status:
            raise ValueError(f"'{line}' ended with {ended}: {printed}")
        if words[0] in ("plot", "gap"):
            self.plotted = self.folder / words[1] / "plots"
        return printed

    def here(self, words: list[str]) -> tuple[int, str]:
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(app, words)
        return done.exit_code, done.output

    def apart(self, words: list[str]) -> tuple[int, str]:
        """In a process of its own: workers import the main module again, which here would be Sphinx."""
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def python(self, code: str) -> str:
        """What the code prints."""
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(compile(code, "a page", "exec"), self.names)
        return printed.getvalue()

    def picture(self, name: str) -> Path:
        """A picture that the last `zoo plot` or `zoo gap` drew, or the file of that name here."""
        return next(p for p in (self.folder / name, self.plotted / f"{name}.png") if p.is_file())
