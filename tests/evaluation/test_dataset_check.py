"""Remarks on data sets that have what they are about, and none on those that do not."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import Dataset, ImageFile, Record
from frcnn_jax.data.splits import Shared
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.dataset_check import (
    class_remarks,
    class_table,
    copy_remarks,
    format_table,
    gather_objects,
    recall_by_class,
    shared_remarks,
    split_remarks,
    totals,
)
from frcnn_jax.evaluation.dataset_report import SplitReport, write_dataset_report

SIZE = Sizes(200, 400)


def blank(height=200, width=300):
    return np.zeros((height, width, 3), np.uint8)


def make_record(i, boxes=(), labels=None, height=200, width=300, difficult=False, load=blank):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), int) if labels is None else np.array(labels, int)
    return Record(f"im{i}", height, width, boxes, labels, np.full(len(boxes), difficult), load)


def remarks_on(*records, names=("cat", "dog"), size=SIZE, **options):
    dataset = Dataset(tuple(names), list(records), **options)
    return split_remarks(dataset, gather_objects(dataset, size), size=size, nms_iou=0.3)


def only(remarks):
    (remark,) = remarks
    return remark


def scattered(count=40, low=0.0, high=1.0, height=200, width=300, seed=0):
    """Records of one object each, between fractions of the sides."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        x1, y1 = rng.uniform(low, high - 0.25, 2) if i else (low, low)
        x2, y2 = (x1 + 0.25, y1 + 0.25) if i < count - 1 else (high, high)
        records.append(
            make_record(i, [[x1 * width, y1 * height, x2 * width - 1, y2 * height - 1]], None, height, width)
        )
    return records


def test_nothing_is_remarked_on_good_data():
    assert remarks_on(*scattered()) == []
    assert remarks_on(make_record(0)) == []
    assert remarks_on() == []
    synthetic = read_synthetic(split="train", images=60)
    assert not remarks_on(*synthetic.records, names=synthetic.class_names, size=Sizes(144, 192))


def test_the_table_by_hand():
    """Seen at 200 of 200 rows: as they are. Of the three cats two overlap by 50 of 100 pixels."""
    boxes = [[0, 0, 9, 9], [0, 0, 9, 4], [100, 0, 149, 19], [0, 0, 39, 39]]
    records = [
        make_record(0, boxes, [1, 1, 1, 2]),
        make_record(1),
        make_record(2, [[0, 0, 19, 9]], [1], difficult=True),
    ]
    dataset = Dataset(("cat", "dog", "cow"), records)
    table = class_table(dataset, gather_objects(dataset, SIZE), 0.3)
    assert [list(row) for row in table.rows] == [
        ["cat", "2", "4", "1", "7 12 32", "3", "1 2 2.5", "2"],
        ["dog", "1", "1", "0", "40 40 40", "0", "1 1 1", "0"],
        ["cow", "0", "0", "0", "-", "0", "-", "0"],
    ]
    lines = format_table(table).splitlines()
    assert lines[0].startswith("  class  images")
    assert len({len(line) for line in lines}) == 1
    assert totals(dataset) == (
        "3 images, 300 to 300 pixels wide, 200 to 200 high; 5 objects, 1 of them difficult; 1 images without objects"
    )


def test_copies_and_objects_labelled_twice(tmp_path):
    for name in "abc":
        Image.fromarray(blank() + (name == "c")).save(tmp_path / f"{name}.png")
    box = [10, 10, 59, 59]
    copies = [make_record(name, [box], load=ImageFile(str(tmp_path / f"{name}.png"))) for name in "abc"]
    remark = only(remarks_on(*copies))
    assert remark.text.startswith("1 images are copies of others, such as 'imb' of 'ima': remove them")
    assert [record.image_id for record, _ in remark.examples] == ["imb", "ima"]
    twice = make_record(0, [box, [200, 10, 259, 59], [10, 10, 59, 60]], [1, 1, 2])
    remark = only(remarks_on(twice, make_record(1, [box])))
    assert remark.text.startswith("1 of 4 objects (25 %) have the box of another (IoU over 0.9), such as in 'im0'")
    assert remark.examples[0][1].tolist()[0] == [10, 10, 59, 60]
    assert len(remark.examples[0][1]) == 3  # itself, and both in the image


def test_objects_that_nms_would_drop():
    near = [make_record(i, [[0, 0, 49, 49], [10, 0, 59, 49]]) for i in range(3)]
    remark = only(remarks_on(*near, make_record(3, [[0, 0, 49, 49]])))
    assert remark.text.startswith(
        "6 of 7 objects (86 %) overlap another of their class by more than --config.nms_iou=0.3"
    )
    assert "to 0.5 for example" in remark.text
    assert remarks_on(*(replace(record, labels=np.array([1, 2])) for record in near)) == []


