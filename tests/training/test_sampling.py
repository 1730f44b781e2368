import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.training.sampling import RoITargets, assign, sample, target_statistics

GT = np.array([[0, 0, 9, 9], [20, 0, 39, 19]], np.float32)
GT_LABELS = np.array([3, 1], np.int32)


def random_boxes(rng, count, side=60):
    return np.sort(rng.integers(0, side, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)


def test_assign_by_hand():
    # half of the first object and as much again; nothing; the second object moved by 2 of its 20 columns
    proposals = np.array([[0, 0, 9, 4], [50, 50, 59, 59], [22, 0, 41, 19]], np.float32)
    got = assign(proposals, GT, GT_LABELS)
    np.testing.assert_array_equal(got.rois, np.concatenate([GT, proposals]))
    np.testing.assert_array_equal(got.labels, [3, 1, 3, 0, 1])
    np.testing.assert_allclose(got.overlaps, [1, 1, 0.5, 0, 360 / 440], rtol=1e-6)
    np.testing.assert_allclose(
        got.deltas,
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 2.5 / 4, 0, np.log(9 / 4)], [0, 0, 0, 0], [-2 / 19, 0, 0, 0]],
        atol=1e-5,
    )


def test_of_equal_overlaps_the_first_object_is_assigned():
    # two identical objects, then two 5 columns left and right of the third proposal
    gt = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [25, 0, 34, 9], [35, 0, 44, 9]], np.float32)
    proposals = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [30, 0, 39, 9]], np.float32)
    got = assign(proposals, gt, np.array([2, 1, 4, 3]))
    np.testing.assert_array_equal(got.labels, [2, 2, 4, 3, 2, 2, 4])
    np.testing.assert_allclose(got.overlaps, [1, 1, 1, 1, 1, 1, 50 / 150])
    np.testing.assert_allclose(got.deltas[6], [-5 / 9, 0, 0, 0], atol=1e-6)


def test_assign_equals_a_loop(rng):
    proposals, gt, labels = (
        random_boxes(rng, 50),
        random_boxes(rng, 4) + np.float32([0, 0, 1, 1]),
        rng.integers(1, 6, 4),
    )
    got = assign(proposals, gt, labels)
    for i, roi in enumerate(np.concatenate([gt, proposals])):
        overlaps = [float(box_ops.iou(roi[None], g[None])[0, 0]) for g in gt]
        best = int(np.argmax(overlaps))
        assert got.overlaps[i] == pytest.approx(overlaps[best])
        assert got.labels[i] == (labels[best] if overlaps[best] > 0 else 0)
        if overlaps[best] > 0:
            np.testing.assert_allclose(got.deltas[i], box_ops.encode(roi, gt[best]), rtol=1e-6)


@pytest.mark.parametrize("count", [0, 3])
def test_assign_without_objects(count, rng):
    got = assign(random_boxes(rng, count), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    assert got.rois.shape == (count, 4)
    assert got.rois.dtype == np.float32
    assert not got.labels.any()
    assert not got.overlaps.any()


def test_assign_without_proposals():
    got = assign(np.zeros((0, 4), np.float32), GT, GT_LABELS)
    np.testing.assert_array_equal(got.labels, GT_LABELS)


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 64), st.integers(0, 1000))
def test_sample_counts_and_kinds(fg_candidates, bg_candidates, count, seed):
    rng = np.random.default_rng(seed)
    overlaps = np.concatenate(
        [rng.uniform(0.5, 1, fg_candidates), rng.uniform(0.1, 0.4999, bg_candidates), rng.uniform(0, 0.0999, 5)]
    ).astype(np.float32)
    total = len(overlaps)
    rois = np.arange(4 * total, dtype=np.float32).reshape(-1, 4)
    candidates = RoITargets(rois, np.full(total, 2, np.int32), np.ones((total, 4), np.float32), overlaps)
    got = sample(candidates, rng, count=count)
    fg = min(round(count * 0.25), fg_candidates)
    bg = min(count - fg, bg_candidates)
    assert len(got.rois) == fg + bg
    assert (got.overlaps[:fg] >= 0.5).all()
    assert ((got.overlaps[fg:] >= 0.1) & (got.overlaps[fg:] < 0.5)).all()
    np.testing.assert_array_equal(got.labels, [2] * fg + [0] * bg)
    assert not got.deltas[fg:].any()
    assert len({tuple(roi) for roi in got.rois}) == len(got.rois)  # none twice


def candidates_of(overlaps):
    """RoIs (i, i, i, i) of class 2 with these overlaps."""
    count = len(overlaps)
    rois = np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)
    return RoITargets(rois, np.full(count, 2, np.int32), np.ones((count, 4), np.float32), np.float32(overlaps))


