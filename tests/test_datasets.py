"""Named data sets against known facts, files against what was written, and each error by what it says."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo._data import catalogue, music
from zoo._data.catalogue import names
from zoo._data.datasets import load
from zoo._errors import UsageError

_SHARED = Path(__file__).parents[2] / "shared" / "data"
_FOLDER = os.environ.get("ZOO_DATA_DIR") or (str(_SHARED) if _SHARED.is_dir() else None)
_NEEDS = "set ZOO_DATA_DIR to a folder that holds the full data sets"
nan = np.nan


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    """Neither a folder of full sets nor a cache that holds any."""
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def full_sets(monkeypatch):
    if _FOLDER is None:
        pytest.skip(_NEEDS)
    monkeypatch.setenv("ZOO_DATA_DIR", _FOLDER)


def put(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def save(folder: Path, *args, name: str = "t.npy", **arrays) -> Path:
    path = folder / name
    np.save(path, *args) if args else np.savez(path, **arrays)
    return path


def refused(spec, **options) -> str:
    """The message, when loading is a usage error in one or two sentences on one line."""
    with pytest.raises(UsageError) as caught:
        load(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


# --- named sets ---


def test_faithful_is_the_old_faithful_table():
    d = load("faithful")
    assert d.x.shape == (272, 2)
    assert d.x.dtype == np.float64
    assert d.x.flags.c_contiguous
    assert d.columns == ("eruptions", "waiting")
    assert d.x[0].tolist() == [3.6, 79.0]
    assert d.x[-1].tolist() == [4.467, 74.0]
    np.testing.assert_allclose(d.x.mean(axis=0), [3.4877831, 70.8970588], atol=5e-8)
    np.testing.assert_allclose(d.x.std(axis=0, ddof=1), [1.1413713, 13.5949738], atol=5e-8)
    assert (d.name, d.labels, d.image_shape, d.truth, d.center, d.scale) == ("faithful", *[None] * 5)
    assert d.warnings == ()
    assert list(d.options) == ["source"]


def test_digits_are_those_of_scikit_learn():
    d = load("digits")
    assert d.x.shape == (1797, 64)
    assert (d.x.min(), d.x.max()) == (0, 16)
    assert d.image_shape == (8, 8)
    assert d.columns == ()
    assert d.x.flags.c_contiguous
    assert np.bincount(d.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@functools.cache
def mnist5k(rows=None):
    return load("mnist5k", rows=rows)


def test_mnist5k_is_scaled_and_has_500_of_each_digit():
    d = mnist5k()
    assert d.x.shape == (5000, 784)
    assert (d.x.min(), d.x.max()) == (0, 1)
    np.testing.assert_array_equal(d.x * 255, np.round(d.x * 255))
    assert d.image_shape == (28, 28)
    assert np.bincount(d.labels).tolist() == [500] * 10


@pytest.mark.parametrize(
    ("name", "shape", "column", "classes"),
    [
        ("iris", (150, 4), "sepal length (cm)", [50, 50, 50]),
        ("wine", (178, 13), "alcohol", [59, 71, 48]),
        ("breast_cancer", (569, 30), "mean radius", [212, 357]),
    ],
)
def test_tables_of_scikit_learn_keep_their_names_and_labels(name, shape, column, classes):
    d = load(name)
    assert d.x.shape == shape
    assert d.columns[0] == column
    assert len(d.columns) == shape[1]
    assert all(type(c) is str for c in d.columns)
    assert np.bincount(d.labels).tolist() == classes


def test_names_are_lines_and_load_nothing():
    code = (
        "import sys; from zoo._data.catalogue import names; n = len(names());"
        "heavy = {'torch', 'sklearn', 'scipy', 'pooch', 'mlxtend', 'pandas', 'requests'} & set(sys.modules);"
        "assert not heavy, heavy; print(n)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.stdout.strip() == str(len(names())), run.stderr
    assert {"faithful", "digits", "mnist5k", "mnist", "fashion_mnist", "binarized_mnist", "frey_face"} <= set(names())
    assert all(text and "\n" not in text for text in names().values())


def test_names_cannot_be_changed_from_outside():
    names().clear()
    assert "faithful" in names()


def test_an_unknown_name_gives_the_near_ones():
    assert refused("faithfull").startswith("unknown data set 'faithfull'; did you mean faithful?")
    assert "did you mean mnist" in refused("mnits")
    assert "known: binarized_mnist, breast_cancer" in refused("zzzz")
    assert "unknown data set ''" in refused("")


def test_parts():
    assert "unknown part 'tset' of the data set mnist; did you mean test?" in refused("mnist:tset")
    assert "'digits' has no parts, got 'test'" in refused("digits:test")


# --- full sets ---


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "n", "counts"),
    [
        ("mnist", 60000, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("mnist:test", 10000, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("fashion_mnist:train", 60000, [6000] * 10),
        ("fashion_mnist:test", 10000, [1000] * 10),
    ],
)
def test_full_labelled_sets(full_sets, name, n, counts):
    d = load(name)
    assert d.name == name
    assert d.x.shape == (n, 784)
    assert (d.x.min(), d.x.max()) == (0, 1)
    assert d.image_shape == (28, 28)
    assert np.bincount(d.labels).tolist() == counts


def test_mnist_has_its_known_moments(full_sets):
    x = load("mnist").x
    assert (round(x.mean(), 4), round(x.std(), 4)) == (0.1307, 0.3081)


def test_mnist5k_is_part_of_mnist(full_sets):
    whole = {row.tobytes() for row in np.round(load("mnist").x * 255).astype(np.uint8)}
    small = np.round(mnist5k().x * 255).astype(np.uint8)
    assert all(row.tobytes() in whole for row in small)


@pytest.mark.parametrize(("part", "n"), [("", 50000), (":train", 50000), (":valid", 10000), (":test", 10000)])
def test_binarized_mnist(full_sets, part, n):
    d = load("binarized_mnist" + part)
    assert d.x.shape == (n, 784)
    assert np.unique(d.x).tolist() == [0, 1]
    # A Bernoulli draw from intensities keeps their mean, which for MNIST is 0.13.
    assert 0.12 < d.x.mean() < 0.14
    assert d.image_shape == (28, 28)


def test_frey_face(full_sets):
    d = load("frey_face")
    assert d.x.shape == (1965, 560)
    assert d.x.min() >= 0
    assert d.x.max() <= 1
    assert d.image_shape == (28, 20)

    def rows_agree(height, width):
        images = d.x.reshape(-1, height, width)
        return np.corrcoef(images[:, 1:].ravel(), images[:, :-1].ravel())[0, 1]

    # Neighbouring rows of an image are alike only when the rows are as long as they should be.
    assert rows_agree(28, 20) > 0.7 > 0.3 > rows_agree(20, 28)
    # So are neighbouring frames of a film, against frames at random.
    assert np.abs(np.diff(d.x, axis=0)).mean() < 0.7 * np.abs(d.x - d.x.mean(axis=0)).mean()


def test_a_wrong_checksum_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    put(tmp_path / "mnist", b"not images", "t10k-images-idx3-ubyte.gz")
    message = refused("mnist:test")
    assert str(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz") in message
    assert hashlib.sha256(b"not images").hexdigest() in message
    assert "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6" in message
    assert "Replace the file, or unset ZOO_DATA_DIR" in message


def test_a_data_folder_that_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "gone"))
    assert "ZOO_DATA_DIR must be a folder that holds frey_face/" in refused("frey_face")
    assert load("faithful").x.shape == (272, 2)  # which does not need it


@pytest.mark.parametrize("name", ["binarized_mnist", "frey_face"])
def test_a_set_without_a_download_says_what_to_do(no_folder, name):
    message = refused(name)
    assert f"'{name}' has no download with a known checksum; set ZOO_DATA_DIR to a folder that holds {name}/" in message


def test_a_failed_download_says_what_to_do(no_folder, monkeypatch):
    import pooch

    def offline(*args, **kwargs):
        raise OSError("Max retries exceeded\nwith url")

    monkeypatch.setattr(pooch, "retrieve", offline)
    message = refused("fashion_mnist")
    assert "train-images-idx3-ubyte.gz could not be downloaded (Max retries exceeded with url)" in message
    assert "set ZOO_DATA_DIR to a folder that holds fashion_mnist/train-images-idx3-ubyte.gz" in message


def test_chorales_of_pitches_are_known_by_their_content(no_folder, tmp_path, monkeypatch):
    """Lists of MIDI pitches, as they are downloaded, make the same numbers as packed bits; others are refused."""
    import pooch

    pitches = {"train": [[[21, 60], []]], "valid": [[[108]]], "test": [[[22], [], [107, 23]], [[60]]]}
    rolls = {part: [np.zeros((len(piece), 88), np.uint8) for piece in pieces] for part, pieces in pitches.items()}
    for part, pieces in pitches.items():
        for roll, piece in zip(rolls[part], pieces, strict=True):
            for step, keys in zip(roll, piece, strict=True):
                step[[key - 21 for key in keys]] = 1
    monkeypatch.setattr(music, "CONTENT", music.digest(rolls))
    file = tmp_path / "chorales.json"
    monkeypatch.setattr(pooch, "retrieve", lambda url, known, fname, path: str(file))
    file.write_text(json.dumps(pitches))
    x = load("jsb_chorales:test").x
    assert x.shape == (2, 3, 88) and np.isnan(x[1, 1:]).all()
    np.testing.assert_array_equal(x[0], rolls["test"][0])
    packed = {
        part: np.packbits(np.stack([np.pad(r, ((0, 3 - len(r)), (0, 0))) for r in of]), 2) for part, of in rolls.items()
    }
    np.savez(tmp_path / "bits.npz", **packed, **{f"{p}_lengths": [len(r) for r in of] for p, of in rolls.items()})
    np.testing.assert_array_equal(music.chorales(tmp_path / "bits.npz", "test"), x)
    for other in (
        pitches | {"test": [[[22], [], [107, 24]], [[60]]]},
        pitches | {"test": [[[200]]]},
        {"train": []},
        [],
    ):
        file.write_text(json.dumps(other))
        assert "does not hold the chorales" in refused("jsb_chorales")


@pytest.mark.full
def test_the_chorales_have_the_content_that_is_known(full_sets):
    file = Path(os.environ["ZOO_DATA_DIR"]) / "jsb_chorales" / "jsb_chorales_quarter.npz"
    assert music.digest(music._of_bits(file)) == music.CONTENT


@pytest.fixture
def server(tmp_path, monkeypatch, no_folder):
    """A tiny MNIST served from this machine as if it were the download; gives what was asked for."""
    asked: list[str] = []
    images = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for kind, array in (("images-idx3", images), ("labels-idx1", np.array([7, 2, 1], dtype=np.uint8))):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        file = put(tmp_path, gzip.compress(head + array.tobytes()), f"t10k-{kind}-ubyte.gz")
        monkeypatch.setitem(catalogue.SHA256, f"mnist/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, format, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=functools.partial(httpd.serve_forever, poll_interval=0.01))
        thread.start()
        monkeypatch.setitem(catalogue.URLS, "mnist", f"http://127.0.0.1:{httpd.server_address[1]}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield asked
        httpd.shutdown()
        thread.join()


def test_a_download_is_verified_read_and_kept(server, tmp_path):
    d = load("mnist:test")
    np.testing.assert_array_equal(d.x * 255, (np.arange(3 * 784) % 256).reshape(3, 784))
    assert d.labels.tolist() == [7, 2, 1]
    kept = sorted(f.name for f in (tmp_path / "cache" / "mnist").iterdir())
    assert kept == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    requests = len(server)
    np.testing.assert_array_equal(load("mnist:test").x, d.x)
    assert len(server) == requests


def test_a_download_with_a_wrong_checksum_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.SHA256, "mnist/t10k-labels-idx1-ubyte.gz", "0" * 64)
    message = refused("mnist:test")
    assert "t10k-labels-idx1-ubyte.gz could not be downloaded" in message
    assert "hash" in message
    assert not (tmp_path / "cache" / "mnist" / "t10k-labels-idx1-ubyte.gz").exists()


# --- csv ---


def test_csv_with_a_header(tmp_path):
    d = load(put(tmp_path, "a,b\n1,2\n3,4.5e-1\n"))
    assert d.x.tolist() == [[1, 2], [3, 0.45]]
    assert (d.columns, d.name) == (("a", "b"), "t")
    assert d.options["source"].startswith("t.csv, sha256 ")


def test_csv_without_a_header(tmp_path):
    d = load(str(put(tmp_path, "1,2\n3,4")))
    assert d.x.tolist() == [[1, 2], [3, 4]]
    assert d.columns == ("x0", "x1")


def test_csv_of_one_column(tmp_path):
    d = load(put(tmp_path, "height\n1\n2\n\n4\n\n"))
    np.testing.assert_array_equal(d.x, [[1], [2], [nan], [4]])
    assert d.columns == ("height",)
    assert d.warnings == (
        f"1 of 4 rows of '{tmp_path / 't.csv'}' have nothing observed (line 4); they are kept, and add nothing to log p(x).",
    )


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "NaN", "nan", "?", '""', "None", "N/A", "null", "NULL", "#N/A", ".", "-", "<NA>"]
)
def test_csv_cells_that_are_unobserved(tmp_path, cell):
    np.testing.assert_array_equal(load(put(tmp_path, f"a,b\n1,{cell}\n{cell},4\n")).x, [[1, nan], [nan, 4]])


def test_a_first_row_of_unobserved_cells_is_data(tmp_path):
    np.testing.assert_array_equal(load(put(tmp_path, "NA,?\n1,2\n")).x, [[nan, nan], [1, 2]])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ['"a","b; c, d"', "a,b"])
def test_csv_delimiters_and_quotes(tmp_path, delimiter, header):
    name = header.split('"')[3] if '"' in header else "b"
    text = f'"a"{delimiter}"{name}"\r\n1.5{delimiter}"2"\r\n\r\n-3{delimiter} 4\r\n'
    d = load(put(tmp_path, text))
    assert d.x.tolist() == [[1.5, 2], [-3, 4]]
    assert d.columns == ("a", name)
    assert d.warnings == ()


def test_csv_with_a_byte_order_mark_and_unicode(tmp_path):
    folder = tmp_path / "mes données ü"
    folder.mkdir()
    d = load(put(folder, b"\xef\xbb\xbf" + "durée,größe\n1,2\n".encode(), "été 1.CSV"))
    assert d.columns == ("durée", "größe")
    assert d.name == "été 1"


def test_decimal_commas(tmp_path):
    d = load(put(tmp_path, "a;b\n1,5;-2\n,25;1,0e3\n"))
    assert d.x.tolist() == [[1.5, -2], [0.25, 1000]]
    assert d.warnings == (f"the decimal commas of '{tmp_path / 't.csv'}' were read as decimal points.",)
    # Without a header the commas and the semicolons divide each line equally well.
    assert load(put(tmp_path, "1,5;2,5\n3,5;4,5\n")).x.tolist() == [[1.5, 2.5], [3.5, 4.5]]


@pytest.mark.parametrize(
    ("text", "x", "said"),
    [
        ('a,b\n"1,234.5",2\n"12,000",3.5\n', [[1234.5, 2], [12000, 3.5]], "separators of thousands (1,234.5)"),
        ('a,b\n"1,500",2\n', [[1500, 2]], "separators of thousands (1,500)"),
        ("a;b\n1,500;2.5\n", [[1500, 2.5]], "separators of thousands (1,500)"),  # 2.5 has a decimal point
        ("a;b\n1,500;2\n", [[1.5, 2]], "decimal commas"),  # semicolons go with decimal commas
        ('a,b\n"1,5",2\n', [[1.5, 2]], "decimal commas"),
        ("a;b\n1.234,5;1.000\n2,5;3\n", [[1234.5, 1000], [2.5, 3]], "its points as separators of thousands (1.000)"),
        ("a;b\n1 234,5;2\n", [[1234.5, 2]], "decimal commas"),
        ("a\tb\n1,234,567\t2\n", [[1234567, 2]], "separators of thousands"),
        ("a;b\n1\u202f234.5;2\n", [[1234.5, 2]], None),
        ("a;b\n12'345'678;2\n", [[12345678, 2]], None),
    ],
)
def test_commas_and_points_in_numbers(tmp_path, text, x, said):
    d = load(put(tmp_path, text))
    assert d.x.tolist() == x
    assert len(d.warnings) == (said is not None) and (said is None or said in d.warnings[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\tb\n1,500\t2\n", "line 2: '1,500' has a comma, which may divide thousands or be a decimal comma"),
        ("a;b\n1,5;2.5\n", "line 2: '1,5' has a comma; write a decimal point instead."),
        ("a;b\n1,5;1,234.5\n", "line 2: '1,5' has a comma; write a decimal point instead."),
    ],
)
def test_commas_of_two_meanings_are_refused(tmp_path, text, says):
    assert says in refused(put(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ['"","a","b"\n"1",5,6\n"2",7,8\n', "rownames,a,b\n1,5,6\n2,7,8\n", ",a,b\n0,5,6\n1,7,8\n"],
)
def test_a_column_that_counts_rows_is_dropped(tmp_path, text):
    d = load(put(tmp_path, text))
    assert d.x.tolist() == [[5, 6], [7, 8]]
    assert d.x.flags.c_contiguous
    assert d.columns == ("a", "b")
    assert d.warnings == (f"the first column of '{tmp_path / 't.csv'}' only numbers the rows, and was dropped.",)


def test_an_index_with_numbered_columns_is_a_header(tmp_path):
    d = load(put(tmp_path, ",0,1\n0,5,6\n1,7,8\n"))
    assert d.x.tolist() == [[5, 6], [7, 8]]
    assert d.columns == ("0", "1")


def test_a_named_column_that_counts_is_kept(tmp_path):
    assert load(put(tmp_path, "t,a\n1,5\n2,7\n")).x.tolist() == [[1, 5], [2, 7]]
    assert load(put(tmp_path, ",a\n2,5\n1,7\n")).columns == ("x0", "a")


def test_a_first_line_that_may_be_a_header_is_told(tmp_path):
    d = load(put(tmp_path, "0,1,2\n5,6,7\n"))
    assert d.x.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert d.warnings == (
        f"'{tmp_path / 't.csv'}', line 1 (0, 1, 2) was read as data and may be a header. If these are names, add a letter "
        "to each (y2020).",
    )


@pytest.mark.parametrize(
    "text",
    [
        "2020,2021,2022\n1.0,2.5,3.1\n2.0,1.5,2.2\n0.3,1.1,4.0\n9,8,7\n",  # years
        "1990,1995\n12,13\n",
        "2020\n1.5\n2.5\n",
        "2019;2020;2021\n1,5;2,5;3,5\n",
        "400,410,420,430\n0.12,0.34,0.35,0.1\n0.2,0.3,0.31,0.2\n0.5,0.4,0.39,0.1\n",  # wavelengths
        "1,2,5\n0.1,,0.3\n0.5,0.4,0.2\n0.35,0.21,0.1\n",  # doses
        "1001,1002,1003\n5,3,4\n2,2,1\n0,7,3\n",  # numbers of products
    ],
)
def test_numbers_that_may_be_names_are_told(tmp_path, text):
    d = load(put(tmp_path, text))
    assert d.x.shape[0] == len(text.strip().splitlines())
    assert len(d.warnings) == 1 + (";" in text) and "may be a header" in d.warnings[-1]


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,5,6\n7,8,9\n10,11,12\n",  # every line counts up
        "5.1,3.5,1.4\n4.9,3.0,1.4\n4.7,3.2,1.3\n4.6,3.1,1.5\n",
        "1,3,5\n2,2,4\n5,1,3\n4,4,2\n1,1,1\n",  # ratings
        "0,1\n5,2\n7,3\n1,1\n",
        "2019,2020\n2021,2018\n2001,2022\n",  # years, all of them
        "1999\n2005\n1980\n",
        "2000\n1300\n900\n4000\n",
        "10,200,3000\n12,210,3100\n15,190,3500\n",  # columns of different sizes
        "1,2,3\n9,8,7\n",
        "2020,2021,2022\n",
        "3,40,500\n2.5,41,510\n3,38,490\n4,44,520\n2,40,505\n",
    ],
)
def test_tables_of_numbers_without_a_header_are_no_noise(tmp_path, text):
    assert load(put(tmp_path, text)).warnings == ()


def test_few_random_tables_look_as_if_they_had_a_header(tmp_path):
    """Counts, rounded measurements, trends and coins: none of 400 tables without a header draws the warning."""
    rng = np.random.default_rng(0)
    told = 0
    for k in range(400):
        n, D = rng.integers(4, 40), rng.integers(1, 6)
        x = (
            rng.poisson(5, (n, D)),
            rng.normal(20, 5, (n, D)).round(1),
            np.cumsum(rng.poisson(3, (n, D)), 0) + 10 ** np.arange(D),
            rng.integers(0, 2, (n, D)),
        )[k % 4]
        text = "\n".join(",".join(f"{v:g}" for v in row) for row in x)
        told += bool(load(put(tmp_path, text + "\n")).warnings)
    assert told == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "a,b\n1,2\n3,dog\n",
            "line 3, column 'b': 'dog' is not a number. Correct it, or drop the column (--drop b), or read it as",
        ),
        ("a,b\n1,2\n\n\n3,dog\n", "line 5, column 'b': 'dog'"),
        ('a,b\n1,"\n2"\nx,4\n', "line 4, column 'a': 'x'"),
        ("a,b\n1,1_000\n", "line 2, column 'b': '1_000' is not a number"),
        ('a,b\n1,"d\no\ng"\n', "line 2, column 'b': 'd o g' is not a number"),
        ("a b\n1 2\n", "line 2, column 'a b': '1 2' is not a number. Correct it"),
        (
            "5.1,3.5,setosa\n4.9,3,setosa\n",
            "column 'x2' (1 class: 'setosa', …) does not hold numbers. Use --labels x2 (in",
        ),
        ("3.6,7x9\n1.8,54\n", "line 1, column 2: '7x9' is not a number, though '3.6' is."),
        ("a,b\n1,2\n3\n", "line 3: 1 cells, but line 1 has 2; leave a cell empty"),
        ("1,2\n3,4,5\n", "line 2: 3 cells, but line 1 has 2"),
        ("a,b\n1,2\n3,inf\n", "line 3, column 'b': the value is infinite (inf); use NaN"),
        ("a,b\n1,2\n-1e999,0\n", "line 3, column 'a': the value is infinite (-inf)"),
        ("a,b\n1,2\n3,-1e200\n", "line 3, column 'b': -1e+200 is too large to square (limit 1e+150)"),
        ("a,b\n", "is empty: it has a header but no rows; give at least one row."),
        ("", "is empty: it has no rows"),
        ("\n\n \n", "t.csv' has no observed entry"),
        ("\n\n", "is empty: it has no rows"),
        ("\ufeff", "is empty: it has no rows"),
        ("NA,\n,?\n", "has no observed entry; give some numbers."),
        ('a,b\n1,"2\n3,4\n', "line 2: the cells cannot be read"),
        (b"a,b\n1,2\n3,\xff\n", "line 3: the text is not UTF-8; save the file as UTF-8."),
        ("a,b\n1,2\n".encode("utf-16"), "line 1: the text is not UTF-8"),
    ],
)
def test_csv_errors_name_the_file_the_line_and_the_column(tmp_path, text, says):
    path = put(tmp_path, text)
    message = refused(path)
    assert message.startswith(f"'{path}'")
    assert says in message


# --- npy and npz ---


def test_npy_shapes_and_types(tmp_path):
    d = load(save(tmp_path, np.array([1, 2, 3], dtype=np.int16)))
    assert d.x.tolist() == [[1], [2], [3]]
    assert d.columns == ("x0",)
    assert load(save(tmp_path, np.array([[True, False]]))).x.tolist() == [[1, 0]]
    image = load(save(tmp_path, np.asfortranarray(np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2))))
    assert image.x.shape == (2, 3, 4, 2)
    assert image.x.dtype == np.float64
    assert image.x.flags.c_contiguous
    assert image.columns == ()


def test_npz_takes_x_or_the_only_array(tmp_path):
    x, y = np.arange(6.0).reshape(3, 2), np.array(["a", "b", "a"])
    for arrays in ({"data": x}, {"x": x, "other": y}, {"data": x, "labels": y}, {"x": x, "y": y}, {"y": x}):
        d = load(save(tmp_path, name="t.npz", **arrays))
        np.testing.assert_array_equal(d.x, x)
        has = "labels" in arrays or ("y" in arrays and "x" in arrays)
        assert (d.labels.tolist() if has else d.labels) == (["a", "b", "a"] if has else None)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array(1.0), "must have 1 to 4 dimensions, rows first, got 0"),
        (np.zeros((1, 1, 1, 1, 1)), "must have 1 to 4 dimensions, rows first, got 5"),
        (np.zeros((0, 2)), "is empty, of shape (0, 2)"),
        (np.zeros((3, 0)), "is empty, of shape (3, 0)"),
        (np.array([1j, 2]), "must hold real numbers, NaN where unobserved, got the type complex128"),
        (np.array(["a", "b"]), "got the type <U1"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "got the type datetime64[D]"),
        (
            np.array([[1, 2], [3, np.inf]]),
            "row 1 (counting from 0), column 'x1': the value is infinite (inf)",
        ),
        (
            np.full((2, 2, 2), -1e160),
            "row 0 (counting from 0), column 'x[0, 0]': -1e+160 is too large to square",
        ),
        (np.full((2, 2), nan), "has no observed entry"),
    ],
)
def test_array_errors_name_the_row_and_the_column(tmp_path, array, says):
    for spec, what in ((path := save(tmp_path, array), f"'{path}'"), (array, "the array")):
        message = refused(spec)
        assert message.startswith(what)
        assert says in message


def test_objects_are_not_unpickled(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert refused(path) == f"'{path}' holds Python objects, which are not loaded; save numbers."
    np.savez(tmp_path / "t.npz", x=np.array([{"a": 1}], dtype=object))
    assert "holds Python objects" in refused(tmp_path / "t.npz")
    assert load(np.array([1, None], dtype=object)).x.tolist()[0] == [1]


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
@pytest.mark.parametrize("keep", [0, 5, 90, 200])
def test_truncated_files(tmp_path, name, keep):
    path = save(tmp_path, np.arange(100.0)) if name == "t.npy" else save(tmp_path, name=name, x=np.arange(100.0))
    path.write_bytes(path.read_bytes()[:keep])
    assert refused(path) == f"'{path}' is empty, cut short or not a NumPy file; save it again."


def test_a_damaged_npz(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", x=np.random.default_rng(0).normal(size=100))
    content = bytearray((tmp_path / "t.npz").read_bytes())
    content[200:220] = bytes(20)
    assert "cut short or not a NumPy file" in refused(put(tmp_path, bytes(content), "t.npz"))


def test_npz_that_leaves_a_choice(tmp_path):
    path = save(tmp_path, name="t.npz", a=np.zeros(2), b=np.zeros(2))
    assert refused(path) == f"'{path}' holds a, b; name the data x, and any labels y."
    assert "holds nothing; name the data x" in refused(save(tmp_path, name="t.npz"))
    labelled = save(tmp_path, name="t.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    assert "must have shape (3,), one for each row, got (2,)." in refused(labelled)


# --- paths ---


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    put(tmp_path, "a\n1\n", "heights.csv")
    assert refused(tmp_path / "hieghts.csv") == (
        f"there is no file '{tmp_path / 'hieghts.csv'}'; did you mean heights.csv?"
    )
    assert "give the path of a .csv, .tsv, .parquet," in refused(tmp_path / "qqq.npy")
    assert f"there is no folder '{tmp_path / 'no'}' either." in refused(tmp_path / "no" / "a.csv")
    assert "the data set is called 'faithful', with no suffix." in refused("faithful.csv")
    assert "'notes.docx' is not a .csv, .tsv, .parquet, .feather, .xlsx, .npy or .npz file" in refused("notes.docx")
    assert "is a folder without .parquet or .pq or .feather or .arrow files; give a .csv, .tsv, " in refused(
        str(tmp_path)
    )
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert "is a folder" in refused(folder)
    assert "is not a .csv" in refused(str(put(tmp_path, "1", "plain")))
    assert "is not a .csv" in refused(Path("faithful"))  # a path is never a name
    assert "there is no file" in refused("a\0b.csv")
    assert "there is no file" in refused("n" * 5000 + ".csv")


def test_an_unreadable_file(tmp_path, monkeypatch):
    def deny(self):
        raise PermissionError(13, "Permission denied")

    path = put(tmp_path, "1\n")
    monkeypatch.setattr(Path, "read_bytes", deny)
    assert refused(path) == f"'{path}' cannot be read: Permission denied."


def test_the_home_folder(tmp_path, monkeypatch):
    put(tmp_path, "1\n2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/t.csv").x.tolist() == [[1], [2]]


# --- arrays ---


def test_an_array_keeps_its_values_and_a_run_has_its_own():
    """Loading shares the caller's memory, which a memory map needs; a run copies what it holds."""
    x = np.array([[1.0, nan], [3.0, 4.0]])
    d = load(x)
    assert (d.name, d.columns) == ("array", ("x0", "x1"))
    np.testing.assert_array_equal(d.x, x)
    from inference import run

    fit = run("gmm", x, components=1, priors=True, max_iter=2)
    x[1, 0] = 9
    assert fit.x[1, 0] == 3


