"""Box arithmetic.

A box is (x1, y1, x2, y2) in absolute pixels, 0-based and **inclusive**: a box of one pixel has x1 == x2. Areas, and so
IoU and NMS, use widths x2 - x1 + 1; regression uses x2 - x1, as the paper's code does.

Boxes are arrays `(..., 4)`. NumPy arrays give NumPy arrays; if any argument is a JAX array, so is the result. All is
computed in float32, whatever the input: only float64 stays float64. Integers beyond 2^24 are therefore rounded.
Shapes and types are checked, values are not: a NaN coordinate gives NaN.

Shape letters: R RoIs, G ground-truth boxes, N boxes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy.ndarray or jax.Array

_EPS = 1e-14  # the paper's code adds this to regression widths


def area(boxes: Array) -> Array:
    """Return the area of each box.

    Args:
        boxes: `(..., 4)`.

    Returns:
        `(...,)`, in pixels.

    Raises:
        ValueError: `boxes` has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def iou(boxes: Array, others: Array) -> Array:
    """Return the intersection over union of every pair of boxes.

    Args:
        boxes: `(..., N, 4)`.
        others: `(..., G, 4)`; the leading axes broadcast with those of `boxes`.

    Returns:
        `(..., N, G)`, in [0, 1].

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, boxes, others = check_boxes(2, boxes=boxes, others=others)
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    width = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0]) + 1
    height = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1]) + 1
    overlap = xp.clip(width, 0, None) * xp.clip(height, 0, None)
    return overlap / (area(a) + area(b) - overlap)


def encode(rois: Array, gt_boxes: Array) -> Array:
    """Return the regression targets that move RoIs onto ground-truth boxes (R-CNN, appendix C).

    Args:
        rois: `(..., 4)`.
        gt_boxes: `(..., 4)`; broadcasts with `rois`.

    Returns:
        `(..., 4)`: (dx, dy, dw, dh), relative to the RoI's size, dw and dh as logarithms; not normalised.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, rois, gt_boxes = check_boxes(rois=rois, gt_boxes=gt_boxes)
    (centre, size), (gt_centre, gt_size) = _centre_and_size(rois), _centre_and_size(gt_boxes)
    return xp.concatenate([(gt_centre - centre) / size, xp.log(gt_size / size)], axis=-1)


def decode(rois: Array, deltas: Array) -> Array:
    """Move RoIs by regression outputs: the inverse of `encode`.

    Args:
        rois: `(..., 4)`.
        deltas: `(..., 4)`: (dx, dy, dw, dh), not normalised; broadcasts with `rois`.

    Returns:
        `(..., 4)` boxes, not clipped.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    xp, rois, deltas = check_boxes(rois=rois, deltas=deltas)
    centre, size = _centre_and_size(rois)
    centre, half = deltas[..., :2] * size + centre, 0.5 * xp.exp(deltas[..., 2:]) * size
    return xp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Array, height: Array, width: Array) -> Array:
    """Clip boxes to an image, [0, width - 1] x [0, height - 1].

    Args:
        boxes: `(..., 4)`.
        height, width: The image's size in pixels, numbers or arrays that broadcast with `boxes[..., 0]`.

    Returns:
        Clipped boxes of the shape of `boxes`.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    height, width = _per_box(height, "height", boxes), _per_box(width, "width", boxes)
    xp = _namespace(boxes, height, width)
    x, y = xp.clip(boxes[..., 0::2], 0, width - 1), xp.clip(boxes[..., 1::2], 0, height - 1)
    return xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def flip(boxes: Array, width: Array) -> Array:
    """Mirror boxes left to right.

    Args:
        boxes: `(..., 4)`.
        width: The image's width in pixels, a number or an array that broadcasts with `boxes[..., 0]`.

    Returns:
        Mirrored boxes of the shape of `boxes`.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    x, y = _per_box(width, "width", boxes) - boxes[..., 2::-2] - 1, boxes[..., 1::2]
    return _namespace(x).stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def scale(boxes: Array, factor: Array) -> Array:
    """Scale boxes to a resized image: multiply every coordinate by the factor, as the paper's code does.

    Args:
        boxes: `(..., 4)`.
        factor: New pixels per old pixel, in float32; a number or an array that broadcasts with `boxes[..., 0]`.

    Returns:
        Scaled boxes of the shape of `boxes`.

    Raises:
        ValueError: An argument has another shape or is not numeric.
    """
    _, boxes = check_boxes(boxes=boxes)
    return boxes * _per_box(factor, "factor", boxes)


def pyramid_level(rois: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the image scale at which each RoI's area is nearest to 224 x 224 pixels (SPPnet; section 5.2).

    Args:
        rois: `(N, 4)`, in pixels of the original image.
        factors: `(S,)` resize factors.

    Returns:
        `(N,)` int32 indices into `factors`; the first of equally near ones.
    """
    areas = area(rois.astype(np.float64))[:, None] * factors.astype(np.float64) ** 2
    return np.abs(areas - 224**2).argmin(axis=1).astype(np.int32)


