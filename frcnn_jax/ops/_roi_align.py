"""RoIAlign (He et al. 2017, Mask R-CNN, section 3), as torchvision and Detectron2 compute it.

A bin is the mean of bilinear samples at regular points inside it. Nothing is rounded to cells. Samples lie at the same
float32 places as torchvision's on CPU, to the bit: one just outside the map counts as 0. The gradient goes to the four
cells around each sample: it is the transpose of a linear map, defined by `_align_backward` and `_spread` below. Reverse
mode only.

Shape letters: B maps, H rows and W columns of a map, C channels, K RoIs in a flat list, R RoIs per map, P bins along an
axis.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from frcnn_jax.ops._arguments import (
    check_batched,
    check_flat,
    check_output,
    divide_exactly,
    listed,
    map_size,
    rounded,
    varying_alike,
    widened,
    with_leading_axes,
)
from frcnn_jax.ops._partition import partitioned


def roi_align(
    features: ArrayLike,
    rois: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
    differentiable_boxes: bool = False,
) -> jax.Array:
    """Sample the features inside each RoI into a grid of means (RoIAlign; Mask R-CNN, section 3).

    Args:
        features: `(..., H, W, C)` float32, bfloat16, float16 or float64. Channels are last.
        rois: `(..., R, 4)` (x1, y1, x2, y2) in image pixels, floating point or integers, taken in float32. Coordinates
            are continuous, pixel i spans [i, i + 1): add 1 to x2 and y2 of this package's inclusive boxes. The leading
            axes are those of `features`. Samples more than one cell outside the map count as 0. Corners more than 2^23
            cells away are clipped to that distance. A RoI with a NaN yields 0.
        output_size: (rows, columns) of bins, each 1 to 255; one number for both.
        spatial_scale: Map cells per image pixel, greater than 0.
        sampling_ratio: Samples per bin along each axis. 0 takes as many as the bin has cells, rounded up, but at most
            twice those of the map (torchvision has no limit); RoIs then run one by one, which is slow on accelerators.
        aligned: Whether cell centres lie at half pixels, as is correct. False is the older form, up to half a cell off,
            in which a RoI measures at least one cell each way.
        differentiable_boxes: Whether RoIs get a gradient too; torchvision has none. It needs a `sampling_ratio` of at
            least 1. float64 RoIs are then taken in float64.

    Returns:
        `(..., R, rows, columns, C)` of the features' type.

    Raises:
        ValueError: Shapes do not match, or a number is out of its range.
        TypeError: An argument has the wrong type.
    """
    maps, boxes = check_batched(features, rois, exact_rois=differentiable_boxes)
    size, scale = check_output(output_size, spatial_scale)
    ratio = _check_ratio(sampling_ratio, differentiable_boxes)
    options = _Options(size, (scale,), ratio, bool(aligned), bool(differentiable_boxes), (map_size(maps),))
    return with_leading_axes(_align_batch((maps,), boxes, options), features)


def roi_align_flat(
    features: ArrayLike,
    rois: ArrayLike,
    batch_index: ArrayLike,
    *,
    output_size: int | tuple[int, int] = (7, 7),
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
    differentiable_boxes: bool = False,
) -> jax.Array:
    """Align a flat list of RoIs: `roi_align` for any number of RoIs per map, without padding.

    Args:
        features: `(B, H, W, C)`.
        rois: `(K, 4)`.
        batch_index: `(K,)` integers, the map of each RoI; a RoI whose index is outside [0, B) yields 0.
        output_size, spatial_scale, sampling_ratio, aligned, differentiable_boxes: As in `roi_align`.

    Returns:
        `(K, rows, columns, C)`.

    Raises:
        ValueError, TypeError: As in `roi_align`.
    """
    features, exact_rois, batch_index = check_flat(features, rois, batch_index)
    if differentiable_boxes:
        exact_rois = jnp.asarray(rois, np.float64 if jnp.asarray(rois).dtype == np.float64 else np.float32)
    size, scale = check_output(output_size, spatial_scale)
    ratio = _check_ratio(sampling_ratio, differentiable_boxes)
    return _align_rois(features, exact_rois, batch_index, size, scale, ratio, bool(aligned), bool(differentiable_boxes))


def multiscale_roi_align(
    features: Mapping[Any, ArrayLike] | Sequence[ArrayLike],
    rois: ArrayLike,
    *,
    strides: Sequence[float],
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> jax.Array:
    """Align RoIs on a feature pyramid (FPN, Lin et al. 2017, equation 1), as torchvision's `MultiScaleRoIAlign` does.

    A RoI of w x h pixels is pooled from one level only, that with a stride of 2^k pixels and
    k = floor(4 + log2(sqrt(w h) / 224)), or else the nearest.

    Args:
        features: `(B, H, W, C)` per level, in a sequence or a dict; C is the same for all.
        rois: `(B, R, 4)` in image pixels; see `roi_align`.
        strides: Image pixels per map cell of each level, in the order of `features`, each twice the one before.
        output_size, sampling_ratio, aligned: As in `roi_align`.

    Returns:
        `(B, R, rows, columns, C)` of the features' type.

    Raises:
        ValueError: Shapes do not match, or a number is out of its range.
        TypeError: An argument has the wrong type.
    """
    maps = list(features.values() if isinstance(features, Mapping) else features)
    strides = [float(stride) for stride in strides]
    if not maps or len(strides) != len(maps):
        raise ValueError(f"strides must be {len(maps)} numbers, one per level and at least one, got {strides}")
    if not all(0 < stride < math.inf for stride in strides):
        raise ValueError(f"strides must be over 0 and finite, got {strides}")
    if any(later != 2 * former for former, later in itertools.pairwise(strides)):
        raise ValueError(f"strides must double from level to level, got {strides}")
    levels, boxes = zip(*(check_batched(level, rois) for level in maps), strict=True)
    if len({(len(level), level.shape[3], level.dtype) for level in levels}) > 1:
        raise ValueError(f"levels must agree in B, C and type, got {[(level.shape, level.dtype) for level in levels]}")
    size, _ = check_output(output_size, 1)
    scales = tuple(check_output(size, 1 / stride)[1] for stride in strides)
    ratio, map_sizes = _check_ratio(sampling_ratio, False), tuple(map(map_size, levels))
    options = _Options(size, scales, ratio, bool(aligned), False, map_sizes)
    return with_leading_axes(_align_batch(levels, boxes[0], options), maps[0])


def _check_ratio(sampling_ratio, differentiable_boxes):
    try:
        ratio = operator.index(sampling_ratio)
    except TypeError:
        raise TypeError(f"sampling_ratio must be an integer, got {sampling_ratio!r}") from None
    if ratio < int(differentiable_boxes):
        least = "1 with differentiable_boxes" if differentiable_boxes else "0"
        raise ValueError(f"sampling_ratio must be at least {least}, got {sampling_ratio}")
    return ratio


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _align_rois(features, rois, batch_index, output_size, spatial_scale, ratio, aligned, differentiable_boxes):
    features, rois, batch_index = varying_alike(features, rois, batch_index)
    maps, height, width, channels = features.shape
    if 0 in (*features.shape, *rois.shape):
        return jnp.zeros((len(rois), *output_size, channels), features.dtype)
    level = [jnp.full(len(rois), number, jnp.int32) for number in (0, height, width)]
    grids = _grids(rois, batch_index, maps, level, spatial_scale, output_size, ratio, aligned)
    return _align(features.reshape(-1, channels), grids, output_size, ratio, differentiable_boxes)


def _grids(rois, batch_index, maps, level, spatial_scale, output_size, ratio, aligned):
    """Return the grids of RoIs on maps whose cells are rows of one array.

    Args:
        rois: `(K, 4)`.
        batch_index: `(K,)`.
        maps: B.
        level: The first row, the height and the width, `(K,)` each, of the maps of a RoI's level.
        spatial_scale: Map cells per image pixel, a number or `(K, 1)`.
    """
    first, height, width = level
    scale = jnp.asarray(spatial_scale, jnp.float32).astype(rois.dtype)
    nothing = jnp.isnan(rois).any(axis=1) | (batch_index < 0) | (batch_index >= maps)
    scaled = jnp.clip(jnp.where(nothing[:, None], 0, rois) * scale, -(2**23), 2**23) - (0.5 if aligned else 0)
    x, y = (
        (*_grid(scaled[:, i], scaled[:, i + 2], bins, cells, ratio, aligned), cells)
        for i, bins, cells in ((0, output_size[1], width), (1, output_size[0], height))
    )
    return first + jnp.where(nothing, 0, batch_index) * (height * width), ~nothing, y, x


def _grid(start, end, bins, cells, ratio, aligned):
    """Return RoIs' starts and bin sizes along an axis, in cells, and samples per bin, `(K,)` each."""
    size = _divide(end - start if aligned else jnp.maximum(end - start, 1), start.dtype.type(bins))
    most = 2 * cells.astype(size.dtype)
    samples = jnp.ceil(jnp.clip(size, 0, most)).astype(jnp.int32) if ratio == 0 else jnp.full(len(size), ratio)
    return start, size, samples.astype(jnp.int32)