def test_masked_entries_are_unobserved():
    np.testing.assert_array_equal(load(np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]])).x, [[1, nan], [3, 4]])


def test_a_tensor_that_requires_a_gradient():
    torch = pytest.importorskip("torch")
    assert load(torch.tensor([[1.0, 2.0]], requires_grad=True)).x.tolist() == [[1, 2]]
    assert "is not an array of numbers" in refused(torch.ones(2, 2, dtype=torch.bfloat16))


def test_things_that_are_no_array():
    assert "the array is a NoneType; give an array, a table, or the name of a data set or file" in refused(None)
    assert "the array is a dict" in refused({"a": [1, 2]})
    assert "the array must have 1 to 4 dimensions" in refused(5)
    assert "the array has rows of different lengths" in refused([[1, 2], [3]])


def test_a_long_double_that_is_too_large():
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        assert "the value is infinite" in refused(np.array([np.longdouble("1e400")]))


# --- round trips ---

_VALUES = st.floats(-1e150, 1e150) | st.just(nan)
_TABLES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=_VALUES).filter(
    lambda x: not np.isnan(x).all()
)
_NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).map("c".__add__)
_ROUND = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_ROUND
@given(x=_TABLES, data=st.data())
def test_csv_round_trip(tmp_path, x, data):
    header = data.draw(st.none() | st.lists(_NAMES, min_size=x.shape[1], max_size=x.shape[1]))
    delimiter = data.draw(st.sampled_from(",;\t"))
    token = data.draw(st.sampled_from(["", "NA", "NaN", "nan", "?"]))
    with open(tmp_path / "t.csv", "w", newline="", encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))) as f:
        writer = csv.writer(f, delimiter=delimiter, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])))
        if header:
            writer.writerow(header)
        writer.writerows([[token if np.isnan(v) else repr(float(v)) for v in row] for row in x])
    d = load(tmp_path / "t.csv")
    np.testing.assert_array_equal(d.x, x)
    assert d.columns == (
        tuple(" ".join(h.split()) for h in header) if header else tuple(f"x{j}" for j in range(x.shape[1]))
    )


