"""What the site adds to Sphinx: equations without a network, blocks that run, a page for each model and method."""

from __future__ import annotations

from typing import Any

from _site import directives, equations, pages, roles


def setup(app: Any) -> dict[str, bool]:
    for part in (equations, directives, pages, roles):
        part.setup(app)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
