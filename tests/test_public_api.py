"""The public API: what it does with wrong, odd and empty arguments, and how it is called.

`ROWS` has a row for each public function. A bad argument raises one clear line; all else has a documented result.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import frcnn_jax
from frcnn_jax import ops

# What may be passed by position: arrays, numbers that may be arrays, and the one thing that a function is about.
POSITIONAL = {"batch_index", "boxes", "cells", "deltas", "factor", "features", "gt_boxes", "height", "image", "name"}
POSITIONAL |= {"others", "rois", "scores", "width"}
NARROW = [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float16, ml_dtypes.bfloat16]


def public_functions():
    found = {name: getattr(module, name) for module in (ops, frcnn_jax) for name in module.__all__}
    return {name: item for name, item in found.items() if callable(item) and not inspect.isclass(item)}


FUNCTIONS = public_functions()


class Row(NamedTuple):
    """What is expected of one function."""

    good: tuple = ()  # arguments of small whole numbers
    cast: tuple[int, ...] = ()  # those of them that may have any numeric type; computed in float32
    options: dict[str, Any] = {}  # noqa: RUF012
    errors: tuple = ()  # (arguments, options, the error's text)
    empty: Sequence[tuple] = ()  # (arguments, the shape of the first result)
    nan: tuple = ()  # (arguments, result)


def z(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def of_boxes(*arrays, rank=1, **row):
    """A row of a function whose first two arguments (one for a single box argument) are boxes."""
    form = {1: r"\(\.\.\., 4\)", 2: r"\(\.\.\., N, 4\)"}[rank]
    errors = []
    for i, array in enumerate(arrays):
        if np.shape(array)[-1:] == (4,):
            wrong = [
                (z(3, 5), rf"must be {form}, got \(3, 5\)"),
                (z(), r"got \(\)"),
                (z(3, 4, dtype=bool), "must be floating point or integers, got bool"),
                (z(3, 4, dtype=complex), "must be floating point or integers, got complex"),
                (z(3, 4, dtype=str), "must be floating point or integers, got <U1"),
                (None, "must be floating point or integers, got object"),
            ]
            errors += [((*arrays[:i], bad, *arrays[i + 1 :]), {}, text) for bad, text in wrong]
    if np.shape(arrays[-1])[-1:] == (4,) and len(arrays) == 2:
        errors.append(((z(2, 3, 4), z(5, 3, 4)), {}, r"axes that broadcast, got \(2, 3, 4\) and \(5, 3, 4\)"))
    return Row(arrays, tuple(range(len(arrays))), errors=(*errors, *row.pop("errors", ())), **row)


def of_pooling(flat, **row):
    features, rois, index = np.arange(180, dtype=np.float32).reshape(2, 5, 6, 3), np.stack([BOXES, BOXES]), ()
    numeric = "rois must be floating point or integers, got"
    if flat:
        rois, index = BOXES, (np.array([1, 0, 1]),)
        shapes = [
            ((features[0], rois, *index), {}, r"features must be \(B, H, W, C\), got \(5, 6, 3\)"),
            ((features, z(3, 5), *index), {}, r"rois must be \(K, 4\), got \(3, 5\)"),
            ((features, rois, z(2, dtype=int)), {}, r"batch_index must be \(3,\), one per RoI, got \(2,\)"),
            ((features, rois, z(3)), {}, "batch_index must be integers, got float32"),
        ]
    else:
        shapes = [
            ((features[0, 0], rois), {}, r"features must be \(\.\.\., H, W, C\), got \(6, 3\)"),
            ((features, z(3, 5)), {}, r"rois must be \(\.\.\., R, 4\), got \(3, 5\)"),
            ((features, BOXES), {}, r"rois must be \(2, R, 4\) for features \(2, 5, 6, 3\), got \(3, 4\)"),
        ]
    options = [
        ({"output_size": (0, 7)}, r"output_size must be .* each 1 to 255, got \(0, 7\)"),
        ({"output_size": 2.5}, "output_size must be integers"),
        ({"spatial_scale": 0}, "spatial_scale must be greater than 0 and finite"),
        ({"spatial_scale": float("nan")}, "spatial_scale must be greater than 0 and finite"),
        ({"spatial_scale": "1"}, "spatial_scale must be a number"),
    ]
    errors = [
        *shapes,
        ((features.astype(int), rois, *index), {}, "features must be floating point, got int64"),
        ((features, rois > 0, *index), {}, f"{numeric} bool"),
        ((features, rois.astype(complex), *index), {}, f"{numeric} complex128"),
        ((features, rois.astype(str), *index), {}, f"{numeric} <U32"),
        ((None, rois, *index), {}, "features must be an array of numbers, got NoneType"),
        ((features, [[1, 2], [3]], *index), {}, "rois must be an array of numbers, got list"),
        *(((features, rois, *index), option, text) for option, text in (*options, *row.pop("wrong", ()))),
    ]
    empty = (
        ((features, rois[..., :0, :], *(i[:0] for i in index)), (*rois.shape[:-2], 0, 7, 7, 3)),
        ((features[:, :0], rois, *index), (*rois.shape[:-1], 7, 7, 3)),
    )
    nan = ((features, np.full_like(rois, np.nan), *index), z(*rois.shape[:-1], 7, 7, 3))
    return Row((features, rois, *index), (1,), {"spatial_scale": 1 / 32}, tuple(errors), empty, nan)


BOXES = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [100, 90, 120, 119]], np.float32)
NAN_BOX = np.array([[0, 0, np.nan, 9], [5, 0, 14, 9]], np.float32)
NO_BOXES = z(0, 4)
NAN = np.nan
MAGIC = ({"method": "magic"}, "method must be one of auto, segment, table, loop, got 'magic'")
RATIOS = [
    ({"sampling_ratio": -1}, "sampling_ratio must be at least 0"),
    ({"sampling_ratio": 1.5}, "must be an integer"),
]
NMS = {"iou_threshold": 0.3, "max_outputs": 4}

ROWS = {
    "area": of_boxes(BOXES, empty=[((NO_BOXES,), (0,))], nan=((NAN_BOX,), [NAN, 100])),
    "iou": of_boxes(
        BOXES,
        BOXES[::-1],
        rank=2,
        errors=(((z(4), z(3, 4)), {}, r"boxes must be \(\.\.\., N, 4\), got \(4,\)"),),
        empty=[((NO_BOXES, BOXES), (0, 3))],
        nan=((NAN_BOX, NAN_BOX), [[NAN, NAN], [NAN, 1]]),
    ),
    "encode": of_boxes(
        BOXES, BOXES[::-1], empty=[((NO_BOXES, NO_BOXES), (0, 4))], nan=((NAN_BOX, NAN_BOX), [[NAN, 0, NAN, 0], z(4)])
    ),
    "decode": of_boxes(
        BOXES,
        z(3, 4) + 1,
        empty=[((NO_BOXES, NO_BOXES), (0, 4))],
        nan=((NAN_BOX, z(4)), [[NAN, 0, NAN, 9], NAN_BOX[1]]),
    ),
    "clip": of_boxes(
        BOXES,
        50,
        np.array([10, 12, 125]),
        errors=(
            ((BOXES, z(2), 9), {}, r"height must broadcast with boxes\[\.\.\., 0\], got \(2,\) for boxes \(3, 4\)"),
            ((BOXES, 9, "9"), {}, "width must be floating point or integers, got <U1"),
        ),
        empty=[((NO_BOXES, 9, 9), (0, 4))],
        nan=((NAN_BOX, 9, 9), [[0, 0, NAN, 8], [5, 0, 8, 8]]),
    ),
    "flip": of_boxes(
        BOXES,
        np.array([10, 15, 125]),
        errors=(((BOXES, z(2)), {}, r"width must broadcast with boxes\[\.\.\., 0\], got \(2,\) for boxes \(3, 4\)"),),
        empty=[((NO_BOXES, 9), (0, 4))],
        nan=((NAN_BOX, 20), [[NAN, 0, 19, 9], [5, 0, 14, 9]]),
    ),
    "scale": of_boxes(
        BOXES,
        2,
        errors=(((BOXES, None), {}, "factor must be floating point or integers, got object"),),
        empty=[((NO_BOXES, 2), (0, 4))],
        nan=((NAN_BOX, 2), NAN_BOX * 2),
    ),
    "nms": Row(
        (BOXES, np.array([1, 3, 2], np.float32)),
        (0, 1),
        NMS,
        (
            ((z(3, 5), z(3)), NMS, r"boxes must be \(N, 4\), got \(3, 5\)"),
            ((z(2, 3, 4), z(2, 3)), NMS, r"boxes must be \(N, 4\), got \(2, 3, 4\)"),
            ((z(3, 4), z(4)), NMS, r"scores must be \(3,\), one per box, got \(4,\)"),
            ((z(0, 4), z(1)), NMS, r"scores must be \(0,\), one per box, got \(1,\)"),
            ((z(3, 4), z(3, dtype=bool)), NMS, "scores must be floating point or integers, got bool"),
            ((z(3, 4, dtype=complex), z(3)), NMS, "boxes must be floating point or integers, got complex"),
            ((z(3, 4), z(3)), NMS | {"iou_threshold": 1.5}, r"iou_threshold must be in \[0, 1\], got 1.5"),
            ((z(3, 4), z(3)), NMS | {"iou_threshold": NAN}, r"iou_threshold must be in \[0, 1\], got nan"),
            ((z(3, 4), z(3)), NMS | {"max_outputs": -1}, "max_outputs must be an integer of at least 0, got -1"),
            ((z(3, 4), z(3)), NMS | {"max_outputs": 1.5}, "max_outputs must be an integer of at least 0, got 1.5"),
        ),
        [((z(0, 4), z(0)), (4,))],
        # only the third box has neither a NaN coordinate nor a NaN score
        ((np.stack([*NAN_BOX, BOXES[2]]), np.array([5, NAN, 1])), [2, 0, 0, 0]),
    ),
    "roi_pool": of_pooling(flat=False, wrong=[MAGIC]),
    "roi_pool_flat": of_pooling(flat=True, wrong=[MAGIC]),
    "roi_align": of_pooling(flat=False, wrong=RATIOS),
    "roi_align_flat": of_pooling(flat=True, wrong=RATIOS),
    "rois_from_cells": Row(
        (BOXES,),
        (0,),
        errors=(
            ((z(3, 5),), {}, r"cells must be \(\.\.\., 4\): row, column, height, width; got \(3, 5\)"),
            ((z(3, 4, dtype=bool),), {}, "cells must be floating point or integers, got bool"),
            (("cells",), {}, "cells must be floating point or integers, got <U5"),
        ),
        empty=[((NO_BOXES,), (0, 4))],
        nan=((np.array([[NAN, 1, 2, 3]]),), [[1, NAN, 3, NAN]]),
    ),
    "rois_from_torchvision": Row(
        (np.concatenate([z(3, 1) + 1, BOXES], axis=1),),
        (0,),
        errors=(
            ((z(3, 4),), {}, r"rois must be \(K, 5\): batch index, x1, y1, x2, y2; got \(3, 4\)"),
            ((z(3, 5, dtype=bool),), {}, "rois must be floating point or integers, got bool"),
        ),
        empty=[((z(0, 5),), (0, 4))],
        nan=((np.array([[1, 2, NAN, 4, 5]]),), [[2, NAN, 4, 5]]),
    ),
    "get_network": Row(errors=((("resnet",), {}, "network must be one of .*tiny.*got 'resnet'"),)),
    "selective_search": Row(
        errors=(
            ((z(9, 9),), {}, r"needs a \(H, W, 3\) uint8 image, got \(9, 9\) float32"),
            ((z(9, 9, 3),), {}, r"needs a \(H, W, 3\) uint8 image, got \(9, 9, 3\) float32"),
            ((z(9, 9, 3, dtype="uint8"),), {"mode": "slow"}, "mode must be one of fast, quality, got 'slow'"),
        ),
    ),
}


def test_every_public_function_has_a_row():
    assert set(ROWS) == set(FUNCTIONS)
    assert all(row.errors for row in ROWS.values())


def cases(field):
    """(name, row) of rows that have the field."""
    return [pytest.param(name, row, id=name) for name, row in ROWS.items() if getattr(row, field)]


def first(result):
    """The first of several results, as NumPy."""
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def assert_one_line(raised):
    text = str(raised.value)
    assert text.isprintable(), text
    assert len(text) < 200, text


@pytest.mark.parametrize(("name", "row"), cases("errors"))
def test_bad_arguments_raise_one_line(name, row):
    for args, options, text in row.errors:
        with pytest.raises((ValueError, TypeError), match=text) as raised:
            FUNCTIONS[name](*args, **options)
        assert_one_line(raised)


@pytest.mark.parametrize(("name", "row"), cases("cast"))
def test_bad_arguments_raise_while_tracing_too(name, row):
    for args, options, text in row.errors:
        if all(isinstance(arg, np.ndarray) and arg.dtype.kind not in "iU" for arg in args):
            text = text.replace("complex128", "complex64")  # without x64
            with pytest.raises((ValueError, TypeError), match=text) as raised:
                jax.eval_shape(partial(FUNCTIONS[name], **options), *args)
            assert_one_line(raised)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("name", "row"), cases("cast"))
def test_narrow_types_are_computed_in_float32(name, row, dtype):
    function = partial(FUNCTIONS[name], **row.options)
    expected = function(*row.good)
    args = [np.asarray(arg).astype(dtype) if i in row.cast else arg for i, arg in enumerate(row.good)]
    for arrays in (args, [jnp.asarray(arg) for arg in args]):
        for got, want in zip(jax.tree.leaves(function(*arrays)), jax.tree.leaves(expected), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["area", "iou", "encode", "decode", "clip", "flip", "scale", "rois_from_cells"])
def test_float64_and_jax_arrays_stay_what_they_are(name):
    function, (boxes, *others) = FUNCTIONS[name], ROWS[name].good
    wide = function(boxes.astype(np.float64), *others)
    assert wide.dtype == np.float64
    assert isinstance(wide, np.ndarray)
    assert isinstance(function(jnp.asarray(boxes), *others), jax.Array)
    assert isinstance(function(boxes, *map(jnp.asarray, others)), jax.Array if others else np.ndarray)


@pytest.mark.parametrize(("name", "row"), cases("empty"))
def test_empty_arrays(name, row):
    for args, shape in row.empty:
        for arrays in (args, [jnp.asarray(arg) for arg in args]):
            assert first(FUNCTIONS[name](*arrays, **row.options)).shape == shape


@pytest.mark.parametrize(("name", "row"), cases("nan"))
def test_nan_has_a_documented_result(name, row):
    args, expected = row.nan
    for arrays in (args, [jnp.asarray(arg) for arg in args]):
        np.testing.assert_allclose(first(FUNCTIONS[name](*arrays, **row.options)), expected, atol=1e-5)


def test_nms_of_nothing_and_of_nan_has_no_valid_places():
    nan_scores = ops.nms(z(3, 4), np.full(3, NAN), **NMS)
    for indices, valid in (ops.nms(z(0, 4), z(0), **NMS), nan_scores, jax.jit(partial(ops.nms, **NMS))(z(0, 4), z(0))):
        assert indices.tolist() == [0] * 4
        assert valid.tolist() == [False] * 4
        assert indices.dtype == np.int32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_are_positional_and_all_else_is_keyword_only(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        expected = parameter.POSITIONAL_OR_KEYWORD if parameter.name in POSITIONAL else parameter.KEYWORD_ONLY
        assert parameter.kind == expected, parameter


def test_ops_are_flat():
    assert all(getattr(frcnn_jax, name) is getattr(ops, name) for name in set(frcnn_jax.__all__) & set(ops.__all__))
    assert {"iou", "nms", "roi_pool", "roi_align", "rois_from_cells"} <= set(ops.__all__)
