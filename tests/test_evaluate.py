import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_coco import annotation, write_coco

from frcnn_jax.config import get_config
from frcnn_jax.datasets import Dataset, Record, read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.evaluate import (
    image_detections,
    predict_split,
    read_comp4,
    read_split,
    recall_table,
    results_table,
    score,
    split_recall,
    with_proposals,
    write_comp4,
    write_json,
)
from frcnn_jax.metrics import ClassDetections
from frcnn_jax.pipeline import Sizes, TestBatches

ROOT = Path(__file__).resolve().parents[1]


def blank():
    return np.zeros((20, 30, 3), np.uint8)


def make_dataset():
    records = [
        Record(f"im{i}", 20, 30, np.array([[1, 2, 9, 9]], np.float32), np.array([i + 1]), np.zeros(1, bool), blank)
        for i in range(2)
    ]
    return Dataset(("cat", "dog", "cow"), records)


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
        ("", r"cat\.txt:1: expected"),
        ("im7 0.9 1 2 3 4", r"cat\.txt:1: image 'im7' is not in the split 'val'"),
        ("im0 nan 1 2 3 4", r"cat\.txt: holds numbers that are not finite"),
    ],
)
def test_comp4_names_the_line(tmp_path, line, text):
    write_lines(tmp_path, {"cat": [line, "im0 0.9 1 2 3 4"]})
    with pytest.raises(InputError, match=text):
        read_comp4(tmp_path, make_dataset(), year=2007, split="val")


def test_comp4_names_the_missing_class(tmp_path):
    with pytest.raises(InputError, match=r"comp4_det_val_cat\.txt: no such result file"):
        read_comp4(tmp_path, make_dataset(), year=2007, split="val")


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


def test_comp4_comes_back_with_its_scores(shared, tmp_path):
    dataset = read_voc(shared / "voc" / "VOCdevkit", 2007, "val")
    detections = read_comp4(shared / "oracles" / "voc_eval", dataset, year=2007, split="val")
    write_comp4(tmp_path, detections, dataset, year=2007, split="val")
    back = read_comp4(tmp_path, dataset, year=2007, split="val")
    assert score(back, dataset)[0] == score(detections, dataset)[0]


def test_comp4_says_what_a_file_can_not_hold(tmp_path):
    dataset = make_dataset()
    spaced = Dataset(dataset.class_names, [replace(dataset.records[0], image_id="my photo")])
    with pytest.raises(InputError, match="image id 'my photo' can't stand in a result file: it holds white space"):
        write_comp4(tmp_path, [], spaced, year=2007, split="val")
    with pytest.raises(InputError, match=r"'a/b' can't be part of the name of a result file"):
        write_comp4(tmp_path, [], dataset, year=2007, split="a/b")
    assert not list(tmp_path.iterdir())


def test_predict_split_sorts_by_class_and_image():
    """A stand-in network that finds class i in image i."""

    def predict(variables, batch):
        predict.calls += 1
        boxes, scores, valid = np.zeros((1, 3, 2, 4)), np.full((1, 3, 2), 0.5), np.zeros((1, 3, 2), bool)
        valid[0, predict.calls - 1, 0] = True
        boxes[0, :, :, 0] = predict.calls
        return boxes, scores, valid

    predict.calls = 0
    proposals = {"im0": np.zeros((0, 4), np.float32), "im1": np.ones((3, 4), np.float32)}
    found = predict_split(predict, None, TestBatches(make_dataset().records, proposals, [Sizes(20, 30)], 1 / 16), 3)
    assert [list(c.image) for c in found.by_class] == [[0], [1], []]
    assert found.by_class[1].boxes[0, 0] == 2


def test_image_detections_are_best_first():
    classes = [
        ClassDetections(np.array([0, 1, 0]), np.array([0.3, 0.9, 0.8]), np.arange(12.0).reshape(3, 4)),
        ClassDetections(np.array([0]), np.array([0.5]), np.zeros((1, 4))),
    ]
    found = image_detections(classes, 0, score_threshold=0.4)
    np.testing.assert_array_equal(found.scores, [0.8, 0.5])
    np.testing.assert_array_equal(found.labels, [1, 2])


