import contextlib
import json
import time

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


def test_boxes_as_corners_are_refused(tmp_path):
    corners = [(2, 3, 30, 20), (20, 10, 49, 39), (5, 25, 40, 38), (1, 1, 9, 9), (0, 0, 5, 5)]
    path = write_coco(tmp_path, [annotation(i, bbox=box) for i, box in enumerate(corners)])
    with pytest.raises(
        InputError, match=r"bbox \[20, 10, 49, 39\], as all others, seems to be x1, y1, x2, y2; expected"
    ):
        read_coco(path, image_dir=tmp_path)
    path = write_coco(tmp_path, [annotation(i, bbox=box) for i, box in enumerate([*corners, (40, 30, 9, 9)])])
    with pytest.raises(InputError, match=r"annotation 1: bbox \[20, 10, 49, 39\]: expected x, y, width > 0"):
        read_coco(path, image_dir=tmp_path)
    path = write_coco(tmp_path, [annotation(i, bbox=box) for i, box in enumerate([*corners[:1], *corners[3:]] * 2)])
    assert len(read_coco(path, image_dir=tmp_path).records[0].boxes) == 6


def test_boxes_that_cvat_has_turned(tmp_path):
    boxes = {(10, 10, 20, 10): 90.0, (10, 10, 10, 10): 45, (0, 10, 40, 10): 90, (1, 2, 3, 4): 0.0}
    entries = [
        annotation(i, bbox=box, attributes={"occluded": False, "rotation": rotation})
        for i, (box, rotation) in enumerate(boxes.items())
    ]
    (record,) = read_coco(write_coco(tmp_path, entries), image_dir=tmp_path).records
    expected = [[15, 5, 24, 24], [7.929, 7.929, 21.071, 21.071], [15, 0, 24, 34], [1, 2, 3, 5]]
    np.testing.assert_allclose(record.boxes, expected, atol=1e-3)
    for angle in ("a little", float("inf"), float("nan"), 10**400):
        path = write_coco(tmp_path, [annotation(attributes={"rotation": angle})])
        with pytest.raises(InputError, match=r"annotation 1: rotation must be a number, got "):
            read_coco(path, image_dir=tmp_path)


def test_what_is_to_be_ignored_is_difficult(tmp_path):
    entries = [annotation(1, ignore=1), annotation(2, ignore=0), annotation(3), annotation(4, ignore=1, bbox="1")]
    entries[3]["bbox"] = [str(value) for value in entries[0]["bbox"]]  # read one by one
    for some in (entries[:3], entries):
        (record,) = read_coco(write_coco(tmp_path, some), image_dir=tmp_path).records
        assert list(record.difficult) == [True, False, False, True][: len(some)]


def test_names_as_addresses_and_files_of_other_tasks(tmp_path):
    path = write_coco(tmp_path, [annotation()])
    content = json.loads(path.read_text())
    content["images"][0]["coco_url"] = f"http://images.cocodataset.org/train/{content['images'][0].pop('file_name')}"
    path.write_text(json.dumps(content))
    assert len(read_coco(path, image_dir=tmp_path).records[0].boxes) == 1
    path.write_text(json.dumps({**content, "annotations": [{"image_id": 7, "segments_info": []}]}))
    with pytest.raises(InputError, match="a panoptic file, whose segments are masks; expected an instances file"):
        read_coco(path, image_dir=tmp_path)
    del content["categories"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="it has images, but no categories, which name the classes"):
        read_coco(path, image_dir=tmp_path)


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


def test_objects_read_alike_next_to_a_wrong_one(tmp_path, rng):
    """Images without a wrong object are converted all at once."""
    corners = np.sort(rng.uniform(-1, 1, (60, 2, 2)), axis=1) * (50, 40)
    corners, sides = np.maximum(corners[:, 0], -1), np.ptp(corners, axis=1)
    boxes = [(*corner, *side) for corner, side in zip(corners.tolist(), sides.tolist(), strict=True)]
    objects = [annotation(i, bbox=box, category_id=3 + 6 * (i % 2), iscrowd=i % 3) for i, box in enumerate(boxes)]
    path = write_coco(tmp_path, objects)
    wrong = []
    read_coco(path, image_dir=tmp_path, on_problem=lambda problem: wrong.append(str(problem)))
    inside = [o for o in objects if not any(f"annotation {o['id']}:" in text for text in wrong)]
    assert len(inside) > 20
    (alone,) = read_coco(write_coco(tmp_path, inside), image_dir=tmp_path).records
    path = write_coco(tmp_path, [*inside, annotation(99, bbox="abc")])
    (among,) = read_coco(path, image_dir=tmp_path, on_problem=lambda problem: None).records
    assert all(among.boxes[:, 0] >= 0)
    for name in ("boxes", "labels", "difficult"):
        np.testing.assert_array_equal(getattr(among, name), getattr(alone, name), strict=True)


