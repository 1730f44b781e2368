import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frcnn_jax.training.solver import caffe_sgd, step_schedule


def test_schedule_by_hand():
    schedule = step_schedule(0.001, (3, 5))
    np.testing.assert_allclose([schedule(i) for i in range(7)], [1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2, rtol=1e-6)


def test_warmup_by_hand():
    schedule = step_schedule(0.001, (4,), warmup_steps=3)
    np.testing.assert_allclose([schedule(i) for i in range(6)], [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("decay_biases", [False, True])
def test_equals_caffes_update_across_a_change_of_rate(decay_biases, rng):
    """V = 0.9 V + rate * multiplier * (g + decay * w); w = w - V, in a plain loop."""
    params = {"fc": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    solver = caffe_sgd(step_schedule(0.01, (40,)), momentum=0.9, weight_decay=0.05, decay_biases=decay_biases)
    state, update = solver.init(params), jax.jit(solver.update)
    w = {name: np.asarray(x, np.float64) for name, x in params["fc"].items()}
    v = {name: np.zeros_like(x) for name, x in w.items()}
    for step in range(100):
        rate = 0.01 if step < 40 else 0.001
        gradients = {name: rng.normal(size=x.shape) for name, x in w.items()}
        for name, multiplier, decay in (("kernel", 1, 0.05), ("bias", 2, 0.05 * decay_biases)):
            v[name] = 0.9 * v[name] + rate * multiplier * (gradients[name] + decay * w[name])
            w[name] = w[name] - v[name]
        updates, state = update({"fc": {n: jnp.asarray(g, jnp.float32) for n, g in gradients.items()}}, state, params)
        params = optax.apply_updates(params, updates)
    for name in w:
        np.testing.assert_allclose(params["fc"][name], w[name], atol=1e-6 * max(np.abs(w[name]).max(), 1))
