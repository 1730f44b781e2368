"""Pretrained layers from files: read without pickle, checked by name, shape and value, merged into fresh parameters."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from frcnn_jax.errors import InputError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name. InputError for a file that is missing, broken, or holds pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not a readable .npz of plain arrays ({error})") from None


def merge_backbone(params: Mapping, arrays: Mapping[str, np.ndarray], *, source: str) -> dict:
    """`params` with its convolutions replaced by `<layer>.weight` (OIHW) and `<layer>.bias`, for BGR input of 0 to 255
    less the pixel means. fc layers stay as they are.

    Raises:
        InputError: lists every missing, extra, misshapen or not finite tensor by name.
    """
    wanted = flax.traverse_util.flatten_dict(params["backbone"])
    given = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and array.ndim == 4:
            given[layer, "kernel"] = array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        else:
            given[layer, kind] = array
    problems = [f"missing {'.'.join(name)}" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"extra {'.'.join(name)}" for name in sorted(given.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & given.keys()):
        if wanted[name].shape != given[name].shape:
            problems.append(f"{'.'.join(name)} is {given[name].shape}, not {wanted[name].shape}")
        elif not np.isfinite(given[name]).all():
            problems.append(f"{'.'.join(name)} has values that are not finite")
    if problems:
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems)}")
    merged = {name: jax.numpy.asarray(given[name], wanted[name].dtype) for name in wanted}
    return {**params, "backbone": flax.traverse_util.unflatten_dict(merged)}
