import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from frcnn_jax.models.layers import Conv, Norm, Pool, convolve, depthwise, local_response_norm, max_pool, output_size


def naive_pool(x, layer):
    """Caffe's loop: windows clipped to the input."""
    rows, columns = (output_size(layer, side) for side in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, x.shape[3]), x.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = (v * layer.stride - layer.padding for v in (i, j))
            window = x[:, max(top, 0) : top + layer.kernel, max(left, 0) : left + layer.kernel]
            out[:, i, j] = window.max(axis=(1, 2))
    return out


POOLS = [Pool(2, 2), Pool(3, 2), Pool(3, 2, 1), Pool(3, 1, 1), Pool(3, 3)]


@pytest.mark.parametrize("layer", POOLS)
@pytest.mark.parametrize("shape", [(13, 17), (12, 9)])
def test_max_pool_equals_a_loop_and_xla_gradient(layer, shape, rng):
    x = rng.normal(0, 1, (2, *shape, 3)).astype(np.float32)
    pooled, pullback = jax.vjp(lambda x: max_pool(x, layer), x)
    np.testing.assert_array_equal(pooled, naive_pool(x, layer))
    after = [
        (layer.padding, (output_size(layer, s) - 1) * layer.stride + layer.kernel - s - layer.padding) for s in shape
    ]
    gradient = rng.normal(0, 1, pooled.shape).astype(np.float32)
    _, expected = jax.vjp(lambda x: nn.max_pool(x, (layer.kernel,) * 2, (layer.stride,) * 2, padding=after), x)
    np.testing.assert_allclose(pullback(gradient)[0], expected(gradient)[0], atol=1e-5)


def test_max_pool_gradient_of_ties_goes_to_the_first():
    gradient = jax.grad(lambda x: max_pool(x, Pool(2, 2)).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (Pool(2, 2), 75, 38),
        (Pool(3, 2), 13, 6),
        (Pool(3, 2, 1), 5, 3),
        (Pool(3, 3, 1), 7, 3),
        (Pool(2, 2, 1), 4, 3),
        (Pool(2, 2, 1), 3, 2),  # a third window would start at 4, beyond input and padding
        (Conv("c", 1, 11, 4, 5), 600, 150),
        (Norm(1e-4, 1), 9, 9),
    ],
)
def test_output_size_by_hand(layer, size, expected):
    assert output_size(layer, size) == expected
    assert int(output_size(layer, jnp.int32(size))) == expected


@pytest.mark.parametrize("layer", [Norm(1e-4, 1.0), Norm(0.5, 2.0, size=3)])
def test_norm_equals_a_loop(layer, rng):
    x = rng.normal(0, 3, (1, 2, 3, 8)).astype(np.float32)
    expected = np.zeros(x.shape)
    for c in range(8):
        near = x[..., max(c - layer.size // 2, 0) : c + layer.size // 2 + 1].astype(np.float64)
        expected[..., c] = x[..., c] / (layer.k + layer.alpha / layer.size * (near**2).sum(-1)) ** layer.beta
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x), layer), expected, rtol=1e-5)


def test_norm_gradient_equals_autodiff(rng):
    x = jnp.asarray(rng.normal(0, 3, (1, 3, 4, 8)), jnp.float32)
    g = jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32)
    layer = Norm(0.5, 2.0)

    def plain(x):
        padded = jnp.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
        return x * (2 + 0.1 * sum(padded[..., i : i + 8] for i in range(5))) ** -0.75

    expected = jax.vjp(plain, x)[1](g)[0]
    np.testing.assert_allclose(jax.vjp(lambda x: local_response_norm(x, layer), x)[1](g)[0], expected, atol=1e-5)


WIDE = Conv("c", 256, 3, padding=1)  # wide enough, in two groups too, for the weight gradient by taps


