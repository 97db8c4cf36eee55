"""Generated wrong inputs: what no command and no call in Python may accept. `make(seed)` gives one, the same each time."""

from __future__ import annotations

import io
import json
import random
import shutil
import typing
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import inference
from inference._run.prepare import method_module
from zoo import _options, _registry
from zoo._program.load import option_schema, resolve

PROGRAM = """
import pyro, torch
import pyro.distributions as dist

def model(x=None, size=None):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", size if x is None else len(x)):
        return pyro.sample("x", dist.Normal(loc, 5.0).to_event(1), obs=x)
"""
TABLE = "a,b\n1,2\n3,5\n4,4\n2,1\n0,3\n"
SUITE = '[[fit]]\nmodels = "gmm"\ndata = "faithful"\nmethods = "em"\n'


@dataclass(frozen=True)
class Wrong:
    """A call of the command, or of a function, and what it is shown as. Its files are there already."""

    shown: object
    command: tuple[str, ...] = ()
    call: Callable[[], object] | None = None


# ---- one or two things wrong on a command line -----------------------------------------------------------------------

ODD = ("", " ", "nope", "-1", "∞", "\x1b[2J", "a" * 300, "../../nowhere", "gmm ", "0x10", "{}", "\u202egmm")
NO_COUNT = ("0", "-3", "x", "1.5", "", "9" * 40, "nan")
WRONG = {
    "MODEL": (*ODD, "nothing.py:f", "broken.py:f", "program.py:nothing", "program.py", "program.py:", "data.csv", "gmm:x"),
    "RUN": (*ODD, "damaged", "data.csv", "folder"),
    "--data": (*ODD, "nothing.csv", "empty.csv", "words.csv", "cut.npy", "objects.npy", "folder", "program.py", "faithful:x"),
    "--method": (*ODD, "EM", "em,svi"),
    "--methods": ("", ",", "em,nope", "nope", "em em", "em,em", "em,svi,em"),
    "--set": (
        "components=0", "components=-1", "components=x", "components=1.5", "components=", "components=nan", "components=9999",
        "components=" + "9" * 30, "nokey", "=3", "zzz=1", "covariance=odd", "covariance=", "priors=maybe", "seed=1",
        "checkpoint=0", "data=faithful", "", "hidden=", "hidden=8", "epochs", "=", "==", "priors=2", "components=2,3",
    ),
    "--seed": ("-1", "x", "1.5", "9" * 30, "", "4294967296"),
    "--rows": (*NO_COUNT, "273"),
    "--limit": ("0", "-1", "x", "", "9" * 30),
    "--dtype": ODD,
    "--device": (*ODD, "cuda:0", "gpu"),
    "--binarize": ("", "nope", "nan", "inf", "fixed,", "dynamic ", "1e999"),
    "--missing": ("", "nope", "top", "random:2", "random:x", "random:", "random:-0.1", "random:nan", "nothing.npy", "cut.npy",
                  "objects.npy", "renamed.npy", "mask.csv"),
    "--out": ("", "folder", "data.csv", "data.csv/x", "a" * 300, "dangling", "folder/" + "b" * 300, "~nobody_here/x"),
    "--checkpoint": ("-1", "x", "", "nan"),
    "--draws": ("0", "-1", "x", "", "9" * 30),
    "--format": ("", "gif", "PNG", "x" * 300),
    "--model": ("nope", "program.py:model", "nothing.py:f", "broken.py:f", ""),
    "--jobs": ("0", "-1", "x"),
    "--backend": ("", "nope", "x" * 300),
    "--only": ("nope", "-", "x" * 300),
    "SUITE": (*ODD, "bad.toml", "nothing.toml", "cut.toml", "folder.toml"),
    "DIR": (*ODD[2:], "folder", "damaged.json", "nothing"),
}  # fmt: skip
ROLES = ("--columns", "--drop", "--labels", "--rows-by", "--na", "--weights", "--covariates", "--categories")
WRONG |= dict.fromkeys(ROLES, ("", " ", ",", "nope", "eruptions,eruptions,nope", "\x1b[2J", "a" * 300)) | {
    "--na": ("", " ")
}
PREPARED = (*ROLES, "--rows", "--binarize", "--missing", "--limit", "--seed", "--set")
TAKES = {
    ("describe", "gmm", "--data", "faithful"): ("MODEL", "--data", *PREPARED),
    ("run", "gmm", "--data", "faithful"): (
        "MODEL", "--data", "--method", *PREPARED, "--dtype", "--device", "--out", "--checkpoint",
    ),
    ("compare", "gmm", "--data", "faithful"): ("MODEL", "--data", "--methods", *PREPARED, "--dtype", "--device", "--out"),
    ("infer", "whole", "--method", "em"): ("RUN", "--data", "--method", "--device", "--seed", "--out", "--model"),
    ("plot", "whole"): ("RUN", "--format", "--model"),
    ("impute", "holes"): ("RUN", "--draws", "--seed", "--out", "--model"),
    ("bench", "one.toml"): ("SUITE", "--jobs", "--backend", "--only", "--set"),
    ("report", "results"): ("DIR",),
}  # fmt: skip


