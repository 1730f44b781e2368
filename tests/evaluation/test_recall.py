from dataclasses import replace

import numpy as np
import pytest
from examples import make_dataset

from frcnn_jax.data.records import Dataset
from frcnn_jax.evaluation.recall import best_overlaps, proposal_recall, recall_table, split_recall
from frcnn_jax.ops.boxes import iou

BOX = [0, 0, 9, 9]


def test_best_overlaps_by_hand():
    first, second = make_dataset().records
    second = replace(
        second,
        boxes=np.array([[0, 0, 9, 9], [20, 0, 29, 9]], np.float32),
        labels=np.ones(2, int),
        difficult=np.zeros(2, bool),
    )
    dataset = replace(make_dataset(), records=[first, second])
    boxes = {"im0": np.zeros((0, 4), np.float32), "im1": np.array([[0, 0, 9, 4], BOX, [20, 0, 29, 9]], np.float32)}
    np.testing.assert_allclose(best_overlaps(dataset, boxes, 1), [0, 0.5, 0])
    np.testing.assert_allclose(best_overlaps(dataset, boxes, 3), [0, 1, 1])
    assert best_overlaps(replace(dataset, records=[]), {}, 1).shape == (0,)


def test_proposal_recall_by_hand():
    """IoUs: of the two objects of the first image 0.5 with one box, 1 and 0.25 with two; 0 in an image without any."""
    truth = [np.array([BOX, [20, 0, 29, 9]]), np.array([BOX])]
    boxes = [np.array([[0, 0, 9, 4], [20, 0, 24, 4], BOX]), np.zeros((0, 4))]
    recall, average = proposal_recall(boxes, truth, iou_thresholds=[0.25, 0.5, 0.75, 1], numbers=[1, 2, 3, 99])
    np.testing.assert_allclose(recall * 3, [[1, 1, 0, 0], [2, 1, 0, 0], [2, 1, 1, 1], [2, 1, 1, 1]])
    np.testing.assert_allclose(average * 3, [0, 0, 1, 1])


def test_proposal_recall_equals_a_loop(rng):
    def boxes(count):
        return np.sort(rng.integers(0, 30, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)

    truth, proposals = ([boxes(n) for n in rng.integers(0, most, 12)] for most in (5, 40))
    thresholds, numbers = np.linspace(0.5, 1, 2001), [1, 5, 20, 100]
    recall, average = proposal_recall(proposals, truth, iou_thresholds=thresholds, numbers=numbers)
    for row, number in enumerate(numbers):
        best = [
            max((float(iou(p[None].astype(float), g[None].astype(float))[0, 0]) for p in ps[:number]), default=0)
            for ps, gs in zip(proposals, truth, strict=True)
            for g in gs
        ]
        for column in range(0, 2001, 200):
            assert recall[row, column] == pytest.approx(np.mean([o >= thresholds[column] for o in best]))
    # the mean over 0.5 .. 1 is what the closed form says
    np.testing.assert_allclose(average, 2 * np.trapezoid(recall, thresholds, axis=1), atol=1e-3)
    assert (np.diff(average) >= 0).all()


def test_proposal_recall_without_objects():
    recall, average = proposal_recall([np.array([BOX])], [np.zeros((0, 4))], iou_thresholds=[0.5], numbers=[1, 2])
    assert np.isnan(recall).all()
    assert recall.shape == (2, 1)
    assert np.isnan(average).all()


def test_split_recall_without_difficult_objects():
    dataset = make_dataset()
    hard = replace(dataset.records[1], difficult=np.ones(1, bool))
    proposals = {"im0": np.array([[20, 2, 29, 9], [1, 2, 9, 9]]), "im1": np.zeros((0, 4))}
    numbers, recall = split_recall(Dataset(dataset.class_names, [dataset.records[0], hard]), proposals, 10)
    assert numbers == [1, 3, 10]
    np.testing.assert_array_equal(recall.average, [0, 1, 1])
    assert recall_table(numbers, recall).splitlines() == [
        "proposals  IoU 0.5  IoU 0.6  IoU 0.7  IoU 0.8  IoU 0.9  average",
        "        1  0.000    0.000    0.000    0.000    0.000    0.000",
        "        3  1.000    1.000    1.000    1.000    1.000    1.000",
        "       10  1.000    1.000    1.000    1.000    1.000    1.000",
    ]
    numbers, recall = split_recall(Dataset(dataset.class_names, [hard]), proposals, 10)
    assert recall_table(numbers, recall) == "no objects, or only difficult ones"