def _divide(x, divisor):
    return divide_exactly(x, divisor) if x.dtype == np.float32 else x / divisor


# Features are (cells, C): the cells of all maps. The grids of K RoIs are (the first cell of its map, valid, y, x), with
# y and x from `_grid` and the map's height and width; all are `(K,)`.


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _align(features, grids, output_size, ratio, differentiable_boxes):
    exact = widened(features[:0]).dtype

    def add_sample(total, grids, i, j):
        for cell, weight in _cells(grids, output_size, i, j):
            total += features.at[cell].get(mode="promise_in_bounds").astype(exact) * weight.astype(exact)
        return total

    if ratio:
        total = jnp.zeros((len(grids[0]), *output_size, features.shape[1]), exact)
        for i, j in np.ndindex(ratio, ratio):
            total = add_sample(total, grids, i, j)
    else:
        nothing = _zeros((1, *output_size, features.shape[1]), features.astype(exact))
        total = lax.map(lambda grid: _add_own_samples(add_sample, nothing, grid)[0], grids)
    return total.astype(features.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _spread(gradient, grids, shape, output_size, ratio):
    """Add the bins' gradients up in features of a shape (cells, C): the transpose of `_align`."""
    exact = widened(gradient)

    def add_sample(total, grids, i, j, gradient):
        for cell, weight in _cells(grids, output_size, i, j):
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

    total = _zeros(shape, exact)
    # `together` makes 4 ratio^2 arrays of the result's size, which CPUs would write and read
    total = lax.platform_dependent(total, cpu=one_by_one, default=together) if ratio else one_by_one(total)
    return total.astype(gradient.dtype)


def _align_forward(features, grids, output_size, ratio, differentiable_boxes):
    kept = features if differentiable_boxes else jnp.zeros((0, *features.shape), features.dtype)  # carries the shape
    return _align(features, grids, output_size, ratio, differentiable_boxes), (grids, kept)


def _align_backward(output_size, ratio, differentiable_boxes, residuals, gradient):
    grids, features = residuals
    to_features = _spread(gradient, grids, features.shape[-2:], output_size, ratio)
    if not differentiable_boxes:
        return to_features, None
    first, valid, (y, y_size, *y_rest), (x, x_size, *x_rest) = grids

    def by_place(y, y_size, x, x_size):
        grids = first, valid, (y, y_size, *y_rest), (x, x_size, *x_rest)
        samples = [_cells(grids, output_size, i, j) for i, j in np.ndindex(ratio, ratio)]
        parts = [
            (widened(gradient) * features.at[cell].get(mode="promise_in_bounds")).sum(-1, keepdims=True) * weight
            for cell, weight in itertools.chain(*samples)
        ]
        return sum(part.sum() for part in parts)

    dy, dy_size, dx, dx_size = jax.grad(by_place, (0, 1, 2, 3))(y, y_size, x, x_size)
    return to_features, (None, None, (dy, dy_size, None, None), (dx, dx_size, None, None))


def _spread_forward(gradient, grids, shape, output_size, ratio):
    return _spread(gradient, grids, shape, output_size, ratio), grids


def _spread_backward(shape, output_size, ratio, grids, features):
    return _align(features, grids, output_size, ratio, False), None


_align.defvjp(_align_forward, _align_backward)
_spread.defvjp(_spread_forward, _spread_backward)


# The same for maps (B, H, W, C) of one or several levels and RoIs (B, R, 4), over the devices of a mesh


class _Options(NamedTuple):
    output_size: tuple[int, int]
    scales: tuple[float, ...]  # per level
    ratio: int
    aligned: bool
    differentiable_boxes: bool
    map_sizes: tuple[tuple[int, int], ...]


def _align_batch(levels, rois, options):
    if 0 in (*(number for level in levels for number in level.shape), *rois.shape):
        return jnp.zeros((*rois.shape[:2], *options.output_size, levels[0].shape[3]), levels[0].dtype)
    *levels, rois = varying_alike(*levels, rois)
    return _align_maps(tuple(levels), rois, options)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _align_maps(levels, rois, options):
    return _over_mesh(options).align(*levels, rois)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread_maps(gradient, rois, options):
    """Add the bins' gradients up in the maps: the transpose of `_align_maps`."""
    return tuple(_over_mesh(options).spread(gradient, rois))


def _align_maps_backward(options, residuals, gradient):
    levels, rois = residuals
    to_rois = _over_mesh(options).to_rois(gradient, *levels, rois) if options.differentiable_boxes else None
    return _spread_maps(gradient, rois, options), to_rois


_align_maps.defvjp(
    lambda levels, rois, options: (
        _align_maps(levels, rois, options), (levels if options.differentiable_boxes else (), rois)
    ),
    _align_maps_backward,
)  # fmt: skip
_spread_maps.defvjp(
    lambda gradient, rois, options: (_spread_maps(gradient, rois, options), rois),
    lambda options, rois, levels: (_align_maps(levels, rois, options._replace(differentiable_boxes=False)), None),
)


class _OverMesh(NamedTuple):
    align: Callable[..., jax.Array]
    spread: Callable[..., Sequence[jax.Array]]
    to_rois: Callable[..., jax.Array]


@cache
def _over_mesh(options):
    size, scales, ratio, aligned, _, map_sizes = options

    def grids(rois):
        boxes, batch_index = listed(rois, rois)
        # 1e-6 as in torchvision: rounding must not move a RoI of exactly a level's size to the level below
        bounds = [np.float32(224 * 2.0 ** (-1e-6 - 4) / scale) for scale in scales[1:]]
        side = jnp.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        own = jnp.zeros(len(boxes), jnp.int32)
        for bound in bounds:
            own += (side >= bound).astype(jnp.int32)
        starts = np.cumsum([0, *(len(rois) * math.prod(map_size) for map_size in map_sizes[:-1])])

        def of_level(numbers):
            chosen = (jnp.where(own == i, number, 0) for i, number in enumerate(numbers))
            return reduce(operator.add, chosen)

        level = [of_level(map(np.int32, numbers)) for numbers in (starts, *zip(*map_sizes, strict=True))]
        scale = of_level(map(np.float32, scales))
        return _grids(boxes, batch_index, len(rois), level, scale[:, None], size, ratio, aligned)

    def sampled(levels, rois):
        *levels, rois = varying_alike(*levels, rois)
        flat = jnp.concatenate([level.reshape(-1, level.shape[3]) for level in levels])
        pooled = _align(flat, grids(rois), size, ratio, options.differentiable_boxes)
        return pooled.reshape(*rois.shape[:2], *pooled.shape[1:])

    def spread(gradient, rois):
        gradient, rois = varying_alike(gradient, rois)
        maps, channels = len(rois), gradient.shape[-1]
        ends = np.cumsum([maps * math.prod(map_size) for map_size in map_sizes])
        flat = gradient.reshape(-1, *gradient.shape[2:])
        parts = jnp.split(_spread(flat, grids(rois), (int(ends[-1]), channels), size, ratio), ends[:-1])
        return tuple(part.reshape(maps, *own, channels) for part, own in zip(parts, map_sizes, strict=True))

    def to_rois(gradient, *arrays):
        *levels, rois = arrays
        _, pullback = jax.vjp(lambda rois: sampled(levels, rois), rois)
        return pullback(gradient)[0]

    levels = ", ".join(f"b h{i} w{i} c" for i in range(len(scales)))
    pooled, boxes = "b r i j c", "b r k"
    return _OverMesh(
        partitioned(jax.jit(lambda *arrays: sampled(arrays[:-1], arrays[-1])), f"{levels}, {boxes} -> {pooled}", "brc"),
        partitioned(jax.jit(spread), f"{pooled}, {boxes} -> {levels}", "bc"),
        partitioned(jax.jit(to_rois), f"{pooled}, {levels}, {boxes} -> {boxes}", "br", gathered="c"),
    )


def _zeros(shape, like):
    """Return zeros that vary over the mesh axes of `like`, as `shard_map` requires of a loop's initial values."""
    return jnp.zeros(shape, like.dtype) + like.reshape(-1)[:0].sum()


def _add_own_samples(add_sample, total, grid):
    """Add all samples of one RoI, whose number depends on the RoI."""
    grids = jax.tree.map(lambda part: part[None], grid)
    (*_, along_y, _), (*_, along_x, _) = grid[2:]
    return lax.fori_loop(
        0, along_y * along_x, lambda n, total: add_sample(total, grids, n // along_x, n % along_x), total
    )


def _cells(grids, output_size, i, j):
    """Yield the four cells around sample (i, j) of every bin `(K, rows, columns)`, and their weights in the bin's mean
    `(K, rows, columns, 1)`."""
    first, valid, y_grid, x_grid = grids
    *_, width = x_grid
    for y, y_weight in _two_cells(y_grid, output_size[0], i):
        for x, x_weight in _two_cells(x_grid, output_size[1], j):
            weight = jnp.where(valid[:, None], y_weight, 0)[:, :, None] * x_weight[:, None, :]
            line = first[:, None] + y * width[:, None]
            yield line[:, :, None] + x[:, None, :], weight[..., None]


def _two_cells(grid, bins, i):
    """Return the cells before and after the i-th sample of each bin along an axis, with weights, `(K, P)` each."""
    start, size, samples, cells = (part[:, None] for part in grid)
    exact = start.dtype.type
    count, cells = jnp.maximum(samples, 1).astype(exact), cells.astype(exact)
    own = _divide(rounded((jnp.asarray(i, exact) + exact(0.5)) * size), count)
    at = start + rounded(np.arange(bins, dtype=exact)[None] * size) + own
    weight = jnp.where((i < samples) & (at >= -1) & (at <= cells), 1 / count, 0)
    at = jnp.clip(at, 0, cells - 1)
    before = jnp.floor(at)
    beyond = at - before
    after = jnp.minimum(before + 1, cells - 1)
    return (before.astype(jnp.int32), weight * (1 - beyond)), (after.astype(jnp.int32), weight * beyond)
