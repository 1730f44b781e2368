from dataclasses import replace

import numpy as np
import pytest
from examples import make_dataset, pixel_network, told_network

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation import evaluator, pictures
from frcnn_jax.evaluation.evaluator import Evaluator, save_pictures
from frcnn_jax.evaluation.predict import DetectionOptions
from frcnn_jax.models.pixels import PixelNorm

# Both images have an object at [1, 2, 9, 9], a cat and a dog. RoIs: beside it, IoU 5/8 with it, and itself.
ROIS = np.array([[20, 2, 28, 9], [1, 2, 9, 6], [1, 2, 9, 9]], np.float32)
MODEL, VARIABLES = told_network([(0.3, 0.1, 0.01), (0.2, 0.4, 0.01), (0.1, 0.5, 0.01)], classes=3)


def evaluate(dataset=None, options=None, **asked):
    options = {} if options is None else {"options": options}
    dataset = dataset or make_dataset()
    proposals = {record.image_id: ROIS for record in dataset.records}
    return Evaluator(MODEL, dataset, proposals, sizes=[Sizes(20, 30)], **options)(VARIABLES, **asked)


def test_evaluation_by_hand():
    """NMS leaves of cats 0.3 and 0.2 in each image, of dogs 0.5 and 0.1.

    Ranked, cats are two misses, the hit of IoU 5/8, a miss; dogs a miss, the hit of IoU 1, two misses.
    """
    found = evaluate()
    seconds = found.results.pop("seconds_per_image")
    assert 0 < seconds < 100
    assert found.results == {
        "map": pytest.approx(5 / 12),
        "protocol": "voc07_11point",
        "iou_threshold": 0.5,
        "images": 2,
        "aps": {"cat": pytest.approx(1 / 3), "dog": pytest.approx(1 / 2), "cow": None},
    }
    cats, dogs, cows = found.detections
    assert (cats.image.tolist(), dogs.image.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(cats.scores, [0.3, 0.2] * 2, rtol=1e-5)
    np.testing.assert_array_equal(dogs.boxes, ROIS[[2, 0, 2, 0]])
    assert len(cows.scores) == 4
    assert found.curves["cat"][1] == found.results["aps"]["cat"]


def test_evaluation_as_asked():
    strict = evaluate(metric="area", iou_threshold=0.7).results
    assert (strict["protocol"], strict["iou_threshold"]) == ("area", 0.7)
    assert strict["aps"] == {"cat": 0, "dog": pytest.approx(1 / 2), "cow": None}
    first = evaluate(images=1)
    assert (first.results["images"], first.results["map"]) == (1, pytest.approx(1 / 2))
    assert first.results["aps"]["dog"] is None
    assert [record.image_id for record in first.dataset.records] == ["im0"]
    assert len(evaluate(options=DetectionOptions(nms_iou=0.7)).detections[0].scores) == 6
    two = Dataset(("cat", "dog"), make_dataset().records)
    with pytest.raises(InputError, match="the dataset has 2 classes, the network 3"):
        evaluate(two)


def test_images_are_normalised_as_the_model_says():
    """Black ones are (0.4, -2, 10)."""
    model, variables = pixel_network(PixelNorm("RGB", (-2, 20, -100), (5, 10, 10)))
    dataset = Dataset(("cat",), make_dataset().records[:1])
    found = Evaluator(model, dataset, {"im0": ROIS[:1]}, sizes=[Sizes(20, 30)])(variables)
    np.testing.assert_allclose(found.detections[0].scores, [1 / (1 + np.exp(-3.9))], rtol=1e-5)


def test_rois_of_the_same_cells_are_one():
    """The second score is that of the third RoI."""
    rois = np.array([[20, 2, 28, 9], [20.2, 2, 28, 9], [1, 2, 9, 9]], np.float32)
    dataset = Dataset(("cat", "dog", "cow"), make_dataset().records[:1])
    found = Evaluator(MODEL, dataset, {"im0": rois}, sizes=[Sizes(20, 30)])(VARIABLES)
    np.testing.assert_allclose(found.detections[0].scores, [0.3, 0.2], rtol=1e-5)


def test_pictures_show_objects_and_the_detections_from_a_threshold(tmp_path, monkeypatch):
    drawn = []

    def draw(image, boxes, labels, captions):
        drawn.append((np.asarray(boxes).tolist(), np.asarray(labels).tolist(), list(captions)))
        return pictures.draw_boxes(image, boxes, labels, captions)

    monkeypatch.setattr(evaluator, "draw_boxes", draw)
    records = make_dataset().records
    records[0] = replace(records[0], image_id="a/b", difficult=np.ones(1, bool))
    save_pictures(evaluate(Dataset(("cat", "dog", "cow"), records)), tmp_path / "p", pictures=1, score_threshold=0.25)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"precision_recall.png", "a_b.png"}
    best, second = ROIS[[2, 0]].tolist()
    assert drawn == [([[1, 2, 9, 9]], [1], ["cat (difficult)"]), ([best, second], [2, 1], ["dog 0.50", "cat 0.30"])]
