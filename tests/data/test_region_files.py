import json
from pathlib import Path

import numpy as np
import pytest

from frcnn_jax.data.region_files import read_regions
from frcnn_jax.errors import InputError

BOXES = [[0, 0, 9, 19], [3, 4, 5, 6.5]]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_by_name(tmp_path):
    np.savez(tmp_path / "b.npz", a=np.array(BOXES), b=np.zeros((0, 4)))
    for path in (write(tmp_path / "b.json", {"a": BOXES, "b": [], "not asked for": 3}), tmp_path / "b.npz"):
        b, a = read_regions(path, [Path("b.jpg"), Path("a.jpg")])
        np.testing.assert_array_equal(a, np.float32(BOXES))
        assert b.shape == (0, 4)
        assert (a.dtype, b.dtype) == (np.float32, np.float32)


def test_coco_by_hand(tmp_path):
    """Boxes are (x, y, width, height), and keep the order of the file. Results do not name an image without any."""
    entries = [
        {"image_id": 7, "bbox": [3, 4, 2, 3]}, {"image_id": 9, "bbox": [0, 0, 1, 1]},
        {"image_id": 7, "bbox": [0, 0, 10, 20]},
    ]  # fmt: skip
    images = [{"id": 7, "file_name": "x/a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 8, "file_name": "c.jpg"}]
    instances = write(tmp_path / "i.json", {"images": images, "annotations": entries})
    results = write(tmp_path / "r.json", entries)
    for path, names in (
        (instances, ("data/x/a.jpg", "b.jpg", "c.jpg")),
        (
            results,
            ("000000000007.jpg", "COCO_val2014_000000000009.jpg", "8.jpg"),
        ),  # which do not tell of an empty image
    ):
        seven, nine, eight = read_regions(path, [Path(name) for name in names])
        np.testing.assert_array_equal(seven, [[3, 4, 4, 6], [0, 0, 9, 19]])
        np.testing.assert_array_equal(nine, [[0, 0, 0, 0]])
        assert eight.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("d/a.jpg", "d/a.jpg"), ("a.jpg", "d/a.jpg"), ("a", "d/a.jpg"), ("d/a", "d/a.jpg"), ("./d/a.jpg", "d/a.jpg"),
        ("d/a.jpg", "/data/d/a.jpg"), ("/data/d/a.jpg", "/data/d/a.jpg"), ("../d/a.jpg", "../d/a.jpg"),
        ("{cwd}/a.jpg", "a.jpg"), ("a.b", "a.b.jpg"),
    ],
)  # fmt: skip
def test_an_image_is_named_by_an_end_of_its_path(tmp_path, name, image):
    path = write(tmp_path / "b.json", {"other": [], name.format(cwd=Path.cwd()): BOXES})
    np.testing.assert_array_equal(read_regions(path, [Path(image)])[0], np.float32(BOXES))


@pytest.mark.parametrize(
    ("names", "images", "text"),
    [
        (["d/a.jpg"], ["x/a.jpg"], r"no boxes for 1 of 1 images, such as x/a\.jpg; its first is 'd/a\.jpg'"),
        (["b", "c"], ["b.jpg", "x.png", "c.jpg", "y.png"], r"no boxes for 2 of 4 images, such as x\.png; .* 'b'"),
        ([], ["a.jpg"], r"no boxes for 1 of 1 images, such as a\.jpg; it is empty"),
        (["2"], ["photo2.jpg"], "no boxes for 1 of 1"),
        (["7"], ["007.jpg"], "no boxes for 1 of 1"),
        (["d/a.jpg", "a"], ["d/a.jpg"], r"both 'd/a\.jpg' and 'a' are names of d/a\.jpg"),
        (["a.jpg"], ["d/a.jpg", "e/a.jpg"], r"'a\.jpg' is a name of both d/a\.jpg and e/a\.jpg"),
        (["a"], ["a.jpg", "a.png"], r"'a' is a name of both a\.jpg and a\.png"),
        (["a.jpg", "./a.jpg"], ["a.jpg"], r"'a\.jpg' and '\./a\.jpg' are names of one image"),
    ],
)  # fmt: skip
def test_a_name_that_is_missing_or_means_several_images(tmp_path, names, images, text):
    path = write(tmp_path / "b.json", dict.fromkeys(names, BOXES))
    with pytest.raises(InputError, match=text):
        read_regions(path, [Path(image) for image in images])


ONE_IMAGE = {"images": [{"id": 1, "file_name": "a"}]}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("b.json", "{", "not a JSON file"),
        ("b.json", '{"a": [[1, 2, 3, 4]], "b": [], "a": []}', r"not a JSON file \('a' comes twice\)"),
        ("b.json", "3", 'expected {"image"'),
        ("b.json", {"a": 3}, "image 'a': expected a list of boxes .*, got 3"),
        ("b.json", {"a": [[1, 2, 3, 4], [1, 2, 3]]}, r"image 'a': box 1: expected .*, got \[1, 2, 3\]"),
        ("b.json", {"a": [[1, 2, 3, "4"]]}, r"image 'a': box 0: expected .*, got \[1, 2, 3, '4'\]"),
        ("b.json", {"a": [[1, 2, 3, True]]}, "image 'a': box 0"),
        ("b.json", {"a": [[1, 2, 3, 10**400]]}, "image 'a': box 0"),
        ("b.json", {"a": [1, 2, 3, 4]}, "image 'a': box 0: expected .*, got 1"),
        ("b.json", [{"image_id": 3}], "entry 0: expected a known image_id and a bbox"),
        ("b.json", [{"image_id": 3, "bbox": [1, 2, 3]}], "entry 0: expected a known image_id and a bbox"),
        ("b.json", [{"image_id": 3, "bbox": "1234"}], "entry 0: expected a known image_id and a bbox"),
        ("b.json", [{"image_id": 4, "bbox": [1, 2, 3, 4]}], "no boxes for 1 of 1 images, such as a.jpg"),
        ("b.json", {**ONE_IMAGE, "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]},
         "entry 0: expected a known image_id"),
        ("b.json", {**ONE_IMAGE, "annotations": {"1": [1, 2, 3, 4]}}, "annotations must be a list, got {'1'"),
        ("b.json", {"images": [3], "annotations": []}, "images must be a list of objects with id and file_name"),
        ("b.json", {"images": ONE_IMAGE["images"] + [{"id": 2, "file_name": "a"}], "annotations": []},
         "two images have the same id or file_name"),
        ("b.npz", "x", "not a readable .npz file of boxes"),
        ("b.txt", "x", "expected a .json or .npz file of boxes"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, name, content, text):
    with pytest.raises(InputError, match=text) as raised:
        read_regions(write(tmp_path / name, content), [Path("a.jpg")])
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    for name in ("missing.json", "missing.npz"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            read_regions(tmp_path / name, [])


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.zeros(4), np.array([["1", "2", "3", "4"]])])
def test_arrays_that_are_no_boxes(tmp_path, array):
    np.savez(tmp_path / "b.npz", a=array)
    with pytest.raises(InputError, match=r"b\.npz: image 'a': expected \(R, 4\) numbers, got "):
        read_regions(tmp_path / "b.npz", [Path("a.jpg")])


def test_a_number_beyond_float32_is_infinite(tmp_path):
    """No warning: what uses the boxes names the one that is not finite."""
    (boxes,) = read_regions(write(tmp_path / "b.json", {"a": [[0, 0, 1e300, 1]]}), [Path("a.jpg")])
    np.testing.assert_array_equal(boxes, [[0, 0, np.inf, 1]])
