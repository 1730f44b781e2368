"""Non-maximum suppression with static shapes, in memory that grows linearly with the boxes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from frcnn_jax.ops.boxes import Array, as_float

_TILE = 64  # of 64 to 512 the fastest on CPUs: benchmarks/bench_ops.py


def nms(boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int) -> tuple[jax.Array, jax.Array]:
    """Select boxes by greedy non-maximum suppression.

    Exact, with static shapes; runs under `jit` and `vmap`. Equal scores keep their order. Boxes are continuous, as in
    torchvision, whose result this is: a box measures x2 - x1 by y2 - y1. Everything is computed in float32, but float64
    under `jax_enable_x64`. No gradient.

    Args:
        boxes: `(N, 4)`; N may be 0. A box with a NaN is never selected.
        scores: `(N,)`. A box with a score of -inf or NaN is never selected.
        iou_threshold: A box is dropped if its IoU with a selected box of higher score exceeds this; in [0, 1].
        max_outputs: M, the number of entries in the result, at least 0. The search ends when so many are selected.

    Returns:
        Indices: `(M,)` int32, the boxes selected in order of falling score; 0 where not valid.
        valid: `(M,)` bool.

    Raises:
        ValueError: An array has another shape or is not numeric, or a number is out of its range.
    """
    return _check_and_select(boxes, scores, None, iou_threshold, max_outputs, pixel=0)


def batched_nms(
    boxes: Array, scores: Array, classes: Array, *, iou_threshold: float, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Select boxes by `nms` within each class; boxes of different classes do not suppress each other.

    Args:
        boxes, scores, iou_threshold, max_outputs: As in `nms`.
        classes: `(N,)` integers.

    Returns:
        Indices `(M,)` and valid `(M,)`, as in `nms`: all classes together, in order of falling score.

    Raises:
        ValueError: As in `nms`.
    """
    classes = classes if isinstance(classes, jax.Array) else np.asarray(classes)
    return _check_and_select(boxes, scores, classes, iou_threshold, max_outputs, pixel=0)


def inclusive_nms(
    boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
    """Select boxes by `nms` with the IoU of inclusive boxes (`boxes.iou`), as the paper's code does."""
    return _check_and_select(boxes, scores, None, iou_threshold, max_outputs, pixel=1)


def _check_and_select(boxes, scores, classes, iou_threshold, max_outputs, pixel):
    boxes, scores = as_float(boxes, "boxes"), as_float(scores, "scores")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {boxes.shape}")
    count = len(boxes)
    if scores.shape != (count,):
        raise ValueError(f"scores must be ({count},), one per box, got {scores.shape}")
    if classes is not None:
        if classes.shape != (count,) or (count and not jnp.issubdtype(classes.dtype, jnp.integer)):
            raise ValueError(f"classes must be integers ({count},), one per box, got {classes.dtype} {classes.shape}")
        if isinstance(classes, np.ndarray) and classes.dtype.itemsize > 4:  # must not wrap around in int32
            classes = np.unique(classes, return_inverse=True)[1].astype(np.int32)
    if not isinstance(iou_threshold, jax.Array):
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold!r}")
        iou_threshold = np.float64(iou_threshold)
    if not isinstance(max_outputs, int | np.integer) or max_outputs < 0:
        raise ValueError(f"max_outputs must be an integer of at least 0, got {max_outputs!r}")
    if not count or not max_outputs:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores = (lax.stop_gradient(jnp.asarray(array)) for array in (boxes, scores))
    if isinstance(iou_threshold, np.float64):  # the same decisions in float32 as between float32 and float64
        rounded = iou_threshold.astype(boxes.dtype)
        iou_threshold = rounded if pixel or rounded <= iou_threshold else np.nextafter(rounded, rounded.dtype.type(-1))
    classes = None if classes is None else jnp.asarray(classes)
    return _select(boxes, scores, classes, iou_threshold, int(max_outputs), pixel)


def _order(*keys):
    """Return the indices sorted by the keys, the first one first; equal ones keep their order.

    On CPUs XLA sorts one array of integers three times as fast as pairs: so half of a key's bits is sorted at a time,
    with the place in the other half.
    """
    count = len(keys[0])
    if count > 1 << 16 or any(key.dtype.itemsize > 4 for key in keys):
        return lax.sort((*keys, jnp.arange(count, dtype=jnp.int32)), num_keys=len(keys), is_stable=True)[-1]
    order = places = jnp.arange(count, dtype=jnp.uint32)
    for key in map(_as_bits, reversed(keys)):
        for shift in (0, 16):
            half = key[order] >> shift & 0xFFFF
            order = order[lax.sort(half << 16 | places) & 0xFFFF]
    return order.astype(jnp.int32)


