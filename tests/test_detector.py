import json
import os
from unittest import mock

import numpy as np
import pytest
from examples import pixel_network, run_command, told_network
from PIL import Image

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene
from frcnn_jax.data.workers import process_pool
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.workdir import workdir_weights


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


@pytest.mark.parametrize("half", [False, True])
def test_a_detector_as_one_file(half, workdir, tmp_path):
    path, image = tmp_path / "d.safetensors", draw_scene(0, "test", 3).image
    done = run_command("convert-weights", workdir, path, *["--half"] * half)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size < (2.2 if half else 4.2) * sum(a.size for a in read_weights(path).values())
    expected, got = (
        d.classify(image, [[9, 9, 60, 50]]) for d in (Detector.from_workdir(workdir), Detector.from_file(path))
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02 if half else 1e-4, atol=0.02 if half else 1e-4)
    assert Detector.from_file(path).class_names == CLASS_NAMES


def test_a_file_that_is_no_detector(workdir, tmp_path):
    path, weights = tmp_path / "d.safetensors", workdir_weights(workdir)
    for change, message in (
        ({}, "not a detector: it has no config"),
        ({**weights.detector, "nms_iou": 2.0}, "nms_iou must be from 0 to 1, got 2.0"),
        (
            {**weights.detector, "network": "os:getcwd"},
            "its network is code, os:getcwd: if you trust it, pass --network=os:getcwd",
        ),
        ({**weights.detector, "class_names": ["one"]}, r"does not fit the network: .*bbox_pred\.bias is"),
    ):
        weights.detector = change
        write_weights(path, weights)
        with pytest.raises(InputError, match=f"{path}: .*{message}"):
            Detector.from_file(path)
    np.savez(tmp_path / "w.npz", **{name: array for name, array in weights.items() if name[:3] != "fc6"})
    with pytest.raises(InputError, match="not a detector"):
        Detector.from_file(tmp_path / "w.npz")


def test_a_detector_follows_the_config(workdir, tmp_path):
    """Its search, its sizes and its suppression."""
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    config = json.loads((workdir / "config.json").read_text())
    changes = {"proposals": "p.npz+quality", "proposal_size": 99, "max_proposals": 9, "nms_iou": 0.6}
    changes |= {"scales": (96, 128), "max_size": 160}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    built = mock.Mock(side_effect=Detector)
    Detector.from_workdir.__func__(built, tmp_path)
    assert built.call_args.kwargs == {
        "class_names": list(CLASS_NAMES),
        "sizes": (Sizes(96, 160), Sizes(128, 160)),
        "options": DetectionOptions(nms_iou=0.6),
        "proposals": "quality",
        "proposal_size": 99,
        "max_proposals": 9,
    }


def test_searched_proposals_are_those_of_the_options(model_and_variables, monkeypatch):
    make = mock.Mock(return_value=lambda image: np.array([[20, 30, 90, 140]], np.float32))
    monkeypatch.setattr("frcnn_jax.detector.make_search", make)
    image, options = draw_scene(0, "test", 3).image, {"proposals": "quality", "max_proposals": 9, "proposal_size": 99}
    detector = Detector(*model_and_variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)], **options)
    assert len(detector(image, score_threshold=0).boxes) == len(CLASS_NAMES)
    make.assert_called_once_with("quality", size=99, max_boxes=9)


BOXES = np.array([[20, 30, 90, 140], [5, 5, 80, 90]], np.float32)


class Found:
    """As a supervision.Detections, whose boxes are continuous."""

    xyxy = BOXES + np.array([0, 0, 1, 1], np.float32)