def test_write_json_is_whole_or_not(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_eval_voc_scores_result_files(shared, tmp_path):
    voc = shared / "voc" / "VOCdevkit"
    command = [sys.executable, "scripts/eval_voc.py", "--voc", voc, "--split", "val", "--json", tmp_path / "r.json"]
    command += ["--detections", shared / "oracles" / "voc_eval", "--report", tmp_path / "report"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("mAP")
    assert json.loads((tmp_path / "r.json").read_text())["map"] == pytest.approx(0.396971134, abs=1e-6)
    assert "mAP 0.397" in (tmp_path / "report" / "index.html").read_text()


def split_config(**changes):
    return {**get_config().to_dict(), "class_names": (), **changes}


def test_read_split_of_own_images(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    write_coco(tmp_path / "train", [annotation(), annotation(2, iscrowd=1), annotation(3, bbox=(60, 0, 5, 5))])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train" / "instances.json").rename(tmp_path / "annotations" / "instances_train.json")
    config = split_config(dataset="coco", data_dir=str(tmp_path), val_split="train")
    with pytest.raises(InputError, match=r"annotation 3: bbox \[60"):
        read_split(config, "train")
    skip = {**config, "on_error": "skip"}
    train, val = (read_split(skip, split) for split in ("train", "val"))
    assert len(train.records[0].boxes) == 1  # no crowd
    assert len(val.records[0].boxes) == 2
    assert "train split: 1 objects, boxes or images left out, the first: " in capsys.readouterr().err
    (tmp_path / "train" / "a.jpg").write_bytes(b"")
    skip["proposal_cache"] = str(tmp_path / "cache")
    with pytest.raises(InputError, match=r"a\.jpg: can't be read"):
        with_proposals({**skip, "on_error": "stop"}, tmp_path, val)
    with pytest.raises(InputError, match="none of the 1 images can be loaded"):
        with_proposals(skip, tmp_path, val)
    with pytest.raises(InputError, match=r"needs --config\.data_dir=FOLDER"):
        read_split(split_config(dataset="xml"), "val")
    with pytest.raises(
        InputError, match="dataset must be one of synthetic, voc, xml, coco, tfds:voc/2007, tfds:voc/2012, got 'kitti'"
    ):
        read_split(split_config(dataset="kitti"), "val")


@pytest.mark.slow
def test_four_devices_find_what_one_does(workdir, tmp_path):
    """Seven images, no multiple of the devices: none is dropped, and all keep their order."""
    code = (
        "import sys, numpy as np, jax; from pathlib import Path; from frcnn_jax.evaluate import evaluate_workdir;"
        "assert jax.local_device_count() == int(sys.argv[3]);"
        "overrides = {'max_proposals': 60, 'proposal_cache': str(Path(sys.argv[2]).parent / 'p')};"
        "found = evaluate_workdir(Path(sys.argv[1]), images=7, overrides=overrides);"
        "np.savez(sys.argv[2], *(field for own in found.detections for field in own))"
    )
    results = []
    for devices in ("1", "4"):
        path = tmp_path / f"{devices}.npz"
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(workdir), str(path), devices], check=True, env=env)
        results.append(np.load(path))
    one, four = results
    assert set(one["arr_0"]) == set(range(7))
    for name in one.files:
        np.testing.assert_array_equal(four[name], one[name])


def test_proposals_of_a_file(tmp_path, capsys):
    boxes = np.array([[0, 0, 29, 19], [1, 2, 40, 9], [1, 2, 9, 9]])
    np.savez(tmp_path / "p.npz", im0=boxes, other=boxes)
    config = split_config(proposals=str(tmp_path / "p.npz"))
    with pytest.raises(InputError, match=r"image 'im0': box 1 is \(1, 2, 40, 9\)"):
        with_proposals(config, tmp_path, make_dataset())
    skip = {**config, "on_error": "skip"}
    dataset, proposals = with_proposals(skip, tmp_path, make_dataset())
    assert [record.image_id for record in dataset.records] == ["im0"]
    np.testing.assert_array_equal(proposals["im0"], boxes[[0, 2]])
    assert "images and proposals: 2 objects, boxes or images left out, the first: " in capsys.readouterr().err
    _, proposals = with_proposals({**skip, "max_proposals": 1}, tmp_path, make_dataset())
    assert len(proposals["im0"]) == 1
    records = [replace(record, load=broken) for record in make_dataset().records]
    with pytest.raises(InputError, match=r"none of the 2 images can be loaded, the first: im\.jpg: broken"):
        with_proposals(skip, tmp_path, Dataset(("cat", "dog", "cow"), records))


def broken():
    raise InputError("im.jpg: broken")


def test_split_recall_leaves_difficult_objects_out():
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
