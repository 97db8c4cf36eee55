"""The benchmark of missing pixels in small: every part is there, and its pieces on data whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from benchmarks import missing_pixels
from benchmarks._images import completing
from zoo._data import datasets
from zoo._errors import UsageError


@pytest.fixture(scope="module")
def document():
    """Of 8 × 8 digits, in the place of 28 × 28."""
    x = datasets.load("digits", binarize=8).x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing_pixels, "_halves", lambda data, rows: (x[:80], x[80:100]))
        return missing_pixels.main(quick=True)


@pytest.mark.full
def test_a_small_run_has_every_part(document):
    assert [m["net"] for m in document["models"]] == ["mixture", "logistic", "made"]
    assert all(15 < m["test_nats"] < 64 * np.log(2) for m in document["models"])
    rows = {r["name"]: r for r in document["completion"]["rows"]}
    assert rows["MADE, reversed"]["kind"] == "exact" and rows["MADE, raster"]["kind"] == "estimate"
    assert rows["MADE, raster"]["khat"] is not None and rows["nearest neighbour"]["nats"] is None
    assert "the top half of 4 test images" in missing_pixels.text_of(document)


def test_images_to_learn_from_and_to_be_tested_on():
    train, test = missing_pixels._halves("mnist5k", 50)
    assert train.shape == (40, 784) and test.shape == (10, 784)
    together = np.vstack([train, test])
    assert set(np.unique(together)) == {0.0, 1.0} and len(np.unique(together, axis=0)) == 50


def test_the_mixture_is_the_sum_over_its_components(tmp_path):
    x = (np.random.default_rng(0).random((200, 12)) < 0.3).astype(float)
    sizes = missing_pixels.Sizes(components=3, iterations=4)
    found, _ = missing_pixels._mixture(x[:150], x[150:], tmp_path, sizes)
    with np.load(tmp_path / "mixture.npz") as kept:
        weights, seen = kept["weights"], kept["weights"][:, None] * 150
        probs = (kept["probs"] * seen + 0.5) / (seen + 1)
    each = x[150:] @ np.log(probs).T + (1 - x[150:]) @ np.log1p(-probs).T + np.log(weights)
    np.testing.assert_allclose(found, logsumexp(each, axis=1), rtol=1e-10)


def test_the_nearest_is_the_nearest_by_what_is_seen():
    random = np.random.default_rng(0)
    train, truth = ((random.random((n, 10)) < 0.5).astype(float) for n in (50, 20))
    holes = completing.without_top(truth)
    assert np.isnan(holes[:, :5]).all() and not np.isnan(holes[:, 5:]).any()
    distance = np.abs(train[None, :, 5:] - truth[:, None, 5:]).sum(-1)
    nearest = completing._nearest(train, holes)
    np.testing.assert_array_equal(distance[np.arange(20), nearest], distance.min(1))


def test_options_are_checked():
    from benchmarks._suite import bench

    with pytest.raises(UsageError, match="data must be one of binarized_mnist, mnist5k"):
        bench.main("missing_pixels", settings={"data": "faces"})
    with pytest.raises(UsageError, match=r"unknown option .* of the benchmark 'missing_pixels'"):
        bench.main("missing_pixels", settings={"epochs": "3"})
    with pytest.raises(UsageError, match="--set is for benchmarks that are programs"):
        bench.main("smoke", settings={"epochs": "3"})
