"""The benchmark of digits: its pieces where the answers are known, a small run of the whole, and what was kept of the last."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import digits, readme
from benchmarks._images import anomalies, digits_picture

KEPT = json.loads((readme.RESULTS / "digits.json").read_text(encoding="utf-8"))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_the_area_is_the_share_of_pairs_in_order():
    area, se = anomalies.auc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0]))
    assert area == pytest.approx((1.5 + 3) / 6)
    assert anomalies.auc(np.arange(5.0), np.arange(5.0) + 10) == (1.0, 0.0)
    assert anomalies.auc(np.arange(5.0), np.arange(5.0) - 10) == (0.0, 0.0)
    assert se > 0


def test_the_area_is_scikit_learns_and_its_error_is_what_other_images_would_change():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    found = []
    for _ in range(150):
        normal, odd = rng.normal(size=60), rng.normal(1, 2, size=40)
        found.append(anomalies.auc(normal, odd))
    theirs = roc_auc_score(np.repeat([0, 1], [60, 40]), np.concatenate([normal, odd]))
    assert found[-1][0] == pytest.approx(theirs)
    areas, errors = np.array(found).T
    assert errors.mean() == pytest.approx(areas.std(), rel=4 / np.sqrt(2 * len(areas)))


def test_what_is_done_to_images():
    image = np.zeros((1, 6, 6))
    image[0, 1:4, 2:4] = 0.5  # three down, two across
    kinds = {name: change(image, np.random.default_rng(0)) for name, change in anomalies.KINDS.items()}
    assert kinds["strokes thinned"].sum() == 2 * 1 * 0.5
    assert kinds["a tenth of the ink"].sum() == pytest.approx(image.sum() / 10)
    assert kinds["turned by 90°"].any(2).sum() == 2 and kinds["turned by 90°"].any(1).sum() == 3
    assert sorted(kinds["pixels shuffled"].ravel()) == sorted(image.ravel())
    assert (kinds["pixels shuffled"] != image).any()


def test_other_images_are_binary_and_the_same_again():
    grey = np.random.default_rng(0).random((4, 36))
    first, again = (anomalies.others(grey, (6, 6), 3) for _ in range(2))
    for name, images in first.items():
        assert images.shape == grey.shape and set(np.unique(images)) <= {0.0, 1.0}
        assert (images == again[name]).all()


def test_neighbours_say_the_class():
    known = np.concatenate([np.zeros((6, 2)), np.ones((6, 2))])
    right = digits.recognised(
        known, np.repeat([3, 8], 6), np.array([[0.1, 0], [0.9, 1], [0.8, 1]]), np.array([3, 8, 3])
    )
    assert right.tolist() == [True, True, False]
    assert digits.share(right) == {"accuracy": pytest.approx(2 / 3), "se": pytest.approx(np.sqrt(2 / 27))}
    apart = digits.difference(right, np.array([True, False, False]))
    assert apart["accuracy"] == pytest.approx(1 / 3) and apart["se"] == pytest.approx(1 / 3)


def test_the_split_has_as_many_of_each_class_and_no_image_twice():
    train, test = digits.split(100, 50)
    assert (np.bincount(train.labels) == 10).all() and (np.bincount(test.labels) == 5).all()
    together = np.concatenate([train.x, test.x])
    assert len(np.unique(together, axis=0)) == len(together) and 0 <= together.min() < together.max() <= 1


def test_the_nearest_are_copied():
    known, wanted = np.array([[0.0], [1.0], [5.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert digits.nearest(known, np.array([[0.4], [4.0]]), 1, wanted).tolist() == [[1, 0], [0, 1]]
    assert digits.nearest(known, np.array([[0.4], [4.0]]), 2, wanted).tolist() == [[2, 1], [1, 2]]


def test_errors_a_hidden_pixel():
    truth = np.array([[1.0, 0.0], [1.0, 1.0]])
    row = digits.completion_row("coin", truth, np.full((2, 2), 0.5), np.full((2, 2), 0.5))
    assert row["mse"] == 0.25 and row["bits_alone"] == row["bits_joint"] == pytest.approx(1)
    assert row["mse_se"] == row["bits_alone_se"] == 0
    row = digits.completion_row("one", truth, truth, truth, nats=np.log([2.0, 8.0]))
    assert row["mse"] == 0 and row["bits_alone"] == pytest.approx(0, abs=1e-5)
    assert row["bits_joint"] == pytest.approx(1) and row["bits_joint_se"] == pytest.approx(0.5)


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return digits.measure(digits.QUICK, tmp_path_factory.mktemp("digits") / "train")


@pytest.mark.full
def test_a_small_run_has_every_part(measured):
    document, shown = measured
    json.dumps(document, allow_nan=False)
    assert document.keys() == KEPT.keys()
    for part in ("representation", "density", "completion"):
        assert document[part].keys() == KEPT[part].keys()
        assert [r.keys() for r in document[part]["rows"]] == [r.keys() for r in KEPT[part]["rows"]]
    assert shown.made.shape == (60, 784) and 0 <= shown.made.min() < shown.made.max() <= 1
    completed = shown.completed
    seen = ~np.isnan(completed["seen"])
    assert (completed["mean"][seen] == completed["truth"][seen]).all() and seen.mean() == 0.5
    assert (shown.groups["digits"][:4] == completed["truth"]).all()


@pytest.mark.full
def test_its_picture_is_drawn(measured, tmp_path):
    document, shown = measured
    digits_picture.draw(tmp_path / "digits.png", document, shown, digits.SHAPE)
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("L").getcolors(1 << 16)) > 50


@pytest.mark.full
def test_the_command_prints_and_keeps_nothing(measured, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(digits, "RESULTS", tmp_path)
    monkeypatch.setattr(digits, "measure", lambda sizes, folder: measured)
    digits.main(quick=True)
    assert "10 nearest" in capsys.readouterr().out
    assert digits.main(json=True, quick=True) == json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    digits.main()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.json", "digits.png"]


# ---- what was kept ---------------------------------------------------------------------------------------------------


def test_what_the_kept_results_are_told_for():
    """The claims of the README's text around the table, two standard errors apart."""
    accuracy = KEPT["representation"]["encoder_less"]
    pixels, components = accuracy["grey levels"], accuracy["PCA"]
    assert pixels["accuracy"] > 2 * pixels["se"] and components["accuracy"] > -2 * components["se"]
    areas = {r["images"]: (r["auc"], r["auc_se"]) for r in KEPT["density"]["rows"][1:]}
    assert areas["turned by 90°"][0] > 0.9 and areas["a tenth of the ink"][0] < 0.2


def test_the_table_of_the_readme_is_filled(monkeypatch):
    readme_ = "before\n\n<!-- table digits: zoo bench digits -->\nold\n<!-- end of table digits -->\n"
    monkeypatch.setattr(readme, "tables", lambda results: {})
    text = readme.rewritten(readme_, {})
    assert "old" not in text and readme.rewritten(text, {}) == text
    model = KEPT["representation"]["rows"][0]
    assert f"| {100 * model['accuracy']:.1f} ± {100 * model['se']:.1f} % |" in text
    assert all(line.count("|") == 5 for line in text.splitlines() if line.startswith("|"))
