"""Bidirectional Monte Carlo: log p(x) of data that MODEL simulates, between a lower and an upper bound."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

from benchmarks._sandwich.picture import draw
from benchmarks._sandwich.study import Asked, Found, Start, sandwich
from zoo import _atomic, _show
from zoo._errors import UsageError
from zoo._options import Count, Limits

OPTIONS_OF_THE_MODEL = True  # what is no option here is one of the model, or of the method that learns its θ
QUICK = {"steps": (10, 50), "rows": 5, "chains": 8}


def main(
    json: bool = False,
    quick: bool = False,
    model: str | None = None,
    out: Path | None = None,
    data: str = "",
    method: str = "",
    steps: tuple[Annotated[int, Limits(least=2)], ...] = (10, 30, 100),
    chains: Annotated[int, Limits(least=2)] = 16,
    leapfrog: Count = 5,
    rows: Count = 20,
    datasets: Count = 1,
    start: Start = "modes",
    standardize: bool = False,
    binarize: str = "",
    seed: Annotated[int, Limits(least=0)] = 0,
    **options: str,
) -> Found:
    """Simulate rows at the model's θ, and bound their log p(x) from both sides.

    - `model`: a model, which needs `data`, or the folder of a run, whose θ is taken.
    - `data`: what θ is learned from; `standardize` and `binarize` prepare it.
    - `method`: what learns θ (default: em where the program is exact, else svi). Other options are the model's and its own.
    - `steps`: numbers of temperatures, with commas; each gives two bounds, and more steps bring them together.
    - `chains`: for each row and in each direction.
    - `leapfrog`: steps of Hamiltonian dynamics in one move.
    - `rows`: of one simulated data set.
    - `datasets`: how many are simulated, all at one θ.
    - `start`: where forward chains begin, and backward ones end: in Gaussians at each row's `modes`, which needs the fewest
      steps, the `prior`, or the `guide` that svi fitted. Discrete latents begin at the prior, unless they are summed out.
    - `out`: a folder for the picture and `sandwich.json`.
    - `quick`: two short paths, five rows.
    """
    if model is None:
        raise UsageError("zoo bench sandwich needs a MODEL (with --set data=…) or the folder of a RUN.")
    sizes = {"steps": steps, "rows": rows, "chains": chains} | (QUICK if quick else {})
    preparation = {k: v for k, v in {"standardize": standardize, "binarize": binarize}.items() if v}
    how = {"leapfrog": leapfrog, "datasets": datasets, "start": start, "seed": seed, "quiet": json}
    found = sandwich(Asked(model, data or None, method, options, preparation, **sizes, **how))  # type: ignore[arg-type]
    text = json_.dumps(found.to_json(), indent=1, ensure_ascii=False)
    written = [] if out is None else _written(found, out, text)
    if json:
        print(text)
    else:
        _say(found, written)
    return found


def _written(found: Found, out: Path, text: str) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    picture, document = out / "sandwich.png", out / "sandwich.json"
    title = f"{found.model}: log p(x) of {found.last.n} simulated rows, between two bounds"
    draw(found.sandwiches, found.exact, title).savefig(picture, dpi=150)
    _atomic.write(document, text + "\n")
    return [picture, document]


def _say(found: Found, written: list[Path]) -> None:
    out, n = _show.console(), found.last.n
    table = _show.new_table("steps", "lower bound", "exact", "upper bound", "width, nats a row")
    exact = "-" if found.exact is None else f"{found.exact.value:.3f}"
    for s in found.sandwiches:
        low, high = (_show.evidence(dict(e.to_json(n))) for e in (s.lower, s.upper))
        table.add_row(str(s.steps), low, exact, high, f"{s.width:.3f}")
    out.print(table)
    out.print(_show.escape(found.sentence()), soft_wrap=True)
    for path in written:
        out.print(str(path), soft_wrap=True, markup=False)
