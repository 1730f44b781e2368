"""The algorithms of RoI max pooling: segment maxima, a table of window maxima, a loop over cells; all to the same bits.

The regions of K RoIs are (batch_index (K,), y_low, y_high (K, rows), x_low, x_high (K, columns)), all int32. A method
maps features (B, H, W, C) and regions to (maxima,), (K, rows, columns, C), or with argmax to (maxima, argmax), where
argmax is y * W + x of each maximum's first cell in its map. In an empty bin they are 0 and -1. Shape letters are those
of _roi_pool.py.
"""

import itertools
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from frcnn_jax.ops._arguments import widened

METHODS = ("auto", "segment", "table", "loop")


def by_method(method, with_argmax):
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
        regions = [part.reshape(-1, *part.shape[2:]) for part in regions]
        pooled = tuple(part.reshape(size, -1, *part.shape[1:]) for part in pool(features, tuple(regions)))
        return pooled, (True,) * len(pooled)

    return pool


def _by_segments(features, regions, with_argmax):
    """Pool one RoI after another by segment maxima."""
    exact = widened(features)
    maxima, *argmax = lax.map(lambda region: _segment_maxima(exact, region, with_argmax), regions)
    return maxima.astype(features.dtype), *argmax


def _segment_maxima(features, region, with_argmax):
    """Pool one RoI: a segment maximum over the rows of each bin, then one over its columns."""
    height, width = features.shape[1:3]
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
    return maxima, jnp.where(empty, -1, first)


def _members(low, high, cells):
    """List the cells of all bins in order of bins, and each cell's bin; unused entries are in bin P.

    Neighbouring bins overlap by at most one cell, so a RoI's bins have at most cells + 2 P members.
    """
    ends = jnp.cumsum(high - low)
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
        cell = jnp.arange(height * width, dtype=jnp.int32).reshape(1, height, width, 1)
        table = features, jnp.broadcast_to(cell, features.shape)
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

    def one_bin(region):
        start, y, y_end, x, x_end = region
        wide = x_end - x
        cells = jnp.where(y_end > y, (y_end - y) * wide, 0)

        def look_at(j):
            cell = (y + j // wide) * width + x + j % wide
            return lax.dynamic_index_in_dim(flat, start + cell, keepdims=False), jnp.full(channels, cell)

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
