"""Truncated SVD of fc6 and fc7 (section 3.1): each becomes two layers, the first without a bias."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError


def truncated_svd(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor a kernel into the product of two that is closest to it (equation 5).

    Args:
        kernel: `(inputs, outputs)`, the transpose of the paper's W.
        rank: 1 to min(inputs, outputs).

    Returns:
        `(inputs, rank)`, the right singular vectors of W times their singular values, and `(rank, outputs)`, its left
        singular vectors; float32.
    """
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    return (left[:, :rank] * values[:rank]).astype(np.float32), right[:rank].astype(np.float32)


def compress_head(params: Mapping[str, Any], ranks: tuple[int, int]) -> dict[str, Any]:
    """Factor fc6 and fc7 of a trained network by truncated SVD.

    Args:
        params: Of `FastRCNN`.
        ranks: Of fc6 and fc7; 0 keeps a layer as it is.

    Returns:
        The parameters of a `FastRCNN` with these `fc_ranks`.

    Raises:
        InputError: A rank is not less than both sizes of its layer, or the layer is factored already.
    """
    head = dict(params["head"])
    for name, rank in zip(("fc6", "fc7"), ranks, strict=True):
        if not rank:
            continue
        kernel = np.asarray(head[name]["kernel"])
        if f"{name}_reduce" in head:
            raise InputError(f"{name} is already factored, to rank {kernel.shape[0]}")
        if not 0 < rank < min(kernel.shape):
            raise InputError(f"the rank of {name} must be 1 to {min(kernel.shape) - 1}, got {rank}")
        first, second = truncated_svd(kernel, rank)
        head[f"{name}_reduce"] = {"kernel": first}
        head[name] = {**head[name], "kernel": second}
    return {**params, "head": head}
