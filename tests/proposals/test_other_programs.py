"""Files of other programs, against numbers worked out by hand from each one's definition of a box."""

import json
import pickle
import sys
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frcnn_jax.data.rle import rle_box
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.files import read_proposals, union


def found(path, **options):
    return {name: boxes.tolist() for name, boxes in read_proposals(path, **options).items()}


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_coco_results(tmp_path):
    """(x, y, w, h) ends at x + w - 1; best first, equal scores in order; less than a pixel is a pixel."""
    rows = [
        {"image_id": 7, "bbox": [10, 20, 30, 40], "score": 0.25},
        {"image_id": "a.jpg", "bbox": [0, 0, 1, 1], "score": 1},
        {"image_id": 7, "bbox": [1, 2, 0.5, 3.5], "score": 0.5},
        {"image_id": 7, "bbox": [5, 5, 2, 2], "score": 0.5},
    ]
    expected = {"7": [[1, 2, 1, 4.5], [5, 5, 6, 6], [10, 20, 39, 59]], "a.jpg": [[0, 0, 0, 0]]}
    assert found(write(tmp_path / "a.json", rows)) == expected
    for row in rows:
        del row["score"]
    expected["7"] = [[10, 20, 39, 59], [1, 2, 1, 4.5], [5, 5, 6, 6]]
    assert found(write(tmp_path / "a.json", rows)) == expected


def test_coco_instances(tmp_path):
    images = [{"id": 3, "file_name": "val/c.jpg"}, {"id": 4, "file_name": "d.jpg"}]
    content = {"images": images, "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]}
    path = write(tmp_path / "a.json", content)
    assert found(path) == {"3": [[1, 2, 3, 5]], "4": []}
    sizes = {"c": (9, 9), "d": (9, 9)}
    assert found(path, sizes=sizes, names={"c": "/x/val/c.jpg", "d": "/x/val/d.jpg"}) == {"c": [[1, 2, 3, 5]], "d": []}


@pytest.mark.parametrize("suffix", ["json", "npy", "pkl"])
def test_a_bad_box_is_named_by_its_place_in_the_file(suffix, tmp_path):
    """Not by its rank."""
    path, boxes, scores = tmp_path / f"a.{suffix}", [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, -3, 9]], [0.25, 0.5, 1]
    if suffix == "json":
        rows = zip(boxes, scores, strict=True)
        write(path, [{"image_id": "a", "bbox": box, "score": score} for box, score in rows])
    elif suffix == "npy":
        np.save(path, np.column_stack([boxes, scores]))
    else:
        content = {"ids": ["a"], "boxes": [boxes], "objectness_logits": [scores], "bbox_mode": 1}
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"image 'a': box 2 is \(9, 9, 5, 17\)"):
        read_proposals(path, box_format="xywh" if suffix == "npy" else None)


@pytest.mark.parametrize("form", ["xyxy-inclusive", "xyxy", "xywh", "cxcywh"])
def test_fractions_of_the_image_are_refused(form, tmp_path):
    """They would all be its first pixel."""
    np.save(tmp_path / "a.npy", box := np.array([[0.5, 0.5, 0.25, 0.5] if "w" in form else [0.5, 0.5, 0.75, 1]]))
    with pytest.raises(InputError, match=r"a\.npy: .*all its boxes lie within the first pixel, as fractions"):
        read_proposals(tmp_path / "a.npy", box_format=form)
    np.save(tmp_path / "b.npy", np.concatenate([box, [[3, 3, 5, 5]]]))
    assert len(read_proposals(tmp_path / "b.npy", box_format=form)["b"]) == 2
    np.save(tmp_path / "c.npy", [[1, 1, 2, 2]])  # pixels, if few
    assert len(read_proposals(tmp_path / "c.npy", box_format=form)["c"]) == 1


MASK = np.zeros((4, 5), np.uint8)
MASK[1:3, 2:5] = 1  # columns 2 to 4, rows 1 and 2
COUNTS = [9, 2, 2, 2, 2, 2, 1]


