"""Reference posteriors: long runs of nuts, kept with their Monte Carlo errors and held against what is not ours."""

from __future__ import annotations

import json as json_
from pathlib import Path

from benchmarks._references import cases, reference, validate
from benchmarks._references.make import make
from zoo import _show
from zoo._errors import unknown
from zoo._options import Count


def main(
    json: bool = False,
    quick: bool = False,
    names: str = "all",
    against: str = "",
    whose: str = "another sampler",
    into: str = "",
    samples: Count | None = None,
) -> dict[str, object]:
    """Make the references of `names` (separated by commas), or hold those there are `against` files NAME.json in a folder.

    - `whose`: what the files are of, as the record names it.
    - `into`: the folder to write (default: the package's own).
    - `samples`: draws of each chain.
    """
    chosen = cases.names() if names == "all" else [n.strip() for n in names.split(",")]
    folder, short = Path(into) if into else reference.FOLDER, 200 if quick else samples
    done: dict[str, object] = {}
    for name in chosen:
        if name not in cases.names():
            raise unknown("reference", name, cases.names())
        if against:
            found = validate.with_file(reference.load(folder / f"{name}.json"), Path(against) / f"{name}.json", whose)
        else:
            found = make(cases.case(name), short, quick)
        found.write(folder / f"{name}.json")
        done[name] = {"made": found.made, "validated": found.validated, "log_evidence": found.log_evidence}
        if not json:
            _show.console().print(f"{name}: {json_.dumps(done[name])}", soft_wrap=True, markup=False)
    if json:
        print(json_.dumps(done, indent=1))
    return done
