"""The page of a suite: who may stand above whom, what stands where, and that it works in a browser."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import mnist_dlg, readme
from benchmarks._report import charts, costs, figures, fits, imputation, leaderboard, markdown, rank, tables
from benchmarks._report import page as _report
from benchmarks._suite import cells as _cells
from benchmarks._suite import folder as _folder
from benchmarks._suite import names as _names
from benchmarks._suite.folder import FORMAT
from zoo.__main__ import app
from zoo._errors import UsageError

needs_browser = pytest.mark.skipif(browser.path() is None, reason="no chromium is installed")


# ---- ranks -----------------------------------------------------------------------------------------------------------

KINDS = ("exact", "estimate", "lower bound", "upper bound")


@st.composite
def standings(draw: Any) -> rank.Standing:
    kind = draw(st.sampled_from(KINDS))
    value = draw(st.integers(-20, 20)) / 2
    width = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0])) if kind != "exact" or draw(st.booleans()) else 0.0
    return rank.Standing(value, value - width, value + width, kind)


@settings(max_examples=300)
@given(st.lists(standings(), max_size=9))
def test_who_may_stand_above_whom(every):
    ranks = rank.ranks(every)
    for a, i in zip(every, ranks, strict=True):
        for b, j in zip(every, ranks, strict=True):
            assert i is not None and j is not None
            overlap = a.low <= b.high and b.low <= a.high
            floor = {"lower bound": 1, "upper bound": 2}
            if floor.get(a.kind, 0) > floor.get(b.kind, 0):
                assert i > j  # a bound is never above an exact value, nor above an estimate
            elif a.kind == b.kind == "upper bound":
                assert i == j  # a higher one is not better
            elif floor.get(a.kind, 0) == floor.get(b.kind, 0):
                if overlap and not a.sharp and not b.sharp:
                    assert i == j  # neither is above the other
                if overlap and not a.sharp:
                    assert i >= j  # an interval is not above the exact value that it reaches
                if a.sharp and b.sharp:
                    assert (i < j) == (a.value > b.value)
                if a.low > b.high + 1e-3:  # by themselves, what is better for certain stands above
                    assert rank.ranks([a, b]) == [1, 2]
    if every:
        assert min(r for r in ranks if r is not None) == 1


@given(st.lists(standings(), min_size=2, max_size=7), st.randoms())
def test_ranks_do_not_depend_on_the_order(every, luck):
    order = list(range(len(every)))
    luck.shuffle(order)
    ranks = rank.ranks(every)
    assert rank.ranks([every[i] for i in order]) == [ranks[i] for i in order]


def test_ranks_by_example():
    def of(value: float, width: float, kind: str) -> rank.Standing:
        return rank.Standing(value, value - width, value + width, kind)

    assert rank.ranks([of(-10, 0, "exact"), of(-5, 0, "lower bound"), of(-11, 0, "exact")]) == [1, 3, 2]
    assert rank.ranks([of(-10, 0, "exact"), of(-9, 2, "estimate")]) == [1, 1]
    assert rank.ranks([of(-10, 0, "exact"), of(-7, 2, "estimate"), None]) == [2, 1, None]
    assert rank.ranks([of(0, 1, "estimate"), of(1.5, 1, "estimate"), of(9, 1, "estimate")]) == [2, 2, 1]
    assert rank.ranks([of(-1130.2639601, 0, "exact"), of(-1130.2639609, 0, "exact")]) == [1, 1]
    assert rank.ranks([]) == []


def test_several_runs_are_one_standing():
    runs = [
        {"value": v, "se": s, "kind": k}
        for v, s, k in ((-3.0, 1.0, "estimate"), (-2.0, 0.0, "exact"), (-9.0, 0, "exact"))
    ]
    found = rank.standing(runs)
    assert found is not None and (found.value, found.low, found.kind) == (-3.0, -9.0, "estimate")
    assert found.high == pytest.approx(-3.0 + 1.96, abs=1e-3)
    assert rank.standing([]) is None
    assert rank.standing([{"value": None, "se": None, "kind": "exact"}]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9))
def test_nothing_beats_the_front(points):
    front = rank.front(points)
    for i in front:
        assert not any(c <= points[i][0] and v >= points[i][1] and (c, v) != points[i] for c, v in points)
    assert [points[i] for i in front] == sorted(points[i] for i in front)


# ---- numbers and drawings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents(power):
    points = {n: [3e-3 * n**power * (1 + 0.01 * (-1) ** i)] for i, n in enumerate([10, 20, 40, 80, 160, 320])}
    found = costs.exponent(points)
    assert found is not None and abs(found[0] - power) < 5 * found[1] < 0.2
    assert costs.exponent({1: [1.0], 2: [2.0]}) is None


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-1130.2639, 3, "−1130.264"),
        (-0.0001, 3, "0.000"),
        (12345.6, 1, "12\u202f345.6"),
        (2.5, 1, "2.5"),
        (0, 2, "0.00"),
    ],
)
def test_numbers(value, decimals, text):
    assert tables.plain(value, decimals) == text
    assert tables.plain(1.0, 1, sign=True) == "+1.0"


@pytest.mark.parametrize("scale", ["linear", "log", "both"])
@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e3), (0.07, 0.13), (2.0, 16.0), (0.5, 5e4), (1.0, 1.0 + 1e-3)])
def test_ticks_are_few_and_apart(low, high, scale):
    axis = charts.Axis(-high if scale == "both" else low, high, 0, 300, scale, 0.01)
    ticks = charts._apart(axis, axis.ticks())
    assert 1 <= len(ticks) <= 9 and all(axis.low <= t <= axis.high * (1 + 1e-9) for t in ticks)
    places = sorted(map(axis, ticks))
    assert all(b - a >= 30 for a, b in itertools.pairwise(places))


def test_short_numbers():
    numbers = [0, 0.001, 0.25, 7, 1000, 1500, 4000, 128000, -2e6, 1e-5]
    assert [charts.short(n) for n in numbers] == [
        "0", "0.001", "0.25", "7", "1k", "1.5k", "4k", "128k", "−2M", "1e−5"
    ]  # fmt: skip


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_can_be_told_from_the_paper(scheme):
    """WCAG 2: 4.5 for text, 3 for what is drawn."""
    sheet = (_report.TEMPLATES / "report.css").read_text(encoding="utf-8")
    roots = re.findall(r":root \{(.*?)\}", sheet, re.S)
    assert len(roots) == 3
    colours = dict(re.findall(r"--(\w+): (#\w+);", roots[("light", "dark", "print").index(scheme)]))
    colours = {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in colours.items()}
    for name in ("ink", "dim", "link", "bad", "warn"):
        for ground in ("paper", "soft"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    series = [colours[f"c{i}"] for i in range(8)]
    assert all(contrast(c, colours["paper"]) >= 3 for c in series) and len(set(series)) == 8
    assert not re.search(
        r"#[0-9a-f]{3,6}\b", re.sub(r":root \{.*?\}", "", sheet, flags=re.S).replace("#fff", "").replace("#cells", "")
    )


# ---- a page of results made up here ----------------------------------------------------------------------------------


def evidence(value: float, kind: str = "exact", se: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"value": value, "se": se, "kind": kind, "per_datum_mean": value / 272, **more}


def fit(claimed: Any, verified: Any, **more: Any) -> dict[str, Any]:
    out = {"log_evidence": claimed, "verified_log_evidence": verified, "n": 272, "khat": None, "seconds": 0.5}
    return {**out, "peak_memory_mb": 400.0, "warnings": [], "notes": {}, "converged": True, **more}


class Suite:
    """Cells with their outcomes, put into a results folder."""

    def __init__(self, folder: Path) -> None:
        self.results, self.cells, self.outcomes = _folder.Results(folder), [], []

    def add(self, content: dict[str, Any], result: Any = None, status: str = "ok", reason: str | None = None) -> None:
        self.cells.append(_cells.Cell(content))
        self.outcomes.append((status, reason, result))

    def method(self, method: str, result: Any, seed: int = 0, model: str = "gmm", **more: Any) -> None:
        self.add(content_of(method, seed, model), result, **more)

    def write(self) -> Path:
        self.results.begin("made-up", "made-up.toml", "First line.\n\nMore of it, with `code`.", self.cells)
        around = {"versions": {"torch": "2"}, "machine": {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "Linux"}}
        for cell, (status, reason, result) in zip(self.cells, self.outcomes, strict=True):
            if status == "missing":
                continue
            with self.results.workspace(cell.id) as work:
                for name in (result or {}).get("pictures", []):
                    (work / "pictures").mkdir(exist_ok=True)
                    picture(work / "pictures" / name)
                document = {"status": status, "reason": reason, "result": result, "date": "2026-01-02", **around}
                self.results.write(cell.content, {**document, "wall_seconds": 1.0}, work)
        return self.results.folder


def content_of(method: str, seed: int = 0, model: str = "gmm", kind: str = "fit") -> dict[str, Any]:
    options = {"components": 2} if model == "gmm" else {}
    program = {"model": model, "model_options": options, "data": {"name": "faithful"}}
    return {"kind": kind, **program, "method": method, "method_options": {}, "seed": seed}


def picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def made_up(tmp_path):
    """One of everything."""
    s = Suite(tmp_path / "results")
    for seed in range(3):
        s.method(
            "em", fit(evidence(-1130.264), evidence(-1130.264), pictures=["clusters.png"] if not seed else []), seed
        )
        khat = {"khat": {"max": 0.9, "frac_above_0.7": 0.1}, "khat_quantiles": [0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.9]}
        near = fit(
            evidence(-1130.4, "estimate", 0.2), evidence(-1130.3 - seed), ess_quantiles=[1, 2, 3, 4, 5, 6, 7], **khat
        )
        s.method("importance", near, seed)
        s.method("svi", fit(evidence(-1129.0 - seed, "lower bound"), None), seed)
    s.method("laplace", None, status="refused", reason="laplace cannot: <script>alert(1)</script>")
    s.method("ais", None, status="timeout", reason="not done within 3 s")
    s.method(
        "em",
        fit(evidence(-9.0, given="the mode of a, b"), evidence(-9.0, given="the mode of a, b")),
        model="other & one",
    )
    s.method("laplace", fit(evidence(-12.0, "estimate", 0.1), evidence(-12.1)), model="other & one")
    theta = content_of("em")
    for method, claimed in (
        ("em", evidence(-5.0)),
        ("svi", evidence(-4.0, "lower bound")),
        ("importance", evidence(-5.1, "estimate", 0.1)),
    ):
        s.add({**content_of(method, kind="infer"), "theta": theta}, fit(claimed, evidence(-5.0)))
    for share in (0.1, 0.3):
        for seed in range(2):
            scores = {
                "rmse": 0.5 + share + 0.01 * seed,
                "rmse_se": 0.01,
                "mae": 0.4,
                "coverage": 0.88,
                "width": 1.5,
                "hidden": 30,
            }
            held = {"value": -30.0, "se": 0.0, "kind": "exact", "per_entry": -1.0}
            imputed = {**content_of("em", seed, kind="impute"), "hide": f"random:{share}", "draws": 19}
            s.add(imputed, {**fit(evidence(-9.0), evidence(-9.0)), **scores, "held_out": held})
            mean = {
                "rmse": 1.0,
                "mae": 0.8,
                "coverage": None,
                "width": None,
                "hidden": 30,
                "n": 9,
                "seconds": 0.1,
                "warnings": [],
            }
            base = {
                "kind": "impute",
                "data": {"name": "faithful"},
                "method": "mean",
                "method_options": {},
                "baseline": True,
            }
            s.add({**base, "hide": f"random:{share}", "draws": 19, "seed": seed}, mean)
    for n in (100, 200, 400, 800):
        scale = {
            **content_of("em", kind="scaling"),
            "data": {"name": "synthetic", "n": n, "d": 2},
            "axis": "n",
            "at": n,
        }
        s.add(scale, {**fit(evidence(-9.0), evidence(-9.0), seconds=n / 1e4), "extra_memory_mb": n / 10})
    peer = {
        "ratio": 0.5,
        "ratios": {"sklearn": {"median": 0.5, "min": 0.4, "max": 0.6}},
        "seconds": {"zoo": 1.0, "sklearn": 2.0},
    }
    s.add(
        {"kind": "benchmark", "name": "peers/em", "options": {}},
        {**peer, "skipped": ["x is not installed"], "what": "EM"},
    )
    old = {"ratio": 1.5, "ratio_min": 1.25, "ratio_max": 1.75, "ours_seconds": 3.0, "peer_seconds": 2.0, "threads": 1}
    s.add({"kind": "benchmark", "name": "peers/old", "options": {}}, old)
    s.add({"kind": "benchmark", "name": "odd", "options": {}}, {"number": 3.5, "word": "w", "deep": {"not": "shown"}})
    s.method("em", None, seed=77, status="missing")
    return s.write()


class Page(HTMLParser):
    """Tables as rows of text, headings, links, and every address that is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.scripts = 0
        self._text: list[str] | None = None
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.addresses += [given[a] for a in ("src", "href", "action", "data") if given.get(a)]
        self.ids |= {given["id"]} if "id" in given else set()
        self.scripts += tag == "script"
        if tag not in ("meta", "link", "img", "br", "circle", "polygon", "polyline", "line", "path"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th", "h2"):
            self._text = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("meta", "link", "img", "br", "circle", "polygon", "polyline", "line", "path"):
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._text or []).strip())
        if tag == "h2":
            self.headings.append(" ".join("".join(self._text or []).split()))

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)


