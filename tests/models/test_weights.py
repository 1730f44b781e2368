import jax
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables, variable_shapes
from frcnn_jax.models.layers import Conv
from frcnn_jax.models.networks import Network, get_network
from frcnn_jax.models.pixels import TORCHVISION, PixelNorm
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import (
    Weights,
    adapt_pixels,
    canonical_arrays,
    described,
    fold_box_stats,
    keep_outputs,
    merge_weights,
)

# small, with a RoI size that is not square
SMALL = Network(
    (Conv("conv1_1", 4, 3, padding=1), Conv("conv1_2", 5, 3, padding=1)), (), (2, 3), (7, 6), spatial_scale=1.0
)
CLASSES = 2


def random_arrays(rng):
    """All arrays of a detector for SMALL, in Caffe's layouts."""
    shapes = {
        "conv1_1": (4, 3, 3, 3), "conv1_2": (5, 4, 3, 3), "fc6": (7, 30), "fc7": (6, 7),
        "cls_score": (3, 6), "bbox_pred": (12, 6),
    }  # fmt: skip
    arrays = {}
    for layer, shape in shapes.items():
        arrays[f"{layer}.weight"] = rng.normal(0, 0.3, shape).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(0, 0.3, shape[0]).astype(np.float32)
    return arrays


def caffe_network(arrays, image, roi):
    """The network in Caffe's layout, C, H, W: probabilities and deltas of one RoI, whose bins are whole cells."""
    x = image.transpose(2, 0, 1).astype(np.float64)
    for layer in ("conv1_1", "conv1_2"):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        weight = arrays[f"{layer}.weight"]
        x = sum(
            np.einsum("oi,ihw->ohw", weight[:, :, i, j], padded[:, i : i + x.shape[1], j : j + x.shape[2]])
            for i in range(3)
            for j in range(3)
        )
        x = np.maximum(x + arrays[f"{layer}.bias"][:, None, None], 0)
    x1, y1, x2, y2 = roi
    part = x[:, y1 : y2 + 1, x1 : x2 + 1]
    height, width = part.shape[1] // 2, part.shape[2] // 3
    flat = part.reshape(len(x), 2, height, 3, width).max((2, 4)).reshape(-1)  # C, H, W
    for layer in ("fc6", "fc7"):
        flat = np.maximum(arrays[f"{layer}.weight"] @ flat + arrays[f"{layer}.bias"], 0)
    logits = arrays["cls_score.weight"] @ flat + arrays["cls_score.bias"]
    deltas = arrays["bbox_pred.weight"] @ flat + arrays["bbox_pred.bias"]
    return np.exp(logits) / np.exp(logits).sum(), deltas.reshape(3, 4)


def our_network(arrays, image, roi):
    model = SMALL.build(CLASSES)
    shapes = variable_shapes(model)
    params = merge_weights(shapes["params"], arrays, roi_size=SMALL.roi_size, source="f")
    stats = {"mean": np.zeros((3, 4), np.float32), "std": np.ones((3, 4), np.float32)}
    sizes, rois = np.array([image.shape[:2]], np.int32), np.array([[roi]], np.float32)
    probs, deltas = model.apply(
        {"params": params, "box_stats": stats}, image[None], sizes, rois, method=FastRCNN.predict
    )
    return probs[0, 0], deltas[0, 0]


