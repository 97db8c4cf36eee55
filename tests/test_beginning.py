"""`init`: learning begins at a run's θ, or a file's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inference import run
from inference._run.request import Request
from zoo._errors import UsageError

X = np.random.default_rng(0).normal(size=(60, 4)) @ np.diag([3.0, 2.0, 1.0, 0.5])


def test_learning_begins_at_the_values_of_a_run_or_a_file(tmp_path):
    first = run("gmm", X, "em", components=2, out=tmp_path / "first", quiet=True)
    again = run("gmm", X, "em", components=2, init_from=tmp_path / "first", max_iter=1, quiet=True)
    assert again.fit.trace["log_likelihood"][0] == pytest.approx(first.fit.trace["log_likelihood"][-1], abs=1e-9)
    assert Request.from_json(again.request.to_json()) == Request.from_json(
        json.loads(json.dumps(again.request.to_json()))
    )
    np.savez(tmp_path / "at.npz", **first.fit.parameters)
    values = {n: v.tolist() for n, v in first.fit.parameters.items()}
    (tmp_path / "at.json").write_text(json.dumps({"parameters": values}))
    for name in ("at.npz", "at.json"):
        found = run("gmm", X, "em", components=2, init_from=tmp_path / name, max_iter=1, quiet=True)
        assert found.fit.trace["log_likelihood"][0] == pytest.approx(first.fit.trace["log_likelihood"][-1], abs=1e-9)


def test_global_latents_begin_there_too(tmp_path):
    first = run("gmm", X, "em", components=2, priors="conjugate", quiet=True).fit
    np.savez(tmp_path / "at.npz", **first.parameters)
    found = run(
        "gmm", X, "em", components=2, priors="conjugate", init_from=tmp_path / "at.npz", max_iter=1, quiet=True
    ).fit
    assert found.trace["log_joint"][0] == pytest.approx(first.trace["log_joint"][-1], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"components": 3}, "Expected 'weights' of shape (3,)"),
        ({"components": 2, "covariance": "diagonal"}, "Expected values of locs, scales, weights of 'gmm'"),
        ({"components": 2, "start": "kmeans"}, "give init or start=kmeans, not both"),
        ({"components": 2, "method": "importance"}, "init says where learning begins, for em, laplace, svi"),
        ({"components": 2, "priors": True, "method": "svi"}, "svi begins with its guide"),
        ({"components": 2, "init_from": "nothing"}, "Expected the folder of a run"),
    ],
)
def test_what_cannot_be_begun_at_is_refused(tmp_path, options, said):
    at = {
        "weights": [0.5, 0.5],
        "locs": np.zeros((2, 4)).tolist(),
        "scale_tril": np.tile(np.eye(4), (2, 1, 1)).tolist(),
    }
    (tmp_path / "at.json").write_text(json.dumps(at))
    asked = {"init_from": tmp_path / "at.json", "method": "em", "quiet": True, **options}
    with pytest.raises(UsageError) as refused:
        run("gmm", X, **asked)
    assert said in str(refused.value)


def test_values_outside_a_support_are_refused(tmp_path):
    at = {
        "weights": [0.9, 0.5],
        "locs": np.zeros((2, 4)).tolist(),
        "scale_tril": np.tile(np.eye(4), (2, 1, 1)).tolist(),
    }
    (tmp_path / "at.json").write_text(json.dumps(at))
    with pytest.raises(UsageError, match=r"'weights' in .* outside its support"):
        run("gmm", X, "em", components=2, init_from=tmp_path / "at.json", quiet=True)
