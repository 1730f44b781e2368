"""NMS of continuous boxes, by class, and of the detector's inclusive boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.ops import _nms
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops._box_ops import box_iou
from frcnn_jax.ops._nms import batched_nms, inclusive_nms, nms

KINDS = ((nms, box_iou), (inclusive_nms, box_ops.iou))


def naive_nms(boxes, scores, threshold, iou=box_iou):
    left = [i for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])]
    kept = []
    while left:
        best, *left = left
        kept.append(int(best))
        left = [i for i in left if not iou(boxes[[best]], boxes[[i]])[0, 0] > threshold]
    return kept


def selected(found):
    indices, valid = map(np.asarray, found)
    assert not indices[~valid].any()
    assert (np.diff(valid.astype(int)) <= 0).all()
    return indices[valid].tolist()


@st.composite
def quarter_boxes(draw, count):
    """Boxes whose areas float32 holds exactly: small, large, far away, touching and of no area; many coincide."""
    place = st.one_of(st.integers(0, 12), st.integers(-8, 60), st.integers(-(2**21), 2**21))
    side = st.one_of(st.integers(0, 8), st.integers(0, 4000))
    drawn = draw(st.lists(st.tuples(place, place, side, side), min_size=count, max_size=count))
    x, y, width, height = np.array(drawn, np.float32).T / 4
    return np.stack([x, y, x + width, y + height], axis=1)


@pytest.mark.parametrize(("select", "iou"), KINDS)
@given(
    quarter_boxes(12),
    st.lists(st.sampled_from([0.1, 0.5, 0.9, -np.inf, np.nan]), min_size=12, max_size=12),
    st.sampled_from([1, 7, 14]),
)
def test_equals_a_loop(select, iou, boxes, scores, max_outputs):
    scores = np.array(scores, np.float32)
    with np.errstate(invalid="ignore"):
        expected = naive_nms(boxes, scores, np.float32(0.3), iou)[:max_outputs]
    assert selected(select(boxes, scores, iou_threshold=0.3, max_outputs=max_outputs)) == expected


def test_by_hand():
    # continuous: the second is 5/15 of the first and of the third, which touch; the last is 0.3 of the first
    boxes = np.float32([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 3]])
    scores = np.float32([1, 1, 1, 1])  # equal ones keep their order
    for threshold, kept in ((0.0, [0, 2]), (0.29, [0, 2]), (0.31, [0, 2, 3]), (0.34, [0, 1, 2, 3])):
        assert selected(nms(boxes, scores, iou_threshold=threshold, max_outputs=5)) == kept
    # inclusive: of 10 x 10 pixels, the first and fourth touch, but share no pixel; the last is 0.3 of the first
    boxes = np.float32([[0, 0, 9, 9], [0, 0, 9, 9], [9, 0, 18, 9], [10, 0, 19, 9], [0, 0, 9, 2]])
    scores = np.float32([1, 1, 1, 2, 1])
    for threshold, kept in ((0.0, [3, 0]), (0.29, [3, 0]), (0.3, [3, 0, 4])):
        assert selected(inclusive_nms(boxes, scores, iou_threshold=threshold, max_outputs=5)) == kept


def test_the_threshold_is_not_rounded_up():
    """As in torchvision, which compares in float64: the float32 nearest to 0.3 is larger than 0.3."""
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 3]])
    assert selected(nms(boxes, np.float32([2, 1]), iou_threshold=0.3, max_outputs=2)) == [0]
    assert selected(nms(boxes, np.float32([2, 1]), iou_threshold=np.float32(0.3), max_outputs=2)) == [0, 1]


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("select", "iou"), KINDS)
def test_under_jit_and_vmap(select, iou, rng, iou_threshold):
    boxes = np.sort(rng.uniform(0, 50, (3, 40, 2, 2)), axis=2).reshape(3, 40, 4).astype(np.float32)
    scores = rng.uniform(0, 1, (3, 40)).astype(np.float32)
    run = jax.jit(jax.vmap(lambda b, s: select(b, s, iou_threshold=iou_threshold, max_outputs=40)))
    for i, found in enumerate(zip(*run(boxes, scores), strict=True)):
        assert selected(found) == naive_nms(boxes[i], scores[i], iou_threshold, iou)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("spread", [10, 300])
def test_tiles_do_not_show(count, spread, rng):
    """Tiles are of 64 boxes: fewer, as many, more, several; with many and few overlaps."""
    centre, size = rng.uniform(0, spread, (count, 2)), rng.uniform(5, 30, (count, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32)
    expected = naive_nms(boxes, scores, 0.4)
    for most in {1, len(expected) - 1, len(expected), count + 70} - {0}:
        assert selected(nms(boxes, scores, iou_threshold=0.4, max_outputs=most)) == expected[:most]


def test_boxes_of_float64():
    """Of two pairs, the first differs from the threshold in the tenth digit."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5 + 1e-9], [20, 0, 30, 10], [20, 0, 30, 5.0]])
    with jax.enable_x64(True):
        arguments = jnp.asarray(boxes), jnp.arange(4, 0, -1.0)
        assert selected(nms(*arguments, iou_threshold=0.5, max_outputs=4)) == [0, 2, 3]
        classes = jnp.zeros(4, int)
        assert selected(batched_nms(*arguments, classes, iou_threshold=0.5, max_outputs=4)) == [0, 2, 3]


