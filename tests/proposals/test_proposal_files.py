import enum
import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from frcnn_jax.data.records import load_image
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.proposals.shards import write_proposals

BOXES = {"a": np.array([[0, 0, 9, 4], [3, 1, 29, 19]]), "b": np.zeros((0, 4)), "c": np.array([[5, 6, 5, 6]])}
SIZES = dict.fromkeys(BOXES, (20, 30))


def cells(*values):
    array = np.empty((len(values), 1), object)
    array[:, 0] = values
    return array


def write_shard(path, boxes=BOXES):
    write_proposals(path.with_suffix(".proposals"), boxes)
    return path.with_suffix(".proposals")


def write_npz(path, boxes=BOXES):
    np.savez(path.with_suffix(".npz"), **boxes)
    return path.with_suffix(".npz")


def write_mat(path, boxes=BOXES):
    rows = cells(*(b[:, [1, 0, 3, 2]] + 1 for b in boxes.values()))
    savemat(path.with_suffix(".mat"), {"images": cells(*boxes), "boxes": rows})
    return path.with_suffix(".mat")


def write_one_based(path, boxes=BOXES):
    path.mkdir()
    for name, array in boxes.items():
        savemat(path / f"{name}.mat", {"boxes": array + 1.0})
    return path


def write_demo(path, boxes=BOXES):
    path.mkdir()
    for name, array in boxes.items():
        savemat(path / f"{name}_boxes.mat", {"boxes": array.astype(np.uint16)})
    return path


class BoxMode(enum.IntEnum):
    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2


def write_pkl(path, boxes=BOXES, protocol=pickle.DEFAULT_PROTOCOL, mode=BoxMode.XYXY_ABS, dtype="f4", **changes):
    """As Detectron2 does, last in rank first; the module of its BoxMode is there only meanwhile."""
    rows = [(b + np.array([0, 0, 1, 1])).astype(dtype)[::-1] for b in boxes.values()]
    if mode == BoxMode.XYWH_ABS:
        rows = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1) for b in rows]
    logits = [np.arange(len(b), dtype="f4") for b in rows]
    content = {"ids": list(boxes), "boxes": rows, "objectness_logits": logits, "bbox_mode": mode, **changes}
    names = "detectron2", "detectron2.structures", "detectron2.structures.boxes"
    BoxMode.__module__ = names[-1]
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[names[-1]].BoxMode = BoxMode
    try:
        path.with_suffix(".pkl").write_bytes(pickle.dumps(content, protocol))
    finally:
        for name in names:
            del sys.modules[name]
    return path.with_suffix(".pkl")


WRITERS = [write_shard, write_npz, write_mat, write_one_based, write_demo, write_pkl]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_gives_our_boxes(write, tmp_path):
    source = write(tmp_path / "p")
    for sizes in (None, SIZES):
        found = read_proposals(source, sizes=sizes)
        assert set(found) == set(BOXES)
        for name, boxes in BOXES.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], boxes.reshape(-1, 4))
    np.testing.assert_array_equal(read_proposals(source, max_boxes=1)["a"], BOXES["a"][:1])
    assert set(read_proposals(source, sizes={"c": (20, 30)})) == {"c"}
    assert not read_proposals(source, sizes={})


def test_the_demo_files(shared):
    demo = shared / "voc" / "demo"
    sizes = {name: load_image(demo / f"{name}.jpg").shape[:2] for name in ("000004", "001551")}
    found = read_proposals(demo, sizes=sizes)
    assert [len(found[name]) for name in sizes] == [2888, 2057]
    assert found["000004"][:, 2].max() == 499


def test_shards_are_small_and_lie_in_the_file(tmp_path, rng):
    corners = np.sort(rng.integers(0, 500, (50, 2000, 2, 2)), axis=2).reshape(50, 2000, 4)
    boxes = {f"2008_{i:06}": array for i, array in enumerate(corners)}
    path = write_shard(tmp_path / "p", boxes)
    assert path.stat().st_size < 20_000 * 50
    found = read_proposals(path)
    assert all(isinstance(array, np.memmap) for array in found._parts[0].values())
    np.testing.assert_array_equal(found["2008_000049"], corners[49])
    again = write_shard(tmp_path / "q", found)
    assert again.read_bytes() == path.read_bytes()


def test_shards_hold_rounded_boxes(tmp_path):
    path = write_shard(tmp_path / "p", {"a": np.array([[0.4, 0.6, 8.5, 9.5]])})
    np.testing.assert_array_equal(read_proposals(path)["a"], [[0, 1, 8, 10]])


