import json

import numpy as np
import pytest
from examples import make_dataset, run_command, run_on_devices

from frcnn_jax.data.batches import Sizes, TestBatches
from frcnn_jax.evaluation.evaluate import image_detections, predict_split
from frcnn_jax.evaluation.metrics import ClassDetections


def test_predict_split_sorts_by_class_and_image():
    """A stand-in network that finds class i in image i."""

    def predict(variables, batch):
        predict.calls += 1
        boxes, scores, valid = np.zeros((1, 3, 2, 4)), np.full((1, 3, 2), 0.5), np.zeros((1, 3, 2), bool)
        valid[0, predict.calls - 1, 0] = True
        boxes[0, :, :, 0] = predict.calls
        return boxes, scores, valid

    predict.calls = 0
    proposals = {"im0": np.zeros((0, 4), np.float32), "im1": np.ones((3, 4), np.float32)}
    found = predict_split(predict, None, TestBatches(make_dataset().records, proposals, [Sizes(20, 30)], 1 / 16), 3)
    assert [list(c.image) for c in found.by_class] == [[0], [1], []]
    assert found.by_class[1].boxes[0, 0] == 2


def test_image_detections_are_best_first():
    classes = [
        ClassDetections(np.array([0, 1, 0]), np.array([0.3, 0.9, 0.8]), np.arange(12.0).reshape(3, 4)),
        ClassDetections(np.array([0]), np.array([0.5]), np.zeros((1, 4))),
    ]
    found = image_detections(classes, 0, score_threshold=0.4)
    np.testing.assert_array_equal(found.scores, [0.8, 0.5])
    np.testing.assert_array_equal(found.labels, [1, 2])


def test_eval_voc_scores_result_files(shared, tmp_path):
    voc = shared / "voc" / "VOCdevkit"
    command = ["eval-voc", "--voc", voc, "--split", "val", "--json", tmp_path / "r.json"]
    command += ["--detections", shared / "oracles" / "voc_eval", "--report", tmp_path / "report"]
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("mAP")
    assert json.loads((tmp_path / "r.json").read_text())["map"] == pytest.approx(0.396971134, abs=1e-6)
    assert "mAP 0.397" in (tmp_path / "report" / "index.html").read_text()
    for threshold, end in ((0.7, "(voc07_11point, IoU > 0.7, 600 images)"), (1, "must be between 0 and 1, got 1.0")):
        done = run_command(*command[:-2], "--iou-threshold", threshold)
        assert (done.stdout or done.stderr).rstrip().endswith(end)
        assert json.loads((tmp_path / "r.json").read_text())["map"] < 0.397


@pytest.mark.slow
def test_four_devices_find_what_one_does(workdir, tmp_path):
    """Seven images, no multiple of the devices: none is dropped, and all keep their order."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from frcnn_jax.evaluation.evaluate import evaluate_workdir;"
        "overrides = {'max_proposals': 60, 'proposal_cache': str(Path(sys.argv[1]).parent / 'p')};"
        "found = evaluate_workdir(Path(sys.argv[2]), images=7, overrides=overrides);"
        "np.savez(sys.argv[1], *(field for own in found.detections for field in own))"
    )
    one, four = (run_on_devices(code, devices, tmp_path, workdir) for devices in (1, 4))
    assert set(one["arr_0"]) == set(range(7))
    for name in one.files:
        np.testing.assert_array_equal(four[name], one[name])