def command_line(chance: random.Random) -> Wrong:
    base = chance.choice(sorted(TAKES))
    call = list(base)
    for slot in chance.sample(TAKES[base], min(len(TAKES[base]), chance.choice((1, 1, 1, 2)))):
        value = chance.choice(WRONG[slot])
        if not slot.startswith("-"):
            call[1] = value
        elif slot in call:
            call[call.index(slot) + 1] = value
        else:
            call += [f"{slot}={value}"]
    return Wrong(call, tuple(call))


# ---- every option of every model and method, absurd, or of no use ----------------------------------------------------


def _absurd(annotation: Any) -> tuple[str, ...]:
    """What no option of this kind can be."""
    origin, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _absurd(kinds[0])
    if annotation is bool:
        return ("maybe", "2", "-1", "none", "tru")
    if annotation is int:
        return ("-1", "x", "1.5", "nan", "inf", "9" * 30, "1,2", "0x8", "1_0_")
    if annotation is float:
        return ("-1", "x", "nan", "inf", "-inf", "1e999", "1,5", "-1e-9")
    if origin is typing.Literal:
        return ("odd", "0", "None", *(f"{kinds[0]}{end}" for end in ("x", " y", ",")))
    if origin is tuple:
        return (",", "8,,8", "8,", "0", "-3", "x", "1.5", "8;8", "9" * 30, "nan")
    if origin is not None:  # a union
        return _absurd(next(k for k in kinds if k is not type(None)))
    return ("nope", "nope.py:f", "broken.py:f", "program.py:nothing", ":", "Amortized")


def _options_of() -> Iterator[tuple[str, str, str, Any]]:
    for model in _registry.models():
        for name, parameter in option_schema(resolve(model)[0]).items():
            yield model, "em", name, parameter.annotation
    for method in _registry.methods():
        for name, parameter in _options.schema(method_module(method).fit).items():
            yield "deep_latent_gaussian", method, name, parameter.annotation


