"""Boxes as torchvision.ops has them: the same names, arguments and results.

Boxes are `(..., 4)` (x1, y1, x2, y2) in **continuous** coordinates: a box measures x2 - x1 by y2 - y1, and its edges
have no thickness. The detector's own arithmetic, on inclusive boxes, is in boxes.py.

NumPy arrays give NumPy arrays; if any argument is a JAX array, so is the result. All is computed in float32, float64
stays float64. Functions have gradients wherever they are smooth. Leading axes are batch axes. Values are not checked:
a box of no area gives what the arithmetic gives, as in torchvision.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.ops.boxes import Array, as_float, check_boxes

_FORMATS = ("xyxy", "xywh", "cxcywh")


def box_area(boxes: Array) -> Array:
    """Return the area of each box.

    Args:
        boxes: `(..., 4)`.

    Returns:
        `(...,)`; negative where a corner is on the wrong side.

    Raises:
        ValueError: `boxes` has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_convert(boxes: Array, in_fmt: str, out_fmt: str) -> Array:
    """Convert boxes between formats.

    Args:
        boxes: `(..., 4)`.
        in_fmt, out_fmt: "xyxy" (two corners), "xywh" (corner and size) or "cxcywh" (centre and size).

    Returns:
        Boxes of the same shape.

    Raises:
        ValueError: `boxes` has another shape or is not numeric, or a format is unknown.
    """
    xp, boxes = check_boxes(boxes=boxes)
    for name, fmt in (("in_fmt", in_fmt), ("out_fmt", out_fmt)):
        if fmt not in _FORMATS:
            raise ValueError(f"{name} must be one of {', '.join(_FORMATS)}, got {fmt!r}")
    if in_fmt == out_fmt:
        return boxes
    first, last = boxes[..., :2], boxes[..., 2:]
    if in_fmt == "cxcywh":
        first, last = first - 0.5 * last, first + 0.5 * last
    elif in_fmt == "xywh":
        last = first + last
    if out_fmt == "cxcywh":
        first, last = (first + last) / 2, last - first
    elif out_fmt == "xywh":
        last = last - first
    return xp.concatenate([first, last], axis=-1)


def box_iou(boxes1: Array, boxes2: Array) -> Array:
    """Return the intersection over union of every pair of boxes.

    Args:
        boxes1: `(..., N, 4)`.
        boxes2: `(..., M, 4)`; the leading axes broadcast.

    Returns:
        `(..., N, M)`, in [0, 1]; NaN for two boxes of no area.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, boxes1, boxes2 = check_boxes(2, boxes1=boxes1, boxes2=boxes2)
    overlap, union, *_ = _measure(xp, *_pairs(boxes1, boxes2))
    return overlap / union


def generalized_box_iou(boxes1: Array, boxes2: Array) -> Array:
    """Return the generalised IoU of every pair of boxes (Rezatofighi et al. 2019).

    Args:
        boxes1: `(..., N, 4)`.
        boxes2: `(..., M, 4)`; the leading axes broadcast.

    Returns:
        `(..., N, M)`, in [-1, 1]: the IoU less the share of the smallest enclosing box that neither covers.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, boxes1, boxes2 = check_boxes(2, boxes1=boxes1, boxes2=boxes2)
    overlap, union, width, height = _measure(xp, *_pairs(boxes1, boxes2))
    enclosing = width * height
    return overlap / union - (enclosing - union) / enclosing


def distance_box_iou(boxes1: Array, boxes2: Array, eps: float = 1e-7) -> Array:
    """Return the distance IoU of every pair of boxes (Zheng et al. 2020).

    Args:
        boxes1: `(..., N, 4)`.
        boxes2: `(..., M, 4)`; the leading axes broadcast.
        eps: Added to the enclosing box's squared diagonal.

    Returns:
        `(..., N, M)`: the IoU less the squared distance of the centres over that of the enclosing box's corners.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, boxes1, boxes2 = check_boxes(2, boxes1=boxes1, boxes2=boxes2)
    a, b = _pairs(boxes1, boxes2)
    return _distance_iou(xp, a, b, eps)[0]


def complete_box_iou(boxes1: Array, boxes2: Array, eps: float = 1e-7) -> Array:
    """Return the complete IoU of every pair of boxes (Zheng et al. 2020).

    Args:
        boxes1: `(..., N, 4)`.
        boxes2: `(..., M, 4)`; the leading axes broadcast.
        eps: Keeps denominators above 0.

    Returns:
        `(..., N, M)`: the distance IoU less a term for different aspect ratios, whose weight gets no gradient.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, boxes1, boxes2 = check_boxes(2, boxes1=boxes1, boxes2=boxes2)
    a, b = _pairs(boxes1, boxes2)
    distance_iou, iou = _distance_iou(xp, a, b, eps)
    return distance_iou - _aspect_term(xp, a, b, iou, eps)


