import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from frcnn_jax.ops._roi_align import multiscale_roi_align, roi_align, roi_align_flat


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
    """Bin after bin, sample after sample; places in float32, rounded after each operation."""
    one, (rows, columns) = np.float32, size
    out = np.zeros((len(rois), *size, feature.shape[2]))
    for k, roi in enumerate(rois):
        x1, y1, x2, y2 = roi * one(scale) - one(0.5 if aligned else 0)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, one(1)), max(y2 - y1, one(1)))
        bin_height, bin_width = height / one(rows), width / one(columns)
        down = ratio or max(math.ceil(bin_height), 0)
        along = ratio or max(math.ceil(bin_width), 0)
        for p, q, i, j in np.ndindex(rows, columns, down, along):
            y = y1 + one(p) * bin_height + one(i + 0.5) * bin_height / one(down)
            x = x1 + one(q) * bin_width + one(j + 0.5) * bin_width / one(along)
            out[k, p, q] += bilinear(feature, y, x) / (down * along)
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
# places that fall on the borders -1, 9 and 13 or next to them, and bins of a whole number of cells, which XLA's own
# division and fused sums miss
ON_BORDERS = 16 * np.array(
    [
        [-3, -3, 2, 0],
        [1, 5, 14, 11],
        [-1, -6, 28, 5],
        [2, -4, 13, 17],
        [5, -1, 8, 20],
        [-6, 8, 4, 5],
        [-4, -4, 17, 21],
        [-4, 19, 3, 5],
        [10, 3, -4, 23],
        [10, 1, 17, 22],
    ],
    np.float32,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (2, 3)])
def test_equals_a_naive_loop(size, ratio, aligned, rng):
    features = rng.normal(0, 1, (9, 13, 3)).astype(np.float32)
    rois = np.concatenate([ROIS, ON_BORDERS])
    got = roi_align(features, rois, output_size=size, sampling_ratio=ratio, aligned=aligned)
    np.testing.assert_allclose(got, naive(features, rois, size, 1 / 16, ratio, aligned), atol=2e-5)


