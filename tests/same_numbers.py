"""The numbers that fixed requests to the `zoo` command give, kept in a file to hold a changed code against.

    python tests/same_numbers.py write tests/same_numbers.json    run every request, write its numbers
    python tests/same_numbers.py check tests/same_numbers.json    run them again; exit 1 on a relative difference above 1e-12

Names after the file choose some of the requests. Only the public command is used, so any change inside leaves this valid.
What is compared: every number and truth value of the JSON document, the `kind` of the evidence, the exit status, and the
arrays of the run folder (`fit.nc`) or of `zoo impute`. What is left out: times, memory, versions, paths, sentences. An array
of more than six numbers is kept as a digest.

With one thread, two runs on one machine agree bit for bit. Other rounding moves a result by more than 1e-12 where many steps
of training follow on it. To see how much, check unchanged code with other instructions (here for x86):

    ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Nehalem MKL_ENABLE_INSTRUCTIONS=SSE4_2 python tests/same_numbers.py check …
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # read when NumPy and torch are first imported

import numpy as np  # noqa: E402

PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "scikit-learn")
STRICT = 1e-12  # the largest relative difference where the order of operations changed
LEFT_OUT = {"seconds", "peak_memory_mb", "versions", "reason"}  # and all text but that of
WORDS = {"kind", "status", "exact"}
INTERRUPTED = 130  # the exit status after Ctrl-C
TABLES = ("parameters.csv", "rows.csv", "README.txt")
SHORT = 6  # numbers of an array that are kept one by one
SMALLEST = 1e-9  # scalars nearer to zero than this are rounding errors: they are compared on this scale

# ---------------------------------------------------------------------------------------------------------- requests

# Each request is one or more commands, run in one new folder that holds the files of `write_files`. `run` and `infer` get
# `--out fit` where they name no folder. A word NAME=value before a command is an environment variable for it.
MNIST = "--data mnist5k --rows 15 --binarize fixed"
DIGITS = "--data digits --rows 120 --binarize 8"
PIXELS = "--data pixels.npy"
WINE = "--data wine --standardize"
DEEP = "--set latents=2 --set hidden=8"
TANH = f"{DEEP} --set activation=tanh"
MADE = "--set hidden=8"

REQUESTS: dict[str, list[str]] = {
    # mixtures of Gaussians
    "gmm em": ["run gmm --data faithful --method em --set components=3 --seed 1"],
    "gmm em tied restarts": [
        "run gmm --data iris --method em --set components=3 --set covariance=tied --set restarts=3 --set start=random --seed 2"
    ],
    "gmm em diagonal floor": [
        "run gmm --data iris --method em --set components=4 --set covariance=diagonal --set floor=0.01 --set start=kmeans"
    ],
    "gmm em spherical plain": [
        "run gmm --data wine --rows 80 --method em --set covariance=spherical --set accelerate=false --set start=program"
    ],
    "gmm em holes": ["run gmm --data holes.csv --method em --set components=2", "impute fit --draws 3 --seed 4"],
    "gmm em missing random": [
        "run gmm --data breast_cancer --rows 60 --standardize --missing random:0.2 --method em --set components=1 "
        "--set max_iter=10"
    ],
    "gmm em priors": ["run gmm --data faithful --method em --set priors=true --set covariance=diagonal"],
    "gmm laplace priors": ["run gmm --data faithful --rows 90 --method laplace --set priors=true"],
    "gmm laplace": ["run gmm --data iris --method laplace --set covariance=diagonal --set components=2"],
    "gmm svi": ["run gmm --data faithful --method svi --set epochs=15 --set batch=50 --set guide_covariance=full"],
    "gmm svi priors": [
        "run gmm --data faithful --rows 60 --method svi --set priors=true --set optimizer=lbfgs --set epochs=40"
    ],
    "gmm importance prior": [
        "run gmm --data faithful --method importance --set proposal=prior --set samples=200 --set epochs=5"
    ],
    "gmm compare": [
        "compare gmm --data faithful --rows 70 --methods em,laplace,importance,gibbs --set samples=100 --set epochs=3"
    ],
    # probabilistic PCA and factor analysis
    "ppca em": [f"run ppca {WINE} --method em --set latents=3"],
    "ppca em eigenvectors noise": [
        f"run ppca {WINE} --rows 90 --method em --set init=eigenvectors --set noise=0.5 --dtype float32"
    ],
    "ppca em holes": ["run ppca --data holes.csv --method em --set latents=2", "impute fit --draws 3"],
    "ppca laplace": [f"run ppca {WINE} --method laplace --set latents=2 --seed 3"],
    "ppca svi mean_field": [f"run ppca {WINE} --rows 60 --method svi --set guide=mean_field --set epochs=20"],
    "ppca infer ais": [
        "run ppca --data iris --rows 40 --method em --set latents=1 --out first",
        "infer first --method ais --set temperatures=30 --set chains=20 --set leapfrog=3",
    ],
    "factor_analysis em": [f"run factor_analysis {WINE} --method em --set latents=2"],
    "factor_analysis em missing": [
        f"run factor_analysis {WINE} --rows 100 --missing random:0.2 --method em --set max_iter=60 --seed 5"
    ],
    "factor_analysis importance laplace": [
        "run factor_analysis --data iris --method em --set latents=1 --out first",
        "infer first --method importance --set proposal=laplace --set samples=200",
    ],
    # deep latent Gaussian models
    "deep svi gaussian": [
        f"run deep_latent_gaussian {WINE} --method svi {TANH} --set epochs=10 --set particles=3 --set held_out=0.2 "
        "--set patience=2 --set clip=5 --set tol=0.01"
    ],
    "deep importance sleep": [
        f"run deep_latent_gaussian {WINE} --rows 60 --method importance {DEEP} --set epochs=6 --set insomnia=0.5 "
        "--set samples=100 --set decoder=linear --set schedule=cosine"
    ],
    "deep svi dynamic": [
        "run deep_latent_gaussian --data mnist5k --rows 40 --binarize dynamic --method svi --set likelihood=bernoulli "
        f"{TANH} --set epochs=4 --set schedule=cosine --set batch=30",
        f"infer fit --method importance {MNIST} --set samples=50 --out weighed",
    ],
    "deep svi mixture": [
        f"run deep_latent_gaussian --data iris --rows 80 --method svi {DEEP} --set prior=mixture --set components=3 "
        "--set epochs=5 --set schedule=constant --set activation=relu --set lr=0.01"
    ],
    "deep svi layers": [
        f"run deep_latent_gaussian {DIGITS} --method svi --set likelihood=bernoulli {TANH} --set layers=2 --set epochs=5"
    ],
    "deep importance classes": [
        f"run deep_latent_gaussian --data labelled.csv --method importance {TANH} --set classes=2 --set epochs=5 "
        "--set defensive=0.3 --set samples=100 --set particles=5"
    ],
    "deep laplace": [
        f"run deep_latent_gaussian {WINE} --rows 50 --method laplace {TANH} --set max_iter=15 --set samples=100"
    ],
    "deep laplace linear": [
        "run deep_latent_gaussian --data pixels.npy --rows 40 --method laplace --set decoder=linear "
        "--set likelihood=bernoulli --set latents=1 --set max_iter=20 --set samples=100"
    ],
    "deep holes float32": [
        f"run deep_latent_gaussian --data holes.csv --method svi {TANH} --set epochs=8 --dtype float32 --seed 6"
    ],
    # binary images with missing pixels
    "missing_pixels svi made": [
        f"run missing_pixels {PIXELS} --missing random:0.3 --method svi {MADE} --set guide=autoregressive --set epochs=5"
    ],
    "missing_pixels importance sequential": [
        f"run missing_pixels {PIXELS} --missing random:0.3 --method importance {MADE} --set epochs=3 --out first "
        "--set guide=autoregressive --set samples=50",
        "infer first --method importance --set proposal=sequential --set samples=60 --set filters=3",
        "infer first --method gibbs --set sweeps=20 --set warmup=5 --set chains=2 --out chains",
        "impute chains --draws 4",
    ],
    "missing_pixels em mixture": [
        f"run missing_pixels {PIXELS} --missing mask.npy --method em --set net=mixture --set components=3"
    ],
    "missing_pixels svi reversed": [
        "run missing_pixels --data digits --rows 40 --binarize 8 --missing top --method svi --set net=logistic "
        "--set order=reversed --set epochs=5"
    ],
    "missing_pixels em observed first": [
        f"run missing_pixels --data small.npz --method em {MADE} --set order=observed-first --set max_iter=10"
    ],
    # programs and guides in a user's file
    "user em poisson": ["run programs.py:poisson --data counts.csv --method em --set components=2"],
    "user em regressions": ["run programs.py:Regressions --data lines.csv --method em --set components=2 --seed 7"],
    "user causes limit": [
        "run programs.py:causes --data holes.csv --method em --set max_iter=30 --out first",
        "run programs.py:causes --data holes.csv --method importance --limit 7 --set epochs=3 --set samples=100",
        "infer first --model programs.py:causes --method gibbs --set sweeps=20 --set warmup=5 --out chains",
    ],
    "user em families": ["run programs.py:families --data mixed.csv --method em --set max_iter=25 --set tol=1e-6"],
    "user em normals": ["run programs.py:normals --data other.csv --method em --set max_iter=10"],
    "user em no kernel": ["run programs.py:no_kernel --data counts.csv --method em --set max_iter=15"],
    "user em network": ["run programs.py:Network --data holes.csv --method em --set max_iter=8 --seed 8"],
    "user plates": [
        f"run programs.py:plate_left {PIXELS} --missing random:0.1 --method em --out left",
        "run programs.py:plate_right --data holes.csv --method em --out right",
        "infer right --trust --method importance --set samples=50 --set epochs=3 --out weighed",
        "run programs.py:plate_of_causes --data holes.csv --method em --set max_iter=10 --out causes",
        "infer causes --trust --method gibbs --set sweeps=20 --set warmup=5 --out chains",
    ],
    "user em linear": [
        "run programs.py:factor_mixture --data holes.csv --method em --set max_iter=40 --out first",
        "run programs.py:correlated_noise --data holes.csv --method em --set max_iter=20 --out second",
        "run programs.py:own_noise --data other.csv --method em --set max_iter=20 --out third",
        "run programs.py:unknown_mean --data holes.csv --method em --out fourth",
        "impute fourth --trust --draws 3",
    ],
    "user laplace": [
        "run programs.py:hierarchy --data counts.csv --method laplace --out first",
        "run programs.py:stoppable --data counts.csv --method laplace --set max_iter=10 --set tries=3 --out second",
        "run programs.py:unknown_mean --data holes.csv --method laplace --out third",
    ],
    "user svi globals": ["run programs.py:hierarchy --data counts.csv --method svi --set epochs=20 --set batch=20"],
    "user guide": [
        "run programs.py:intercept --data holes.csv --method svi --set guide=programs.py:guide --set epochs=10",
        "infer fit --trust --method importance --data other.csv --set samples=50 --out weighed",
    ],
    "user resume": [
        "ZOO_STOP_AT=100 run programs.py:stoppable --data counts.csv --method svi --set epochs=12 --checkpoint 0",
        "run programs.py:stoppable --resume fit",
    ],
    # what is no fit
    "refused": ["run gmm --data faithful --set priors=true --method gibbs", "run gmm --data nothing.csv"],
    "describe": [
        "describe gmm --data faithful --set components=3",
        "describe programs.py:causes --data holes.csv --limit 7",
        f"describe missing_pixels {PIXELS} --missing random:0.3 {MADE}",
    ],
}


def write_files(folder: Path) -> None:
    """The data and the program that the requests name, the same every time."""
    random = np.random.default_rng(0)
    group = random.random(60) < 0.4
    table = random.normal(size=(60, 4)) + 2.5 * group[:, None] + random.normal(size=(60, 1))
    _table(folder / "other.csv", "a,b,c,d", table[:12] + 0.25)
    _table(folder / "holes.csv", "a,b,c,d", np.where(random.random(table.shape) < 0.15, np.nan, table))
    _table(folder / "labelled.csv", "a,b,c,label", np.column_stack([table[:, :3], group]))
    _table(folder / "counts.csv", "a,b,c", random.poisson(np.where(group, 1.5, 6.0)[:, None] * [1.0, 0.5, 2.0]))
    u = random.uniform(-2, 2, 60)
    noise = 0.3 * random.normal(size=60)
    _table(folder / "lines.csv", "u,y", np.column_stack([u, np.where(group, 1 + 2 * u, -u) + noise]))
    pixels = (random.random((60, 16)) < np.where(group[:, None], 0.8, 0.3)).astype(float)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "mask.npy", random.random(pixels.shape) < 0.25)
    np.savez(folder / "small.npz", x=np.where(random.random((40, 6)) < 0.3, np.nan, pixels[:40, :6]))
    mixed = [*pixels[:, :2].T, *pixels[:, 2:4].T, random.integers(3, size=60), random.exponential(1 + group)]
    mixed[:2] = random.poisson(1 + 3 * pixels[:, :2]).T
    _table(folder / "mixed.csv", "a,b,c,d,e,f,g,h", np.column_stack([*mixed, table[:, :2]]))
    shutil.copy(Path(__file__).with_name("same_numbers_programs.py"), folder / "programs.py")


def _table(path: Path, columns: str, x: np.ndarray) -> None:
    rows = (",".join("" if np.isnan(v) else f"{v:.4g}" for v in row) for row in x)
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------- running a request


def numbers(name: str) -> dict[str, Any]:
    """What the request `name` gives: field → number, truth value, word or digest."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, _at(Path(place)):
        write_files(Path(place))
        for i, command in enumerate(REQUESTS[name]):
            status, text, said, folder = _command(command)
            found[f"{i}/exit"] = status
            if status not in (0, INTERRUPTED) and name != "refused":
                print(f"zoo {command}\n{said}", file=sys.stderr)
            if text.strip():
                found |= _numbers(json.loads(text), f"{i}")
            if folder is not None and folder.is_dir():
                found |= _arrays(folder, f"{i}")
    again = {k: k.replace("fit.nc/constant_data", "parameters") for k in found if "fit.nc/constant_data" in k}
    return {k: v for k, v in found.items() if k not in again or v != found.get(again[k])}