def test_sams_masks(tmp_path):
    """Its bbox has the distances of the extreme pixels as width and height: 2 and 1 for 3 columns and 2 rows."""
    mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    code = mask.encode(np.asfortranarray(MASK))
    compressed = {"size": [4, 5], "counts": code["counts"].decode()}
    boxes = [
        {"bbox": [0, 0, 4, 3], "predicted_iou": 0.8, "stability_score": 0.9},
        {"bbox": [2, 1, 2, 1], "segmentation": compressed, "predicted_iou": 0.9},
    ]
    expected = [[2, 1, 4, 2], [0, 0, 4, 3]]
    assert found(write(tmp_path / "photo.json", boxes)) == {"photo": expected}
    image = {"image_id": 12, "file_name": "sa_12.jpg", "height": 4, "width": 5}
    content = {"image": image, "annotations": boxes}
    assert found(write(tmp_path / "sa.json", content)) == {"12": expected}
    options = {"sizes": {"im": (4, 5)}, "names": {"im": "x/sa_12.jpg"}}
    assert found(tmp_path / "sa.json", **options) == {"im": expected}
    for segmentation in (compressed, {"size": [4, 5], "counts": COUNTS}):
        boxes = [{"segmentation": segmentation, "predicted_iou": 0.9}]
        assert found(write(tmp_path / "rle.json", boxes)) == {"rle": [[2, 1, 4, 2]]}
    assert found(write(tmp_path / "nothing.json", [])) == {"nothing": []}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_boxes_of_masks_are_pycocotools(height, width, data):
    mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
    pixels = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)), np.uint8)
    code = mask.encode(np.asfortranarray(pixels.reshape(height, width)))
    text = {"size": [height, width], "counts": code["counts"].decode()}
    if pixels.any():
        x, y, w, h = mask.toBbox(code)
        assert rle_box(text) == [x, y, x + w, y + h]
    else:
        with pytest.raises(InputError, match="the mask is empty"):
            rle_box(text)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=9), st.lists(st.integers(-5, 25), max_size=9)))
@example("oooooooooooooooo")
@example([2**61, 2**61, 2**61])
def test_damaged_masks_are_refused(counts):
    """Or read as the box of a mask of this size."""
    try:
        x1, y1, x2, y2 = rle_box({"size": [4, 5], "counts": counts})
    except InputError:
        return
    assert 0 <= x1 < x2 <= 5
    assert 0 <= y1 < y2 <= 4


def test_supervision(tmp_path):
    """Continuous corners; the image is a field of one's own."""
    row = {"x_min": 1.0, "y_min": 2.0, "x_max": 11.0, "y_max": 22.0, "class_id": 0, "confidence": 0.5, "tracker_id": ""}
    other = row | {"x_min": 0.0, "confidence": 0.75}
    expected = {"a.jpg": [[0, 2, 10, 21], [1, 2, 10, 21]]}
    rows = [row | {"file_name": "a.jpg"}, other | {"file_name": "a.jpg"}]
    assert found(write(tmp_path / "a.json", rows)) == expected
    lines = [",".join(rows[0]), *(",".join(map(str, own.values())) for own in rows)]
    for end in ("\r\n", "\n", "\r"):
        (tmp_path / "a.csv").write_bytes(("\ufeff" + end.join(lines) + end).encode())
        assert found(tmp_path / "a.csv") == expected
    with pytest.raises(InputError, match=r"no field names the image: write it with custom_data=\{'file_name': \.\.\}"):
        read_proposals(write(tmp_path / "b.json", [row]))
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="expected columns x_min, y_min, x_max, y_max of supervision"):
        read_proposals(tmp_path / "b.csv")


@pytest.fixture
def instance_data(monkeypatch):
    """The class InstanceData as mmengine has it, as far as pickles go."""
    module = types.ModuleType("mmengine.structures.instance_data")
    own = type("InstanceData", (), {"__module__": module.__name__})
    module.InstanceData = own
    for name in ("mmengine", "mmengine.structures"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return own


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_mmdetection_3(protocol, instance_data, tmp_path):
    instances = instance_data()
    instances.__dict__ |= {"_metainfo_fields": set(), "_data_fields": {"bboxes", "scores"}}
    instances.bboxes = np.array([[1, 2, 11, 22], [0, 2, 11, 22]], np.float32)
    instances.scores = np.array([0.5, 0.75], np.float32)
    empty = {"bboxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32)}
    content = {"val2017/1.jpg": instances, "val2017/2.jpg": empty}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol))
    boxes = [[0, 2, 10, 21], [1, 2, 10, 21]]
    assert found(tmp_path / "p.pkl") == {"val2017/1.jpg": boxes, "val2017/2.jpg": []}
    options = {"sizes": {"1": (30, 30), "2": (9, 9)}, "names": {"1": "coco/val2017/1.jpg", "2": "coco/val2017/2.jpg"}}
    assert found(tmp_path / "p.pkl", **options) == {"1": boxes, "2": []}