CORNERS = st.one_of(  # in map cells
    st.integers(-40, 96).map(lambda n: n / 4), st.floats(-10, 24, width=32), st.integers(-(2**20), 2**20)
)


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(
    st.integers(0, 2**16),
    st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), min_size=12, max_size=12),
    st.sampled_from([((7, 7), 1 / 16), ((3, 2), 1 / 3)]),
    st.integers(0, 3),
    st.booleans(),
)
def test_equals_torchvision_on_random_cases(seed, corners, options, ratio, aligned):
    """36 RoIs of whole cells come from the seed: some of their samples fall on borders."""
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    (size, scale), rng, index = options, np.random.default_rng(seed), np.arange(48) % 2
    corners = np.concatenate([np.array(corners, np.float32), rng.integers(-6, 31, (36, 4), np.int32)])
    if not ratio:  # torchvision takes neither reversed RoIs nor few samples there
        corners = np.sort(corners.clip(-10, 24).reshape(48, 2, 2), axis=1).reshape(48, 4)
    rois = (corners / scale).astype(np.float32)
    features = rng.integers(-9, 10, (2, 9, 13, 2)).astype(np.float32)
    kind = {"output_size": size, "spatial_scale": scale, "sampling_ratio": ratio, "aligned": aligned}
    out, pullback = jax.vjp(lambda f: roi_align_flat(f, rois, index, **kind), features)
    gradient = rng.integers(-9, 10, out.shape).astype(np.float32)
    theirs = torch.tensor(features.transpose(0, 3, 1, 2), requires_grad=True)
    expected = ops.roi_align(theirs, torch.tensor(np.column_stack([index, rois]).astype(np.float32)), **kind)
    expected.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(out, expected.detach().permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(pullback(gradient)[0], theirs.grad.permute(0, 2, 3, 1), atol=1e-3)


def test_by_hand():
    # on f(y, x) = 10 y + x, bilinear samples are exact: the mean of a bin is f at the bin's centre, less half a pixel
    features = np.add.outer(10 * np.arange(8), np.arange(8)).astype(np.float32)[..., None]
    out = roi_align(features, np.array([[1, 2, 5, 6]]), output_size=2, spatial_scale=1)[0, ..., 0]
    np.testing.assert_allclose(out, [[26.5, 28.5], [46.5, 48.5]])
    older = roi_align(features, np.array([[1, 2, 5, 6]]), output_size=2, spatial_scale=1, aligned=False)[0, ..., 0]
    np.testing.assert_allclose(older, [[32, 34], [52, 54]])


@pytest.mark.parametrize("ratio", [0, 1])
def test_samples_on_the_border_take_the_edge_and_beyond_it_0(ratio):
    """A RoI of one cell, a sample in its middle: at -1, the next float32 below, the width 3, the next one above."""
    starts = [-1.5, np.nextafter(np.float32(-1.5), -9), 2.5, np.nextafter(np.float32(2.5), 9)]
    along = np.array([[x, 0, x, 0] for x in starts], np.float32)
    row = np.array([4, 5, 6], np.float32)
    for features, rois in ((row[None, :, None], along), (row[:, None, None], along[:, [1, 0, 3, 2]])):

        def pool(f, rois=rois):
            out = roi_align(f, rois, output_size=1, spatial_scale=1, sampling_ratio=ratio, aligned=False)
            return out.reshape(4)

        out, pullback = jax.vjp(pool, features)
        np.testing.assert_array_equal(out, [4, 0, 6, 0])
        np.testing.assert_array_equal(np.ravel(pullback(np.float32([1, 2, 3, 4]))[0]), [1, 0, 3])


def test_scaled_corners_are_rounded_before_half_a_cell_is_taken():
    # -2 / 3 - 1 / 2 + 1 / 6 = -1, in float32 only with both roundings; a RoI of ones, all its samples counting
    rois = np.array([[-2, 0, 7, 9]])
    out = roi_align(jnp.ones((9, 9, 1)), rois, output_size=3, spatial_scale=1 / 3, sampling_ratio=3)
    np.testing.assert_allclose(out, 1, rtol=1e-6)


def test_bins_of_three_cells_have_three_samples():
    # 21 cells in 7 bins, samples at k + 1/2; between k^2 and (k + 1)^2 they are k^2 + k + 1/2, for bin p the mean of
    # k = 3 p, 3 p + 1, 3 p + 2 is 9 p^2 + 9 p + 19/6. A fourth sample would give others.
    features = (np.arange(22, dtype=np.float32) ** 2).reshape(1, 22, 1)
    rois = np.array([[0, 0, 21, 0]], np.float32)
    out = roi_align(features, rois, output_size=(1, 7), spatial_scale=1, sampling_ratio=0, aligned=False)
    p = np.arange(7)
    np.testing.assert_allclose(np.ravel(out), 9 * p**2 + 9 * p + 19 / 6, rtol=1e-6)


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


@pytest.mark.parametrize("aligned", [True, False])
def test_box_gradients_are_those_of_finite_differences(aligned, rng):
    with jax.enable_x64(True):
        features, weights = rng.normal(size=(2, 6, 8, 3)), rng.normal(size=(2, 3, 2, 3, 3))
        centre, size = rng.uniform(0, 100, (2, 3, 2)), rng.uniform(20, 90, (2, 3, 2))
        rois = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)

        @jax.jit
        def total(features, rois):
            options = {"output_size": (2, 3), "aligned": aligned, "differentiable_boxes": True}
            return (roi_align(features, rois, **options) * weights).sum()

        to_features, to_rois = jax.grad(total, (0, 1))(features, rois)
        expected, step = np.zeros(rois.shape), 1e-6
        for i in np.ndindex(rois.shape):
            change = np.zeros(rois.shape)
            change[i] = step
            expected[i] = (total(features, rois + change) - total(features, rois - change)) / (2 * step)
        np.testing.assert_allclose(to_rois, expected, atol=1e-7)
        plain = jax.grad(
            lambda f: (roi_align(f, rois, output_size=(2, 3), aligned=aligned) * weights).sum()
        )(features)  # fmt: skip
        np.testing.assert_allclose(to_features, plain, atol=1e-4)  # RoIs in float32


def test_without_it_boxes_get_no_gradient(rng):
    features, rois = rng.normal(size=(9, 13, 3)).astype(np.float32), ROIS.astype(np.float32)
    assert not jax.grad(lambda rois: roi_align(features, rois).sum())(jnp.asarray(rois)).any()
    with pytest.raises(ValueError, match="sampling_ratio must be at least 1 with differentiable_boxes, got 0"):
        roi_align(features, rois, sampling_ratio=0, differentiable_boxes=True)


# sides in pixels and the strides of their levels: 224 is at 16, each halving a level down, and the ends are limits
OWN_STRIDE = {28: 4, 56: 4, 111.9: 4, 112: 8, 223.9: 8, 224: 16, 447.9: 16, 448: 32, 900: 32}


