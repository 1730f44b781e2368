"""Canonical arrays (`weight_files`) to a network's variables and back: checked by name, shape and value."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from frcnn_jax.errors import InputError

Key = tuple[str, str, str]  # ("backbone" or "head", layer, "kernel" or "bias")

OUTPUTS = ("cls_score", "bbox_pred")


def _canonical_name(key: Key) -> str:
    return f"{key[1]}.{'weight' if key[2] == 'kernel' else 'bias'}"


def _entry(params: Mapping[str, Any]) -> tuple[str, int]:
    """The fc layer that takes pooled features, and their channels: those of the last convolution."""
    *_, last = (layer["bias"].shape[0] for _, layer in sorted(params["backbone"].items()))
    return "fc6_reduce" if "fc6_reduce" in params["head"] else "fc6", last


def _canonical_shape(key: Key, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _from_canonical(key: Key, array: np.ndarray, roi_size: tuple[int, int], entry: tuple[str, int]) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    if key[1:] == (entry[0], "kernel"):  # its inputs C, H, W -> H, W, C
        array = array.reshape(-1, entry[1], *roi_size).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array.T


def _to_canonical(key: Key, array: np.ndarray, roi_size: tuple[int, int], entry: tuple[str, int]) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    array = array.T
    if key[1:] == (entry[0], "kernel"):
        array = array.reshape(-1, *roi_size, entry[1]).transpose(0, 3, 1, 2).reshape(len(array), -1)
    return array


def merge_weights(
    params: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, roi_size: tuple[int, int], source: str
) -> dict[str, Any]:
    """The parameters of `FastRCNN` with those of its layers replaced that `arrays` holds.

    All convolutions have to be there; fc6 and fc7 may be left out together, and so may cls_score and bbox_pred.

    Args:
        params: freshly initialised, or their shapes.
        arrays: by canonical name.
        roi_size: the network's, by which fc6's inputs are ordered.
        source: where the arrays come from, for messages.

    Raises:
        InputError: lists every missing, extra, misshapen or not finite tensor by name.
    """
    flat: dict[Key, Any] = flax.traverse_util.flatten_dict(params)
    layers = {name.rpartition(".")[0] for name in arrays}
    absent = {
        name
        for group in (("fc6_reduce", "fc6", "fc7_reduce", "fc7"), OUTPUTS)
        if not layers & set(group)
        for name in group
    }
    wanted = {_canonical_name(key): key for key in flat if key[1] not in absent}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - arrays.keys())]
    problems += [f"extra {name}" for name in sorted(arrays.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & arrays.keys()):
        expected = _canonical_shape(wanted[name], flat[wanted[name]].shape)
        if arrays[name].shape != expected:
            problems.append(f"{name} is {arrays[name].shape}, not {expected}")
        elif not np.isfinite(arrays[name]).all():
            problems.append(f"{name} has values that are not finite")
    if problems:
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems)}")
    entry = _entry(params)
    for name, key in wanted.items():
        flat[key] = jax.numpy.asarray(_from_canonical(key, arrays[name], roi_size, entry), flat[key].dtype)
    return flax.traverse_util.unflatten_dict(flat)


def canonical_arrays(params: Mapping[str, Any], *, roi_size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The inverse of `merge_weights`: all parameters by canonical name, to the bit."""
    flat: dict[Key, Any] = flax.traverse_util.flatten_dict(params)
    entry = _entry(params)
    return {_canonical_name(key): _to_canonical(key, np.asarray(leaf), roi_size, entry) for key, leaf in flat.items()}


def fold_box_stats(arrays: Mapping[str, np.ndarray], mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """Canonical arrays whose bbox_pred gives targets that are not normalised, as the paper's code saves it.

    Args:
        arrays: by canonical name.
        mean, std: `(K + 1, 4)`, by which the targets were normalised.
    """
    mean, std = np.asarray(mean).reshape(-1), np.asarray(std).reshape(-1)
    weight, bias = arrays["bbox_pred.weight"] * std[:, None], arrays["bbox_pred.bias"] * std + mean
    return {**arrays, "bbox_pred.weight": weight, "bbox_pred.bias": bias}
