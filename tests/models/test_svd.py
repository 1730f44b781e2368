import jax
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.heads import FullyConnectedHead, check_two_layers
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.svd import compress_head, truncated_svd


def test_is_the_best_approximation_of_its_rank(rng):
    """Eckart and Young: the squared error is the sum of the squared dropped singular values."""
    kernel = rng.normal(0, 1, (12, 8)).astype(np.float32)
    values = np.linalg.svd(kernel, compute_uv=False)
    for rank in range(1, 8):
        first, second = truncated_svd(kernel, rank)
        assert first.shape == (12, rank)
        assert second.shape == (rank, 8)
        np.testing.assert_allclose(second @ second.T, np.eye(rank), atol=1e-5)
        assert np.square(kernel - first @ second).sum() == pytest.approx(np.square(values[rank:]).sum(), rel=1e-4)


def test_a_head_of_low_rank_computes_the_same(rng):
    head = FullyConnectedHead(3, (16, 12), std=None, dropout=0.0)
    pooled = rng.normal(0, 1, (2, 5, 3, 3, 4)).astype(np.float32)
    params = head.init(jax.random.key(0), pooled)["params"]
    for name, rank in (("fc6", 5), ("fc7", 3)):
        shape = params[name]["kernel"].shape
        low = rng.normal(0, 0.3, (shape[0], rank)) @ rng.normal(0, 0.3, (rank, shape[1]))
        params[name]["kernel"] = low.astype(np.float32)
    expected = head.apply({"params": params}, pooled)
    factored = compress_head({"head": params, "backbone": 1}, (5, 3))
    assert factored["backbone"] == 1
    got = head.clone(ranks=(5, 3)).apply({"params": factored["head"]}, pooled)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [(), (16,), (16, 12, 8)])
def test_a_head_has_any_number_of_layers(features, rng):
    head = FullyConnectedHead(3, features, std=None, dropout=0.0)
    pooled = rng.normal(0, 1, (2, 5, 3, 3, 4)).astype(np.float32)
    params = head.init(jax.random.key(0), pooled)["params"]
    assert params.keys() == {*("fc6", "fc7", "fc8")[: len(features)], "cls_score", "bbox_pred"}
    x = pooled.reshape(2, 5, 36)
    for layer in list(params)[: len(features)]:
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    expected = x @ params["cls_score"]["kernel"] + params["cls_score"]["bias"]
    np.testing.assert_allclose(head.apply({"params": params}, pooled)[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="fc6 and fc7, got one with a FullyConnectedHead with features="):
        check_two_layers(head)


def test_only_a_head_of_two_layers_is_built_with_ranks():
    with pytest.raises(InputError, match=r"got one with a ResNetHead$"):
        get_network("resnet18").build(2, fc_ranks=(4, 4))


def test_ranks_make_the_modules_parameters():
    model = get_network("vgg16").build(20, fc_ranks=(1024, 256))
    head = variable_shapes(model)["params"]["head"]
    assert head["fc6_reduce"]["kernel"].shape == (25088, 1024)
    assert "bias" not in head["fc6_reduce"]
    assert head["fc6"]["kernel"].shape == (1024, 4096)
    assert head["fc7_reduce"]["kernel"].shape == (4096, 256)


@pytest.mark.parametrize(("ranks", "text"), [((8, 0), "fc6 must be 1 to 7, got 8"), ((0, -1), "fc7 must be 1 to 3")])
def test_ranks_out_of_range(ranks, text):
    layer = {"fc6": {"kernel": np.zeros((9, 8)), "bias": 0}, "fc7": {"kernel": np.zeros((8, 4)), "bias": 0}}
    with pytest.raises(InputError, match=text):
        compress_head({"head": layer}, ranks)
    once = compress_head({"head": layer}, (2, 0))
    with pytest.raises(InputError, match="fc6 is already factored, to rank 2"):
        compress_head(once, (1, 0))