UNUSED = (
    ("missing_pixels", "em", "net=mixture", "hidden=8"), ("missing_pixels", "em", "net=logistic", "hidden=8"),
    ("missing_pixels", "em", "net=made", "components=3"), ("missing_pixels", "em", "components=3"),
    ("missing_pixels", "em", "net=mixture", "order=reversed"), ("deep_latent_gaussian", "svi", "components=3"),
    ("deep_latent_gaussian", "laplace", "decoder=linear", "hidden=8"),
    ("deep_latent_gaussian", "laplace", "decoder=linear", "activation=relu"), ("gmm", "em", "hidden=8"),
    ("gmm", "em", "latents=2"), ("gmm", "em", "epochs=3"), ("ppca", "em", "components=2"), ("gmm", "svi", "sweeps=9"),
    ("gmm", "svi", "guide=mean_field", "hidden=8"), ("gmm", "svi", "guide=autoregressive", "guide_covariance=full"),
    ("gmm", "svi", "optimizer=lbfgs", "batch=8"), ("gmm", "svi", "optimizer=lbfgs", "lr=0.1"),
    ("gmm", "svi", "optimizer=lbfgs", "schedule=cosine"), ("gmm", "svi", "optimizer=lbfgs", "held_out=0.2"),
    ("gmm", "svi", "optimizer=lbfgs", "clip=3"), ("gmm", "importance", "proposal=prior", "hidden=8"),
    ("gmm", "importance", "proposal=prior", "guide=mean_field"), ("gmm", "importance", "filters=4"),
    ("gmm", "importance", "proposal=prior", "guide_covariance=full"), ("gmm", "importance", "proposal=laplace", "hidden=8"),
)  # fmt: skip


def option(chance: random.Random) -> Wrong:
    if chance.random() < 0.25:
        model, method, *settings = chance.choice(UNUSED)
    else:
        model, method, name, annotation = chance.choice(list(_options_of()))
        settings = [f"{name}={chance.choice(_absurd(annotation))}"]
    data = (
        ("--data", "digits", "--binarize", "8", "--rows", "20") if model == "missing_pixels" else ("--data", "faithful")
    )
    if model == "missing_pixels" and method == "em":
        method = "svi" if "hidden" not in " ".join(settings) else "em"
    sets = [part for s in settings for part in ("--set", s)]
    return Wrong((model, settings), ("run", model, *data, "--method", method, *sets))


# ---- files of data ---------------------------------------------------------------------------------------------------


def table(chance: random.Random) -> Wrong:
    """A CSV file in which one thing cannot be."""
    rows = [[str(chance.randint(-9, 9)) for _ in range(3)] for _ in range(chance.randint(3, 12))]
    i, j = chance.randrange(1, len(rows)), chance.randrange(3)
    kind = chance.randrange(12)
    header, tail, ends = "a,b,c\n", b"", "\n"
    if kind == 0:
        rows[i][j] = chance.choice(
            ("x", "1.2.3", "1 2", "--1", "1e", "0x1", "1_0", "∞", "1+2j", "$3", "1%", "null", "TRUE")
        )
    elif kind == 1:
        rows[i][j] = chance.choice(("inf", "-inf", "1e999", "Infinity"))
    elif kind == 2:
        rows[i][j] = chance.choice(("1e200", "-1e180"))
    elif kind == 3:
        rows[i] = rows[i][: chance.choice((1, 2))] or ["1"]
    elif kind == 4:
        rows[i] += ["7"] * chance.randint(1, 3)
    elif kind == 5:
        rows[i][j] = '"' + rows[i][j]
    elif kind == 6:
        tail = bytes([chance.randint(0x80, 0xBF)]) * chance.randint(1, 3)
    elif kind == 7:
        rows = []
    elif kind == 8:
        header, rows = chance.choice(("", "\n\n", " \n")), []
    elif kind == 9:
        rows[i][j] = "1\0"
    elif kind == 10:
        rows = [["", "NA", "?"] for _ in rows]
    else:
        header = chance.choice(("a,b,3\n", "a,1,c\n", "x,2.5,\n"))
    text = header + "".join(",".join(r) + ends for r in rows)
    Path("wrong.csv").write_bytes(text.encode() + tail)
    return Wrong(text.encode() + tail, _reading(chance, "wrong.csv"))


def _reading(chance: random.Random, file: str) -> tuple[str, ...]:
    return chance.choice((("run", "gmm", "--data", file), ("describe", "gmm", "--data", file),
                          ("compare", "ppca", "--data", file), ("infer", "whole", "--method", "em", "--data",
                          file)))  # fmt: skip


def _saved(value: Any, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=pickled)
    return file.getvalue()


