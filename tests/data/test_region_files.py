import json
from pathlib import Path

import numpy as np
import pytest

from frcnn_jax.data.region_files import read_regions, regions_of_images
from frcnn_jax.errors import InputError

BOXES = [[0, 0, 9, 19], [3, 4, 5, 6.5]]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_by_name(tmp_path):
    np.savez(tmp_path / "b.npz", a=np.array(BOXES), b=np.zeros((0, 4)))
    for path in (write(tmp_path / "b.json", {"a": BOXES, "b": []}), tmp_path / "b.npz"):
        found = read_regions(path)
        assert list(found) == ["a", "b"]
        np.testing.assert_array_equal(found["a"], np.float32(BOXES))
        assert found["b"].shape == (0, 4)


def test_coco_by_hand(tmp_path):
    """Boxes are (x, y, width, height), and keep the order of the file."""
    entries = [
        {"image_id": 7, "bbox": [3, 4, 2, 3]}, {"image_id": 9, "bbox": [0, 0, 1, 1]},
        {"image_id": 7, "bbox": [0, 0, 10, 20]},
    ]  # fmt: skip
    images = [{"id": 7, "file_name": "x/a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 8, "file_name": "c.jpg"}]
    instances = read_regions(write(tmp_path / "i.json", {"images": images, "annotations": entries}))
    results = read_regions(write(tmp_path / "r.json", entries))
    for found, names in ((instances, ("x/a.jpg", "b.jpg")), (results, ("7", "9"))):
        np.testing.assert_array_equal(found[names[0]], [[3, 4, 4, 6], [0, 0, 9, 19]])
        np.testing.assert_array_equal(found[names[1]], [[0, 0, 0, 0]])
    assert instances["c.jpg"].shape == (0, 4)


def test_images_match_by_path_name_and_number():
    regions = {name: np.full((1, 4), i) for i, name in enumerate(("d/a.jpg", "b.png", "c", "139"))}
    images = [Path("d/a.jpg"), Path("x/b.png"), Path("c.jpg"), Path("COCO_val2014_000000000139.jpg")]
    assert [int(boxes[0, 0]) for boxes in regions_of_images(images, regions, "f")] == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"f: no boxes for 2 of 3 images, such as a\.jpg; its first is 'd/a.jpg'"):
        regions_of_images([Path("a.jpg"), Path("x_140.jpg"), Path("c.bmp")], regions, "f")
    with pytest.raises(InputError, match=r"f: both 'd/a\.jpg' and 'a' are names of d/a\.jpg"):
        regions_of_images([Path("d/a.jpg")], {**regions, "a": regions["c"]}, "f")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("b.json", "{", "not a JSON file"),
        ("b.json", "3", 'expected {"image"'),
        ("b.json", {"a": 3}, "image 'a': expected a list of boxes"),
        ("b.json", {"a": [[1, 2, 3]]}, r"image 'a': expected \(R, 4\) boxes, got \(1, 3\)"),
        ("b.json", {"a": [[1, 2, 3, "x"]]}, "image 'a': expected a list of boxes"),
        ("b.json", {"a": [[1, 2, 3, 4], [5]]}, "image 'a': expected a list of boxes"),
        ("b.json", [{"image_id": 3}], "entry 0: expected a known image_id and a bbox"),
        ("b.json", [{"image_id": 3, "bbox": [1, 2, 3]}], "entry 0: expected a known image_id and a bbox"),
        ("b.json", {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]},
         "entry 0: expected a known image_id"),
        ("b.json", {"images": [3], "annotations": []}, "images must be a list of objects with id and file_name"),
        ("b.npz", "x", "not a readable .npz file of boxes"),
        ("b.txt", "x", "expected a .json or .npz file of boxes"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, name, content, text):
    with pytest.raises(InputError, match=text) as raised:
        read_regions(write(tmp_path / name, content))
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    for name in ("missing.json", "missing.npz"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            read_regions(tmp_path / name)
