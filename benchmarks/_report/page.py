"""A page of a suite's results: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from benchmarks._report import charts, figures, fits, leaderboard, sections
from benchmarks._report.tables import Column, Table, seconds, words
from benchmarks._suite import folder as _folder
from benchmarks._suite.cells import title
from benchmarks._suite.documents import CellDocument, SuiteDocument
from zoo import _atomic
from zoo._command import visible
from zoo._errors import UsageError

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = 96  # of a picture's palette: a page of pictures stays small
PICTURES = 60  # on a page; the rest is named


def write(folder: Path | None = None, out: Path | None = None) -> Path:
    """Write the page of the results in `folder` (a suite's folder, or its `--json` kept in a file); returns its path.

    Raises `UsageError` when there are no results, or the page cannot be written.
    """
    source = latest() if folder is None else _atomic.place(folder)
    document = read(source)
    page = (
        _atomic.place(out)
        if out is not None
        else (source / "report.html" if source.is_dir() else Path(source.name).with_suffix(".html"))
    )
    try:
        text = html(document, source if source.is_dir() else None)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"'{source}' is damaged: it is not what `zoo bench` writes ({type(error).__name__}: {error}). Run the suite again."
        ) from error
    _atomic.sweep(page.absolute().parent)
    return _atomic.write(page, text)


def latest() -> Path:
    """The suite in `results/` that was run last."""
    found = sorted(_folder.RESULTS.glob("*/suite.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UsageError(f"there are no results in '{_folder.RESULTS}'; run `zoo bench SUITE`, or name a folder.")
    return found[-1].parent


def read(source: Path) -> SuiteDocument:
    """The collected document of a results folder, or of a file that `zoo bench SUITE --json` was kept in."""
    if not source.is_file():
        inside = [str(p.parent) for p in sorted(source.glob("*/suite.json"))]
        if inside and not (source / "suite.json").is_file():
            raise UsageError(f"'{source}' holds several suites; name one: {', '.join(inside)}.")
        return _folder.Results(source).collected()
    try:
        document: SuiteDocument = json.loads(source.read_text(encoding="utf-8"))
        if document["format"] > _folder.FORMAT:
            raise UsageError(f"'{source}' was written by a newer version of Latent Zoo; update it to read this folder.")
        assert isinstance(document["cells"], list)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"Expected the output of `zoo bench SUITE --json` in '{source}'; run that again.") from error
    return document


def html(document: SuiteDocument, folder: Path | None) -> str:
    """The page. Pictures come from `folder`, where there is one."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    series = _series(document["cells"])
    groups = fits.groups(document["cells"], series)
    album = _Album(folder, groups)
    return environment.get_template("report.html").render(
        d=document,
        groups=[(g, leaderboard.leaderboards(g), figures.of_fits(g), album.of(g)) for g in groups],
        overviews=leaderboard.overviews(groups),
        sections=sections.sections(document["cells"], _Series),
        every=_every(document["cells"]),
        swatch=charts.swatch,
        left_out=album.left_out,
        paragraphs=document["about"].split("\n\n"),
        old=_versions_differ(document),
    )


def _visible(value: object) -> object:
    """Text with control characters escaped; our own markup is left as it is."""
    return visible(value) if type(value) is str else value


class _Series:
    """Colours and shapes: one for each name, in the order in which they come."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))


def _series(cells: list[CellDocument]) -> _Series:
    """Methods without options first, so that they look the same on every page."""
    out = _Series()
    for name in sorted({c["cell"]["method"] for c in cells if c["cell"]["kind"] in ("fit", "infer")}):
        if any(c["cell"].get("method") == name and not c["cell"]["method_options"] for c in cells):
            out(name)
    return out


class Shown(NamedTuple):
    """A run with its pictures, each as (name, data URI, width, height)."""

    row: fits.FitRow
    seed: int
    pictures: list[tuple[str, str, int, int]]


class _Album:
    """Pictures as data URIs with few colours; where there are too many, each group shows its best runs."""

    def __init__(self, folder: Path | None, groups: list[fits.Group]) -> None:
        found = [[self._files(folder, cell) for _, cell in group.pictures()] for group in groups]
        turns = [files for turn in itertools.zip_longest(*found, fillvalue=[]) for files in turn]
        files = [file for some in turns for file in some]
        self.folder, self.shown, self.left_out = folder, set(files[:PICTURES]), len(files[PICTURES:])

    @staticmethod
    def _files(folder: Path | None, cell: CellDocument) -> list[Path]:
        names = (cell.get("result") or {}).get("pictures", [])
        paths = [] if folder is None else [folder / "pictures" / cell["id"] / name for name in names]
        shown = [path for path in paths if _inside(path, folder) and _is_picture(path)]
        for path in shown:
            if not _folder.is_as_written(path, f"pictures/{path.name}", cell):
                raise UsageError(f"'{path}' is damaged: it is not the picture that was drawn. Remove it.")
        return shown

    def of(self, group: fits.Group) -> list[Shown]:
        """For each run with pictures: what is shown of it."""
        out = []
        for row, cell in group.pictures():
            files = [path for path in self._files(self.folder, cell) if path in self.shown]
            if files:
                pictures = [(path.stem, *_data(path)) for path in files]
                out.append(Shown(row, cell["cell"]["seed"], pictures))
        return out


def _inside(path: Path, folder: Path | None) -> bool:
    """Whether a file is there, and neither its name nor a link leads out of the pictures of `folder`."""
    return folder is not None and path.is_file() and path.resolve().is_relative_to((folder / "pictures").resolve())


def _is_picture(path: Path) -> bool:
    """Whether it is a valid PNG file; other files are not shown."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except Exception:  # damaged bytes raise many kinds
        return False
    return True


def _data(path: Path) -> tuple[str, int, int]:
    """A data URI, and the picture's width and height."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        stream = io.BytesIO()
        small.save(stream, "PNG", optimize=True)
        content = stream.getvalue() if stream.tell() < path.stat().st_size else path.read_bytes()
        return f"data:image/png;base64,{base64.b64encode(content).decode()}", *image.size


def _every(cells: list[CellDocument]) -> Table:
    """All cells, with their warnings and the command that re-runs each."""
    columns = [Column("cell", numeric=False), Column("what", numeric=False), Column("outcome", numeric=False)]
    columns += [Column("seconds", help="Of the whole cell, with checks and pictures."), Column("again", numeric=False)]
    columns += [Column("warnings and versions", numeric=False)]
    table = Table(columns)
    for cell in cells:
        said = (cell.get("result") or {}).get("warnings", [])
        said = [*said, *([cell["reason"]] if cell["reason"] else [])]
        said += [f"{k} {v}" for k, v in cell.get("versions", {}).items()]
        table.add(
            words(cell["id"][:8], code=True),
            words(title(cell["cell"])),
            words(cell["status"], f"status {cell['status']}"),
            seconds(cell.get("wall_seconds")),
            words(cell["command"], code=True),
            words(" ".join(said)),
        )
    return table.trimmed()


def _versions_differ(document: SuiteDocument) -> int:
    """How many cells were done with other versions than the rest."""
    return sum("versions" in c for c in document["cells"])