def page_of(folder: Path) -> Page:
    return Page(_report.write(folder).read_text(encoding="utf-8"))


def test_the_structure_of_the_page(made_up):
    page = page_of(made_up)
    assert page.headings == [
        "Overview",
        "gmm components=2 on faithful",
        "other & one on faithful",
        "gmm components=2 on faithful, at one θ",
        "Imputation: faithful",
        "Costs",
        "Peers",
        "Every cell",
    ]
    overview, leaderboard = page.tables[:2]
    assert overview[0] == ["program", "em", "importance", "svi", "laplace"]
    assert overview[1] == ["gmmcomponents=2 on faithful", "=\u20090.00", "=\u20091.04", "≤\u2009−0.26", "refused"]
    assert leaderboard[0] == [
        "rank", "method", "log p(x)", "kind", "interval", "claimed", "claim", "gap", "k-hat", "> 0.7", "ESS",
        "seconds", "MB", "seeds",
    ]  # fmt: skip
    assert [(row[0], row[1], row[3]) for row in leaderboard[1:]] == [
        ("1", "em", "exact"),
        ("2", "importance", "exact"),
        ("3", "svi", "bound"),
    ]
    assert leaderboard[1][2] == "=\u2009−1130.264" and leaderboard[1][4] == "" and leaderboard[1][13] == "3"
    assert leaderboard[2][4] == "−1132.30 … −1130.30" and leaderboard[2][8:11] == ["0.90", "10.0%", "4"]
    assert leaderboard[3][2] == "≥\u2009−1130.000" and leaderboard[3][7] == "–"


