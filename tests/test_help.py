"""`zoo help`, `zoo describe` without data, `zoo --version`: every option with its type, default, range and meaning."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from inference._run.explain import explained
from zoo import _options, _registry
from zoo.__main__ import app

NAMES = (*_registry.models(), *_registry.methods())


def zoo(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_meaning(name):
    """In the docstring's list; and the list names nothing that is no option, except what a sentence explains."""
    for option in explained(name)["options"]:
        assert len(option["meaning"]) > 5, f"{name}: the docstring's list does not say what `{option['name']}` is"
        assert option["type"] != "any"


def test_what_help_says():
    status, out, _ = zoo("help", "gmm", "--json")
    found = json.loads(out)
    assert status == 0 and (found["name"], found["kind"]) == ("gmm", "model") and "Bishop 2006" in found["text"]
    by_name = {o["name"]: o for o in found["options"]}
    assert (by_name["components"]["type"], by_name["components"]["range"]) == ("whole number", "> 0")
    assert by_name["components"]["default"] == 2 and by_name["priors"]["default"] is False
    held_out = {o["name"]: o for o in explained("svi")["options"]}["held_out"]
    assert held_out["range"] == "≥ 0, < 1" and held_out["goes_with"] == "optimizer=auto or optimizer=adam"
    status, out, _ = zoo("help", "svi")
    assert status == 0 and all(o["name"] in out for o in explained("svi")["options"])


def test_describe_without_data_lists_the_options():
    assert zoo("describe", "ppca")[1] == zoo("help", "ppca")[1]
    assert "needs --data" in zoo("describe", "ppca", "--set", "latents=2")[2]
    found = json.loads(zoo("describe", "ppca", "--data", "iris", "--json")[1])
    assert found["options"] == explained("ppca")["options"] and "methods" in found


def test_help_of_a_file_and_of_nothing(tmp_path):
    (tmp_path / "own.py").write_text(
        'def model(x=None, size=None, *, width: float = 1.0):\n    """A row of noise.\n\n    - `width`: of it.\n    """\n'
    )
    found = json.loads(zoo("help", f"{tmp_path / 'own.py'}:model", "--json")[1])
    assert found["text"].startswith("A row of noise.") and found["options"][0]["meaning"] == "of it."
    status, _, err = zoo("help", "gm")
    assert status == 2 and "unknown model or method 'gm'; did you mean gmm?" in err


def test_meanings_of_a_list():
    said = "First line.\n\n    - `a`: one\n      and more.\n    - `b` and `c`: two.\n    Not `d`: three.\n"
    assert _options.meanings(said) == {"a": "one and more.", "b": "two.", "c": "two."}


def test_the_version():
    status, out, _ = zoo("--version")
    assert status == 0 and re.fullmatch(r"latent-zoo (\d+\.\d+.*|.*not installed)\n", out)
