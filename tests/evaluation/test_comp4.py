from dataclasses import replace

import numpy as np
import pytest
from examples import make_dataset

from frcnn_jax.data.records import Dataset
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.comp4 import read_comp4, write_comp4
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.scores import results_table, score


def write_lines(folder, lines):
    for name in ("cat", "dog", "cow"):
        (folder / f"comp4_det_val_{name}.txt").write_text("\n".join(lines.get(name, [])))


def test_comp4_by_hand(tmp_path):
    write_lines(tmp_path, {"cat": ["im0 0.900 2.0 3.0 10.0 10.0"], "dog": ["im0 0.5 1 1 4 4", "im1 0.4 2 3 10 10"]})
    detections = read_comp4(tmp_path, make_dataset(), year=2007, split="val")
    np.testing.assert_array_equal(detections[0].boxes, [[1, 2, 9, 9]])
    results, _ = score(detections, make_dataset(), metric="area")
    assert results == {
        "map": 0.75,
        "protocol": "area",
        "iou_threshold": 0.5,
        "images": 2,
        "aps": {"cat": 1.0, "dog": 0.5, "cow": None},
        "seconds_per_image": None,
    }
    assert results_table(results).splitlines() == [
        "cat  1.0000",
        "dog  0.5000",
        "cow  -",
        "mAP  0.7500  (area, IoU > 0.5, 2 images)",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("im0 0.9 1 2 3", r"comp4_det_val_cat\.txt:1: expected 'id score"),
        ("im0 0.9 1 2 3 x", r"cat\.txt:1: expected"),
        ("0.9 1 2 3 4", r"cat\.txt:1: expected"),
        ("im0 0.9 1 2 inf 4", r"cat\.txt:1: a number is not finite"),
        ("im0.jpg 0.9 1 2 3 4", r"cat\.txt:1: image 'im0\.jpg' is not in the split 'val'"),
        ("im7 0.9 1 2 3 4", r"cat\.txt:1: image 'im7' is not in the split 'val'"),
        ("im0 nan 1 2 3 4", r"cat\.txt:1: a number is not finite: 'im0 nan 1 2 3 4'"),
    ],
)
def test_comp4_names_the_line(tmp_path, line, text):
    write_lines(tmp_path, {"cat": [line, "im0 0.9 1 2 3 4"]})
    with pytest.raises(InputError, match=text):
        read_comp4(tmp_path, make_dataset(), year=2007, split="val")


def test_comp4_names_the_missing_class(tmp_path):
    with pytest.raises(InputError, match=r"comp4_det_val_cat\.txt: no such result file"):
        read_comp4(tmp_path, make_dataset(), year=2007, split="val")


def test_a_class_without_a_file_has_no_detections(tmp_path, capsys):
    (tmp_path / "comp4_det_val_dog.txt").write_text("im0 0.5 1 1 4 4")
    detections = read_comp4(tmp_path, make_dataset(), year=2007, split="val")
    assert [len(found.scores) for found in detections] == [0, 1, 0]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path}/comp4_det_val_{name}.txt: no such result file; the class has no detections"
        for name in ("cat", "cow")
    ]


def test_comp4_files_of_other_programs(tmp_path):
    """CRLF, a BOM, empty lines, scientific notation, tabs; an image id with spaces."""
    first, second = make_dataset().records
    dataset = Dataset(("cat",), [first, replace(second, image_id="my photo 1")])
    text = "\ufeffim0 1e-05 2 3e0 1.0E+01 10\r\n\r\n my photo 1\t.5\t1 1 4 4 \r\n\n"
    (tmp_path / "comp4_det_val_cat.txt").write_bytes(text.encode())
    (found,) = read_comp4(tmp_path, dataset, year=2007, split="val")
    np.testing.assert_array_equal(found.image, [0, 1])
    np.testing.assert_array_equal(found.scores, [1e-5, 0.5])
    np.testing.assert_array_equal(found.boxes, [[1, 2, 9, 9], [0, 0, 3, 3]])


def test_comp4_is_written_by_hand(tmp_path):
    found = ClassDetections(np.array([1, 0]), np.array([0.25, 0.5]), np.array([[1, 2, 9, 9], [0, 0, 3.14, 4]]))
    none = ClassDetections(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    write_comp4(tmp_path, [found, none, none], make_dataset(), year=2007, split="val")
    inner = tmp_path / "results" / "VOC2007" / "Main"
    assert sorted(path.name for path in inner.iterdir()) == [f"comp4_det_val_{c}.txt" for c in ("cat", "cow", "dog")]
    assert (inner / "comp4_det_val_cat.txt").read_text() == (
        "im0 0.500000 1.0 1.0 4.1 5.0\nim1 0.250000 2.0 3.0 10.0 10.0\n"
    )
    assert (inner / "comp4_det_val_dog.txt").read_text() == ""


def test_comp4_comes_back_in_order(tmp_path, rng):
    """Ranks survive, those of scores that become equal in the file too."""
    scores = rng.permutation(np.concatenate([rng.random(50), 1e-9 * rng.random(50), np.full(5, 0.5)]))
    boxes = (np.array([[1, 2, 9, 9]]) + rng.uniform(-1, 1, (105, 4))).astype(np.float32)
    found = ClassDetections(rng.integers(0, 2, 105), scores, boxes)
    write_comp4(tmp_path, [found] * 3, make_dataset(), year=2012, split="val")
    back = read_comp4(tmp_path, make_dataset(), year=2012, split="val")[1]
    np.testing.assert_array_equal(np.argsort(-back.scores, kind="stable"), np.arange(105))
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(back.image, found.image[order])
    np.testing.assert_allclose(back.scores, scores[order], atol=5e-7)
    np.testing.assert_allclose(back.boxes, boxes[order], atol=0.051)


def test_comp4_of_an_image_whose_name_is_no_utf8(tmp_path):
    dataset = make_dataset()
    named = Dataset(dataset.class_names, [replace(dataset.records[0], image_id="a\udcff")])
    found = ClassDetections(np.array([0]), np.array([0.5]), np.array([[1, 2, 9, 9]]))
    write_comp4(tmp_path, [found] * 3, named, year=2007, split="val")
    np.testing.assert_array_equal(read_comp4(tmp_path, named, year=2007, split="val")[0].boxes, found.boxes)


def test_comp4_comes_back_with_its_scores(shared, tmp_path):
    dataset = read_voc(shared / "voc" / "VOCdevkit", split="val")
    detections = read_comp4(shared / "oracles" / "voc_eval", dataset, year=2007, split="val")
    write_comp4(tmp_path, detections, dataset, year=2007, split="val")
    back = read_comp4(tmp_path, dataset, year=2007, split="val")
    assert score(back, dataset)[0] == score(detections, dataset)[0]


def test_names_that_a_file_can_not_hold_are_refused(tmp_path):
    dataset = make_dataset()
    spaced = Dataset(dataset.class_names, [replace(dataset.records[0], image_id="my photo")])
    with pytest.raises(InputError, match="image id 'my photo' can't be used in a result file: it contains white space"):
        write_comp4(tmp_path, [], spaced, year=2007, split="val")
    with pytest.raises(InputError, match=r"'a/b' can't be used in the name of a result file"):
        write_comp4(tmp_path, [], dataset, year=2007, split="a/b")
    assert not list(tmp_path.iterdir())