@pytest.mark.parametrize(
    "layer",
    [
        Conv("c", 6, 3, padding=1),
        Conv("c", 6, 3, padding=1, groups=2),
        Conv("c", 6, 5, 2, 1, groups=2),
        Conv("c", 6, 1),
        Conv("c", 6, 1, 2, groups=2),
        Conv("c", 6, 1, padding=1),
        WIDE,
        WIDE._replace(groups=2),
        WIDE._replace(stride=2),
    ],
)
def test_convolution_and_gradients_equal_a_grouped_one(layer, rng):
    inputs = 4 if layer.features == 6 else 256
    x = jnp.asarray(rng.normal(0, 1, (2, 9, 12, inputs)), jnp.float32)
    kernel_shape = (layer.kernel, layer.kernel, inputs // layer.groups, layer.features)
    kernel = jnp.asarray(rng.normal(0, 1 / inputs, kernel_shape), jnp.float32)

    def grouped(x, kernel):
        edges = [(layer.padding, layer.padding)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (layer.stride,) * 2, edges, dimension_numbers=numbers, feature_group_count=layer.groups
        )

    ours, pullback = jax.vjp(lambda x, k: convolve(x, k, layer), x, kernel)
    expected, expected_pullback = jax.vjp(grouped, x, kernel)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    for got, want in zip(pullback(expected), expected_pullback(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 1), ("cuda", 2), ("tpu", 2)])
def test_the_weight_gradient_is_a_convolution_off_the_cpu(platform, convolutions):
    layer = Conv("c", 128, 3, padding=1)
    x, kernel = jnp.ones((2, 9, 8, 128)), jnp.ones((3, 3, 128, 128))

    def gradients(x, kernel, gradient):
        return jax.vjp(lambda x, kernel: convolve(x, kernel, layer), x, kernel)[1](gradient)

    program = jax.export.export(jax.jit(gradients), platforms=[platform])(x, kernel, x).mlir_module()
    assert program.count("stablehlo.convolution") == convolutions


def xla_depthwise(x, kernel, *, stride, padding):
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=channels
    )


edge = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=12)
@given(
    k=st.sampled_from((1, 2, 3, 5)),
    stride=st.integers(1, 3),
    shape=st.tuples(*(st.integers(low, high) for low, high in ((1, 2), (5, 12), (5, 12), (1, 4)))),
    padding=st.tuples(edge, edge),
)
def test_depthwise_and_gradients_equal_xla(k, stride, shape, padding):
    stride, rng = min(stride, k), np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(0, 1, size), jnp.float32) for size in (shape, (k, k, 1, shape[-1])))

    def value_and_gradients(function, x, kernel):
        out, pullback = jax.vjp(lambda x, kernel: function(x, kernel, stride=stride, padding=padding), x, kernel)
        return out, *pullback(jnp.sin(out))

    ours, expected = (jax.jit(value_and_gradients, static_argnums=0)(f, x, kernel) for f in (depthwise, xla_depthwise))
    for got, want in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_in_bfloat16_sums_in_float32(rng):
    x, kernel = (jnp.asarray(rng.uniform(0, 1, shape), jnp.bfloat16) for shape in ((1, 64, 64, 2), (3, 3, 1, 2)))

    def gradient(x, kernel):
        return jax.grad(lambda kernel: depthwise(x, kernel, stride=1, padding=((1, 1),) * 2).sum())(kernel)

    got, expected = gradient(x, kernel), gradient(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=1e-2)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 3), ("tpu", 3)])
def test_a_depthwise_convolution_is_one_off_the_cpu(platform, convolutions):
    x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 3, 1, 4))

    def gradients(x, kernel):
        out, pullback = jax.vjp(lambda x, kernel: depthwise(x, kernel, stride=1, padding=((1, 1),) * 2), x, kernel)
        return out, pullback(out)

    program = jax.export.export(jax.jit(gradients), platforms=[platform])(x, kernel).mlir_module()
    assert program.count("stablehlo.convolution") == convolutions