def test_objects_go_to_their_images_in_the_order_of_the_file(tmp_path):
    """An image without objects is between others; the first of two images of an id takes its objects."""
    for name in "bc":
        Image.new("RGB", (50, 40)).save(tmp_path / f"{name}.jpg")
    names = zip((8, 5, 7, 8), "abca", strict=True)
    images = [{"id": i, "file_name": f"{name}.jpg", "width": 50, "height": 40} for i, name in names]
    order = [(7, 1), (8, 2), (7, 3), (8, 4), (8, 5)]
    objects = [annotation(i, image_id=number, bbox=(i, 0, 9, 9)) for number, i in order]
    path, problems = write_coco(tmp_path, objects, images=images), []
    records = read_coco(path, image_dir=tmp_path, on_problem=problems.append).records
    assert [(r.image_id, r.boxes[:, 0].tolist()) for r in records] == [("8", [2, 4, 5]), ("5", []), ("7", [1, 3])]
    assert [str(problem) for problem in problems] == [f"{path}: image '8' is listed twice"]


@pytest.mark.parametrize("bbox", [(1.0, "2", 30, 10), (True, 2.0, 30, 10)])
def test_numbers_of_other_types_are_read(tmp_path, bbox):
    (record,) = read_coco(write_coco(tmp_path, [annotation(bbox=bbox)]), image_dir=tmp_path).records
    assert record.boxes.tolist() == [[1, 2, 30, 11]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bbox", [(0, 0, 10**400, 5), (1e308, 0, 1e308, 5), (-np.inf, 0, np.inf, 5), (0, 0, 5, [])])
def test_extreme_numbers_are_problems_without_warnings(tmp_path, bbox):
    path, problems = write_coco(tmp_path, [annotation(bbox=bbox), annotation(2)]), []
    (record,) = read_coco(path, image_dir=tmp_path, on_problem=problems.append).records
    assert record.boxes.tolist() == [[0, 0, 9, 19]]
    assert len(problems) == 1


def test_an_image_larger_than_any_number(tmp_path):
    image = {"id": 7, "file_name": "a.jpg", "width": 10**400, "height": 2**40}
    with pytest.raises(InputError, match=r"a\.jpg: image '7': 1000.* pixels, expected 1 to 100000000"):
        read_coco(write_coco(tmp_path, [annotation()], images=[image]), image_dir=tmp_path)


def test_images_in_folders_and_behind_links(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    path = write_coco(tmp_path, [])
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "dead.jpg").symlink_to("none.jpg")
    (tmp_path / "inner/b.jpg").hardlink_to(tmp_path / "a.jpg")
    names = ["a.jpg", "inner/b.jpg", "link.jpg", "dead.jpg", "folder.jpg"]
    images = [{"id": i, "file_name": name, "width": 50, "height": 40} for i, name in enumerate(names)]
    write_coco(tmp_path, [], images=images)
    problems = []
    records = read_coco(path, image_dir=tmp_path, on_problem=problems.append).records
    assert [record.load.path for record in records] == [str(tmp_path / name) for name in names[:3]]
    assert [str(problem) for problem in problems] == [f"{tmp_path / name}: no such image" for name in names[3:]]
    with pytest.raises(InputError, match=r"none/a\.jpg: no such image"):
        read_coco(path, image_dir=tmp_path / "none")


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


def test_an_id_of_two_files_is_ambiguous(tmp_path):
    images = [{"id": i, "file_name": f"{name}.jpg", "width": 50, "height": 40} for i, name in ((7, "a"), (7, "b"))]
    path, problems = write_coco(tmp_path, [annotation()], images=images), []
    with pytest.raises(InputError, match=r"image 7: its id is that of several files: a\.jpg, b\.jpg"):
        read_coco(path, image_dir=tmp_path)
    assert read_coco(path, image_dir=tmp_path, on_problem=problems.append).records == []


def test_a_file_listed_as_two_images_is_one_with_all_objects(tmp_path):
    images = [{"id": i, "file_name": "a.jpg", "width": 50, "height": 40} for i in (7, 8)]
    path = write_coco(tmp_path, [annotation(1, 8), annotation(2, 7, 9)], images=images)
    (record,) = read_coco(path, image_dir=tmp_path).records
    assert (record.image_id, record.labels.tolist()) == ("7", [1, 2])


def test_two_names_of_one_file_are_a_problem(tmp_path):
    """Two images, of which one was overwritten when their folders were joined."""
    images = [{"id": i, "file_name": f"{i}/a.jpg", "width": 50, "height": 40} for i in (7, 8)]
    with pytest.raises(InputError, match=r"image 8: '8/a\.jpg' and '7/a\.jpg' are both found as .*a\.jpg"):
        read_coco(write_coco(tmp_path, [], images=images), image_dir=tmp_path)


@pytest.mark.parametrize(
    ("image", "category", "record_id"),
    [
        ("7", "3", "7"),
        (7.0, 3.0, "7"),
        ("frame_07", "dog-id", "frame_07"),
        (0, 0, "0"),
        ("0", "0", "0"),
        ("007", "3", "007"),
    ],
)
def test_ids_of_other_types(tmp_path, image, category, record_id):
    """They mean the same in all places, whether as numbers or as text."""
    images = [{"id": image, "file_name": "a.jpg", "width": 50, "height": 40}]
    categories = [{"id": "100", "name": "cat"}, {"id": category, "name": "dog"}]
    numbers = [image, float(image)] if isinstance(image, int) else [image]
    own = [annotation(i, number, category) for i, number in enumerate(numbers)]
    dataset = read_coco(write_coco(tmp_path, own, images=images, categories=categories), image_dir=tmp_path)
    label = dataset.class_names.index("dog") + 1
    assert [(r.image_id, r.labels.tolist()) for r in dataset.records] == [(record_id, [label] * len(own))]
    assert dataset.class_names == (("cat", "dog") if category == "dog-id" else ("dog", "cat"))


@pytest.mark.parametrize("value", [7.5, None, [7], 1 << 64, -(1e20)])
def test_an_id_that_is_none(tmp_path, value):
    path = write_coco(tmp_path, [], images=[{"id": value, "file_name": "a.jpg", "width": 50, "height": 40}])
    with pytest.raises(
        InputError, match=r"instances\.json: not a COCO.*an id must be a whole number of 64 bits or text"
    ):
        read_coco(path, image_dir=tmp_path)


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(0, False), (1, True), (False, False), (True, True), (None, False), ("0", False), ("1", True), ("false", False)],
)
def test_marks_of_crowds(tmp_path, value, crowd):
    path = write_coco(tmp_path, [annotation(iscrowd=value), annotation(2)])
    (record,) = read_coco(path, image_dir=tmp_path).records
    assert record.difficult.tolist() == [crowd, False]


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[10, 5, 30, 5, 20, 25]], [10, 5, 29, 24]),
        ([[10, 5, 30, 5, 20, 25], [5, 30, 6, 38, 7, 31]], [5, 5, 29, 37]),
        ([10, 5, 30, 5, 20, 25], [10, 5, 29, 24]),
        ({"size": [40, 50], "counts": [5, 10, 30, 10, 1945]}, [0, 5, 1, 14]),
    ],
)
def test_the_outer_box_of_a_segmentation_alone(tmp_path, segmentation, box):
    for bbox in ({}, {"bbox": []}, {"bbox": None}):
        entry = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation, **bbox}
        (record,) = read_coco(write_coco(tmp_path, [entry]), image_dir=tmp_path).records
        assert record.boxes.tolist() == [box]
    (record,) = read_coco(write_coco(tmp_path, [annotation(segmentation=segmentation)]), image_dir=tmp_path).records
    assert record.boxes.tolist() == [[0, 0, 9, 19]]


