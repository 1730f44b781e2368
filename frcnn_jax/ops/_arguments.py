"""What the RoI ops share: checks of their arguments, and arithmetic that compilers do not change."""

import math
import operator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = Any  # numpy.ndarray or jax.Array

REAL = (jnp.floating, jnp.integer)


def check_batched(features: Any, rois: Any, *, exact_rois: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return `(..., H, W, C)` as `(B, H, W, C)`, and `(..., R, 4)` as `(B, R, 4)`; ValueError or TypeError.

    RoIs are in float32 and get no gradient; with `exact_rois` they get one, and float64 stays.
    """
    features, rois = as_array(features, "features", jnp.floating), as_array(rois, "rois", *REAL)
    lead = features.shape[:-3]
    if features.ndim < 3:
        raise ValueError(f"features must be (..., H, W, C), got {features.shape}")
    if rois.ndim < 2 or rois.shape[-1] != 4:
        raise ValueError(f"rois must be (..., R, 4), got {rois.shape}")
    if rois.shape[:-2] != lead:
        expected = ", ".join(map(str, (*lead, "R", 4)))
        raise ValueError(f"rois must be ({expected}) for features {features.shape}, got {rois.shape}")
    rois = jnp.asarray(rois if exact_rois and rois.dtype == np.float64 else rois.astype(np.float32))
    features, rois = jnp.asarray(features), rois if exact_rois else lax.stop_gradient(rois)
    if len(lead) != 1:
        features, rois = (x.reshape(math.prod(lead), *x.shape[len(lead) :]) for x in (features, rois))
    return features, rois


def with_leading_axes(out: jax.Array, features: Any) -> jax.Array:
    """Return `(B, R, ...)` as `(..., R, ...)`, with the leading axes of `features`."""
    lead = np.shape(features)[:-3]
    return out if len(lead) == 1 else out.reshape(*lead, *out.shape[1:])


def map_size(features: jax.Array) -> tuple[int, int]:
    """Return H and W of `(B, H, W, C)`."""
    return features.shape[1], features.shape[2]


def listed(features: jax.Array, rois: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `(B, R, 4)` as `(K, 4)`, and the index `(K,)` of each one's map."""
    count = rois.shape[1]
    return rois.reshape(-1, 4), lax.iota(jnp.int32, len(features) * count) // max(count, 1)


def check_flat(features: Any, rois: Any, batch_index: Any) -> tuple[Array, jax.Array, jax.Array]:
    """Return features `(B, H, W, C)`, RoIs `(K, 4)` float32 and indices `(K,)` int32; ValueError or TypeError."""
    features, rois = as_array(features, "features", jnp.floating), as_array(rois, "rois", *REAL)
    batch_index = as_array(batch_index, "batch_index", jnp.integer)
    if features.ndim != 4:
        raise ValueError(f"features must be (B, H, W, C), got {features.shape}")
    if rois.ndim != 2 or rois.shape[1] != 4:
        raise ValueError(f"rois must be (K, 4), got {rois.shape}")
    if isinstance(features, jax.Array) and any(jax.typeof(features).sharding.spec):
        raise ValueError(
            f"a flat list of RoIs needs maps that are not sharded over a mesh, got {jax.typeof(features)}; for maps "
            "sharded over B or C use the batched op, with RoIs (B, R, 4)"
        )
    if batch_index.shape != rois.shape[:1]:
        raise ValueError(f"batch_index must be ({len(rois)},), one per RoI, got {batch_index.shape}")
    if batch_index.dtype in (np.int64, np.uint64):  # must not wrap around in int32
        batch_index = batch_index.clip(max(np.iinfo(batch_index.dtype).min, -1), 2**31 - 1)
    return features, lax.stop_gradient(jnp.asarray(rois.astype(np.float32))), jnp.asarray(batch_index.astype(np.int32))


def as_array(value: Any, name: str, *kinds: Any) -> Array:
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
    if any(axis is not None for array in arrays for axis in jax.typeof(array).sharding.spec):
        return arrays  # on an explicit mesh
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


def divide_exactly(x: jax.Array, divisor: Array) -> jax.Array:
    """Return the float32 nearest to x / divisor, however the compiler divides.

    Args:
        x: float32, 0 or of a magnitude in [2^-90, 2^90].
        divisor: An integer from 1 to 2^12, or such integers in float32; broadcasts with `x`.
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


def widened(array):
    """Return shorter types as float32: for exact sums, and because CPUs compare in float32 (they would convert the map
    again for each RoI)."""
    return array if jnp.finfo(array.dtype).bits > 32 else array.astype(jnp.float32)
