"""The multi-task loss (section 2.3, equations 1 to 3), elementwise: the caller masks and reduces."""

import jax
import jax.numpy as jnp


def log_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p_u of the softmax over `(..., K + 1)` logits, for `(...,)` integer labels u: `(...,)`."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def smooth_l1(x: jax.Array) -> jax.Array:
    """0.5 x^2 where |x| < 1, |x| - 0.5 elsewhere (equation 3)."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)


def box_loss(deltas: jax.Array, targets: jax.Array, labels: jax.Array) -> jax.Array:
    """Smooth L1 summed over the four coordinates of the true class; 0 for background (equation 2).

    Args:
        deltas: `(..., K + 1, 4)`, normalised.
        targets: `(..., 4)`, normalised.
        labels: `(...,)` integers.

    Returns:
        `(...,)`.
    """
    own = jnp.take_along_axis(deltas, labels[..., None, None], axis=-2)[..., 0, :]
    return jnp.where(labels > 0, smooth_l1(own - targets).sum(-1), 0)
