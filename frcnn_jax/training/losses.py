"""The box regression loss (section 2.3, equations 2 and 3), elementwise: the caller masks and reduces.

The classification loss is `optax.softmax_cross_entropy_with_integer_labels`.
"""

import jax
import jax.numpy as jnp
import optax

from frcnn_jax.errors import InputError


def box_loss(deltas: jax.Array, targets: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the smooth L1 loss summed over the four coordinates of the true class, 0 for background (equation 2).

    Smooth L1 (equation 3) is the Huber loss with delta 1: `0.5 x^2` where `|x| < 1`, `|x| - 0.5` elsewhere.

    Args:
        deltas: `(..., K + 1, 4)` predictions for every class, normalised.
        targets: `(..., 4)`, normalised.
        labels: `(...,)` integers in [0, K]; 0 is background. A label above K gives NaN, one below 0 gives 0.

    Returns:
        `(...,)`.

    Raises:
        InputError: The shapes do not match, or `labels` are not integers.
    """
    deltas, targets, labels = (jnp.asarray(array) for array in (deltas, targets, labels))
    lead = labels.shape
    if targets.shape != (*lead, 4) or deltas.shape[:-2] != lead or deltas.shape[-1:] != (4,):
        raise InputError(
            "expected deltas (..., K + 1, 4), targets (..., 4) and labels (...,), "
            f"got {deltas.shape}, {targets.shape} and {lead}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels must be integers, got {labels.dtype}")
    own = jnp.take_along_axis(deltas, labels[..., None, None], axis=-2)[..., 0, :]
    return jnp.where(labels > 0, optax.huber_loss(own, targets, delta=1.0).sum(-1), 0)
