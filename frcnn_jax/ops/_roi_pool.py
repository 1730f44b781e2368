r"""RoI max pooling (Fast R-CNN, section 2.1), bit-identical to Caffe's and torchvision's.

A RoI (x1, y1, x2, y2) in image pixels is scaled to map cells and rounded half away from zero, both ends inclusive. Its
height and width, at least one cell, are divided into `rows` by `columns` bins: bin p covers
[floor(p * bin), ceil((p + 1) * bin)) in float32, clipped to the map. Each bin yields its maximum, an empty one 0.

Gradient: it flows to the first cell, in row-major order, that holds a bin's maximum, and to nothing else. It is defined
under "The gradient" below: `_pool_forward` records these cells (the argmax), `_pool_backward` adds the incoming
gradients up there. Reverse mode only.

The file depends on jax and numpy alone and can be copied into another project. Shape letters: B maps, H rows and
W columns of a map, C channels, K RoIs in a flat list, R RoIs per map, P bins along an axis.
"""

import itertools
import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

Array = Any  # numpy.ndarray or jax.Array

METHODS = ("auto", "segment", "table", "loop")
_REAL = (jnp.floating, jnp.integer)


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
    return over_leading_axes(
        partial(roi_pool_flat, output_size=output_size, spatial_scale=spatial_scale, method=method), features, rois
    )


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
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
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
    array = _as_array(value if isinstance(value, jax.Array) else np.asarray(value), name, *_REAL)
    return array if array.dtype == np.float64 else array.astype(np.float32), array.__array_namespace__()


def over_leading_axes(flat: Callable[..., jax.Array], features: Any, rois: Any) -> jax.Array:
    """Call a function of `(B, H, W, C)`, `(K, 4)` and `(K,)` on `(..., H, W, C)` and `(..., R, 4)`."""
    features, rois = _as_array(features, "features", jnp.floating), _as_array(rois, "rois", *_REAL)
    lead = features.shape[:-3]
    if features.ndim < 3:
        raise ValueError(f"features must be (..., H, W, C), got {features.shape}")
    if rois.ndim < 2 or rois.shape[-1] != 4:
        raise ValueError(f"rois must be (..., R, 4), got {rois.shape}")
    if rois.shape[:-2] != lead:
        expected = ", ".join(map(str, (*lead, "R", 4)))
        raise ValueError(f"rois must be ({expected}) for features {features.shape}, got {rois.shape}")
    maps, count = math.prod(lead), rois.shape[-2]
    batch_index = np.repeat(np.arange(maps, dtype=np.int32), count)
    out = flat(features.reshape(maps, *features.shape[-3:]), rois.reshape(maps * count, 4), batch_index)
    return out.reshape(*lead, count, *out.shape[1:])


def check_flat(features: Any, rois: Any, batch_index: Any) -> tuple[Array, jax.Array, jax.Array]:
    """Return features `(B, H, W, C)`, RoIs `(K, 4)` float32 and indices `(K,)` int32; ValueError or TypeError."""
    features, rois = _as_array(features, "features", jnp.floating), _as_array(rois, "rois", *_REAL)
    batch_index = _as_array(batch_index, "batch_index", jnp.integer)
    if features.ndim != 4:
        raise ValueError(f"features must be (B, H, W, C), got {features.shape}")
    if rois.ndim != 2 or rois.shape[1] != 4:
        raise ValueError(f"rois must be (K, 4), got {rois.shape}")
    if batch_index.shape != rois.shape[:1]:
        raise ValueError(f"batch_index must be ({len(rois)},), one per RoI, got {batch_index.shape}")
    if batch_index.dtype in (np.int64, np.uint64):  # must not wrap around in int32
        batch_index = batch_index.clip(max(np.iinfo(batch_index.dtype).min, -1), 2**31 - 1)
    return features, lax.stop_gradient(jnp.asarray(rois.astype(np.float32))), jnp.asarray(batch_index.astype(np.int32))