@pytest.mark.parametrize(
    ("shift", "text"),
    [
        (
            1,
            "begin one pixel from the left or top border and 0 at it: they seem shifted by one pixel, right and",
        ),
        (
            -1,
            "end one pixel from the right or bottom border and 0 at it: they seem shifted by one pixel, left and",
        ),
        (0, None),
        (None, None),  # a tool that keeps a pixel away from all borders
    ],
)
def test_boxes_shifted_by_one(shift, text):
    """Forty boxes of which some are cut off at each border, and are clipped to it after the shift."""
    boxes = np.concatenate([[[0, 30, 59, 90], [230, 30, 299, 90], [90, 0, 150, 60], [90, 140, 150, 199]]] * 10)
    if shift is None:
        boxes = np.clip(boxes, 1, [298, 198, 298, 198])
    else:
        boxes = np.clip(boxes + shift, 0, [299, 199, 299, 199])
    found = remarks_on(*(make_record(i, [box]) for i, box in enumerate(boxes)))
    if text:
        assert text in only(found).text
        assert len(only(found).examples) == 12
        assert only(found).examples[0][0].image_id == ("im0" if shift > 0 else "im1")
    else:
        assert found == []


def test_some_boxes_drawn_a_pixel_short_are_no_shift():
    left = [make_record(i, [[i % 2, 30, 59, 90 + i]]) for i in range(40)]
    assert remarks_on(*left, make_record(41, [[230, 140, 299, 199]])) == []
    at_one = [replace(record, boxes=np.maximum(record.boxes, 1)) for record in left]
    assert only(remarks_on(*at_one, make_record(41, [[230, 140, 299, 199]]))).text.startswith(
        "40 boxes begin one pixel"
    )


def test_boxes_of_another_scale():
    """Half-size boxes on all images, or on those of one size; centred objects are no sign of it."""
    remark = only(remarks_on(*scattered(high=0.5, low=0.02)))
    assert remark.text.startswith("none of 40 boxes in 300x200 images reaches beyond 50 % of the width and 50 % of the")
    good, bad = scattered(), scattered(high=0.5, height=400, width=400)
    assert only(remarks_on(*good, *bad)).text.startswith("none of 40 boxes in 400x400 images reaches")
    mixed = [replace(record, width=300 + i) for i, record in enumerate(scattered(high=0.5))]
    assert only(remarks_on(*mixed)).text.startswith("none of 40 boxes in images reaches")
    assert remarks_on(*scattered(low=0.3, high=0.7)) == []
    assert remarks_on(*scattered(count=20, high=0.5)) == []  # too few to tell


def test_tiny_and_long_boxes():
    tiny = only(remarks_on(make_record(0, [[5, 5, 6, 90]]), make_record(1, [[0, 0, 49, 49]]), size=Sizes(600, 1000)))
    assert tiny.text.startswith("1 of 2 boxes (50 %) are at most 2 pixels wide or high, such as in 'im0'")
    long = only(remarks_on(make_record(0, [[0, 5, 299, 33]]), make_record(1, [[0, 5, 299, 24]])))
    assert long.text.startswith("2 of 2 boxes (100 %) are more than 10 times as long as wide, such as in 'im1'")


def test_large_images_and_small_objects():
    large = make_record(0, [[0, 0, 399, 399]], height=1000, width=1500)
    remark = only(remarks_on(large, make_record(1, [[0, 0, 99, 99]])))
    assert remark.text.startswith(
        "1 of 2 images (50 %) are more than twice as large as the network sees them, such as 'im0', 1500 x 1000 "
        "pixels, at 20 %: shrink them"
    )
    small = [make_record(i, [[0, 0, 7, 7]], [2]) for i in range(2)]
    remark = only(remarks_on(*small, make_record(3, [[0, 0, 99, 99]])))
    assert remark.text == (
        "2 of 3 objects (67 %) are under 16 pixels at the config's size, 200 by at most 400 (2 dog), and hard to find: "
        "--config.min_size=400 --config.max_size=800 would leave 5 %"
    )
    tiny = [make_record(i, [[0, 0, 3, 3]]) for i in range(2)]
    assert only(remarks_on(*tiny, size=Sizes(200, 1000))).text.endswith(
        "cut the images into tiles, or train at a larger --config.min_size"
    )
    assert only(remarks_on(*scattered(), small[0])).text.endswith("expect to miss them, or train at a larger size")


def test_crowds_are_not_remarked_on():
    crowd = make_record(0, [[0, 0, 3, 3]], difficult=True)
    assert remarks_on(crowd)
    assert remarks_on(crowd, has_crowds=True) == []


def of_classes(names, train, val=()):
    def split(labels):
        dataset = Dataset(names, [make_record(0, [[0, 0, 49, 49]] * len(labels), labels)])
        return dataset, gather_objects(dataset, SIZE)

    return [remark.text for remark in class_remarks({"train": split(train), "val": split(val or train)})]


@pytest.mark.parametrize(
    ("names", "counts", "alike"),
    [
        (("cat", "Cat"), (30, 30), True),
        (("cat", "cat "), (30, 30), True),
        (("stop_sign", "stop-sign"), (30, 30), True),
        (("kangaroo", "kangaro"), (300, 20), True),
        (("kangaroo", "kangaro"), (30, 30), False),  # both as frequent: two classes
        (("class1", "class2"), (300, 20), False),
        (("horse", "house"), (300, 20), False),
        (("cat", "dog"), (300, 20), False),
        (("?", "!"), (30, 30), False),
    ],
)
def test_classes_with_typos(names, counts, alike):
    found = of_classes(names, [1] * counts[0] + [2] * counts[1])
    assert [text.split(":")[0] for text in found] == ["these may be one class"] * alike
    if alike:
        assert f"{names[0]!r} and {names[1]!r}" in found[0]


