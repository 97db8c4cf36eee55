"""The likelihood-ratio test of K against the next K by simulation (McLachlan 1987).

2 (log L of K + 1 − log L of K) has no χ² distribution for mixtures. So data are simulated by the program at the fit of K, as
many rows and with the same holes, and both are fitted to them, B times:

    p = (1 + how many ratios are at least as large as the data's own) / (B + 1)

The tests go up from the smallest K until one has p above the level: K is then enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._select.starts import best_of
from benchmarks._select.trial import Theta, Trial
from benchmarks._suite.folder import Results
from inference._run import runner
from inference._run.prepare import find
from zoo._data.datasets import Dataset
from zoo._errors import Refusal
from zoo._program.trace import node_of

LEVEL = 0.05
STREAM = 5  # of the random numbers
Document = dict[str, Any]
Options = Mapping[str, object]


@dataclass(frozen=True)
class Ratio:
    """One test: `null` and `alternative` are values of the option, `larger` how many ratios reach the data's own."""

    option: str
    null: object
    alternative: object
    statistic: float
    p: float
    larger: int
    replicates: int
    failed: int  # simulated data sets without a ratio

    def to_json(self) -> Document:
        """The test as plain JSON types."""
        return dict(vars(self))


def refit(cell: Trial, results: Results, work: Path) -> Document:
    """One simulated data set, fitted by the smaller and by the larger model: twice the difference of their log L."""
    data, content = _simulated(cell), cell.content
    values: Document = {}
    for which in ("null_options", "model_options"):
        prepared = runner.prepare(find(cell.model, 0), data, content[which], [], seed=content["seed"])
        how = prepared, content["method"], content["method_options"], content["seed"], content["restarts"]
        found = best_of(*how, verified=False)
        claimed = found.run.claimed
        if claimed is None or claimed.kind != "exact" or claimed.given:
            raise Refusal("a likelihood ratio needs the maximum of an exact log-likelihood on both sides.")
        values[which] = claimed.value
        values[f"{which}_ended"] = found.ended
    return {"statistic": 2 * (values["model_options"] - values["null_options"]), **values}


def _simulated(cell: Trial) -> Dataset:
    """As many rows as the data have, drawn by the program at the θ of the null, with the data's own holes."""
    content, data = cell.content, cell.data
    prepared = runner.prepare(find(cell.model, 0), data, content["null_options"], [], seed=content["seed"])
    program = prepared.program(content["seed"])
    assert cell.theta is not None
    program.assign({n: torch.as_tensor(v) for n, v in cell.theta.items()})
    seed = int(np.random.default_rng([content["seed"], STREAM, content["replicate"]]).integers(2**31))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = torch.as_tensor(node_of(program.trace(None, size=len(data.x)), "_RETURN")["value"])
    x = drawn.reshape(data.x.shape).double().numpy()
    return replace(data, x=np.where(np.isnan(data.x), np.nan, x), labels=None, truth=None, warnings=())


def sequence(
    option: str,
    steps: Sequence[tuple[Document, Document]],
    trials: Callable[[Document, Document, int], list[Trial]],
    replicates: int,
    finish: Callable[[list[Trial]], list[Document]],
) -> list[Ratio]:
    """Tests of each cell's document against the next one's, until one has p above the level.

    `trials`: makes the cells of a test; `finish`: their documents.
    """
    out: list[Ratio] = []
    for null, alternative in steps:
        own = 2 * (alternative["result"]["log_likelihood"] - null["result"]["log_likelihood"])
        found = [d["result"]["statistic"] for d in finish(trials(null, alternative, replicates)) if d["status"] == "ok"]
        larger = int(np.sum(np.asarray(found) >= own - 1e-6))
        one, other = (d["cell"]["model_options"][option] for d in (null, alternative))
        p = (1 + larger) / (len(found) + 1)
        out.append(Ratio(option, one, other, own, p, larger, len(found), replicates - len(found)))
        if p > LEVEL:
            break
    return out


def theta_of(cell: Trial, document: Document) -> Theta:
    """θ of a finished fit, made again from its seed and start."""
    content, result = cell.content, document["result"]
    options = {**content["method_options"], **({"start": result["start"]} if "start" in result else {})}
    prepared = runner.prepare(find(cell.model, 0), cell.data, content["model_options"], [], seed=content["seed"])
    run = runner.run_prepared(prepared, result["method"], options, seed=result["seed"], verified=False)
    return {n: v.detach().numpy() for n, v in run.program.values().items()}
