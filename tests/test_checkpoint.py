import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.checkpoint import load_model, open_checkpoints, restore, save
from frcnn_jax.errors import InputError


def tree(value):
    return {"a": {"kernel": jnp.full((2, 3), value)}, "b": jnp.arange(3) + value}


def test_round_trip_and_keep(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, tree(float(step)), {"m": jnp.full(2, float(-step))})
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        assert sorted(checkpoints.all_steps()) == [2, 3]
        model, optimizer = restore(checkpoints, 3, tree(0.0), {"m": jnp.zeros(2)})
    np.testing.assert_array_equal(model["a"]["kernel"], np.full((2, 3), 3))
    np.testing.assert_array_equal(optimizer["m"], [-3, -3])


def test_load_model_takes_the_newest_or_a_step(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (4, 8):
            save(checkpoints, step, tree(float(step)), {"m": jnp.zeros(2)})
    for asked, got in ((None, 8), (4, 4)):
        model, step = load_model(tmp_path, tree(0.0), asked)
        assert step == got
        np.testing.assert_array_equal(model["b"], np.arange(3) + got)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no checkpoints here; train first"):
        load_model(tmp_path, tree(0.0))
    with open_checkpoints(tmp_path) as checkpoints:
        pass
    with pytest.raises(InputError, match="no checkpoint yet; train first"):
        load_model(tmp_path, tree(0.0))
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4, tree(4.0), {"m": jnp.zeros(2)})
    with pytest.raises(InputError, match="4: not a whole checkpoint of this network"):
        load_model(tmp_path, {"other": jnp.zeros(3)})
    with pytest.raises(InputError, match=r"no checkpoint of step 5; there are \[4\]"):
        load_model(tmp_path, tree(0.0), 5)