def _zipped(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _odd_arrays() -> tuple[bytes, ...]:
    x = np.arange(12.0).reshape(6, 2)
    return (
        _saved(np.array([object()], dtype=object), True), _saved(np.array(["a", "b"])), _saved(x + 1j), _saved(x[:0]),
        _saved(x[:, :0]), _saved(np.zeros((2,) * 5)), _saved(np.array(3.0)), _saved(np.where(x > 4, np.inf, x)),
        _saved(x * 1e200), _saved(np.full((4, 2), np.nan)), _saved(x.astype("datetime64[s]")),
        _saved(np.zeros(3, [("a", "f8"), ("b", "i4")])),
    )  # fmt: skip


def array(chance: random.Random) -> Wrong:
    """A .npy or .npz file that cannot be read as numbers."""
    x = np.random.default_rng(chance.randrange(99)).normal(size=(8, 2))
    whole, packed = _saved(x), _zipped(x=x, y=np.arange(8))
    kind = chance.randrange(8)
    if kind == 0:
        content, end = whole[: chance.randrange(len(whole))], "npy"
    elif kind == 1:
        content, end = chance.choice(_odd_arrays()), "npy"
    elif kind == 2:
        content, end = whole.replace(b"(8, 2)", chance.choice((b"(9, 2)", b"(8,99)", b"(8,-2)", b"(8, x)"))), "npy"
    elif kind == 3:
        at = chance.randrange(8)
        content, end = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :], "npy"
    elif kind == 4:
        content, end = packed[: chance.randrange(len(packed) - 22)], "npz"
    elif kind == 5:
        ways = (
            _zipped(a=x, b=x),
            _zipped(),
            _zipped(x=x, y=np.arange(3)),
            _zipped(x=np.array("a")),
            _archive("x.txt", b"a"),
        )
        content, end = chance.choice(ways), "npz"
    elif kind == 6:
        content, end = (
            chance.choice((_archive("x.npy", b""), _archive("x.npy", b"\x93NUMPY"), b"PK\x03\x04", b"")),
            "npz",
        )
    else:
        content, end = bytes(chance.randrange(256) for _ in range(chance.randrange(200))), chance.choice(("npy", "npz"))
    Path(f"wrong.{end}").write_bytes(content)
    return Wrong(content, _reading(chance, f"wrong.{end}"))


