import json

import numpy as np
import pytest
from examples import blank
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.data.voc import read_voc
from frcnn_jax.evaluation.comp4 import read_comp4
from frcnn_jax.evaluation.metrics import (
    ClassDetections,
    average_precision,
    error_kinds,
    match,
    mean_average_precision,
    nearest_objects,
    precision_recall,
)
from frcnn_jax.evaluation.scores import score

BOX = [0, 0, 9, 9]


def curve(scores, boxes, images, gt_boxes, difficult=None):
    difficult = difficult or [[False] * len(b) for b in gt_boxes]
    return precision_recall(
        ClassDetections(np.array(images), np.array(scores), np.array(boxes, float).reshape(-1, 4)),
        [np.array(b, float).reshape(-1, 4) for b in gt_boxes],
        [np.array(d, bool) for d in difficult],
    )


@pytest.mark.parametrize("metric", ["voc07_11point", "area"])
def test_agrees_with_the_reference_evaluation(shared, metric):
    dataset = read_voc(shared / "voc" / "VOCdevkit", split="val")
    detections = read_comp4(shared / "oracles" / "voc_eval", dataset, year=2007, split="val")
    results, _ = score(detections, dataset, metric=metric)
    expected = json.loads((shared / "oracles" / "voc_eval" / "expected.json").read_text())[metric]
    assert results["map"] == pytest.approx(expected["map"], abs=1e-6)
    assert results["aps"] == pytest.approx(expected["aps"], abs=1e-6)


def test_by_hand():
    # hit, false positive, hit: recalls 1/2, 1/2, 1; precisions 1, 1/2, 2/3
    got = curve([0.9, 0.8, 0.7], [BOX, [50, 50, 59, 59], BOX], [0, 0, 1], [[BOX], [BOX]])
    np.testing.assert_allclose(got.recall, [0.5, 0.5, 1])
    np.testing.assert_allclose(got.precision, [1, 0.5, 2 / 3])
    assert average_precision(got, metric="area") == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(got) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_eleven_points_at_recalls_of_tenths():
    """Of ten objects the first n are hit, then nothing is.

    A recall reaches a point that it equals. The points are those of 0:0.1:1 in MATLAB and of NumPy's arange: 0.3, 0.6
    and 0.7 are one bit above 3/10, 6/10 and 7/10 there, and not reached.
    """
    points = {0: 0, 1: 2, 2: 3, 3: 3, 4: 5, 5: 6, 6: 6, 7: 7, 8: 9, 9: 10, 10: 11}
    for hits, reached in points.items():
        got = curve([0.9] * hits, [BOX] * hits, range(hits), [[BOX]] * 10)
        assert average_precision(got) == pytest.approx(reached / 11), hits
        assert average_precision(got, metric="area") == pytest.approx(hits / 10)


def test_second_hit_is_a_false_positive():
    got = curve([0.9, 0.8], [BOX, BOX], [0, 0], [[BOX]])
    np.testing.assert_allclose(got.precision, [1, 0.5])


def test_difficult_objects_do_not_count():
    # two detections of the difficult object, then one of the other: neither hits nor false positives, and one object
    boxes, images = [BOX, [0, 0, 9, 8], [20, 20, 29, 29]], [0, 0, 0]
    got = curve([0.9, 0.8, 0.7], boxes, images, [[BOX, [20, 20, 29, 29]]], [[True, False]])
    assert got.positives == 1
    np.testing.assert_allclose(got.precision, [1])
    np.testing.assert_allclose(got.recall, [1])


def test_threshold_is_exclusive():
    # 10x10 against its upper half: IoU is 0.5, no hit
    got = curve([0.9], [[0, 0, 9, 4]], [0], [[BOX]])
    np.testing.assert_allclose(got.precision, [0])


def test_of_equal_scores_the_first_ranks_first():
    far = [50, 50, 59, 59]
    np.testing.assert_allclose(curve([0.5, 0.5], [BOX, far], [0, 0], [[BOX]]).precision, [1, 0.5])
    np.testing.assert_allclose(curve([0.5, 0.5], [far, BOX], [0, 0], [[BOX]]).precision, [0, 0.5])


