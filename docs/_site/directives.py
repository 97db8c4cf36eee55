"""The blocks of `session`, shown in a page with what they print."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from _site.session import Block, Session

PICTURES = "auto_pictures"  # in docs/, made by the build
LANGUAGES = {"zoo": "sh", "python": "python", "file": "text"}
SESSIONS: dict[str, Session] = {}


class Shown(SphinxDirective):
    has_content = True
    optional_arguments = 1
    option_spec = {
        "picture": directives.unchanged,
        "alt": directives.unchanged,
        "lines": directives.positive_int,
        "status": directives.unchanged,
        "slow": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        argument, body = "".join(self.arguments), "\n".join(self.content) + "\n"
        block = Block(self.name, argument, {k: str(v) for k, v in self.options.items()}, body)
        language = "python" if argument.endswith(".py") else LANGUAGES[self.name]
        shown: list[nodes.Node] = [self.literal(body, language, argument or None)]
        if "slow" in self.options:
            return shown
        session = self.session()
        try:
            printed = session.run(block)
        except Exception as error:
            raise self.error(f"{self.env.docname}: {error}") from error
        if printed.strip():
            shown.append(self.literal(self.cut(printed), "none", None, "output"))
        return [*shown, *(self.image(session, name) for name in self.options.get("picture", "").split())]

    def session(self) -> Session:
        """The page's; a page that is read again begins again."""
        page = self.env.docname
        if page not in SESSIONS:
            SESSIONS[page] = Session(Path(self.env.app.outdir).parent / "session" / page)
        return SESSIONS[page]

    def cut(self, printed: str) -> str:
        lines, most = printed.strip("\n").splitlines(), self.options.get("lines", 40)
        return "\n".join(lines if len(lines) <= most else [*lines[:most], f"… and {len(lines) - most} lines more"])

    def literal(self, text: str, language: str, caption: str | None, name: str = "") -> nodes.Node:
        block = nodes.literal_block(text, text.rstrip("\n"), language=language, classes=[name] if name else [])
        if caption is None:
            return block
        title = nodes.caption("", "", nodes.literal(caption, caption))
        return nodes.container("", title, block, literal_block=True, classes=["literal-block-wrapper"])

    def image(self, session: Session, name: str) -> nodes.Node:
        page = self.env.docname.replace("/", "-")
        path = Path(self.env.srcdir) / PICTURES / f"{page}-{Path(name).stem}.png"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(session.picture(name), path)
        said = self.options.get("alt", f"the picture '{Path(name).stem}'")
        return nodes.image(uri=f"/{PICTURES}/{path.name}", alt=said, classes=["zoo-picture"])


def forget(app: Any, env: Any, page: str) -> None:
    SESSIONS.pop(page, None)


def setup(app: Any) -> None:
    for name in LANGUAGES:
        app.add_directive(name, Shown)
    app.connect("env-purge-doc", forget)
