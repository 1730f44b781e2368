"""Conversion between canonical arrays and the parameters of a network.

Pretrained weights are read by `weight_files.read_weights` as canonical arrays, which `merge_weights` turns into
parameters. `canonical_arrays` and `weight_files.write_weights` do the reverse.

Canonical arrays have Caffe's names and layouts: `<layer>.weight`, OIHW for convolutions and (outputs, inputs) for fc
layers, the inputs of fc6 in C, H, W order; `<layer>.bias`. Flax has HWIO, (inputs, outputs) and H, W, C order.
"""

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN, variable_shapes
from frcnn_jax.models.parameters import flatten, unflatten
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.models.resnet import BLOCKS, FPN, ResNet

Arrays = dict[str, np.ndarray]

OUTPUTS = ("cls_score", "bbox_pred")
_FIRST = ("conv1", "conv1_1", "conv_stem")  # the layer that sees the pixels


class Weights(dict[str, np.ndarray]):
    """Canonical arrays by name, with what their file says of the network that they are from.

    Attributes:
        pixels: How its images are normalised; None for this library's network of the same layers.
        stride_in_1x1: Of a ResNet, see `ResNet`; None if the weights are not of one.
        detector: Of a trained detector, its class names and the other fields of its config that it needs; else empty.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        pixels: PixelNorm | None = None,
        stride_in_1x1: bool | None = None,
        detector: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(arrays)
        self.pixels, self.stride_in_1x1, self.detector = pixels, stride_in_1x1, dict(detector or {})


def described(arrays: Mapping[str, np.ndarray], model: FastRCNN, detector: Mapping[str, Any] | None = None) -> Weights:
    """Return canonical arrays with the description of the model that they are from, and its config if it is trained."""
    return Weights(arrays, model.pixels, getattr(model.backbone, "stride_in_1x1", None), detector)


def to_canonical(array: np.ndarray, pooled: tuple[int, int, int] | None = None) -> np.ndarray:
    """Convert a parameter from Flax's layout to Caffe's.

    Args:
        array: Kernel or bias.
        pooled: Rows, columns and channels of the pooled features, for the kernel that takes them.
    """
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    array = array.T
    if pooled:
        array = array.reshape(-1, *pooled).transpose(0, 3, 1, 2).reshape(len(array), -1)
    return array


def from_canonical(array: np.ndarray, pooled: tuple[int, int, int] | None = None) -> np.ndarray:
    """Convert a parameter from Caffe's layout to Flax's, the inverse of `to_canonical`."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if pooled:
        rows, columns, channels = pooled
        array = array.reshape(-1, channels, rows, columns).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array.T


def adapt_pixels(arrays: Mapping[str, np.ndarray], layer: str, source: PixelNorm, target: PixelNorm) -> Arrays:
    """Adapt the first layer to images that are normalised in another way. It is exact where no padding is seen.

    Args:
        arrays: Canonical arrays.
        layer: Name of the first layer, which must have a bias.
        source: The normalisation that the layer expects.
        target: The one that it is to expect.
    """
    names = f"{layer}.weight", f"{layer}.bias"
    shapes = [np.shape(arrays.get(name, 0)) for name in names]
    if source == target or len(shapes[0]) != 4 or shapes[0][1] != 3 or shapes[1] != shapes[0][:1]:
        return dict(arrays)  # `merge_weights` reports missing ones, and other shapes
    turn = slice(None, None, 1 if source.order == target.order else -1)  # the source's channels in the target's order
    mean, std = (np.asarray(values)[turn] for values in (source.mean, source.std))
    weight = arrays[names[0]][:, turn].astype(np.float64)
    bias = arrays[names[1]] + (weight.sum(axis=(2, 3)) * ((target.mean - mean) / std)).sum(axis=1)
    weight = weight * (np.asarray(target.std) / std)[:, None, None]
    return {**arrays, names[0]: weight.astype(np.float32), names[1]: bias.astype(np.float32)}