@pytest.mark.parametrize("as_dict", [False, True])
def test_each_roi_is_pooled_from_its_level(as_dict, rng):
    strides = (4, 8, 16, 32)
    levels = [rng.normal(size=(2, 512 // stride, 640 // stride, 3)).astype(np.float32) for stride in strides]
    sides = np.float32(list(OWN_STRIDE))
    half = np.stack([sides * 2, sides / 2], axis=1) / 2  # the area counts, not the sides
    rois = np.stack([np.concatenate([centre - half, centre + half], 1) for centre in ([[250, 200]], [[400, 300]])])
    features = dict(enumerate(levels)) if as_dict else levels
    pooled = multiscale_roi_align(features, rois.astype(np.float32), strides=strides)
    assert pooled.shape == (2, len(sides), 7, 7, 3)
    for i, stride in enumerate(OWN_STRIDE.values()):
        level = levels[strides.index(stride)]
        alone = roi_align(level, rois[:, i : i + 1].astype(np.float32), spatial_scale=1 / stride, aligned=False)
        np.testing.assert_allclose(pooled[:, i : i + 1], alone, atol=1e-6)


def test_a_pyramid_of_one_level_is_roi_align(rng):
    level, rois = rng.normal(size=(2, 9, 12, 3)).astype(np.float32), np.float32([[[3, 4, 60, 70]], [[0, 0, 40, 30]]])
    alone = roi_align(level, rois, spatial_scale=1 / 8, aligned=False)
    np.testing.assert_allclose(multiscale_roi_align([level], rois, strides=(8,)), alone, atol=1e-6)
    np.testing.assert_allclose(multiscale_roi_align([level[0]], rois[0], strides=(8,)), alone[0], atol=1e-6)


def test_levels_get_the_gradients_of_their_rois(rng):
    levels = [jnp.asarray(rng.normal(size=(1, side, side, 2)), jnp.float32) for side in (32, 16)]
    rois = jnp.asarray([[[0, 0, 100, 100], [0, 0, 120, 120]]], jnp.float32)  # of the first level and of the second
    large, small = jax.grad(lambda levels: multiscale_roi_align(levels, rois, strides=(4, 8)).sum())(levels)
    for gradient, level, stride, i in ((large, levels[0], 4, 0), (small, levels[1], 8, 1)):
        alone = jax.grad(
            lambda level, stride=stride, i=i: roi_align(
                level, rois[:, i : i + 1], spatial_scale=1 / stride, aligned=False
            ).sum()
        )(level)  # fmt: skip
        np.testing.assert_allclose(gradient, alone, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_pyramids_equal_torchvision(seed):
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(seed)
    strides = (4, 8, 16, 32)
    levels = [rng.normal(size=(2, 256 // stride, 320 // stride, 8)).astype(np.float32) for stride in strides]
    centre, side = rng.uniform(0, 256, (2, 50, 2)), 2 ** rng.uniform(2, 9, (2, 50, 2))
    side[:, :5] = 224 * 2.0 ** np.array([-2, -1, 0, 1, -3])[:, None]
    rois = np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32)
    maps = {str(i): torch.from_numpy(level.transpose(0, 3, 1, 2).copy()) for i, level in enumerate(levels)}
    peer = peers.MultiScaleRoIAlign(list(maps), 7, 2)
    expected = peer(maps, [torch.from_numpy(own) for own in rois], [(256, 320)] * 2).numpy().transpose(0, 2, 3, 1)
    found = multiscale_roi_align(levels, rois, strides=strides)
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("strides", "shapes", "text"),
    [
        ((4,), [(1, 8, 8, 2)] * 2, "strides must be 2 numbers"),
        ((4, 16), [(1, 8, 8, 2)] * 2, r"strides must double from level to level, got \[4.0, 16.0\]"),
        ((4, 8), [(1, 8, 8, 2), (1, 4, 4, 3)], "levels must agree in B, C and type"),
        ((4, 8), [(8, 8, 2), (4, 4, 2)], r"rois must be \(R, 4\)"),
    ],
)
def test_wrong_pyramids(strides, shapes, text):
    with pytest.raises(ValueError, match=text):
        multiscale_roi_align([np.zeros(shape, np.float32) for shape in shapes], np.zeros((1, 3, 4)), strides=strides)


def test_samples_on_the_last_row_and_column_take_no_cell_beyond(rng):
    """Of the next row, or of the next map, which are infinite here."""
    features = np.full((2, 4, 5, 3), np.inf, np.float32)
    features[0, :, 3:] = rng.normal(size=(4, 2, 3))
    rois = np.float32([[[4, 2, 6, 4]], [[4, 2, 6, 4]]])  # samples at columns 4 and 5, rows 2 and 3
    found = roi_align(features, rois, output_size=2, spatial_scale=1.0, sampling_ratio=1, aligned=True)
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0, 0, 1, 0], features[0, 3, 4], rtol=1e-6)
