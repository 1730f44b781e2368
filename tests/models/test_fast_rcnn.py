import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import NETWORKS, Backbone, FastRCNN, dropout, get_network
from frcnn_jax.models.layers import Conv, output_size


@pytest.mark.parametrize(("letter", "name"), [("S", "caffenet"), ("M", "vgg_cnn_m_1024"), ("L", "vgg16")])
def test_map_equals_independent_program(shared, letter, name):
    file = np.load(shared / "oracles" / "backbones.npz")
    network = get_network(name)
    g = np.random.default_rng(20151)
    params, channels = {}, 3
    for layer in network.layers:
        if isinstance(layer, Conv):
            shape = (layer.features, channels // layer.groups, layer.kernel, layer.kernel)
            w = g.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
            params[layer.name] = {
                "kernel": w.transpose(2, 3, 1, 0),
                "bias": g.standard_normal(layer.features, np.float32) * np.float32(0.1),
            }
            channels = layer.features
    image = file[f"{letter}_input"].transpose(0, 2, 3, 1)
    ours = jax.jit(Backbone(network).apply)({"params": params}, image, np.array([image.shape[1:3]], np.int32))
    expected = file[f"{letter}_map"].transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "expected"),
    [("caffenet", (39, 64)), ("alexnet", (39, 64)), ("vgg_cnn_m_1024", (36, 61)), ("vgg16", (38, 63))],
)
def test_map_size_of_a_600x1000_image(name, expected):
    size = np.array([600, 1000])
    for layer in get_network(name).layers:
        size = output_size(layer, size)
    assert tuple(size) == expected


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(97, 131), (113, 96)])
def test_padding_changes_no_result(name, size, rng):
    """Features, probabilities and deltas of an image in a larger canvas, RoIs over its edges among them."""
    network = get_network(name)._replace(fc=(32, 32))
    model = FastRCNN(network, 3)
    rows, columns = size
    image = np.zeros((1, 144, 160, 3), np.float32)
    image[:, :rows, :columns] = rng.normal(0, 60, (1, rows, columns, 3))
    rois = rng.uniform(0, 1, (1, 20, 4)) * [columns, rows, columns, rows]
    rois = np.concatenate([np.minimum(rois[..., :2], rois[..., 2:]), np.maximum(rois[..., :2], rois[..., 2:])], -1)
    rois = np.concatenate([rois, [[[0, 0, columns - 1, rows - 1], [columns - 2, rows - 2, columns - 1, rows - 1]]]], 1)
    sizes, rois = np.array([size], np.int32), rois.astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image, sizes, rois)
    # biases that show wherever something leaks in from the padding
    variables = jax.tree.map(lambda x: x + 0.3 * (x.ndim == 1), variables)
    predict = jax.jit(lambda *args: model.apply(*args, method=FastRCNN.predict))
    features = jax.jit(lambda *args: Backbone(network).apply({"params": variables["params"]["backbone"]}, *args))
    alone, padded = image[:, :rows, :columns], image
    for got, expected in zip(
        predict(variables, padded, sizes, rois), predict(variables, alone, sizes, rois), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    expected = features(alone, sizes)
    got = np.asarray(features(padded, sizes))
    np.testing.assert_allclose(
        got[:, : expected.shape[1], : expected.shape[2]], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )
    assert not got[:, expected.shape[1] :].any()
    assert not got[:, :, expected.shape[2] :].any()


def test_dropout_follows_the_key_of_each_image():
    x, keys = jnp.ones((3, 1000)), jax.random.split(jax.random.key(1), 3)
    whole = dropout(x, keys, 0.5)
    np.testing.assert_array_equal(dropout(x[1:2], keys[1:2], 0.5), whole[1:2])
    assert set(np.unique(whole)) == {0, 2}
    assert abs(float(whole.mean()) - 1) < 0.1
    assert dropout(x, None, 0.5) is x


def test_unknown_network_lists_the_choices():
    with pytest.raises(InputError, match=r"caffenet.*vgg16.*'resnet'"):
        get_network("resnet")


@pytest.mark.parametrize("name", ["caffenet", "vgg_cnn_m_1024", "vgg16", "tiny"])
def test_bfloat16_is_near_float32(name, rng):
    """Maps within 2e-2; parameters, logits and deltas stay float32."""
    network = get_network(name)._replace(fc=(16, 16))
    image = rng.normal(0, 60, (1, 97, 131, 3)).astype(np.float32)
    size, rois = np.array([[97, 131]], np.int32), np.array([[[0, 0, 90, 80]]], np.float32)
    exact, low = FastRCNN(network, 3), FastRCNN(network, 3, jnp.bfloat16)
    variables = jax.jit(low.init)(jax.random.key(0), image, size, rois)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    backbone = {"params": variables["params"]["backbone"]}
    expected = jax.jit(Backbone(network).apply)(backbone, image, size)
    got = jax.jit(Backbone(network, jnp.bfloat16).apply)(backbone, image, size)
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(got.astype(jnp.float32) - expected) / np.linalg.norm(expected) < 2e-2
    for a, b in zip(
        jax.jit(low.apply)(variables, image, size, rois), exact.apply(variables, image, size, rois), strict=True
    ):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05 * max(np.abs(b).max(), 1))


def test_trained_from():
    network = get_network("vgg16")
    assert network.trained_from("conv3_1").frozen == network.frozen  # the paper's choice for L
    assert network.trained_from("conv1_1").frozen == ()
    assert network.trained_from("fc6").frozen == tuple(network.convolutions)
    assert network.trained_from("bbox_pred").frozen == (*network.convolutions, "fc6", "fc7", "cls_score")
    with pytest.raises(
        InputError, match=r"train_from must be one of conv1_1.*conv5_3, fc6, fc7, cls_score, bbox_pred, got 'conv9'"
    ):
        network.trained_from("conv9")
