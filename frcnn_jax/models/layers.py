"""Convolutions, Caffe's max pooling and local response normalisation, with derivatives that are fast on CPU.

XLA's own derivatives are exact but slow there; `benchmarks/bench_layers.py` measures both. Reverse mode only.

Shape letters: B images, H rows, W columns, C channels.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]  # rows above and below, columns left and right


class Conv(NamedTuple):
    """A convolution and, unless `relu` is false, its ReLU."""

    name: str
    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = True


class Pool(NamedTuple):
    """Max pooling whose output size is rounded up, as in Caffe, or down, as in PyTorch; the stride is at most the
    kernel."""

    kernel: int
    stride: int
    padding: int = 0
    round_up: bool = True


class Norm(NamedTuple):
    """Local response normalisation across `size` channels (odd): x / (k + alpha / size * sum x^2)^beta, as in Caffe."""

    alpha: float
    k: float
    size: int = 5
    beta: float = 0.75


def output_size(layer: Conv | Pool | Norm, size: Any) -> Any:
    """Return the rows or columns after a layer, for an int or an int32 array, rounded as the layer does."""
    if isinstance(layer, Norm):
        return size
    reach = size + 2 * layer.padding - layer.kernel
    if isinstance(layer, Conv) or not layer.round_up:
        return reach // layer.stride + 1
    rounded_up = -(-reach // layer.stride) + 1
    # a last window that would start beyond the input is dropped
    return rounded_up - ((rounded_up - 1) * layer.stride >= size + layer.padding)


def convolve(x: jax.Array, kernel: jax.Array, layer: Conv) -> jax.Array:
    """Convolve `(B, H, W, C)` with a `(k, k, C / groups, features)` kernel.

    Groups are separate convolutions, several times faster on CPU than one with `feature_group_count`; a 1x1 convolution
    is a matrix product, 2 to 5 times as fast there with its gradients (benchmarks/bench_layers.py).
    """
    wide = min(kernel.shape[2], layer.features // layer.groups) >= 128
    is_3x3 = (layer.kernel, layer.padding) == (3, 1)
    convolve_group = (
        partial(_convolve_3x3, layer.stride)
        if wide and is_3x3
        else partial(_convolve, stride=layer.stride, padding=layer.padding)
    )
    parts = [
        convolve_group(part, weights)
        for part, weights in zip(
            jnp.split(x, layer.groups, axis=-1), jnp.split(kernel, layer.groups, axis=-1), strict=True
        )
    ]
    return jnp.concatenate(parts, axis=-1) if layer.groups > 1 else parts[0]


def _convolve(x, kernel, stride=1, padding=1):
    if (kernel.shape[:2], padding) == ((1, 1), 0):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    edges = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))


# On CPU the weight gradient of a wide 3x3 convolution is nine matrix products, one per tap.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve_3x3(stride, x, kernel):
    return _convolve(x, kernel, stride)


def _convolve_3x3_forward(stride, x, kernel):
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_3x3_backward(stride, residuals, gradient):
    x, kernel = residuals
    (x_gradient,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride), x)(gradient)

    def by_taps(x, gradient):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        flat_gradient = gradient.reshape(-1, gradient.shape[3]).T  # transposed once: it is fastest on the left
        seen_shape = (len(x), *((side - 1) * stride + 1 for side in gradient.shape[1:3]), x.shape[3])

        def tap(number):
            seen = lax.dynamic_slice(padded, (0, number // 3, number % 3, 0), seen_shape)[:, ::stride, ::stride]
            return flat_gradient @ seen.reshape(-1, x.shape[3])

        taps = lax.map(tap, jnp.arange(9))  # one after another: together they would hold nine copies of x
        return taps.swapaxes(1, 2).reshape(kernel.shape)

    def by_convolution(x, gradient):
        return jax.linear_transpose(lambda kernel: _convolve(x, kernel, stride), kernel)(gradient)[0]

    return x_gradient, lax.platform_dependent(x, gradient, cpu=by_taps, default=by_convolution)


_convolve_3x3.defvjp(_convolve_3x3_forward, _convolve_3x3_backward)


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding) -> jax.Array:
    """Convolve each channel of `(B, H, W, C)` with its own kernel.

    Args:
        x: `(B, H, W, C)`.
        kernel: `(k, k, 1, C)`.
        stride: Of rows and columns, at most k.
        padding: Rows and columns of zeros around x.

    Returns:
        `(B, H', W', C)`.
    """
    return _depthwise(x, kernel, stride, padding)


# On CPU a depthwise convolution is one multiply-add per tap, which XLA fuses into a single pass over the output.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    options = {"stride": stride, "padding": padding}
    by_taps, by_convolution = (partial(f, **options) for f in (_depthwise_by_taps, _depthwise_by_convolution))
    return lax.platform_dependent(x, kernel, cpu=by_taps, default=by_convolution)


def _depthwise_by_convolution(x, kernel, *, stride, padding):
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[3]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=channels
    )


def _depthwise_by_taps(x, kernel, *, stride, padding):
    k = len(kernel)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((side - k) // stride * stride + 1 for side in padded.shape[1:3])  # between first and last window
    return sum(
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0] for i in range(k) for j in range(k)
    )


def _depthwise_forward(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, residuals, gradient):
    def by_taps(x, kernel, gradient):
        x_gradient = _depthwise_x_gradient(kernel, gradient, x.shape, stride, padding)
        return x_gradient, _depthwise_kernel_gradient(x, gradient, kernel.shape, stride, padding)

    def by_convolution(x, kernel, gradient):
        return jax.vjp(partial(_depthwise_by_convolution, stride=stride, padding=padding), x, kernel)[1](gradient)

    return lax.platform_dependent(*residuals, gradient, cpu=by_taps, default=by_convolution)


def _depthwise_x_gradient(kernel, gradient, shape, stride, padding):
    """Sum taps of the gradient; as in `max_pool`, cells with equal row and column modulo the stride share theirs."""
    k, ((top, _), (left, _)) = len(kernel), padding
    extra = (k - 1) // stride
    rows, columns = -(-(shape[1] + top) // stride), -(-(shape[2] + left) // stride)
    after = (max(cells - own, 0) for cells, own in zip((rows, columns), gradient.shape[1:3], strict=True))
    padded = jnp.pad(gradient, ((0, 0), *((extra, n) for n in after), (0, 0)))

    def tap(i, j):
        above, before = extra - i // stride, extra - j // stride
        return padded[:, above : above + rows, before : before + columns] * kernel[i, j, 0]

    def cells(row, column):
        return sum(tap(i, j) for i in range(row, k, stride) for j in range(column, k, stride))

    grid = [jnp.stack([cells(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    flat = jnp.stack(grid, axis=2).reshape(len(gradient), stride * rows, stride * columns, shape[3])
    return flat[:, top : top + shape[1], left : left + shape[2]]


def _depthwise_kernel_gradient(x, gradient, shape, stride, padding):
    """Sum products per tap, one row of the output after another: the inputs of a row stay in the CPU's cache."""
    k, (rows, columns) = shape[0], gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    ones = jnp.ones((1, len(x) * columns), x.dtype)  # a product with it is faster than a sum
    total_type = jnp.promote_types(x.dtype, jnp.float32)

    def add_row(total, row):
        own = lax.dynamic_slice_in_dim(gradient, row, 1, axis=1)
        seen = lax.dynamic_slice_in_dim(padded, row * stride, k, axis=1)
        width = (columns - 1) * stride + 1
        products = [seen[:, i : i + 1, j : j + width : stride] * own for i in range(k) for j in range(k)]
        sums = [jnp.matmul(ones, p.reshape(-1, shape[3]), preferred_element_type=total_type) for p in products]
        return total + jnp.concatenate(sums), None

    total, _ = lax.scan(add_row, jnp.zeros((k * k, shape[3]), total_type), jnp.arange(rows))
    return total.reshape(shape).astype(x.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pool_edges(layer, sizes):
    """Return the padding before and after the rows and the columns."""
    return [
        (layer.padding, (output_size(layer, size) - 1) * layer.stride + layer.kernel - size - layer.padding)
        for size in sizes
    ]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, layer: Pool) -> jax.Array:
    """Pool `(B, H, W, C)`; the gradient goes to each window's first maximum in row-major order."""
    k, s = layer.kernel, layer.stride
    edges = ((0, 0), *_pool_edges(layer, x.shape[1:3]), (0, 0))
    return lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, (1, k, k, 1), (1, s, s, 1), edges)


