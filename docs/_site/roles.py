"""Links by name to a script of the gallery, `{gallery}`jensen``, or a model, `{model}`gmm``; no link where it is not there."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.docutils import SphinxRole

from _site.session import DOCS
from zoo import _registry


class Link(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        page, there = self.found(self.text)
        name = nodes.literal("", page.rpartition("/")[2])
        if not there:
            return [name], []
        to = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}", "refdoc": self.env.docname}
        return [pending_xref("", name, refexplicit=True, refwarn=True, **to)], []

    def found(self, name: str) -> tuple[str, bool]:
        if self.name == "model":
            return f"models/{name}", name in _registry.models()
        return f"auto_gallery/plot_{name}", (DOCS / "gallery" / f"plot_{name}.py").is_file()


def setup(app: Any) -> None:
    for name in ("gallery", "model"):
        app.add_role(name, Link())
