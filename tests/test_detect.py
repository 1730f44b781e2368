import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from examples import ROOT
from PIL import Image

from frcnn_jax.config import get_config
from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene
from frcnn_jax.detect import Detector, make_predict_step, select_detections
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN, get_network
from frcnn_jax.ops import boxes as box_ops

NETWORK = get_network("tiny")


def test_predict_step_equals_a_loop(model_and_variables, rng):
    """Decode, clip, the 100 best of each class, greedy NMS, in original pixels."""
    model, variables = model_and_variables
    image = draw_scene(0, "test", 1).image
    corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1).reshape(300, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    batch = prepare_test(image, rois, sizes=[Sizes(216, 288)], spatial_scale=NETWORK.spatial_scale)
    boxes, scores, valid = (np.asarray(p[0]) for p in make_predict_step(model)(variables, batch))
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
        np.testing.assert_allclose(boxes[k, : len(kept)], decoded[kept], atol=0.01)
        assert not scores[k, len(kept) :].any()


def test_no_proposals_give_no_detections(workdir):
    found = Detector.from_workdir(workdir)(draw_scene(0, "test", 2).image, np.zeros((0, 4)))
    assert found.boxes.shape == (0, 4)
    assert len(found.labels) == len(found.scores) == 0


def test_detector_takes_paths_pictures_and_arrays(workdir, tmp_path):
    image = draw_scene(0, "test", 3).image
    Image.fromarray(image).save(tmp_path / "a.png")
    detector = Detector.from_workdir(workdir)
    assert detector.class_names == CLASS_NAMES
    results = [
        detector(given, score_threshold=0)
        for given in (image, Image.fromarray(image).convert("RGBA"), tmp_path / "a.png")
    ]
    assert 0 < len(results[0].boxes) <= 100
    for result in results[1:]:
        for ours, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(ours, other)
    assert (np.diff(results[0].scores) <= 0).all()
    assert set(results[0].labels) <= set(range(1, 7))
    assert (results[0].boxes[:, 2:] <= [191, 143]).all()
    few = detector(image, score_threshold=float(results[0].scores[3]), max_detections=2)
    np.testing.assert_array_equal(few.scores, results[0].scores[:2])


def test_select_detections_by_hand():
    boxes = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    scores = np.array([[0.9, 0.2], [0.95, 0.4]], np.float32)
    valid = np.array([[True, True], [True, False]])
    got = select_detections(boxes, scores, valid, 0.3, 10)
    np.testing.assert_array_equal(got.labels, [2, 1])
    np.testing.assert_array_equal(got.boxes, boxes[[1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("image", "rois", "text"),
    [
        (np.zeros((9, 9), np.uint8), None, r"got \(9, 9\) uint8"),
        (np.zeros((9, 9, 3), np.float32), None, "float32"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((3, 5)), r"finite \(N, 4\) boxes, got shape \(3, 5\)"),
        (np.zeros((9, 9, 3), np.uint8), np.full((3, 4), np.nan), "finite"),
    ],
)
def test_errors_say_what_came(workdir, image, rois, text):
    with pytest.raises(InputError, match=text):
        Detector.from_workdir(workdir)(image, rois)


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json here; train first"):
        Detector.from_workdir(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"network": "tiny"}'])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not a config that frcnn_jax\.train wrote"):
        Detector.from_workdir(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("min_size", "144", r"config\.json: min_size must be a int, got '144'"),
        ("flip", 1, r"config\.json: flip must be a bool, got 1"),
        ("class_names", "cat", r"config\.json: class_names must be a list, got 'cat'"),
        ("nms_iou", 3, r"config\.json: --config\.nms_iou must be from 0 to 1, got 3"),
    ],
)
def test_a_config_that_was_changed_by_hand(tmp_path, field, value, text):
    config = {**get_config().to_dict(), "class_names": ["cat"], field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=text):
        Detector.from_workdir(tmp_path)


def test_suppression_is_the_configs_by_default(model_and_variables, rng):
    model, variables = model_and_variables
    image = draw_scene(0, "test", 3).image
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    config = {**get_config().to_dict(), "class_names": CLASS_NAMES, "nms_iou": 0.9}
    detector = Detector(model, variables, config)
    found, same, other = (
        detector(image, rois, score_threshold=0, max_detections=9999, **options)
        for options in ({}, {"nms_threshold": 0.9}, {"nms_threshold": 0.1})
    )
    assert len(found.boxes) == len(same.boxes) > len(other.boxes)


def test_a_step_that_is_not_there(workdir):
    with pytest.raises(InputError, match=r"no checkpoint of step 9; available: \[7\]"):
        Detector.from_workdir(workdir, step=9)


def run(*arguments):
    command = [sys.executable, "-m", "frcnn_jax.detect", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_command_line(workdir, tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "test", i).image).save(path)
    done = run("--workdir", workdir, *paths, "--out", tmp_path / "out", "--score-threshold", 0.2)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert list(results) == [str(path) for path in paths]
    for detection in results[str(paths[0])]:
        assert detection["label"] in CLASS_NAMES
        assert 0.2 <= detection["score"] <= 1
        assert len(detection["box"]) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "detections.json"}


def test_command_line_names_the_broken_image_and_writes_nothing(workdir, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    done = run("--workdir", workdir, tmp_path / "bad.jpg", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: can't be read as an image")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    done = run("--workdir", workdir, "a/x.jpg", "b/x.jpg", "--out", tmp_path / "out")
    assert done.stderr.startswith("error: images of the same name")
    done = run("--workdir", workdir, "x.jpg", "--out", tmp_path / "bad.jpg")
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: expected a folder")
    done = run("--workdir", workdir, "x.jpg", "--out", tmp_path / "out", "--score-threshold", "nan")
    assert done.stderr == "error: --score-threshold must be a number, got nan\n"


def test_a_pyramid_equals_each_scale_by_itself(model_and_variables, rng):
    model, variables = model_and_variables
    image, sizes = draw_scene(0, "test", 1).image, [Sizes(216, 288), Sizes(576, 768)]
    corners = np.sort(rng.uniform(0, 1, (60, 2, 2)), axis=1).reshape(60, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    batch = prepare_test(image, rois, sizes=sizes, spatial_scale=None)
    level, count = batch["level"][0, :60], 60
    assert 0 < level.sum() < count
    images = [batch[name] for name in ("image", "image_size", "rois", "level")]
    together = jax.jit(lambda *a: model.apply(*a, method=FastRCNN.predict_pyramid))(variables, *images)
    for i, size in enumerate(sizes):
        alone = prepare_test(image, rois, sizes=[size], spatial_scale=None)
        images = [alone[name] for name in ("image", "image_size", "rois")]
        expected = jax.jit(lambda *a: model.apply(*a, method=FastRCNN.predict))(variables, *images)
        for a, b in zip(together, expected, strict=True):
            np.testing.assert_allclose(a[0, :60][level == i], b[0, :60][level == i], rtol=1e-4, atol=1e-5)

    # without box regression the boxes of the step are the RoIs, whatever their scale
    boxes, _, valid = make_predict_step(model, box_regression=False)(variables, batch)
    found = np.asarray(boxes[0])[np.asarray(valid[0])]
    assert len(found) > 10
    assert np.abs(found[:, None] - rois).max(axis=2).min(axis=1).max() < 1e-3


def test_detector_with_a_pyramid(model_and_variables, workdir):
    model, variables = model_and_variables
    image, rois = draw_scene(0, "test", 3).image, np.array([[0, 0, 100, 80], [20, 30, 90, 140]], np.float32)
    config = json.loads((workdir / "config.json").read_text())
    single = Detector(model, variables, {**get_config().to_dict(), **config})(image, rois, score_threshold=0)
    pyramid = Detector(model, variables, {**get_config().to_dict(), **config, "scales": [144]})
    for a, b in zip(pyramid(image, rois, score_threshold=0), single, strict=True):
        np.testing.assert_array_equal(a, b)