def test_bounds_and_ties_on_the_page(made_up):
    page = page_of(made_up)
    swapped = page.tables[4]
    assert [(row[0], row[1]) for row in swapped[1:]] == [("1=", "em"), ("1=", "importance"), ("3", "svi")]
    column = swapped[0].index("claimed")
    assert [row[column] for row in swapped[1:]] == ["=\u2009−5.000", "≈\u2009−5.100", "≥\u2009−4.000"]


def test_what_is_given_different_things_is_not_compared(made_up):
    page = page_of(made_up)
    em, laplace = sorted(page.tables[2:4], key=lambda t: t[1][1])
    assert [len(em), len(laplace)] == [2, 2] and em[1][0] == laplace[1][0] == "1"


def test_the_other_parts(made_up):
    page = page_of(made_up)
    imputed, imputed_more, costs, peers, odd, every = page.tables[5:]
    assert [row[:2] for row in imputed[1:]] == [["1", "gmm, emcomponents=2"], ["2", "mean"]]
    assert len(imputed_more) == 3
    assert costs[1][0] == "gmmcomponents=2" and costs[1][6].startswith("n^1.00 ± 0.0")
    assert peers[1][:5] == ["EM", "sklearn", "0.500", "0.400", "0.600"]
    assert peers[2][:7] == ["peers/old", "by hand", "1.500", "1.250", "1.750", "3.00", "2.00"]
    assert ["number", "3.5"] in odd and not any("deep" in row for row in odd)
    assert len(every) == 1 + len(_folder.Results(made_up).collected()["cells"])