def test_classes_without_objects_or_with_few():
    assert of_classes(("cat", "dog", "cow", "pig"), [1] * 20 + [2] * 19, [1, 3]) == [
        "no objects of pig: label some, or leave these out of the classes",
        "only the val split has objects of cow: they can't be learned; move images to the train split",
        "only the train split has objects of dog: their AP can't be measured; move images to the val split",
        "few train objects of dog (19): label more, some 50 at least, or leave these out",
    ]
    assert class_remarks({}) == []


@pytest.mark.parametrize(("count", "listed"), [(8, "g (1), h (1):"), (9, "g (1), h (1) and 1 more:")])
def test_eight_classes_are_listed(count, listed):
    names = "abcdefghi"[:count]
    (remark,) = of_classes(names, list(range(1, count + 1)), list(range(1, count + 1)))
    assert remark.startswith("few train objects of a (1), b (1), ")
    assert listed in remark


def test_images_in_both_splits_are_shown():
    val = Dataset(("cat",), [make_record(i) for i in range(3)])
    same, alike = shared_remarks(Shared(["im2"], ["im0", "im1"]), val)
    assert same.text.startswith("1 of the 3 val images are in the train split too, such as 'im2'")
    assert [record.image_id for record, _ in alike.examples] == ["im0", "im1"]
    assert shared_remarks(Shared([], []), val) == []


def test_copies_in_another_size_are_shown():
    val = Dataset(("cat",), [make_record(i) for i in range(3)])
    (remark,) = copy_remarks({"im1": "a", "im2": "b"}, val)
    assert remark.text.startswith("2 of the 3 val images look like a train image, such as 'im1' like 'a': copies in")
    assert [record.image_id for record, _ in remark.examples] == ["im1", "im2"]
    assert copy_remarks({}, val) == []


def test_recall_by_class_and_size():
    boxes = [[0, 0, 9, 9], [0, 50, 19, 69], [100, 0, 299, 199]]
    records = [make_record(0, boxes, [1, 1, 2]), make_record(1, [[0, 0, 9, 9]], difficult=True)]
    dataset = Dataset(("cat", "dog", "cow"), records)
    proposals = {
        "im0": np.array([[0, 50, 19, 68], [100, 0, 299, 199]], np.float32),
        "im1": np.zeros((0, 4), np.float32),
    }
    table, remarks = recall_by_class(dataset, proposals, gather_objects(dataset, SIZE), 1)
    assert [list(row) for row in table.rows] == [
        ["cat", "0.500 of 2", "0.000 of 1", "1.000 of 1", "-", "-"],
        ["dog", "0.000 of 1", "-", "-", "-", "0.000 of 1"],
        ["cow", "-", "-", "-", "-", "-"],
        ["all", "0.333 of 3", "0.000 of 1", "1.000 of 1", "-", "0.000 of 1"],
    ]
    assert len(table.header) == 6
    assert only(remarks).text.startswith("2 of 3 objects (67 %) have no proposal with IoU 0.5 and can't be found: try")
    found = recall_by_class(
        dataset, {**proposals, "im0": np.array(boxes, np.float32)}, gather_objects(dataset, SIZE), 9
    )
    assert found[1] == []


def broken():
    raise InputError("a.jpg: can't be read")


def test_the_report_is_one_page_with_pictures(tmp_path):
    names = ("<b>cat</b>", "dog")
    records = [make_record(0, [[0, 0, 5, 5]]), make_record(1), make_record(2, [[9, 9, 90, 90]], [2], load=broken)]
    records += [make_record(i, [[9, 9, 90, 90]], [2], load=partial(blank, 200, 300)) for i in range(3, 9)]
    dataset = Dataset(names, records)
    objects = gather_objects(dataset, SIZE)
    remarks = split_remarks(dataset, objects, size=SIZE, nms_iou=0.3)
    table = class_table(dataset, objects, 0.3)
    recall, _ = recall_by_class(dataset, {r.image_id: r.boxes for r in records}, objects, 9)
    splits = {"train": SplitReport(dataset, objects, table, remarks, recall)}
    write_dataset_report(tmp_path / "r.html", splits, remarks=class_remarks({}), problems=["x <i>"] * 101, pictures=2)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img ") == 1 + 1 + 2 + 1  # the small object; two dogs of those that load; the empty one
    assert page.count("<svg ") == 3
    assert "train: 1 of 8 objects (12 %) are under 16 pixels" in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "Problems: 101" in page
    assert "and 1 more" in page
    assert "1.000 of 8" in page
    assert "src=" in page
    assert page.count('src="') == page.count('src="data:image/jpeg;base64,')
    write_dataset_report(tmp_path / "none.html", {})
    assert "None." in (tmp_path / "none.html").read_text()