def test_of_identical_objects_the_first_is_matched():
    # the second detection is a duplicate of the first one's object; the second object stays without a hit
    got = curve([0.9, 0.8], [BOX, BOX], [0, 0], [[BOX, BOX]])
    np.testing.assert_allclose(got.precision, [1, 0.5])
    np.testing.assert_allclose(got.recall, [0.5, 0.5])
    # a difficult one in front takes both detections
    got = curve([0.9, 0.8], [BOX, BOX], [0, 0], [[BOX, BOX]], [[True, False]])
    assert (got.positives, len(got.precision)) == (1, 0)
    # of two boxes with equal IoU, 0.9 each, likewise
    found = ClassDetections(np.array([0]), np.array([0.5]), np.array([BOX], float))
    overlap, nearest = nearest_objects(found, [np.array([[0, 0, 9, 8], [0, 1, 9, 9]], float)])
    assert (overlap.tolist(), nearest.tolist()) == ([0.9], [0])


def test_nearest_objects_are_numbered_over_the_split():
    """An image with one, one without any, one with two; detections on the last, beside it, and in the second."""
    found = ClassDetections(np.array([2, 2, 1]), np.zeros(3), np.array([[50, 0, 59, 4], [90, 0, 99, 9], BOX], float))
    truth = [np.array([BOX], float), np.zeros((0, 4)), np.array([BOX, [50, 0, 59, 9]], float)]
    overlap, nearest = nearest_objects(found, truth)
    assert (overlap.tolist(), nearest.tolist()) == ([0.5, 0, 0], [2, -1, -1])


def test_no_objects_and_no_detections():
    assert average_precision(curve([0.5], [BOX], [0], [[]])) is None
    assert average_precision(curve([], [], [], [[BOX]])) == 0
    assert mean_average_precision([None, 0.5, 0.0]) == 0.25
    assert mean_average_precision([None]) is None


def voc_evaldet(found, gt, difficult, threshold=0.5):
    """VOCevaldet.m and VOCap.m of the devkit, line by line, but for `ov > threshold` and the recalls of the well-known
    Python port; true and false positives by rank, the 11-point AP and the area."""
    taken, tp, fp = [[False] * len(boxes) for boxes in gt], [], []
    for d in sorted(range(len(found.scores)), key=lambda d: -found.scores[d]):
        image, (x1, y1, x2, y2) = found.image[d], found.boxes[d]
        largest, nearest = -np.inf, -1
        for j, (u1, v1, u2, v2) in enumerate(gt[image]):
            width, height = min(x2, u2) - max(x1, u1) + 1, min(y2, v2) - max(y1, v1) + 1
            if width > 0 and height > 0:
                union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - width * height
                if width * height / union > largest:
                    largest, nearest = width * height / union, j
        tp.append(False)
        fp.append(False)
        if largest > threshold:
            if not difficult[image][nearest]:
                tp[-1], fp[-1] = not taken[image][nearest], taken[image][nearest]
                taken[image][nearest] = True
        else:
            fp[-1] = True
    positives = sum(not flag for flags in difficult for flag in flags)
    if not positives:
        return tp, fp, None, None
    hits, misses = np.cumsum(tp), np.cumsum(fp)
    recall, precision = hits / positives, hits / np.maximum(hits + misses, 1)
    eleven = sum(max(precision[recall >= t], default=0) / 11 for t in np.arange(0, 1.1, 0.1))
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    area = sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
    return tp, fp, eleven, area


@st.composite
def class_cases(draw):
    """Objects and detections of a class in two images: few places and scores, so that boxes coincide, IoUs are equal
    or 1/2, and scores are equal."""
    side = st.sampled_from([1, 3])
    box = st.builds(lambda x, w, h: (x, 0, x + w, h), st.integers(0, 2), side, side)
    objects = draw(st.lists(st.tuples(st.integers(0, 1), box, st.booleans()), max_size=9))
    found = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), box), min_size=5, max_size=20))
    gt = [np.array([b for i, b, _ in objects if i == k], np.float32).reshape(-1, 4) for k in range(2)]
    difficult = [np.array([d for i, _, d in objects if i == k], bool) for k in range(2)]
    image, scores, boxes = (np.array([row[k] for row in found], np.float32) for k in range(3))
    return ClassDetections(image.astype(int), scores, boxes.reshape(-1, 4)), gt, difficult


