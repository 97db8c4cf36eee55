"""What the site adds to Sphinx: equations without a network."""

from __future__ import annotations

from typing import Any

from _site import equations


def setup(app: Any) -> dict[str, bool]:
    equations.setup(app)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