def generalized_box_iou_loss(boxes1: Array, boxes2: Array, reduction: str = "none", eps: float = 1e-7) -> Array:
    """Return 1 - the generalised IoU of boxes and their targets (Rezatofighi et al. 2019).

    Args:
        boxes1: `(..., 4)`, with x1 < x2 and y1 < y2.
        boxes2: `(..., 4)`; the shapes broadcast.
        reduction: "none", "mean" (0 of no boxes) or "sum".
        eps: Added to denominators.

    Returns:
        `(...,)`, in [0, 2]; a scalar if reduced.

    Raises:
        ValueError: A box array has another shape or is not numeric, or the reduction is unknown.
    """
    xp, boxes1, boxes2 = check_boxes(boxes1=boxes1, boxes2=boxes2)
    overlap, union, width, height = _measure(xp, boxes1, boxes2)
    enclosing = width * height
    return _reduce(1 - overlap / (union + eps) + (enclosing - union) / (enclosing + eps), reduction)


def distance_box_iou_loss(boxes1: Array, boxes2: Array, reduction: str = "none", eps: float = 1e-7) -> Array:
    """Return 1 - the distance IoU of boxes and their targets (Zheng et al. 2020).

    Args:
        boxes1, boxes2, reduction, eps: As in `generalized_box_iou_loss`.

    Returns:
        `(...,)`; a scalar if reduced.

    Raises:
        ValueError: As in `generalized_box_iou_loss`.
    """
    xp, boxes1, boxes2 = check_boxes(boxes1=boxes1, boxes2=boxes2)
    return _reduce(1 - _distance_iou(xp, boxes1, boxes2, eps, eps)[0], reduction)


def complete_box_iou_loss(boxes1: Array, boxes2: Array, reduction: str = "none", eps: float = 1e-7) -> Array:
    """Return 1 - the complete IoU of boxes and their targets (Zheng et al. 2020).

    Args:
        boxes1, boxes2, reduction, eps: As in `generalized_box_iou_loss`.

    Returns:
        `(...,)`; a scalar if reduced.

    Raises:
        ValueError: As in `generalized_box_iou_loss`.
    """
    xp, boxes1, boxes2 = check_boxes(boxes1=boxes1, boxes2=boxes2)
    distance_iou, iou = _distance_iou(xp, boxes1, boxes2, eps, eps)
    return _reduce(1 - distance_iou + _aspect_term(xp, boxes1, boxes2, iou, eps), reduction)


def clip_boxes_to_image(boxes: Array, size: Any) -> Array:
    """Clip boxes to an image, [0, width] x [0, height].

    Args:
        boxes: `(..., 4)`.
        size: (height, width): two numbers, or two arrays that broadcast with `boxes[..., 0]`.

    Returns:
        Clipped boxes of the shape of `boxes`.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    try:
        height, width = (as_float(side, "size") for side in size)
        xp = jnp if any(isinstance(array, jax.Array) for array in (boxes, height, width)) else np
        limits = xp.stack(xp.broadcast_arrays(width, height, width, height), axis=-1).astype(boxes.dtype)
        return xp.clip(boxes, 0, xp.broadcast_to(limits, boxes.shape))
    except (TypeError, ValueError):
        raise ValueError(
            f"size must be (height, width) that broadcast with boxes {boxes.shape}, got {size!r}"
        ) from None


def remove_small_boxes(boxes: Array, min_size: float) -> Array:
    """Return which boxes are large enough; torchvision returns their indices, whose number depends on the data.

    Args:
        boxes: `(..., 4)`.
        min_size: Smallest width and height.

    Returns:
        `(...,)` bool: whether both sides measure at least `min_size`.

    Raises:
        ValueError: `boxes` has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(axis=-1)


