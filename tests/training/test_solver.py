import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.training.solver import adamw, caffe_sgd, cosine_schedule, step_schedule


def test_schedule_by_hand():
    schedule = step_schedule(0.001, (3, 5))
    np.testing.assert_allclose([schedule(i) for i in range(7)], [1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2, rtol=1e-6)


def test_warmup_by_hand():
    schedule = step_schedule(0.001, (4,), warmup_steps=3)
    np.testing.assert_allclose([schedule(i) for i in range(6)], [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)


def test_cosine_by_hand():
    schedule = cosine_schedule(0.1, steps=4)
    expected = [0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - 0.5**0.5), 0, 0]
    np.testing.assert_allclose([schedule(i) for i in range(6)], expected, atol=1e-8)
    warmed = cosine_schedule(0.1, steps=4, warmup_steps=1)
    np.testing.assert_allclose([warmed(i) for i in range(3)], [0.05, *expected[1:3]], atol=1e-8)
    with pytest.raises(InputError, match="steps must be over 0, got 0"):
        cosine_schedule(0.1, steps=0)


@pytest.mark.parametrize("decay_biases", [False, True])
def test_adamw_by_the_rule(decay_biases, rng):
    """Loshchilov and Hutter 2019, algorithm 2, in a plain loop; the bias has a tenth of the rate."""
    params = {"fc": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    solver = adamw(step_schedule(0.01, (10,)), weight_decay=0.05, decay_biases=decay_biases, multipliers={"bias": 0.1})
    state, update = solver.init(params), jax.jit(solver.update)
    w = {name: np.asarray(x, np.float64) for name, x in params["fc"].items()}
    m, v = ({name: np.zeros_like(x) for name, x in w.items()} for _ in range(2))
    for step in range(20):
        rate = 0.01 if step < 10 else 0.001
        gradients = {name: rng.normal(size=x.shape) for name, x in w.items()}
        for name, factor, decay in (("kernel", 1, 0.05), ("bias", 0.1, 0.05 * decay_biases)):
            m[name] = 0.9 * m[name] + 0.1 * gradients[name]
            v[name] = 0.999 * v[name] + 0.001 * gradients[name] ** 2
            unbiased = m[name] / (1 - 0.9 ** (step + 1)), v[name] / (1 - 0.999 ** (step + 1))
            w[name] = w[name] - rate * factor * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + decay * w[name])
        updates, state = update({"fc": {n: jnp.asarray(g, jnp.float32) for n, g in gradients.items()}}, state, params)
        params = optax.apply_updates(params, updates)
    for name in w:
        np.testing.assert_allclose(params["fc"][name], w[name], atol=1e-5)


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


@pytest.mark.parametrize("solver", [caffe_sgd, adamw])
def test_biases_of_any_tree_do_not_decay(solver):
    """Flax NNX's are at "bias/value"."""
    params = {"conv": {"bias": {"value": jnp.ones(2)}, "kernel": {"value": jnp.ones(2)}}}
    update = solver(step_schedule(0.1, ()), weight_decay=0.5)
    updates, _ = update.update(jax.tree.map(jnp.zeros_like, params), update.init(params), params)
    assert not updates["conv"]["bias"]["value"].any()
    assert updates["conv"]["kernel"]["value"].all()
