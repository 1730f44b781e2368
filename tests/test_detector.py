import json
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions


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


def test_a_detector_follows_the_config(workdir, tmp_path):
    """Its search, its sizes and its suppression."""
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    config = json.loads((workdir / "config.json").read_text())
    changes = {"proposal_mode": "quality", "max_proposals": 9, "scales": (96, 128), "max_size": 160, "nms_iou": 0.6}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    built = mock.Mock(side_effect=Detector)
    Detector.from_workdir.__func__(built, tmp_path)
    assert built.call_args.kwargs == {
        "class_names": list(CLASS_NAMES),
        "sizes": (Sizes(96, 160), Sizes(128, 160)),
        "options": DetectionOptions(nms_iou=0.6),
        "proposal_mode": "quality",
        "max_proposals": 9,
    }


def test_searched_proposals_are_those_of_the_options(model_and_variables, monkeypatch):
    search = mock.Mock(return_value=np.array([[20, 30, 90, 140]], np.float32))
    monkeypatch.setattr("frcnn_jax.detector.selective_search", search)
    image, options = draw_scene(0, "test", 3).image, {"proposal_mode": "quality", "max_proposals": 9}
    detector = Detector(*model_and_variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)], **options)
    assert len(detector(image, score_threshold=0).boxes) == len(CLASS_NAMES)
    search.assert_called_once_with(image, mode="quality", max_boxes=9)


@pytest.mark.parametrize(
    ("image", "rois", "text"),
    [
        (np.zeros((9, 9), np.uint8), None, r"got \(9, 9\) uint8"),
        (np.zeros((9, 9, 3), np.float32), None, "float32"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((3, 5)), r"rois must be \(N, 4\), got \(3, 5\)"),
        (np.zeros((9, 9, 3), np.uint8), np.full((3, 4), np.nan), "finite"),
    ],
)
def test_errors_say_what_came(workdir, image, rois, text):
    with pytest.raises(InputError, match=text):
        Detector.from_workdir(workdir)(image, rois)


def test_suppression_is_that_of_the_options_by_default(model_and_variables, rng):
    model, variables = model_and_variables
    image = draw_scene(0, "test", 3).image
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4)
    rois = (corners * [191, 143, 191, 143]).astype(np.float32)
    options = DetectionOptions(nms_iou=0.9)
    detector = Detector(model, variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)], options=options)
    found, same, other = (
        detector(image, rois, score_threshold=0, max_detections=9999, **options)
        for options in ({}, {"nms_threshold": 0.9}, {"nms_threshold": 0.1})
    )
    assert len(found.boxes) == len(same.boxes) > len(other.boxes)


def test_a_step_that_is_not_there(workdir):
    with pytest.raises(InputError, match=r"no checkpoint of step 9; available: \[7\]"):
        Detector.from_workdir(workdir, step=9)


def test_without_a_workdir_as_with_one(model_and_variables, workdir):
    model, variables = model_and_variables
    image, rois = draw_scene(0, "test", 3).image, np.array([[0, 0, 100, 80], [20, 30, 90, 140]], np.float32)
    with_one = Detector.from_workdir(workdir)(image, rois, score_threshold=0)
    without = Detector(model, variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)])
    for a, b in zip(without(image, rois, score_threshold=0), with_one, strict=True):
        np.testing.assert_array_equal(a, b)
    larger = Detector(model, variables, class_names=CLASS_NAMES, sizes=[Sizes(288, 384)])
    assert not np.array_equal(larger(image, rois, score_threshold=0).scores, with_one.scores)
    with pytest.raises(InputError, match="class_names must be the network's 6 names, got 2"):
        Detector(model, variables, class_names=("cat", "dog"))


def test_a_pyramid_of_two_equal_scales_changes_nothing(model_and_variables):
    model, variables = model_and_variables
    image, rois = draw_scene(0, "test", 3).image, np.array([[0, 0, 100, 80], [20, 30, 90, 140]], np.float32)
    single, pyramid = (
        Detector(model, variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)] * n)(image, rois, score_threshold=0)
        for n in (1, 2)
    )
    for a, b in zip(pyramid, single, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