def _command(command: str) -> tuple[int, str, str, Path | None]:
    """Exit status, standard output, standard error, and the folder that the command writes."""
    words = shlex.split(command)
    variables = dict(w.split("=", 1) for w in words if w.split("=")[0].isupper())
    words = [w for w in words if w.split("=")[0] not in variables]
    folder = None
    if words[0] in ("run", "infer", "compare"):
        words += ["--device", "cpu"]
        if "--resume" not in words and "--out" not in words:
            words += ["--out", "fit"]
        folder = Path(words[words.index("--resume" if "--resume" in words else "--out") + 1])
    if words[0] == "impute":
        words += ["--out", "imputed"]
        folder = Path("imputed")
    os.environ.update(variables)
    try:
        return *_zoo(*words, "--json"), folder
    finally:
        for variable in variables:
            del os.environ[variable]


def _zoo(*words: str) -> tuple[int, str, str]:
    """The command in this process, on one thread: exit status, standard output, standard error."""
    import torch

    import latent_zoo

    before, threads = sys.argv, torch.get_num_threads()
    out, said = io.StringIO(), io.StringIO()
    sys.argv = ["zoo", *words]
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            latent_zoo.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
    return status, out.getvalue(), said.getvalue()


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---------------------------------------------------------------------------------------------- numbers of a document