def masks_to_boxes(masks: Array) -> Array:
    """Return the box around each mask, from its first to its last pixel, inclusive as in torchvision.

    Args:
        masks: `(..., H, W)` bool or numbers, of which any but 0 is in the mask.

    Returns:
        `(..., 4)` float32 (first column, first row, last column, last row); 0 for an empty mask.

    Raises:
        ValueError: `masks` has fewer than two axes.
    """
    masks = masks if isinstance(masks, jax.Array) else np.asarray(masks)
    if masks.ndim < 2:
        raise ValueError(f"masks must be (..., H, W), got {masks.shape}")
    xp, inside = masks.__array_namespace__(), masks != 0
    corners = [_ends(xp, inside.any(axis=axis)) for axis in (-2, -1)]
    return xp.stack([ends[i] for i in (0, 1) for ends in corners], axis=-1).astype(np.float32)


def _ends(xp, line):
    """Return the first and last true entry along the last axis, 0 if none is."""
    place = xp.arange(line.shape[-1])
    last = xp.where(line, place, 0).max(axis=-1, initial=0)
    return last - xp.where(line, last[..., None] - place, 0).max(axis=-1, initial=0), last


def sigmoid_focal_loss(
    inputs: Array, targets: Array, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> jax.Array:
    """Return the focal loss (Lin et al. 2017), as `optax.losses.sigmoid_focal_loss` computes it; needs optax.

    Args:
        inputs: `(...)` logits.
        targets: `(...)` labels, 0 or 1.
        alpha: Weight of label 1, and 1 - alpha of label 0; negative for no weights.
        gamma: Exponent that discounts well-classified examples.
        reduction: "none", "mean" (0 of no entries) or "sum".

    Returns:
        `(...)`; a scalar if reduced.

    Raises:
        ValueError: The shapes differ, an argument is not numeric, or the reduction is unknown.
    """
    import optax  # deferred: nothing else here needs it

    inputs, targets = as_float(inputs, "inputs"), as_float(targets, "targets")
    if inputs.shape != targets.shape:
        raise ValueError(f"inputs and targets must have one shape, got {inputs.shape} and {targets.shape}")
    weight = None if alpha < 0 else alpha
    return _reduce(optax.losses.sigmoid_focal_loss(jnp.asarray(inputs), targets, alpha=weight, gamma=gamma), reduction)


def _pairs(boxes1, boxes2):
    return boxes1[..., :, None, :], boxes2[..., None, :, :]


def _measure(xp, a, b):
    """Return intersection and union of boxes, and width and height of the box that encloses both."""
    inner = xp.clip(xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2]), 0, None)
    outer = xp.clip(xp.maximum(a[..., 2:], b[..., 2:]) - xp.minimum(a[..., :2], b[..., :2]), 0, None)
    overlap = inner[..., 0] * inner[..., 1]
    return overlap, box_area(a) + box_area(b) - overlap, outer[..., 0], outer[..., 1]


def _distance_iou(xp, a, b, eps, union_eps=0.0):
    """Return the distance IoU and the IoU."""
    overlap, union, width, height = _measure(xp, a, b)
    iou = overlap / (union + union_eps)
    dx, dy = ((a[..., i] + a[..., i + 2] - b[..., i] - b[..., i + 2]) / 2 for i in (0, 1))
    return iou - (dx**2 + dy**2) / (width**2 + height**2 + eps), iou


def _aspect_term(xp, a, b, iou, eps):
    angle_a, angle_b = (xp.arctan((c[..., 2] - c[..., 0]) / (c[..., 3] - c[..., 1])) for c in (a, b))
    difference = 4 / math.pi**2 * (angle_a - angle_b) ** 2
    weight = difference / (1 - iou + difference + eps)
    return (jax.lax.stop_gradient(weight) if xp is jnp else weight) * difference


def _reduce(loss, reduction):
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / max(loss.size, 1)}[reduction]
