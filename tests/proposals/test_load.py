from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from examples import make_dataset

from frcnn_jax.data.problems import problem_handler
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.load import load_proposals
from frcnn_jax.proposals.search import SelectiveSearch, selective_search

BOXES = np.array([[0, 0, 29, 19], [1, 2, 40, 9], [1, 2, 9, 9]])


def broken():
    raise InputError("im.jpg: broken")


def ignore(problem):
    pass


def test_proposals_of_a_file(tmp_path, capsys):
    np.savez(tmp_path / "p.npz", im0=BOXES, other=BOXES)
    options = {"source": tmp_path / "p.npz", "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match=r"image 'im0': box 1 is \(1, 2, 40, 9\)"):
        load_proposals(make_dataset(), **options)
    with problem_handler("skip", "images and proposals") as on_problem:
        dataset, proposals = load_proposals(make_dataset(), **options, on_problem=on_problem)
    assert [record.image_id for record in dataset.records] == ["im0"]
    assert dataset.class_names == make_dataset().class_names
    np.testing.assert_array_equal(proposals["im0"], BOXES[[0, 2]])
    assert "images and proposals: skipped 2 objects, boxes or images; the first: " in capsys.readouterr().err
    _, proposals = load_proposals(make_dataset(), **options, max_boxes=1, on_problem=ignore)
    assert len(proposals["im0"]) == 1
    assert not (tmp_path / "cache").exists()


def test_no_image_left(tmp_path):
    np.savez(tmp_path / "p.npz", im0=BOXES[:, :3], im1=BOXES[:, :3])
    options = {"source": tmp_path / "p.npz", "cache_dir": tmp_path / "cache", "on_problem": ignore}
    with pytest.raises(
        InputError, match=r"none of the 2 images can be used; first problem: .*p\.npz: image 'im0': expected \(N, 4\)"
    ):
        load_proposals(make_dataset(), **options)
    with pytest.raises(InputError, match=r"none of the 0 images can be used$"):
        load_proposals(Dataset(("cat",), []), **options)
    dataset = Dataset(("cat",), [replace(record, load=broken) for record in make_dataset().records])
    for source in (tmp_path / "p.npz", "fast"):
        with pytest.raises(InputError, match=r"none of the 2 images can be used; first problem: im\.jpg: broken"):
            load_proposals(dataset, **{**options, "source": source})


def test_files_of_proposals_load_images_only_to_skip_some(tmp_path):
    np.savez(tmp_path / "p.npz", im0=BOXES[:1], im1=BOXES[:1])
    first, second = make_dataset().records
    dataset = Dataset(("cat",), [replace(first, load=broken), second])
    options = {"source": tmp_path / "p.npz", "cache_dir": tmp_path / "cache"}
    assert len(load_proposals(dataset, **options)[0].records) == 2
    assert load_proposals(dataset, **options, on_problem=ignore)[0].records == [second]


def test_searched_proposals(tmp_path):
    first, second = make_dataset().records
    dataset = Dataset(("cat",), [first, replace(second, load=broken)])
    options = {"cache_dir": tmp_path / "cache", "workers": 1, "max_boxes": 9}
    with pytest.raises(InputError, match=r"im\.jpg: broken"):
        load_proposals(dataset, **options)
    kept, proposals = load_proposals(dataset, **options, on_problem=ignore)
    assert kept.records == [first]
    np.testing.assert_array_equal(proposals["im0"], selective_search(first.load(), max_boxes=9))
    assert len(list((tmp_path / "cache").rglob("*.boxes"))) == 1


def test_options_of_the_search_are_handed_on(tmp_path, monkeypatch):
    search = mock.Mock(return_value={"im0": BOXES})
    monkeypatch.setattr("frcnn_jax.proposals.load.search_images", search)
    options = {"cache_dir": tmp_path, "workers": 3, "executor": object()}
    load_proposals(make_dataset(), source="quality", size=99, max_boxes=7, **options)
    assert search.call_args.args == (mock.ANY, SelectiveSearch("quality", 99, 7))
    assert search.call_args.kwargs == {**options, "on_problem": mock.ANY}


def test_a_function_proposes(tmp_path):
    """Its boxes are clipped, checked and cut; `supervision.Detections` have continuous boxes."""

    class Found:
        xyxy = np.array([[0, 0, 10, 10], [2, 2, 5, 5]])

    options = {"cache_dir": tmp_path, "max_boxes": 2}
    for found in (Found(), [[0, 0, 9, 9], [2, 2, 4, 4], [3, 3, 4, 4]]):
        _, proposals = load_proposals(make_dataset(), source=lambda image, found=found: found, **options)
        for name in ("im0", "im1"):
            assert proposals[name].tolist() == [[0, 0, 9, 9], [2, 2, 4, 4]]
    with pytest.raises(InputError, match=r"image 'im0': box 1 is \(1, 2, 40, 9\)"):
        load_proposals(make_dataset(), source=lambda _: BOXES, **options)
    with pytest.raises(InputError, match=r"image 'im0': .*must be \(N, 4\), got \(3, 3\)"):
        load_proposals(make_dataset(), source=lambda _: BOXES[:, :3], **options)


def test_the_union_of_a_search_and_a_file(tmp_path):
    """The first of both, the second of both and so on, each once, at most max_boxes of them."""
    np.savez(tmp_path / "p.npz", im0=BOXES[[0, 2]], im1=BOXES[:1])
    options = {"cache_dir": tmp_path / "cache", "workers": 1}
    dataset = make_dataset()
    searched = {record.image_id: selective_search(record.load()) for record in dataset.records}
    for max_boxes in (2000, 3):
        options["max_boxes"] = max_boxes
        kept, proposals = load_proposals(dataset, source=f"standard+{tmp_path}/p.npz", **options)
        assert [record.image_id for record in kept.records] == list(proposals) == ["im0", "im1"]
        for name, own in (("im0", BOXES[[0, 2]]), ("im1", BOXES[:1])):
            parts = (searched[name], own)
            rounds = [boxes[i] for i in range(max(map(len, parts))) for boxes in parts if i < len(boxes)]
            expected = list(dict.fromkeys(tuple(box.tolist()) for box in rounds))
            assert list(map(tuple, proposals[name].tolist())) == expected[:max_boxes]


def test_no_such_source(tmp_path):
    for source in ("slow", "standard+missing.npz"):
        with pytest.raises(InputError, match=rf"'{source[-11:]}' is no proposal file or folder, and no search"):
            load_proposals(make_dataset(), source=source, cache_dir=tmp_path)
