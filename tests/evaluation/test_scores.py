import numpy as np
from examples import make_dataset

from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.scores import class_objects, image_detections, results_table


def test_image_detections_are_best_first():
    classes = [
        ClassDetections(np.array([0, 1, 0]), np.array([0.3, 0.9, 0.8]), np.arange(12.0).reshape(3, 4)),
        ClassDetections(np.array([0]), np.array([0.5]), np.zeros((1, 4))),
    ]
    found = image_detections(classes, 0, score_threshold=0.4)
    np.testing.assert_array_equal(found.scores, [0.8, 0.5])
    np.testing.assert_array_equal(found.labels, [1, 2])


def test_at_most_so_many_detections_over_all_classes():
    classes = [ClassDetections(np.zeros(3, int), np.array([0.1, 0.2, 0.3]) + k / 100, np.zeros((3, 4))) for k in (0, 1)]
    found = image_detections(classes, 0, score_threshold=0, max_detections=3)
    np.testing.assert_allclose(found.scores, [0.31, 0.3, 0.21])
    np.testing.assert_array_equal(found.labels, [2, 1, 2])


def test_class_objects_are_by_image():
    boxes, difficult = class_objects(make_dataset(), 2)
    assert [b.tolist() for b in boxes] == [[], [[1, 2, 9, 9]]]
    assert [d.tolist() for d in difficult] == [[], [False]]


def test_table_by_hand():
    results = {"map": 0.25, "protocol": "area", "iou_threshold": 0.7, "images": 3, "aps": {"mAP": 0.25, "zebra": None}}
    assert results_table(results).splitlines() == [
        "mAP    0.2500",
        "zebra  -",
        "mAP    0.2500  (area, IoU > 0.7, 3 images)",
    ]
