import contextlib
import json

import numpy as np
import pytest
from examples import annotation, write_coco
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from frcnn_jax.data.coco import read_coco
from frcnn_jax.errors import InputError


def test_reads_by_hand(tmp_path):
    path = write_coco(
        tmp_path,
        [
            annotation(),
            annotation(2, bbox=(1.5, 2.25, 30, 10.5), category_id=9, iscrowd=1),
            annotation(3, bbox=(5, 6, 0.5, 0.25)),
            annotation(4, bbox=(-0.5, 20, 51, 20.5)),
            annotation(5, bbox=(49.5, 39.25, 1, 1)),
        ],
    )
    dataset = read_coco(path, image_dir=tmp_path)
    assert dataset.class_names == ("dog", "cat")
    (record,) = dataset.records
    assert (record.image_id, record.height, record.width) == ("7", 40, 50)
    expected = [[0, 0, 9, 19], [1.5, 2.25, 30.5, 11.75], [5, 6, 5, 6], [0, 20, 49, 39], [49, 39, 49, 39]]
    np.testing.assert_array_equal(record.boxes, np.array(expected, np.float32))
    np.testing.assert_array_equal(record.labels, [1, 2, 1, 1, 1])
    np.testing.assert_array_equal(record.difficult, [False, True, False, False, False])
    assert record.load().shape == (40, 50, 3)
    names = ["cat", "cow", "dog"]
    (record,) = read_coco(path, image_dir=tmp_path, class_names=names).records
    assert list(record.labels) == [3, 1, 3, 3, 3]
    Image.new("RGB", (40, 50)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: annotated as \(40, 50\)"):
        record.load()


@pytest.mark.parametrize(
    ("categories", "what"),
    [
        ([{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], "id"),
        ([{"id": i, "name": "cat"} for i in (3, 9)], "name"),
    ],
)
def test_categories_that_are_alike(tmp_path, categories, what):
    with pytest.raises(InputError, match=f"two categories have the same {what}"):
        read_coco(write_coco(tmp_path, [annotation()], categories=categories), image_dir=tmp_path)


def test_category_ids_may_be_text(tmp_path):
    categories = [{"id": "10", "name": "cat"}, {"id": "9", "name": "dog"}]  # 9 is before 10
    path = write_coco(tmp_path, [annotation(category_id=10)], categories=categories)
    dataset = read_coco(path, image_dir=tmp_path)
    assert dataset.class_names == ("dog", "cat")
    assert dataset.records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (annotation(bbox=(0, 0, 0, 5)), r"image 7 \(a\.jpg\): annotation 1: bbox \[0, 0, 0, 5\].*50 x 40 image"),
        (annotation(bbox=(41.1, 0, 10, 5)), r"bbox \[41.1, 0, 10, 5\]"),
        (annotation(bbox=(0, 31.1, 5, 10)), r"bbox \[0, 31.1, 5, 10\]"),
        (annotation(bbox=(-1.1, 0, 10, 5)), r"bbox \[-1.1, 0, 10, 5\]"),
        (annotation(bbox=(0, -1.1, 10, 5)), r"bbox \[0, -1.1, 10, 5\]"),
        (annotation(bbox=(0, 0, float("nan"), 5)), "bbox .0, 0, nan, 5"),
        (annotation(bbox="abc"), "bbox must be four numbers"),
        (annotation(bbox=(1, 2, 3)), "bbox must be four numbers"),
        (annotation(category_id=4), "unknown category 4; the categories are 3, 9"),
        (annotation(image_id=8), "annotation 0: no image has the id 8"),
    ],
)
def test_names_the_image_and_the_box(tmp_path, bad, text):
    path = write_coco(tmp_path, [bad, annotation(2)])
    with pytest.raises(InputError, match=text):
        read_coco(path, image_dir=tmp_path)
    problems = []
    (record,) = read_coco(path, image_dir=tmp_path, on_problem=problems.append).records
    assert len(record.boxes) == len(problems) == 1


def test_boxes_one_pixel_beyond_the_image_are_clipped(tmp_path):
    boxes = [(-1, 0, 10, 5), (0, -1, 10, 5), (41, 0, 10, 5), (0, 31, 5, 10)]  # of an image of 50 x 40
    path = write_coco(tmp_path, [annotation(i, bbox=box) for i, box in enumerate(boxes)])
    (record,) = read_coco(path, image_dir=tmp_path).records
    assert record.boxes.tolist() == [[0, 0, 8, 4], [0, 0, 9, 3], [41, 0, 49, 4], [0, 31, 4, 39]]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (
            {"id": 7, "file_name": "../a.jpg", "width": 50, "height": 40},
            "the image '../a.jpg' lies outside this folder",
        ),
        ({"id": 7, "file_name": "/a.jpg", "width": 50, "height": 40}, "the image '/a.jpg' lies outside this folder"),
        ({"id": 7, "file_name": "b.jpg", "width": 50, "height": 40}, r"b\.jpg: no such image"),
        ({"id": 7, "file_name": "b" * 300, "width": 50, "height": 40}, r"bbb: can't be read \(File name too long\)"),
        ({"id": 7, "file_name": "a.jpg", "width": 50}, "height and width must be positive integers"),
    ],
)
def test_names_the_image(tmp_path, image, text):
    path = write_coco(tmp_path, [annotation()], images=[image])
    with pytest.raises(InputError, match=text):
        read_coco(path, image_dir=tmp_path)
    assert read_coco(path, image_dir=tmp_path, on_problem=lambda problem: None).records == []


def test_a_repeated_image(tmp_path):
    image = {"id": 7, "file_name": "a.jpg", "width": 50, "height": 40}
    with pytest.raises(InputError, match="image '7' is listed twice"):
        read_coco(write_coco(tmp_path, [], images=[image, image]), image_dir=tmp_path)


def test_a_repeated_annotation(tmp_path):
    path = write_coco(tmp_path, [annotation(5), annotation(5), annotation(None), annotation(None)])
    with pytest.raises(InputError, match=r"instances\.json: annotation 1: its id 5 is used twice"):
        read_coco(path, image_dir=tmp_path)
    problems = []
    (record,) = read_coco(path, image_dir=tmp_path, on_problem=problems.append).records
    assert (len(record.boxes), len(problems)) == (3, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "categories", "id", "name", "file_name", "bbox", "image_id"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["images", "annotations", "categories", None]))
def test_any_other_json_is_one_problem(tmp_path_factory, value, field):
    """Whatever stands in a field, the reader gives records or an InputError."""
    folder = tmp_path_factory.mktemp("c")
    path = write_coco(folder, [annotation()])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, field: value} if field else value))
    with contextlib.suppress(InputError):
        read_coco(path, image_dir=folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe", b"{}"])
def test_no_instances_file(tmp_path, content):
    (tmp_path / "i.json").write_bytes(content)
    with pytest.raises(InputError, match=r"i\.json: not a (COCO instances|JSON) file"):
        read_coco(tmp_path / "i.json", image_dir=tmp_path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_coco(tmp_path / "none.json", image_dir=tmp_path)
