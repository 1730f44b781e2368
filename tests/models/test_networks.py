"""The table of networks against the prototxt files of the paper's code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.models.fast_rcnn import init_variables
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.layers import Conv, Norm, Pool
from frcnn_jax.models.networks import LAYER_NETWORKS
from frcnn_jax.models.pixels import PixelNorm


def conv(name, features, kernel, stride=1, padding=0, groups=1):
    return name, features, kernel, stride, padding, groups, True  # and its ReLU


def block(number, features, *, depth):
    return [conv(f"conv{number}_{i}", features, 3, padding=1) for i in range(1, depth + 1)]


ALEXNET = [
    conv("conv1", 96, 11, stride=4, padding=5),
    conv("conv2", 256, 5, padding=2, groups=2),
    conv("conv3", 384, 3, padding=1),
    conv("conv4", 384, 3, padding=1, groups=2),
    conv("conv5", 256, 3, padding=1, groups=2),
]
POOL, NORM = (3, 2, 1, True), (1e-4, 1.0, 5, 0.75)  # kernel, stride, padding, rounded up; alpha, k, n, beta
M_POOL, M_NORM = (3, 2, 0, True), (5e-4, 2, 5, 0.75)
HALVE = (2, 2, 0, True)
LAYERS = {
    "caffenet": [ALEXNET[0], POOL, NORM, ALEXNET[1], POOL, NORM, *ALEXNET[2:]],
    "alexnet": [ALEXNET[0], NORM, POOL, ALEXNET[1], NORM, POOL, *ALEXNET[2:]],
    "vgg_cnn_m_1024": [
        conv("conv1", 96, 7, stride=2),
        M_NORM,
        M_POOL,
        conv("conv2", 256, 5, stride=2, padding=1),
        M_NORM,
        M_POOL,
        *(conv(f"conv{i}", 512, 3, padding=1) for i in (3, 4, 5)),
    ],
    "vgg16": [
        *block(1, 64, depth=2),
        HALVE,
        *block(2, 128, depth=2),
        HALVE,
        *block(3, 256, depth=3),
        HALVE,
        *block(4, 512, depth=3),
        HALVE,
        *block(5, 512, depth=3),
    ],
    "tiny": [*block(1, 16, depth=1), HALVE, *block(2, 32, depth=2), HALVE, *block(3, 64, depth=2)],
}
BGR_MEANS = (102.9801, 115.9465, 122.7717)
REST = {  # frozen layers, RoI size, fc6 and fc7, spatial scale, pixels, std of fc6 and fc7, dropout
    "caffenet": (("conv1",), (6, 6), (4096, 4096), 1 / 16, PixelNorm("BGR", BGR_MEANS, (1, 1, 1)), 0.005, 0.5),
    "alexnet": (("conv1",), (6, 6), (4096, 4096), 1 / 16, PixelNorm("BGR", BGR_MEANS, (1, 1, 1)), 0.005, 0.5),
    "vgg_cnn_m_1024": (("conv1",), (6, 6), (4096, 1024), 1 / 16, PixelNorm("BGR", BGR_MEANS, (1, 1, 1)), 0.005, 0.5),
    "vgg16": (
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
        *((7, 7), (4096, 4096), 1 / 16, PixelNorm("BGR", BGR_MEANS, (1, 1, 1)), 0.005, 0.5),
    ),
    "tiny": ((), (6, 6), (128, 128), 1 / 4, PixelNorm("BGR", BGR_MEANS, (64, 64, 64)), None, 0),
}


def test_every_network_has_its_row():
    assert set(LAYER_NETWORKS) == set(LAYERS) == set(REST)


@pytest.mark.parametrize("name", LAYER_NETWORKS)
def test_every_value_of_a_network(name):
    layers, *rest = LAYER_NETWORKS[name]
    assert list(layers) == LAYERS[name]
    kinds = {str: Conv, int: Pool, float: Norm}
    assert [type(layer) for layer in layers] == [kinds[type(layer[0])] for layer in LAYERS[name]]
    assert tuple(rest) == REST[name]
    strides = [layer.stride for layer in layers if not isinstance(layer, Norm)]
    assert 1 / math.prod(strides) == REST[name][3]


@pytest.mark.parametrize("name", LAYER_NETWORKS)
def test_a_model_is_built_of_all_of_a_row(name):
    row = LAYER_NETWORKS[name]._replace(dropout=0.25, fc_std=0.02, roi_size=(3, 5), spatial_scale=0.125)
    model = row.build(7, dtype=jnp.bfloat16, fc_ranks=(2, 3), classifier="svm")
    assert (model.backbone.layers, model.backbone.dtype) == (row.layers, jnp.bfloat16)
    assert model.backbone.spatial_scale == model.pool.spatial_scale == model.spatial_scale == 0.125
    assert (model.pool.output_size, model.pixels, model.classifier) == ((3, 5), row.pixels, "svm")
    assert model.head == FullyConnectedHead(7, row.fc, (2, 3), 0.02, 0.25, jnp.bfloat16)
    assert LAYER_NETWORKS[name].build(2).head.ranks == ()


@pytest.mark.parametrize(("fc_std", "std"), [(0.005, 0.005), (None, math.sqrt(2 / 576))])
def test_initial_values_have_the_papers_deviations(fc_std, std):
    """Gaussians of 0.01 for the classes and 0.001 for the boxes; He's deviations for convolutions."""
    network = LAYER_NETWORKS["tiny"]._replace(fc=(576, 576), fc_std=fc_std, roi_size=(3, 3))
    variables = init_variables(network.build(99), jax.random.key(0))
    layers = {name: layer for part in variables["params"].values() for name, layer in part.items()}
    expected = {"fc6": std, "fc7": std, "cls_score": 0.01, "bbox_pred": 0.001}
    expected |= {"conv2_1": math.sqrt(2 / (9 * 16)), "conv3_2": math.sqrt(2 / (9 * 64))}
    for name, deviation in expected.items():
        kernel = np.asarray(layers[name]["kernel"]) / deviation
        assert abs(kernel.mean()) < 0.05, name
        assert abs(kernel.std() - 1) < 0.05, name
        if name in ("cls_score", "bbox_pred"):  # a Gaussian's share beyond two deviations
            assert abs((np.abs(kernel) > 2).mean() - 0.0455) < 0.005, name
        assert set(np.asarray(layers[name]["bias"])) == {np.float32(0.1 if name.startswith("fc") else 0)}, name
    stats = variables["box_stats"]
    assert stats["mean"].shape == stats["std"].shape == (100, 4)
    assert not np.any(stats["mean"])
    assert np.all(stats["std"] == 1)
