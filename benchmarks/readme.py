"""Tables and picture of the README and the site: every method on Old Faithful, and PPCA and factor analysis on wine.

`zoo bench readme` re-runs them, keeps the numbers with their versions in `benchmarks/results/readme.json`, and writes the
tables between the markers of `PAGES`, those of other kept results too. `zoo bench readme_tables` writes them without running
anything. A test says when a table and the numbers differ.
"""

from __future__ import annotations

import json as json_
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from benchmarks import belief_net, chorales, compare, completions, digits, missing_pixels, mnist_dlg, soundness
from benchmarks._report import markdown
from benchmarks._suite import folder as _folder
from benchmarks._suite.documents import Evidence, KHat, Machine, Options
from inference import Run, run
from inference._pictures._draw import plot
from inference._run.cost import versions
from zoo import _show
from zoo._errors import UsageError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/concepts.md")
FAITHFUL: tuple[tuple[str, Options], ...] = (
    ("em", {}),
    ("em", {"covariance": "tied"}),
    ("em", {"covariance": "diagonal"}),
    ("laplace", {"priors": True}),
)
WINE: tuple[tuple[str, Options], ...] = (
    ("ppca", {"latents": 2}),
    ("ppca", {"latents": 3}),
    ("factor_analysis", {"latents": 2}),
    ("factor_analysis", {"latents": 3}),
)


class Source(NamedTuple):
    """The kept results that a table is made of, and how."""

    files: str  # in `results/`
    table: Callable[..., str]


TABLES = {
    "compare": Source("compare.json", compare.table),
    "recommended": Source("compare.json", compare.recommended),
    "methods": Source("methods.json", markdown.methods),
    "missing": Source("missing.json", markdown.missing),
    "scaling": Source("scaling.json", markdown.scaling),
    "peers": Source("peers.json", markdown.peers),
    "costs": Source("peers.json", markdown.slowest),
    "mnist": Source("mnist_dlg*.json", mnist_dlg.table),
    "missing_pixels": Source("missing_pixels*.json", missing_pixels.table),
    "completions": Source("completions.json", completions.table),
    "digits": Source("digits.json", digits.table),
    "belief_net": Source("published/belief_net*.json", belief_net.table),
    "chorales": Source("published/chorales.json", chorales.table),
    "soundness": Source("soundness.json", soundness.table),
}


class Row(TypedDict):
    """What a method says of Old Faithful, or EM on a model of wine."""

    name: str  # of the method, or of the model
    options: Options
    log_evidence: Evidence
    verified_log_evidence: Evidence
    khat: KHat | None


class Results(TypedDict):
    """What `readme.json` holds."""

    command: str
    date: str
    machine: Machine
    versions: dict[str, str]
    faithful: list[Row]
    wine: list[Row]


def main(json: bool = False, quick: bool = False) -> Results:
    """Run, keep and write; with `quick`, only two rows, and nothing is written."""
    results = measure(FAITHFUL[:1] if quick else FAITHFUL, WINE[:1] if quick else WINE, None if quick else RESULTS)
    if not quick:
        (RESULTS / "readme.json").write_text(
            json_.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        write(results)
    print(json_.dumps(results, indent=1, ensure_ascii=False) if json else "\n\n".join(tables(results).values()))
    return results


def measure(
    faithful: Sequence[tuple[str, Options]], wine: Sequence[tuple[str, Options]], pictures: Path | None
) -> Results:
    """Run the rows; the picture goes to the folder `pictures`."""
    out: Results = {
        "command": "zoo bench readme",
        "date": _folder.today(),
        "machine": _folder.machine(),
        "versions": versions(),
        "faithful": [],
        "wine": [],
    }
    for method, options in faithful:
        with tempfile.TemporaryDirectory() as folder:
            fit = run("gmm", "faithful", method, out=Path(folder) / "run", **options)
            if pictures is not None and not out["faithful"]:
                _picture(Path(folder) / "run", pictures)
        out["faithful"].append(_row(fit, method, options))
    for model, options in wine:
        out["wine"].append(_row(run(model, "wine", "em", standardize=True, **options), model, options))
    return out


def _picture(run: Path, pictures: Path) -> None:
    for path in plot(run, run / "plots"):
        if path.stem == "clusters":
            (pictures / "faithful.png").write_bytes(path.read_bytes())


def _row(fit: Run, name: str, options: Options) -> Row:
    said = fit.to_json()
    claimed, verified = said["log_evidence"], said["verified_log_evidence"]
    return Row(name=name, options=options, log_evidence=claimed, verified_log_evidence=verified, khat=said["khat"])


def tables(results: Results) -> dict[str, str]:
    """Marker → its Markdown table."""
    faithful, wine = [], []
    for r in results["faithful"]:
        claimed, verified = r["log_evidence"], r["verified_log_evidence"]
        said = (_show.evidence(claimed), claimed["kind"], _show.evidence(verified), verified["kind"])
        faithful.append((f"`{r['name']}`", _options(r["options"]), *said))
    for r in results["wine"]:
        wine.append((f"`{r['name']}`", _options(r["options"]), _show.evidence(r["log_evidence"])))
    columns = ("method", "model", "claimed log p(x), nats", "kind", "verified, nats", "kind")
    return {
        "faithful": markdown.table(columns, faithful),
        "wine": markdown.table(("model", "options", "log p(x; θ̂), nats"), wine),
    }


def _options(options: Options) -> str:
    return (
        ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
        or "full covariance"
    )


def write(results: Results) -> list[str]:
    """Write the tables into the pages; which they are. Raises `ValueError` for a table of `results` without a place."""
    if lost := [page for page in PAGES if not (ROOT / page).is_file()]:
        raise UsageError(f"the tables are written in a checkout of the project: there is no {lost[0]} in {ROOT}.")
    texts = {ROOT / page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    found = {place for text in texts.values() for place in places(text)}
    if homeless := tables(results).keys() - found:
        raise ValueError(f"no page has a place for the table '{min(homeless)}': '<!-- table {min(homeless)}: …'")
    for path, text in texts.items():
        path.write_text(rewritten(text, results), encoding="utf-8")
    return sorted(found)


def rewritten(page: str, results: Results) -> str:
    """The page with the tables between its markers replaced: those of `results`, and those of the other kept results.

    Raises `ValueError` for a place that there are no results for.
    """
    made = tables(results)
    for name in places(page) - made.keys():
        kept = sorted(RESULTS.glob(TABLES[name].files)) if name in TABLES else []
        if not kept:
            raise ValueError(f"the page has a place for a table '{name}', and there are no results to make it of.")
        made[name] = TABLES[name].table(*(json_.loads(path.read_text(encoding="utf-8")) for path in kept))
    return PLACE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}", page)


PLACE = re.compile(r"^(<!-- table (\w+): zoo bench \w+ -->)\n.*?^(<!-- end of table \2 -->)$", re.M | re.S)


def places(page: str) -> set[str]:
    """The names of the tables that the page has a place for."""
    return {found[2] for found in PLACE.finditer(page)}