def _as_array(value: Any, name: str, *kinds: Any) -> Array:
    """Return a NumPy or JAX array; TypeError unless it holds one of the kinds of numbers."""
    try:
        array = value if isinstance(value, jax.Array | np.ndarray) else jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}") from None
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        expected = " or ".join({jnp.floating: "floating point", jnp.integer: "integers"}[kind] for kind in kinds)
        raise TypeError(f"{name} must be {expected}, got {array.dtype}")
    return array


def varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Make arrays vary over the same mesh axes, as `shard_map` requires in loops and derivatives.

    Each gets a zero added that depends on all of them and that compilers drop.
    """
    zeros = [lax.stop_gradient(array[..., :0]).sum().astype(jnp.float32) for array in arrays]
    zero = reduce(operator.add, zeros)
    return tuple(array + zero.astype(array.dtype) for array in arrays)


def check_output(output_size: Any, spatial_scale: Any) -> tuple[tuple[int, int], float]:
    """Return (rows, columns) and the scale; ValueError or TypeError if they are invalid."""
    try:
        size = tuple(map(operator.index, output_size if np.ndim(output_size) else (output_size,) * 2))
    except (TypeError, ValueError):
        raise TypeError(f"output_size must be integers (rows, columns), got {output_size!r}") from None
    if len(size) != 2 or not all(1 <= bins <= 255 for bins in size):
        raise ValueError(f"output_size must be (rows, columns), each 1 to 255, got {output_size!r}")
    try:
        if isinstance(spatial_scale, str):
            raise TypeError
        scale = float(np.float32(spatial_scale))
    except (TypeError, ValueError):  # a traced value too: the scale is static
        raise TypeError(f"spatial_scale must be a number, got {spatial_scale!r}") from None
    except OverflowError:
        scale = math.inf
    if not 0 < scale < math.inf:
        raise ValueError(f"spatial_scale must be greater than 0 and finite in float32, got {spatial_scale!r}")
    return (size[0], size[1]), scale


@partial(jax.jit, static_argnums=(3, 4, 5))
def _pool_rois(features, rois, batch_index, output_size, spatial_scale, method):
    features, rois, batch_index = varying_alike(features, rois, batch_index)
    maps, height, width, channels = features.shape
    y = bin_edges(rois[:, 1], rois[:, 3], output_size[0], height, spatial_scale)
    x = bin_edges(rois[:, 0], rois[:, 2], output_size[1], width, spatial_scale)
    if 0 in (*features.shape, *rois.shape):
        return jnp.zeros((len(rois), *output_size, channels), features.dtype)
    nothing = jnp.isnan(rois).any(axis=1) | (batch_index < 0) | (batch_index >= maps)
    y = tuple(jnp.where(nothing[:, None], 0, edge) for edge in y)
    return _pool(features, (batch_index, *y, *x), method)


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
    size = divide_exactly(jnp.maximum(last - first + 1, 1).astype(jnp.float32), np.float32(bins))
    p = np.arange(bins, dtype=np.float32)[None]
    low = first + jnp.floor(p * size).astype(jnp.int32)
    high = first + jnp.ceil((p + np.float32(1)) * size).astype(jnp.int32)
    return jnp.clip(low, 0, cells), jnp.clip(high, 0, cells)


def divide_exactly(x: jax.Array, divisor: Array) -> jax.Array:
    """Return the float32 nearest to x / divisor, however the compiler divides.

    Args:
        x: float32, 0 or of a magnitude in [2^-90, 2^90].
        divisor: Integers from 1 to 2^12 in float32, constant or not; broadcasts with `x`.
    """
    inverse = 1 / divisor
    quotient = rounded(x * inverse)
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(quotient, jnp.int32) & -(2**12), jnp.float32)
    remainder = (x - high * divisor) - (quotient - high) * divisor  # exact: the products are of 12 bits by 12
    return quotient + remainder * inverse


def rounded(product: jax.Array) -> jax.Array:
    """Return a finite float32 product as it is. The clip makes compilers round it: they may fuse a product with the sum
    or product that it enters."""
    largest = np.finfo(np.float32).max
    return jnp.clip(product, -largest, largest)


# The gradient
#
# The regions of K RoIs are (batch_index (K,), y_low, y_high (K, rows), x_low, x_high (K, columns)), all int32. A method
# maps features (B, H, W, C) and regions to (maxima,), (K, rows, columns, C), or with argmax to (maxima, argmax), where
# argmax is the index into the flattened features of each maximum's first cell. In an empty bin they are 0 and -1.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(features, regions, method):
    return _by_method(method, with_argmax=False)(features, regions)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool_and_argmax(features, regions, method):
    """Run the forward pass of the derivative; it has its own derivative, for second derivatives."""
    return _by_method(method, with_argmax=True)(features, regions)


def _pool_forward(features, regions, method):
    maxima, argmax = _pool_and_argmax(features, regions, method)
    return maxima, (argmax, jnp.zeros((0, *features.shape), features.dtype))  # the latter carries shape and type


def _pool_backward(method, residuals, gradient):
    """Add each bin's gradient to the first cell that holds its maximum."""
    argmax, like = residuals
    size = math.prod(like.shape[1:])
    summed = jax.ops.segment_sum(widened(gradient).reshape(-1), argmax.reshape(-1), num_segments=size)  # drops -1
    return summed.reshape(like.shape[1:]).astype(like.dtype), None


