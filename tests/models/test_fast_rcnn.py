from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import LayerBackbone
from frcnn_jax.models.fast_rcnn import FastRCNN, example_inputs, init_variables
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.layers import Conv, output_size
from frcnn_jax.models.networks import LAYER_NETWORKS, get_network
from frcnn_jax.models.parameters import layer_names, paths_before
from frcnn_jax.models.pools import RoIPool
from frcnn_jax.ops._roi_align import roi_align


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
    ours = jax.jit(LayerBackbone(network.layers, network.spatial_scale).apply)(
        {"params": params}, image, np.array([image.shape[1:3]], np.int32)
    )
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


@pytest.mark.parametrize("name", LAYER_NETWORKS)
@pytest.mark.parametrize("size", [(97, 131), (113, 96)])
def test_padding_changes_no_result(name, size, rng):
    """Features, probabilities and deltas of an image in a larger canvas, RoIs over its edges among them."""
    network = get_network(name)._replace(fc=(32, 32))
    model = network.build(3)
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
    features = jax.jit(
        lambda *args: LayerBackbone(network.layers, network.spatial_scale).apply(
            {"params": variables["params"]["backbone"]}, *args
        )
    )
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


def head_outputs(images, train=True, image_index=None, key=1, **options):
    """Logits of a head whose layers are identities: the ones that dropout lets through."""
    head = FullyConnectedHead(999, (1000, 1000), **options)
    identity = {"kernel": jnp.eye(1000), "bias": jnp.zeros(1000)}
    params = dict.fromkeys(("fc6", "fc7", "cls_score"), identity)
    params["bbox_pred"] = {"kernel": jnp.zeros((1000, 4000)), "bias": jnp.zeros(4000)}
    ones, rngs = jnp.ones((images, 1, 1, 1, 1000)), {"dropout": jax.random.key(key)}
    return np.asarray(head.apply({"params": params}, ones, train, image_index, rngs=rngs)[0][:, 0])


def test_dropout_follows_the_rng_and_the_index_of_each_image():
    whole = head_outputs(3)
    assert set(np.unique(whole)) == {0, 4}  # two layers at rate 0.5
    assert abs(whole.mean() - 1) < 0.1
    assert (whole[0] != whole[1]).any()
    np.testing.assert_array_equal(head_outputs(1, image_index=jnp.array([1])), whole[1:2])
    np.testing.assert_array_equal(head_outputs(3, image_index=jnp.arange(3)), whole)
    assert (head_outputs(3, key=2) != whole).any()
    np.testing.assert_array_equal(head_outputs(3, train=False), 1)
    np.testing.assert_array_equal(head_outputs(3, dropout=0.0), 1)
    seldom = head_outputs(3, dropout=0.2)
    np.testing.assert_allclose(np.unique(seldom), [0, 1 / 0.64], rtol=1e-6)
    assert abs((seldom > 0).mean() - 0.64) < 0.05


def test_dropout_asks_for_its_rng():
    model = get_network("tiny")._replace(dropout=0.5).build(2)
    variables = init_variables(model, jax.random.key(0))
    inputs = jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]]), jnp.zeros((1, 1, 4))
    model.apply(variables, *inputs)
    model.apply(variables, *inputs, True, rngs={"dropout": jax.random.key(1)})
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        model.apply(variables, *inputs, True)


class MeanBackbone(nn.Module):
    """A backbone of somebody else's: a convolution and a mean over 8 x 8 pixels."""

    spatial_scale: float = 1 / 8

    @nn.compact
    def __call__(self, images, image_size):
        return nn.avg_pool(nn.Conv(5, (3, 3))(images), (8, 8), (8, 8))


class ConstantHead(nn.Module):
    """The same logits and deltas for every RoI; not for training."""

    num_classes: int = 1

    def __call__(self, pooled, train=False):
        assert not train
        lead = (*pooled.shape[:2], 1, 1)
        logits = jnp.tile(jnp.array([0, jnp.log(3.0)]), lead[:3])
        return logits, jnp.tile(jnp.array([[1.0, 2, 3, 4], [-1, 0.5, 0.25, 8]]), lead)


def test_predictions_are_probabilities_and_deltas_times_std_plus_mean():
    """In training the deltas stay normalised; an SVM's margins stay as they are."""
    mean, std = np.zeros((2, 4)), np.ones((2, 4))
    mean[1], std[0], std[1] = (0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4), (0.1, 0.2, 4, 0.5)
    variables, pooled = {"box_stats": {"mean": mean, "std": std}}, jnp.zeros((2, 3, 1, 1, 5))
    model = FastRCNN(MeanBackbone(), ConstantHead(), RoIPool())
    scores, deltas = model.apply(variables, pooled, method=FastRCNN.outputs)
    np.testing.assert_allclose(scores, np.full((2, 3, 2), (0.25, 0.75)), rtol=1e-6)
    by_hand = [[1, 4, 9, 16], [0, 0.3, 1.3, 4.4]]
    np.testing.assert_allclose(deltas, np.broadcast_to(by_hand, (2, 3, 2, 4)), rtol=1e-6, atol=1e-7)
    margins, _ = model.clone(classifier="svm").apply(variables, pooled, method=FastRCNN.outputs)
    np.testing.assert_allclose(margins, np.full((2, 3, 2), (0, np.log(3))), rtol=1e-6)