@pytest.mark.parametrize("classes", [1, 3, 40, 1000])
def test_classes_do_not_suppress_each_other(classes, rng):
    """Tiles of 64 boxes hold a part of a class, or several classes."""
    boxes = np.sort(rng.uniform(0, 60, (500, 2, 2)), axis=1).reshape(500, 4).astype(np.float32)
    scores, classes = rng.integers(0, 100, 500).astype(np.float32), rng.integers(-1, classes - 1, 500)
    expected = []
    for k in np.unique(classes):
        (own,) = np.nonzero(classes == k)
        expected += [own[i] for i in naive_nms(boxes[own], scores[own], 0.3)]
    expected.sort(key=lambda i: (-scores[i], i))
    for most in (1, 10, len(expected), 600):
        found = batched_nms(boxes, scores, classes, iou_threshold=0.3, max_outputs=most)
        assert selected(found) == expected[:most]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_classes_beyond_32_bits_are_not_taken_for_one_another(dtype):
    classes = np.array([2**40, 0, 2**32, 2**40], dtype)
    found = batched_nms(np.ones((4, 1)) * [0, 0, 9, 9], np.arange(4.0), classes, iou_threshold=0.5, max_outputs=4)
    assert selected(found) == [3, 2, 1]


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_equal_scores_keep_their_order_whatever_the_class(count, random):
    scores = np.float32([random.choice([-np.inf, -1.5, -0.0, 0.0, 1e-40, 2, 3e38]) for _ in range(count)])
    for dtype in (np.int8, np.uint8, np.int32, np.uint32):
        classes = np.array([random.choice([-2, -1, 0, 255]) for _ in range(count)]).astype(dtype)
        found = _nms._order(jnp.asarray(classes), jnp.asarray(scores))
        np.testing.assert_array_equal(found, np.lexsort((scores, classes)))


def test_the_order_of_more_boxes_than_16_bits_count(rng):
    scores = rng.integers(0, 1000, (1 << 16) + 1).astype(np.float32)
    for some in (scores, scores[1:]):
        np.testing.assert_array_equal(_nms._order(jnp.asarray(some)), np.argsort(some, kind="stable"))


def test_wrong_classes():
    for classes in ([0, 1], [0.0, 1.0, 2.0], None):
        with pytest.raises(ValueError, match=r"classes must be integers \(3,\), one per box"):
            batched_nms(np.zeros((3, 4)), np.zeros(3), classes, iou_threshold=0.3, max_outputs=3)
    with pytest.raises(ValueError, match=r"scores must be \(3,\), one per box, got \(2,\)"):
        batched_nms(np.zeros((3, 4)), np.zeros(2), [0, 1, 2], iou_threshold=0.3, max_outputs=3)


def test_memory_grows_with_the_boxes_not_their_square():
    def extra(count):
        arrays = (jax.ShapeDtypeStruct((count, 4), np.float32), jax.ShapeDtypeStruct((count,), np.float32))
        run = jax.jit(lambda boxes, scores: nms(boxes, scores, iou_threshold=0.5, max_outputs=count))
        return run.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert extra(50_000) < 50e6
    assert extra(50_000) < 6 * extra(10_000)


def test_gradients_pass_through_what_is_selected(rng):
    boxes = jnp.asarray(np.sort(rng.uniform(0, 50, (20, 2, 2)), axis=1).reshape(20, 4), jnp.float32)

    def total(boxes):
        indices, valid = nms(boxes, jnp.arange(20.0), iou_threshold=0.3, max_outputs=20)
        return jnp.where(valid[:, None], boxes[indices], 0).sum()

    kept = selected(nms(boxes, jnp.arange(20.0), iou_threshold=0.3, max_outputs=20))
    np.testing.assert_array_equal(jax.grad(total)(boxes)[:, 0], np.isin(np.arange(20), kept))


nms_of_all = jax.jit(lambda boxes, scores, threshold: nms(boxes, scores, iou_threshold=threshold, max_outputs=24))


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(
    quarter_boxes(24),
    st.lists(st.integers(0, 5), min_size=24, max_size=24),
    st.one_of(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1)),
)
def test_equals_torchvision(boxes, scores, threshold):
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    scores, classes = np.array(scores, np.float32), np.arange(24) % 3
    tensors = [torch.tensor(array) for array in (boxes, scores, classes)]
    traced = np.float32(threshold)
    expected = peers.nms(*tensors[:2], float(traced))
    assert selected(nms_of_all(boxes, scores, traced)) == expected.tolist()
    for given_threshold in (0.3, 0.5):
        found = nms(boxes, scores, iou_threshold=given_threshold, max_outputs=24)
        assert selected(found) == peers.nms(*tensors[:2], given_threshold).tolist()
        # torchvision moves classes apart by offsets, which round: compare each class alone
        found = selected(batched_nms(boxes, scores, classes, iou_threshold=given_threshold, max_outputs=24))
        for k in range(3):
            own = np.flatnonzero(classes == k)
            alone = peers.nms(tensors[0][own], tensors[1][own], given_threshold)
            assert [i for i in found if classes[i] == k] == own[alone.numpy()].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("tile", [1, 7, 512])
def test_any_tile_gives_the_same(tile, rng, monkeypatch):
    boxes = np.sort(rng.uniform(0, 100, (300, 2, 2)), axis=1).reshape(300, 4).astype(np.float32)
    scores = rng.permutation(300).astype(np.float32)
    expected = selected(nms(boxes, scores, iou_threshold=0.3, max_outputs=300))
    monkeypatch.setattr(_nms, "_TILE", tile)
    jax.clear_caches()
    assert selected(nms(boxes, scores, iou_threshold=0.3, max_outputs=300)) == expected
    jax.clear_caches()