def _numbers(value: Any, path: str) -> dict[str, Any]:
    """Field → number, truth value, word or digest, of a JSON document."""
    field = path.rsplit("/", 1)[-1]
    if isinstance(value, dict):
        parts = (_numbers(v, f"{path}/{k}") for k, v in value.items() if k not in LEFT_OUT)
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, list):
        if (array := _numeric(value)) is not None:
            return {path: _digest(array)}
        parts = (_numbers(v, f"{path}/{i}") for i, v in enumerate(value))
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, str) and field not in WORDS:
        return {}
    return {path: value}


def _numeric(value: list[Any]) -> np.ndarray | None:
    """A list of numbers, or of lists of them, as an array; None where it holds anything else."""
    try:
        array = np.asarray(value, dtype=object if not value else None)
    except ValueError:  # lists of unequal lengths
        return None
    return array.astype(float) if array.size and array.dtype.kind in "fiu" else None


def _digest(array: np.ndarray) -> Any:
    """The numbers themselves where they are few, else a digest in which a change of any or an exchange of two shows."""
    flat = np.ascontiguousarray(array, dtype=float).ravel()
    finite = flat[np.isfinite(flat)]
    if flat.size <= SHORT and finite.size == flat.size:
        return flat.tolist()
    turns = np.cos(np.arange(finite.size))
    return {
        "length": flat.size if flat.size == finite.size else [flat.size, finite.size],  # all, and those not NaN
        "sum": math.fsum(finite),
        "turned": math.fsum(finite * turns),  # weighted by cos 0, cos 1, …
        "size": math.fsum(abs(finite)),  # the scale that differences are measured on
        "bits": hashlib.sha256(flat.tobytes()).hexdigest()[:12],
    }


