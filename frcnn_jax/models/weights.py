"""Conversion between canonical arrays and the parameters of a network.

Pretrained weights are read by `weight_files.read_weights` as canonical arrays, which `merge_weights` turns into
parameters. `canonical_arrays` and `weight_files.write_weights` do the reverse.

Canonical arrays have Caffe's names and layouts: `<layer>.weight`, OIHW for convolutions and (outputs, inputs) for fc
layers, the inputs of fc6 in C, H, W order; `<layer>.bias`. Flax has HWIO, (inputs, outputs) and H, W, C order.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from frcnn_jax.errors import InputError

Arrays = dict[str, np.ndarray]
Key = tuple[str, str, str]  # ("backbone" or "head", layer, "kernel" or "bias")

HIDDEN = ("fc6_reduce", "fc6", "fc7_reduce", "fc7")
OUTPUTS = ("cls_score", "bbox_pred")


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


def _canonical_name(key: Key) -> str:
    return f"{key[1]}.{'weight' if key[2] == 'kernel' else 'bias'}"


def _canonical_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _pooled_inputs(params: Mapping[str, Any], roi_size: tuple[int, int]) -> dict[Key, tuple[int, int, int]]:
    """Return the kernel that takes the pooled features, and their shape."""
    first = "fc6_reduce" if "fc6_reduce" in params["head"] else "fc6"
    channels = params["head"][first]["kernel"].shape[0] // math.prod(roi_size)
    return {("head", first, "kernel"): (*roi_size, channels)}


def merge_weights(
    params: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, roi_size: tuple[int, int], source: str
) -> dict[str, Any]:
    """Replace parameters of `FastRCNN` with pretrained ones.

    All convolutions are required; fc6 and fc7 may be missing together, and so may cls_score and bbox_pred.

    Args:
        params: Initialised parameters of a `FastRCNN`, or their shapes.
        arrays: Canonical arrays.
        roi_size: Rows and columns of the network's pooled features.
        source: Where the arrays come from, for messages.

    Returns:
        The parameters; layers without an array are those in `params`.

    Raises:
        InputError: Tensors are missing, unknown, of the wrong shape or not finite; the message lists each.
    """
    flat: dict[Key, Any] = flax.traverse_util.flatten_dict(params)
    layers = {name.rpartition(".")[0] for name in arrays}
    absent = {layer for group in (HIDDEN, OUTPUTS) if layers.isdisjoint(group) for layer in group}
    wanted = {_canonical_name(key): key for key in flat if key[1] not in absent}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - arrays.keys())]
    # a backbone may end before the last of its pretrained stages
    extra = (name for name in arrays.keys() - wanted.keys() if not name.startswith("blocks."))
    problems += [f"extra {name}" for name in sorted(extra)]
    for name in sorted(wanted.keys() & arrays.keys()):
        expected = _canonical_shape(flat[wanted[name]].shape)
        if arrays[name].shape != expected:
            problems.append(f"{name} is {arrays[name].shape}, not {expected}")
        elif not np.isfinite(arrays[name]).all():
            problems.append(f"{name} has values that are not finite")
    if problems:
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems)}")
    pooled = _pooled_inputs(params, roi_size)
    for name, key in wanted.items():
        flat[key] = jax.numpy.asarray(from_canonical(arrays[name], pooled.get(key)), flat[key].dtype)
    return flax.traverse_util.unflatten_dict(flat)


def canonical_arrays(params: Mapping[str, Any], *, roi_size: tuple[int, int]) -> Arrays:
    """Return all parameters as canonical arrays: the exact inverse of `merge_weights`.

    Args:
        params: Parameters of a `FastRCNN`.
        roi_size: Rows and columns of the network's pooled features.
    """
    flat: dict[Key, Any] = flax.traverse_util.flatten_dict(params)
    pooled = _pooled_inputs(params, roi_size)
    return {_canonical_name(key): to_canonical(np.asarray(leaf), pooled.get(key)) for key, leaf in flat.items()}


def fold_box_stats(arrays: Mapping[str, np.ndarray], mean: np.ndarray, std: np.ndarray) -> Arrays:
    """Fold the statistics of the box targets into bbox_pred, which then predicts unnormalised targets.

    The paper's code does so when it saves a model (`snapshot` in lib/fast_rcnn/train.py).

    Args:
        arrays: Canonical arrays.
        mean: `(K + 1, 4)`, subtracted from the targets in training.
        std: `(K + 1, 4)`, by which the targets were then divided.

    Returns:
        The arrays, bbox_pred replaced.
    """
    mean, std = np.asarray(mean).reshape(-1), np.asarray(std).reshape(-1)
    weight, bias = arrays["bbox_pred.weight"] * std[:, None], arrays["bbox_pred.bias"] * std + mean
    return {**arrays, "bbox_pred.weight": weight, "bbox_pred.bias": bias}


def load_pretrained(
    params: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    roi_size: tuple[int, int],
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
    return {**merged, "head": {**merged["head"], "bbox_pred": params["head"]["bbox_pred"]}}
