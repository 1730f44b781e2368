import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcnn_jax.roi_pool import METHODS, _divide_exactly, roi_pool, roi_pool_flat

FORMS = [method for method in METHODS if method != "auto"]


def naive(features, rois, size, scale):
    """One map `(H, W, C)`: Caffe's loop in NumPy float32; maxima and first cells, -1 in an empty bin."""
    height, width, channels = features.shape
    out = np.zeros((len(rois), *size, channels), features.dtype)
    argmax = np.full(out.shape, -1)
    for k, roi in enumerate(rois):
        scaled = roi * np.float32(scale)
        x1, y1, x2, y2 = (int(np.sign(v) * np.floor(abs(float(v)) + 0.5)) for v in scaled)
        bins = []
        for first, last, count, cells in ((y1, y2, size[0], height), (x1, x2, size[1], width)):
            step = np.float32(max(last - first + 1, 1)) / np.float32(count)
            low = [int(np.floor(np.float32(p) * step)) + first for p in range(count)]
            high = [int(np.ceil(np.float32(p + 1) * step)) + first for p in range(count)]
            bins.append([(min(max(a, 0), cells), min(max(b, 0), cells)) for a, b in zip(low, high, strict=True)])
        for p, (top, bottom) in enumerate(bins[0]):
            for q, (left, right) in enumerate(bins[1]):
                for c in range(channels):
                    best = -np.inf
                    for y in range(top, bottom):
                        for x in range(left, right):
                            if features[y, x, c] > best:
                                best, argmax[k, p, q, c] = features[y, x, c], y * width + x
                    if best > -np.inf:
                        out[k, p, q, c] = best
    return out, argmax


@pytest.mark.parametrize("method", METHODS)
def test_equals_torchvision(shared, method):
    file = np.load(shared / "oracles" / "roi_pool.npz")
    for k in range(int(file["cases"])):
        features = file[f"feature_{k}"].transpose(0, 2, 3, 1)
        rois, size = file[f"rois_{k}"], tuple(map(int, file[f"size_{k}"]))

        def pool(features, rois=rois, size=size, scale=float(file[f"scale_{k}"])):
            index = rois[:, 0].astype(np.int32)
            return roi_pool_flat(features, rois[:, 1:], index, output_size=size, spatial_scale=scale, method=method)

        out, pullback = jax.vjp(jax.jit(pool), features)
        np.testing.assert_array_equal(np.asarray(out).transpose(0, 3, 1, 2), file[f"out_{k}"])
        (gradient,) = pullback(jnp.asarray(file[f"grad_out_{k}"].transpose(0, 2, 3, 1)))
        expected = file[f"grad_{k}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def random_case(rng, maps=2, count=5, height=9, width=13, channels=3):
    features = rng.integers(-4, 5, (maps, height, width, channels)).astype(np.float32)  # few values: many ties
    rois = rng.uniform(-40, 250, (maps, count, 4)).astype(np.float32)
    return features, rois


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(7, 7), (1, 1), (2, 5)])
def test_equals_a_loop_with_ties(method, size, rng):
    features, rois = random_case(rng)
    out, pullback = jax.vjp(lambda f: roi_pool(f, rois, output_size=size, method=method), features)
    gradient = rng.integers(1, 9, out.shape).astype(np.float32)
    (got,) = pullback(gradient)
    for i in range(2):
        expected, argmax = naive(features[i], rois[i], size, 1 / 16)
        np.testing.assert_array_equal(out[i], expected)
        scattered = np.zeros(features[i].shape, np.float32)
        for (k, p, q, c), cell in np.ndenumerate(argmax):
            if cell >= 0:
                scattered[cell // 13, cell % 13, c] += gradient[i, k, p, q, c]
        np.testing.assert_array_equal(got[i], scattered)


@given(st.integers(1, 2**21), st.integers(1, 255))
def test_division_is_ieee(n, divisor):
    got = jax.jit(_divide_exactly, static_argnums=1)(np.array([n], np.int32), divisor)
    assert np.asarray(got)[0] == np.float32(n) / np.float32(divisor)


@pytest.mark.parametrize("divisor", [3, 6, 7, 14, 49, 255])
def test_division_is_ieee_for_every_size(divisor):
    n = np.arange(1, 2**20, dtype=np.int32)
    got = jax.jit(_divide_exactly, static_argnums=1)(n, divisor)
    np.testing.assert_array_equal(got, n.astype(np.float32) / np.float32(divisor))


def test_rounds_half_away_from_zero():
    # at scale 1/16, 8 -> 0.5 -> 1 and 40 -> 2.5 -> 3; jnp.round would give 0 and 2
    features = np.arange(25, dtype=np.float32).reshape(5, 5, 1)
    out = roi_pool(features, np.array([[8, 40, 8, 40]], np.float32), output_size=(1, 1))
    assert float(out[0, 0, 0, 0]) == features[3, 1, 0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", FORMS)
def test_low_precision(dtype, method, rng):
    features, rois = random_case(rng)
    out, pullback = jax.vjp(lambda f: roi_pool(f, rois, method=method), jnp.asarray(features, dtype))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), roi_pool(features, rois, method=method))
    assert pullback(jnp.ones_like(out))[0].dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_no_rois_and_leading_axes(method):
    assert roi_pool(jnp.ones((4, 5, 2)), jnp.zeros((0, 4)), method=method).shape == (0, 7, 7, 2)
    out = roi_pool(jnp.ones((2, 3, 4, 5, 6)), jnp.zeros((2, 3, 8, 4)), output_size=(2, 3), method=method)
    assert out.shape == (2, 3, 8, 2, 3, 6)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_equals_batch(method, rng):
    features, rois = random_case(rng)
    mapped = jax.jit(jax.vmap(lambda f, r: roi_pool(f, r, method=method)))(features, rois)
    np.testing.assert_array_equal(mapped, roi_pool(features, rois, method=method))


def test_rois_get_no_gradient(rng):
    features, rois = random_case(rng)
    assert not jax.grad(lambda r: roi_pool(features, r).sum())(jnp.asarray(rois)).any()


@pytest.mark.parametrize(
    ("features", "rois", "options", "text"),
    [
        ((4, 5, 2), (3, 5), {}, "must be"),
        ((2, 4, 5, 2), (3, 4), {}, "must be"),
        ((4, 5, 2), (3, 4), {"method": "magic"}, "one of auto, segment, table, loop"),
        ((4, 5, 2), (3, 4), {"output_size": (0, 7)}, "1 to 255"),
    ],
)
def test_errors_say_what_came(features, rois, options, text):
    with pytest.raises(ValueError, match=text):
        roi_pool(jnp.ones(features), jnp.ones(rois), **options)