def _arrays(folder: Path, path: str) -> dict[str, Any]:
    """The arrays that a run or `zoo impute` wrote."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        at = f"{path}/{file.relative_to(folder)}"
        if file.name in TABLES:  # the same numbers in words
            continue
        if file.suffix == ".nc":
            found |= _netcdf(file, at)
        elif file.suffix == ".npy" and (x := np.load(file)).dtype.kind in "fiub":
            found[at] = _digest(x)
        elif file.suffix == ".npz":
            found |= {f"{at}/{k}": _digest(v) for k, v in np.load(file).items() if v.dtype.kind in "fiub"}
        elif file.suffix == ".csv":
            found[at] = _digest(np.genfromtxt(file, delimiter=",", skip_header=1))
    return found


def _netcdf(file: Path, path: str) -> dict[str, Any]:
    """Every numeric variable of a file, but for those of a dimension, which only count."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" and item.size and not item.is_scale:
            found[f"{path}/{name}"] = _digest(item[()])

    with h5py.File(file) as tree:
        tree.visititems(visit)
    return found


# -------------------------------------------------------------------------------------------------------- comparing


def difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of two requests' numbers, and the field it is in; (0, "") where there is none.

    Infinite where a field is not there any more, or has another word, truth value or length. A field that is new is none.
    """
    worst, where = 0.0, ""
    for field, old in before.items():
        new = after.get(field, "no such field")
        found = _apart(old, new)
        if found > worst:
            worst, where = found, f"{field}: {_shown(old)} → {_shown(new)}"
    return worst, where


def _apart(old: Any, new: Any) -> float:
    if isinstance(old, dict) and isinstance(new, dict):
        if old["length"] != new["length"]:
            return math.inf
        return max(_relative(old[k], new[k], old["size"]) for k in ("sum", "turned", "size"))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        scale = max(map(abs, old))
        return max(_relative(a, b, scale) for a, b in zip(old, new, strict=True))
    if _is_number(old) and _is_number(new):
        return _relative(old, new, SMALLEST)
    return 0.0 if type(old) is type(new) and old == new else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relative(a: float, b: float, scale: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b), scale)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"sum {value['sum']!r} of {value['length']} numbers"
    return repr(value)


# ------------------------------------------------------------------------------------------------------- the command


def versions() -> dict[str, str]:
    """Of the packages whose random numbers and starts the results depend on: "1.2" of 1.2.3."""
    return {name: ".".join(version(name).split(".")[:2]) for name in PACKAGES}


def read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The versions that the numbers were made with, and the numbers of each request."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept.pop("versions"), kept


def write(path: Path, names: list[str]) -> int:
    """Write the numbers of the requests `names`, or of all, to the file; the exit status."""
    kept = read(path)[1] if names else {}
    for name in names or REQUESTS:
        start = time.perf_counter()
        kept[name] = numbers(name)
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {len(kept[name])} fields", flush=True)
    path.write_text(_text({"versions": versions(), **{k: kept[k] for k in REQUESTS}}), encoding="utf-8")
    return 0


def check(path: Path, names: list[str]) -> int:
    """Compare the requests `names`, or all, with the file; the exit status."""
    made_with, kept = read(path)
    if made_with != versions():
        print(f"The file was made with {made_with}, and this is {versions()}.")
    failed, same = [], 0
    for name in names or REQUESTS:
        start = time.perf_counter()
        found = json.loads(json.dumps(numbers(name)))
        worst, where = difference(kept[name], found)
        alike = all(found.get(k, math.nan) == v for k, v in kept[name].items())
        new = sorted(found.keys() - kept[name].keys())
        same += alike
        if worst > STRICT:
            failed.append(name)
        verdict = "bit for bit" if alike else f"{'DIFFERS' if worst > STRICT else 'the same'} to {worst:.1e}  {where}"
        also = f"; new fields: {', '.join(new[:3])} ({len(new)})" if new else ""
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {verdict}{also}", flush=True)
    print(f"{same} of {len(names or REQUESTS)} bit for bit; {len(failed)} differ: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _text(kept: dict[str, dict[str, Any]]) -> str:
    """JSON with a line for each field, so that a difference is read by eye."""
    blocks = []
    for name, fields in kept.items():
        lines = ",\n".join(f"  {json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in fields.items())
        blocks.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    sys.exit({"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]).absolute(), sys.argv[3:]))
