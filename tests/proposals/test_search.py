import sys
from importlib import metadata
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from frcnn_jax.data.records import load_image
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.proposals import search
from frcnn_jax.proposals.search import MODES, SelectiveSearch, selective_search


@pytest.fixture(scope="module")
def image():
    return draw_scene(0, "test", 1).image


def test_settings_of_the_modes():
    """Those that docs/proposals.md measures; every change is another search."""
    assert MODES == {
        "standard": (350, ("hsv", "lab"), (75, 150, 300), ("csf", "sf", "f"), 0.8),
        "fast": (300, ("hsv", "lab"), (75, 150), ("csf", "sf"), 0.6),
        "paper": (None, (), (), (), 0.8),
        "quality": (None, (), (), (), 0.8),
    }


def check_within(boxes, image):
    assert boxes.dtype == np.float32
    assert (boxes == boxes.round()).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] < [image.shape[1], image.shape[0]]).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert len(set(map(tuple, boxes))) == len(boxes)


@pytest.mark.parametrize("mode", MODES)
def test_boxes_are_different_and_lie_within_the_image(image, mode):
    boxes = selective_search(image, mode=mode)
    check_within(boxes, image)
    assert 50 < len(boxes) <= 2000
    np.testing.assert_array_equal(selective_search(image, mode=mode, max_boxes=20), boxes[:20])


def search_of(pixels):
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(pixels)
    return search


def corners(found):
    x, y, width, height = found.T
    return set(zip(x, y, x + width - 1, y + height - 1, strict=True))


@pytest.mark.parametrize(("mode", "switch"), [("paper", "Fast"), ("quality", "Quality")])
def test_the_boxes_are_opencvs(image, mode, switch, tmp_path):
    """Those of the image as OpenCV reads it, in BGR; only their order depends on `rand`."""
    Image.fromarray(image).save(tmp_path / "a.png")
    search = search_of(cv2.imread(str(tmp_path / "a.png")))
    getattr(search, f"switchToSelectiveSearch{switch}")()
    assert set(map(tuple, selective_search(image, mode=mode, max_boxes=10**6))) == corners(search.process())


@pytest.mark.parametrize("mode", ["standard", "fast"])
def test_own_modes_differ_from_opencvs_in_the_settings_alone(image, mode, monkeypatch):
    """With OpenCV's own settings they find its boxes."""
    parts = cv2.ximgproc.segmentation
    monkeypatch.setattr(
        parts, "createSelectiveSearchSegmentationStrategyFill", parts.createSelectiveSearchSegmentationStrategyTexture
    )
    settings = MODES[mode]._replace(thresholds=(150, 300, 450), similarities=("csf", "sf"), sigma=0.8)  # f: texture
    monkeypatch.setitem(MODES, mode, settings)
    search = search_of(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    search.clearStrategies()
    for names in (("Color", "Size", "Texture"), ("Size", "Texture")):
        own = [getattr(parts, f"createSelectiveSearchSegmentationStrategy{name}")() for name in names]
        search.addStrategy(parts.createSelectiveSearchSegmentationStrategyMultiple(*own))
    assert set(map(tuple, selective_search(image, mode=mode, max_boxes=10**6))) == corners(search.process())


def test_a_larger_image_is_shrunk_and_its_boxes_are_scaled_back(image):
    """An image of doubled pixels, searched at half its size, has the boxes of the image itself, doubled."""
    boxes = selective_search(image, mode="paper")
    doubled = image.repeat(2, axis=0).repeat(2, axis=1)
    found = selective_search(doubled, mode="paper", size=max(image.shape))
    np.testing.assert_array_equal(found, 2 * boxes + [0, 0, 1, 1])
    np.testing.assert_array_equal(selective_search(image, mode="paper", size=max(image.shape)), boxes)
    check_within(odd := selective_search(doubled[:-7, :-3], mode="paper", size=143), doubled[:-7, :-3])
    assert len(odd) > 50


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        *((mode, shape) for mode in MODES for shape in ((1, 1), (1, 2), (3, 2), (19, 19), (7, 1))),
        *((mode, shape) for mode in ("standard", "fast") for shape in ((1, 5000), (5000, 3))),
    ],
)
def test_odd_images_have_at_least_one_box(mode, shape, rng):
    """An image of one colour has one, the whole image."""
    blank = np.full((*shape, 3), 7, np.uint8)
    assert selective_search(blank, mode=mode).tolist() == [[0, 0, shape[1] - 1, shape[0] - 1]]
    noise = rng.integers(0, 256, blank.shape).astype(np.uint8)
    check_within(boxes := selective_search(noise, mode=mode), noise)
    assert len(boxes)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "1", "P"])
def test_images_of_other_pixels_are_searched(mode, image, tmp_path):
    if mode == "I;16":
        cv2.imwrite(str(tmp_path / "a.png"), image[..., 0].astype(np.uint16) << 8)
    else:
        Image.fromarray(image).convert(mode).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png")
    check_within(boxes := selective_search(found), found)
    assert len(boxes) > 10


@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (np.zeros((4, 4, 3), np.uint8), {"mode": "best"}, "one of standard, fast, paper, quality, got 'best'"),
        (np.zeros((4, 4, 3), np.uint8), {"size": 0}, "size of the searched image must be at least 1, got 0"),
        (np.zeros((4, 4, 3), np.uint8), {"max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        (np.zeros((4, 4), np.uint8), {}, r"got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), {}, "float32"),
    ],
)
def test_errors_say_what_came(image, options, text):
    with pytest.raises(InputError, match=text):
        selective_search(image, **options)


@pytest.mark.parametrize(
    ("installed", "text"),
    [
        (["opencv-python"], "installed: opencv-python, which lacks it; pip uninstall -y opencv-python && pip install"),
        (
            ["opencv-contrib-python-headless", "opencv-python", "numpy"],
            "opencv-contrib-python-headless and opencv-python, which overwrite each other's files; pip uninstall -y ",
        ),
        ([], "installed: another build, which lacks it; pip install opencv-contrib-python-headless"),
    ],
)
def test_opencv_without_its_extra_modules(image, installed, text, monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda: [SimpleNamespace(name=name) for name in installed])
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(InputError, match=text):
        SelectiveSearch()(image)


def test_no_opencv(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"needs opencv-contrib-python-headless: .*; pip install opencv-contrib"):
        SelectiveSearch()(image)


def test_very_large_images_are_shrunk_for_any_search(monkeypatch):
    monkeypatch.setattr(search, "MAX_SEARCHED", 1200)
    for size in (None, 10**6):
        small, factors = search.shrink(np.zeros((300, 400, 3), np.uint8), size)
        assert small.shape == (30, 40, 3)
        assert factors.tolist() == [10, 10]
