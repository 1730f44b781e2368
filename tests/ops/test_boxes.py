import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.ops import boxes as box_ops

coordinates = st.integers(0, 60)


@st.composite
def box_arrays(draw, least=1, most=12):
    count = draw(st.integers(least, most))
    corners = [sorted(draw(st.tuples(coordinates, coordinates))) for _ in range(2 * count)]
    xs, ys = corners[:count], corners[count:]
    boxes = [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in zip(xs, ys, strict=True)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def naive_iou(a, b):
    """Counts pixels."""
    cells = [
        {(x, y) for x in range(int(x1), int(x2) + 1) for y in range(int(y1), int(y2) + 1)} for x1, y1, x2, y2 in (a, b)
    ]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


def test_iou_by_hand():
    # 10x10 and 10x10 pixels that share 5x10: 50 / 150
    a = np.array([[0, 0, 9, 9]], np.float32)
    b = np.array([[5, 0, 14, 9], [0, 0, 9, 9], [10, 0, 19, 9]], np.float32)
    np.testing.assert_allclose(box_ops.iou(a, b), [[1 / 3, 1, 0]], rtol=1e-6)


@given(box_arrays(most=3), box_arrays(most=3))
def test_iou_counts_pixels(a, b):
    np.testing.assert_allclose(box_ops.iou(a, b), [[naive_iou(p, q) for q in b] for p in a], rtol=1e-5)


@st.composite
def quarter_boxes(draw, count, least=0):
    """Boxes whose areas float32 holds exactly, continuous (x2 and y2 exclusive): small, large, far away, touching, and,
    for least 0, of no area; `draw` takes few places, so many coincide."""
    place = st.one_of(st.integers(0, 12), st.integers(-8, 60), st.integers(-(2**21), 2**21))
    side = st.one_of(st.integers(least, 8), st.integers(least, 4000))
    drawn = draw(st.lists(st.tuples(place, place, side, side), min_size=count, max_size=count))
    x, y, width, height = np.array(drawn, np.float32).T / 4
    return np.stack([x, y, x + width, y + height], axis=1)


def inclusive(boxes):
    return boxes - np.float32([0, 0, 1, 1])


@given(quarter_boxes(5, least=1), quarter_boxes(6, least=1))
def test_iou_equals_pycocotools(a, b):
    mask = pytest.importorskip("pycocotools.mask")
    sizes = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64) for boxes in (a, b)]
    expected = mask.iou(*sizes, [0] * len(b))
    np.testing.assert_allclose(box_ops.iou(inclusive(a), inclusive(b)), expected, rtol=1e-6)


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(quarter_boxes(8), quarter_boxes(9))
def test_iou_equals_torchvision(a, b):
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    expected = ops.box_iou(torch.tensor(a), torch.tensor(b))  # NaN for two boxes of no area
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(box_ops.iou(inclusive(a), inclusive(b)), expected)
    np.testing.assert_array_equal(box_ops.iou(jnp.asarray(inclusive(a)), inclusive(b)), expected)


def test_iou_of_nothing():
    assert box_ops.iou(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32)).shape == (0, 3)


def test_encode_by_hand():
    # widths are x2 - x1: RoI 10 wide centred on 5, ground truth 20 wide centred on 20
    roi = np.array([0, 0, 10, 20], np.float32)
    truth = np.array([10, 10, 30, 30], np.float32)
    np.testing.assert_allclose(box_ops.encode(roi, truth), [1.5, 0.5, np.log(2), 0], atol=1e-6)
    np.testing.assert_array_equal(box_ops.encode(roi[[0, 0, 0, 0]], roi[[0, 0, 0, 0]]), np.zeros(4))  # a pixel


@given(box_arrays(), box_arrays())
def test_decode_inverts_encode(a, b):
    count = min(len(a), len(b))
    one = np.float32([0, 0, 1, 1])
    a, b = a[:count] + one, b[:count] + one
    np.testing.assert_allclose(box_ops.decode(a, box_ops.encode(a, b)), b, atol=1e-3)


def test_numpy_and_jax_give_the_same(rng):
    a = np.sort(rng.uniform(0, 99, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    b = a[::-1] + np.float32(3)
    for function in (box_ops.encode, box_ops.iou):
        ours = function(jnp.asarray(a), jnp.asarray(b))
        assert isinstance(ours, jax.Array)
        np.testing.assert_allclose(ours, function(a, b), rtol=1e-5, atol=1e-6)


def test_clip_by_hand():
    boxes = np.array([[-5, -1, 700, 30], [10, 40, 20, 50]], np.float32)
    np.testing.assert_array_equal(box_ops.clip(boxes, 40, 100), [[0, 0, 99, 30], [10, 39, 20, 39]])


def test_flip_by_hand():
    np.testing.assert_array_equal(box_ops.flip(np.array([[0, 1, 3, 5]], np.float32), 10), [[6, 1, 9, 5]])


def test_scale_by_hand():
    boxes = np.array([[0, 1, 3, 5], [2, 2, 4, 4]], np.float32)
    np.testing.assert_array_equal(box_ops.scale(boxes, 2), [[0, 2, 6, 10], [4, 4, 8, 8]])
    each = box_ops.scale(boxes, np.array([2.0, 0.5]))
    np.testing.assert_array_equal(each, [[0, 2, 6, 10], [1, 1, 2, 2]])
    assert each.dtype == np.float32


@given(box_arrays())
def test_flip_twice_is_the_identity(boxes):
    np.testing.assert_array_equal(box_ops.flip(box_ops.flip(boxes, 77), 77), boxes)


def test_unique_rois_keeps_the_first_of_each():
    rois = np.array([[0, 0, 160, 160], [32, 0, 160, 160], [3, 5, 158, 162]], np.float32)
    np.testing.assert_array_equal(box_ops.unique_rois(rois, 1 / 16), [0, 1])


def test_unique_rois_rounds_as_the_pooling_does():
    # at scale 1/4, 8 -> 2 and 10 -> 2.5 -> 3: other cells; half to even would give 2 and 2
    rois = np.array([[8, 0, 40, 40], [10, 0, 40, 40]], np.float32)
    np.testing.assert_array_equal(box_ops.unique_rois(rois, 1 / 4), [0, 1])
    np.testing.assert_array_equal(box_ops.unique_rois(rois - [[10], [10]], 1 / 4), [0, 1])  # -2 -> -0.5 -> -1


def test_pyramid_level_is_the_one_nearest_to_224_squared():
    rois = np.array([[0, 0, 111, 111], [0, 0, 223, 223], [0, 0, 447, 447], [0, 0, 0, 0], [0, 0, 999, 999]], np.float32)
    factors = np.array([2.0, 1.0, 0.5], np.float32)
    np.testing.assert_array_equal(box_ops.pyramid_level(rois, factors), [0, 1, 2, 0, 2])
    np.testing.assert_array_equal(box_ops.pyramid_level(rois, np.ones(2)), np.zeros(5))
    # areas of 1 and 16 times 5903 pixels are 44,273 below and 44,272 above 224 x 224; those of 5904 as in a mirror
    strips = np.array([[0, 0, 5902, 0], [0, 0, 5903, 0]], np.float32)
    np.testing.assert_array_equal(box_ops.pyramid_level(strips, np.array([1.0, 4.0])), [1, 0])
    assert box_ops.pyramid_level(rois[:0], factors).shape == (0,)
    assert box_ops.pyramid_level(rois, factors).dtype == np.int32


def test_unique_rois_of_different_levels_are_different():
    rois = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(box_ops.unique_rois(rois, 1 / 16, np.array([1, 0, 1, 2])), [0, 1, 3])
