"""The pages of the site: what they run, runs; what they link to is there; and each model and method is spoken of."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from helpers import in_full

from inference._run.explain import explained
from zoo import _registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = ("_build", "auto_gallery", "auto_pictures", "models", "methods")  # by the build
PAGES = {
    str(p.relative_to(DOCS)): p.read_text(encoding="utf-8")
    for p in sorted(DOCS.rglob("*.md"))
    if p.relative_to(DOCS).parts[0] not in MADE
    and (p.parent.name != "models" or p.stem in {*_registry.models(), "index"})
}
GALLERY = sorted((DOCS / "gallery").glob("plot_*.py"))
sys.path.insert(0, str(DOCS))

from _site import pages, session  # noqa: E402

RUN = [name for name, text in PAGES.items() if any("slow" not in b.options for b in session.blocks(text))]
LONG = [name for name, text in PAGES.items() if any("slow" in b.options for b in session.blocks(text))]


def run_of(page: str, folder: Path, slow: bool) -> None:
    here = session.Session(folder / "session")
    for block in session.blocks(PAGES[page]):
        if slow or "slow" not in block.options:
            here.run(block)
            for name in block.options.get("picture", "").split():
                assert here.picture(name).stat().st_size > 5000, name


def test_blocks_are_read():
    text = "a\n```{zoo}\n:picture: clusters\n:lines: 3\nzoo list\nzoo help gmm\n```\n\n```{file} a.csv\nx\n1\n```\n"
    text += "```sh\nls\n```\n"
    one, two = session.blocks(text)
    assert one == ("zoo", "", {"picture": "clusters", "lines": "3"}, "zoo list\nzoo help gmm\n")
    assert two == ("file", "a.csv", {}, "x\n1\n")


def test_a_command_that_fails_is_an_error(tmp_path):
    here = session.Session(tmp_path / "session")
    with pytest.raises(ValueError, match="ended with 2"):
        here.command("zoo help nothing")
    assert "unknown" in here.command("zoo help nothing", status=2)
    assert here.python("a = 1\nprint(a)") == "1\n" and here.python("print(a + 1)") == "2\n"


@pytest.mark.parametrize("page", in_full(*RUN))
@pytest.mark.filterwarnings("default")  # a page's own runs may warn, as a user's do
def test_what_a_page_runs_runs(page, tmp_path):
    run_of(page, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG)
@pytest.mark.filterwarnings("default")
def test_what_takes_minutes_runs(page, tmp_path):
    run_of(page, tmp_path, slow=True)


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_shown_that_nothing_runs(page):
    """`zoo …` stands in blocks that the build runs, or in a table that a test reads."""
    for body in re.findall(r"^```(?:sh|console)\n(.*?)^```", PAGES[page], re.M | re.S):
        assert not re.search(r"^zoo ", body, re.M), f"{page}: make it a ```{{zoo}} block\n{body}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To files; Sphinx checks the rest. Pages for models and methods are made of the folders of these."""
    text = re.sub(r"^(`{3,}).*?^\1", "", PAGES[page], flags=re.M | re.S)
    at = DOCS / (re.sub(r"^notes/", "", page))
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        target = (at.parent / link).resolve().relative_to(ROOT)
        made = {"models": "zoo", "methods": "inference"}.get(target.parts[1] if len(target.parts) > 2 else "")
        if made and target.stem != "index":
            target = Path(made) / f"{target.stem}.py"
        assert (made and target.stem == "index") or target.parts[1] in MADE or (ROOT / target).is_file(), (
            f"{page}: {link}"
        )


@pytest.mark.parametrize(("kind", "names"), [("models", _registry.models()), ("methods", _registry.methods())])
def test_what_is_cited_is_in_the_references(kind, names):
    entries = (DOCS / "references.md").read_text(encoding="utf-8")
    for name in names:
        for who, year in re.findall(
            r"([A-Z][a-zéäöü-]+)(?:, [A-Z][\w&, ]+| & \w+| et al\.)? \(?((?:19|20)\d\d)", explained(name)["text"]
        ):
            assert re.search(rf"^- .*{who}.* \({year}\)\. ", entries, re.M), (
                f"{name} cites {who} {year}: see docs/references.md"
            )


def test_a_page_lists_the_references_that_it_cites():
    found = pages.references(
        "Neal (1992), and importance weights (Burda, Grosse & Salakhutdinov 2016); not Neal 2011b."
    )
    assert [line.split(" (")[0] for line in found.splitlines()] == [
        "- Burda, Grosse & Salakhutdinov",
        "- Neal",
        "- Neal",
    ]
    assert pages.references("Neal, and others, in 1993") == "None."


def test_the_marks_of_the_table_are_what_describe_says(tmp_path):
    told = json.loads(session.Session(tmp_path / "session").command("zoo describe gmm --data faithful --json"))
    marks = {method: pages.mark(said) for method, said in told["methods"].items()}
    assert marks == dict.fromkeys(("em", "importance", "laplace", "svi"), "●") | {"ais": "◐", "gibbs": "◐", "nuts": "–"}
    assert pages.mark("?") == "?"


def test_the_notes_are_of_things_that_have_their_parts():
    for page in PAGES:
        if page.startswith("notes/methods/") and not page.endswith("index.md"):
            assert all(f"## {part}" in PAGES[page] for part in ("What it claims", "How it fails", "Example")), page
        if page.startswith("notes/models/") and not page.endswith("index.md"):
            assert all(f"## {part}" in PAGES[page] for part in ("Equations", "When to use it", "When not to")), page


COMMANDS = re.findall(r"`(zoo [^`]+)`", PAGES["lectures.md"])
CONCRETE = [c for c in COMMANDS if not re.search(r"\b(RUN|MODEL|D|NEW|M)\b|frey_face|^zoo bench", c)]


@pytest.mark.parametrize("command", in_full(*CONCRETE))
@pytest.mark.filterwarnings("default")
def test_the_commands_of_the_lectures_run(command, tmp_path):
    session.Session(tmp_path / "session").command(command)


def test_the_benchmarks_of_the_lectures_are_there():
    for name in (c.split()[2] for c in COMMANDS if c.startswith("zoo bench")):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    assert len(CONCRETE) >= 10
