import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import ROOT, make_dataset, run_on_devices

from frcnn_jax.data.batches import Sizes, TestBatches, prepare_test
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.predict import (
    DetectionOptions,
    Detections,
    decode_and_suppress,
    image_detections,
    make_predict_step,
    predict_split,
    select_detections,
)
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.ops import boxes as box_ops

NETWORK = get_network("tiny")


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
    found = predict_split(
        predict, None, TestBatches(make_dataset().records, proposals, [Sizes(20, 30)], PixelNorm(), 1 / 16), 3
    )
    assert [list(c.image) for c in found.by_class] == [[0], [1], []]
    assert found.by_class[1].boxes[0, 0] == 2


def test_a_process_takes_its_share_of_the_images(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr("frcnn_jax.evaluation.predict._from_all_processes", lambda rows: rows)
    seen = []

    def predict(variables, batch):
        seen.append(int(batch["number"]))
        return np.zeros((1, 1, 1, 4)), np.ones((1, 1, 1)), np.ones((1, 1, 1), bool)

    found = predict_split(predict, None, [{"number": np.int32(i)} for i in range(5)], 1)
    assert seen == found.by_class[0].image.tolist() == [1, 3]


def test_eval_voc_scores_result_files(shared, tmp_path):
    voc = shared / "voc" / "VOCdevkit"
    command = [sys.executable, "scripts/eval_voc.py", "--voc", voc, "--split", "val", "--json", tmp_path / "r.json"]
    command += ["--detections", shared / "oracles" / "voc_eval", "--report", tmp_path / "report"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("mAP")
    assert json.loads((tmp_path / "r.json").read_text())["map"] == pytest.approx(0.396971134, abs=1e-6)
    assert "mAP 0.397" in (tmp_path / "report" / "index.html").read_text()
    for threshold, end in ((0.7, "(voc07_11point, IoU > 0.7, 600 images)"), (1, "must be between 0 and 1, got 1.0")):
        strict = [*map(str, command[:-2]), "--iou-threshold", str(threshold)]
        done = subprocess.run(strict, cwd=ROOT, capture_output=True, text=True)
        assert (done.stdout or done.stderr).rstrip().endswith(end)
        assert json.loads((tmp_path / "r.json").read_text())["map"] < 0.397


@pytest.mark.slow
def test_four_devices_find_what_one_does(workdir, tmp_path):
    """Seven images, no multiple of the devices: none is dropped, and all keep their order."""
    code = (
        "import sys, numpy as np; from pathlib import Path;"
        "from frcnn_jax.workdir import evaluate_workdir, read_config;"
        "overrides = {'max_proposals': 60, 'proposal_cache': str(Path(sys.argv[1]).parent / 'p')};"
        "workdir = Path(sys.argv[2]);"
        "found = evaluate_workdir(workdir, {**read_config(workdir), **overrides}, images=7);"
        "np.savez(sys.argv[1], *(field for own in found.detections for field in own))"
    )
    one, four = (run_on_devices(code, devices, tmp_path, workdir) for devices in (1, 4))
    assert set(one["arr_0"]) == set(range(7))
    for name in one.files:
        np.testing.assert_array_equal(four[name], one[name])


@pytest.mark.parametrize("vote_iou", [0, 0.4])
def test_predict_step_equals_a_loop(model_and_variables, rng, vote_iou):
    """Decode, clip, the 100 best of each class, greedy NMS, votes, in original pixels."""
    model, variables = model_and_variables
    image = draw_scene(0, "test", 1).image
    corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1).reshape(300, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    batch = prepare_test(
        image, rois, sizes=[Sizes(216, 288)], pixels=NETWORK.pixels, spatial_scale=NETWORK.spatial_scale
    )
    predict = make_predict_step(model, options=DetectionOptions(vote_iou=vote_iou))
    boxes, scores, valid = (np.asarray(p[0]) for p in predict(variables, batch))
    probs, deltas = jax.jit(lambda *a: model.apply(*a, method=FastRCNN.predict))(
        variables, batch["image"], batch["image_size"], batch["rois"]
    )
    count = batch["roi_mask"].sum()
    probs, deltas, scaled = np.asarray(probs)[0, :count], np.asarray(deltas)[0, :count], batch["rois"][0, :count]
    assert boxes.shape == (6, 100, 4)
    for k in range(6):
        best = np.argsort(-probs[:, k + 1], kind="stable")[:100]
        decoded = box_ops.clip(box_ops.decode(scaled[best], deltas[best, k + 1]) / 1.5, 144, 192)
        left, kept = list(range(100)), []
        while left:
            first, *left = left
            kept.append(first)
            left = [i for i in left if box_ops.iou(decoded[[first]], decoded[[i]])[0, 0] <= 0.3]
        assert valid[k].sum() == len(kept)
        np.testing.assert_allclose(scores[k, : len(kept)], probs[best[kept], k + 1], rtol=1e-4)
        expected, overlaps = decoded[kept], box_ops.iou(decoded, decoded)
        if vote_iou:
            near = [overlaps[i] >= vote_iou for i in kept]
            expected = [np.average(decoded[own], axis=0, weights=probs[best[own], k + 1]) for own in near]
        np.testing.assert_allclose(boxes[k, : len(kept)], expected, atol=0.01)
        assert not scores[k, len(kept) :].any()


def test_votes_by_hand():
    """Two boxes of IoU 1/2 vote by their scores, a far and a padded one do not; nor do margins below 0."""
    rois = np.float32([[10, 10, 39, 29], [20, 10, 49, 29], [100, 10, 129, 29], [0, 0, 0, 0]])
    batch = {"rois": rois, "roi_mask": np.arange(4) < 3, "scale": np.float32(1), "original_size": np.int32([200, 200])}
    batch = {name: value[None] for name, value in batch.items()}
    options = DetectionOptions(candidates=4, vote_iou=0.5)
    for scores, expected in (([0.6, 0.3, 0.1, 0.9], 10 + 10 / 3), ([0.6, -0.3, 0.1, 0], 10), ([-0.1, -0.3, -1, 0], 10)):
        outputs = jnp.float32([[[0, score] for score in scores]]), jnp.zeros((1, 4, 2, 4))
        boxes, _, valid = decode_and_suppress(*outputs, batch, options)
        assert valid[0, 0].sum() == 2
        np.testing.assert_allclose(boxes[0, 0, :2], [[expected, 10, expected + 29, 29], rois[2]], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"candidates": 1}, {"candidates": 512}, *({name: x} for name in ("nms_iou", "vote_iou") for x in (0, 1))],
)
def test_the_limits_of_options_are_allowed(options):
    assert dataclasses.asdict(DetectionOptions(**options)).items() >= options.items()