def fit_weights(arrays: Mapping[str, np.ndarray], model: FastRCNN, source: str) -> Arrays:
    """Return the arrays that a model takes, for its own pixels.

    The stages of a longer backbone than the model's are left out.

    Args:
        arrays: Canonical arrays; `Weights` say more.
        model: The model.
        source: Where the arrays come from, for messages.

    Raises:
        InputError: They are from a ResNet of another depth, or one whose stages stride in another convolution.
    """
    found: Arrays = dict(arrays)
    if not isinstance(arrays, Weights):
        return found
    if arrays.pixels:
        first = next((layer for layer in _FIRST if f"{layer}.weight" in arrays), "")
        found = adapt_pixels(found, first, arrays.pixels, model.pixels)
    layers = {path.split("/")[1] for path in flatten(variable_shapes(model)["params"])}
    if "conv_stem" in layers:
        found = {name: array for name, array in found.items() if _layer(name) in layers or name[:6] != "blocks"}
    backbone = model.backbone
    if arrays.stride_in_1x1 is None or not isinstance(backbone, ResNet | FPN):
        return found
    theirs, depth = _resnet_depth(found), backbone.depth
    if theirs and theirs != depth:
        raise InputError(f"{source}: weights of a ResNet-{theirs}, but the network is a ResNet-{depth}")
    if depth >= 50 and arrays.stride_in_1x1 != backbone.stride_in_1x1:
        where = "first 1x1" if arrays.stride_in_1x1 else "3x3"
        other = "a network whose name ends in _caffe" if arrays.stride_in_1x1 else "a network without _caffe"
        raise InputError(f"{source}: weights of a ResNet that strides in its {where} convolutions; use {other}")
    later = {f"layer{stage}" for stage in range(1, 5)} - layers
    return {name: array for name, array in found.items() if name.split(".")[0] not in later}