@pytest.mark.parametrize(
    ("count", "fraction", "foreground", "background"),
    [(0, 0.5, 0, 0), (6, 0.0, 0, 2), (6, 0.2, 1, 2), (10, 0.25, 2, 2), (6, 0.3, 2, 2), (2, 1.0, 2, 0), (1, 0.4, 0, 1)],
)
def test_sample_by_hand(count, fraction, foreground, background):
    """Foreground has an overlap of 0.75 or more, background one of 0.25 or more and under 0.5."""
    below = {bound: np.nextafter(np.float32(bound), np.float32(0)) for bound in (0.25, 0.5, 0.75)}
    candidates = candidates_of([0.75, 1, below[0.75], 0.5, below[0.5], 0.25, below[0.25], 0])
    rng = np.random.default_rng(0)
    got = sample(candidates, rng, count=count, fg_fraction=fraction, fg_iou=0.75, bg_iou=(0.25, 0.5))
    np.testing.assert_array_equal(got.labels, [2] * foreground + [0] * background)
    assert set(got.rois[:foreground, 0]) <= {0, 1}
    assert set(got.rois[foreground:, 0]) <= {4, 5}


def test_every_candidate_is_drawn_as_often():
    """2 of 8 foreground and 6 of 24 background candidates: in 400 draws each comes 100 times, with a standard
    deviation of 8.7."""
    candidates, rng = candidates_of([0.9] * 8 + [0.2] * 24), np.random.default_rng(0)
    times = sum(np.bincount(sample(candidates, rng, count=8).rois[:, 0].astype(int), minlength=32) for _ in range(400))
    assert times.sum() == 400 * 8
    assert np.abs(times - 100).max() < 40


def test_sample_is_a_function_of_the_seed(rng):
    candidates = assign(random_boxes(rng, 300), GT, GT_LABELS)
    first, second, other = (
        sample(candidates, np.random.default_rng(s), count=8, bg_iou=(0, 0.5)).rois for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_sample_leaves_the_candidates_alone(rng):
    candidates = assign(random_boxes(rng, 100), GT, GT_LABELS)
    before = [field.copy() for field in candidates]
    sample(candidates, rng, count=64, bg_iou=(0, 0.5))
    for field, copy in zip(candidates, before, strict=True):
        np.testing.assert_array_equal(field, copy)


@pytest.mark.parametrize("flip", [True, False])
def test_target_statistics_equal_all_at_once(rng, flip):
    near = np.repeat(GT, 20, axis=0)
    images = [assign(near + rng.integers(0, 3, near.shape).astype(np.float32), GT, GT_LABELS) for _ in range(5)]
    if flip:
        mirrored = [
            assign(box_ops.flip(t.rois[2:], 60), box_ops.flip(GT, 60), GT_LABELS) for t in images
        ]  # the first two are the ground truth
    mean, std = target_statistics(images, num_classes=4, flip=flip)
    every = images + (mirrored if flip else [])
    for label in range(5):
        deltas = np.concatenate([t.deltas[(t.overlaps >= 0.5) & (t.labels == label)] for t in every]).astype(np.float64)
        if label in GT_LABELS:
            np.testing.assert_allclose(mean[label], deltas.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(std[label], deltas.std(axis=0), rtol=1e-4)
        else:
            np.testing.assert_array_equal((mean[label], std[label]), (np.zeros(4), np.ones(4)))


def test_target_statistics_by_hand():
    """Overlaps of the least IoU count. Mirroring makes dx 1 and 3 to 1, -1, 3, -3: mean 0, variance 5."""
    deltas = np.array([[1, 1, 1, 5], [3, 3, 1, 7], [9, 9, 9, 9]], np.float32)
    image = RoITargets(deltas, np.full(3, 1, np.int32), deltas, np.float32([0.75, 1, 0.5]))
    mean, std = target_statistics([image], num_classes=1, fg_iou=0.75)
    np.testing.assert_array_equal(mean, [[0, 0, 0, 0], [0, 2, 1, 6]])
    np.testing.assert_allclose(std, [[1, 1, 1, 1], [np.sqrt(5), 1, 1, 1]])
    assert target_statistics([image], num_classes=1)[0][1, 1] == pytest.approx(13 / 3)  # 0.5 or more by default


@pytest.mark.parametrize("bg_iou", [(0.1, 0.5), (0, 0.5), (0.3, 0.4)])
def test_all_candidates_of_an_image_without_objects_are_background(rng, bg_iou):
    proposals = random_boxes(rng, 50)
    nothing = assign(proposals, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    got = sample(nothing, np.random.default_rng(0), count=16, bg_iou=bg_iou)
    assert len({tuple(roi) for roi in got.rois}) == 16
    assert not got.labels.any()
    assert not got.deltas.any()
    assert len(sample(nothing, rng, count=99, bg_iou=bg_iou).rois) == 50


def test_the_floor_holds_in_an_image_with_objects_that_no_proposal_meets():
    far = np.array([[50, 50, 59, 59]] * 9, np.float32)
    got = sample(assign(far, GT, GT_LABELS), np.random.default_rng(0), count=8)
    np.testing.assert_array_equal(got.labels > 0, [True, True])  # the objects alone
