"""The examples in the docstrings of the public surface: each thing has one, and they run."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

import latent_zoo
from inference._exact.engine import Engine
from inference._families._family import Family
from inference._method.task import Task

PUBLIC = [*(getattr(latent_zoo, name) for name in latent_zoo.__all__), Task, Engine, Family]
MODULES = ("latent_zoo", "inference", "inference._run.request")


def example_of(thing: object, name: str, module: str) -> doctest.DocTest:
    known = dict(vars(importlib.import_module(module)))
    return doctest.DocTestFinder(recurse=False).find(inspect.unwrap(thing), name, module=False, globs=known)[0]


EXAMPLES = [example_of(importlib.import_module(name), name, name) for name in MODULES]
EXAMPLES += [example_of(thing, thing.__qualname__, thing.__module__) for thing in PUBLIC]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_the_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