def test_the_page_needs_nothing_besides_itself(made_up):
    text = _report.write(made_up).read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.ids
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.scripts == 1 and "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count("data:image/png;base64,") == 1
    assert "other &amp; one" in text and "not done within 3 s" in text and "x is not installed" in text
    assert str(made_up) not in text


def test_when_pictures_are_too_many_every_group_shows_some(tmp_path, monkeypatch):
    from PIL import Image

    def group(*runs: str) -> SimpleNamespace:
        cells = [{"id": run, "cell": {"seed": 0}, "result": {"pictures": ["a.png", "b.png"]}} for run in runs]
        for run in runs:
            (tmp_path / "pictures" / run).mkdir(parents=True)
            for name in ("a.png", "b.png"):
                Image.new("RGB", (2, 2)).save(tmp_path / "pictures" / run / name)
        return SimpleNamespace(pictures=lambda: [(cell["id"], cell) for cell in cells])

    monkeypatch.setattr(_report, "PICTURES", 5)
    groups = [group("first", "second"), group("third", "fourth")]
    album = _report._Album(tmp_path, groups)
    shown = [(run.row, [name for name, *_ in run.pictures]) for g in groups for run in album.of(g)]
    assert shown == [("first", ["a", "b"]), ("second", ["a"]), ("third", ["a", "b"])]
    assert album.left_out == 3


