"""Non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp
from jax import lax

from frcnn_jax.ops.boxes import iou


def nms(boxes: jax.Array, scores: jax.Array, *, iou_threshold: float, max_outputs: int) -> tuple[jax.Array, jax.Array]:
    """Exact greedy non-maximum suppression with static shapes; equal scores keep their order.

    Args:
        boxes: `(N, 4)`.
        scores: `(N,)`; -inf leaves a box out.
        iou_threshold: a box is dropped where its IoU with a better kept one is **over** this; in [0, 1].
        max_outputs: M, the number of places in the result.

    Returns:
        indices `(M,)` int32 of the boxes kept, best first, 0 in empty places, and valid `(M,)` bool.
    """
    count = scores.shape[0]
    order = jnp.argsort(-scores, stable=True)
    allowed = scores[order] > -jnp.inf
    better = jnp.arange(count)[:, None] < jnp.arange(count)
    drops = better & (iou(boxes[order], boxes[order]) > iou_threshold)

    # Whether a box is kept hangs on better ones alone: each round settles at least the best that is not settled yet, in
    # practice most of them, and a round that changes nothing is the last.
    def settle(state):
        _, keep = state
        return keep, allowed & ~(drops & keep[:, None]).any(axis=0)

    _, keep = lax.while_loop(lambda state: (state[0] != state[1]).any(), settle, (~allowed, allowed))
    (kept,) = jnp.nonzero(keep, size=max_outputs, fill_value=count)
    valid = kept < count
    return jnp.where(valid, order[jnp.where(valid, kept, 0)], 0).astype(jnp.int32), valid
