r"""RoI max pooling (Fast R-CNN, section 2.1), bit-identical to Caffe's and torchvision's.

A RoI (x1, y1, x2, y2) in image pixels is scaled to map cells and rounded half away from zero, both ends inclusive. Its
height and width, at least one cell, are divided into `rows` by `columns` bins: bin p covers
[floor(p * bin), ceil((p + 1) * bin)) in float32, clipped to the map. Each bin yields its maximum, an empty one 0.

Gradient: it flows to the first cell, in row-major order, that holds a bin's maximum, and to nothing else. It is defined
under "The gradient" below: the forward pass records these cells (the argmax), `_add_up` adds the incoming gradients up
there. Reverse mode only.

The files of this folder depend on jax and numpy alone and can be copied into another project. Shape letters: B maps,
H rows and W columns of a map, C channels, K RoIs in a flat list, R RoIs per map, P bins along an axis.
"""

import math
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from frcnn_jax.ops._arguments import (
    REAL,
    Array,
    as_array,
    check_batched,
    check_flat,
    check_output,
    divide_exactly,
    listed,
    map_size,
    varying_alike,
    widened,
    with_leading_axes,
)
from frcnn_jax.ops._partition import partitioned
from frcnn_jax.ops._pool_methods import METHODS, by_method


def roi_pool(
    features: ArrayLike,
    rois: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    method: str = "auto",
) -> jax.Array:
    """Pool the features inside each RoI into a grid of maxima (Fast R-CNN, section 2.1).

    Args:
        features: `(..., H, W, C)` float32, bfloat16, float16 or float64, finite. Channels are last, unlike in Caffe.
        rois: `(..., R, 4)` (x1, y1, x2, y2) in image pixels, inclusive, floating point or integers, taken in float32;
            the leading axes are those of `features`. RoIs may lie outside the image: cells beyond the map do not count.
            Corners more than 2^23 cells away are clipped to that distance. A RoI with a NaN pools nothing. RoIs get no
            gradient.
        output_size: (rows, columns) of bins, each 1 to 255; one number for both.
        spatial_scale: Map cells per image pixel, greater than 0.
        method: The algorithm: "segment" (`jax.ops.segment_max`), "table" (maxima over windows, four look-ups per bin),
            "loop" (over the cells of each bin) or "auto", the fastest for the backend and the size. All give the same
            bits.

    Returns:
        `(..., R, rows, columns, C)` of the features' type; 0 in a bin without cells of the map.

    Raises:
        ValueError: Shapes do not match, a number is out of its range, or the method is unknown.
        TypeError: An argument has the wrong type.
    """
    maps, boxes = check_batched(features, rois)
    size, scale = check_output(output_size, spatial_scale)
    _check_method(method)
    if 0 in (*maps.shape, *boxes.shape):
        pooled = jnp.zeros((*boxes.shape[:2], *size, maps.shape[3]), maps.dtype)
    else:
        pooled = _pool_maps(*varying_alike(maps, boxes), _Options(size, scale, method, map_size(maps)))
    return with_leading_axes(pooled, features)


def roi_pool_flat(
    features: ArrayLike,
    rois: ArrayLike,
    batch_index: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    method: str = "auto",
) -> jax.Array:
    """Pool a flat list of RoIs: `roi_pool` for any number of RoIs per map, without padding.

    Args:
        features: `(B, H, W, C)`.
        rois: `(K, 4)`.
        batch_index: `(K,)` integers, the map of each RoI; a RoI whose index is outside [0, B) pools nothing.
        output_size, spatial_scale, method: As in `roi_pool`.

    Returns:
        `(K, rows, columns, C)`.

    Raises:
        ValueError, TypeError: As in `roi_pool`.
    """
    features, rois, batch_index = check_flat(features, rois, batch_index)
    size, scale = check_output(output_size, spatial_scale)
    _check_method(method)
    return _pool_rois(features, rois, batch_index, size, scale, method)


def rois_from_torchvision(rois: Any) -> tuple[Array, Array]:
    """Split RoIs in torchvision's format into the `rois` and `batch_index` of the flat functions.

    Args:
        rois: `(K, 5)` (batch index, x1, y1, x2, y2), floating point or integers.

    Returns:
        Rois: `(K, 4)` float32 (float64 stays), of NumPy or JAX as the input.
        batch_index: `(K,)` int32, -1 for NaN.

    Raises:
        ValueError: `rois` has another shape.
        TypeError: `rois` is not an array of real numbers.
    """
    rois, xp = _as_float(rois, "rois")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must be (K, 5): batch index, x1, y1, x2, y2; got {rois.shape}")
    return rois[:, 1:], xp.clip(xp.nan_to_num(rois[:, 0], nan=-1), -1, 2**30).astype(np.int32)


