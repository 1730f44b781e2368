"""Box arithmetic.

Boxes are `(..., 4)` float32 (x1, y1, x2, y2) in absolute pixels, 0-based and **inclusive**: a box of one pixel has
x1 == x2. Areas, and so IoU and NMS, use widths x2 - x1 + 1; regression uses x2 - x1, as the paper's code does.
All but `nms` take NumPy or JAX arrays and give back the same kind.

Shape letters: R RoIs, G ground-truth boxes, N boxes.
"""

from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or jax.Array

_EPS = 1e-14  # the paper's code adds this to regression widths


def area(boxes: Array) -> Array:
    """Area in pixels, `(...,)`, of `(..., 4)` boxes."""
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of every pair.

    Args:
        boxes: `(..., N, 4)`.
        others: `(..., G, 4)`.

    Returns:
        `(..., N, G)` in [0, 1].
    """
    xp = boxes.__array_namespace__()
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    width = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0]) + 1
    height = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1]) + 1
    overlap = xp.clip(width, 0, None) * xp.clip(height, 0, None)
    return overlap / (area(a) + area(b) - overlap)


def _centre_and_size(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2] + _EPS
    return boxes[..., :2] + 0.5 * size, size


def encode(rois: Array, gt_boxes: Array) -> Array:
    """Regression targets (dx, dy, dw, dh) of `(..., 4)` ground-truth boxes from `(..., 4)` RoIs (R-CNN, appendix C)."""
    xp = rois.__array_namespace__()
    (centre, size), (gt_centre, gt_size) = _centre_and_size(rois), _centre_and_size(gt_boxes)
    return xp.concatenate([(gt_centre - centre) / size, xp.log(gt_size / size)], axis=-1)


def decode(rois: Array, deltas: Array) -> Array:
    """The inverse of `encode`: `(..., 4)` boxes from `(..., 4)` RoIs and deltas; not clipped."""
    xp = rois.__array_namespace__()
    centre, size = _centre_and_size(rois)
    centre, half = deltas[..., :2] * size + centre, 0.5 * xp.exp(deltas[..., 2:]) * size
    return xp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Array, height: Array, width: Array) -> Array:
    """Boxes moved into [0, width - 1] x [0, height - 1]; height and width broadcast with `boxes[..., 0]`."""
    xp = boxes.__array_namespace__()
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    x = xp.clip(x, 0, xp.asarray(width)[..., None] - 1)
    y = xp.clip(y, 0, xp.asarray(height)[..., None] - 1)
    return xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def flip(boxes: Array, width: int) -> Array:
    """Boxes of the image mirrored left to right, `width` pixels wide."""
    xp = boxes.__array_namespace__()
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return xp.stack([width - x2 - 1, y1, width - x1 - 1, y2], axis=-1)


def scale(boxes: Array, factor: Any) -> Array:
    """Boxes in the pixels of the image resized by `factor`: every coordinate times the factor, as the paper's code."""
    return boxes * np.float32(factor)


def pyramid_level(rois: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """For each of `(N, 4)` RoIs, of an image that is resized by several `(S,)` factors, the one at which its area is
    nearest to that of 224 x 224 pixels, the first of equals (SPPnet; section 5.2): `(N,)` int32."""
    areas = area(rois).astype(np.float64)[:, None] * factors.astype(np.float64) ** 2
    return np.abs(areas - 224**2).argmin(axis=1).astype(np.int32)


def unique_rois(rois: np.ndarray, spatial_scale: float, level: np.ndarray | int = 0) -> np.ndarray:
    """Indices, rising, of the first RoI of each set of the same `level` whose corners, `(N, 4)`, fall in the same map
    cells, rounded half away from zero as in RoI pooling: all of a set pool the same features. (The paper's code rounds
    half to even.)"""
    scaled = (rois * np.float32(spatial_scale)).astype(np.float64)
    cells = np.trunc(scaled + np.copysign(0.5, scaled))
    cells = np.column_stack([cells, np.broadcast_to(level, len(cells))])
    return np.sort(np.unique(cells, axis=0, return_index=True)[1])