def _as_bits(key):
    """Return unsigned 32-bit integers in the order of the key; NaN comes first or last."""
    if jnp.issubdtype(key.dtype, jnp.unsignedinteger):
        return key.astype(jnp.uint32)
    if jnp.issubdtype(key.dtype, jnp.floating):
        bits = lax.bitcast_convert_type(key.astype(jnp.float32), jnp.int32)
        key = jnp.where(bits < 0, -(1 << 31) - bits, bits)  # the bits of a negative float fall as it rises; -0 is 0
    return key.astype(jnp.uint32) ^ jnp.uint32(1 << 31)


@partial(jax.jit, static_argnames=("max_outputs", "pixel"))
def _select(boxes, scores, classes, iou_threshold, max_outputs, pixel):
    """Go through tiles of boxes in order of class and score, keeping a list of the selected ones.

    A box of a tile is dropped by a selected box of an earlier tile or by a selected one before it in its own tile.
    """
    count = len(boxes)
    tile = min(_TILE, count)
    tiles = -(-count // tile)
    order = _order(-scores) if classes is None else _order(classes, -scores)
    order = jnp.pad(order, (0, tiles * tile - count), constant_values=-1)
    allowed = (scores > -jnp.inf) & ~jnp.isnan(boxes).any(axis=1)
    zero = (0 * boxes[:0].sum() + 0 * scores[:0].sum()).astype(jnp.int32)  # varies as they do over the axes of a mesh
    enough = count if classes is not None else min(max_outputs, count)  # the best of all classes are known at the end
    listed = -(-enough // tile) * tile + tile

    def conflicts(one, other):
        (a, class_a), (b, class_b) = one, other
        a, b = a[:, None], b[None]
        width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0]) + pixel
        height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1]) + pixel
        overlap = jnp.maximum(width, 0) * jnp.maximum(height, 0)
        area_a, area_b = ((c[..., 2] - c[..., 0] + pixel) * (c[..., 3] - c[..., 1] + pixel) for c in (a, b))
        conflict = overlap / (area_a + area_b - overlap) > iou_threshold
        return conflict if class_a is None else conflict & (class_a[:, None] == class_b[None])

    def take(index):
        return boxes[index], None if classes is None else classes[index]

    def add_tile(state):
        i, first, found, selected = state
        index = lax.dynamic_slice_in_dim(order, i * tile, tile)
        own = take(index)

        def drop(j, alive):
            earlier = lax.dynamic_slice_in_dim(selected, j * tile, tile)
            by = conflicts(take(earlier), own) & (earlier >= 0)[:, None]
            return alive & ~by.any(axis=0)

        alive = lax.fori_loop(first // tile, -(-found // tile), drop, (index >= 0) & allowed[index])
        drops = jnp.triu(conflicts(own, own), 1)

        # Each round settles at least the best box that is not settled yet, in practice most of them; the first round
        # that changes nothing is the last.
        def settle(state):
            _, keep = state
            return keep, alive & ~(drops & keep[:, None]).any(axis=0)

        _, keep = lax.while_loop(lambda state: (state[0] != state[1]).any(), settle, (~alive, alive))
        place = jnp.where(keep, found + jnp.cumsum(keep, dtype=jnp.int32) - 1, listed)
        if classes is not None:  # the next tile goes on with the last class: where that class begins in the list
            before = own[1] != own[1][-1]
            first = jnp.where(before.any(), found + (keep & before).sum(dtype=jnp.int32), first)
        return i + 1, first, found + keep.sum(dtype=jnp.int32), selected.at[place].set(index, mode="drop")

    def goes_on(state):
        i, _, found, _ = state
        return (i < tiles) & (found < enough)

    *_, selected = lax.while_loop(goes_on, add_tile, (zero, zero, zero, jnp.full(listed, -1) + zero))
    if classes is not None:
        selected = selected[_order(jnp.where(selected >= 0, -scores[selected], jnp.inf), selected)]
    selected = jnp.pad(selected[:max_outputs], (0, max(max_outputs - listed, 0)), constant_values=-1)
    valid = selected >= 0
    return jnp.where(valid, selected, 0).astype(jnp.int32), valid