def _pool_and_argmax_forward(features, regions, method):
    maxima, residuals = _pool_forward(features, regions, method)
    return (maxima, residuals[0]), residuals


def _pool_and_argmax_backward(method, residuals, gradients):
    return _pool_backward(method, residuals, gradients[0])


_pool.defvjp(_pool_forward, _pool_backward)
_pool_and_argmax.defvjp(_pool_and_argmax_forward, _pool_and_argmax_backward)


# The methods


def _by_method(method, with_argmax):
    """Return a method's function. Under `vmap` it takes more maps and more RoIs: mapped loops would run masked."""
    segment, table, loop = (partial(form, with_argmax=with_argmax) for form in (_by_segments, _by_table, _by_loop))

    @jax.custom_batching.custom_vmap
    def pool(features, regions):
        if with_argmax and features.size >= 2**31:
            raise ValueError(f"the derivative needs features of fewer than 2^31 elements, got {features.shape}")
        if method != "auto":
            return {"segment": segment, "table": table, "loop": loop}[method](features, regions)
        # on CPU the table is faster only with at most three cells per bin and no argmax: benchmarks/bench_roi_pool.py
        _, y_low, _, x_low, _ = regions
        few = 3 * y_low.size * x_low.shape[1] < _table_cells(features.shape, y_low.shape[1], x_low.shape[1])
        return lax.platform_dependent(features, regions, cpu=loop if few or with_argmax else table, default=table)

    @pool.def_vmap
    def more_maps(size, is_mapped, features, regions):
        first = jnp.zeros((size, 1), jnp.int32)
        if is_mapped[0]:
            first = jnp.arange(size, dtype=jnp.int32)[:, None] * features.shape[1]
            features = features.reshape(-1, *features.shape[2:])
        regions = [
            part if mapped else jnp.broadcast_to(part, (size, *part.shape))
            for part, mapped in zip(regions, is_mapped[1], strict=True)
        ]
        regions[0] += first
        maxima, *argmax = pool(features, tuple(part.reshape(-1, *part.shape[2:]) for part in regions))
        maxima, *argmax = (part.reshape(size, -1, *part.shape[1:]) for part in (maxima, *argmax))
        start = (first * math.prod(features.shape[1:]))[:, :, None, None, None]
        pooled = maxima, *(jnp.where(part < 0, -1, part - start) for part in argmax)
        return pooled, (True,) * len(pooled)

    return pool


def widened(array):
    """Return shorter types as float32: for exact sums, and because CPUs compare in float32 (they would convert the map
    again for each RoI)."""
    return array if jnp.finfo(array.dtype).bits > 32 else array.astype(jnp.float32)


def _by_segments(features, regions, with_argmax):
    """Pool one RoI after another by segment maxima."""
    exact = widened(features)
    maxima, *argmax = lax.map(lambda region: _segment_maxima(exact, region, with_argmax), regions)
    return maxima.astype(features.dtype), *argmax


