import jax
import jax.numpy as jnp
import numpy as np
import optax

from frcnn_jax.training.losses import box_loss


def test_box_loss_is_smooth_l1_by_hand():
    deltas = jnp.array([[[9.0] * 4, [0.5, -0.5, 1.0, -3.0]]])
    np.testing.assert_allclose(box_loss(deltas, jnp.zeros((1, 4)), jnp.array([1])), [0.125 + 0.125 + 0.5 + 2.5])


def test_gradient_is_clipped_and_of_the_true_class_alone():
    deltas, labels = jnp.array([[-7.0, -0.25, 0.25, 7.0], [-1.0, 0.0, 0.5, 1.0]]), jnp.array(1)
    gradient = jax.grad(box_loss)(deltas, jnp.zeros(4), labels)
    np.testing.assert_allclose(gradient, [[0, 0, 0, 0], [-1, 0, 0.5, 1]])
    assert not jax.grad(box_loss)(deltas, jnp.zeros(4), jnp.array(0)).any()


def test_box_loss_takes_the_true_class_and_no_background(rng):
    deltas = rng.normal(0, 2, (5, 3, 4)).astype(np.float32)
    targets = rng.normal(0, 2, (5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])
    expected = []
    for d, t, u in zip(deltas, targets, labels, strict=True):
        x = abs(d[u] - t)
        expected.append(sum(0.5 * v * v if v < 1 else v - 0.5 for v in x) if u else 0)
    np.testing.assert_allclose(
        box_loss(jnp.asarray(deltas), jnp.asarray(targets), jnp.asarray(labels)), expected, rtol=1e-5
    )


def test_gradient_of_small_errors_is_exact():
    """Unlike that of `optax.huber_loss`: see `losses._smooth_l1`."""
    x = jnp.array([[1e-3, -1e-4, 3e-5, 1e-6]])
    ours = jax.grad(lambda d: box_loss(d, jnp.zeros(4), jnp.array(1)))(jnp.concatenate([x, x]))[1]
    np.testing.assert_array_equal(ours, x[0])
    huber = jax.grad(lambda x: optax.huber_loss(x).sum())(x[0])
    assert np.abs(huber / x[0] - 1).max() > 1e-3
    np.testing.assert_allclose(optax.huber_loss(x[0]), 0.5 * x[0] ** 2)
