import operator
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn_jax.ops._arguments import divide_exactly
from frcnn_jax.ops._pool_methods import METHODS
from frcnn_jax.ops._roi_align import roi_align, roi_align_flat
from frcnn_jax.ops._roi_pool import bin_edges, roi_pool, roi_pool_flat, rois_from_cells, rois_from_torchvision

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


magnitudes = st.floats(2.0**-90, 2.0**90, width=32)


@given(st.one_of(st.just(0.0), magnitudes, magnitudes.map(operator.neg), st.integers(1, 2**24)), st.integers(1, 4096))
def test_division_is_ieee(x, divisor):
    x, divisor = np.array([x], np.float32), np.array([divisor], np.float32)
    assert np.asarray(jax.jit(divide_exactly)(x, divisor))[0] == (x / divisor)[0]


@pytest.mark.parametrize("divisor", [3, 6, 7, 14, 49, 255])
def test_division_by_a_constant_is_ieee_for_every_size(divisor):
    x, divisor = np.arange(1, 2**20, dtype=np.float32), np.float32(divisor)
    np.testing.assert_array_equal(jax.jit(lambda x: divide_exactly(x, divisor))(x), x / divisor)


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


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16, np.int64])
def test_rois_of_any_number_type_are_taken_in_float32(dtype, rng):
    features, _ = random_case(rng)
    rois = rng.integers(0 if dtype == np.uint16 else -60, 200, (2, 5, 4)).astype(dtype)
    expected = roi_pool(features, rois.astype(np.float32))
    np.testing.assert_array_equal(roi_pool(features, rois), expected)
    with jax.enable_x64(True):
        wide = roi_pool(features, rois)
        assert wide.dtype == np.float32
        np.testing.assert_array_equal(wide, expected)
        np.testing.assert_array_equal(roi_pool(features.astype(np.float64), rois), expected)


@pytest.mark.parametrize("method", FORMS)
def test_x64_gradient(method, rng):
    features, rois = random_case(rng)
    expected = jax.grad(lambda f: (roi_pool(f, rois, method=method) ** 2).sum())(features)
    with jax.enable_x64(True):
        wide = jax.grad(lambda f: (roi_pool(f, rois, method=method) ** 2).sum())(features.astype(np.float64))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "op", [*(partial(roi_pool, method=m) for m in FORMS), roi_align, partial(roi_align, sampling_ratio=0)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_under_strict_promotion(op, dtype, rng):
    features, rois = random_case(rng)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        out, pullback = jax.vjp(lambda f: op(f, rois), jnp.asarray(features, dtype))
        assert pullback(out)[0].dtype == out.dtype == dtype


@pytest.mark.parametrize("method", FORMS)
def test_jit_and_no_jit_alike(method, rng):
    features, rois = random_case(rng, count=3)
    with jax.disable_jit():
        plain = roi_pool(features, rois, output_size=(2, 3), method=method)
    np.testing.assert_array_equal(plain, roi_pool(features, rois, output_size=(2, 3), method=method))


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("size", [1, 7, 14])
def test_rois_far_larger_than_the_map(method, size, rng):
    """Bins of any number of cells, and sizes at which float32 bin edges leave the exact ones."""
    features = rng.normal(0, 1, (9, 13, 2)).astype(np.float32)
    rois = rng.integers(-(2**13), 2**13, (40, 4)).astype(np.float32) * rng.choice([1, 16, 4096], (40, 1))
    rois = np.concatenate([rois, [[-(2.0**26), -5, 2.0**26, 200], [-2000, -3000, 2500, 1000]]]).astype(np.float32)
    out = roi_pool(features, rois, output_size=size, method=method)
    np.testing.assert_array_equal(out, naive(features, rois, (size, size), 1 / 16)[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0)])