def test_select_detections_by_hand():
    boxes = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    scores = np.array([[0.9, 0.2], [0.95, 0.4]], np.float32)
    valid = np.array([[True, True], [True, False]])
    got = select_detections(boxes, scores, valid, 0.3, 10)
    np.testing.assert_array_equal(got.labels, [2, 1])
    np.testing.assert_array_equal(got.boxes, boxes[[1, 0], [0, 0]])
    np.testing.assert_array_equal(got.scores, np.float32([0.95, 0.9]))
    assert [field.dtype for field in got] == [np.float32, np.int32, np.float32]
    at = select_detections(boxes, scores, valid, scores[0, 1], 10)  # a score at the threshold is kept
    np.testing.assert_array_equal(at.scores, np.float32([0.95, 0.9, 0.2]))
    assert select_detections(boxes, scores, valid, 0, 2).labels.tolist() == [2, 1]


def test_image_detections_are_best_first():
    classes = [
        ClassDetections(np.array([0, 1, 0]), np.array([0.3, 0.9, 0.8]), np.arange(12.0).reshape(3, 4)),
        ClassDetections(np.array([0]), np.array([0.5]), np.zeros((1, 4))),
    ]
    found = image_detections(classes, 0, score_threshold=0.4)
    np.testing.assert_array_equal(found.scores, [0.8, 0.5])
    np.testing.assert_array_equal(found.labels, [1, 2])


def test_image_detections_are_limited_over_all_classes():
    classes = [ClassDetections(np.zeros(3, int), np.array([0.1, 0.2, 0.3]) + k / 100, np.zeros((3, 4))) for k in (0, 1)]
    found = image_detections(classes, 0, score_threshold=0, max_detections=3)
    np.testing.assert_allclose(found.scores, [0.31, 0.3, 0.21])
    np.testing.assert_array_equal(found.labels, [2, 1, 2])


def test_a_pyramid_equals_each_scale_by_itself(model_and_variables, rng):
    model, variables = model_and_variables
    image, sizes = draw_scene(0, "test", 1).image, [Sizes(216, 288), Sizes(576, 768)]
    corners = np.sort(rng.uniform(0, 1, (60, 2, 2)), axis=1).reshape(60, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    batch = prepare_test(image, rois, sizes=sizes, pixels=NETWORK.pixels, spatial_scale=None)
    level, count = batch["level"][0, :60], 60
    assert 0 < level.sum() < count
    images = [batch[name] for name in ("image", "image_size", "rois", "level")]
    together = jax.jit(lambda *a: model.apply(*a, method=FastRCNN.predict_pyramid))(variables, *images)
    for i, size in enumerate(sizes):
        alone = prepare_test(image, rois, sizes=[size], pixels=NETWORK.pixels, spatial_scale=None)
        images = [alone[name] for name in ("image", "image_size", "rois")]
        expected = jax.jit(lambda *a: model.apply(*a, method=FastRCNN.predict))(variables, *images)
        for a, b in zip(together, expected, strict=True):
            np.testing.assert_allclose(a[0, :60][level == i], b[0, :60][level == i], rtol=1e-4, atol=1e-5)

    # without box regression the boxes of the step are the RoIs, whatever their scale
    boxes, _, valid = make_predict_step(model, options=DetectionOptions(box_regression=False))(variables, batch)
    found = np.asarray(boxes[0])[np.asarray(valid[0])]
    assert len(found) > 10
    assert np.abs(found[:, None] - rois).max(axis=2).min(axis=1).max() < 1e-3


FOUND = Detections(np.float32([[1, 2, 3.26, 5]]), np.int32([2]), np.float32([0.123456]))


def test_detections_for_other_programs():
    assert FOUND.to_records(["cat", "dog"]) == [{"label": "dog", "score": 0.1235, "box": [1, 2, 3.3, 5]}]
    (result,) = FOUND.to_coco(7, category_ids=[5, 9])
    assert (result["image_id"], result["category_id"]) == (7, 9)
    np.testing.assert_allclose(result["bbox"], [1, 2, 3.26, 4], rtol=1e-6)
    assert result["score"] == pytest.approx(0.123456)
    assert FOUND.to_coco(7)[0]["category_id"] == 2


def test_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    found = FOUND.to_supervision()
    np.testing.assert_allclose(found.xyxy, [[1, 2, 4.26, 6]], rtol=1e-6)
    assert (found.class_id, found.confidence) == (2, FOUND.scores)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="to_supervision needs the package supervision"):
        FOUND.to_supervision()
