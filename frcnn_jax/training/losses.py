"""The box regression loss (section 2.3, equations 2 and 3), elementwise: the caller masks and reduces.

The classification loss is `optax.softmax_cross_entropy`.
"""

import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError


def box_loss(deltas: jax.Array, targets: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the smooth L1 loss summed over the four coordinates of the true class, 0 for background (equation 2).

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
    return jnp.where(labels > 0, _smooth_l1(own - targets).sum(-1), 0)


def _smooth_l1(x: jax.Array) -> jax.Array:
    """0.5 x^2 where |x| < 1, |x| - 0.5 elsewhere (equation 3).

    `optax.huber_loss` has the same value, but its derivative is computed as (x - 1) + 1, which cancels for small x.
    """
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)
