"""A run as its pictures see it: data, diagnostics, and its program at the run's own θ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inference._method.task import Task
from inference._pictures._views.decoder import Decoder, has_decoder
from inference._pictures._views.factors import Factors
from inference._pictures._views.oracle import Oracle
from inference._pictures._views.style import counted, evidence_line, plain
from inference._run.folder import Stored
from inference._run.result import Run, opened
from zoo._data.catalogue import PHOTOGRAPHS
from zoo._errors import UsageError

FEWEST_STEPS = 8  # of what is drawn as a series
NOT_SHOWN = ("source", "seed", "series_columns", "series_lengths")  # of the options of data, in titles


@dataclass
class Scene:
    """A run as the pictures see it."""

    folder: Path
    json: dict[str, Any]
    x: np.ndarray  # [n, …], NaN where unobserved
    stats: dict[str, np.ndarray]  # per row
    trace: dict[str, np.ndarray]  # over the iterations
    draws: dict[str, np.ndarray]  # latent → [1, draws, …]
    labels: np.ndarray | None = None  # [n] classes, where the data have any
    task: Task | None = None  # the program at the run's θ; None where it cannot be had
    oracle: Oracle | None = None  # where the discrete latents are all there is
    factors: Factors | None = None  # where the rest is linear and Gaussian
    decoder: Decoder | None = None  # where continuous latents have no exact posterior
    obstacle: str = ""  # why there is no task
    run: Run | None = None

    @property
    def has_rows(self) -> bool:
        """Whether the rows are data, and not made from a covariance matrix."""
        return "covariance_of" not in self.json["options"].get("data", {})

    @property
    def is_table(self) -> bool:
        return self.x.ndim == 2

    @property
    def image_shape(self) -> tuple[int, int] | None:
        shape = self.json.get("image_shape")
        return tuple(shape) if shape and math.prod(shape) == self.x[0].size else None

    @property
    def is_series(self) -> bool:
        """Whether each step of a row has latents of its own, so that the rows are series."""
        if self.task is None or self.x.ndim not in (2, 3) or self.image_shape is not None:
            return False
        local = {s.name for s in self.task.structure.local_latents}
        latents = [frozenset(local & set(s.parents)) for s in self.task.structure.observed]
        return all(latents) and len(set(latents)) == len(latents) >= max(self.x.shape[1], FEWEST_STEPS)

    @property
    def of_light(self) -> bool:
        """Whether large numbers of its images are bright."""
        return self.json.get("data") in PHOTOGRAPHS

    @property
    def decodes_images(self) -> bool:
        """Whether the program observes whole images."""
        return self.image_shape is not None and self.decoder is not None and self.decoder.whole

    @cached_property
    def columns(self) -> list[int]:
        """The columns with anything observed, in the rows that are drawn."""
        x = self.x.reshape(len(self.x), -1) if self.oracle is None else self.oracle.x
        return np.flatnonzero(~np.isnan(x).all(0)).tolist()

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """The classes of some rows, where the data have any."""
        return None if self.labels is None else self.labels[rows]

    def drawn(self, rows: np.ndarray) -> str:
        """What a title has to say where only some of the rows are drawn."""
        n = len(self.x)
        return "" if len(rows) == n else f"; {counted(len(rows))} of {counted(n)} rows drawn"

    def tinted(self, images: np.ndarray) -> np.ndarray:
        """Images [k, D] without the pixels that no row has: nothing was learned of them."""
        return np.where(self._unseen, np.nan, images) if self._unseen.any() else images

    @cached_property
    def _unseen(self) -> np.ndarray:
        nowhere = np.isnan(self.x.reshape(len(self.x), -1)).all(0)
        return nowhere & self.json.get("learned", True)  # θ of another run may have learned of them there

    @cached_property
    def tint(self) -> str:
        """What a picture with tinted pixels has to say of them."""
        return "; tinted: unobserved" if np.isnan(self.x).any() else ""

    def name(self, column: int) -> str:
        names = self.json.get("columns") or ()
        return plain(names[column] if column < len(names) else f"x{column}")

    def see(self, task: Task) -> None:
        """Look at the data through a program that stands at the run's θ."""
        self.task = task
        if task.structure.enumerable:
            self.oracle = Oracle(task)
        elif has_decoder(task.structure):
            self.decoder = Decoder(task, {k: v[0] for k, v in self.draws.items()})
        elif task.structure.linear_gaussian and not self.is_series:
            factors = Factors(task)
            self.factors = factors if len(factors.columns) else None

    def title(self, what: str = "") -> str:
        """Model, data and method; the evidence with its kind; what else is to be said."""
        chosen = self.json["options"]["model"]
        options = ", ".join(k if v is True else f"{k} = {v}" for k, v in chosen.items())
        model = plain(Path(self.json["model"]).name, 60) + (f" ({plain(options, 60)})" if options else "")
        prepared = {k: v for k, v in self.json["options"]["data"].items() if k not in NOT_SHOWN}
        words = {k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in prepared.items()}
        how = ", ".join(k if v is True else f"{k} {v}" for k, v in words.items())
        data = plain(self.json["data"]) + (f" ({plain(how)})" if how else "")
        lines = [f"{model} · {data} · {self.json['method']}", evidence_line(self.json), what]
        return "\n".join(line for line in lines if line)


def scene_of(of: Run | Stored) -> Scene:
    """A run, just made or read back; its program stands at the run's θ."""
    run = opened(of) if isinstance(of, Stored) else of
    tree = run.idata

    def group(name: str) -> dict[str, np.ndarray]:
        return {str(k): v.values for k, v in tree[name].data_vars.items()} if name in tree else {}

    groups = group("sample_stats"), group("trace"), group("posterior")
    scene = Scene(run.folder or Path(run.model), run.to_document(), run.x, *groups, run.labels)
    try:
        task = run.at_theta()
    except UsageError as error:  # its file is gone, say: what the folder itself holds can still be drawn
        if run.stored is not None and run.stored.model is not None:  # named by the user: say what is wrong
            raise
        scene.obstacle = str(error)
        return scene
    except RuntimeError:  # its file is another one by now
        scene.obstacle = f"the parameters of '{run.model}' are no longer those of '{scene.folder}'."
        return scene
    scene.see(task)
    scene.run = run
    return scene