def test_boxes_of_equal_rank_keep_their_order(tmp_path):
    boxes = np.arange(200).reshape(50, 4)
    path = write_pkl(tmp_path / "p", {"a": boxes}, objectness_logits=[np.arange(50) // 25])
    found = read_proposals(path)["a"]  # `write_pkl` turns the rows round
    np.testing.assert_array_equal(found, np.concatenate([boxes[24::-1], boxes[:24:-1]]))


def test_several_files_are_one_set(tmp_path):
    write_npz(tmp_path / "p", {"a": BOXES["a"]})
    write_shard(tmp_path / "q", {"b": BOXES["b"]})
    write_pkl(tmp_path / "r", {"c": BOXES["c"]})
    assert set(read_proposals(tmp_path, sizes=SIZES)) == set(BOXES)
    assert set(read_proposals(f"{tmp_path}/p.npz+{tmp_path}/q.proposals")) == {"a", "b"}
    write_shard(tmp_path / "s", {"c": BOXES["c"]})
    with pytest.raises(InputError, match=r"s\.proposals: image 'c' is also in .*r\.pkl"):
        read_proposals(tmp_path)
    (tmp_path / "s.proposals").write_bytes(b"broken")
    problems = []
    assert set(read_proposals(tmp_path, sizes=SIZES, on_problem=problems.append)) == set(BOXES)
    assert len(problems) == 1
    assert "s.proposals: not a readable .proposals file" in str(problems[0])


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((0, 0, np.nan, 5), r"a\.npz: image 'a': box 1 is \(0, 0, nan, 5\); expected 0 <= x1 <= x2 < 30 and 0 <= y1"),
        ((0, 0, np.inf, 5), r"box 1 is \(0, 0, inf, 5\)"),
        ((9, 0, 8, 5), r"box 1 is \(9, 0, 8, 5\)"),
        ((0, 0, 30.5, 5), r"box 1 is \(0, 0, 30\.5, 5\)"),
        ((0, -1.5, 5, 5), r"box 1 is \(0, -1\.5, 5, 5\)"),
        ((0, 0, 5, 21), r"box 1 is \(0, 0, 5, 21\)"),
    ],
)
def test_a_bad_box_is_named_or_skipped(box, text, tmp_path):
    path = write_npz(tmp_path / "a", {"a": np.array([(0, 0, 5, 5), box, (1, 1, 2, 2)])})
    with pytest.raises(InputError, match=text):
        read_proposals(path, sizes={"a": (20, 30)})
    problems = []
    found = read_proposals(path, sizes={"a": (20, 30)}, on_problem=problems.append)
    np.testing.assert_array_equal(found["a"], [(0, 0, 5, 5), (1, 1, 2, 2)])
    assert len(problems) == 1


def test_up_to_a_pixel_over_the_edge_is_clipped(tmp_path):
    path = write_npz(tmp_path / "a", {"a": np.array([(-1, -0.25, 30, 20), (1.5, 2, 3, 4)])})
    expected = [(0, 0, 29, 19), (1.5, 2, 3, 4)]
    np.testing.assert_array_equal(read_proposals(path, sizes={"a": (20, 30)})["a"], expected)
    path = write_shard(tmp_path / "b", {"a": np.array([(0, 0, 30, 20)])})
    np.testing.assert_array_equal(read_proposals(path, sizes={"a": (20, 30)})["a"], expected[:1])


def test_one_based_files_hold_no_zero(tmp_path):
    savemat(tmp_path / "a.mat", {"boxes": np.array([[0, 1, 5, 5]], np.uint16)})
    np.testing.assert_array_equal(read_proposals(tmp_path / "a.mat", sizes={"a": (9, 9)})["a"], [[0, 0, 4, 4]])
    savemat(tmp_path / "a.mat", {"boxes": np.array([[1, 1, 11, 5]], np.uint16)})
    with pytest.raises(InputError, match=r"a\.mat: image 'a': box 0 is \(0, 0, 10, 4\)"):
        read_proposals(tmp_path / "a.mat", sizes={"a": (9, 9)})