def _resnet_depth(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Return the depth of the ResNet whose blocks and convolutions these are; None if there is no such depth."""
    names = [name.split(".") for name in arrays]
    blocks = {tuple(parts[:2]) for parts in names if parts[0].startswith("layer")}
    counts = [sum(stage == f"layer{i}" for stage, _ in blocks) for i in range(1, 4)]
    deep = any(parts[2:3] == ["conv3"] for parts in names)
    return next((depth for depth, own in BLOCKS.items() if list(own[:3]) == counts and (depth >= 50) == deep), None)


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Return canonical names by path: backbone/layer1/0/conv1/kernel is layer1.0.conv1.weight.

    Where parts of a network have the same names, the part goes before them: backbone.Conv_0.weight.
    """
    names = {path: re.sub("/kernel$", "/weight", path).replace("/", ".") for path in paths}
    counts = Counter(name.partition(".")[2] for name in names.values())
    return {path: name if counts[short := name.partition(".")[2]] > 1 else short for path, name in names.items()}


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _canonical_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _pooled_inputs(leaves: Mapping[str, Any], roi_size: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """Return the kernel that takes the pooled features, and their rows, columns and channels."""
    first = next((path for path in ("head/fc6_reduce/kernel", "head/fc6/kernel") if path in leaves), None)
    if not first or not roi_size or leaves[first].shape[0] % math.prod(roi_size):
        return {}
    return {first: (*roi_size, leaves[first].shape[0] // math.prod(roi_size))}


def merge_weights(
    params: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, roi_size: tuple[int, ...], source: str
) -> dict[str, Any]:
    """Replace parameters of `FastRCNN` with pretrained ones.

    All layers of the backbone are required, but for those of a feature pyramid. The hidden layers of the head may be
    missing together, and so may the pyramid's, and cls_score and bbox_pred.

    Args:
        params: Initialised parameters of a `FastRCNN`, or their shapes.
        arrays: Canonical arrays.
        roi_size: Rows and columns of the network's pooled features; () if its pool has none.
        source: Where the arrays come from, for messages.

    Returns:
        The parameters; layers without an array are those in `params`.

    Raises:
        InputError: Tensors are missing, unknown, of the wrong shape or not finite; the message groups many.
    """
    leaves = flatten(params)
    names = _names(leaves)
    given = {_layer(name) for name in arrays}
    heads = {_layer(name) for path, name in names.items() if path.startswith("head/")}
    pyramid = {_layer(name) for name in names.values() if name.startswith("fpn_")}
    groups = (heads.difference(OUTPUTS), set(OUTPUTS), pyramid)
    absent = {layer for group in groups if given.isdisjoint(group) for layer in group}
    wanted = {name: path for path, name in names.items() if _layer(name) not in absent}
    problems = _differing_names(sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys()))
    for name in sorted(wanted.keys() & arrays.keys()):
        expected, shape = _canonical_shape(leaves[wanted[name]].shape), arrays[name].shape
        if shape != expected:
            turned = " (transposed?)" if sorted(shape) == sorted(expected) else ""
            problems.append(f"{name} is {shape}, not {expected}{turned}")
        elif not np.isfinite(arrays[name]).all():
            problems.append(f"{name} has values that are not finite")
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    if problems:
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems)}")
    pooled = _pooled_inputs(leaves, roi_size)
    for name, path in wanted.items():
        leaves[path] = jax.numpy.asarray(from_canonical(arrays[name], pooled.get(path)), leaves[path].dtype)
    return unflatten(leaves)


_SHOWN = 8  # problems that a message lists


def _differing_names(missing: list[str], extra: list[str]) -> list[str]:
    """Describe names, those of many tensors by their first part and with the name nearest to one that is missing."""
    if len(missing) + len(extra) <= _SHOWN:
        return [f"missing {name}" for name in missing] + [f"extra {name}" for name in extra]
    problems = []
    for word, names in (("missing", missing), ("extra", extra)):
        for first, group in itertools.groupby(names, key=lambda name: name.split(".")[0]):
            own = list(group)
            problems.append(f"{word} {len(own)} of {first} ({own[0]}{', ...' if len(own) > 1 else ''})")
    near = difflib.get_close_matches(missing[0], extra, 1) if missing else []
    return problems[: _SHOWN - 1] + [f"nearest to {missing[0]} is {near[0]}" for _ in near]


def canonical_names(params: Mapping[str, Any]) -> list[str]:
    """Return the canonical names of all parameters."""
    return list(_names(flatten(params)).values())


def canonical_arrays(params: Mapping[str, Any], *, roi_size: tuple[int, ...]) -> Arrays:
    """Return all parameters as canonical arrays: the exact inverse of `merge_weights`.

    Args:
        params: Parameters of a `FastRCNN`.
        roi_size: Rows and columns of the network's pooled features; () if its pool has none.
    """
    leaves = flatten(params)
    pooled = _pooled_inputs(leaves, roi_size)
    return {name: to_canonical(np.asarray(leaves[path]), pooled.get(path)) for path, name in _names(leaves).items()}


def fold_box_stats(arrays: Mapping[str, np.ndarray], mean: np.ndarray, std: np.ndarray) -> Arrays:
    """Fold the statistics of the box targets into bbox_pred, which then predicts unnormalised targets.

    The paper's code does so when it saves a model (`snapshot` in lib/fast_rcnn/train.py).

    Args:
        arrays: Canonical arrays.
        mean: `(K + 1, 4)`, subtracted from the targets in training.
        std: `(K + 1, 4)`, by which the targets were then divided.

    Returns:
        The arrays, bbox_pred replaced.

    Raises:
        InputError: One box is regressed for all classes, but their statistics differ.
    """
    mean, std = np.asarray(mean), np.asarray(std)
    if len(arrays["bbox_pred.bias"]) == 4:  # one box for all classes
        if np.ptp(mean[1:], axis=0).any() or np.ptp(std[1:], axis=0).any():
            raise InputError("the box statistics of the classes differ, but the network regresses one box for all")
        mean, std = mean[-1], std[-1]
    mean, std = mean.reshape(-1), std.reshape(-1)
    weight, bias = arrays["bbox_pred.weight"] * std[:, None], arrays["bbox_pred.bias"] * std + mean
    return {**arrays, "bbox_pred.weight": weight, "bbox_pred.bias": bias}


def load_pretrained(
    params: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    roi_size: tuple[int, ...],
    keep_classifier: bool = False,
    source: str,
) -> dict[str, Any]:
    """Return the parameters that training starts from: fresh ones with pretrained layers.

    The output layers stay fresh; with `keep_classifier` only the box layer does, for stage-wise training.

    Args:
        params: Freshly initialised.
        arrays: Canonical arrays.
        roi_size: See `merge_weights`.
        keep_classifier: Whether to take cls_score from the arrays as well.
        source: Where the arrays come from, for messages.

    Raises:
        InputError: The arrays do not fit, or have no cls_score to keep.
    """
    outputs = {name for name in arrays if name.split(".")[0] in OUTPUTS}
    if keep_classifier and not outputs:
        raise InputError(f"{source}: no cls_score in it; training the box layer alone needs a trained detector")
    if not keep_classifier:
        arrays = {name: array for name, array in arrays.items() if name not in outputs}
    merged = merge_weights(params, arrays, roi_size=roi_size, source=source)
    fresh = {name: layer for name, layer in params["head"].items() if name == "bbox_pred"}
    return {**merged, "head": {**merged["head"], **fresh}}


def keep_outputs(
    params: Mapping[str, Any], weights: Weights, *, class_names: Sequence[str], mean: np.ndarray, std: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
    """Return parameters whose output layers start from a detector's, for the background and the classes it knows.

    The boxes of a class that it does not know start from the mean of those that it predicts for its own classes.

    Args:
        params: Of the network to train.
        weights: Of the detector; its box layer predicts unnormalised targets (`fold_box_stats`).
        class_names: The K class names of the network.
        mean, std: `(K + 1, 4)` statistics by which its box targets are normalised.

    Returns:
        The parameters, and the names of the classes kept: none if the weights are of no detector with softmax and boxes
        by class, its last layer has another width, or the network's output layers have other names.
    """
    if not set(OUTPUTS) <= set(params["head"]):
        return dict(params), []
    theirs, ours = (("background", *names) for names in (weights.detector.get("class_names", ()), class_names))
    kept = [name for name in ours if name in theirs]
    known = np.array([name in theirs for name in ours])
    of = [theirs.index(name) for name in kept]
    outputs: dict[str, dict[str, Any]] = {layer: {} for layer in OUTPUTS}
    for layer, width in zip(OUTPUTS, (1, 4), strict=True):
        for name, kind in (("kernel", "weight"), ("bias", "bias")):
            old = np.asarray(params["head"][layer][name])
            new = np.asarray(weights.get(f"{layer}.{kind}", np.zeros(0)), np.float32).T
            expected = (*old.shape[:-1], width * len(theirs))
            agnostic = layer == "bbox_pred" and old.shape[-1] == 4
            if weights.detector.get("classifier") != "softmax" or new.shape != expected or agnostic:
                return dict(params), []
            by_class = old.reshape(*old.shape[:-1], -1, width).copy()
            rows = new.reshape(*new.shape[:-1], -1, width)
            by_class[..., known, :] = rows[..., of, :]
            if layer == "bbox_pred":
                by_class[..., ~known, :] = rows[..., 1:, :].mean(-2, keepdims=True)
                by_class = (by_class - (mean if name == "bias" else 0)) / std
            outputs[layer][name] = jax.numpy.asarray(by_class.reshape(old.shape))
    return {**params, "head": {**params["head"], **outputs}}, kept[1:]
