from dataclasses import replace

import numpy as np
import pytest
from examples import annotation, make_dataset, write_coco

from frcnn_jax.config import get_config
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.splits import read_split, recall_table, split_recall, with_proposals


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
    with pytest.raises(InputError, match=r"none of the 1 images is left, the first problem: .*a\.jpg: can't be read"):
        with_proposals(skip, tmp_path, val)
    with pytest.raises(InputError, match=r"needs --config\.data_dir=FOLDER"):
        read_split(split_config(dataset="xml"), "val")
    with pytest.raises(
        InputError, match="dataset must be one of synthetic, voc, xml, coco, tfds:voc/2007, tfds:voc/2012, got 'kitti'"
    ):
        read_split(split_config(dataset="kitti"), "val")


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
    with pytest.raises(InputError, match=r"none of the 2 images is left, the first problem: im\.jpg: broken"):
        with_proposals(skip, tmp_path, Dataset(("cat", "dog", "cow"), records))
    np.savez(tmp_path / "p.npz", im0=boxes[:, :3], im1=boxes[:, :3])
    with pytest.raises(
        InputError, match=r"none of the 2 images is left, the first problem: .*p\.npz: image 'im0': \(N, 4\)"
    ):
        with_proposals(skip, tmp_path, make_dataset())


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
    numbers, recall = split_recall(Dataset(dataset.class_names, [hard]), proposals, 10)
    assert recall_table(numbers, recall) == "no objects, or difficult ones only"