def test_mmdetection_2(tmp_path):
    """A list without names, in the order of the annotation file."""
    arrays = [np.array([[1, 2, 11, 22, 0.5], [0, 2, 11, 22, 0.75]], np.float32), np.zeros((0, 5), np.float32)]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(arrays))
    expected = {"9": [[0, 2, 10, 21], [1, 2, 10, 21]], "3": []}
    (tmp_path / "ids.txt").write_text("9\n3\n")
    assert found(tmp_path / "p.pkl", ids=tmp_path / "ids.txt") == expected
    ids = write(tmp_path / "ids.json", {"images": [{"id": 9, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]})
    assert found(tmp_path / "p.pkl", ids=ids) == expected
    with pytest.raises(InputError, match=r"names no images: give their ids .*--ids FILE"):
        read_proposals(tmp_path / "p.pkl")
    (tmp_path / "ids.txt").write_text("9\n")
    with pytest.raises(InputError, match="it has 2 images, and there are 1 ids"):
        read_proposals(tmp_path / "p.pkl", ids=tmp_path / "ids.txt")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([[arrays[0], arrays[1]]]))
    with pytest.raises(InputError, match="image '9': expected rows of 4 or 5 numbers; if it has an array per class"):
        read_proposals(tmp_path / "p.pkl", ids=tmp_path / "ids.txt")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([{"pred_instances": {"bboxes": arrays[0]}}]))
    with pytest.raises(InputError, match="a list of dicts; expected a dict of them by file name"):
        read_proposals(tmp_path / "p.pkl")


FORMATS = {
    "xyxy-inclusive": [10, 20, 39, 59],
    "xyxy": [10, 20, 40, 60],
    "xywh": [10, 20, 30, 40],
    "cxcywh": [25, 40, 30, 40],
}


@pytest.mark.parametrize(("form", "numbers"), FORMATS.items())
def test_text_and_npy_files(form, numbers, tmp_path):
    """One per image; five columns have the score last; the file or the caller says the format."""
    other = [3, 4, 5, 7] if form.startswith("xyxy") else [3, 4, 2, 4]
    for i, separator in enumerate((" ", ",", ", ")):
        (tmp_path / f"{i}.txt").write_text(f"{separator.join(map(str, numbers))}\n\n")
    np.save(tmp_path / "a.npy", np.array([[*other, 0.5], [*numbers, 0.75]]))
    (tmp_path / "empty.txt").touch()
    read = found(tmp_path, box_format=form)
    assert [read[name] for name in ("0", "1", "2", "empty")] == [[[10, 20, 39, 59]]] * 3 + [[]]
    assert read["a"][0] == [10, 20, 39, 59]
    assert len(read["a"]) == 2
    (tmp_path / "said.txt").write_text(f"# boxes: {form}\n{' '.join(map(str, numbers))}")
    assert found(tmp_path / "said.txt") == {"said": [[10, 20, 39, 59]]}
    with pytest.raises(InputError, match=r"said\.txt: box_format=xywh is given, but every file says its box format"):
        read_proposals(tmp_path / "said.txt", box_format="xywh")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 2 3 4", "its box format is unknown: begin it with a line '# boxes: FORMAT', or give box_format=FORMAT"),
        ("# boxes: yolo\n1 2 3 4", "its boxes are 'yolo', expected one of xyxy-inclusive, xyxy, xywh, cxcywh"),
        ("# boxes: xywh\n1 2 3\n", "line 2: expected 4 numbers, or 5 with the score, got '1 2 3'"),
        ("# boxes: xywh\n1 2 3 4\n1 2 3 4 5", "line 3: expected 4 numbers as in the lines before"),
        ("# boxes: xywh\n1 2 3 x", "line 2: expected 4 numbers"),
        ("# boxes: xywh\n1 2 nan 4", r"image 'a': box 0 is \(1, 2, nan, 5\)"),
        ("# boxes: xywh\n5 5 -2 4", r"image 'a': box 0 is \(5, 5, 2, 8\)"),
    ],
)
def test_what_text_files_may_not_hold(text, problem, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_proposals(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, r"expected COCO results .*, got \{\}"),
        ([1], "list: entry 0: expected an object, got 1"),
        ([{"a": 1, "b": 2}], "got a list of records with 'a', 'b'"),
        ([{"image_id": 1, "bbox": [1, 2, 3]}], r"image '1': box 0: expected a box of four numbers, got \[1, 2, 3\]"),
        ([{"image_id": 1, "bbox": [1, 2, 3, "4"]}], "image '1': box 0: expected a box of four numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 3, True]}], "image '1': box 0: expected a box of four numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 10**400]}], "image '1': box 0 is"),
        ([{"image_id": 1, "score": 1}], "image '1': box 0: it has neither bbox nor segmentation"),
        ([{"image_id": 1.5, "bbox": [1, 2, 3, 4]}], "entry 0: image_id: expected an id, a number or a text"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4]}], "entry 1: it has no 'image_id'"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}], "box 0: expected a number as its score, got high"),
        (
            {"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]},
            "annotation 0: no image has the id '1'",
        ),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, "image 1: the id '1' comes twice"),
        ([{"predicted_iou": 1, "segmentation": [[1, 2]]}], "box 0: expected a mask with size and counts"),
    ],
)
def test_json_of_another_form(content, problem, tmp_path):
    with pytest.raises(InputError, match=problem) as error:
        read_proposals(write(tmp_path / "a.json", content))
    assert str(error.value).startswith(f"{tmp_path}/a.json: ")


