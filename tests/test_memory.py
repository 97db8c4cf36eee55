"""Memory beside the data: a fit takes what its chunks and its results need, and a file that is mapped is not copied.

Each figure is the peak of a process of its own, less what it held when the data and all modules were loaded. Of a map
anonymous memory counts (`RssAnon`): the pages of the file itself belong to the system, which takes them back when it wants.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference._run.netcdf import netcdf, read_netcdf, write_netcdf
from inference._run.runner import run
from zoo._data import mapped

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

MOST_MB = 512
SCRIPT = """
import gc, json, sys, threading, time
import numpy as np
import inference._run.datatree
from inference._run.runner import run

model, place, mapped, iterations, options = json.loads(sys.argv[1])

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))

run(model, np.random.default_rng(1).normal(size=(200, 16)), max_iter=2, **options)  # imports, threads, caches
data = place if mapped == "path" else np.load(place, mmap_mode="r" if mapped == "map" else None)
gc.collect()
before, most, done = held(), 0.0, False

def watch():
    global most
    while not done:
        most = max(most, held())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
fit = run(model, data, max_iter=iterations, **options)
done = True
watcher.join()
print(json.dumps({"mb": most - before, "value": fit.claimed.value, "verified": fit.verified.value, "n": fit.n,
                  "notes": fit.notes, "means": sorted(fit.means), "probabilities": sorted(fit.probabilities)}))
"""


def table(place: Path, rows: int) -> Path:
    """A .npy file of that many rows × 16, written some at a time: three factors and noise."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, 16))
    few = rng.normal(size=(50_000, 3)) @ loadings + 0.5 * rng.normal(size=(50_000, 16))
    file = np.lib.format.open_memmap(place, "w+", np.float64, (rows, 16))
    for start in range(0, rows, len(few)):
        file[start : start + len(few)] = few[: rows - start] + 0.01 * rng.normal(size=16)
    file.flush()
    return place


def measured(model: str, place: Path, how: str = "array", iterations: int = 4, **options: int) -> dict:
    asked = json.dumps([model, str(place), how, iterations, options])
    done = subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MODELS = [("gmm", {"components": 16}), ("ppca", {}), ("factor_analysis", {})]


@pytest.mark.full
@pytest.mark.parametrize(("model", "options"), MODELS)
def test_a_fit_of_200_000_rows_takes_half_of_what_a_million_may(tmp_path, model, options):
    found = measured(model, table(tmp_path / "x.npy", 200_000), iterations=2, **options)
    assert found["mb"] < MOST_MB / 2  # 26 MB are the data; chunks, draws and predictive data have limits of their own
    assert found["value"] == pytest.approx(found["verified"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), MODELS)