def _segment_maxima(features, region, with_argmax):
    """Pool one RoI: a segment maximum over the rows of each bin, then one over its columns."""
    height, width, channels = features.shape[1:]
    none = height * width
    index, y_low, y_high, x_low, x_high = region
    row, y_segment = _members(y_low, y_high, height)
    column, x_segment = _members(x_low, x_high, width)
    by_row, by_column = (
        partial(jax.ops.segment_max, segment_ids=segment, num_segments=len(low) + 1, indices_are_sorted=True)
        for segment, low in ((y_segment, y_low), (x_segment, x_low))
    )
    lines = features[index][row]  # (members of y, W, C)
    line_max = by_row(lines)
    strips = line_max.swapaxes(0, 1)[column]  # (members of x, rows + 1, C)
    pooled = by_column(strips)
    empty = (y_low >= y_high)[:, None, None] | (x_low >= x_high)[None, :, None]
    maxima = jnp.where(empty, 0, pooled[:-1, :-1].swapaxes(0, 1))
    if not with_argmax:
        return (maxima,)
    # the first cell: the least y * W + x of those that equal the maximum, found as the maximum of its negative
    cell = row[:, None] * width + jnp.arange(width, dtype=jnp.int32)[None]
    first = by_row(jnp.where(lines == line_max[y_segment], -cell[..., None], -none)).swapaxes(0, 1)[column]
    first = -by_column(jnp.where(strips == pooled[x_segment], first, -none))[:-1, :-1].swapaxes(0, 1)
    argmax = (index * none + first) * channels + jnp.arange(channels, dtype=jnp.int32)[None, None]
    return maxima, jnp.where(empty, -1, argmax)


def _members(low, high, cells):
    """List the cells of all bins in order of bins, and each cell's bin; unused entries are in bin P.

    Neighbouring bins overlap by at most one cell, so a RoI's bins have at most cells + 2 P members.
    """
    ends = jnp.cumsum(jnp.maximum(high - low, 0))
    place = jnp.arange(cells + 2 * len(low), dtype=jnp.int32)
    segment = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    back_from_end = ends[jnp.minimum(segment, len(low) - 1)] - place
    return jnp.clip(high[jnp.minimum(segment, len(low) - 1)] - back_from_end, 0, cells - 1), segment


def _by_table(features, regions, with_argmax):
    """Tabulate maxima over windows of a few sizes at every cell; each bin is the union of four overlapping windows.

    RoIs that reach beyond the map may have bins too large for the table: these are pooled by segments one by one.
    """
    maps, height, width, channels = features.shape
    batch_index, y_low, y_high, x_low, x_high = regions
    table = (features,)
    if with_argmax:
        table = features, jnp.arange(features.size, dtype=jnp.int32).reshape(features.shape)
    y_sizes, x_sizes = window_sizes(height, y_low.shape[1]), window_sizes(width, x_low.shape[1])
    table = _window_maxima(_window_maxima(table, y_sizes, axis=1), x_sizes, axis=3)
    table = [part.reshape(-1, channels) for part in table]  # (x sizes, y sizes, B, H, W) cells

    y_level, y_first, y_second = _two_windows(y_low, y_high, y_sizes)
    x_level, x_first, x_second = _two_windows(x_low, x_high, x_sizes)
    level = x_level[:, None, :] * len(y_sizes) + y_level[:, :, None]
    start = (level * maps + batch_index[:, None, None]) * (height * width)

    def look_up(y, x):
        at = start + y[:, :, None] * width + x[:, None, :]
        return [part.at[at].get(mode="clip") for part in table]

    corners = [look_up(y, x) for y in (y_first, y_second) for x in (x_first, x_second)]
    empty = ((y_low >= y_high)[:, :, None] | (x_low >= x_high)[:, None, :])[..., None]
    pooled = reduce(_larger, corners)
    pooled = tuple(jnp.where(empty, nothing, part) for part, nothing in zip(pooled, (0, -1), strict=False))

    too_large = ((y_high - y_low) > 2 * y_sizes[-1]).any(1) | ((x_high - x_low) > 2 * x_sizes[-1]).any(1)
    (large,) = jnp.nonzero(too_large, size=len(too_large))

    exact = widened(features)

    def by_segments(i, pooled):
        region = jax.tree.map(lambda part: part[large[i]], regions)
        one = _segment_maxima(exact, region, with_argmax)
        return tuple(part.at[large[i]].set(new.astype(part.dtype)) for part, new in zip(pooled, one, strict=True))

    return lax.fori_loop(0, too_large.sum(), by_segments, pooled)


