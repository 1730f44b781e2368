import json
import re

import numpy as np
import pytest
from examples import run_command

from frcnn_jax import calibrate
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.calibration import calibrate_head, fit_calibration, reliability, scored_hits
from frcnn_jax.evaluation.metrics import ClassDetections


def test_error_by_hand():
    """Two bins: mean score 0.25 and half right; mean score 0.9 and all right."""
    found = reliability(np.array([0.2, 0.3, 0.9, 0.9, 1.0]), np.array([True, False, True, True, True]), bins=2)
    np.testing.assert_allclose(found.score, [0.25, 2.8 / 3])
    np.testing.assert_allclose(found.precision, [0.5, 1])
    np.testing.assert_array_equal(found.number, [2, 3])
    assert found.error == pytest.approx((2 * 0.25 + 3 * (1 - 2.8 / 3)) / 5)


def test_what_counts_is_a_hit_or_not():
    """A hit, its duplicate, a difficult object, and a score below the threshold."""
    boxes = np.array([[0, 0, 9, 9], [20, 20, 29, 29]], np.float32)
    record = Record("a", 50, 50, boxes, np.array([1, 1]), np.array([False, True]), lambda: None)
    found = ClassDetections(np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.01]), boxes[[0, 0, 1, 0]])
    scores, hits = scored_hits([found], Dataset(("cat",), [record]))
    np.testing.assert_allclose(scores, [0.9, 0.8])
    assert hits.tolist() == [True, False]


def test_a_known_miscalibration_is_found(rng):
    true = rng.uniform(0.01, 0.99, 200_000)
    hits = rng.uniform(size=len(true)) < true
    logit = 2.5 * (np.log(true / (1 - true)) - 0.7)  # so that sigmoid(logit / 2.5 + 0.7) is true
    scores = 1 / (1 + np.exp(-logit))
    temperature, offset = fit_calibration(scores, hits)
    assert temperature == pytest.approx(2.5, rel=0.03)
    assert offset == pytest.approx(0.7, abs=0.03)
    assert reliability(scores, hits).error > 0.1
    assert reliability(1 / (1 + np.exp(-(logit / temperature + offset))), hits).error < 0.01


@pytest.mark.parametrize(
    ("scores", "hits", "message"),
    [
        ([0.2, 0.4], [True, True], "needs hits and misses, got 2 hits of 2"),
        ([], [], "needs hits and misses, got 0 hits of 0"),
        ([0.1, 0.2, 0.8, 0.9], [True, True, False, True], "better scores are not hits more often"),
    ],
)
def test_what_can_not_be_calibrated(scores, hits, message):
    with pytest.raises(InputError, match=message):
        fit_calibration(np.array(scores, float), np.array(hits, bool))


def test_head_of_one_class_follows_the_formula(rng):
    params = {"head": {"cls_score": {"kernel": rng.normal(size=(5, 2)), "bias": rng.normal(size=2)}, "fc7": 1}}
    x = rng.normal(size=(9, 5))

    def logit(params):
        layer = params["head"]["cls_score"]
        background, cat = (x @ layer["kernel"] + layer["bias"]).T
        return cat - background

    changed = calibrate_head(params, 2.0, 0.3)
    np.testing.assert_allclose(logit(changed), logit(params) / 2 + 0.3, atol=1e-6)
    assert changed["head"]["fc7"] == 1


@pytest.fixture
def small(workdir, tmp_path):
    """The workdir of the tiny network with six val images."""
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    config = {**json.loads((workdir / "config.json").read_text()), "val_images": 6, "workers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_command(small, rng, monkeypatch):
    """Both halves are scored; what is fitted on the first is put into the new workdir's output layer."""
    seen, true = [], rng.uniform(0.05, 0.95, 50_000)
    rows = 1 / (1 + np.exp(-3 * np.log(true / (1 - true)))), rng.uniform(size=len(true)) < true

    def counted(detections, dataset):
        seen.append([record.image_id for record in dataset.records])
        return rows

    monkeypatch.setattr(calibrate, "scored_hits", counted)
    out, plot = small / "out", small / "plot.png"
    done = run_command("calibrate", "--workdir", small, "--out", out, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert [len(ids) for ids in seen] == [3, 3, 3]
    assert set(seen[0]).isdisjoint(seen[1])
    assert seen[1] == seen[2]
    assert re.search(r"logits divided by (2\.9|3\.0)\d+, [+-]0\.0\d+ on the background's", done.stdout)
    assert plot.exists()
    before, after = (
        Detector.from_workdir(folder).classify(draw_scene(0, "test", 3).image, [[9, 9, 60, 50]])
        for folder in (small, out)
    )
    ratio = (before.logits[:, 1:] - before.logits[:, 1:2])[:, 1:] / (after.logits[:, 1:] - after.logits[:, 1:2])[:, 1:]
    np.testing.assert_allclose(ratio, 3, rtol=0.05)
    again = run_command("calibrate", "--workdir", small, "--out", out)
    assert (again.returncode, again.stderr) == (1, f"error: {out} exists; name another folder with --out\n")
