"""What a suite writes down, as JSON has it: a cell's content, its result by kind, and the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

Options = Mapping[str, Any]  # options by name, as a suite's file has them
Document = dict[str, Any]  # JSON that a benchmark returns, of a shape of its own
Kind = Literal["exact", "estimate", "lower bound", "upper bound"]
KHat = TypedDict("KHat", {"max": float | None, "frac_above_0.7": float})  # max: None where it is infinite


class Evidence(TypedDict):
    """log p(x) in nats, and what kind of statement it is; `value` is None where it is not finite."""

    value: float | None
    se: float | None
    kind: Kind
    given: NotRequired[str]
    per_datum_mean: NotRequired[float | None]


class FitResult(TypedDict):
    """A fit's result; that of a cell of kind "scaling" has the memory beyond the start too."""

    log_evidence: Evidence | None
    verified_log_evidence: Evidence | None
    khat: KHat | None
    khat_quantiles: NotRequired[list[float]]
    ess_quantiles: NotRequired[list[float]]
    seconds: float
    peak_memory_mb: float
    pictures: NotRequired[list[str]]
    extra_memory_mb: NotRequired[float | None]


class HeldOut(TypedDict):
    """log p(hidden | seen), nats."""

    value: float
    se: float
    kind: Kind
    per_entry: float


class Scores(TypedDict):
    """How well hidden entries were filled in; without draws there is no coverage and no width."""

    hidden: int
    rmse: float
    rmse_se: float
    mae: float
    coverage: float | None
    width: float | None


class ImputationResult(Scores):
    """The result of a cell of kind "impute"."""

    seconds: float
    held_out: NotRequired[HeldOut | None]


class Data(TypedDict, total=False):
    """A data set with its preparation, or the sizes of a synthetic one."""

    name: str
    sha256: str
    rows: int
    standardize: bool
    binarize: str | float
    missing: str
    seed: int
    n: int
    d: int


class Content(TypedDict, total=False):
    """What a cell is to do; which keys there are follows from `kind`."""

    kind: Literal["fit", "theta", "infer", "impute", "scaling", "benchmark"]
    model: str
    model_options: Options
    model_sha256: str
    data: Data
    method: str
    method_options: Options
    seed: int
    pictures: bool
    theta: Content  # of kind "infer": the cell whose θ it takes
    hide: str  # of kind "impute", and the next two
    draws: int
    baseline: bool
    axis: str  # of kind "scaling": the size that is varied, and its value
    at: float
    name: str  # of kind "benchmark", and its options
    options: Options


class Machine(TypedDict):
    cpu: str
    cores: int | None
    memory_gb: int | None
    system: str


class CellDocument(TypedDict):
    """A cell with its outcome. `status`: ok, refused, failed, timeout, skipped, or missing (not done yet)."""

    format: NotRequired[int]
    id: str
    cell: Content
    status: str
    reason: str | None
    result: NotRequired[Document | None]
    command: NotRequired[str]  # that does it again
    date: NotRequired[str]
    wall_seconds: NotRequired[float]
    budget: NotRequired[dict[str, float | None]]
    versions: NotRequired[dict[str, str]]  # where they differ from most cells', and so the machine
    machine: NotRequired[Machine]


class SuiteDocument(TypedDict):
    """All of a suite's results: what `zoo bench SUITE --json` prints."""

    format: int
    suite: str
    about: str
    command: str
    date: str | None
    counts: dict[str, int]
    versions: dict[str, str]
    machine: Machine
    cells: list[CellDocument]