@pytest.mark.parametrize(
    "segmentation", [None, [], {}, "abc", [[1, 2, 3]], [[]], [["a", "b"]], {"size": [1], "counts": 2}]
)
def test_no_box_at_all(tmp_path, segmentation):
    path = write_coco(tmp_path, [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation}])
    with pytest.raises(InputError, match=r"annotation 1: bbox must be four numbers"):
        read_coco(path, image_dir=tmp_path)


def test_fractions_are_refused(tmp_path):
    path = write_coco(tmp_path, [annotation(bbox=(0, 0, 1, 1)), annotation(2, bbox=(0.25, 0.5, 0.5, 0.25))])
    with pytest.raises(InputError, match=r"annotation 1: bbox \[0.25, 0.5, 0.5, 0.25\] is a fraction of the image"):
        read_coco(path, image_dir=tmp_path, on_problem=lambda problem: None)
    path = write_coco(tmp_path, [annotation(), annotation(2, bbox=(0.25, 0.5, 0.5, 0.25))])
    with pytest.raises(InputError, match=r"annotation 2: .*seems to be a fraction of the image's sides"):
        read_coco(path, image_dir=tmp_path)
    (record,) = read_coco(write_coco(tmp_path, [annotation(bbox=(0, 0, 1, 1))]), image_dir=tmp_path).records
    assert record.boxes.tolist() == [[0, 0, 0, 0]]  # one pixel