class LinearHead(nn.Module):
    """A head of somebody else's, with a dropout of Flax's own."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, pooled, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(pooled.reshape(*pooled.shape[:2], -1))
        outputs = nn.Dense(5 * (self.num_classes + 1))(x)
        logits, deltas = outputs[..., : self.num_classes + 1], outputs[..., self.num_classes + 1 :]
        return logits, deltas.reshape(*deltas.shape[:-1], self.num_classes + 1, 4)


def test_takes_any_backbone_head_and_pool():
    pool = partial(roi_align, output_size=3, spatial_scale=1 / 8)
    model = FastRCNN(MeanBackbone(), LinearHead(), pool)
    variables = init_variables(model, jax.random.key(0))
    assert variables["box_stats"]["mean"].shape == (3, 4)
    assert variables["params"]["head"]["Dense_0"]["kernel"].shape == (45, 15)
    images, sizes, rois = (
        jnp.ones((2, 64, 64, 3)),
        jnp.full((2, 2), 64),
        jnp.tile(jnp.array([0, 0, 40, 30.0]), (2, 4, 1)),
    )
    scores, deltas = model.apply(variables, images, sizes, rois, method=FastRCNN.predict)
    assert deltas.shape == (2, 4, 3, 4)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    logits = [model.apply(variables, images, sizes, rois, True, rngs={"dropout": jax.random.key(i)})[0] for i in (0, 1)]
    assert (logits[0] != logits[1]).any()


def test_unknown_network_lists_the_choices():
    with pytest.raises(InputError, match=r"caffenet.*vgg16.*'resnet'"):
        get_network("resnet")


@pytest.mark.parametrize("name", ["caffenet", "vgg_cnn_m_1024", "vgg16", "tiny"])
def test_bfloat16_is_near_float32(name, rng):
    """Maps within 2e-2; parameters, logits and deltas stay float32."""
    network = get_network(name)._replace(fc=(16, 16))
    image = rng.normal(0, 60, (1, 97, 131, 3)).astype(np.float32)
    size, rois = np.array([[97, 131]], np.int32), np.array([[[0, 0, 90, 80]]], np.float32)
    exact, low = network.build(3), network.build(3, dtype=jnp.bfloat16)
    variables = jax.jit(low.init)(jax.random.key(0), image, size, rois)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    backbone = {"params": variables["params"]["backbone"]}
    expected = jax.jit(LayerBackbone(network.layers, network.spatial_scale).apply)(backbone, image, size)
    got = jax.jit(LayerBackbone(network.layers, network.spatial_scale, jnp.bfloat16).apply)(backbone, image, size)
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(got.astype(jnp.float32) - expected) / np.linalg.norm(expected) < 2e-2
    for a, b in zip(
        jax.jit(low.apply)(variables, image, size, rois), exact.apply(variables, image, size, rois), strict=True
    ):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05 * max(np.abs(b).max(), 1))


def test_float64_is_nowhere_rounded(rng):
    """A change of the pixels of 1e-10 passes through all layers, the response norm's powers too."""
    with jax.enable_x64(True):
        model = get_network("caffenet")._replace(fc=(16, 16)).build(3, dtype=jnp.float64)
        image, size = jnp.asarray(rng.normal(0, 60, (1, 97, 131, 3))), np.array([[97, 131]], np.int32)
        rois = np.array([[[0, 0, 90, 80], [20, 10, 110, 90]]], np.float32)
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), model.init(jax.random.key(0), image, size, rois))
        predict = jax.jit(model.apply)
        before, after = (predict(variables, image * factor, size, rois) for factor in (1, 1 + 1e-10))
        for one, other in zip(before, after, strict=True):
            assert one.dtype == jnp.float64
            assert 1e-13 < np.linalg.norm(other - one) / np.linalg.norm(one) < 1e-9


def test_trained_from():
    model, frozen = get_network("vgg16").build(2), {}
    convolutions = [layer.name for layer in LAYER_NETWORKS["vgg16"].layers if isinstance(layer, Conv)]
    for name in ("conv3_1", "conv1_1", "fc6", "bbox_pred", "head/cls_score", "conv5_*"):
        frozen[name] = layer_names(paths_before(model, example_inputs(), name))
    assert frozen["conv3_1"] == list(get_network("vgg16").frozen)  # the paper's choice for L
    assert frozen["conv1_1"] == []
    assert frozen["fc6"] == convolutions
    assert frozen["conv5_*"] == convolutions[:-3]
    assert frozen["bbox_pred"] == [*convolutions, "fc6", "fc7", "cls_score"]
    assert frozen["head/cls_score"] == [*convolutions, "fc6", "fc7"]
    with pytest.raises(
        InputError, match=r"train_from must be one of conv1_1.*conv5_3, fc6, fc7, cls_score, bbox_pred, got 'conv9'"
    ):
        paths_before(model, example_inputs(), "conv9")
