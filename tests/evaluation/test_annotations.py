from pathlib import PurePath

import numpy as np
from defusedxml import ElementTree

from frcnn_jax.evaluation.annotations import Annotated, coco_instances, voc_xml, yolo_text
from frcnn_jax.evaluation.predict import Detections

BOXES = np.array([[-3, 2.4, 60, 19.6], [10, 20, 19, 39]], np.float32)
IMAGE = Annotated(PurePath("p/a & b.jpg"), 40, 50, Detections(BOXES, np.array([2, 1]), np.float32([0.75, 0.5])))
NONE = Annotated(PurePath("p/c.jpg"), 40, 50, Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)))


def test_voc_by_hand():
    tree = ElementTree.fromstring(voc_xml(IMAGE, ("cat", "<dog>")))
    assert (tree.findtext("filename"), tree.findtext("size/width"), tree.findtext("size/height")) == (
        "a & b.jpg", "50", "40",
    )  # fmt: skip
    found = [[node.findtext("name"), *(int(side.text) for side in node.find("bndbox"))] for node in tree.iter("object")]
    assert found == [["<dog>", 1, 3, 50, 21], ["cat", 11, 21, 20, 40]]
    assert not list(ElementTree.fromstring(voc_xml(NONE, ("cat",))).iter("object"))


def test_yolo_by_hand():
    first, second = yolo_text(IMAGE).splitlines()
    assert first == "1 0.500000 0.287500 1.000000 0.455000"
    assert second == "0 0.300000 0.750000 0.200000 0.500000"
    assert yolo_text(NONE) == ""


def test_coco_by_hand():
    content = coco_instances([NONE, IMAGE], ["c.jpg", "x/a.jpg"], ("cat", "dog"))
    assert content["images"][1] == {"id": 2, "file_name": "x/a.jpg", "width": 50, "height": 40}
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["annotations"][1] == {
        "id": 2, "image_id": 2, "category_id": 1, "bbox": [10, 20, 10, 20], "area": 200, "iscrowd": 0, "score": 0.5,
    }  # fmt: skip
