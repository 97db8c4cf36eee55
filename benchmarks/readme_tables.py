"""The tables of the README and the site, rewritten from the kept results of the suites, without running anything.

A table stands between `<!-- table NAME: … -->` and `<!-- end of table NAME -->`, and is made of `results/NAME.json`, which is
what `zoo bench NAME --json` printed. `faithful` and `wine` are made of `results/readme.json`. A test says when a table and its
source differ.
"""

from __future__ import annotations

import json as json_

from benchmarks import readme


def main(json: bool = False) -> dict[str, list[str]]:
    """Rewrite the pages; print which tables they hold."""
    names = readme.write(json_.loads((readme.RESULTS / "readme.json").read_text(encoding="utf-8")))
    print(json_.dumps({"tables": names}) if json else "\n".join(names))
    return {"tables": names}
