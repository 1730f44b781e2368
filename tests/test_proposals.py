import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.proposals import cached_selective_search, make_proposals, selective_search
from frcnn_jax.synthetic import read_synthetic


@pytest.fixture(scope="module")
def images():
    return {record.image_id: record.load for record in read_synthetic("test", 3).records}


def test_boxes_lie_within_the_image(images):
    for load in images.values():
        image = load()
        boxes = selective_search(image)
        assert boxes.dtype == np.float32
        assert len(boxes) > 50
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] < [image.shape[1], image.shape[0]]).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_the_same_image_gives_the_same_bytes_in_any_worker(images, tmp_path):
    here = {name: selective_search(load(), max_boxes=60) for name, load in images.items()}
    reverse = dict(reversed(images.items()))
    for workers, order in ((1, images), (2, reverse)):
        there = make_proposals(order, cache_dir=tmp_path / str(workers), max_boxes=60, workers=workers)
        assert list(there) == list(order)
        for name, boxes in here.items():
            np.testing.assert_array_equal(there[name], boxes)


def test_cache_is_read_and_mended(images, tmp_path, monkeypatch):
    load = next(iter(images.values()))
    boxes = cached_selective_search(load, tmp_path, "fast", 50)
    (entry,) = tmp_path.rglob("*.npy")
    assert entry.stat().st_size < 20_000
    entry.write_bytes(entry.read_bytes()[:100])  # as a full disk would leave it
    np.testing.assert_array_equal(cached_selective_search(load, tmp_path, "fast", 50), boxes)
    monkeypatch.setattr("frcnn_jax.proposals.selective_search", None)
    np.testing.assert_array_equal(cached_selective_search(load, tmp_path, "fast", 50), boxes)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [entry]


def test_other_parameters_are_other_entries(images, tmp_path):
    load = next(iter(images.values()))
    assert len(cached_selective_search(load, tmp_path, "fast", 50)) == 50
    assert len(cached_selective_search(load, tmp_path, "fast", 40)) == 40


def test_a_blank_image_is_no_error():
    assert len(selective_search(np.full((40, 50, 3), 7, np.uint8))) <= 1


def _broken():
    raise InputError("a.jpg: can't be read")


def test_a_worker_hands_on_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: can't be read"):
        make_proposals({"a": _broken}, cache_dir=tmp_path, workers=1)


@pytest.mark.parametrize(
    ("image", "mode", "text"),
    [
        (np.zeros((4, 4, 3), np.uint8), "best", "one of fast, quality, got 'best'"),
        (np.zeros((4, 4), np.uint8), "fast", r"got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "fast", "float32"),
    ],
)
def test_errors_say_what_came(image, mode, text):
    with pytest.raises(InputError, match=text):
        selective_search(image, mode=mode)