def rois_from_cells(cells: Any) -> Array:
    """Convert boxes of map cells, as textbooks describe them, into RoIs for `spatial_scale=1`.

    Args:
        cells: `(..., 4)` (row, column, height, width), floating point or integers.

    Returns:
        `(..., 4)` float32 (float64 stays), of NumPy or JAX as the input.

    Raises:
        ValueError: `cells` has another shape.
        TypeError: `cells` is not an array of real numbers.
    """
    cells, xp = _as_float(cells, "cells")
    if cells.shape[-1:] != (4,):
        raise ValueError(f"cells must be (..., 4): row, column, height, width; got {cells.shape}")
    row, column, height, width = (cells[..., i] for i in range(4))
    return xp.stack([column, row, column + width - 1, row + height - 1], axis=-1)


def _as_float(value: Any, name: str) -> tuple[Array, Any]:
    """Return an array in float32, or float64 if it is, and its namespace: numpy or jax.numpy."""
    array = as_array(value if isinstance(value, jax.Array) else np.asarray(value), name, *REAL)
    return array if array.dtype == np.float64 else array.astype(np.float32), array.__array_namespace__()


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


@partial(jax.jit, static_argnums=(3, 4, 5))
def _pool_rois(features, rois, batch_index, output_size, spatial_scale, method):
    features, rois, batch_index = varying_alike(features, rois, batch_index)
    if 0 in (*features.shape, *rois.shape):
        return jnp.zeros((len(rois), *output_size, features.shape[3]), features.dtype)
    return _pool(features, _regions(features, rois, batch_index, output_size, spatial_scale), method)


def _regions(features, rois, batch_index, output_size, spatial_scale):
    maps, height, width, _ = features.shape
    y = bin_edges(rois[:, 1], rois[:, 3], output_size[0], height, spatial_scale)
    x = bin_edges(rois[:, 0], rois[:, 2], output_size[1], width, spatial_scale)
    nothing = jnp.isnan(rois).any(axis=1) | (batch_index < 0) | (batch_index >= maps)
    return batch_index, *(jnp.where(nothing[:, None], 0, edge) for edge in y), *x


def bin_edges(
    start: jax.Array, end: jax.Array, bins: int, cells: int, spatial_scale: float
) -> tuple[jax.Array, jax.Array]:
    """Return the half-open cell ranges of bins along an axis.

    Compilers may divide by a constant through its reciprocal, which moves some edges by a cell; the quotient is
    therefore corrected to that of IEEE division.

    Args:
        start, end: `(K,)` float32, the RoIs' first and last pixels.
        bins: P.
        cells: The map's size.
        spatial_scale: Map cells per image pixel.

    Returns:
        Low and high edges, `(K, P)` int32 each, within [0, cells].
    """
    limit = np.float32(2**23 - 1)  # sizes up to 2^24 are exact in float32
    first, last = (
        lax.round(jnp.clip(edge * np.float32(spatial_scale), -limit, limit), lax.RoundingMethod.AWAY_FROM_ZERO)
        .astype(jnp.int32)[:, None]
        for edge in (start, end)
    )  # fmt: skip
    size = divide_exactly(jnp.maximum(last - first + 1, 1).astype(jnp.float32), bins)
    p = np.arange(bins, dtype=np.float32)[None]
    low = first + jnp.floor(p * size).astype(jnp.int32)
    high = first + jnp.ceil((p + np.float32(1)) * size).astype(jnp.int32)
    return jnp.clip(low, 0, cells), jnp.clip(high, 0, cells)


# The gradient
#
# Regions, and what the methods give, are described in _pool_methods.py.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(features, regions, method):
    return by_method(method, with_argmax=False)(features, regions)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_and_argmax(features, regions, method):
    """Run the forward pass of the derivative; it has its own derivative, for second derivatives."""
    return by_method(method, with_argmax=True)(features, regions)


def _pool_forward(features, regions, method):
    maxima, argmax = _pool_and_argmax(features, regions, method)
    return maxima, (argmax, regions[0], jnp.zeros((0, *features.shape), features.dtype))  # carries shape and type


