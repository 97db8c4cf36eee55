"""What both calibrations are: outcomes of simulations, of which some failed, a verdict, and three files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from matplotlib.figure import Figure

from benchmarks._suite.folder import put
from zoo._errors import Refusal

if TYPE_CHECKING:
    import pandas as pd

MOST_LOST = 0.1  # share of the simulations that may fail
Document = dict[str, Any]


class Outcomes(ABC):
    """The outcomes of simulations, each with why it `failed` where it did."""

    name: ClassVar[str]  # of the files
    counted: ClassVar[str]  # what fails
    outcomes: Sequence[Mapping[str, Any]]
    folder: Path | None

    def __post_init__(self) -> None:
        if not self.fits:
            raise Refusal(f"all {len(self.outcomes)} {self.counted} failed: {self.outcomes[0]['failed']}")

    @property
    def fits(self) -> list[Mapping[str, Any]]:
        """The simulations of which no fit failed."""
        return [o for o in self.outcomes if "failed" not in o]

    @property
    def lost(self) -> list[str]:
        """Why the others failed."""
        return [o["failed"] for o in self.outcomes if "failed" in o]

    @property
    def verdict(self) -> str:
        """ "passes", "fails", "too few simulations" or "too many failed fits"."""
        if self._fails():
            return "fails"
        if len(self.lost) > MOST_LOST * len(self.outcomes):
            return "too many failed fits"
        return "passes" if self._shows() else "too few simulations"

    @abstractmethod
    def _fails(self) -> bool:
        """Whether a fault was found."""

    @abstractmethod
    def _shows(self) -> bool:
        """Whether so many simulations would show a fault that matters."""

    @property
    @abstractmethod
    def sentences(self) -> list[str]:
        """The verdict in plain words, and what it rests on."""

    @property
    @abstractmethod
    def table(self) -> pd.DataFrame:
        """A row for each thing that was tested."""

    @abstractmethod
    def plot(self) -> Figure:
        """The picture."""

    @abstractmethod
    def to_json(self) -> Document:
        """The object that `zoo calibrate … --json` prints."""

    def write(self, folder: Path) -> None:
        """Put the table, the document and the picture into the folder, each whole or not at all."""
        self.folder = folder
        put(folder / "table.csv", self.table.to_csv(index=False).encode())
        put(folder / f"{self.name}.json", (json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
        put(folder / f"{self.name}.png", self.plot())