def window_sizes(cells, bins):
    """Return increasing window sizes, from 1, so that two windows of one size cover any bin of a RoI within the map."""
    largest, sizes = min(-(-cells // bins) + 1, cells), []
    while largest > 0:
        sizes.append(-(-largest // 2))
        largest = sizes[-1] - 1
    return sizes[::-1]


def _table_cells(shape, rows, columns):
    maps, height, width, _ = shape
    return maps * height * width * len(window_sizes(height, rows)) * len(window_sizes(width, columns))


def _window_maxima(parts, sizes, axis):
    """Return maxima over the windows of each size that start at each cell along an axis, stacked in front.

    Windows that would reach beyond the end wrap around; no bin uses them.
    """
    levels = [parts]
    for former, size in itertools.pairwise(sizes):
        starts = sorted({*range(former, size - former, former), size - former})
        shifted = [[jnp.roll(part, -start, axis) for part in levels[-1]] for start in starts]
        levels.append(reduce(_larger, shifted, levels[-1]))
    return [jnp.stack(level) for level in zip(*levels, strict=True)]


def _two_windows(low, high, sizes):
    """Return the index of the largest window size that fits into a bin, and the starts of its first and last window."""
    fits = [(high - low >= size).astype(jnp.int32) for size in sizes[1:]]
    level = sum(fits, jnp.zeros_like(low))
    return level, low, jnp.maximum(high - jnp.asarray(sizes, jnp.int32)[level], low)


def _larger(one, other):
    """Return the larger of two maxima and, with argmax, the first index that holds it."""
    if len(one) == 1:
        return (jnp.maximum(one[0], other[0]),)
    (value, place), (other_value, other_place) = one, other
    take = (other_value > value) | ((other_value == value) & (other_place < place))
    return jnp.where(take, other_value, value), jnp.where(take, other_place, place)


def _by_loop(features, regions, with_argmax):
    """Pool bin after bin, cell after cell, all channels at once."""
    height, width, channels = features.shape[1:]
    batch_index, y_low, y_high, x_low, x_high = regions
    flat = widened(features).reshape(-1, channels)

    channel = jnp.arange(channels, dtype=jnp.int32)

    def one_bin(region):
        start, y, y_end, x, x_end = region
        wide = x_end - x
        cells = jnp.where(y_end > y, (y_end - y) * wide, 0)

        def look_at(j):
            cell = start + (y + j // wide) * width + x + j % wide
            return lax.dynamic_index_in_dim(flat, cell, keepdims=False), cell * channels + channel

        def one_cell(j, best):
            here, place = look_at(j)
            if not with_argmax:
                return (jnp.maximum(best[0], here),)
            return jnp.where(here > best[0], here, best[0]), jnp.where(here > best[0], place, best[1])

        best = lax.fori_loop(1, cells, one_cell, look_at(jnp.zeros_like(x))[: 1 + with_argmax])
        return tuple(jnp.where(cells > 0, part, nothing) for part, nothing in zip(best, (0, -1), strict=False))

    bins = batch_index[:, None, None] * (height * width), y_low[:, :, None], y_high[:, :, None]
    bins = jnp.broadcast_arrays(*bins, x_low[:, None, :], x_high[:, None, :])
    maxima, *argmax = (
        part.reshape(*bins[0].shape, channels) for part in lax.map(one_bin, [part.reshape(-1) for part in bins])
    )
    return maxima.astype(features.dtype), *argmax
