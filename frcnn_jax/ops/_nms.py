"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from frcnn_jax.ops.boxes import Array, as_float, iou


def nms(boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int) -> tuple[jax.Array, jax.Array]:
    """Select boxes by greedy non-maximum suppression.

    Exact, with static shapes; runs under `jit` and `vmap`. Equal scores keep their order. IoU is that of inclusive
    boxes, as `iou` gives it. Everything is computed in float32, but float64 under `jax_enable_x64`.

    Args:
        boxes: `(N, 4)`; N may be 0. A box with a NaN is never selected.
        scores: `(N,)`. A box with a score of -inf or NaN is never selected.
        iou_threshold: A box is dropped if its IoU with a selected box of higher score exceeds this; in [0, 1].
        max_outputs: M, the number of entries in the result, at least 0.

    Returns:
        Indices: `(M,)` int32, the boxes selected in order of falling score; 0 where not valid.
        valid: `(M,)` bool.

    Raises:
        ValueError: An array has another shape or is not numeric, or a number is out of its range.
    """
    boxes, scores = as_float(boxes, "boxes"), as_float(scores, "scores")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {boxes.shape}")
    count = len(boxes)
    if scores.shape != (count,):
        raise ValueError(f"scores must be ({count},), one per box, got {scores.shape}")
    if not isinstance(iou_threshold, jax.Array) and not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold!r}")
    if not isinstance(max_outputs, int | np.integer) or max_outputs < 0:
        raise ValueError(f"max_outputs must be an integer of at least 0, got {max_outputs!r}")
    if not count:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)

    order = jnp.argsort(-scores, stable=True)
    boxes, scores = jnp.asarray(boxes)[order], jnp.asarray(scores)[order]
    allowed = (scores > -jnp.inf) & ~jnp.isnan(boxes).any(axis=1)
    better = jnp.arange(count)[:, None] < jnp.arange(count)
    drops = better & (iou(boxes, boxes) > iou_threshold)

    # A box's fate depends only on higher-scoring boxes. Each round settles at least the best box that is not settled
    # yet, in practice most of them; the first round that changes nothing is the last.
    def settle(state):
        _, keep = state
        return keep, allowed & ~(drops & keep[:, None]).any(axis=0)

    _, keep = lax.while_loop(lambda state: (state[0] != state[1]).any(), settle, (~allowed, allowed))
    (kept,) = jnp.nonzero(keep, size=max_outputs, fill_value=count)
    valid = kept < count
    return jnp.where(valid, order[jnp.where(valid, kept, 0)], 0).astype(jnp.int32), valid