def unique_rois(rois: np.ndarray, spatial_scale: float, level: np.ndarray | int = 0) -> np.ndarray:
    """Return the indices of RoIs that pool different features.

    RoIs pool the same features if their level is the same and their corners fall into the same map cells, rounded half
    away from zero as in RoI pooling. (The paper's code rounds half to even.)

    Args:
        rois: `(N, 4)`.
        spatial_scale: Map cells per pixel.
        level: `(N,)` image scales of the RoIs, or one for all.

    Returns:
        Increasing indices of the first RoI of each set.
    """
    scaled = (rois * np.float32(spatial_scale)).astype(np.float64)
    cells = np.trunc(scaled + np.copysign(0.5, scaled))
    cells = np.column_stack([cells, np.broadcast_to(level, len(cells))])
    return np.sort(np.unique(cells, axis=0, return_index=True)[1])


def check_boxes(rank: int = 1, **arrays: Any) -> tuple[Any, ...]:
    """Return numpy or jax.numpy, then the arrays as floats; ValueError unless `(..., 4)`, or `(..., N, 4)` for rank 2,
    and the axes in front broadcast."""
    boxes = [as_float(array, name) for name, array in arrays.items()]
    shapes = [array.shape for array in boxes]
    for name, shape in zip(arrays, shapes, strict=True):
        if len(shape) < rank or shape[-1] != 4:
            raise ValueError(f"{name} must be {'(..., 4)' if rank == 1 else '(..., N, 4)'}, got {shape}")
    if not _broadcast(*(shape[:-rank] for shape in shapes)):
        names, got = (" and ".join(map(str, these)) for these in (arrays, shapes))
        raise ValueError(f"{names} must have leading axes that broadcast, got {got}")
    return _namespace(*boxes), *boxes


def _namespace(*arrays: Array) -> Any:
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def as_float(value: Any, name: str) -> Array:
    """Return a NumPy or JAX array in float32, or float64 if it is; ValueError unless it holds real numbers."""
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name} must be an array of numbers, got {type(value).__name__}") from None
    if array.dtype in (np.float32, np.float64):
        return array
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} must be floating point or integers, got {array.dtype}")
    return array.astype(np.float32)


def _per_box(value: Any, name: str, boxes: Array) -> Array:
    """Return a number, or one per box with an axis added, in float32."""
    value = as_float(value, name).astype(np.float32)
    if not _broadcast(value.shape, boxes.shape[:-1]):
        raise ValueError(f"{name} must broadcast with boxes[..., 0], got {value.shape} for boxes {boxes.shape}")
    return value[..., None] if value.ndim else value


def _broadcast(*shapes: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def _centre_and_size(boxes: Array) -> tuple[Array, Array]:
    size = boxes[..., 2:] - boxes[..., :2] + _EPS
    return boxes[..., :2] + 0.5 * size, size