def test_a_fit_of_a_million_rows_takes_less_than_512_mb(tmp_path, model, options):
    found = measured(model, table(tmp_path / "x.npy", 1_000_000), **options)
    assert found["mb"] < MOST_MB
    assert "posterior" not in found["notes"] and found["means"] + found["probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "path"])
def test_a_map_of_3_gb_takes_less_than_512_mb(tmp_path, how):
    place = table(tmp_path / "x.npy", 23_437_500)
    try:
        found = measured("ppca", place, how, iterations=2)
    finally:
        place.unlink()
    assert found["n"] == 23_437_500 and found["mb"] < MOST_MB
    assert found["value"] == pytest.approx(found["verified"], rel=1e-9)
    assert "left out" in found["notes"]["posterior"] and not found["means"]


# ---- maps ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Maps are used from the first byte on."""
    monkeypatch.setattr(mapped, "MAPPED", 0)


def lies_in(x: np.ndarray, place: Path) -> bool:
    """Whether x stands in a map of that file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(place))]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    return any(first <= x.__array_interface__["data"][0] < last for first, last in ranges)


def saved(place: Path, x: np.ndarray) -> Path:
    np.save(place, x)
    return place


def test_a_map_gives_the_numbers_of_an_array_to_the_last_bit(tmp_path, small):
    x = np.random.default_rng(2).normal(size=(300, 5))
    place = saved(tmp_path / "x.npy", x)
    plain = run("gmm", x, max_iter=20)
    for data in (place, np.load(place, mmap_mode="r"), np.load(place, mmap_mode="r+"), np.load(place, mmap_mode="c")):
        fit = run("gmm", data, max_iter=20)
        assert lies_in(fit.x, place)
        assert fit.claimed.value == plain.claimed.value
        np.testing.assert_array_equal(fit.parameters["locs"], plain.parameters["locs"])


def test_a_slice_of_a_map_is_a_map_where_it_begins_on_a_border(tmp_path, small):
    x = np.random.default_rng(3).normal(size=(300, 8))
    whole = np.load(saved(tmp_path / "x.npy", x), mmap_mode="r")
    found = mapped.private(np.asarray(whole[100:200]))
    assert found is not None
    np.testing.assert_array_equal(found, x[100:200])
    assert mapped.private(np.asarray(whole[:, :4])) is None  # not one row after the other


def test_writing_into_the_data_changes_neither_the_file_nor_the_callers_map(tmp_path, small):
    x = np.random.default_rng(4).normal(size=(50, 8))
    place = saved(tmp_path / "x.npy", x)
    theirs = np.load(place, mmap_mode="r+")
    fit = run("ppca", theirs, max_iter=3)
    fit.x[:] = 0.0
    np.testing.assert_array_equal(theirs, x)
    np.testing.assert_array_equal(np.load(place), x)


def test_a_map_whose_file_was_replaced_or_changed_in_memory_is_copied(tmp_path, small):
    x = np.random.default_rng(5).normal(size=(50, 8))
    place = saved(tmp_path / "x.npy", x)
    changed = np.load(place, mmap_mode="c")
    changed[0] = 7.0
    assert mapped.private(np.asarray(changed)) is None
    theirs = np.load(place, mmap_mode="r")
    saved(tmp_path / "other.npy", x + 1).replace(place)
    assert mapped.private(np.asarray(theirs)) is None
    np.testing.assert_array_equal(run("ppca", theirs, max_iter=3).x, x)


def test_a_map_of_other_numbers_is_copied_and_a_file_of_objects_refused(tmp_path, small):
    x = np.arange(40).reshape(10, 4)
    place = saved(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(run("ppca", place, max_iter=3).x, x)
    fortran = saved(tmp_path / "f.npy", np.asfortranarray(x.astype(float)))
    np.testing.assert_array_equal(run("ppca", fortran, max_iter=3).x, x)
    np.save(tmp_path / "o.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        run("ppca", tmp_path / "o.npy")


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_posteriors_of_too_many_rows_are_left_out_with_a_word(monkeypatch, tmp_path):
    from inference._method import row_posteriors

    x = np.random.default_rng(6).normal(size=(60, 4))
    x[0, 0] = np.nan
    whole = run("gmm", x, max_iter=5)
    monkeypatch.setattr(row_posteriors, "MOST_NUMBERS", 100)
    fit = run("gmm", x, max_iter=5, out=tmp_path / "run")
    assert not fit.draws and not fit.probabilities and fit.claimed.value == whole.claimed.value
    assert fit.notes["posterior"] == "left out: the posteriors of 60 rows are 120 numbers, over the limit of 100"
    with pytest.raises(ValueError, match="this run holds none"):
        fit.impute()


@pytest.mark.full
def test_sums_over_chunks_give_the_same_fit(monkeypatch):
    """Of more rows than `MOST_SUMMED` an E-step keeps log p(x_i) only summed over chunks, and the verified evidence each of
    them alone."""
    from inference import em
    from inference._exact import enumeration, linear

    x = np.random.default_rng(7).normal(size=(3000, 4))
    x[5, 2] = np.nan
    whole = {model: run(model, x, max_iter=10) for model in ("gmm", "ppca")}
    for module in (enumeration, linear, em):
        monkeypatch.setattr(module, "MOST_SUMMED", 10)
    for model, one in whole.items():
        other = run(model, x, max_iter=10)
        assert other.claimed.value == pytest.approx(one.claimed.value, rel=1e-12)
        assert other.claimed.se == 0 and other.claimed.per_datum is None and len(other.verified.per_datum) == 3000


def test_a_large_run_folder_holds_the_data_once_and_is_read_back(monkeypatch, tmp_path):
    import pyro
    import torch

    import inference
    from inference._run import netcdf, saving

    def program(x=None, size=None):
        loc = pyro.param("loc", torch.zeros(4))
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("y", pyro.distributions.Normal(loc, 1.0).to_event(1), obs=x)

    monkeypatch.setattr(saving, "MOST_BYTES", 1000)
    monkeypatch.setattr(netcdf, "IN_MEMORY", 2000)
    x = np.random.default_rng(8).normal(size=(500, 4))
    fit = run(program, x, out=tmp_path / "run")
    assert fit.observed["y"] is not None and np.shares_memory(fit.observed["y"], fit.x)
    (warning,) = (w for w in fit.warnings if "leaves out" in w)
    assert "each row's evidence" in warning and "'y' of observed_data, equal to x" in warning
    tree = read_netcdf((tmp_path / "run" / "fit.nc").read_bytes())
    assert set(tree["observed_data"].data_vars) == {"x"} and "sample_stats" not in tree
    np.testing.assert_array_equal(tree["observed_data/x"], x)
    assert inference.load(tmp_path / "run").claimed.value == fit.claimed.value


def test_a_reserved_file_is_what_would_have_been_made_in_memory(monkeypatch, tmp_path):
    from inference._run import netcdf as module

    tree = run("gmm", np.random.default_rng(9).normal(size=(20_000, 3)), max_iter=2).idata
    inside = netcdf(tree)
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    write_netcdf(tree, tmp_path / "x.nc")
    assert (tmp_path / "x.nc").read_bytes() == inside
