"""A method that returns nonsense: nothing of it is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from inference import em as method
from inference import infer, load, run
from inference._run._own.disagreement import Disagreement
from zoo._errors import UsageError

EM = method.fit


@pytest.fixture
def returns(monkeypatch):
    """Let `em` return something else than it does."""

    def put(change):
        def fit(task, *, max_iter: int = 1000):
            return change(task, EM(task, max_iter=5))

        monkeypatch.setattr(method, "fit", fit)

    return put


def claiming(**changes):
    return lambda task, fit: replace(fit, claimed=replace(fit.claimed, **changes))


def shifted(task, fit):
    task.x += 5
    return fit


WRONG = {
    "returned NoneType, not a Fit": lambda task, fit: None,
    "changed the data": shifted,
    "no value of the parameter 'weights'": lambda task, fit: replace(fit, parameters={}),
    "another value of the parameter 'locs'": lambda task, fit: replace(
        fit, parameters={**fit.parameters, "locs": fit.parameters["locs"] + 1}
    ),
    "evidence of kind 'certain'": claiming(kind="certain"),
    "not a number": claiming(value=float("nan")),
    r"for \(5,\) rows, and the data have 272": claiming(per_datum=np.zeros(5)),
    "warnings that are not a list": lambda task, fit: replace(fit, warnings="hello"),
    "the note 'law' of type Tensor": lambda task, fit: replace(fit, notes={"law": torch.ones(2)}),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_is_refused(message, returns, tmp_path):
    returns(WRONG[message])
    with pytest.raises(UsageError, match=message):
        run("gmm", "faithful", "em", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_exact_total_that_is_not_the_sum_of_its_rows_is_a_disagreement(returns):
    returns(lambda task, fit: replace(fit, claimed=replace(fit.claimed, value=fit.claimed.value + 50)))
    with pytest.raises(Disagreement, match="as claimed"):
        run("gmm", "faithful", "em")


def test_infer_takes_a_run_that_is_saved(tmp_path):
    made = run("gmm", "faithful", "em", max_iter=3)
    with pytest.raises(UsageError, match=r"call run\.save"):
        infer(made, "em")
    made.save(tmp_path / "run")
    assert infer(load(tmp_path / "run"), "em").claimed.value == made.claimed.value