def _max_pool_forward(x, layer):
    pooled = max_pool(x, layer)
    return pooled, (x, pooled)


def _max_pool_backward(layer, residuals, gradient):
    x, pooled = residuals
    k, s = layer.kernel, layer.stride
    (rows, columns), (top, left) = pooled.shape[1:3], (layer.padding, layer.padding)
    edges = ((0, 0), *_pool_edges(layer, x.shape[1:3]), (0, 0))
    padded = jnp.pad(x, edges, constant_values=-jnp.inf)
    first = jnp.full(pooled.shape, k * k, jnp.int32)  # per window, the first tap that holds its maximum
    for tap in reversed(range(k * k)):
        i, j = divmod(tap, k)
        seen = padded[:, i : i + (rows - 1) * s + 1 : s, j : j + (columns - 1) * s + 1 : s]
        first = jnp.where(seen == pooled, tap, first)

    # cells with equal row and column modulo the stride get their gradients from the same taps
    extra = (k - 1) // s

    def cells(row, column):
        total = jnp.zeros((len(x), rows + extra, columns + extra, x.shape[3]), gradient.dtype)
        for i, j in ((i, j) for i in range(row, k, s) for j in range(column, k, s)):
            shift = ((0, 0), (i // s, extra - i // s), (j // s, extra - j // s), (0, 0))
            total += jnp.pad(jnp.where(first == i * k + j, gradient, 0), shift)
        return total

    grid = jnp.stack([jnp.stack([cells(row, column) for column in range(s)], axis=3) for row in range(s)], axis=2)
    flat = grid.reshape(len(x), s * (rows + extra), s * (columns + extra), x.shape[3])
    return (flat[:, top : top + x.shape[1], left : left + x.shape[2]],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _window_sum(x, size):
    """Return the sum over the `size` nearest channels."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (size // 2, size // 2)))
    return sum(padded[..., i : i + x.shape[-1]] for i in range(size))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def local_response_norm(x: jax.Array, layer: Norm) -> jax.Array:
    """Normalise `(B, H, W, C)` across channels (Krizhevsky et al. 2012, section 3.3; alpha over n as in Caffe)."""
    return _local_response_norm_forward(x, layer)[0]


def _local_response_norm_forward(x, layer):
    scale = layer.k + layer.alpha / layer.size * _window_sum(jnp.square(x), layer.size)
    return x * scale**-layer.beta, (x, scale)


def _local_response_norm_backward(layer, residuals, gradient):
    x, scale = residuals
    direct = gradient * scale**-layer.beta
    across = _window_sum(direct * x / scale, layer.size)
    return (direct - 2 * layer.beta * layer.alpha / layer.size * x * across,)


local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)
