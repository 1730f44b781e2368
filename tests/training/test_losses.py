import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.training.losses import box_loss, log_loss, smooth_l1


def test_smooth_l1_by_hand():
    np.testing.assert_allclose(smooth_l1(jnp.array([0.0, 0.5, -0.5, 1.0, -3.0])), [0, 0.125, 0.125, 0.5, 2.5])


def test_smooth_l1_gradient_is_clipped():
    np.testing.assert_allclose(
        jax.vmap(jax.grad(smooth_l1))(jnp.array([-7.0, -0.25, 0.0, 0.25, 7.0])), [-1, -0.25, 0, 0.25, 1]
    )


def test_log_loss_equals_a_loop(rng):
    logits, labels = rng.normal(0, 5, (3, 7, 4)).astype(np.float32), rng.integers(0, 4, (3, 7))
    expected = np.zeros((3, 7))
    for i in range(3):
        for j in range(7):
            p = np.exp(logits[i, j].astype(np.float64))
            expected[i, j] = -np.log(p[labels[i, j]] / p.sum())
    np.testing.assert_allclose(log_loss(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5, atol=1e-6)


def test_log_loss_of_huge_logits_is_finite():
    np.testing.assert_allclose(log_loss(jnp.array([[1e4, -1e4]]), jnp.array([1])), [2e4])


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