@pytest.mark.parametrize("found", [BOXES, BOXES.tolist(), Found()])
def test_a_function_may_propose(model_and_variables, found):
    image = draw_scene(0, "test", 3).image
    options = {"class_names": CLASS_NAMES, "sizes": [Sizes(144, 192)]}
    seen = []
    detector = Detector(*model_and_variables, **options, proposals=lambda image: seen.append(image) or found)
    for ours, expected in zip(detector(image), Detector(*model_and_variables, **options)(image, BOXES), strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(seen, [image])


@pytest.mark.parametrize("box", [[9, 0, 1, 5], [0, 0, 900, 900]])
def test_a_function_that_proposes_no_boxes_of_the_image(model_and_variables, box):
    detector = Detector(*model_and_variables, class_names=CLASS_NAMES, proposals=lambda _: [[0, 0, 5, 5], box])
    with pytest.raises(InputError, match=r"the proposals: box 1 is \(.*\); expected 0 <= x1 <= x2 < "):
        detector(draw_scene(0, "test", 3).image)


def test_many_images_are_searched_ahead_and_detected_in_turn(model_and_variables, tmp_path):
    images = [draw_scene(0, "test", i).image for i in range(7)]
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    taken, detector = [], Detector(*model_and_variables, class_names=CLASS_NAMES, sizes=[Sizes(144, 192)])
    given = (taken.append(path) or path for path in paths)
    each = detector.detect_each(given, score_threshold=0)
    for i, image in enumerate(images):
        for ours, expected in zip(next(each), detector(image, score_threshold=0), strict=True):
            np.testing.assert_array_equal(ours, expected)
        assert len(taken) <= i + 2 * os.cpu_count()
    assert next(each, None) is None
    for rois in (None, [BOXES] * 7):
        listed = detector(paths, rois, score_threshold=0)
        for found, image in zip(listed, images, strict=True):
            for ours, expected in zip(found, detector(image, rois and BOXES, score_threshold=0), strict=True):
                np.testing.assert_array_equal(ours, expected)
    with pytest.raises(InputError, match=r"missing\.png: no such image"):
        detector([paths[0], "missing.png"])


def test_a_search_that_dies_is_one_line(model_and_variables):
    detector = Detector(*model_and_variables, class_names=CLASS_NAMES, proposals=_die)
    with process_pool(1) as executor, pytest.raises(InputError, match="searched for proposals was killed"):
        next(detector.detect_each([draw_scene(0, "test", 3).image], executor=executor))


def _die(image):
    os._exit(1)


def test_a_search_of_no_known_name(model_and_variables):
    with pytest.raises(InputError, match=r"proposals must be standard, fast, .* or a function, got 'slow'"):
        Detector(*model_and_variables, class_names=CLASS_NAMES, proposals="slow")
    with pytest.raises(InputError, match=r"or a function, got 3$"):
        Detector(*model_and_variables, class_names=CLASS_NAMES, proposals=3)


@pytest.mark.parametrize(
    ("image", "rois", "text"),
    [
        (np.zeros((9, 9), np.uint8), None, r"got \(9, 9\) uint8"),
        (np.zeros((9, 9, 3), np.float32), None, "float32"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((3, 5)), r"rois must be \(N, 4\), got \(3, 5\)"),
        (np.zeros((9, 9, 3), np.uint8), np.full((3, 4), np.nan), "finite"),
        (np.zeros((9, 9, 3), np.uint8), np.full((3, 4), 1e300), "finite"),
        (np.zeros((9, 9, 3), np.uint8), [[1, 2, 3, 4], [1]], "rois must be an array of numbers, got list"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((3, 4), bool), "rois must be floating point or integers, got bool"),
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


PIXELS = PixelNorm("RGB", (198, 100, 90), (5, 10, 20))


@pytest.mark.parametrize(
    ("pixels", "normalised"),
    [(PixelNorm(), (103 - 102.9801, 120 - 115.9465, 200 - 122.7717)), (PIXELS, (0.4, 2, 0.65))],
)
def test_a_detection_by_hand(pixels, normalised):
    """In an image of one colour, twice enlarged; the second box is clipped at the right and at the bottom."""
    image = np.broadcast_to(np.array([200, 120, 103], np.uint8), (60, 90, 3))
    detector = Detector(*pixel_network(pixels), class_names=["a"], sizes=[Sizes(120, 180)])
    found = detector(image, np.array([[10, 20, 30, 40], [60, 30, 89, 59]]))
    score = 1 / (1 + np.exp(-np.dot(normalised, [10, 0.1, 0.01])))
    np.testing.assert_allclose(found.scores, [score, score], rtol=1e-4)
    np.testing.assert_array_equal(found.labels, [1, 1])
    # moved by 0.3 and 0.2 of the sides, 20 and 29, and twice as wide
    np.testing.assert_allclose(found.boxes, [[6, 24, 46, 44], [54.2, 35.8, 89, 59]], rtol=1e-5)


def test_rois_of_the_same_cells_are_one():
    """0.2 pixels apart at one cell per pixel: the second score is that of the third RoI."""
    model, variables = told_network([(0.9,), (0.8,)])
    rois = np.array([[0, 0, 9, 9], [0.2, 0, 9, 9], [50, 50, 59, 59]])
    found = Detector(model, variables, class_names=["a"])(np.zeros((600, 800, 3), np.uint8), rois)
    np.testing.assert_allclose(found.scores, [0.9, 0.8], rtol=1e-4)
    np.testing.assert_array_equal(found.boxes, rois[[0, 2]])


def test_thresholds_and_counts_by_default():
    """Scores of 0.05, overlaps of 0.3, 100 candidates of a class, 100 detections."""
    image = np.zeros((1000, 1000, 3), np.uint8)
    # IoU 47/153 = 0.307 with the box before, then 46/154 = 0.299
    rois = [[0, 0, 99, 9], [53, 0, 152, 9], [0, 20, 99, 29], [54, 20, 153, 29], [0, 40, 99, 49], [0, 60, 99, 69]]
    model, variables = told_network([(0.9,), (0.8,), (0.7,), (0.6,), (0.0501,), (0.0499,)])
    found = Detector(model, variables, class_names=["a"])(image, np.array(rois))
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.6, 0.0501], rtol=1e-4)
    two = Detector(model, variables, class_names=["a"], options=DetectionOptions(candidates=2))
    np.testing.assert_allclose(two(image, np.array(rois)).scores, [0.9], rtol=1e-4)  # 0.8 overlaps it

    apart = np.array([[20 * (i % 50), 20 * (i // 50), 20 * (i % 50) + 9, 20 * (i // 50) + 9] for i in range(150)])
    falling = [0.9 - 0.005 * i for i in range(150)]
    model, variables = told_network([(p,) for p in falling])
    found = Detector(model, variables, class_names=["a"])(image, apart, max_detections=999)
    np.testing.assert_allclose(found.scores, falling[:100], rtol=1e-4)

    model, variables = told_network([(p / 3, p / 2) for p in falling[:60]], classes=2)
    found = Detector(model, variables, class_names=["a", "b"])(image, apart)
    both = np.sort(np.concatenate([np.divide(falling[:60], 3), np.divide(falling[:60], 2)]))[::-1]
    np.testing.assert_allclose(found.scores, both[:100], rtol=1e-4)