def assert_same_network(arrays, foreign, rng):
    image, roi = rng.normal(0, 1, (9, 11, 3)).astype(np.float32), (1, 2, 9, 7)
    for got, expected in zip(our_network(arrays, image, roi), caffe_network(foreign, image, roi), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_detector_computes_what_caffe_does(rng):
    arrays = random_arrays(rng)
    assert_same_network(arrays, arrays, rng)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("ranks", [(0, 0), (3, 2)])
def test_export_and_import_are_lossless(suffix, ranks, tmp_path, rng):
    model = SMALL.build(CLASSES, fc_ranks=ranks)
    params = jax.tree.map(lambda s: rng.normal(0, 1, s.shape).astype(np.float32), variable_shapes(model)["params"])
    arrays = canonical_arrays(params, roi_size=SMALL.roi_size)
    write_weights(tmp_path / f"w{suffix}", arrays)
    read = read_weights(tmp_path / f"w{suffix}")
    again = merge_weights(variable_shapes(model)["params"], read, roi_size=SMALL.roi_size, source="f")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_folded_box_layer_gives_targets_that_are_not_normalised(rng):
    arrays, x = random_arrays(rng), rng.normal(0, 1, 6)
    mean, std = rng.normal(0, 1, (3, 4)), rng.uniform(0.5, 2, (3, 4))
    folded = fold_box_stats(arrays, mean, std)
    normalised = (arrays["bbox_pred.weight"] @ x + arrays["bbox_pred.bias"]).reshape(3, 4)
    got = (folded["bbox_pred.weight"] @ x + folded["bbox_pred.bias"]).reshape(3, 4)
    np.testing.assert_allclose(got, normalised * std + mean)


def test_convolutions_alone_leave_the_head(rng):
    model = SMALL.build(CLASSES)
    params = variable_shapes(model)["params"]
    arrays = {name: array for name, array in random_arrays(rng).items() if name.startswith("conv")}
    assert merge_weights(params, arrays, roi_size=SMALL.roi_size, source="f")["head"] == params["head"]


def test_real_weights_fit(shared):
    path = shared / "weights" / "alexnet_imagenet_conv.npz"
    network = get_network("alexnet")
    params = variable_shapes(network.build(20))["params"]
    merged = merge_weights(params, read_weights(path), roi_size=network.roi_size, source=str(path))
    assert merged["backbone"]["conv2"]["kernel"].shape == (5, 5, 48, 256)


def test_every_misfit_is_named(rng):
    arrays = random_arrays(rng)
    del arrays["conv1_2.bias"], arrays["fc7.weight"]
    arrays["conv9.weight"] = arrays["conv1_1.weight"]
    arrays["conv1_1.bias"] = arrays["conv1_1.bias"][:3]
    arrays["fc6.weight"] = arrays["fc6.weight"].T
    arrays["bbox_pred.bias"][3] = np.nan
    params = variable_shapes(SMALL.build(CLASSES))["params"]
    with pytest.raises(InputError) as error:
        merge_weights(params, arrays, roi_size=SMALL.roi_size, source="w.npz")
    text = str(error.value)
    assert text.startswith("w.npz: does not fit the network: ")
    parts = ("missing conv1_2.bias", "missing fc7.weight", "extra conv9.weight", "conv1_1.bias is (3,), not (4,)")
    for part in (*parts, "fc6.weight is (30, 7), not (7, 30)", "bbox_pred.bias has values that are not finite"):
        assert part in text


def test_output_layers_start_from_a_detectors(model_and_variables, rng):
    """Of classes that share a name, in another order; the box layer predicts the same boxes under other statistics."""
    model, variables = model_and_variables
    theirs = [f"class {i}" for i in range(6)]
    arrays = canonical_arrays(variables["params"], roi_size=model.roi_size)
    config = {"class_names": theirs, "classifier": "softmax"}
    weights = described(fold_box_stats(arrays, **variables["box_stats"]), model, config)
    names = ["class 4", "another", "class 0"]
    fresh = init_variables(get_network("tiny").build(3), jax.random.key(5))["params"]
    stats = {"mean": rng.normal(0, 0.1, (4, 4)), "std": rng.uniform(0.1, 0.3, (4, 4))}
    params, kept = keep_outputs(fresh, weights, class_names=names, **stats)
    assert kept == ["class 4", "class 0"]

    def outputs(params, mean, std):
        x, head = rng.normal(size=(5, 128)) * 0 + np.arange(128) / 128, params["head"]
        scores, boxes = (x @ head[name]["kernel"] + head[name]["bias"] for name in ("cls_score", "bbox_pred"))
        return scores, boxes.reshape(5, -1, 4) * std + mean

    (scores, boxes), (old_scores, old_boxes) = (
        outputs(params, **stats),
        outputs(variables["params"], **variables["box_stats"]),
    )
    np.testing.assert_allclose(scores[:, [0, 1, 3]], old_scores[:, [0, 5, 1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(boxes[:, [0, 1, 3]], old_boxes[:, [0, 5, 1]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(boxes[:, 2], old_boxes[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        params["head"]["cls_score"]["kernel"][:, 2], fresh["head"]["cls_score"]["kernel"][:, 2]
    )
    for unlike in ({}, {**config, "classifier": "svm"}, {**config, "class_names": theirs[:2]}):
        same, kept = keep_outputs(fresh, Weights(weights, detector=unlike), class_names=names, **stats)
        assert kept == []
        jax.tree.map(np.testing.assert_array_equal, same, fresh)


@pytest.mark.parametrize("shape", [(), (0,), (3, 3), (4, 4, 3, 3), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("name", ["conv1_1.weight", "conv1_1.bias"])
def test_a_first_layer_of_another_rank_is_left_to_the_comparison(name, shape):
    arrays = {"conv1_1.weight": np.ones((4, 3, 3, 3)), "conv1_1.bias": np.ones(4), name: np.ones(shape)}
    found = adapt_pixels(arrays, "conv1_1", TORCHVISION, PixelNorm())
    assert found[name].shape == shape