def test_a_page_of_a_kept_document(made_up, tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text(_folder.text_of(_folder.Results(made_up).collected()), encoding="utf-8")
    page = _report.write(kept, tmp_path / "kept.html").read_text(encoding="utf-8")
    assert Page(page).headings == page_of(made_up).headings and "data:image/png" not in page


def test_the_command(made_up, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    done = run(app, ["report", "results", "--out", "a folder/page φ.html", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"page": "a folder/page φ.html"}
    assert Path("a folder/page φ.html").stat().st_size > 10_000
    for arguments, says in (
        (["report"], "there are no results in 'results'"),
        (["report", "nothing"], "'nothing' holds no results"),
        (["report", "."], "'.' holds several suites; name one: results"),
        (["report", "a folder/page φ.html"], "Expected the output of `zoo bench SUITE --json` in"),
        (["report", "results", "--out", "results/suite.json/page.html"], "cannot write"),
    ):
        done = run(app, arguments)
        assert done.exit_code == 2 and says in " ".join(done.stderr.split()), (arguments, done.stderr)
    Path("results").rename("moved")
    Path("results").mkdir()
    Path("moved").rename("results/made-up")
    assert run(app, ["report"]).exit_code == 0 and Path("results/made-up/report.html").is_file()


def test_tables_for_the_readme(made_up, tmp_path, monkeypatch):
    document = _folder.Results(made_up).collected()
    assert "| EM | sklearn | 0.500 | 0.400 to 0.600 |" in markdown.peers(document)
    assert "| gmm components=2 on faithful | `svi` | ≥\u2009−4.000 | bound | +1.000 | – |" in markdown.methods(document)
    assert "| faithful | gmm, em components=2 | 0.605 (88.0%) | 0.805 (88.0%) |" in markdown.missing(document)
    assert "| `gmm components=2` | `em` | n | 100 | 800 | n^1.00 ± " in markdown.scaling(document)
    images = {"particles": 1, "epochs": 400, "training_seconds": 5400.0, "test_nats": 87.39, "test_nats_se": 0.003}
    table = mnist_dlg.table({**images, "published_nats": 86.76}, {**images, "particles": 50, "published_nats": None})
    assert (
        "| ELBO | 87.390 ± 0.003 | 86.76 | 400 epochs, 1.5 h |" in table
        and "50 particles | 87.390 ± 0.003 | – |" in table
    )
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "tables", lambda results: {})
    before = "a\n<!-- table peers: zoo bench peers -->\nold\n<!-- end of table peers -->\nb"
    with pytest.raises(ValueError, match="a place for a table 'peers', and there are no results"):
        readme.rewritten(before, {})
    (tmp_path / "peers.json").write_text(_folder.text_of(document), encoding="utf-8")
    after = readme.rewritten(before, {})
    assert (
        "| EM | sklearn |" in after
        and "\nold\n" not in after
        and after.endswith("\nb")
        and readme.rewritten(after, {}) == after
    )


@pytest.mark.parametrize("path", sorted(p for p in readme.RESULTS.glob("*.json") if p.stem in _names.suites()))
def test_kept_results_make_a_page(path, tmp_path):
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["suite"] == path.stem and not document["counts"].get("missing")
    assert document["versions"] and document["machine"] and document["date"]
    assert page_of_file(path, tmp_path).headings[-1] == "Every cell"


def page_of_file(path: Path, folder: Path) -> Page:
    return Page(_report.write(path, folder / "page.html").read_text(encoding="utf-8"))


def test_a_folder_of_a_newer_version(made_up):
    path = made_up / "suite.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 9'))
    with pytest.raises(UsageError, match="newer version"):
        _report.write(made_up)


def test_nothing_at_all_is_a_page_too(tmp_path):
    s = Suite(tmp_path / "results")
    s.method("em", None, status="missing")
    page = page_of(s.write())
    assert page.headings == ["gmm components=2 on faithful", "Every cell"]


def test_curves_of_more_methods_than_colours():
    names = [f"m{i}" for i in range(20)]
    series = _report._Series()
    found = [figures.Curve(n, series(n), {1.0: [1.0 + i], 2.0: [2.0]}) for i, n in enumerate(names)]
    figure = figures.curves(found, "t", "x", "y", "c")
    assert figure is not None and len({charts.swatch(c.series) for c in found}) == 20
    assert set(re.findall(r'"s(\d+) ', figure.svg)) <= {str(i) for i in range(8)}


def test_infinite_khat():
    infinite = fit(evidence(1.0), None, khat={"max": None, "frac_above_0.7": 1.0})
    finite = fit(evidence(1.0), None, khat={"max": 0.5, "frac_above_0.7": 0.0})
    cells = [{"cell": content_of("importance"), "status": "ok", "result": r} for r in (finite, infinite)]
    row = fits.row("importance", cells, "verified_log_evidence", 0)
    assert leaderboard.khat(row.khat).text == "∞" and row.khat_above == 0.0
    assert imputation._t95(4) == pytest.approx(2.776, abs=1e-3)


# ---- in a browser ----------------------------------------------------------------------------------------------------

VISIBLE = """[...document.querySelectorAll('table')][1].tBodies[0]"""


@needs_browser
def test_in_a_browser(made_up, tmp_path):
    """No complaint on the console, nothing asked of a network, tables sort, pictures load, nothing sticks out."""
    page = _report.write(made_up)
    first_column = f"[...{VISIBLE}.rows].map(r => r.cells[1].textContent.trim())"

    def click(column: int) -> str:
        return tab.run(
            f"document.querySelectorAll('table')[1].tHead.rows[0].cells[{column}].firstElementChild.click(), {first_column}"
        )

    with browser.page() as tab:
        for width in (360, 800, 1400):
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme=scheme)
                assert tab.run("document.documentElement.scrollWidth") <= width, (width, scheme)
        ground = tab.run("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(22, 22, 20)"
        assert tab.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)") is True
        assert tab.run("document.images.length") == 1
        assert tab.run(first_column) == ["em", "importance", "svi"]
        assert click(2) == ["importance", "em", "svi"]  # log p(x), ascending
        assert tab.run("document.querySelectorAll('table')[1].tHead.rows[0].cells[2].ariaSort") == "ascending"
        assert click(2) == ["svi", "em", "importance"]
        assert click(2) == ["em", "importance", "svi"]
        assert click(7)[-1] == "svi"  # where there is nothing to sort by comes last
        assert click(1) == ["em", "importance", "svi"] and click(1) == ["svi", "importance", "em"]
        assert tab.run("[...document.querySelectorAll('svg.chart')].every(s => s.getBoundingClientRect().height > 40)")
        tab.run("dispatchEvent(new Event('beforeprint'))")
        assert tab.run("[...document.querySelectorAll('details')].every(d => d.open)")
        tab.run("dispatchEvent(new Event('afterprint'))")
        assert tab.run("document.querySelectorAll('details[open]').length") == 1
        tab.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert tab.complaints == []
