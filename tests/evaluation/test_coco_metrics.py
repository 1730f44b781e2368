import numpy as np
import pytest
from examples import annotation, make_dataset, write_coco

from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import COCO_METRICS, coco_ground_truth, coco_metrics, coco_results
from frcnn_jax.evaluation.comp4 import read_comp4
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.scores import score


def test_results_and_ground_truth_by_hand(tmp_path):
    path = write_coco(tmp_path, [annotation(bbox=(1, 2, 10, 20)), annotation(2, category_id=9, iscrowd=1)])
    dataset = read_coco(path, image_dir=tmp_path)
    truth = coco_ground_truth(dataset)
    assert [a["bbox"] for a in truth["annotations"]] == [[1, 2, 10, 20], [0, 0, 10, 20]]
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in truth["annotations"]] == [(1, 0, 200), (2, 1, 200)]
    none = ClassDetections(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    one = ClassDetections(np.array([0]), np.array([0.5]), np.array([[1, 2, 10, 21]], np.float32))
    expected = [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5}]
    assert coco_results([one, none], [7], [1, 2]) == expected
    metrics, by_class = coco_metrics(truth, coco_results([one, none], [1], [1, 2]))
    assert set(metrics) == set(COCO_METRICS)
    assert (metrics["AP"], metrics["AP50"]) == pytest.approx((1, 1))
    assert metrics["AP_large"] is None
    assert by_class == {"dog": pytest.approx(1), "cat": None}
    assert coco_metrics(truth, [])[0]["AP"] == 0


RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5}


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([RESULT, {**RESULT, "image_id": 9}], "result 1: unknown image 9 or category 1"),
        ([{**RESULT, "category_id": 0}], "result 0: unknown image 1 or category 0"),
        ([{**RESULT, "bbox": [1, 2]}], "result 0: expected image_id, category_id, bbox and score"),
        ([{**RESULT, "bbox": [1, 2, 3, 10**400]}], "result 0: expected image_id"),
        ([{**RESULT, "image_id": []}], "result 0: expected image_id"),
        ([{**RESULT, "score": float("nan")}], r"result 0: bbox \[1, 2, 10, 20\] or score nan is not finite"),
        (
            [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
            r"result 0: expected image_id.*\(KeyError\('score'\)\)",
        ),
        ([3], "result 0: expected image_id"),
        (3, "expected a list of results, got 3"),
        ({"images": []}, "expected a list of results, got {'images': "),
    ],
)
def test_names_the_result(results, text):
    with pytest.raises(InputError, match=text):
        coco_metrics(coco_ground_truth(make_dataset()), results)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"annotations": [annotation(image_id=5)]}, "annotation 0: unknown image 5 or category 3"),
        ({"annotations": [{"id": 1}]}, "annotation 0: expected image_id, category_id, bbox"),
        ({"annotations": None}, "expected a list of annotations, got None"),
        ({"categories": [{"id": 1}]}, "not a COCO instances file"),
        ({"images": 3}, "not a COCO instances file"),
    ],
)
def test_names_the_annotation(changes, text):
    with pytest.raises(InputError, match=text):
        coco_metrics({**coco_ground_truth(make_dataset()), **changes}, [])
    with pytest.raises(InputError, match="not a COCO instances file"):
        coco_metrics({"images": []}, [])


def test_annotations_need_no_area():
    truth = coco_ground_truth(make_dataset())
    for entry in truth["annotations"]:
        del entry["area"], entry["iscrowd"]
    results = [{**RESULT, "bbox": truth["annotations"][0]["bbox"]}]
    assert coco_metrics(truth, results) == coco_metrics(coco_ground_truth(make_dataset()), results)


def test_agrees_with_the_area_rule(shared):
    """pycocotools takes the mean precision at 101 recalls, we the exact area; crowds and difficult objects are treated
    alike. What remains are steps of the curve between two recalls, at most 1/101 of AP each way."""
    dataset = read_voc(shared / "voc" / "VOCdevkit", split="val")
    detections = read_comp4(shared / "oracles" / "voc_eval", dataset, year=2007, split="val")
    results, _ = score(detections, dataset, metric="area")
    images, labels = range(1, len(dataset.records) + 1), range(1, len(dataset.class_names) + 1)
    metrics, by_class = coco_metrics(coco_ground_truth(dataset), coco_results(detections, images, labels))
    ours = np.array([results["aps"][name] for name in dataset.class_names])
    theirs = np.array([by_class[name] for name in dataset.class_names])
    assert abs(metrics["AP50"] - results["map"]) < 0.01
    assert np.abs(ours - theirs).max() < 0.03