def test_vmap_equals_batch(method, mapped, rng):
    """Of maps, of RoIs and of both, nested, with gradients."""
    features, rois = random_case(rng)
    both = [
        array if axis == 0 else np.stack([array[0]] * 2) for array, axis in zip((features, rois), mapped, strict=True)
    ]
    one = [array if axis == 0 else array[0] for array, axis in zip((features, rois), mapped, strict=True)]

    def pool_and_gradient(features, rois):
        out, pullback = jax.vjp(lambda f: roi_pool(f, rois, method=method), features)
        return out, pullback(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape) % 5)[0]

    expected = [np.stack(part) for part in zip(*map(pool_and_gradient, *both), strict=True)]
    for got, want in zip(jax.jit(jax.vmap(pool_and_gradient, mapped))(*one), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    twice = jax.vmap(jax.vmap(pool_and_gradient, mapped), (None, 0))(one[0], np.stack([one[1], one[1][..., ::-1, :]]))
    np.testing.assert_array_equal(twice[0][0], expected[0])
    np.testing.assert_array_equal(twice[0][1], expected[0][:, ::-1])


@pytest.mark.parametrize("method", FORMS)
def test_inside_other_transformations(method, rng):
    """checkpoint, scan, a jit that is given its buffer, and twice in one program."""
    features, rois = random_case(rng)
    pool = lambda f: roi_pool(f, rois, method=method)  # noqa: E731
    expected = jax.grad(lambda f: (pool(f) ** 2).sum())(features)
    again = jax.grad(lambda f: (jax.checkpoint(pool)(f) ** 2).sum())(features)
    np.testing.assert_array_equal(again, expected)

    def summed(features):
        return jax.lax.scan(
            lambda total, f: (total + (roi_pool(f, rois[0], method=method) ** 2).sum(), None), 0.0, features
        )

    scanned = jax.grad(lambda f: summed(f)[0])(features)
    np.testing.assert_array_equal(scanned[0], expected[0])
    donated = jax.jit(lambda f: f + jax.grad(lambda f: (pool(f) ** 2).sum())(f), donate_argnums=0)
    np.testing.assert_array_equal(donated(jnp.array(features)), features + expected)
    np.testing.assert_array_equal(jax.grad(lambda f: (pool(f) * pool(f)).sum())(features), expected)


ON_TWO_DEVICES = """
import sys
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec
from frcnn_jax import roi_align, roi_pool

assert jax.local_device_count() == 2
rng = np.random.default_rng(0)
features = rng.integers(-4, 5, (2, 9, 13, 3)).astype(np.float32)
rois = rng.uniform(-40, 250, (2, 5, 4)).astype(np.float32)
mesh, rows = Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
few = np.tile(rois[:1], (2, 1, 1))
nobody = PartitionSpec()
ops = [partial(roi_pool, method=m) for m in ("auto", "segment", "table", "loop")]
ops += [roi_align, partial(roi_align, sampling_ratio=0)]
for op in ops:
    both = lambda f, r: (lambda out, pull: (out, pull(out)[0]))(*jax.vjp(lambda f: op(f, r), f))
    expected = both(features, rois)
    sharded = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, rows)))
    for mapped in (jax.pmap(both), sharded):
        for got, want in zip(mapped(features, rois), expected):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # features split, RoIs the same everywhere; and features the same everywhere, RoIs split
    gradient = jax.grad(lambda f, r: (op(f, r) ** 2).sum())
    one = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(rows, nobody), out_specs=rows))(features, rois[:1])
    np.testing.assert_allclose(one, gradient(features, few), rtol=1e-5, atol=1e-5)
    split = PartitionSpec(None, "data")
    total = jax.jit(jax.shard_map(op, mesh=mesh, in_specs=(nobody, split), out_specs=split))
    got = jax.grad(lambda f, r: (total(f, r) ** 2).sum())(features, rois[:, :4])
    np.testing.assert_allclose(got, gradient(features, rois[:, :4]), rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_on_several_devices():
    """pmap and shard_map, roi_align with it."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ON_TWO_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("method", FORMS)
def test_gradient_equals_finite_differences(method, rng):
    features = rng.permutation(9 * 13 * 2).reshape(9, 13, 2).astype(np.float32)  # no ties, steps of one
    rois = rng.uniform(-40, 250, (4, 4)).astype(np.float32)
    weights = rng.normal(0, 1, (4, 3, 2, 2)).astype(np.float32)
    total = jax.jit(lambda f: (roi_pool(f, rois, output_size=(3, 2), method=method) * weights).sum())
    gradient = jax.grad(total)(features)
    for cell in rng.integers(0, features.size, 40):
        step = np.zeros(features.size, np.float32)
        step[cell] = 0.25
        step = step.reshape(features.shape)
        difference = (total(features + step) - total(features - step)) / 0.5
        np.testing.assert_allclose(gradient.reshape(-1)[cell], difference, atol=1e-2)


@pytest.mark.parametrize(
    "op", [*(partial(roi_pool, method=m) for m in FORMS), roi_align, partial(roi_align, sampling_ratio=0)]
)
def test_second_derivative(op, rng):
    """Of the sum of squares: 2 J' J, reverse over reverse, ties among the maxima; forward over reverse says that it is
    not there."""
    features = rng.integers(-3, 4, (5, 6, 1)).astype(np.float32)
    rois = np.array([[0, 0, 90, 70], [20, 10, 60, 75]], np.float32)
    pool = lambda f: op(f, rois, output_size=(2, 2))  # noqa: E731
    jacobian = jax.jacrev(pool)(features).reshape(-1, features.size)
    square = lambda f: (pool(f) ** 2).sum()  # noqa: E731
    second = jax.jacrev(jax.grad(square))(features).reshape(features.size, features.size)
    np.testing.assert_allclose(second, 2 * jacobian.T @ jacobian, atol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(square)(features)


def test_deterministic(rng):
    features, rois = random_case(rng, count=50)
    gradient = jax.jit(jax.grad(lambda f: (roi_pool(f, rois) ** 2).sum()))
    assert np.asarray(gradient(features)).tobytes() == np.asarray(gradient(features)).tobytes()


def test_rois_get_no_gradient_and_there_is_no_forward_mode(rng):
    features, rois = random_case(rng)
    assert not jax.grad(lambda r: roi_pool(features, r).sum())(jnp.asarray(rois)).any()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda f: roi_pool(f, rois), (features,), (features,))


@pytest.mark.parametrize("method", METHODS)
def test_nan_rois_and_foreign_indices_pool_nothing(method, rng):
    features, _ = random_case(rng)
    good = [0, 0, 100, 100]
    rois = np.array([good, [np.nan, 0, 9, 9], [0, 0, 9, np.nan], good, good, [-np.inf, 0, np.inf, 50]], np.float32)
    index = np.array([1, 0, 0, -1, 2**32, 0])
    out, pullback = jax.vjp(lambda f: roi_pool_flat(f, rois, index, method=method), features)
    assert not np.asarray(out[1:5]).any()
    clean = np.array([0, 5])
    expected, expected_pullback = jax.vjp(
        lambda f: roi_pool_flat(f, rois[clean], index[clean], method=method), features
    )
    np.testing.assert_array_equal(out[clean], expected)
    np.testing.assert_array_equal(pullback(jnp.ones_like(out))[0], expected_pullback(jnp.ones_like(expected))[0])
    np.testing.assert_array_equal(
        expected[1], roi_pool_flat(features, np.array([[-1e9, 0, 1e9, 50]]), np.array([0]))[0]
    )


@pytest.mark.parametrize("method", METHODS)
def test_exports_for_every_platform(method, rng):
    features, rois = random_case(rng)

    def both(features, rois):
        out, pullback = jax.vjp(lambda f: roi_pool(f, rois, method=method), features)
        return out, pullback(out)[0]

    exported = jax.export.export(jax.jit(both), platforms=("cpu", "cuda", "tpu"))(features, rois)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    again = jax.export.deserialize(exported.serialize())
    for got, want in zip(again.call(features, rois), both(features, rois), strict=True):
        np.testing.assert_array_equal(got, want)


def test_memory_of_the_forward_pass():
    arrays = [jax.ShapeDtypeStruct(s, np.float32) for s in ((38, 63, 512), (2000, 4))]
    analysis = jax.jit(roi_pool).lower(*arrays).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 20 * 38 * 63 * 512 * 4


def test_auto_takes_the_faster_form():
    """On CPU the table for many RoIs without a derivative, else the loop; elsewhere the table."""

    def text(count, differentiate, platform):
        arrays = [jax.ShapeDtypeStruct(s, np.float32) for s in ((38, 63, 8), (count, 4))]
        f = jax.grad(lambda f, r: roi_pool(f, r).sum()) if differentiate else roi_pool
        return jax.export.export(jax.jit(f), platforms=[platform])(*arrays).mlir_module()

    def uses_table(module):
        return "21546x8x" in module or "tensor<21546x8x" in module  # 9 windows of 38 x 63 cells

    assert uses_table(text(2000, False, "cpu"))
    assert not uses_table(text(64, False, "cpu"))
    assert not uses_table(text(2000, True, "cpu"))
    assert uses_table(text(64, True, "cuda"))


def test_helpers_for_other_layouts():
    rois, index = rois_from_torchvision(np.array([[1, 5, 6, 7, 8], [0, 1, 2, 3, 4]], np.float32))
    np.testing.assert_array_equal(rois, [[5, 6, 7, 8], [1, 2, 3, 4]])
    np.testing.assert_array_equal(index, [1, 0])
    assert index.dtype == np.int32
    for namespace in (np, jnp):
        _, index = rois_from_torchvision(namespace.asarray([[np.nan, 1, 2, 3, 4]]))
        assert index.tolist() == [-1]
    # 5 rows by 7 columns from row 3, column 0 of an 8 x 8 map, pooled to 2 x 2: bins overlap by a row and a column
    cells = rois_from_cells(np.array([[3, 0, 5, 7]], np.float32))
    np.testing.assert_array_equal(cells, [[0, 3, 6, 7]])
    features = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    pooled = roi_pool(features, cells, output_size=2, spatial_scale=1)[0, ..., 0]
    np.testing.assert_array_equal(
        pooled, [[features[5, 3, 0], features[5, 6, 0]], [features[7, 3, 0], features[7, 6, 0]]]
    )
    for helper, shape in ((rois_from_torchvision, (3, 4)), (rois_from_cells, (3, 5))):
        with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
            helper(np.zeros(shape))


# ---- what a sceptic would ask

whole = st.integers(-3, 18)
CELLS = st.lists(st.tuples(whole, whole, st.integers(1, 20), st.integers(1, 20)), min_size=4, max_size=4)
seeds = st.integers(0, 2**16)
forms = st.sampled_from(FORMS)


def pool_cells(features, cells, method, size=(3, 2)):
    rois = rois_from_cells(np.array(cells, np.float32))
    return np.asarray(roi_pool(features, rois, output_size=size, spatial_scale=1, method=method))


def drawn(seed, shape=(12, 15, 2)):
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


@given(seeds, CELLS, forms, st.integers(0, 4), st.integers(0, 4))
def test_moves_with_whole_cells(seed, cells, method, down, right):
    features = drawn(seed)
    # a map as large as before, whose content has moved; only RoIs that stay inside both say the same
    moved = np.roll(features, (down, right), (0, 1))
    inside = [(max(r, 0) % 6, max(c, 0) % 6, h % 4 + 1, w % 5 + 1) for r, c, h, w in cells]
    inside = [(r, c, min(h, 8 - r), min(w, 11 - c)) for r, c, h, w in inside]
    there = [(r + down, c + right, h, w) for r, c, h, w in inside]
    np.testing.assert_array_equal(pool_cells(moved, there, method), pool_cells(features, inside, method))


@given(seeds, CELLS, forms)
def test_larger_features_give_no_smaller_maxima(seed, cells, method):
    features = drawn(seed)
    more = features + np.abs(drawn(seed + 1))
    assert (pool_cells(more, cells, method) >= pool_cells(features, cells, method)).all()


@given(seeds, CELLS, forms, st.permutations(range(4)))
def test_order_of_rois_does_not_matter(seed, cells, method, order):
    out = pool_cells(drawn(seed), cells, method)
    np.testing.assert_array_equal(pool_cells(drawn(seed), [cells[i] for i in order], method), out[list(order)])


@given(seeds, st.integers(0, 11), st.integers(0, 14), forms)
def test_roi_of_one_cell_returns_that_cell(seed, row, column, method):
    features = drawn(seed)
    out = pool_cells(features, [(row, column, 1, 1)], method)
    np.testing.assert_array_equal(out[0], np.broadcast_to(features[row, column], (3, 2, 2)))


@given(seeds, CELLS, forms)
def test_bins_cover_the_roi(seed, cells, method):
    features = drawn(seed) + 20  # over 0, which empty bins give
    for (row, column, height, width), out in zip(cells, pool_cells(features, cells, method), strict=True):
        part = features[max(row, 0) : max(row + height, 0), max(column, 0) : max(column + width, 0)]
        np.testing.assert_array_equal(out.max((0, 1)), part.max((0, 1), initial=0))


@given(seeds, CELLS, forms)
def test_batch_equals_loop_and_more_rois_change_nothing(seed, cells, method):
    features = drawn(seed, (2, 12, 15, 2))
    rois = rois_from_cells(np.array(cells, np.float32))
    both = roi_pool(features, np.stack([rois, rois[::-1]]), spatial_scale=1, output_size=2, method=method)
    for one, f, r in zip(both, features, (rois, rois[::-1]), strict=True):
        np.testing.assert_array_equal(one, roi_pool(f, r, spatial_scale=1, output_size=2, method=method))
    padded = np.concatenate([rois, np.zeros((3, 4)), np.full((1, 4), np.nan)]).astype(np.float32)
    with_padding = roi_pool(features[0], padded, spatial_scale=1, output_size=2, method=method)
    np.testing.assert_array_equal(with_padding[:4], both[0])


@given(st.lists(st.floats(-(2.0**22), 2.0**22, width=32), min_size=4, max_size=4), st.integers(1, 255))
def test_bins_equal_float32_arithmetic(roi, bins):
    starts, ends = np.array(roi[:2], np.float32), np.array(roi[2:], np.float32)
    low, high = jax.jit(bin_edges, static_argnums=(2, 3, 4))(starts, ends, bins, 100, 1.0)
    for start, end, got_low, got_high in zip(starts, ends, low, high, strict=True):
        first, last = (int(np.trunc(np.float64(v) + np.copysign(0.5, v))) for v in (start, end))
        step = np.float32(max(last - first + 1, 1)) / np.float32(bins)
        edges = [(int(np.floor(np.float32(p) * step)), int(np.ceil(np.float32(p + 1) * step))) for p in range(bins)]
        np.testing.assert_array_equal(got_low, np.clip([first + a for a, _ in edges], 0, 100))
        np.testing.assert_array_equal(got_high, np.clip([first + b for _, b in edges], 0, 100))


# corners in map cells: whole and half ones, a step beside them, any, and far outside
CORNERS = st.one_of(
    st.integers(-260, 260).map(lambda n: n / 2),
    st.builds(
        lambda n, side: np.nextafter(np.float32(n / 2), side), st.integers(-80, 160), st.sampled_from([-999, 999])
    ),
    st.floats(-20, 80, width=32),
    st.integers(-(2**22), 2**22),
)


@pytest.mark.nightly
@settings.get_profile("thorough")
@given(
    seeds,
    st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), min_size=12, max_size=12),
    st.sampled_from([((7, 7), 1 / 16), ((6, 6), 1), ((14, 14), 1 / 16), ((3, 2), 1 / 3)]),
    forms,
)
def test_equals_torchvision_on_random_cases(seed, corners, options, method):
    """To the bit, gradients of whole numbers too; features of few values: many ties."""
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    size, scale = options
    features, index = drawn(seed, (2, 61, 64, 2)), np.arange(12) % 2
    rois = (np.array(corners, np.float32) / np.float32(scale)).astype(np.float32)
    out, pullback = jax.vjp(
        lambda f: roi_pool_flat(f, rois, index, output_size=size, spatial_scale=scale, method=method), features
    )
    gradient = drawn(seed + 1, out.shape)
    theirs = torch.tensor(features.transpose(0, 3, 1, 2), requires_grad=True)
    expected = ops.roi_pool(theirs, torch.tensor(np.column_stack([index, rois]).astype(np.float32)), size, scale)
    expected.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(out, expected.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(pullback(gradient)[0], theirs.grad.permute(0, 2, 3, 1))


ERRORS = [
    ((4, 5), (3, 4), {}, ValueError, r"features must be \(\.\.\., H, W, C\), got \(4, 5\)"),
    ((4, 5, 2), (4,), {}, ValueError, r"rois must be \(\.\.\., R, 4\), got \(4,\)"),
    ((4, 5, 2), (3, 5), {}, ValueError, r"rois must be \(\.\.\., R, 4\), got \(3, 5\)"),
    ((2, 4, 5, 2), (3, 4), {}, ValueError, r"rois must be \(2, R, 4\) for features \(2, 4, 5, 2\), got \(3, 4\)"),
    ((4, 5, 2), (3, 4), {"output_size": (0, 7)}, ValueError, r"each 1 to 255, got \(0, 7\)"),
    ((4, 5, 2), (3, 4), {"output_size": (7, 7, 7)}, ValueError, r"each 1 to 255, got \(7, 7, 7\)"),
    ((4, 5, 2), (3, 4), {"output_size": 2.5}, TypeError, r"output_size must be integers.*got 2\.5"),
    (
        (4, 5, 2),
        (3, 4),
        {"spatial_scale": 0},
        ValueError,
        "spatial_scale must be greater than 0 and finite in float32, got 0",
    ),
    (
        (4, 5, 2),
        (3, 4),
        {"spatial_scale": float("nan")},
        ValueError,
        "spatial_scale must be greater than 0 and finite in float32, got nan",
    ),
    ((4, 5, 2), (3, 4), {"spatial_scale": 1e-46}, ValueError, "spatial_scale must be greater than 0 .* got 1e-46"),
    ((4, 5, 2), (3, 4), {"spatial_scale": 10**400}, ValueError, "spatial_scale must be greater than 0 and finite"),
    ((4, 5, 2), (3, 4), {"spatial_scale": "1/16"}, TypeError, "spatial_scale must be a number, got '1/16'"),
]


@pytest.mark.parametrize("op", [roi_pool, roi_align])
@pytest.mark.parametrize(("features", "rois", "options", "error", "text"), ERRORS)
def test_errors_say_what_came(op, features, rois, options, error, text):
    with pytest.raises(error, match=text):
        jax.jit(partial(op, **options))(jnp.ones(features), jnp.ones(rois))


@pytest.mark.parametrize("op", [roi_pool_flat, roi_align_flat])
@pytest.mark.parametrize(
    ("shapes", "types", "error", "text"),
    [
        (((4, 5, 2), (3, 4), (3,)), "ffi", ValueError, r"features must be \(B, H, W, C\), got \(4, 5, 2\)"),
        (((1, 4, 5, 2), (3, 5), (3,)), "ffi", ValueError, r"rois must be \(K, 4\), got \(3, 5\)"),
        (((1, 4, 5, 2), (3, 4), (2,)), "ffi", ValueError, r"batch_index must be \(3,\).*got \(2,\)"),
        (((1, 4, 5, 2), (3, 4), (3,)), "ifi", TypeError, "features must be floating point, got int32"),
        (((1, 4, 5, 2), (3, 4), (3,)), "f?i", TypeError, "rois must be floating point or integers, got bool"),
        (((1, 4, 5, 2), (3, 4), (3,)), "fff", TypeError, "batch_index must be integers, got float32"),
    ],
)
def test_errors_of_the_flat_forms(op, shapes, types, error, text):
    arrays = [np.ones(shape, type_) for shape, type_ in zip(shapes, types, strict=True)]
    with pytest.raises(error, match=text):
        op(*arrays)


@pytest.mark.parametrize("op", [roi_pool_flat, roi_align_flat])
def test_flat_forms_under_vmap(op, rng):
    """Of batches of maps, with the same RoIs or each with its own."""
    features, index = rng.normal(size=(3, 2, 9, 13, 4)).astype(np.float32), np.array([0, 1, 1, 0])
    rois = np.sort(rng.uniform(0, 200, (3, 4, 2, 2)), axis=2).reshape(3, 4, 4).astype(np.float32)
    for axes, boxes in (((0, 0), rois), ((0, None), rois[0])):
        found = jax.vmap(lambda f, r: op(f, r, index), axes)(features, boxes)
        for i in range(3):
            expected = op(features[i], boxes[i] if axes[1] == 0 else boxes, index)
            np.testing.assert_allclose(found[i], expected, rtol=0, atol=0 if op is roi_pool_flat else 1e-6)


def test_places_must_fit_int32():
    rois = jax.ShapeDtypeStruct((3, 4), np.float32)
    gradient = jax.grad(lambda f, r: roi_pool(f, r).sum())
    mapped = jax.vmap(gradient, (0, None))
    for f, shape in ((gradient, (2**11, 2**11, 2**9)), (mapped, (2, 2**11, 2**11, 2**8))):
        with pytest.raises(ValueError, match=r"fewer than 2\^31 elements"):
            jax.eval_shape(f, jax.ShapeDtypeStruct(shape, np.float32), rois)


def test_unknown_method_and_traced_scale():
    with pytest.raises(ValueError, match="one of auto, segment, table, loop, got 'magic'"):
        roi_pool(jnp.ones((4, 5, 2)), jnp.ones((3, 4)), method="magic")
    with pytest.raises(TypeError, match="features must be an array of numbers, got NoneType"):
        roi_pool(None, jnp.ones((3, 4)))
    with pytest.raises(TypeError, match="spatial_scale must be a number"):
        jax.jit(lambda scale: roi_pool(jnp.ones((4, 5, 2)), jnp.ones((3, 4)), spatial_scale=scale))(0.5)
