import numpy as np

from frcnn_jax.evaluation.evaluator import image_detections
from frcnn_jax.evaluation.metrics import ClassDetections


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