@_ROUND
@given(x=hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=4), elements=_VALUES), zipped=st.booleans())
def test_numpy_round_trip(tmp_path, x, zipped):
    path = save(tmp_path, name="t.npz", x=x) if zipped else save(tmp_path, x)
    if np.isnan(x).all():
        assert "has no observed entry" in refused(path)
        return
    d = load(path)
    np.testing.assert_array_equal(d.x, x[:, None] if x.ndim == 1 else x)
    empty = np.isnan(x.reshape(len(x), -1)).all(axis=1).sum()
    assert any(f"{empty} of {len(x)} rows" in w for w in d.warnings) == (empty > 0)


@_ROUND
@given(text=st.binary(max_size=60) | st.text('0123456789.,;\t\n"-eNA? a', max_size=60).map(str.encode))
def test_any_bytes_give_data_or_a_usage_error(tmp_path, text):
    for name in ("t.csv", "t.npy", "t.npz"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's own, on odd headers
            with contextlib.suppress(UsageError):
                assert not np.isinf(load(put(tmp_path, text, name)).x).any()


def _bytes_of(write, *args, **arrays) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *args, **arrays)
    return buffer.getvalue()


_WHOLE = {
    "t.npy": _bytes_of(np.save, np.arange(6.0).reshape(3, 2)),
    "t.npz": _bytes_of(np.savez_compressed, x=np.arange(60.0), y=np.arange(60)),
}


