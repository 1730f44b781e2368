import os
from dataclasses import replace

import numpy as np
import pytest
from examples import make_dataset
from PIL import Image

from frcnn_jax.data.records import ImageFile
from frcnn_jax.data.splits import (
    Shared,
    content_digest,
    describe_shared,
    find_copies,
    image_sketch,
    repeated_images,
    shared_images,
)


def records_of(*paths):
    (one, _) = make_dataset().records
    return [replace(one, image_id=f"{path.parent.name}/{path.stem}", load=ImageFile(str(path))) for path in paths]


def write(path, colour):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20), (colour, 0, 0)).save(path)
    return path


def test_the_same_image_by_content_and_by_name(tmp_path):
    train = [write(tmp_path / "train" / name, colour) for name, colour in (("a.png", 1), ("b.png", 2), ("c.png", 3))]
    val = [write(tmp_path / "val" / name, colour) for name, colour in (("a.png", 1), ("z.png", 2), ("c.png", 4))]
    val += [write(tmp_path / "val/x.png", 9), tmp_path / "val/missing.png"]
    found = shared_images(records_of(*train), records_of(*val))
    assert found == Shared(["val/a", "val/z"], ["val/c"])
    first, second = describe_shared(found, 5)
    assert first.startswith("2 of the 5 val images are in the train split too, such as 'val/a'")
    assert second.startswith("1 of the 5 val images have the name of another train image, such as 'val/c'")
    assert describe_shared(Shared([], []), 5) == []


def test_copies_in_another_size_and_quality(tmp_path):
    rng = np.random.default_rng(0)
    scenes = {name: np.kron(rng.integers(40, 200, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8) for name in "abc"}
    known = {name: image_sketch(scene) for name, scene in scenes.items()}
    known["grey"] = image_sketch(np.full((20, 30, 3), 128, np.uint8))
    assert not known["grey"].any()
    picture = Image.fromarray(scenes["b"])
    copies = {"grey": known["grey"]}
    for name, size, quality in (("small", (80, 61), 90), ("coarse", picture.size, 20)):
        picture.resize(size).save(tmp_path / f"{name}.jpg", quality=quality)
        copies[name] = image_sketch(np.asarray(Image.open(tmp_path / f"{name}.jpg")))
    copies["turned"] = image_sketch(scenes["b"][:, ::-1])
    assert find_copies(known, copies) == {"small": "b", "coarse": "b"}
    assert find_copies({}, copies) == find_copies(known, {}) == {}


def test_copies_within_a_split(tmp_path):
    colours = {"a.png": 1, "b.png": 2, "c.png": 1, "d.png": 1, "e.png": 3}
    records = records_of(*(write(tmp_path / "train" / name, colour) for name, colour in colours.items()))
    records += [*records_of(tmp_path / "train/missing.png"), *make_dataset().records]
    found = [(copy.image_id, original.image_id) for copy, original in repeated_images(records)]
    assert found == [("train/c", "train/a"), ("train/d", "train/a")]


def test_files_of_another_size_are_not_read(tmp_path, monkeypatch):
    train, val = write(tmp_path / "train/a.png", 1), tmp_path / "val.png"
    val.write_bytes(train.read_bytes() + b" ")
    monkeypatch.setattr("frcnn_jax.data.splits.file_digest", None)
    assert shared_images(records_of(train), records_of(val)) == Shared([], [])
    assert repeated_images(records_of(train, val)) == []


def test_images_without_files_are_the_same_by_id():
    first, second = make_dataset().records
    assert shared_images([first], [first, second]) == Shared(["im0"], [])


def test_the_digest_is_that_of_the_content(tmp_path):
    one, copy, other = records_of(
        write(tmp_path / "one.png", 1), write(tmp_path / "copy.png", 1), write(tmp_path / "other.png", 2)
    )
    assert content_digest(one) == content_digest(copy) != content_digest(other)
    turned = replace(one, load=replace(one.load, exif="ignore"))
    sized = replace(one, load=replace(one.load, size=(30, 20)))
    assert len({content_digest(record) for record in (one, turned, sized)}) == 3
    os.unlink(one.load.path)
    with pytest.raises(OSError, match=r"one\.png"):
        content_digest(one)
    blank, _ = make_dataset().records
    white = replace(blank, load=lambda: np.full((20, 30, 3), 255, np.uint8))
    tall = replace(blank, load=lambda: np.zeros((30, 20, 3), np.uint8))
    assert len({content_digest(record) for record in (blank, white, tall)}) == 3


def test_pipes_are_left_out(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        os.mkfifo(tmp_path / name)
    both = records_of(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert repeated_images(both) == []
    assert shared_images(both[:1], both[1:]) == Shared([], [])