def test_another_data_set(tmp_path):
    path = write_npz(tmp_path / "a")
    with pytest.raises(
        InputError,
        match=r"for 0 of 1 images, none for '000005'; no image for its 'a', 'b', 'c'; is it for another data set\?",
    ):
        read_proposals(path, sizes={"000005": (9, 9)})
    sizes = {**SIZES, "000005": (9, 9), "000007": (9, 9)}
    with pytest.raises(InputError, match=r"a\.npz: proposals for 3 of 5 images, none for '000005', '000007'$"):
        read_proposals(path, sizes=sizes)
    problems = []
    assert set(read_proposals(path, sizes=sizes, on_problem=problems.append)) == set(BOXES)
    assert len(problems) == 2
    np.savez(tmp_path / "none.npz")
    with pytest.raises(InputError, match="for 0 of 3 images, none for 'a', 'b', 'c'; is it for another data set"):
        read_proposals(tmp_path / "none.npz", sizes=SIZES)


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, 0])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["f4", ">f8"])
def test_pickles_of_every_protocol(mode, protocol, dtype, tmp_path):
    found = read_proposals(write_pkl(tmp_path / "p", mode=mode, protocol=protocol, dtype=dtype), sizes=SIZES)
    np.testing.assert_array_equal(found["a"], BOXES["a"])
    np.testing.assert_array_equal(found["c"], BOXES["c"])


def test_pickles_with_numbers_for_ids(tmp_path):
    for ids in ([7, 8, 9], np.array([7, 8, 9]), list(np.array([7, 8, 9]))):
        found = read_proposals(write_pkl(tmp_path / "p", ids=ids))
        np.testing.assert_array_equal(found["7"], BOXES["a"])
    logits = [[np.float32(1), np.float64(2)], [], [0.5]]  # and scores that are lists
    np.testing.assert_array_equal(read_proposals(write_pkl(tmp_path / "p", objectness_logits=logits))["a"], BOXES["a"])


@pytest.mark.parametrize("logits", [[1, 2, 3], [[1, 2]], [[1], [2]]])
@pytest.mark.parametrize("count", [0, 2])
def test_pickles_with_another_number_of_logits(tmp_path, logits, count):
    path = write_pkl(tmp_path / "p", {"a": np.ones((count, 4))}, objectness_logits=[logits])
    with pytest.raises(InputError, match=rf"image 'a': \({count}, 4\) boxes and \("):
        read_proposals(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectrons_older_names_and_arrays_by_column(tmp_path, protocol):
    content = {"indexes": ["a"], "boxes": [np.asfortranarray(BOXES["a"] + 0.0)], "scores": [np.array([1, 2])]}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol))
    np.testing.assert_array_equal(read_proposals(tmp_path / "p.pkl")["a"], BOXES["a"][::-1] - [0, 0, 1, 1])


def test_detectron2_boxes_are_a_pixel_wide_at_least(tmp_path):
    rows = [np.array([[2, 3, 2.5, 3.25], [4, 4, 4, 9]], np.float32)]
    path = write_pkl(tmp_path / "p", ids=["a"], boxes={}, objectness_logits=[np.zeros(2)])
    content = {"ids": ["a"], "boxes": rows, "objectness_logits": [np.array([2, 1])], "bbox_mode": 0}
    path.write_bytes(pickle.dumps(content))
    problems = []
    np.testing.assert_array_equal(read_proposals(path, on_problem=problems.append)["a"], [[2, 3, 2, 3]])
    assert "box 1 is (4, 4, 3, 8)" in str(problems[0])  # of no width


class Runs:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Runs(os.mkdir, "ran"), r"asks for posix\.mkdir, which is not a number; nothing was executed"),
        (Runs(eval, "1"), r"asks for builtins\.eval"),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",
            r"asks for torch\._utils.*; save its tensors as tensor\.numpy",
        ),
        (Runs(np.load, "a.npy"), r"asks for numpy\.load"),
        (np.array(["a", None], object), "an array of type 'O8'"),
        (np.zeros(2, "M8[s]"), "an array of type 'M8'"),
        (1, "expected a dict or a list, got a int"),
        ({"boxes": []}, "expected Detectron2's ids, boxes and objectness_logits, or .*, got boxes"),
    ],
)
def test_pickles_run_nothing(value, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.pkl").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    with pytest.raises(InputError, match=text):
        read_proposals("p.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x80\x04]r\xff\xff\xff\x7f.", "numbers more objects than it holds"),  # 16 GB of empty places
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "truncated"),  # a byte array of 1 TB
    ],
)
def test_pickles_take_no_more_memory_than_they_are_long(content, text, tmp_path):
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_proposals(tmp_path / "p.pkl")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bbox_mode": 2}, r"bbox_mode must be XYXY_ABS \(0\) or XYWH_ABS \(1\), got 2"),
        ({"ids": ["a"]}, "expected as many ids as boxes and logits, got 1, 3, 3"),
        (
            {"objectness_logits": [np.zeros(1), np.zeros(0), np.zeros(1)]},
            r"image 'a': \(2, 4\) boxes and \(1,\) scores",
        ),
    ],
)
def test_pickles_of_another_form(changes, text, tmp_path):
    with pytest.raises(InputError, match=text):
        read_proposals(write_pkl(tmp_path / "p", **changes))


