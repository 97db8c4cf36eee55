"""The list of full tests names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import FULL


def test_every_line_names_a_test():
    for line in FULL:
        file, name = re.match(r"(\w+\.py)::(\w+)", line).groups()
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), line