def test_no_annotations(tmp_path):
    path = write_coco(tmp_path, [])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name] for name in ("images", "categories")}))
    with pytest.raises(InputError, match=r"instances\.json: it has images, but no annotations"):
        read_coco(path, image_dir=tmp_path)


@pytest.mark.parametrize("sizes", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}])
def test_a_size_that_is_not_given_is_that_of_the_image(tmp_path, sizes):
    path = write_coco(tmp_path, [annotation()], images=[{"id": 7, "file_name": "a.jpg", **sizes}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(tmp_path / "a.jpg", exif=exif)
    for how, size in (("apply", (50, 40)), ("ignore", (40, 50))):
        (record,) = read_coco(path, image_dir=tmp_path, exif=how).records
        assert (record.height, record.width) == record.load().shape[:2] == size


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        ("a b.png", "train/a b.png"),
        ("a b.png", "a%20b.png"),
        ("a b.png", "images/train/a%20b.png"),
        ("a b.png", "C:\\data\\a b.png"),
        ("x/a.png", "x\\a.png"),
        ("x/a.png", "train\\x\\a.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("x/cafe\u0301.png", "train/x/caf%C3%A9.png"),
        ("100%20.png", "100%20.png"),
    ],
)
def test_file_names_of_other_programs(tmp_path, stored, listed):
    (tmp_path / "x").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / stored)
    Image.new("RGB", (9, 9)).save(tmp_path / "100 .png")
    path = write_coco(tmp_path, [], images=[{"id": 7, "file_name": listed, "width": 50, "height": 40}])
    (record,) = read_coco(path, image_dir=tmp_path).records
    assert record.load.path == str(tmp_path / stored)
    (tmp_path / stored).unlink()
    (tmp_path / "100 .png").unlink()
    with pytest.raises(InputError, match="no such image"):
        read_coco(path, image_dir=tmp_path)


@pytest.mark.parametrize("name", ["..\\a.jpg", "x\\..\\..\\a.jpg", "%2e%2e/b.jpg"])
def test_no_spelling_leaves_the_folder(tmp_path, name):
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "b.jpg")
    path = write_coco(tmp_path, [], images=[{"id": 7, "file_name": name, "width": 50, "height": 40}])
    with pytest.raises(InputError, match="no such image"):
        read_coco(path, image_dir=tmp_path / "inner")


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


def test_ids_of_one_hash_take_no_time(tmp_path):
    """Python's integers have the same hash at this distance; as keys, each would be compared with all others."""
    path = write_coco(tmp_path, [annotation((2**61 - 1) * i) for i in range(30_000)])
    begin = time.process_time()
    (record,) = read_coco(path, image_dir=tmp_path).records
    assert len(record.boxes) == 30_000
    assert time.process_time() - begin < 3
