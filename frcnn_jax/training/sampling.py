"""Foreground and background RoIs of one image, and their targets (paper, section 2.3). Pure NumPy, float32.

Shape letters: N candidate boxes, R RoIs drawn, G ground-truth boxes, K foreground classes.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from frcnn_jax.ops import boxes as box_ops


class RoITargets(NamedTuple):
    """Labels and targets of boxes against an image's ground truth."""

    rois: np.ndarray  # (N, 4) float32
    labels: np.ndarray  # (N,) int32: the class of the ground truth of the best IoU; 0 where there is no overlap
    deltas: np.ndarray  # (N, 4) float32 towards that ground truth, not normalised; 0 where there is no overlap
    overlaps: np.ndarray  # (N,) float32: the best IoU


def assign(proposals: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray) -> RoITargets:
    """Ground truth `(G, 4)`, which is a candidate too and comes first, and proposals `(N, 4)`, each with its target."""
    rois = np.concatenate([gt_boxes, proposals]).astype(np.float32)
    if not len(gt_boxes):
        nothing = np.zeros(len(rois), np.float32)
        return RoITargets(rois, nothing.astype(np.int32), np.zeros_like(rois), nothing)
    overlaps = box_ops.iou(rois, gt_boxes)
    best, overlap = overlaps.argmax(axis=1), overlaps.max(axis=1)
    labels = np.where(overlap > 0, gt_labels[best], 0).astype(np.int32)
    deltas = np.where(overlap[:, None] > 0, box_ops.encode(rois, gt_boxes[best]), 0).astype(np.float32)
    return RoITargets(rois, labels, deltas, overlap)


def sample(
    targets: RoITargets,
    rng: np.random.Generator,
    *,
    count: int,
    fg_fraction: float = 0.25,
    fg_iou: float = 0.5,
    bg_iou: tuple[float, float] = (0.1, 0.5),
) -> RoITargets:
    """Draws up to `count` RoIs without replacement: at most `count * fg_fraction`, rounded, with IoU >= fg_iou, the
    rest background with IoU in [low, high). Too few candidates give fewer RoIs. Background's labels and deltas become
    0.
    """
    (fg,) = np.nonzero(targets.overlaps >= fg_iou)
    (bg,) = np.nonzero((targets.overlaps >= bg_iou[0]) & (targets.overlaps < bg_iou[1]))
    fg = rng.permutation(fg)[: round(count * fg_fraction)]
    bg = rng.permutation(bg)[: count - len(fg)]
    drawn = RoITargets(*(field[np.concatenate([fg, bg])] for field in targets))
    drawn.labels[len(fg) :] = 0
    drawn.deltas[len(fg) :] = 0
    return drawn


def target_statistics(
    targets: Iterable[RoITargets], num_classes: int, *, fg_iou: float = 0.5, flip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each class's deltas over all boxes with IoU >= fg_iou, in one pass.

    Args:
        targets: of every image.
        num_classes: K.
        flip: whether each image's mirror image, in which dx changes its sign, counts too.

    Returns:
        mean and std, `(K + 1, 4)` float32; 0 and 1 for background, for classes without boxes and where nothing varies.
    """
    count = np.zeros((num_classes + 1, 1))
    total, squares = np.zeros((2, num_classes + 1, 4))
    for image in targets:
        fg = image.overlaps >= fg_iou
        deltas = image.deltas[fg].astype(np.float64)
        np.add.at(count, image.labels[fg], 1)
        np.add.at(total, image.labels[fg], deltas * ([0, 1, 1, 1] if flip else 1))
        np.add.at(squares, image.labels[fg], deltas**2)
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
