"""The layout held to: which way imports run, what each public file has, and how long files and folders may be."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zoo", "guides", "inference", "benchmarks")  # each may import those before it
COMPOSITION_ROOT = "zoo/__main__.py"
COMMANDS = "zoo/_commands/"  # a part of it
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 450, 70
MOST_GROUND_FILES, MOST_FILES_OF_A_FOLDER = 6, 20
MOST_LINES_OF_A_MODEL, MOST_LINES_OF_A_MODELS_FUNCTION = 200, 40

FILES = sorted(str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
WHOLE = [*FILES, "latent_zoo.py"]
PUBLIC = [f for f in FILES if not any(part.startswith("_") for part in Path(f).parts)]
MODELS = [f for f in PUBLIC if f.startswith("zoo/")]
METHODS = [f for f in PUBLIC if f.startswith("inference/")]


@functools.cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports(file: str) -> set[str]:
    """Every module that a file imports, wherever in it: "zoo._errors", "torch"; `from zoo import gmm` counts as both."""
    out = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            out |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return out


def top(module: str) -> str:
    return module.split(".")[0]


def test_the_files_are_there():
    """Or the tests below would hold of nothing."""
    assert "zoo/gmm.py" in MODELS
    assert {"inference/em.py", "inference/laplace.py", "inference/svi.py", "inference/importance.py"} <= set(METHODS)
    assert "numpy" in imports("inference/em.py") and "zoo._program.structure" in imports("inference/em.py")


@pytest.mark.parametrize("file", [f for f in FILES if f != COMPOSITION_ROOT and not f.startswith(COMMANDS)])
def test_imports_run_one_way(file):
    rank = PACKAGES.index(Path(file).parts[0])
    later = set(PACKAGES[rank + 1 :])
    assert not {m for m in imports(file) if top(m) in later}
    assert "zoo.__main__" not in imports(file)
    assert not any(m.startswith("zoo._commands") for m in imports(file))


# ------------------------------------------------------------------------------------------------- which way they run

START_FAST = {
    COMPOSITION_ROOT,
    "latent_zoo.py",
    "inference/__init__.py",
    *(f for f in FILES if f.startswith(COMMANDS)),
}  # may import the project itself late
OF_ONE_SYSTEM = {"fcntl", "resource"}  # modules of the standard library that are not everywhere

# Floors, from the ground: a file may import from its own and from those below. The longest matching path counts.
FLOORS = (
    ("zoo/_", "zoo/__init__.py"),
    ("zoo/_data/",),
    ("zoo/_program/",),
    ("zoo/_reading/",),
    ("zoo/_program/describe.py", "zoo/_program/load.py"),
    ("zoo/", "guides/"),
    ("inference/_numerics/", "inference/_families/", "inference/_sampling/"),
    ("inference/_exact/", "inference/_density/"),
    ("inference/_method/",),
    ("inference/_training/",),
    ("inference/_laplace/", "inference/_mcmc/", "inference/svi.py"),
    ("inference/_em/", "inference/em.py"),
    ("inference/_globals/", "inference/ais.py", "inference/gibbs.py", "inference/importance.py"),
    ("inference/",),
    ("inference/_loadings/",),
    ("inference/_answers/",),
    ("inference/_run/",),
    ("inference/_new_rows/", "inference/_pictures/", "inference/_estimator/"),
    ("inference/_compare/", "inference/_gap/"),
    ("inference/__init__.py", "benchmarks/"),
    (COMPOSITION_ROOT, COMMANDS, "latent_zoo.py"),
)

# To be mended: whoever mends a file takes it off its list, and nothing is put on one.
IN_CIRCLES: set[str] = set()
AGAINST_THE_FLOORS: set[tuple[str, str]] = set()
IMPORTS_LATE: set[str] = set()


@functools.cache
def file_of(module: str) -> str | None:
    """The file of a module of the project."""
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if (ROOT / f).is_file()), None)


@functools.cache
def imported_files(file: str) -> frozenset[str]:
    """The files of the project that a file imports, wherever in it: of `from a.b import c` a/b/c.py, where there is one."""
    out: set[str | None] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            out |= {file_of(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            out |= {file_of(f"{node.module}.{a.name}") or file_of(str(node.module)) for a in node.names}
    return frozenset(f for f in out if f is not None)


def late_imports(file: str) -> Iterator[str]:
    """The modules that a file imports inside a function."""
    for function in functions(file):
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                yield str(node.module)


def reached(file: str) -> set[str]:
    """All files that a file imports, and those that they import."""
    seen: set[str] = set()
    todo = set(imported_files(file))
    while todo:
        new = todo.pop()
        if new not in seen:
            seen.add(new)
            todo |= imported_files(new)
    return seen


def floor(file: str) -> int:
    found = [(len(path), i) for i, paths in enumerate(FLOORS) for path in paths if file.startswith(path)]
    return max(found)[1]


def test_no_import_comes_back_to_where_it_began():
    assert "zoo/_program/program.py" in reached("zoo/_program/load.py")
    assert {f for f in WHOLE if f in reached(f)} == IN_CIRCLES


def test_no_import_runs_up():
    assert floor("zoo/_errors.py") < floor("zoo/_data/files.py") < floor("zoo/_program/trace.py")
    assert floor("zoo/_program/load.py") < floor("zoo/gmm.py") < floor("inference/em.py")
    up = {(f, other) for f in WHOLE for other in imported_files(f) if floor(other) > floor(f)}
    assert up == AGAINST_THE_FLOORS


def test_late_imports_are_of_optional_or_slow_packages():
    ours, standard = {*PACKAGES, "latent_zoo"}, sys.stdlib_module_names - OF_ONE_SYSTEM
    late = {f for f in WHOLE if f not in START_FAST and any(top(m) in standard | ours for m in late_imports(f))}
    assert late == IMPORTS_LATE


def test_what_lies_open_can_be_named():
    for package in PACKAGES[:3]:
        ground = {f for f in FILES if re.fullmatch(rf"{package}/_(?!_)\w+\.py", f)}
        assert len(ground) <= MOST_GROUND_FILES, ground


def test_folders_are_short():
    for package in PACKAGES:
        for folder in (ROOT / package, *(p for p in (ROOT / package).rglob("*") if p.is_dir())):
            held = [p for p in folder.iterdir() if p.is_file() and p.suffix != ".pyc"]
            assert len(held) <= MOST_FILES_OF_A_FOLDER, folder


def test_every_package_ships_its_types():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert all("py.typed" in config["tool"]["setuptools"]["package-data"][package] for package in PACKAGES)


@pytest.mark.parametrize("file", METHODS)
def test_a_method_knows_no_other_method_and_no_model(file):
    others = {Path(m).stem for m in METHODS} - {Path(file).stem}
    models = {Path(m).stem for m in MODELS}
    assert not imports(file) & {f"inference.{m}" for m in others}
    assert not imports(file) & {f"zoo.{m}" for m in models}
    text = (ROOT / file).read_text(encoding="utf-8")
    for model in models:
        assert not re.search(rf"\b{model}\b", text), f"{file} speaks of the model {model}"


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith(("inference/_", "guides/"))])
def test_the_machinery_names_no_model(file):
    names = "|".join(Path(m).stem for m in MODELS)
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_docstring(node, tree(file)):
            assert not re.fullmatch(names, node.value), f"{file}:{node.lineno} asks for the model {node.value}"


def _is_docstring(constant: ast.Constant, module: ast.Module) -> bool:
    return any(isinstance(n, ast.Expr) and n.value is constant for n in ast.walk(module))


@pytest.mark.parametrize("file", MODELS)
def test_a_model_stands_alone(file):
    others = {f"zoo.{Path(m).stem}" for m in MODELS if m != file}
    used = imports(file)
    assert not used & others
    assert not {top(m) for m in used} & {
        "inference",
        "guides",
        "benchmarks",
        "matplotlib",
        "arviz",
        "arviz_stats",
        "sklearn",
    }
    assert not any(isinstance(n, ast.Attribute) and n.attr in ("cuda", "backward") for n in ast.walk(tree(file)))


def test_two_files_alone_import_arviz():
    users = [f for f in FILES if any(top(m).startswith("arviz") for m in imports(f))]
    assert users == ["inference/_numerics/psis.py", "inference/_run/datatree.py"]


def test_matplotlib_is_for_pictures_and_reports():
    users = [f for f in FILES if any(top(m) == "matplotlib" for m in imports(f))]
    rooms = ("_pictures/", "_compare/", "_gap/")
    assert all(any(r in f for r in rooms) or f.startswith("benchmarks/") for f in users), users


def test_the_command_imports_nothing_heavy_at_its_head():
    files = [COMPOSITION_ROOT, *(f for f in FILES if f.startswith(COMMANDS))]
    head = {n for file in files for node in tree(file).body for n in _imported(node)}
    light = {"functools", "importlib", "json", "os", "sys", "warnings", "collections.abc", "pathlib", "typing", "typer"}
    assert head <= {
        "__future__",
        *light,
        "zoo",
        "zoo._command",
        "zoo._commands",
        "zoo._commands.options",
        "zoo._errors",
    }


def _imported(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.module or ""} if isinstance(node, ast.ImportFrom) else set()


@pytest.mark.parametrize("file", PUBLIC)
def test_a_public_file_says_what_it_is_in_one_line(file):
    first = (ast.get_docstring(tree(file)) or "").split("\n")[0]
    assert 15 < len(first) < 130


@pytest.mark.parametrize("file", METHODS)
def test_a_method_has_a_refusal_and_a_fit(file):
    functions = {n.name: n for n in tree(file).body if isinstance(n, ast.FunctionDef)}
    assert [a.arg for a in functions["refusal"].args.args] == ["structure"]
    fit = functions["fit"].args
    assert [a.arg for a in fit.args] == ["task"] and not fit.kwarg and not fit.vararg
    assert all(default is not None for default in fit.kw_defaults)  # every option has a default
    assert all(a.annotation is not None for a in fit.kwonlyargs)  # and a type, which the command line reads


@pytest.mark.parametrize("file", MODELS)
def test_a_model_has_a_class_of_that_name(file):
    (model,) = (n for n in tree(file).body if isinstance(n, ast.ClassDef) and n.name == "Model")
    forward = next(n for n in model.body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    assert [a.arg for a in forward.args.args] == ["self", "x", "size"]
    assert len(forward.args.defaults) == 2


def functions(file: str):
    return [n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_short(file):
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert lines <= (MOST_LINES_OF_A_MODEL if file in MODELS else MOST_LINES)
    most = MOST_LINES_OF_A_MODELS_FUNCTION if file in MODELS else MOST_LINES_OF_A_FUNCTION
    long = {f.name: n for f in functions(file) if (n := (f.end_lineno or 0) - f.lineno + 1) > most}
    assert not long


def test_nothing_speaks_of_the_machine_it_was_written_on():
    files = [*FILES, *(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("*.py"))]
    for file in files:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|Users|work)/\w", text), file
