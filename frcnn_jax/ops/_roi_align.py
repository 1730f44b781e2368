"""RoIAlign (He et al. 2017, Mask R-CNN, section 3), as torchvision and Detectron2 compute it.

A bin is the mean of bilinear samples at regular points inside it. Nothing is rounded to cells. Samples lie at the same
float32 places as torchvision's on CPU, to the bit: one just outside the map counts as 0. The gradient goes to the four
cells around each sample: it is the transpose of a linear map, defined by `_align_backward` and `_spread` below. Reverse
mode only.

This file and _roi_pool.py depend on jax and numpy alone. Shape letters: B maps, H rows and W columns of a map,
C channels, K RoIs in a flat list, R RoIs per map, P bins along an axis.
"""

import math
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from frcnn_jax.ops._roi_pool import (
    check_flat,
    check_output,
    divide_exactly,
    over_leading_axes,
    rounded,
    varying_alike,
    widened,
)


def roi_align(
    features: ArrayLike,
    rois: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Sample the features inside each RoI into a grid of means (RoIAlign; Mask R-CNN, section 3).

    Args:
        features: `(..., H, W, C)` float32, bfloat16, float16 or float64. Channels are last.
        rois: `(..., R, 4)` (x1, y1, x2, y2) in image pixels, floating point or integers, taken in float32. Coordinates
            are continuous, pixel i spans [i, i + 1): add 1 to x2 and y2 of this package's inclusive boxes. The leading
            axes are those of `features`. Samples more than one cell outside the map count as 0. Corners more than 2^23
            cells away are clipped to that distance. A RoI with a NaN yields 0. RoIs get no gradient.
        output_size: (rows, columns) of bins, each 1 to 255; one number for both.
        spatial_scale: Map cells per image pixel, greater than 0.
        sampling_ratio: Samples per bin along each axis. 0 takes as many as the bin has cells, rounded up, but at most
            twice those of the map (torchvision has no limit); RoIs then run one by one, which is slow on accelerators.
        aligned: Whether cell centres lie at half pixels, as is correct. False is the older form, up to half a cell off,
            in which a RoI measures at least one cell each way.

    Returns:
        `(..., R, rows, columns, C)` of the features' type.

    Raises:
        ValueError: Shapes do not match, or a number is out of its range.
        TypeError: An argument has the wrong type.
    """
    flat = partial(
        roi_align_flat,
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    return over_leading_axes(flat, features, rois)


def roi_align_flat(
    features: ArrayLike,
    rois: ArrayLike,
    batch_index: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Align a flat list of RoIs: `roi_align` for any number of RoIs per map, without padding.

    Args:
        features: `(B, H, W, C)`.
        rois: `(K, 4)`.
        batch_index: `(K,)` integers, the map of each RoI; a RoI whose index is outside [0, B) yields 0.
        output_size, spatial_scale, sampling_ratio, aligned: As in `roi_align`.

    Returns:
        `(K, rows, columns, C)`.

    Raises:
        ValueError, TypeError: As in `roi_align`.
    """
    features, rois, batch_index = check_flat(features, rois, batch_index)
    size, scale = check_output(output_size, spatial_scale)
    try:
        ratio = operator.index(sampling_ratio)
    except TypeError:
        raise TypeError(f"sampling_ratio must be an integer, got {sampling_ratio!r}") from None
    if ratio < 0:
        raise ValueError(f"sampling_ratio must be at least 0, got {sampling_ratio}")
    return _align_rois(features, rois, batch_index, size, scale, ratio, bool(aligned))


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _align_rois(features, rois, batch_index, output_size, spatial_scale, ratio, aligned):
    features, rois, batch_index = varying_alike(features, rois, batch_index)
    maps, height, width, channels = features.shape
    if 0 in (*features.shape, *rois.shape):
        return jnp.zeros((len(rois), *output_size, channels), features.dtype)
    nothing = jnp.isnan(rois).any(axis=1) | (batch_index < 0) | (batch_index >= maps)
    scaled = jnp.clip(jnp.where(nothing[:, None], 0, rois) * np.float32(spatial_scale), -(2**23), 2**23)
    scaled -= np.float32(aligned and 0.5)
    x, y = (
        _grid(scaled[:, i], scaled[:, i + 2], bins, cells, ratio, aligned)
        for i, bins, cells in ((0, output_size[1], width), (1, output_size[0], height))
    )
    return _align(features, (jnp.where(nothing, 0, batch_index), ~nothing, y, x), output_size, ratio)


def _grid(start, end, bins, cells, ratio, aligned):
    """Return RoIs' starts and bin sizes along an axis, in cells, and samples per bin, `(K,)` each."""
    size = divide_exactly(end - start if aligned else jnp.maximum(end - start, 1), np.float32(bins))
    samples = jnp.ceil(jnp.clip(size, 0, 2 * cells)).astype(jnp.int32) if ratio == 0 else jnp.full(len(size), ratio)
    return start, size, samples.astype(jnp.int32)


# The grids of K RoIs are (batch_index, valid, y, x), with y and x from `_grid`; all are `(K, ...)`.


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _align(features, grids, output_size, ratio):
    shape, flat = features.shape, features.reshape(-1, features.shape[3])
    exact = widened(flat[:0]).dtype

    def add_sample(total, grids, i, j):
        for cell, weight in _cells(grids, shape, output_size, i, j):
            total += flat.at[cell].get(mode="promise_in_bounds").astype(exact) * weight.astype(exact)
        return total

    if ratio:
        total = jnp.zeros((len(grids[0]), *output_size, shape[3]), exact)
        for i, j in np.ndindex(ratio, ratio):
            total = add_sample(total, grids, i, j)
    else:
        nothing = _zeros((1, *output_size, shape[3]), flat.astype(exact))
        total = lax.map(lambda grid: _add_own_samples(add_sample, nothing, grid)[0], grids)
    return total.astype(features.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _spread(gradient, grids, shape, output_size, ratio):
    """Add the bins' gradients up in features of a shape: the transpose of `_align`."""
    exact = widened(gradient)

    def add_sample(total, grids, i, j, gradient):
        for cell, weight in _cells(grids, shape, output_size, i, j):
            total = total.at[cell].add(gradient * weight.astype(gradient.dtype), mode="promise_in_bounds")
        return total

    def together(total):
        for i, j in np.ndindex(ratio, ratio):
            total = add_sample(total, grids, i, j, exact)
        return total

    def one_by_one(total):
        def add_roi(total, roi):
            grid, own = roi
            return _add_own_samples(partial(add_sample, gradient=own[None]), total, grid), None

        return lax.scan(add_roi, total, (grids, exact))[0]

    total = _zeros((math.prod(shape[:3]), shape[3]), exact)
    # `together` makes 4 ratio^2 arrays of the result's size, which CPUs would write and read
    total = lax.platform_dependent(total, cpu=one_by_one, default=together) if ratio else one_by_one(total)
    return total.reshape(shape).astype(gradient.dtype)


def _align_forward(features, grids, output_size, ratio):
    like = jnp.zeros((0, *features.shape), features.dtype)  # carries the shape
    return _align(features, grids, output_size, ratio), (grids, like)


def _align_backward(output_size, ratio, residuals, gradient):
    grids, like = residuals
    return _spread(gradient, grids, like.shape[1:], output_size, ratio), None


def _spread_forward(gradient, grids, shape, output_size, ratio):
    return _spread(gradient, grids, shape, output_size, ratio), grids


def _spread_backward(shape, output_size, ratio, grids, features):
    return _align(features, grids, output_size, ratio), None


_align.defvjp(_align_forward, _align_backward)
_spread.defvjp(_spread_forward, _spread_backward)


def _zeros(shape, like):
    """Return zeros that vary over the mesh axes of `like`, as `shard_map` requires of a loop's initial values."""
    return jnp.zeros(shape, like.dtype) + like.reshape(-1)[:0].sum()


def _add_own_samples(add_sample, total, grid):
    """Add all samples of one RoI, whose number depends on the RoI."""
    grids = jax.tree.map(lambda part: part[None], grid)
    (*_, along_y), (*_, along_x) = grid[2:]
    return lax.fori_loop(
        0, along_y * along_x, lambda n, total: add_sample(total, grids, n // along_x, n % along_x), total
    )


def _cells(grids, shape, output_size, i, j):
    """Yield the four cells around sample (i, j) of every bin, as rows of the flattened features
    `(K, rows, columns)`, and their weights in the bin's mean `(K, rows, columns, 1)`."""
    batch_index, valid, y_grid, x_grid = grids
    _, height, width, _ = shape
    start = batch_index[:, None, None] * (height * width)
    for y, y_weight in _two_cells(y_grid, output_size[0], height, i):
        for x, x_weight in _two_cells(x_grid, output_size[1], width, j):
            weight = jnp.where(valid[:, None], y_weight, 0)[:, :, None] * x_weight[:, None, :]
            yield start + y[:, :, None] * width + x[:, None, :], weight[..., None]


def _two_cells(grid, bins, cells, i):
    """Return the cells before and after the i-th sample of each bin along an axis, with weights, `(K, P)` each."""
    start, size, samples = (part[:, None] for part in grid)
    count = jnp.maximum(samples, 1).astype(jnp.float32)
    own = divide_exactly(rounded((jnp.float32(i) + jnp.float32(0.5)) * size), count)
    at = start + rounded(np.arange(bins, dtype=np.float32)[None] * size) + own
    weight = jnp.where((i < samples) & (at >= -1) & (at <= cells), 1 / count, 0)
    at = jnp.clip(at, 0, cells - 1)
    before = jnp.minimum(jnp.floor(at).astype(jnp.int32), max(cells - 2, 0))
    beyond = at - before.astype(jnp.float32)
    return (before, weight * (1 - beyond)), (jnp.minimum(before + 1, cells - 1), weight * beyond)
