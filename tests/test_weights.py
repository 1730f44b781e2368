import pickle

import jax
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models import Backbone, get_network
from frcnn_jax.weights import merge_backbone, read_npz


@pytest.fixture(scope="module")
def params():
    backbone = Backbone(get_network("alexnet"))
    shapes = jax.eval_shape(
        backbone.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32),
        jax.ShapeDtypeStruct((1, 2), np.int32),
    )
    return {"backbone": shapes["params"], "head": {"fc6": 1}}


def arrays_for(params, rng):
    arrays = {}
    for layer, tensors in params["backbone"].items():
        shape = tensors["kernel"].shape
        arrays[f"{layer}.weight"] = rng.normal(size=(shape[3], shape[2], *shape[:2])).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(size=shape[3]).astype(np.float32)
    return arrays


def test_tensors_go_where_they_belong(params, rng):
    arrays = arrays_for(params, rng)
    merged = merge_backbone(params, arrays, source="f")
    assert merged["head"] == params["head"]
    for layer in params["backbone"]:
        np.testing.assert_array_equal(merged["backbone"][layer]["bias"], arrays[f"{layer}.bias"])
        kernel = np.asarray(merged["backbone"][layer]["kernel"])
        np.testing.assert_array_equal(kernel[1, 2, 0], arrays[f"{layer}.weight"][:, 0, 1, 2])


def test_real_weights_fit(shared, params):
    path = shared / "weights" / "alexnet_imagenet_conv.npz"
    merged = merge_backbone(params, read_npz(path), source=str(path))
    assert merged["backbone"]["conv2"]["kernel"].shape == (5, 5, 48, 256)


def test_every_misfit_is_named(params, rng):
    arrays = arrays_for(params, rng)
    del arrays["conv3.bias"]
    arrays["conv9.weight"] = arrays["conv5.weight"]
    arrays["conv1.bias"] = arrays["conv1.bias"][:5]
    arrays["conv4.bias"][3] = np.nan
    with pytest.raises(InputError) as error:
        merge_backbone(params, arrays, source="w.npz")
    text = str(error.value)
    assert text.startswith("w.npz: ")
    for part in ("missing conv3.bias", "extra conv9.kernel", "conv1.bias is (5,), not (96,)", "conv4.bias has values"):
        assert part in text


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "object.npz", a=np.array([{}], object))
    np.savez(tmp_path / "cut.npz", a=np.zeros(999))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("text", "pickle", "object", "cut"):
        with pytest.raises(InputError, match=f"{name}.npz: not a readable"):
            read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="no such weights file"):
        read_npz(tmp_path / "none.npz")
