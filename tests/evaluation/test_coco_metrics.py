import numpy as np
import pytest
from examples import annotation, blank, make_dataset, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import COCO_METRICS, coco_ground_truth, coco_metrics, coco_results
from frcnn_jax.evaluation.comp4 import read_comp4
from frcnn_jax.evaluation.metrics import ClassDetections, precision_recall
from frcnn_jax.evaluation.scores import class_objects, score


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


def renamed(truth, results, images, categories, **changes):
    """A result and its truth with other ids, and other fields in all annotations."""
    entry = {"image_id": images, "category_id": categories}
    swap = lambda row: {**row, **{name: ids[row[name]] for name, ids in entry.items()}}  # noqa: E731
    own = [{**swap(row), **changes, "id": i} for i, row in enumerate(truth["annotations"])]
    named = {name: [{**row, "id": ids[row["id"]]} for row in truth[name]] for name, ids in
             (("images", images), ("categories", categories))}  # fmt: skip
    return {**named, "annotations": own}, [swap(row) for row in results]


@pytest.mark.parametrize(
    "images", [{1: 0, 2: 1}, {1: "7", 2: "11"}, {1: 7.0, 2: 11.0}, {1: "a", 2: "b"}, {1: 3, 2: "b"}]
)
@pytest.mark.parametrize("categories", [{1: 0, 2: 1, 3: 2}, {1: 7, 2: 30, 3: 500}, {1: "5", 2: 6.0, 3: "x"}])
def test_ids_change_no_score(images, categories):
    """Annotations are numbered from 0, which pycocotools takes for no match."""
    truth = coco_ground_truth(make_dataset())
    results = [{**RESULT, "bbox": row["bbox"], **{k: row[k] for k in ("image_id", "category_id")}}
               for row in truth["annotations"]]  # fmt: skip
    results.append({**RESULT, "score": 0.9})
    expected = coco_metrics(truth, results)
    assert expected[0]["AP"] not in (0, 1, None)
    assert coco_metrics(*renamed(truth, results, images, categories)) == expected


@pytest.mark.parametrize(
    "changes",
    [{"iscrowd": False}, {"iscrowd": "0"}, {"iscrowd": None}, {"area": None}, {"area": 0}, {"id": "x"}, {"bbox": None}],
)
def test_fields_that_other_programs_write_change_no_score(changes):
    truth = coco_ground_truth(make_dataset())
    results = [{**RESULT, "bbox": truth["annotations"][0]["bbox"]}]
    x, y, w, h = truth["annotations"][0]["bbox"]
    polygon = [[x, y, x + w, y, x + w, y + h]]
    changed = [{**row, "segmentation": polygon, **changes} for row in truth["annotations"]]
    assert coco_metrics({**truth, "annotations": changed}, results) == coco_metrics(truth, results)


@pytest.mark.parametrize("crowd", [True, 1, "1"])
def test_a_crowd_by_any_mark(crowd):
    truth = coco_ground_truth(make_dataset())
    marked = [{**row, "iscrowd": crowd} for row in truth["annotations"]]
    assert coco_metrics({**truth, "annotations": marked}, [RESULT])[0]["AP"] is None


@pytest.mark.parametrize(("field", "word"), [("images", "image"), ("categories", "category")])
def test_a_repeated_id_is_said(field, word):
    truth = coco_ground_truth(make_dataset())
    repeated = [*truth[field], {**truth[field][0], "id": str(truth[field][0]["id"])}]
    with pytest.raises(InputError, match=f"{word} 1 is listed twice"):
        coco_metrics({**truth, field: repeated}, [])


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


def one_class(gt_boxes, difficult=None):
    """A split with `(G, 4)` boxes of one class per image."""
    difficult = difficult or [np.zeros(len(boxes), bool) for boxes in gt_boxes]
    records = [
        Record(str(i), 300, 300, np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(boxes), int), flags, blank)
        for i, (boxes, flags) in enumerate(zip(gt_boxes, difficult, strict=True))
    ]
    return Dataset(("cat",), records)


def ap50(dataset, found):
    results = coco_results([found], range(1, len(dataset.records) + 1), [1])
    return coco_metrics(coco_ground_truth(dataset), results)[1]["cat"]


