"""Messy tables: kinds of files and frames, columns in roles, what columns look like, and the same columns in new data."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference import infer, load, run
from inference._run.prepare import prepare
from inference._run.request import Request
from zoo._data import datasets, text
from zoo._errors import UsageError

nan = np.nan
N = 12
RNG = np.random.default_rng(0)
MESSY = pd.DataFrame(
    {
        "id": [f"{i:03d}" for i in range(N)],
        "born": [f"2020-01-{i + 1:02d}" for i in range(N)],
        "smoker": ["yes", "no"] * (N // 2),
        "species": ["a", "b", "c"] * (N // 3),
        "h": [999.0, *RNG.normal(size=N - 1).round(2)],
        "age": RNG.integers(20, 60, N).astype(float),
        "w": RNG.integers(1, 4, N),
    }
)
ROLES = {"rows_by": "id", "labels": "species", "drop": "born,smoker", "weights": "w", "na": [999]}
X = MESSY[["h", "age"]].where(MESSY[["h", "age"]] != 999).to_numpy()


def is_messy(d: datasets.Dataset) -> None:
    np.testing.assert_array_equal(d.x, X)
    assert d.columns == ("h", "age") and d.row_names[:2] == ("000", "001")
    assert d.labels.tolist() == MESSY["species"].tolist() and d.weights.tolist() == MESSY["w"].tolist()


def refused(*given, **options) -> str:
    with pytest.raises(UsageError) as caught:
        datasets.load(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- files


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("messy.csv", content)
        return buffer.getvalue()
    how = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    return how.get(Path(name).suffix, bytes)(content)


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.txt", "m.csv.gz", "m.tsv.xz", "m.csv.bz2", "m.zip", "m.csv.zip"])
def test_text_files_packed_or_not(tmp_path, name):
    content = MESSY.to_csv(index=False, sep="\t" if ".tsv" in name else ",")
    (tmp_path / name).write_bytes(packed(name, content.encode()))
    d = datasets.load(tmp_path / name, **ROLES)
    is_messy(d)
    assert d.name == "m"


def test_a_packed_array(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, X)
    (tmp_path / "m.npy.gz").write_bytes(gzip.compress(buffer.getvalue()))
    np.testing.assert_array_equal(datasets.load(tmp_path / "m.npy.gz").x, X)


PLAIN_OR_NOT = (
    "a,b\n1,2\n3,4.5e-1\n",
    "a,b\r\n1,NA\r\n?,4\r\n-, 5\r\n",
    "id,b\n001,2\n002,3\n",
    "s,b\nNone,2\nx,3\n",
    "s,b\ntrue,2\nfalse,3\n",
    "a,b\n1_000,2\n3,4\n5,6\n",
    "a,b\n1,2\n3,dog\n4,5\n",
    "a,b\n1,2\n\n3,4\n",
    "a,b\n1,2\n3\n",
    "a,b\n1,inf\n2,3\n",
    "a,b\n1,1e400\n2,3\n",
    "a,b\n0x10,1\n2,3\n",
    "a,b\n1 ,2\n 3,4 \n",
    "a;b\n1,5;2\n3;4\n",
    "a\tb\n1\t2\n",
    "a,a\n1,2\n3,4\n",
    "a,b,\n1,2,\n",
    ",a,b\n0,5,6\n1,7,8\n",
    "2020,2021\n1.5,2.5\n",
    "a,b\n9007199254740993,1\n18446744073709551616,2\n",
    "a,b\nnan,1\n#N/A,<NA>\n3,4\n",
    "a,b\n+1,-2\n1.,.5\n",
    "a,b\n,\n1,2\n",
    "a,b\n1 234,2\n3,4\n",
    "a,b\n1e5,1E-3\n1d5,2\n3,3\n",
    "d,b\n2020-01-01,1\n2021-01-01,2\n",
    "\ufeffa b,b\n1,2\n",
    "a,b\n5,true\n6,7\n8,9\n",
)


@pytest.mark.parametrize("roles", [{}, {"labels": "s"}, {"rows_by": "id"}])
def test_large_files_are_read_as_small_ones(tmp_path, monkeypatch, roles):
    """By pandas, where they are plain: the same numbers, to the last bit, the same names, warnings and errors."""
    x = RNG.normal(size=(50, 4)) * 10.0 ** RNG.integers(-300, 140, (50, 4))
    table = "p,q,r,s\n" + "\n".join(",".join(repr(float(v)) for v in row) for row in x)
    for content in (*PLAIN_OR_NOT, table):
        (tmp_path / "t.csv").write_text(content, newline="")
        found = []
        for large in (10**9, 0):
            monkeypatch.setattr(text, "LARGE", large)
            try:
                d = datasets.load(tmp_path / "t.csv", **roles)
                found.append(
                    (d.x.tobytes(), d.columns, d.row_names, None if d.labels is None else d.labels.tolist(), d.warnings)
                )
            except UsageError as error:
                found.append(str(error))
        assert found[0] == found[1], content


@pytest.mark.parametrize("kind", ["csv", "gz", "npy"])
def test_standard_input(monkeypatch, kind):
    content = packed(f"m.{kind}", MESSY.to_csv(index=False).encode())
    if kind == "npy":
        np.save(buffer := io.BytesIO(), X)
        content = buffer.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    d = datasets.load("-", **({} if kind == "npy" else ROLES))
    np.testing.assert_array_equal(d.x, X)
    assert d.name == "stdin" and d.options["source"].startswith("standard input, sha256 ")


def test_packed_files_that_cannot_be_used(tmp_path):
    for name in ("m.csv.gz", "m.csv.xz", "m.csv.bz2", "m.zip"):
        (tmp_path / name).write_bytes(b"not packed")
        assert "cannot be unpacked" in refused(tmp_path / name) or "holds" in refused(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "1")
        archive.writestr("b.csv", "1")
    assert "holds 2 files (a.csv, b.csv); pack one" in refused(tmp_path / "two.zip")


@pytest.mark.parametrize(
    ("name", "needs"), [("m.parquet", "pyarrow"), ("m.feather", "pyarrow"), ("m.xlsx", "openpyxl")]
)
def test_what_pandas_reads_or_the_package_to_install(tmp_path, name, needs, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, needs, None)  # as where it is not installed
    assert f"needs the package {needs}: install it (pip install {needs})." in refused(path)


@pytest.mark.parametrize("name", ["m.parquet", "m.feather", "m.xlsx"])
def test_files_of_other_programs(tmp_path, name):
    pytest.importorskip({"m.xlsx": "openpyxl"}.get(name, "pyarrow"))
    {"m.parquet": MESSY.to_parquet, "m.feather": MESSY.to_feather}.get(name, MESSY.to_excel)(tmp_path / name)
    is_messy(datasets.load(tmp_path / name, **ROLES))


def test_a_folder_of_parts_is_one_table(tmp_path, monkeypatch):
    """As Dask and Spark write it; by a stand-in for the package that reads Parquet."""
    monkeypatch.setattr(
        pd, "read_parquet", lambda content: pd.read_csv(content, dtype={"id": str}, keep_default_na=False)
    )
    folder = tmp_path / "many parts.parquet"
    folder.mkdir()
    for name, part in {"part.1.parquet": MESSY[8:], "part.0.parquet": MESSY[:8], "_SUCCESS": MESSY[:0]}.items():
        part.to_csv(folder / name, index=False)
    whole = datasets.load(folder, **ROLES)
    is_messy(whole)
    assert whole.name == "many parts" and ", 2 parts, sha256 " in str(whole.options["source"])
    MESSY[:8].rename(columns={"id": "key"}).to_csv(folder / "part.2.parquet", index=False)
    assert "have different columns: id, " in refused(folder, **ROLES)
    (folder / "part.0.parquet").write_bytes(b"")
    assert "part.0.parquet' cannot be read as a .parquet file" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "is a folder without .parquet or .pq" in refused(tmp_path / "empty")


def test_a_sheet_is_read_as_a_text_file_is(tmp_path, monkeypatch):
    """A header, marks of missing values in text, an empty row; by a stand-in for the package that reads the file."""

    class Book:
        sheet_names = ["first", "second"]

        def __init__(self, content, engine):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def parse(self, sheet, **options):
            return pd.DataFrame([["a", "who"], [1, "x"], [nan, nan], ["N/A", "y"]], dtype=object)

    monkeypatch.setattr(pd, "ExcelFile", Book)
    (tmp_path / "m.xlsx").write_bytes(b"")
    d = datasets.load(tmp_path / "m.xlsx", labels="who")
    np.testing.assert_array_equal(d.x, [[1], [nan]])
    assert d.labels.tolist() == ["x", "y"] and d.warnings[0].endswith("has 2 sheets; the first, 'first', was read.")
    assert "lines 4" in d.warnings[1] or "line 4" in d.warnings[1]


@pytest.mark.parametrize(
    "written",
    [
        "mpg cyl\nMazda 21 6\nDatsun 22 4\n",
        '"","mpg","cyl"\n"Mazda",21,6\n"Datsun",22,4\n',
        "  mpg   cyl\nMazda 21 6\nDatsun 22   4\n",
    ],
)
def test_tables_that_r_wrote_keep_the_names_of_their_rows(tmp_path, written):
    (tmp_path / "cars.txt").write_text(written)
    d = datasets.load(tmp_path / "cars.txt")
    assert (d.x.tolist(), d.columns, d.row_names) == ([[21, 6], [22, 4]], ("mpg", "cyl"), ("Mazda", "Datsun"))
    assert "has no name; it names the rows, and is not fitted." in d.warnings[0]


def test_years_beside_a_word_are_a_header(tmp_path):
    (tmp_path / "y.csv").write_text("city,2020,2021\nBerlin,1.5,2\nParis,2.5,3.1\n")
    d = datasets.load(tmp_path / "y.csv", rows_by="city")
    assert (d.x.tolist(), d.columns, d.row_names) == ([[1.5, 2], [2.5, 3.1]], ("2020", "2021"), ("Berlin", "Paris"))
    assert "line 1 (city, 2020, 2021) was read as names of the columns" in d.warnings[0]


def test_a_table_without_a_header_may_have_text(tmp_path):
    (tmp_path / "iris.data").write_text("5.1,3.5,setosa\n4.9,3.0,setosa\n6.3,3.3,virginica\n5.8,2.7,virginica\n")
    assert "Use --labels x2 (in Python" in refused(tmp_path / "iris.data")
    d = datasets.load(tmp_path / "iris.data", labels="x2")
    assert d.x.shape == (4, 2) and d.labels.tolist() == ["setosa", "setosa", "virginica", "virginica"]


def test_nameless_empty_columns_are_dropped_and_told(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,\n1,2,\n3,4,\n")
    d = datasets.load(tmp_path / "t.csv")
    assert d.columns == ("a", "b") and d.warnings[0].endswith("without a name and without a cell were dropped: 1.")


# ---- frames


class Polars:
    """A stand-in with the interface of a polars frame that is used here."""

    columns = list(MESSY.columns)

    def to_dict(self):
        return {name: MESSY[name].to_numpy() for name in MESSY}


class Arrow:
    """The same for a pyarrow table."""

    column_names = list(MESSY.columns)

    def column(self, name):
        return MESSY[name].to_numpy()


class Lazy:
    """The same for a lazy frame."""

    def collect_schema(self):
        raise AssertionError

    def collect(self):
        return Polars()


@pytest.mark.parametrize(
    "frame",
    [
        MESSY,
        MESSY.convert_dtypes(),
        MESSY.set_index("h", drop=False),
        Polars(),
        Arrow(),
        Lazy(),
        MESSY.to_records(index=False),
        MESSY.astype({"species": "category", "id": "string"}),
        MESSY.rename_axis("row").to_xarray(),
    ],
)
def test_frames_of_every_kind(frame):
    is_messy(datasets.load(frame, **ROLES))


def test_frames_of_the_real_libraries():
    pl = pytest.importorskip("polars")
    frame = pl.from_dict({name: MESSY[name].tolist() for name in MESSY})
    is_messy(datasets.load(frame, **ROLES))
    is_messy(datasets.load(frame.lazy(), **ROLES))
    np.testing.assert_array_equal(
        datasets.load(pl.DataFrame({"a": [1, None], "b": [True, None]})).x, [[1, 1], [nan, nan]]
    )


def test_an_index_names_the_rows():
    assert datasets.load(MESSY.set_index("id")[["h", "age"]]).row_names[:2] == ("000", "001")
    assert datasets.load(MESSY[["h", "age"]]).row_names is None
    assert datasets.load(MESSY[["h", "age"]].iloc[5:7]).row_names == ("5", "6")


def test_xarray_keeps_its_names():
    array = xr.DataArray(np.eye(2), dims=["row", "column"], coords={"column": ["u", "v"], "row": ["p", "q"]})
    d = datasets.load(array)
    assert (d.x.tolist(), d.columns, d.row_names) == ([[1, 0], [0, 1]], ("u", "v"), ("p", "q"))
    assert datasets.load(xr.DataArray(np.zeros((2, 3, 3)))).x.shape == (2, 3, 3)
    assert "Expected variables along one dimension, the rows" in refused(
        xr.Dataset({"a": ("i", [1.0]), "b": ("j", [1.0])})
    )


def test_text_in_objects_is_read_as_in_files():
    frame = pd.DataFrame({"a": pd.Series(["1.5", "?", "N/A", 2], dtype=object), "b": [1, 2, 3, 4]})
    np.testing.assert_array_equal(datasets.load(frame).x, [[1.5, 1], [nan, 2], [nan, 3], [2, 4]])


# ---- columns in roles


def test_columns_are_fitted_in_the_order_given():
    d = datasets.load(MESSY, columns=["age", "h"], rows_by="id")
    assert d.columns == ("age", "h") and d.options["columns"] == ["age", "h"] and d.options["rows_by"] == "id"
    assert datasets.load(MESSY, columns="age, h", covariates="age").columns == ("h", "age")
    odd = pd.DataFrame({"a,b": [1.0, 2.0], "c": [3.0, 4.0]})
    assert datasets.load(odd, columns="a,b").columns == ("a,b",)
    assert datasets.load(odd, drop=["a,b"]).columns == ("c",)
    assert datasets.load(pd.DataFrame(np.eye(2), columns=["a", "a"]).assign(b=1.0), drop="a").columns == ("b",)


def test_roles_go_with_the_rows():
    d = datasets.load(MESSY, rows=5, seed=1, **ROLES)
    at = [int(name) for name in d.row_names]
    np.testing.assert_array_equal(d.x, X[at])
    assert d.labels.tolist() == MESSY["species"][at].tolist() and d.weights.tolist() == MESSY["w"][at].tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"drop": "nam"}, "unknown column 'nam' of the table; known: age, born"),
        ({"drop": "id", "rows_by": "id"}, "Expected one role for column 'id' of the table, got rows_by and drop"),
        ({"columns": "id,h", "rows_by": "id"}, "got rows_by and columns"),
        ({"columns": "h,h"}, "Expected each column once in columns, got 'h' twice."),
        ({"columns": "h", "covariates": "h"}, "no column of the table is left to fit"),
        ({"weights": "w", "labels": "w"}, "Expected a column of its own for weights"),
        (
            {"weights": "age", "columns": "h", "na": [MESSY["age"][2]]},
            "row 2 (counting from 0), column 'age': Expected a weight",
        ),
        ({"weights": "h", "columns": "age"}, "column 'h': Expected a weight, a number that is zero or more, got -"),
        ({"columns": 3.5}, "Expected names of columns for columns, got 3.5."),
        ({"labels": ["a"]}, "Expected the name of a column for labels, got ['a']."),
        ({"na": [None]}, "Expected numbers or words for na, got [None]."),
        ({"columns": "h", "categories": "smoker"}, "Expected categories among the columns to fit, got 'smoker'"),
    ],
)
def test_roles_that_do_not_fit(options, says):
    assert says in refused(MESSY, **options)


def test_roles_of_data_without_names():
    assert "the data set 'digits' has no columns with names" in refused("digits", drop="a")
    d = datasets.load(np.arange(12.0).reshape(4, 3), drop="x1", weights="x2")
    assert d.x.tolist() == [[0], [3], [6], [9]] and d.weights.tolist() == [2, 5, 8, 11]
    d = datasets.load("iris", columns="petal width (cm)")
    assert d.x.shape == (150, 1) and len(d.labels) == 150


def test_labels_keep_their_kind():
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "i": [3, 1, 2], "f": [0.5, nan, 1], "s": ["None", "b", None]})
    assert datasets.load(frame, labels="i", columns="x").labels.dtype == np.int64
    np.testing.assert_array_equal(datasets.load(frame, labels="f", columns="x").labels, [0.5, nan, 1])
    assert datasets.load(frame, labels="s", columns="x").labels.tolist() == ["None", "b", ""]


def test_names_of_rows_that_repeat_or_lack_are_told():
    d = datasets.load(pd.DataFrame({"i": ["a", "a", None], "x": [1.0, 2.0, 3.0]}), rows_by="i")
    assert d.row_names == ("a", "a", "") and len(d.warnings) == 2 and "1 of 3 rows" in d.warnings[0]


def test_marks_of_missing_values(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,n.d.\n-9,4\n3,-9.0\n")
    d = datasets.load(tmp_path / "t.csv", na=["n.d.", -9])
    np.testing.assert_array_equal(d.x, [[1, nan], [nan, 4], [3, nan]])
    assert d.options["na"] == ["n.d.", -9] and not d.warnings
    assert datasets.load(tmp_path / "t.csv", na=["n.d.", "-9"]).x.tolist()[2][0] == 3
    assert datasets.load([[1.0, 2.0]], na=5).warnings == ("na=5 matches no entry of the array.",)
    x = np.array([[1.0, 5.0], [2.0, 3.0]])
    np.testing.assert_array_equal(datasets.load(x, na=5).x, [[1, nan], [2, 3]])
    assert x[0, 1] == 5  # the caller's own


def test_a_mapped_file_stays_on_the_disk(tmp_path, monkeypatch):
    from zoo._data import mapped

    monkeypatch.setattr(mapped, "MAPPED", 100)
    np.save(tmp_path / "t.npy", np.arange(60.0).reshape(20, 3))
    d = datasets.load(tmp_path / "t.npy", na=4)
    assert mapped.is_private(d.x) and np.isnan(d.x[1, 1]) and np.load(tmp_path / "t.npy")[1, 1] == 4


def test_categories_become_numbers():
    d = datasets.load(MESSY, columns="smoker,species,h", categories=["smoker", "species"])
    assert d.x[:3, 0].tolist() == [1, 0, 1] and d.x[:3, 1].tolist() == [0, 1, 2]
    assert d.options["categories"] == {"smoker": ["no", "yes"], "species": ["a", "b", "c"]}
    assert "the categories of column 'smoker' are numbers in x: no 0, yes 1." in d.warnings
    d = datasets.load(pd.DataFrame({"c": [10, 9, None, 2]}), categories="c")
    np.testing.assert_array_equal(d.x[:, 0], [2, 1, nan, 0])


# ---- what columns look like


def test_columns_of_text_are_named_all_at_once():
    said = refused(MESSY.assign(id=["r" + i for i in MESSY["id"]]))
    assert said.startswith(
        "the table: 4 columns do not hold numbers: 'id' (each once: 'r000', …), 'born' (dates: '2020-01-01', …), "
        "'smoker' (no or yes), 'species' (3 classes: 'a', …). Use --rows-by id --labels species --drop born,smoker "
    )
    assert said.endswith(
        '(in Python rows_by="id", labels="species", drop="born,smoker"), or --categories smoker,species to code categories as '
        "numbers."
    )


def test_columns_of_numbers_that_look_like_something_else(tmp_path):
    rows = "".join(f"{i + 7},{i % 3},2024010{i},{i * 0.5}\n" for i in range(1, 8))
    (tmp_path / "t.csv").write_text("id,class,date,v\n" + rows)
    told = datasets.load(tmp_path / "t.csv").warnings
    assert "column 'id'" in told[0] and "use --rows-by id or --drop id." in told[0]
    assert "column 'class'" in told[1] and "use --labels class or --drop class." in told[1]
    assert "column 'date'" in told[2] and "use --drop date." in told[2] and len(told) == 3
    assert not datasets.load(tmp_path / "t.csv", rows_by="id", labels="class", drop="date").warnings


def test_counts_and_ratings_look_like_nothing_else():
    counts = pd.DataFrame({"a": RNG.poisson(3, 40), "b": RNG.integers(1, 6, 40), "year": 2000 + RNG.integers(0, 9, 40)})
    assert not datasets.load(counts).warnings


def test_a_slip_in_a_column_of_numbers_is_shown(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,n.d.\n4,n.d.\n5,6\n6,1\n")
    assert refused(tmp_path / "t.csv").endswith(
        "t.csv', line 3, column 'b': 'n.d.' is not a number (nor is 1 more of the column). Correct it, or drop the column "
        "(--drop b), or read it as missing (--na n.d.)."
    )


# ---- runs, and the same columns in new data


@pytest.fixture
def fitted(here):
    frame = MESSY.assign(id=["r" + i for i in MESSY["id"]])
    return run("gmm", frame, components=1, out="run", categories=(), **ROLES)


def test_a_run_keeps_its_roles(fitted):
    for found in (load("run"), infer("run", "em")):
        assert found.dataset.row_names[1] == "r001" and found.columns == ("h", "age")
        assert found.labels.tolist() == MESSY["species"].tolist()
        assert found.dataset.weights.tolist() == MESSY["w"].tolist()
    assert load("run").idata["observed_data"]["data"].values[1] == "r001"
    assert load("run").parameters["weights"].tolist() == [1]  # not the rows'


def test_new_data_meet_a_run_by_name(fitted):
    new = MESSY[["age", "w", "born", "h"]].head(4).assign(extra="x", other=1)
    found = infer("run", "em", data=new)
    np.testing.assert_array_equal(found.x, X[:4])  # 999 is missing there too
    assert found.columns == ("h", "age") and found.labels is None and found.dataset.row_names is None
    assert found.dataset.weights.tolist() == MESSY["w"].head(4).tolist()
    assert found.warnings[0] == "the columns 'extra', 'other' of the table are none of the run's, and were not used."
    with pytest.raises(
        UsageError, match=r"^Expected the columns h, age\. Missing: h; unknown: extra, other \(add what"
    ):
        infer("run", "em", data=new.drop(columns="h"))
    assert infer("run", "em", data=X[:3]).n == 3  # without names, by position
    named = infer("run", "em", data=new.drop(columns="w"), rows_by="born")
    assert named.dataset.row_names[0] == "2020-01-01" and named.dataset.weights is None
    with pytest.raises(UsageError, match="give labels only with other data"):
        infer("run", "em", labels="species")


def test_new_data_are_coded_as_the_run(here):
    run("gmm", MESSY, components=1, columns="species,age", categories="species", out="coded")
    found = infer("coded", "em", data=MESSY.iloc[[2, 1]])
    assert found.x[:, 0].tolist() == [2, 1]
    with pytest.raises(UsageError, match=r"column 'species': Expected a category of the run \(a, b, c\), got 'z'\."):
        infer("coded", "em", data=MESSY.head(1).assign(species="z"))


def test_covariates_stand_last_and_are_counted():
    import pyro
    import pyro.distributions as dist
    import torch

    def regression(x=None, size=None, *, covariates: int = 0):
        slope = pyro.param("slope", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(slope * x[:, -covariates:], 1.0).to_event(1), obs=x[:, :-covariates])

    prepared = prepare(regression, MESSY, {}, [], columns="age,h", covariates=["age"], na=[999])
    assert prepared.data.columns == ("h", "age") and prepared.options == {"covariates": 1}
    with pytest.raises(UsageError, match="the model 'gmm' takes no covariates"):
        run("gmm", MESSY, columns="age,h", covariates="age")
    with pytest.raises(UsageError, match="unknown option 'covariates' of the model 'gmm' or the method 'em'"):
        run("gmm", MESSY, columns="age,h", covariates=1)


def test_a_request_with_roles_can_be_written_down():
    roles = {"columns": ["a", "b,c"], "labels": "s", "rows_by": "an id", "na": [999, "none at all"], "weights": "w"}
    asked = Request("gmm", "t.csv", "em", preparation=roles)
    assert asked.command() == (
        "zoo run gmm --data t.csv --columns a --columns b,c --labels s --rows-by 'an id' --weights w --na 999 "
        "--na 'none at all' --method em --seed 0"
    )
    assert Request.from_json(asked.to_json()) == asked