def test_a_score_beyond_all_numbers_is_the_best(tmp_path):
    rows = [{"image_id": 1, "bbox": [x, 2, 3, 4], "score": score} for x, score in ((1, 0.5), (5, 10**400), (9, 1e300))]
    assert [box[0] for box in found(write(tmp_path / "a.json", rows))["1"]] == [5, 9, 1]


IMAGES = {"1": "set/train/one.jpg", "2": "set/train/two.jpg", "3": "set/val/one.jpg"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("1", "2"), {"1": 0, "2": 1}),  # ids
        (("two", "3"), {"3": 1}),  # as many ids as names: ids
        (("two", "val/one"), {"2": 0, "3": 1}),
        (("two.jpg", "train/one.jpg", "val/one.jpg"), {"2": 0, "1": 1, "3": 2}),
        (("set/train/two.jpg", "x/one.jpg"), {"2": 0}),
        (("two.png",), {}),
    ],
)
def test_images_are_matched_by_id_or_by_file_name(keys, expected, tmp_path):
    np.savez(tmp_path / "p.npz", **{key: [[i, i, i, i]] for i, key in enumerate(keys)})
    sizes, problems = dict.fromkeys(IMAGES, (9, 9)), []
    if not expected:
        with pytest.raises(InputError, match=r"for 0 of 3 images, none for '1', '2', '3'; no image for its 'two\.png'"):
            read_proposals(tmp_path / "p.npz", sizes=sizes, names=IMAGES)
        return
    read = read_proposals(tmp_path / "p.npz", sizes=sizes, names=IMAGES, on_problem=problems.append)
    assert {name: int(boxes[0, 0]) for name, boxes in read.items()} == expected
    assert len(problems) == 3 - len(expected)


def test_a_file_name_of_two_images_is_reported_and_not_used(tmp_path):
    np.savez(tmp_path / "p.npz", **{"one": [[0, 0, 1, 1]], "two": [[0, 0, 1, 1]]})
    options = {"sizes": dict.fromkeys(IMAGES, (9, 9)), "names": IMAGES}
    with pytest.raises(InputError, match=r"p\.npz: 'one' may be the file name of '1', '3'"):
        read_proposals(tmp_path / "p.npz", **options)
    assert set(read_proposals(tmp_path / "p.npz", **options, on_problem=lambda _: None)) == {"2"}


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=3), st.integers(1, 9))
def test_a_union_takes_turns_and_each_box_once(parts, count):
    boxes = [np.array([[n, n, n + 1, n + 1] for n in part], np.float32).reshape(-1, 4) for part in parts]
    turns = [part[i] for i in range(6) for part in parts if i < len(part)]
    assert union(boxes, count)[:, 0].tolist() == list(dict.fromkeys(turns))[:count]


def test_several_files_are_merged_when_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=[[0, 0, 1, 1], [2, 2, 3, 3]], y=[[4, 4, 5, 5]])
    np.savez(tmp_path / "b.npz", x=[[2, 2, 3, 3], [6, 6, 7, 7]], z=[[8, 8, 9, 9]])
    assert found(f"{tmp_path}/a.npz+{tmp_path}/b.npz", max_boxes=3) == {
        "x": [[0, 0, 1, 1], [2, 2, 3, 3], [6, 6, 7, 7]],
        "y": [[4, 4, 5, 5]],
        "z": [[8, 8, 9, 9]],
    }