@st.composite
def spaced_cases(draw):
    """Objects of 10 columns, too far apart for a detection to meet two, where the COCO and the VOC rule match alike.
    Detections are 0, 3, 4 or 15 columns beside them (IoU 1, 7/13, 6/14, 0), but 0 or 15 beside difficult ones: with
    those, as crowds, IoU is the part of the detection. Scores are few, and equal ones in the order of the images."""
    flags = draw(st.lists(st.booleans(), min_size=8, max_size=8))
    row = st.tuples(st.integers(0, 7), st.sampled_from([0, 3, 4, 15]), st.integers(0, 4))
    rows = sorted(draw(st.lists(row, min_size=5, max_size=25)))
    rows = [(n, shift if shift in (0, 15) or not flags[n] else 0, s) for n, shift, s in rows]
    boxes = [[40 * (n % 4), 0, 40 * (n % 4) + 9, 9] for n in range(8)]
    dataset = one_class([boxes[:4], boxes[4:]], [np.array(flags[:4]), np.array(flags[4:])])
    found = [(n // 4, s, np.add(boxes[n], [shift, 0, shift, 0])) for n, shift, s in rows]
    image, scores, places = (np.array([row[k] for row in found], float) for k in range(3))
    return dataset, ClassDetections(image.astype(int), scores, places.reshape(-1, 4))


def gives_the_ap_of_our_curve(case):
    dataset, found = case
    recall, precision, positives = precision_recall(found, *class_objects(dataset, 1))
    mean = np.mean([max(precision[recall >= t], default=0) for t in np.linspace(0, 1, 101)]) if positives else None
    assert ap50(*case) == (pytest.approx(mean, abs=1e-9) if positives else None)


@given(spaced_cases())
def test_pycocotools_gives_the_ap_of_our_curve(case):
    gives_the_ap_of_our_curve(case)


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(spaced_cases())
def test_pycocotools_gives_the_ap_of_our_curve_in_a_thousand_cases(case):
    gives_the_ap_of_our_curve(case)


def test_ties_of_pycocotools():
    """Unlike VOC's: an object that has its hit takes no other, and of equal scores the first image's ranks first."""
    box, far = [0, 0, 9, 9], [50, 50, 59, 59]
    twice = ClassDetections(np.array([0, 0]), np.array([0.9, 0.8]), np.array([box, box], float))
    dataset = one_class([[box, box]])
    assert ap50(dataset, twice) == pytest.approx(1)
    assert score([twice], dataset, metric="area")[0]["map"] == 0.5
    # the false positive in the second image is first in the list
    equal = ClassDetections(np.array([1, 0]), np.array([0.5, 0.5]), np.array([far, box], float))
    dataset = one_class([[box], []])
    assert ap50(dataset, equal) == pytest.approx(1)
    assert score([equal], dataset, metric="area")[0]["map"] == 0.5
    # within an image the order of the list counts
    equal = equal._replace(image=np.array([0, 0]))
    assert ap50(dataset, equal) == pytest.approx(0.5)


def test_fields_of_other_types_do_not_reach_pycocotools():
    truth = coco_ground_truth(make_dataset())
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 8], "score": 0.5}]
    expected = coco_metrics(truth, results)
    for i, entry in enumerate(truth["annotations"]):  # id 0 is no match to pycocotools
        entry.update(id=0 if i else "x", ignore="no", segmentation=3, iscrowd=False, num_keypoints=[])
    truth["images"][0].update(width="wide", height=None)
    truth |= {"info": 3, "licenses": None}
    assert coco_metrics(truth, [{**results[0], "id": [], "area": "a", "iscrowd": 7, "segmentation": 5}]) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("area", "x"), ("area", 10**400), ("area", float("nan")), ("image_id", [])],
)
def test_annotations_of_other_types_are_named(field, value):
    truth = coco_ground_truth(make_dataset())
    truth["annotations"][1][field] = value
    with pytest.raises(InputError, match=r"^t\.json: annotation 1: "):
        coco_metrics(truth, [], truth_name="t.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", 3),
        ("images", [{"id": 1}, {"id": "a"}]),
        ("images", [{"id": []}]),
        ("images", [{"id": 1}, {"id": 1}]),
        ("categories", [3]),
        ("annotations", None),
    ],
)
def test_the_name_of_an_instances_file(field, value):
    with pytest.raises(InputError, match=r"^t\.json: "):
        coco_metrics({**coco_ground_truth(make_dataset()), field: value}, [], truth_name="t.json")


@pytest.mark.parametrize(
    "results", [3, {}, [3], [[]], [{"image_id": 1}], [{"image_id": 1, "category_id": 1, "bbox": 3, "score": 1}]]
)
def test_the_name_of_a_result_file(results):
    with pytest.raises(InputError, match=r"^r\.json: "):
        coco_metrics(coco_ground_truth(make_dataset()), results, results_name="r.json")