def _pool_backward(method, residuals, gradient):
    argmax, batch_index, like = residuals
    return _add_up(gradient, argmax, batch_index, like.shape[1:]), None


def _add_up(gradient, argmax, batch_index, shape):
    """Add each bin's gradient to the first cell that holds its maximum, in features of a shape `(B, H, W, C)`."""
    _, height, width, channels = shape
    cell = batch_index[:, None, None, None] * (height * width) + argmax
    element = jnp.where(argmax < 0, -1, cell * channels + jnp.arange(channels, dtype=jnp.int32)[None, None, None])
    size = math.prod(shape)
    summed = jax.ops.segment_sum(widened(gradient).reshape(-1), element.reshape(-1), num_segments=size)  # drops -1
    return summed.reshape(shape).astype(gradient.dtype)


def _pool_and_argmax_forward(features, regions, method):
    maxima, residuals = _pool_forward(features, regions, method)
    return (maxima, residuals[0]), residuals


def _pool_and_argmax_backward(method, residuals, gradients):
    return _pool_backward(method, residuals, gradients[0])


_pool.defvjp(_pool_forward, _pool_backward)
_pool_and_argmax.defvjp(_pool_and_argmax_forward, _pool_and_argmax_backward)


# The same for (B, H, W, C) and (B, R, 4), over the devices of a mesh


class _Options(NamedTuple):
    output_size: tuple[int, int]
    spatial_scale: float
    method: str
    map_size: tuple[int, int]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_maps(features, rois, options):
    return _forward(options, with_argmax=False)(features, rois)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_maps_and_argmax(features, rois, options):
    return _forward(options, with_argmax=True)(features, rois)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scatter(gradient, argmax, map_size):
    """Add each bin's gradient to the first cell that holds its maximum."""
    return _scatter_over_mesh(map_size)(gradient, argmax)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(features, argmax, map_size):
    """Take each bin's value from the first cell that held its maximum: the transpose of `_scatter`."""
    return _gather_over_mesh(features, argmax)


def _maps_forward(features, rois, options):
    return _pool_maps_and_argmax(features, rois, options)


def _maps_and_argmax_forward(features, rois, options):
    maxima, argmax = _pool_maps_and_argmax(features, rois, options)
    return (maxima, argmax), argmax


_pool_maps.defvjp(_maps_forward, lambda options, argmax, g: (_scatter(g, argmax, options.map_size), None))
_pool_maps_and_argmax.defvjp(
    _maps_and_argmax_forward, lambda options, argmax, gs: (_scatter(gs[0], argmax, options.map_size), None)
)
_scatter.defvjp(
    lambda g, argmax, map_size: (_scatter(g, argmax, map_size), argmax),
    lambda map_size, argmax, features: (_gather(features, argmax, map_size), None),
)
_gather.defvjp(
    lambda features, argmax, map_size: (_gather(features, argmax, map_size), argmax),
    lambda map_size, argmax, g: (_scatter(g, argmax, map_size), None),
)


@cache
def _forward(options, with_argmax):
    size, scale, method, _ = options

    def forward(features, rois):
        features, rois = varying_alike(features, rois)
        boxes, batch_index = listed(features, rois)
        pooled = by_method(method, with_argmax)(features, _regions(features, boxes, batch_index, size, scale))
        parts = tuple(part.reshape(*rois.shape[:2], *part.shape[1:]) for part in pooled)
        return parts if with_argmax else parts[0]

    gives = ["b r i j c"] * (1 + with_argmax)
    return partitioned(jax.jit(forward), f"b h w c, b r k -> {', '.join(gives)}", "brc")


@cache
def _scatter_over_mesh(map_size):
    def scatter(gradient, argmax):
        maps, count, *_, channels = argmax.shape
        batch_index = lax.iota(jnp.int32, maps * count) // count
        flat = (part.reshape(-1, *part.shape[2:]) for part in (gradient, argmax))
        return _add_up(*flat, batch_index, (maps, *map_size, channels))

    return partitioned(jax.jit(scatter), "b r i j c, b r i j c -> b h w c", "bc")


def _take(features, argmax):
    maps, height, width, channels = features.shape
    flat, place = features.reshape(maps, height * width, channels), argmax.reshape(maps, -1, channels)
    return jnp.where(argmax < 0, 0, jnp.take_along_axis(flat, jnp.maximum(place, 0), axis=1).reshape(argmax.shape))


_gather_over_mesh = partitioned(jax.jit(_take), "b h w c, b r i j c -> b r i j c", "bc")
