"""The README's table and picture: every method on Old Faithful, and PPCA and factor analysis on wine.

`zoo bench readme` runs them anew, keeps the numbers with their versions in `benchmarks/results/readme.json`, and writes the
tables between the README's markers, those of other kept results too. `zoo bench readme_tables` writes them without running
anything. A test says when a table and the numbers differ.
"""

from __future__ import annotations

import json as json_
import re
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._report import markdown
from benchmarks._suite import folder as _folder
from zoo import _show

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FAITHFUL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("em", {}),
    ("laplace", {}),
    ("svi", {}),
    ("importance", {}),
    ("em", {"covariance": "tied"}),
    ("em", {"covariance": "diagonal"}),
    ("laplace", {"priors": True}),
)
WINE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ppca", {"latents": 2}),
    ("ppca", {"latents": 3}),
    ("factor_analysis", {"latents": 2}),
    ("factor_analysis", {"latents": 3}),
)


def main(json: bool = False, quick: bool = False) -> dict[str, Any]:
    """Run, keep and write; with `quick`, only two rows, and nothing is written."""
    results = measure(FAITHFUL[:1] if quick else FAITHFUL, WINE[:1] if quick else WINE, None if quick else RESULTS)
    if not quick:
        (RESULTS / "readme.json").write_text(
            json_.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        path = ROOT / "README.md"
        path.write_text(rewritten(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(json_.dumps(results, indent=1, ensure_ascii=False) if json else "\n\n".join(tables(results).values()))
    return results


def measure(faithful: Any, wine: Any, pictures: Path | None) -> dict[str, Any]:
    """Run the rows; the picture goes to the folder `pictures`."""
    from inference import run
    from inference._run.cost import versions

    out: dict[str, Any] = {
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
    from inference._pictures._draw import plot

    for path in plot(run, run / "plots"):
        if path.stem == "clusters":
            (pictures / "faithful.png").write_bytes(path.read_bytes())


def _row(fit: Any, name: str, options: dict[str, Any]) -> dict[str, Any]:
    document = fit.to_json()
    kept = {k: document[k] for k in ("log_evidence", "verified_log_evidence", "khat")}
    return {"name": name, "options": options, **kept}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Marker → its Markdown table."""
    lines = [
        "| method | model | claimed log p(x), nats | kind | verified, nats | kind |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results["faithful"]:
        claimed, verified = r["log_evidence"], r["verified_log_evidence"]
        cells = (f"`{r['name']}`", _options(r["options"]), _show.evidence(claimed), claimed["kind"])
        lines.append("| " + " | ".join((*cells, _show.evidence(verified), verified["kind"])) + " |")
    wine = ["| model | options | log p(x; θ̂), nats |", "| --- | --- | --- |"]
    for r in results["wine"]:
        wine.append(f"| `{r['name']}` | {_options(r['options'])} | {_show.evidence(r['log_evidence'])} |")
    return {"faithful": "\n".join(lines), "wine": "\n".join(wine)}


def _options(options: dict[str, Any]) -> str:
    return (
        ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
        or "full covariance"
    )


def rewritten(readme: str, results: dict[str, Any]) -> str:
    """The README with the tables between its markers replaced: those of `results`, and those of the other kept results.

    Raises `ValueError` for a table that has no place, and for a place that there are no results for.
    """
    made = tables(results)
    if lost := made.keys() - places(readme):
        raise ValueError(f"the README has no place for the table '{min(lost)}': '<!-- table {min(lost)}: …'")
    for name in places(readme) - made.keys():
        kept = sorted(RESULTS.glob(markdown.SOURCES.get(name, f"{name}.json")))
        if name not in markdown.TABLES or not kept:
            raise ValueError(f"the README has a place for a table '{name}', and there are no results to make it of.")
        documents = [json_.loads(path.read_text(encoding="utf-8")) for path in kept]
        made[name] = markdown.TABLES[name](*documents)
    return PLACE.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}", readme)


PLACE = re.compile(r"^(<!-- table (\w+): zoo bench \w+ -->)\n.*?^(<!-- end of table \2 -->)$", re.M | re.S)


def places(readme: str) -> set[str]:
    """The names of the tables that the README has a place for."""
    return {found[2] for found in PLACE.finditer(readme)}