def agrees_with_the_devkit(case):
    tp, fp, eleven, area = voc_evaldet(*case)
    matches, got = match(*case), precision_recall(*case)
    np.testing.assert_array_equal(matches.hit, np.array(tp, bool))
    np.testing.assert_array_equal(~matches.hit & ~matches.ignored, np.array(fp, bool))
    assert average_precision(got) == (None if eleven is None else pytest.approx(eleven, abs=1e-12))
    assert average_precision(got, metric="area") == (None if area is None else pytest.approx(area, abs=1e-12))


@given(class_cases())
def test_agrees_with_the_devkit(case):
    agrees_with_the_devkit(case)


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(class_cases())
def test_agrees_with_the_devkit_in_a_thousand_cases(case):
    agrees_with_the_devkit(case)


def test_11_points_are_those_of_the_python_port():
    # 3 of 5 objects: a recall of 0.6, under numpy's 6 * 0.1; the points 0 to 0.5 count
    boxes = [[20 * i, 0, 20 * i + 9, 9] for i in range(5)]
    assert average_precision(curve([0.9, 0.8, 0.7], boxes[:3], [0] * 3, [boxes])) == pytest.approx(6 / 11)


def test_classes_with_identical_boxes_are_scored_apart():
    """Each has its hit, whichever object is first; a detection of one class takes no object of another."""
    record = Record("a", 20, 30, np.array([BOX, BOX], np.float32), np.array([2, 1]), np.zeros(2, bool), blank)
    one = ClassDetections(np.array([0]), np.array([0.5]), np.array([BOX], float))
    none = ClassDetections(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    dataset = Dataset(("cat", "dog"), [record])
    assert score([one, one], dataset)[0]["aps"] == {"cat": 1, "dog": 1}
    assert score([none, one], dataset)[0]["aps"] == {"cat": 0, "dog": 1}


def test_error_kinds_by_hand():
    """One image: an object and a difficult one of the class, and one of another class."""
    gt, other = np.array([BOX, [50, 0, 59, 9]]), np.array([[0, 20, 9, 29]])
    rows = [
        (BOX, "correct"),
        ([0, 0, 9, 8], "localisation"),  # a duplicate
        ([0, 0, 9, 4], "localisation"),  # IoU 0.5
        ([0, 9, 9, 18], "background"),  # 1/19
        ([0, 5, 9, 24], "localisation"),  # 1/5 here, 1/5 with the other
        ([0, 20, 9, 29], "confusion"),
        ([50, 0, 59, 9], "ignored"),
        ([50, 1, 59, 9], "ignored"),
        ([50, 5, 59, 14], "localisation"),  # of the difficult one
        ([20, 40, 29, 49], "background"),
    ]
    boxes, kinds = np.array([box for box, _ in rows], float), [kind for _, kind in rows]
    found = ClassDetections(np.zeros(len(rows), int), -np.arange(len(rows)), boxes)
    matches = match(found, [gt], [np.array([False, True])])
    other_overlap, nearest = nearest_objects(matches.ranked, [other])
    assert error_kinds(matches, other_overlap).tolist() == kinds
    assert nearest.tolist() == [-1, -1, -1, -1, 0, 0, -1, -1, -1, -1]
    assert matches.missed.tolist() == [False, False]
    assert np.flatnonzero(matches.hit).tolist() == [0]  # those that are ignored are no hits


def test_missed_are_counted_objects_without_a_hit():
    found = ClassDetections(np.array([1]), np.array([0.5]), np.array([BOX]))
    matches = match(
        found, [np.array([BOX]), np.array([BOX, [50, 0, 59, 9]])], [np.array([False]), np.array([0, 1]) > 0]
    )
    assert matches.missed.tolist() == [True, False, False]


def test_unknown_metric_lists_the_choices():
    with pytest.raises(ValueError, match="voc07_11point, area"):
        average_precision(curve([], [], [], [[BOX]]), metric="coco")
