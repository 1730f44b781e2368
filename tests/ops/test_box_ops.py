"""Boxes as torchvision has them: hand-worked numbers in every run, torchvision itself where it is installed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frcnn_jax import ops
from frcnn_jax.ops._box_ops import (
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    masks_to_boxes,
    remove_small_boxes,
    sigmoid_focal_loss,
)

PAIRWISE = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")

# 4 x 2 at the origin; the same moved right by 2; 2 x 2 further right; around all
A, MOVED, APART, AROUND = (0, 0, 4, 2), (2, 0, 6, 2), (8, 0, 10, 2), (0, 0, 10, 4)


@pytest.mark.parametrize("xp", [np, jnp])
def test_by_hand(xp):
    one, others = xp.asarray([A], np.float32), xp.asarray([A, MOVED, APART, AROUND], np.float32)
    np.testing.assert_array_equal(box_area(others), [8, 8, 4, 40])
    iou = np.array([1, 4 / 12, 0, 8 / 40])
    np.testing.assert_allclose(box_iou(one, others)[0], iou, rtol=1e-6)
    # enclosing boxes of 8, 12, 20, 40; all of the first two is covered, of the third 12
    np.testing.assert_allclose(generalized_box_iou(one, others)[0], iou - [0, 0, 8 / 20, 0], rtol=1e-6)
    # centres (2, 1), (4, 1), (9, 1), (5, 2); squared diagonals 20, 40, 104, 116
    distance = iou - np.array([0, 4 / 40, 49 / 104, 10 / 116])
    np.testing.assert_allclose(distance_box_iou(one, others)[0], distance, rtol=1e-6)
    # aspect ratios 2, 2, 1, 2.5
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan([2, 2, 1, 2.5])) ** 2
    complete = distance - v * v / (1 - iou + v + 1e-7)
    np.testing.assert_allclose(complete_box_iou(one, others)[0], complete, rtol=1e-6)
    for name, expected in zip(
        LOSSES, (1 - iou + [0, 0, 0.4, 0], 1 - distance, 1 - complete), strict=True
    ):  # fmt: skip
        loss = getattr(ops, name)
        np.testing.assert_allclose(loss(one, others), expected, atol=1e-6)
        np.testing.assert_allclose(loss(one, others, "sum"), expected.sum(), rtol=1e-6)
        np.testing.assert_allclose(loss(one, others, "mean"), expected.mean(), rtol=1e-6)
        assert isinstance(loss(one, others), jax.Array) == (xp is jnp)
        assert loss(one[:0], one[:0], "mean") == 0


def test_formats_by_hand():
    box = np.float32([1, 2, 5, 10])
    np.testing.assert_array_equal(box_convert(box, "xyxy", "xywh"), [1, 2, 4, 8])
    np.testing.assert_array_equal(box_convert(box, "xyxy", "cxcywh"), [3, 6, 4, 8])
    np.testing.assert_array_equal(box_convert(box, "cxcywh", "xywh"), [-1.5, -3, 5, 10])
    np.testing.assert_array_equal(box_convert(box, "xywh", "xyxy"), [1, 2, 6, 12])
    np.testing.assert_array_equal(box_convert(box, "xywh", "xywh"), box)


def test_clipping_and_small_boxes_by_hand():
    boxes = np.float32([[-3, 2, 5, 50], [1, 1, 4, 3]])
    np.testing.assert_array_equal(clip_boxes_to_image(boxes, (40, 4)), [[0, 2, 4, 40], [1, 1, 4, 3]])
    per_box = clip_boxes_to_image(boxes, (np.array([40, 2]), np.array([4, 3])))
    np.testing.assert_array_equal(per_box, [[0, 2, 4, 40], [1, 1, 3, 2]])
    assert list(remove_small_boxes(boxes, 2)) == [True, True]  # the second is 3 x 2
    assert list(remove_small_boxes(boxes, 2.5)) == [True, False]


def test_masks_by_hand():
    masks = np.zeros((3, 4, 5), np.uint8)
    masks[0, 1:3, 2:5] = 7
    masks[2, 3, 0] = 1
    np.testing.assert_array_equal(masks_to_boxes(masks), [[2, 1, 4, 2], [0, 0, 0, 0], [0, 3, 0, 3]])
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


def test_focal_loss_by_hand():
    """At logit 0 the cross entropy is log 2, and a wrong probability of 1/2 squared discounts it to a quarter."""
    loss = sigmoid_focal_loss(np.zeros(2, np.float32), np.float32([1, 0]))
    np.testing.assert_allclose(loss, np.log(2) / 4 * np.array([0.25, 0.75]), rtol=1e-6)
    unweighted = sigmoid_focal_loss(np.zeros(2, np.float32), np.float32([1, 0]), alpha=-1, gamma=0, reduction="sum")
    np.testing.assert_allclose(unweighted, 2 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("name", [*PAIRWISE, *LOSSES])
def test_gradients_are_those_of_finite_differences(name, rng):
    corner = rng.uniform(0, 20, (2, 6, 2))
    boxes, others = np.concatenate([corner, corner + rng.uniform(5, 20, (2, 6, 2))], axis=-1)
    with jax.enable_x64(True):
        # the aspect ratio's weight is a constant in the gradient
        weightless = "complete" not in name
        total = jax.jit(lambda boxes: getattr(ops, name)(boxes, jnp.asarray(others)).sum())
        gradient = jax.grad(total)(jnp.asarray(boxes))
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0
        step = 1e-6 * rng.normal(size=boxes.shape)
        change = (total(jnp.asarray(boxes + step)) - total(jnp.asarray(boxes - step))) / 2
        if weightless:
            np.testing.assert_allclose((gradient * step).sum(), change, rtol=1e-5)


def test_the_weight_of_the_aspect_ratio_is_a_constant_in_the_gradient():
    """torchvision 0.29.1 in float64: `complete_box_iou_loss(a, b, reduction="sum").backward(); a.grad`."""
    a, b = np.array([[0, 0, 10, 10.0]]), np.array([[2, 4, 14, 10.0]])
    expected = [[-0.036362656043, -0.035842212475, -0.046870707672, -0.02093261096]]
    with jax.enable_x64(True):
        found = jax.grad(lambda a: ops.complete_box_iou_loss(a, jnp.asarray(b), reduction="sum"))(jnp.asarray(a))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int32])
def test_short_types_are_computed_in_float32(dtype):
    found = box_iou(jnp.asarray([A], dtype), jnp.asarray([MOVED], dtype))
    assert found.dtype == np.float32
    assert float(found[0, 0]) == pytest.approx(1 / 3)


COORDINATES = st.floats(-50, 50, width=32, allow_subnormal=False) | st.integers(-3, 3).map(float)
BOXES = arrays(np.float32, (6, 4), elements=COORDINATES)


def _boxes(corners, min_side):
    """Boxes from two corners in any order, each side at least so long."""
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    return np.concatenate([low, np.maximum(high, low + np.float32(min_side))], axis=1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*PAIRWISE, *LOSSES])
@settings(max_examples=1000, derandomize=False, print_blob=True)
@given(BOXES, BOXES)
def test_equals_torchvision(name, first, second):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torchvision.ops")
    first, second = (_boxes(corners, 1 if name in LOSSES else 0.5) for corners in (first, second))
    expected = getattr(peers, name)(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    for xp in (np, jnp):
        np.testing.assert_allclose(getattr(ops, name)(xp.asarray(first), xp.asarray(second)), expected, atol=1e-5)


@pytest.mark.nightly
@settings(max_examples=1000, derandomize=False, print_blob=True)
@given(BOXES, st.floats(0, 40, width=32), st.integers(1, 60), st.integers(1, 60))
def test_ops_of_one_list_equal_torchvision(corners, min_size, height, width):
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    boxes = _boxes(corners, 0)
    tensor = torch.from_numpy(boxes)
    for xp in (np, jnp):
        ours = xp.asarray(boxes)
        np.testing.assert_allclose(ops.box_area(ours), peers.box_area(tensor), rtol=1e-6)
        clipped = peers.clip_boxes_to_image(tensor, (height, width))
        np.testing.assert_array_equal(ops.clip_boxes_to_image(ours, (height, width)), clipped)
        large = peers.remove_small_boxes(tensor, min_size)
        np.testing.assert_array_equal(np.flatnonzero(ops.remove_small_boxes(ours, min_size)), large)
        for formats in itertools.product(("xyxy", "xywh", "cxcywh"), repeat=2):
            expected = peers.box_convert(tensor, *formats)
            np.testing.assert_allclose(ops.box_convert(ours, *formats), expected, atol=1e-5)


@pytest.mark.nightly
@settings(max_examples=1000, derandomize=False, print_blob=True)
@given(arrays(np.bool_, (3, 5, 7)), st.integers(0, 34))
def test_masks_equal_torchvision(masks, pixel):
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    masks.reshape(3, -1)[:, pixel] = True  # torchvision refuses empty ones
    for xp in (np, jnp):
        np.testing.assert_array_equal(ops.masks_to_boxes(xp.asarray(masks)), peers.masks_to_boxes(torch.tensor(masks)))


@pytest.mark.nightly
@settings(max_examples=1000, derandomize=False, print_blob=True)
@given(
    arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)),
    arrays(np.bool_, (4, 3)),
    st.sampled_from([-1, 0.25, 0.9]),
    st.sampled_from([0, 1, 2, 3.5]),
    st.sampled_from(["none", "mean", "sum"]),
)
def test_focal_loss_equals_torchvision(logits, targets, alpha, gamma, reduction):
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    targets = targets.astype(np.float32)
    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    expected = peers.sigmoid_focal_loss(torch.from_numpy(logits), torch.from_numpy(targets), **options)
    np.testing.assert_allclose(sigmoid_focal_loss(logits, targets, **options), expected, rtol=1e-5, atol=1e-5)
