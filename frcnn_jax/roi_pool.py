"""RoI max pooling (Fast R-CNN, section 2.1), equal to the bit to Caffe's and torchvision's.

A RoI (x1, y1, x2, y2) in image pixels is scaled to map cells and rounded half away from zero, both ends inclusive;
its height and width, at least one cell, are divided into `rows` by `columns` bins, bin p covering
[floor(p * bin), ceil((p + 1) * bin)) in float32, clipped to the map. Each bin gives its maximum, an empty one 0.
The gradient goes to the maximum's first cell in row-major order, and to nothing else. Reverse mode only.

This file needs jax and numpy alone and can be lifted out. Shape letters: B maps, H rows and W columns of a map,
C channels, K RoIs in a flat list, R RoIs a map, P bins along an axis.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

METHODS = ("auto", "segment", "loop")


def roi_pool(
    features: jax.Array,
    rois: jax.Array,
    *,
    output_size: tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    method: str = "auto",
) -> jax.Array:
    """RoI max pooling of every map's own RoIs.

    Args:
        features: `(..., H, W, C)` float32, bfloat16 or float16, finite.
        rois: `(..., R, 4)` (x1, y1, x2, y2) in image pixels, inclusive; the leading axes are those of `features`. They
            may lie outside the image. No gradient flows to them.
        output_size: (rows, columns) of bins, each 1 to 255.
        spatial_scale: map cells per image pixel.
        method: "segment" (on `jax.ops.segment_max`), "loop" (over the cells of each bin; fast on CPU), or "auto": the
            loop on CPU, else segments. All agree to the bit.

    Returns:
        `(..., R, rows, columns, C)` of the features' type.

    Raises:
        ValueError: shapes that do not fit, or an unknown method.
    """
    features, rois = jnp.asarray(features), jnp.asarray(rois)
    lead = features.shape[:-3]
    if features.ndim < 3 or rois.shape[-1:] != (4,) or rois.shape[:-2] != lead:
        raise ValueError(
            f"features (..., H, W, C) and rois (..., R, 4) must fit, got {features.shape} and {rois.shape}"
        )
    maps = int(np.prod(lead))
    batch_index = jnp.repeat(jnp.arange(maps, dtype=jnp.int32), rois.shape[-2])
    pooled = roi_pool_flat(
        features.reshape(maps, *features.shape[-3:]),
        rois.reshape(-1, 4),
        batch_index,
        output_size=output_size,
        spatial_scale=spatial_scale,
        method=method,
    )
    return pooled.reshape(*lead, rois.shape[-2], *pooled.shape[1:])


def roi_pool_flat(
    features: jax.Array,
    rois: jax.Array,
    batch_index: jax.Array,
    *,
    output_size: tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    method: str = "auto",
) -> jax.Array:
    """RoI max pooling of a flat list of RoIs: `roi_pool` without padding for ragged numbers of RoIs.

    Args:
        features: `(B, H, W, C)`.
        rois: `(K, 4)`.
        batch_index: `(K,)` integers in [0, B), the map of each RoI.
        output_size, spatial_scale, method: as in `roi_pool`.

    Returns:
        `(K, rows, columns, C)`.

    Raises:
        ValueError: shapes that do not fit, or an unknown method.
    """
    features, rois, batch_index = jnp.asarray(features), jnp.asarray(rois), jnp.asarray(batch_index)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if features.ndim != 4 or rois.shape != (*batch_index.shape, 4) or rois.ndim != 2:
        raise ValueError(
            "features (B, H, W, C), rois (K, 4) and batch_index (K,) must fit, "
            f"got {features.shape}, {rois.shape} and {batch_index.shape}"
        )
    rows, columns = output_size
    if not (1 <= rows <= 255 and 1 <= columns <= 255):
        raise ValueError(f"output_size must be 1 to 255 rows and columns, got {output_size}")
    rois = lax.stop_gradient(rois).astype(jnp.float32)
    y = bin_edges(rois[:, 1], rois[:, 3], rows, features.shape[1], spatial_scale)
    x = bin_edges(rois[:, 0], rois[:, 2], columns, features.shape[2], spatial_scale)
    if 0 in (*features.shape, *rois.shape):
        return jnp.zeros((rois.shape[0], rows, columns, features.shape[3]), features.dtype)
    return _pool(features, (batch_index.astype(jnp.int32), *y, *x), method)


def bin_edges(
    start: jax.Array, end: jax.Array, bins: int, cells: int, spatial_scale: float
) -> tuple[jax.Array, jax.Array]:
    """The half-open ranges of cells, `(K, bins)` int32 twice, of the bins of `(K,)` float32 starts and ends in pixels.

    Compilers may divide by a constant through its reciprocal, which moves some edges by a cell; the quotient is
    therefore corrected to the one that IEEE division gives.
    """
    limit = np.float32(2**20)
    scale = np.float32(spatial_scale)
    first = lax.round(jnp.clip(start * scale, -limit, limit), lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32)
    last = lax.round(jnp.clip(end * scale, -limit, limit), lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32)
    size = _divide_exactly(jnp.maximum(last - first + 1, 1), bins)[:, None]
    p = np.arange(bins, dtype=np.float32)
    low = first[:, None] + jnp.floor(p * size).astype(jnp.int32)
    high = first[:, None] + jnp.ceil((p + np.float32(1)) * size).astype(jnp.int32)
    return jnp.clip(low, 0, cells), jnp.clip(high, 0, cells)


def _divide_exactly(n: jax.Array, divisor: int) -> jax.Array:
    """The float32 nearest to n / divisor for int32 n in [1, 2**22), whatever the compiler makes of a division."""
    bits = lax.bitcast_convert_type(n.astype(jnp.float32) * np.float32(1 / divisor), jnp.int32)
    mantissa, exponent = (bits & 0x7FFFFF) | 0x800000, (bits >> 23) - 150
    # n - quotient * divisor in units of the last place; both terms may wrap around, the difference is small and exact
    remainder = (n << -exponent) - mantissa * divisor
    bits += (2 * remainder > divisor).astype(jnp.int32) - (2 * remainder < -divisor).astype(jnp.int32)
    return lax.bitcast_convert_type(bits, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pool(features, regions, method):
    """Regions are (batch_index (K,), y_low, y_high (K, rows), x_low, x_high (K, columns)), all int32."""
    return _dispatch(features, regions, method, with_argmax=False)[0]


def _pool_forward(features, regions, method):
    pooled, argmax = _dispatch(features, regions, method, with_argmax=True)
    empty = jnp.zeros((0, *features.shape), features.dtype)  # carries the shape and the type
    return pooled, (argmax, regions, empty)


def _pool_backward(method, residuals, gradient):
    argmax, (batch_index, *_), empty = residuals
    maps, height, width, channels = empty.shape[1:]
    cells = height * width
    target = ((batch_index[:, None, None, None] * cells + argmax) * channels) + jnp.arange(channels, dtype=jnp.int32)
    target = jnp.where(argmax < 0, maps * cells * channels, target)  # an empty bin: out of range, dropped
    summed = jax.ops.segment_sum(
        gradient.astype(jnp.float32).reshape(-1), target.reshape(-1), num_segments=maps * cells * channels
    )
    return summed.reshape(maps, height, width, channels).astype(empty.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _dispatch(features, regions, method, with_argmax):
    """-> maxima (K, rows, columns, C) and the cell y * W + x of each, -1 in an empty bin (None without argmax)."""
    loop = partial(_by_loop, with_argmax=with_argmax)
    segment = partial(_by_segments, with_argmax=with_argmax)
    if method == "auto":
        return lax.platform_dependent(features, regions, cpu=loop, default=segment)
    return (loop if method == "loop" else segment)(features, regions)


def _by_segments(features, regions, with_argmax):
    """One RoI after another: a segment maximum over the rows of each bin, then one over its columns."""
    height, width = features.shape[1:3]
    none = height * width

    def one(region):
        index, y_low, y_high, x_low, x_high = region
        row, y_segment = _members(y_low, y_high, height)
        column, x_segment = _members(x_low, x_high, width)
        lines = features[index][row]  # (members of y, W, C)
        by_row = partial(
            jax.ops.segment_max, segment_ids=y_segment, num_segments=len(y_low) + 1, indices_are_sorted=True
        )
        by_column = partial(
            jax.ops.segment_max, segment_ids=x_segment, num_segments=len(x_low) + 1, indices_are_sorted=True
        )
        line_max = by_row(lines)
        strips = line_max.swapaxes(0, 1)[column]  # (members of x, rows + 1, C)
        pooled = by_column(strips)
        empty = (y_low >= y_high)[:, None, None] | (x_low >= x_high)[:, None]
        maxima = jnp.where(empty, 0, pooled[:-1, :-1].swapaxes(0, 1))
        if not with_argmax:
            return maxima, None
        # the first cell: the least y * W + x among those that equal the maximum, as the largest of its negative
        first = jnp.where(lines == line_max[y_segment], -(row[:, None] * width + jnp.arange(width))[..., None], -none)
        first = by_row(first).swapaxes(0, 1)[column]
        cell = -by_column(jnp.where(strips == pooled[x_segment], first, -none))
        return maxima, jnp.where(empty, -1, cell[:-1, :-1].swapaxes(0, 1))

    return lax.map(one, regions)


def _members(low, high, cells):
    """The cells of every bin one bin after another, and the bin each belongs to; unused places are in bin P.

    Neighbours overlap by a cell at most, so a RoI's bins hold at most cells + 2 P members.
    """
    ends = jnp.cumsum(jnp.maximum(high - low, 0))
    place = jnp.arange(cells + 2 * len(low), dtype=jnp.int32)
    segment = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    back_from_end = ends[jnp.minimum(segment, len(low) - 1)] - place
    return jnp.clip(high[jnp.minimum(segment, len(low) - 1)] - back_from_end, 0, cells - 1), segment


def _by_loop(features, regions, with_argmax):
    """Bin after bin, cell after cell, all channels at once."""
    height, width, channels = features.shape[1:]
    batch_index, y_low, y_high, x_low, x_high = regions
    (count, rows), columns = y_low.shape, x_low.shape[1]
    lowest = jnp.full((channels,), -jnp.inf, features.dtype)
    flat = features.reshape(-1, channels)

    def one_bin(i, out):
        k, p, q = i // (rows * columns), i // columns % rows, i % columns
        y, y_end, x, x_end = y_low[k, p], y_high[k, p], x_low[k, q], x_high[k, q]
        wide = x_end - x
        cells = jnp.where((y_end > y) & (wide > 0), (y_end - y) * wide, 0)
        start = batch_index[k] * (height * width)

        def one_cell(j, best):
            cell = (y + j // wide) * width + x + j % wide
            here = lax.dynamic_index_in_dim(flat, start + cell, keepdims=False)
            if not with_argmax:
                return (jnp.maximum(best[0], here),)
            return jnp.where(here > best[0], here, best[0]), jnp.where(here > best[0], cell, best[1])

        initial = (lowest, jnp.full((channels,), -1, jnp.int32)) if with_argmax else (lowest,)
        best = lax.fori_loop(0, cells, one_cell, initial)
        best = (jnp.where(cells > 0, best[0], 0), *best[1:])
        return tuple(lax.dynamic_update_index_in_dim(o, b, i, axis=0) for o, b in zip(out, best, strict=True))

    types = (features.dtype, jnp.int32) if with_argmax else (features.dtype,)
    out = tuple(jnp.zeros((count * rows * columns, channels), dtype) for dtype in types)
    out = lax.fori_loop(0, count * rows * columns, one_bin, out)
    maxima, *argmax = (o.reshape(count, rows, columns, channels) for o in out)
    return maxima, argmax[0] if with_argmax else None
