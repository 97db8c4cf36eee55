"""A page for each model and each method: its docstring, its options, which models each method serves, its references; and what
`notes/` has to say of it, where it has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _site.session import DOCS, Session, blocks
from benchmarks._report.markdown import table
from inference._run.explain import explained
from zoo import _registry

KINDS: dict[str, Callable[[], Iterable[str]]] = {"models": _registry.models, "methods": _registry.methods}
FOLDERS = {"models": "zoo", "methods": "inference"}
ENTRY = re.compile(r"^- (?P<who>.+?) \((?P<year>\d{4})\)\. ", re.M)


def write(app: Any) -> None:
    """All pages; one that is the same as before is left as it is, so that Sphinx need not read it again."""
    serves = {model: described(model, Path(app.outdir).parent / "describe") for model in sorted(KINDS["models"]())}
    for kind, names in KINDS.items():
        for name in sorted(names()):
            put(DOCS / kind / f"{name}.md", page(kind, name, serves))
        put(DOCS / kind / "index.md", index(kind, sorted(names()), serves))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def notes(kind: str, name: str) -> str:
    path = DOCS / "notes" / kind / f"{name}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def described(model: str, folder: Path) -> dict[str, Any]:
    """What `zoo describe` says of the model on the data of the first `zoo run` of its notes; {} where there is none."""
    session, options = Session(folder), {o["name"] for o in explained(model)["options"]}
    for block in blocks(notes("models", model)):
        if block.kind == "file":
            session.run(block)
        elif found := re.match(rf"zoo run {model} (.*)", block.body):
            line = re.sub(r"--(out|method) \S+", "", found[1])
            line = re.sub(r"--set (\w+)=\S+", lambda f: f[0] if f[1] in options else "", line)
            told: dict[str, Any] = json.loads(session.command(f"zoo describe {model} {line} --json"))
            return {**told, "command": f"zoo describe {model} {' '.join(line.split())}"}
    return {}


def page(kind: str, name: str, serves: dict[str, dict[str, Any]]) -> str:
    about = explained(name)
    title, _, text = about["text"].partition("\n")
    parts = [f"# {name}", title, *([text.strip()] if text.strip() else []), notes(kind, name).strip()]
    parts += ["## Methods that serve it", by_method(serves[name])] if kind == "models" else []
    parts += ["## Models that it serves", by_model(name, serves)] if kind == "methods" else []
    parts += ["## Options", options(about["options"], "--set components=3" if kind == "models" else "")]
    parts += ["## References", references(about["text"] + notes(kind, name))]
    file = f"{FOLDERS[kind]}/{name}.py"
    parts += [f"## Source\n\n```{{dropdown}} {file}\n```{{literalinclude}} /../{file}\n:language: python\n```\n"]
    return "\n\n".join(filter(None, parts)).replace("```{dropdown}", "````{dropdown}") + "````\n"


def options(found: list[dict[str, Any]], _: str) -> str:
    if not found:
        return "None."
    rows = [(f"`{o['name']}`", typed(o), f"`{shown(o['default'])}`", cell(o["meaning"])) for o in found]
    return "Each is set by `--set name=value`, or by a keyword of `run`.\n\n" + table(
        ("option", "type", "default", "meaning"), rows
    )


def typed(option: dict[str, Any]) -> str:
    said = ", ".join(filter(None, (option["type"], option["range"])))
    return cell(said + (f"; with {option['goes_with']}" if option["goes_with"] else ""))


def shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def cell(text: str) -> str:
    """Safe in a cell of a table."""
    return text.replace("<", "&lt;").replace("\n", " ")


def by_method(told: dict[str, Any]) -> str:
    if not told:
        return "`zoo describe` says which methods can serve it on your data, and why the others cannot."
    rows = [
        (f"[{m}](../methods/{m}.md)", "yes" if said == "yes" else "no", "" if said == "yes" else cell(said))
        for m, said in told["methods"].items()
    ]
    reason = (
        f"`{told['command']}`: {'exact, because' if told['exact'] != 'no' else 'not exact:'} {cell(told['reason'])}."
    )
    return f"{reason}\n\n" + table(("method", "", "why not"), rows)


def by_model(method: str, serves: dict[str, dict[str, Any]]) -> str:
    rows = []
    for model, told in serves.items():
        said = told.get("methods", {}).get(method, "ask `zoo describe`")
        rows.append((f"[{model}](../models/{model}.md)", "yes" if said == "yes" else cell(said)))
    return "As each stands in the example of its page, with its θ still to be learned.\n\n" + table(("model", ""), rows)


def index(kind: str, names: list[str], serves: dict[str, dict[str, Any]]) -> str:
    rows = [(f"[{name}]({name}.md)", explained(name)["text"].partition("\n")[0].rstrip(".")) for name in names]
    parts = [f"# {kind.title()}", notes(kind, "index").strip(), table((kind[:-1], "what it is"), rows)]
    if kind == "models":
        methods = sorted(KINDS["methods"]())
        which = [
            [f"[{m}]({m}.md)", *(mark(told.get("methods", {}).get(method, "?")) for method in methods)]
            for m, told in serves.items()
        ]
        parts += ["## Which method serves which model", table(("", *methods), which)]
        parts += ["● serves it; ◐ serves it at a θ that another method learned; – cannot. The pages say why."]
    return "\n\n".join(parts) + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def mark(said: str) -> str:
    return "●" if said == "yes" else "◐" if "keeps θ as it is" in said else "?" if said == "?" else "–"


def references(text: str) -> str:
    """The entries of the page of references whose first author and year stand near each other in the text."""
    found = []
    for line in (DOCS / "references.md").read_text(encoding="utf-8").splitlines():
        entry = ENTRY.match(line)
        if entry and cited(entry["who"], entry["year"], text):
            found.append(line)
    return "\n".join(found) or "None."


def cited(who: str, year: str, text: str) -> bool:
    first = re.escape(re.split(r",| & | et al", who)[0])
    return re.search(rf"{first}\b[^;()\d]{{0,60}}\(?{year}", text) is not None


def setup(app: Any) -> None:
    app.connect("builder-inited", write, priority=100)
