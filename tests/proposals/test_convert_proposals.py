import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax import make_proposals
from frcnn_jax.convert_proposals import WRITERS
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.files import read_proposals

names = st.text("ab/é.0123456789", min_size=1, max_size=12).filter(lambda name: name.strip("/.") == name)
boxes = st.lists(st.tuples(*(st.integers(0, 2000) for _ in range(4))), min_size=1, max_size=9)


def corners(rows):
    x, y, w, h = np.array(rows, np.float32).reshape(-1, 4).T
    return np.stack([x, y, x + w, y + h], axis=1)


@pytest.mark.parametrize("first", WRITERS)
@pytest.mark.parametrize("second", WRITERS)
@settings(max_examples=20, deadline=None)
@given(st.dictionaries(names, boxes, min_size=1, max_size=4))
def test_every_pair_of_formats_keeps_boxes_and_their_order(first, second, tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("convert")
    expected = {name: corners(rows) for name, rows in content.items()}
    WRITERS[first](folder / f"a{first}", expected)
    make_proposals.main(["convert", str(folder / f"a{first}"), "--out", str(folder / f"b{second}")])
    found = read_proposals(folder / f"b{second}")
    assert set(found) == set(expected)
    for name, own in expected.items():
        np.testing.assert_array_equal(found[name], own)


def test_says_what_the_source_was_taken_for(tmp_path, capsys):
    box = {"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "a.json").write_text(json.dumps([box, box | {"image_id": "x.jpg"}]))
    np.savez(tmp_path / "b.npz", **{"7": [[0, 0, 1, 1], [1, 2, 3, 5]], "empty": np.zeros((0, 4))})
    make_proposals.main(["convert", f"{tmp_path}/a.json+{tmp_path}/b.npz", "--out", str(tmp_path / "c.json")])
    kinds = "COCO results and .npz arrays"
    text = f"{kinds}: 3 images (1 without boxes, which COCO results leave out), 3 boxes -> {tmp_path}/c.json\n"
    assert capsys.readouterr().out == text
    assert json.loads((tmp_path / "c.json").read_text()) == [
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1.0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5},
        {"image_id": "x.jpg", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1.0},
    ]
    make_proposals.main(["convert", f"{tmp_path}/b.npz", "--out", str(tmp_path / "c.npz")])
    assert capsys.readouterr().out == f".npz arrays: 2 images, 2 boxes -> {tmp_path}/c.npz\n"


def test_an_image_may_have_any_name(tmp_path):
    """As a keyword, `file` would be an argument of np.savez."""
    WRITERS[".npz"](tmp_path / "a.npz", {"file": corners([[0, 0, 1, 1]]), "allow_pickle": corners([])})
    assert set(read_proposals(tmp_path / "a.npz")) == {"file", "allow_pickle"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["a.npz", "--out", "b.mat"], r"--out b\.mat: expected a file \.proposals, \.npz, \.json, \.pkl"),
        (["a.npz", "--out", "no/b.npz"], r"no/b\.npz: the folder does not exist"),
        (["empty.txt", "--out", "c.json", "--boxes", "xywh"], "hold no images without boxes, and no image has any"),
        (["none.npz", "--out", "c.npz"], r"none\.npz: expected proposals, it has no images"),
        (["b.npz", "--out", "c.npz"], r"b\.npz: no such proposal file or folder"),
        (["a.npz", "--out", "c.npz", "--boxes", "xywh"], r"a\.npz: box_format=xywh is given, but every file says"),
        (["a.npz", "--out", "c.npz", "--ids", "ids.txt"], r"a\.npz: ids=ids\.txt is given, but every file names"),
        (["a.txt", "--out", "c.npz"], r"a\.txt: .*its box format is unknown.*--boxes"),
        (["a.txt", "--out", "c.proposals", "--boxes", "xywh"], r"image 'a': box 0 is \(0, 0, 65539, 0\)"),
    ],
)
def test_what_it_refuses(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", a=[[0, 0, 1, 1]])
    np.savez("none.npz")
    (tmp_path / "ids.txt").write_text("a\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text("0 0 65540 1\n")
    with pytest.raises(InputError, match=text):
        make_proposals.main(["convert", *arguments])
    assert not list(tmp_path.glob("c.*"))
