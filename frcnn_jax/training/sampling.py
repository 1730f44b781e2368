"""Sampling of foreground and background RoIs and their targets in an image (section 2.3). NumPy, float32.

Shape letters: N candidate boxes, R RoIs drawn, G ground-truth boxes, K foreground classes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from frcnn_jax.data.records import check_boxes, check_labels
from frcnn_jax.errors import InputError
from frcnn_jax.ops import boxes as box_ops


class RoITargets(NamedTuple):
    """Boxes of an image, with targets from the ground-truth box of highest IoU."""

    rois: np.ndarray  # (N, 4) float32
    labels: np.ndarray  # (N,) int32: that box's class; 0 without overlap
    deltas: np.ndarray  # (N, 4) float32: regression targets towards it, not normalised; 0 without overlap
    overlaps: np.ndarray  # (N,) float32: the IoU with it


def assign(proposals: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray) -> RoITargets:
    """Assign targets to ground-truth boxes and proposals, in this order.

    Of ground-truth boxes with equal IoU, such as identical boxes, the first wins, as in the paper's code: of identical
    boxes of two classes, even the second takes the first one's label. Identical proposals have identical targets.

    Args:
        proposals: `(N, 4)`.
        gt_boxes: `(G, 4)`.
        gt_labels: `(G,)` integers, 1 to K.

    Returns:
        Targets of the G + N boxes.

    Raises:
        InputError: Boxes are not finite `(N, 4)` numbers, or labels not `(G,)` integers of at least 1.
    """
    gt_boxes = check_boxes(gt_boxes, "gt_boxes")
    gt_labels = check_labels(gt_labels, gt_boxes, "gt_labels")
    rois = np.concatenate([gt_boxes, check_boxes(proposals, "proposals")])
    if not len(gt_boxes):
        nothing = np.zeros(len(rois), np.float32)
        return RoITargets(rois, nothing.astype(np.int32), np.zeros_like(rois), nothing)
    overlaps = box_ops.iou(rois, gt_boxes)
    best, overlap = overlaps.argmax(axis=1), overlaps.max(axis=1)
    labels = np.where(overlap > 0, gt_labels[best], 0).astype(np.int32)
    deltas = np.where(overlap[:, None] > 0, box_ops.encode(rois, gt_boxes[best]), 0).astype(np.float32)
    return RoITargets(rois, labels, deltas, overlap)


def _check_targets(targets: RoITargets) -> None:
    shapes = [np.shape(field) for field in targets]
    count = shapes[1][:1]
    if shapes != [(*count, 4), count, (*count, 4), count]:
        raise InputError(f"expected rois (N, 4), labels (N,), deltas (N, 4) and overlaps (N,), got {shapes}")


def sample(
    targets: RoITargets,
    rng: np.random.Generator,
    *,
    count: int,
    fg_fraction: float = 0.25,
    fg_iou: float = 0.5,
    bg_iou: tuple[float, float] = (0.1, 0.5),
) -> RoITargets:
    """Draw RoIs without replacement, foreground first.

    The floor of `bg_iou` is that of the paper, for images with objects. In an image without any (no candidate overlaps
    one), every candidate is background.

    Args:
        targets: The candidates, left unchanged.
        rng: Source of randomness.
        count: Number of RoIs; fewer are drawn if there are too few candidates.
        fg_fraction: Maximum fraction of foreground RoIs, in [0, 1]; their number is rounded.
        fg_iou: Minimum IoU of foreground.
        bg_iou: Range [low, high) of the IoU of background; low is 0 in an image without objects.

    Returns:
        The RoIs drawn; labels and deltas of background are 0.

    Raises:
        InputError: A number is out of its range, or the fields of `targets` differ in length.
    """
    _check_targets(targets)
    if count < 0 or not 0 <= fg_fraction <= 1:
        raise InputError(f"expected count >= 0 and fg_fraction in [0, 1], got {count} and {fg_fraction}")
    (fg,) = np.nonzero(targets.overlaps >= fg_iou)
    low = bg_iou[0] if targets.overlaps.any() else 0
    (bg,) = np.nonzero((targets.overlaps >= low) & (targets.overlaps < bg_iou[1]))
    fg = rng.permutation(fg)[: round(count * fg_fraction)]
    bg = rng.permutation(bg)[: count - len(fg)]
    drawn = RoITargets(*(field[np.concatenate([fg, bg])] for field in targets))
    drawn.labels[len(fg) :] = 0
    drawn.deltas[len(fg) :] = 0
    return drawn


def target_statistics(
    targets: Iterable[RoITargets], *, num_classes: int, fg_iou: float = 0.5, flip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each class's regression targets, in one pass over the images.

    Args:
        targets: Targets per image.
        num_classes: K.
        fg_iou: Minimum IoU of the boxes that count.
        flip: Whether mirrored images, in which dx changes sign, count as well.

    Returns:
        The mean, `(K + 1, 4)` float32, 0 for background and classes without boxes; and the standard deviation,
        `(K + 1, 4)` float32, 1 for background, classes without boxes and coordinates that do not vary.

    Raises:
        InputError: A label exceeds K, or the fields of an image's targets differ in length.
    """
    count = np.zeros((num_classes + 1, 1))
    total, squares = np.zeros((2, num_classes + 1, 4))
    for image in targets:
        _check_targets(image)
        if (largest := image.labels.max(initial=0)) > num_classes:
            raise InputError(f"labels must be at most {num_classes}, got {largest}")
        fg = image.overlaps >= fg_iou
        deltas = image.deltas[fg].astype(np.float64)
        np.add.at(count, image.labels[fg], 1)
        np.add.at(total, image.labels[fg], deltas * ([0, 1, 1, 1] if flip else 1))
        np.add.at(squares, image.labels[fg], deltas**2)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