def test_missing_and_unknown_files(tmp_path):
    (tmp_path / "a.xml").touch()
    for source, text in (
        ("b.npz", "b.npz: no such proposal file or folder"),
        ("a.xml", r"a.xml: expected a proposal file \(.proposals, .npz, .mat, .pkl, .json, .csv, .txt, .npy\)"),
        ("", r"no proposal files \(.*\) in this folder"),
        ("a.xml+b.npz", "a.xml: expected a proposal file"),
    ):
        with pytest.raises(InputError, match=text):
            read_proposals(str(tmp_path / source))


def test_what_can_not_be_written(tmp_path):
    with pytest.raises(InputError, match=r"written to \.proposals files"):
        write_proposals(tmp_path / "a.npz", BOXES)
    for value, problem in ((-1, "are not within 0 to 65535"), (65536, "are not within"), (np.nan, "must be finite")):
        with pytest.raises(InputError, match=f"boxes of image 'a' {problem}"):
            write_proposals(tmp_path / "a.proposals", {"a": np.array([[0, 0, value, 5]])})
    assert not list(tmp_path.iterdir())


def test_another_version_or_a_cut_shard(tmp_path):
    path = write_shard(tmp_path / "a")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(InputError, match="of version 2, expected 'frcnn_jax proposals' of version 1"):
        read_proposals(path)
    for offsets in ([1, 2, 2, 3], [0, 3, 2, 3]):
        path.write_bytes(content.replace(np.array([0, 2, 2, 3]).tobytes(), np.array(offsets).tobytes()))
        with pytest.raises(InputError, match="its offsets do not match its images"):
            read_proposals(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a\.proposals: not a readable \.proposals file"):
            read_proposals(path)


@pytest.mark.parametrize(("write", "what"), [(write_shard, "shard"), (write_npz, r"\.npz")])
def test_a_cut_file_is_called_that(write, what, tmp_path):
    path = write(tmp_path / "a")
    for content in (b"", b"PK", b"broken", path.read_bytes()[:70]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"of proposals \(cut short or not a {what}\)$"):
            read_proposals(path)


def is_read_or_refused(path, content):
    path.write_bytes(content)
    problems = []
    try:
        found = read_proposals(path, sizes=SIZES, on_problem=problems.append)
    except InputError as error:
        problems.append(error)
    else:
        for boxes in found.values():
            assert boxes.dtype == np.float32
            assert ((boxes >= 0) & (boxes <= (29, 19, 29, 19))).all()
            assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert all("\n" not in str(problem) for problem in problems)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """By ending, the bytes of a whole file."""
    folder = tmp_path_factory.mktemp("valid")
    files = [write(folder / "a") for write in (write_shard, write_npz, write_mat, write_pkl)]
    return {path.suffix: path.read_bytes() for path in files}


@pytest.mark.parametrize("suffix", [".mat", ".proposals", ".npz", ".pkl"])
@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8), st.floats(0, 1)
)
def test_a_damaged_file_is_one_line(suffix, valid, tmp_path_factory, changes, kept):
    content = bytearray(valid[suffix])
    for place, value in changes:
        content[int(place * len(content))] = value
    is_read_or_refused(tmp_path_factory.getbasetemp() / f"a{suffix}", content[: int(kept * 2 * len(content))])


numbers = st.one_of(
    st.floats(allow_nan=True),
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=4),
    st.booleans(),
    st.complex_numbers(),
)
matrices = st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=3)
fields = st.recursive(
    st.one_of(numbers, matrices),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda v: cells(*v)),
        st.dictionaries(st.sampled_from(["x", "y"]), inner, min_size=1, max_size=2),
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["images", "boxes", "other"]), fields, max_size=3))
@example({"images": cells("a", "b"), "boxes": cells(np.ones((2, 4)))})
@example({"images": "a", "boxes": cells(np.ones((2, 4)))})
@example({"images": cells("a"), "boxes": cells("b")})
@example({"images": cells("a", "a"), "boxes": cells(np.ones((2, 4)), np.ones((2, 4)))})
@example({"boxes": np.ones((2, 5))})
@example({"boxes": np.ones((2, 4), complex)})
@example({"boxes": "text"})
@example({"other": 1})
def test_mat_of_any_content_is_read_or_refused(tmp_path_factory, content):
    file = io.BytesIO()
    try:
        savemat(file, content)
    except (TypeError, ValueError, OverflowError):
        return  # no MATLAB type holds it
    for name in ("a.mat", "a_boxes.mat"):
        is_read_or_refused(tmp_path_factory.getbasetemp() / name, file.getvalue())
