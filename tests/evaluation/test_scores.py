from examples import make_dataset

from frcnn_jax.evaluation.scores import class_objects, results_table


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