def _archive(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def mask(chance: random.Random) -> Wrong:
    """A mask of another shape, of other numbers, or that is none."""
    n, d = 272, 2
    ways = (
        np.zeros((n, d + 1)), np.zeros((n - 1, d)), np.zeros(n), np.zeros((d, n)), np.full((n, d), 2), np.ones((n, d)),
        np.full((n, d), np.nan), np.full((n, d), 0.5), np.zeros((n, d), "S1"), np.zeros((1, n, d)), np.array(1), np.zeros(0),
        np.ones(d), -np.ones((n, d)), np.zeros((n, d), complex),
    )  # fmt: skip
    content = _saved(chance.choice(ways))
    if chance.random() < 0.3:
        content = chance.choice(
            (content[: chance.randrange(128)], b"0,1\n", _zipped(x=np.zeros((n, d))), *_odd_arrays()[:2])
        )
    Path("wrong.npy").write_bytes(content)
    base = chance.choice((("run", "gmm"), ("describe", "ppca"), ("compare", "gmm")))
    return Wrong(content, (*base, "--data", "faithful", "--missing", "wrong.npy"))


# ---- suites ----------------------------------------------------------------------------------------------------------

ODD_VALUES = ("-1", "0", '""', "[]", "{}", "true", "1.5", '"nope"', "[1, 'x']", "[[1]]", "nan", "inf", '["em", 3]',
"{ name = 3 }",
              '{ name = "em", zzz = 1 }', '{ name = "gmm", components = -2 }', "99999999999999999999", "1979-05-27",
              '"\\u0000"')  # fmt: skip
BLOCKS: dict[str, dict[str, str]] = {
    "fit": {"models": '"gmm"', "data": '"faithful"', "methods": '"em"', "seeds": "2"},
    "swap": {"models": '"gmm"', "data": '"faithful"', "theta": '"em"', "methods": '"em"'},
    "impute": {"models": '"gmm"', "data": '"faithful"', "hide": '"random:0.2"', "methods": '"em"',
    "baselines": '"mean"', "draws": "19"},
    "scaling": {"models": '"gmm"', "methods": '"em"', "n": "100", "d": "2", "vary": "{ n = [100, 200] }"},
    "benchmark": {"names": '"digits"'},
}  # fmt: skip


def suite(chance: random.Random) -> Wrong:
    """A suite in which a key has an impossible value, is missing, or is unknown; or that is no TOML."""
    kind, block = chance.choice(sorted(BLOCKS.items()))
    block = dict(block)
    key = chance.choice(sorted(block))
    how, extra = chance.randrange(6), ""
    if how < 2:
        block[key] = chance.choice(ODD_VALUES)
        if key in ("baselines", "n", "d", "seeds", "draws") and block[key] in ('"nope"',):
            block[key] = '"x"'
    elif how == 2:
        required = [k for k in block if k not in ("seeds", "baselines", "draws")]
        del block[chance.choice(required)]
    elif how == 3:
        block[chance.choice(("zzz", "model", "seed", "method", "dataset", "")) or '""'] = "1"
    elif how == 4:
        extra = chance.choice(
            ("[budget]\nseconds = -1\n", "[budget]\nzzz = 1\n", "[budget]\njobs = 0\n", "[budget]\nmemory_mb = 'x'\n",
             "[what]\na = 1\n", "[fits]\na = 1\n", "budget = 3\n", "fit = 3\n", "[[budget]]\nseconds = 1\n",
             "[budget]\nseconds = nan\n")
        )  # fmt: skip
    text = extra + (f"[[{kind}]]\n" + "".join(f"{k} = {v}\n" for k, v in block.items()))
    if extra.startswith(("fit =", "budget =")):
        text = extra + ("" if "fit" in extra else text.removeprefix(extra))
    if how == 5:
        text = chance.choice(
            (text[: text.index("=")], text + "[[", text + "a = \n", text.replace("=", ":"), "\0", text + "'''")
        )
    Path("wrong.toml").write_text(text)
    return Wrong(text, ("bench", "wrong.toml", "--out", "never"))


# ---- programs --------------------------------------------------------------------------------------------------------

_HEAD = "import pyro, torch\nimport pyro.distributions as dist\n"
_BEGIN = "def model(x=None, size=None):\n"
_PLATE = _BEGIN + "    with pyro.plate('data', size if x is None else len(x)):\n"
_SITE = "pyro.sample('x', dist.{}, obs=x)\n"
_NORMAL = _SITE.format("Normal(0., 1.).expand([2]).to_event(1)")
PROGRAMS = (
    "def model(:\n", "1 / 0\n", "raise SystemExit(0)\n", "import sys\nsys.exit(3)\n", "import nothing_of_this_name\n",
    "", "\0",
    "model = 3\n", "model = None\n", "model = 'text'\n", "model = [1]\n", "def model():\n    pass\n",
    "def model(x):\n    pass\n",
    "def model(x, size, other):\n    pass\n", "async " + _BEGIN + "    pass\n", _BEGIN + "\treturn\n  x\n",
    _BEGIN + "    raise KeyError('a')\n", _BEGIN + "    return model(x, size)\n", _BEGIN + "    raise SystemExit(0)\n",
    _BEGIN + "    pass\n", "class model:\n    pass\n",
    "class model:\n    def __init__(self, x):\n        raise ValueError('no')\n",
    _BEGIN + "    with pyro.plate('rows', 5):\n        " + _NORMAL,
    _PLATE + "        pyro.sample('z', dist.Normal(0., 1.))\n",
    _PLATE + "        " + _SITE.format("Normal(torch.zeros(3), 1.).to_event(1)"),
    _PLATE + "        " + _SITE.format("Normal(0., -1.).expand([2]).to_event(1)"),
    _PLATE + "        " + _SITE.format("Bernoulli(0.5).expand([2]).to_event(1)"),
    _PLATE + "        for _ in (0, 1):\n            " + _NORMAL,
    _PLATE + "        " + _SITE.format("Normal(x[:, 5:6], 1.).to_event(1)"),
    _BEGIN + "    " + _SITE.format("Normal(torch.zeros(5, 2), 1.).to_event(2)"), _BEGIN + "    return undefined_name\n",
)  # fmt: skip


def program(chance: random.Random) -> Wrong:
    """A program in a file that cannot be executed, is none, or breaks the contract."""
    text = _HEAD * chance.randrange(1, 3) + chance.choice(PROGRAMS)
    Path("wrong.py").write_text(text)
    spec = chance.choice(("wrong.py:model", "wrong.py:model", "./wrong.py:model"))
    base = chance.choice((("run",), ("describe",), ("compare", "--methods", "em,svi")))
    return Wrong(text, (base[0], spec, "--data", "data.csv", *base[1:]))


def columns(chance: random.Random) -> Wrong:
    """Other data for a run whose columns are not its own."""
    names = ("eruptions", "waiting")
    ways = (
        ("a", "b"), ("eruptions",), ("waiting",), ("eruptions", "waiting", "c"), ("eruptions", "eruptions"),
        ("Eruptions", "waiting"),
        ("eruptions", "waiting "[:4]), ("x0", "x1", "x2"), ("eruptions", "waiting", "waiting"), ("x1",),
    )  # fmt: skip
    given = chance.choice([w for w in ways if w != names])
    text = (
        ",".join(given) + "\n" + "".join(",".join(str(chance.randint(1, 90)) for _ in given) + "\n" for _ in range(4))
    )
    Path("other.csv").write_text(text)
    method = chance.choice(("em", "svi", "laplace"))
    return Wrong(text, ("infer", "whole", "--method", method, "--data", "other.csv"))


# ---- in Python -------------------------------------------------------------------------------------------------------

KEYWORDS: dict[str, tuple[Any, ...]] = {  # what each of the keywords refuses
    "method": (3, "", "nope", b"em", ["em"], {}, object, np.zeros(3), 0.5),
    "seed": (-1, 2**32, 1.5, "a", True, None, [], np.zeros(3), 10**40, "0"),
    "out": (3, 0.5, b"", "", [], {}, object, True, "a" * 300, "whole"),
    "rows": (0, -3, 1.5, "x", True, [], 10**9, np.zeros(3)),
    "standardize": ("no", "yes", 1, None, [], 0.5, object),
    "binarize": ("", "nope", [], {}, np.zeros(3), float("nan"), object, True, b"fixed"),
    "missing": ("", "nope", 3, [], np.zeros(3), np.zeros((272, 2)), object, True, b"top"),
    "limit": (0, -1, "x", None, True, 1.5, 10**40, []),
    "dtype": ("", "nope", None, 3, np.float64, [], "float16"),
    "device": ("", "nope", None, 3, [], "cuda:0", "mps"),
    "trust": ("no", "yes", None, 1, []),
    "checkpoint": (-3, "x", None, True, float("nan"), [], object),
    "quiet": ("no", None, 0, []),
    "components": (0, -1, "x", None, 1.5, float("nan"), 10**40, [], {}, object, True, 9999),
    "covariance": ("", "odd", None, 3, [], object),
    "priors": ("maybe", None, 3, [], object),
    "max_iter": (0, -3, "x", None, 1.5, True, [], 10**40),
    "tol": (-1, "x", None, float("nan"), float("inf"), [], True),
    "start": ("", "odd", None, 3, []),
    "zzz": (1, None),
}
DATA = (
    3, 0.5, "", "nope", b"faithful", None, object, {}, {"a": [1]}, [], [[1], [1, 2]], "nothing.csv", np.zeros((0, 2)),
    np.zeros((2,) * 5),
    np.array(["a"]), np.array([1j]), [[1, "x"]], [None, None], np.full((3, 2), np.nan), np.array([[np.inf, 1.0]]),
    [object()], "faithful:x",
)  # fmt: skip


def python(chance: random.Random) -> Wrong:
    """A call of `run`, `compare`, `infer`, `load` or a fit's own with something that cannot be."""
    kind = chance.randrange(8)
    if kind < 4:
        key = chance.choice(sorted(KEYWORDS))
        value = chance.choice(KEYWORDS[key])
        return Wrong(("run", key, value), call=lambda: inference.run("gmm", "faithful", **{key: value}))
    if kind == 4:
        value = chance.choice(DATA)
        return Wrong(("data", value), call=lambda: inference.run("gmm", value))
    if kind == 5:
        methods = chance.choice(
            ("em", [], (), None, 3, [3], ["em", "em"], ["nope"], [""], {}, [None], {"em": 1}, np.zeros(2))
        )
        return Wrong(("compare", methods), call=lambda: inference.compare("gmm", "faithful", methods))
    if kind == 6:
        value = chance.choice((3, None, "", "nope", b"whole", [], "folder", "damaged", object, 0.5, "data.csv"))
        function = chance.choice((inference.load, lambda v: inference.infer(v, "em")))
        return Wrong(("folder", value), call=lambda: function(value))
    key, values = chance.choice((
        ("method", ("", None, 3, "nope", [])), ("seed", (-1, None, "a", 1.5)), ("trust", ("no", 1, None)),
        ("changed_program", ("no", 1, None)), ("device", ("nope", None)), ("max_iter", (-1, "x")), ("out", (3, "", "whole")),
        ("data", ("nope", 3, np.zeros((4, 5)))), ("rows", (-1, 3)), ("missing", ("nope", "top")), ("model", ("nope",
        3, "ppca")),
    ))  # fmt: skip
    value = chance.choice(values)
    return Wrong(("infer", key, value), call=lambda: inference.infer("whole", **{"method": "em", key: value}))


KINDS = (command_line, command_line, option, option, table, array, mask, suite, suite, program, columns, python, python)


def make(seed: int) -> Wrong:
    """A wrong input. Its files are written to the current folder."""
    return KINDS[seed % len(KINDS)](random.Random(seed))


def spoil() -> None:
    """Make what the commands start from, whole and damaged: files that nothing can be made of, and two runs that are whole."""
    inference.run("gmm", "faithful", out="whole", max_iter=1)
    shutil.copytree("whole", "damaged")
    Path("damaged/fit.nc").write_bytes(b"x")
    Path("folder").mkdir()
    Path("folder.toml").mkdir()
    Path("dangling").symlink_to("nowhere")
    Path("data.csv").write_text(TABLE)
    Path("holes.csv").write_text(TABLE.replace("5", ""))
    inference.run("gmm", "holes.csv", out="holes", components=1, max_iter=1)
    Path("empty.csv").write_text("")
    Path("words.csv").write_text("a,b\n1,x\n")
    Path("mask.csv").write_text("0,1\n")
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01\x00v")
    np.save("objects.npy", np.array([object()], dtype=object), allow_pickle=True)
    np.savez("renamed.npz", x=np.zeros(2))
    Path("renamed.npz").rename("renamed.npy")
    Path("program.py").write_text(PROGRAM)
    Path("broken.py").write_text("def f(:\n")
    Path("one.toml").write_text(SUITE)
    Path("bad.toml").write_text(SUITE.replace("gmm", "gm"))
    Path("cut.toml").write_text("[[fit")
    Path("damaged.json").write_text(json.dumps({"format": 1, "cells": [{}]}))
    for name in ("wrong.csv", "wrong.npy", "wrong.npz", "wrong.toml", "wrong.py", "other.csv"):
        Path(name).write_text("")