@_ROUND
@given(name=st.sampled_from(sorted(_WHOLE)), data=st.data())
def test_damaged_arrays_give_data_or_a_usage_error(tmp_path, name, data):
    content = bytearray(_WHOLE[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(), contextlib.suppress(UsageError):
        warnings.simplefilter("ignore", UserWarning)  # numpy's own, on odd headers
        assert not np.isinf(load(put(tmp_path, bytes(content), name)).x).any()


# --- preparations ---


def holed(seed=0, shape=(200, 5)):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, [1, 10, 0.1, 1e-6, 1e6], size=shape)
    x[rng.random(shape) < 0.2] = nan
    return x


def test_standardize_against_numpy():
    x = holed()
    d = load(x, standardize=True)
    np.testing.assert_allclose(d.center, np.nanmean(x, axis=0), rtol=1e-13)
    np.testing.assert_allclose(d.scale, np.nanstd(x, axis=0), rtol=1e-9)
    np.testing.assert_allclose(d.x * d.scale + d.center, x, rtol=1e-13)
    np.testing.assert_allclose(np.nanstd(d.x, axis=0), 1, rtol=1e-9)
    np.testing.assert_array_equal(np.isnan(d.x), np.isnan(x))
    assert d.options == {"source": "an array", "standardize": True}
    assert d.warnings == ()


def test_standardize_keeps_a_constant_column():
    x = np.column_stack([np.full(10, 0.1), np.arange(10.0), np.full(10, nan)])
    d = load(x, standardize=True)
    np.testing.assert_array_equal(d.x[:, 0], 0)
    assert d.scale.tolist()[0] == d.scale.tolist()[2] == 1
    assert d.warnings == (
        "column 'x0' is constant in the array: standardize only subtracts the value.",
        "column 'x2' is never observed in the array.",
    )
    d = load("digits", standardize=True)
    assert d.warnings == (
        "3 of 64 columns ('x0', 'x32', 'x39') are constant in the data set 'digits': "
        "standardize only subtracts the value.",
    )
    assert np.isfinite(d.x).all()


@_ROUND
@given(x=_TABLES)
def test_standardize_never_leaves_the_numbers(x):
    d = load(x, standardize=True)
    np.testing.assert_array_equal(np.isnan(d.x), np.isnan(x))
    assert not np.isinf(d.x).any()
    assert (d.scale > 0).all()


def test_rows_are_a_random_subset_in_order():
    x = np.arange(1000.0)[:, None]
    a, b, c = (load(x, rows=100, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.x, b.x)
    assert (a.x != c.x).any()
    assert (np.diff(a.x[:, 0]) > 0).all()
    # The mean of 100 of 1000, without replacement: standard error 288.7 / 10 * sqrt(900 / 999).
    assert abs(a.x.mean() - 499.5) < 5 * 288.7 / 10 * np.sqrt(900 / 999)
    np.testing.assert_array_equal(load(x, rows=1000).x, x)
    assert a.options == {"source": "an array", "rows": 100, "seed": 1}


def test_rows_take_their_labels_along():
    whole, some = load("digits"), load("digits", rows=np.int64(50), seed=3)
    place = {row.tobytes(): y for row, y in zip(whole.x, whole.labels, strict=True)}
    assert [place[row.tobytes()] for row in some.x] == some.labels.tolist()
    assert json.loads(json.dumps(some.options)) == some.options


def test_rows_keep_their_places_in_what_is_said(tmp_path):
    path = put(tmp_path, "a,b\n" + "1,2\n" * 5 + ",\n" * 20)
    d = load(path, rows=24, seed=0)
    assert d.warnings[0].endswith(", …); they are kept, and add nothing to log p(x).")
    shown = d.warnings[0].split("(lines ")[1].split(", …")[0].split(", ")
    assert len(shown) == 5
    assert all(7 <= int(line) <= 26 for line in shown)


@pytest.mark.parametrize("rows", [0, -1, 2.5, "3", True])
def test_rows_must_be_a_count(rows):
    assert refused("faithful", rows=rows) == f"rows must be a whole number, 1 or more, got {rows!r}."


def test_more_rows_than_there_are():
    assert refused("faithful", rows=273) == "rows must be at most 272, the rows of the data set 'faithful', got 273."


@pytest.mark.parametrize("seed", [-1, 1.0, None, "0"])
def test_seed_must_be_a_count(seed):
    assert refused("faithful", seed=seed) == f"seed must be a whole number, 0 or more, got {seed!r}."


def test_binarize_fixed_draws_from_the_intensities():
    p = np.repeat([[0.0, 0.1, 0.5, 0.9, 1.0]], 20000, axis=0)
    d = load(p, binarize="fixed", seed=4)
    assert np.unique(d.x).tolist() == [0, 1]
    se = np.sqrt(p[0] * (1 - p[0]) / len(p))
    assert (np.abs(d.x.mean(axis=0) - p[0]) <= 5 * se).all()
    np.testing.assert_array_equal(load(p, binarize="fixed", seed=4).x, d.x)
    assert (load(p, binarize="fixed", seed=5).x != d.x).any()
    assert d.options == {"source": "an array", "binarize": "fixed", "seed": 4}


def test_binarize_scales_digits_by_their_maximum():
    raw = load("digits").x
    d = load("digits", binarize="dynamic")
    np.testing.assert_array_equal(d.x, raw / 16)
    assert d.options["binarize"] == "dynamic"
    assert "seed" not in d.options
    fixed = load("digits", binarize="fixed").x
    se = np.sqrt((d.x * (1 - d.x)).sum())
    assert abs(fixed.sum() - d.x.sum()) < 5 * se
    # The maximum is that of the set, not of the rows that were taken.
    np.testing.assert_array_equal(load("digits", rows=2, binarize="dynamic").x * 16, load("digits", rows=2).x)


@pytest.mark.parametrize("threshold", [3.6, "3.6"])
def test_binarize_by_a_threshold_is_strict(threshold):
    d = load(np.array([[3.6, nan], [3.7, -1.0]]), binarize=threshold)
    np.testing.assert_array_equal(d.x, [[0, nan], [1, 0]])
    assert d.options == {"source": "an array", "binarize": 3.6}


def test_a_threshold_outside_the_data_is_told():
    d = load(np.array([[0.0], [1.0]]), binarize=128)
    assert d.warnings == ("the array goes from 0 to 1, so binarize 128 makes all entries equal.",)


def test_binarize_needs_intensities():
    assert refused("faithful", binarize="fixed") == (
        "binarize fixed expects intensities from 0 to 1, and the data set 'faithful' goes from 1.6 to 96. "
        "Rescale the data, or give a threshold."
    )
    assert "goes from -0.5 to 1" in refused(np.array([[-0.5], [1.0]]), binarize="dynamic")


@pytest.mark.parametrize("value", ["Fixed", "", "nan", "inf", float("nan"), True, [1]])
def test_binarize_must_be_known(value):
    assert refused("faithful", binarize=value) == (
        f"binarize must be fixed, dynamic or a number (the threshold), got {value!r}."
    )


def test_binarize_and_standardize_contradict():
    assert "binarize and standardize cannot be combined" in refused("digits", binarize="fixed", standardize=True)


@pytest.mark.parametrize("p", [0, 0.3, 0.95])
def test_missing_at_random(p):
    x = np.arange(40000.0).reshape(4000, 10)
    d = load(x, missing=f"random:{p}", seed=7)
    hidden = np.isnan(d.x)
    assert abs(hidden.mean() - p) <= 5 * np.sqrt(p * (1 - p) / x.size)
    np.testing.assert_array_equal(d.x[~hidden], x[~hidden])
    np.testing.assert_array_equal(d.truth, x)
    np.testing.assert_array_equal(load(x, missing=f"random:{p}", seed=7).x, d.x)
    assert d.options == {"source": "an array", "missing": f"random:{p}", "seed": 7}
    empty = hidden.all(axis=1).sum()
    assert any(f"{empty} of 4000 rows of the array have nothing observed" in w for w in d.warnings) == (empty > 0)


def test_missing_adds_to_what_is_not_observed():
    x = holed()
    d = load(x, missing="random:0.5", standardize=True)
    assert np.isnan(d.x[np.isnan(x)]).all()
    np.testing.assert_array_equal(d.truth, load(x, standardize=True).x)


@pytest.mark.parametrize(
    ("half", "rows", "columns"),
    [
        ("top", slice(0, 4), slice(None)),
        ("bottom", slice(4, 8), slice(None)),
        ("left", slice(None), slice(0, 4)),
        ("right", slice(None), slice(4, 8)),
    ],
)
def test_missing_half_of_an_image(half, rows, columns):
    d = load("digits", missing=half)
    expected = load("digits").x.reshape(-1, 8, 8).copy()
    expected[:, rows, columns] = nan
    np.testing.assert_array_equal(d.x.reshape(-1, 8, 8), expected)
    np.testing.assert_array_equal(d.truth, load("digits").x)
    assert d.warnings == ()  # nothing is amiss: the columns are hidden on purpose
    assert d.options["missing"] == half
    assert "seed" not in d.options


def test_missing_half_needs_images():
    assert "missing=top expects images, and the data set 'wine' is not known to hold any" in refused(
        "wine", missing="top"
    )


@pytest.mark.parametrize("value", ["random", "random:1", "random:-0.1", "random:x", "random:nan", "middle", "", 0.3])
def test_missing_must_be_known(value):
    assert refused("digits", missing=value) == (
        f"missing must be top, bottom, left, right, random:P with 0 <= P < 1, or a .npy file that holds a mask, got {value!r}."
    )


def test_each_preparation_has_a_stream_of_its_own():
    alone = load("digits", binarize="fixed", seed=1)
    both = load("digits", binarize="fixed", missing="random:0.5", seed=1)
    np.testing.assert_array_equal(both.truth, alone.x)
    hidden = np.isnan(load("digits", missing="random:0.5", seed=1).x)
    np.testing.assert_array_equal(np.isnan(both.x), hidden)


def test_preparations_come_in_order():
    d = load("faithful", rows=100, standardize=True, missing="random:0.2", seed=5)
    raw = load("faithful", rows=100, seed=5).x
    np.testing.assert_allclose(d.truth, (raw - raw.mean(axis=0)) / raw.std(axis=0), atol=1e-12)
    assert list(d.options) == ["source", "rows", "standardize", "missing", "seed"]
    assert json.loads(json.dumps(d.options)) == d.options


def test_options_are_checked_before_the_data_is_read():
    assert "rows must be a whole number" in refused("no such thing", rows=0)


# ---- a mask of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["all", "row", "image"])
def test_a_mask_says_what_is_missing(tmp_path, shape):
    mask = np.random.default_rng(0).random((1797, 64)) < 0.3
    mask = {"all": mask, "row": mask[0], "image": mask[0].reshape(8, 8)}[shape]
    np.save(tmp_path / "mask ä.npy", mask)
    path = str(tmp_path / "mask ä.npy")
    whole, some = load("digits", missing=path), load("digits", missing=path, rows=20)
    np.testing.assert_array_equal(np.isnan(whole.x), np.broadcast_to(mask.reshape(-1, 64), (1797, 64)))
    chosen = load("digits", rows=20).x
    rows = [int(np.flatnonzero((whole.truth == row).all(1))[0]) for row in chosen]
    np.testing.assert_array_equal(np.isnan(some.x), np.isnan(whole.x[rows]))


def test_a_mask_that_does_not_fit(tmp_path):
    np.save(tmp_path / "mask.npy", np.zeros((3, 64)))
    with pytest.raises(
        UsageError, match=r"Expected a mask of shape \(1797, 64\) or .* for the data set 'digits', got \(3, 64\)"
    ):
        load("digits", missing=str(tmp_path / "mask.npy"))
    np.save(tmp_path / "mask.npy", np.full(64, 0.5))
    with pytest.raises(UsageError, match=r"must hold 0 \(observed\) and 1 \(missing\) alone"):
        load("digits", missing=str(tmp_path / "mask.npy"))
    with pytest.raises(UsageError, match=r"the mask '.*' cannot be read"):
        load("digits", missing=str(tmp_path / "none.npy"))
