import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from frcnn_jax.ops._roi_align import roi_align, roi_align_flat


def bilinear(feature, y, x):
    """torchvision's rule at one place of `(H, W, C)`: 0 more than a cell outside, else the nearest edge's."""
    height, width, channels = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= height - 1:
        top = bottom = y = height - 1
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = x = width - 1
    else:
        right = left + 1
    down, along = y - top, x - left
    upper = feature[top, left] * (1 - along) + feature[top, right] * along
    lower = feature[bottom, left] * (1 - along) + feature[bottom, right] * along
    return upper * (1 - down) + lower * down


def naive(feature, rois, size, scale, ratio, aligned):
    """Bin after bin, sample after sample, in float64."""
    out = np.zeros((len(rois), *size, feature.shape[2]))
    for k, roi in enumerate(np.asarray(rois, np.float64)):
        x1, y1, x2, y2 = roi * scale - (0.5 if aligned else 0)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        bin_height, bin_width = height / size[0], width / size[1]
        down = ratio or max(math.ceil(bin_height), 0)
        along = ratio or max(math.ceil(bin_width), 0)
        for p in range(size[0]):
            for q in range(size[1]):
                for i in range(down):
                    for j in range(along):
                        y = y1 + p * bin_height + (i + 0.5) * bin_height / down
                        x = x1 + q * bin_width + (j + 0.5) * bin_width / along
                        out[k, p, q] += bilinear(feature, y, x) / max(down * along, 1)
    return out


ROIS = np.array(
    [
        [10, 20, 100, 90],
        [0, 0, 207, 143],
        [-60, -90, 30, 40],
        [150, 100, 420, 300],
        [50, 50, 50, 50],
        [90, 80, 20, 10],
        [33.3, 1.7, 35.1, 140.2],
        [1000, 1000, 1200, 1100],
    ],
    np.float32,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (2, 3)])
def test_equals_a_naive_loop(size, ratio, aligned, rng):
    features = rng.normal(0, 1, (9, 13, 3)).astype(np.float32)
    got = roi_align(features, ROIS, output_size=size, sampling_ratio=ratio, aligned=aligned)
    np.testing.assert_allclose(got, naive(features, ROIS, size, 1 / 16, ratio, aligned), atol=2e-5)


def test_by_hand():
    # on f(y, x) = 10 y + x, bilinear samples are exact: the mean of a bin is f at the bin's centre, less half a pixel
    features = np.add.outer(10 * np.arange(8), np.arange(8)).astype(np.float32)[..., None]
    out = roi_align(features, np.array([[1, 2, 5, 6]]), output_size=2, spatial_scale=1)[0, ..., 0]
    np.testing.assert_allclose(out, [[26.5, 28.5], [46.5, 48.5]])
    older = roi_align(features, np.array([[1, 2, 5, 6]]), output_size=2, spatial_scale=1, aligned=False)[0, ..., 0]
    np.testing.assert_allclose(older, [[32, 34], [52, 54]])


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_is_the_transpose(ratio, rng):
    """The op is linear in the features: its gradient follows from its values on unit maps."""
    shape = (4, 5, 1)
    rois = np.array([[-10, 5, 70, 50], [20, 20, 40, 70]], np.float32)
    pool = jax.jit(lambda f: roi_align(f, rois, output_size=(3, 2), sampling_ratio=ratio))
    units = np.eye(20, dtype=np.float32).reshape(20, *shape)
    matrix = np.stack([np.ravel(pool(unit)) for unit in units], axis=1)
    gradient = rng.normal(0, 1, matrix.shape[0]).astype(np.float32)
    out, pullback = jax.vjp(pool, rng.normal(0, 1, shape).astype(np.float32))
    np.testing.assert_allclose(np.ravel(pullback(gradient.reshape(out.shape))[0]), matrix.T @ gradient, atol=1e-5)
    mapped = jax.vmap(lambda g: pullback(g)[0])(np.stack([gradient.reshape(out.shape)] * 2))
    np.testing.assert_allclose(np.ravel(mapped[1]), matrix.T @ gradient, atol=1e-5)


def test_both_backward_forms_agree(rng, monkeypatch):
    """Other platforms than CPU add all RoIs' samples together; here that form is made to run."""
    features = rng.normal(0, 1, (9, 13, 3)).astype(np.float32)

    def gradient(rois):
        return jax.grad(lambda f: (roi_align(f, rois, sampling_ratio=3) ** 2).sum())(features)

    one_by_one = gradient(ROIS)
    chosen = []
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: chosen.append(default) or default(*args))
    jax.clear_caches()
    np.testing.assert_allclose(gradient(ROIS), one_by_one, rtol=2e-5, atol=2e-5)
    assert len(chosen) == 1
    jax.clear_caches()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("ratio", [0, 2])
def test_types_and_shapes(dtype, ratio, rng):
    features = jnp.asarray(rng.normal(0, 1, (2, 3, 9, 13, 4)), dtype)
    rois = np.broadcast_to(ROIS, (2, 3, 8, 4))
    out, pullback = jax.vjp(lambda f: roi_align(f, rois, output_size=(2, 3), sampling_ratio=ratio), features)
    assert out.shape == (2, 3, 8, 2, 3, 4)
    assert out.dtype == pullback(out)[0].dtype == dtype
    exact = roi_align(features.astype(jnp.float32), rois, output_size=(2, 3), sampling_ratio=ratio)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=2e-2)
    assert roi_align(features, rois[:, :, :0], sampling_ratio=ratio).shape == (2, 3, 0, 7, 7, 4)


def test_nan_rois_and_foreign_indices_give_nothing(rng):
    features = rng.normal(0, 1, (2, 9, 13, 3)).astype(np.float32)
    rois = np.array([[0, 0, 50, 50], [np.nan, 0, 9, 9], [0, 0, 50, 50], [-np.inf, 0, np.inf, 3e38]], np.float32)
    for ratio in (0, 2):
        out = roi_align_flat(features, rois, np.array([1, 0, 2, 0]), sampling_ratio=ratio)
        assert np.isfinite(out).all()
        assert np.asarray(out[0]).any()
        assert not np.asarray(out[1:3]).any()


@given(st.integers(0, 2**16), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0, 2]))
def test_linear_and_moves_with_whole_cells(seed, down, right, ratio):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0, 1, (2, 12, 15, 2)).astype(np.float32)
    rois = np.sort(rng.uniform(1, 7, (3, 2, 2)), axis=1).reshape(3, 4).astype(np.float32)

    def pool(features, rois=rois):
        return np.asarray(roi_align(features, rois, output_size=(3, 2), spatial_scale=1, sampling_ratio=ratio))

    np.testing.assert_allclose(pool(one + 2 * other), pool(one) + 2 * pool(other), atol=1e-4)
    moved = pool(np.roll(one, (down, right), (0, 1)), rois + np.array([right, down, right, down], np.float32))
    if ratio:  # else a rounded size may have one sample more
        np.testing.assert_allclose(moved, pool(one), atol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "error", "text"),
    [(-1, ValueError, "sampling_ratio must be at least 0, got -1"), (1.5, TypeError, "must be an integer, got 1.5")],
)
def test_errors(ratio, error, text):
    with pytest.raises(error, match=text):
        roi_align(jnp.ones((4, 5, 2)), jnp.ones((3, 4)), sampling_ratio=ratio)
