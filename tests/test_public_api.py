"""The public API: what it does with wrong, odd and empty arguments, and how it is called.

`ROWS` has a row for each public function, and for each class that checks what it is given. A bad argument raises one
clear line; all else has a documented result.
"""

import dataclasses
import inspect
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import frcnn_jax
from frcnn_jax import (
    NETWORKS,
    Dataset,
    DetectionOptions,
    Detector,
    Evaluator,
    FunctionNetwork,
    PixelNorm,
    Record,
    RoIPool,
    Sizes,
    Weights,
    ops,
)
from frcnn_jax.training.sampling import RoITargets

# Passed by position: arrays, numbers that may be arrays, and trees of arrays.
ARRAYS = {"arrays", "batch_index", "boxes", "cells", "classes", "deltas", "features", "gt_boxes", "gt_labels", "height"}
ARRAYS |= {
    "labels",
    "others",
    "params",
    "proposals",
    "rois",
    "scores",
    "state",
    "targets",
    "tree",
    "variables",
    "width",
}
# May be passed by position: what a function is about, such as a model, records, an image, a path, a name.
SUBJECTS = {
    "annotations",
    "batch",
    "batches",
    "dataset",
    "drops",
    "factor",
    "folder",
    "image",
    "images",
    "key",
    "layout",
    "learning_rate",
}
SUBJECTS |= {"model", "name", "num_classes", "optimizer", "path", "rng", "schedule", "self", "source", "voc_dir"}
SUBJECTS |= {"search", "workdir"}
# Classes that check nothing by themselves.
PLAIN = {"Dataset", "Detections", "Evaluation", "InputError", "LayerBackbone", "Network", "RegionScores", "RoIPool"}
PLAIN |= {
    "FPN",
    "FunctionBackbone",
    "FunctionNetwork",
    "ImageFile",
    "LiteNeck",
    "ResNetHead",
    "RoIAlign",
    "TrainState",
    "Weights",
}
NARROW = [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float16, ml_dtypes.bfloat16]


def public_names():
    """Names of all public functions and classes."""
    names = {name: getattr(module, name) for module in (ops, frcnn_jax) for name in module.__all__}
    return {name for name, item in names.items() if callable(item)}


def public(name):
    """A public function, class or method, such as "Detector.__call__"."""
    return operator.attrgetter(name)(ops if name in ops.__all__ else frcnn_jax)


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


def of_rows(rows, *fixed, **options):
    """The errors of calls with `fixed` and then the given arguments; of texts by arguments."""
    return tuple(((*fixed, *args), options, text) for args, text in rows)


def wrong_boxes(name):
    form = rf"{name} must be \(N, 4\), got"
    return [
        (z(3, 5), rf"{form} \(3, 5\)"),
        (z(4), rf"{form} \(4,\)"),
        (z(2, 3, 4), rf"{form} \(2, 3, 4\)"),
        (NAN_BOX[::-1], rf"{name} must be finite, box 1 is \[0.0, 0.0, nan, 9.0\]"),
        (z(3, 4, dtype=bool), f"{name} must be floating point or integers, got bool"),
        (None, f"{name} must be floating point or integers, got object"),
    ]


def wrong_labels(name):
    form = rf"{name} must be \(3,\) integers of at least 1, got"
    return [
        (z(2, dtype=int), rf"{form} \(2,\) int64"),
        (z(3), rf"{form} \(3,\) float32"),
        (z(3, dtype=int), rf"{form} \(3,\) int64, minimum 0"),
    ]


WRONG_IMAGES = [
    (z(9, 9), r"the image must be \(H, W, 3\) uint8 RGB, got \(9, 9\) float32"),
    (z(9, 9, 3), r"the image must be \(H, W, 3\) uint8 RGB, got \(9, 9, 3\) float32"),
    (z(9, 9, 4, dtype="uint8"), r"the image must be \(H, W, 3\) uint8 RGB, got \(9, 9, 4\) uint8"),
    (z(0, 9, 3, dtype="uint8"), r"the image must be \(H, W, 3\) uint8 RGB, got \(0, 9, 3\) uint8"),
    (None, r"the image must be \(H, W, 3\) uint8 RGB, got \(\) object"),
]
LABELS = np.array([1, 2, 1])
IMAGE = z(20, 30, 3, dtype="uint8")
RECORD = Record("a", 20, 30, BOXES, LABELS, z(3, dtype=bool), lambda: IMAGE)
DATASET = Dataset(("cat", "dog"), [RECORD])
TARGETS = RoITargets(BOXES, LABELS, z(3, 4), z(3) + 1)
SHORT = TARGETS._replace(labels=LABELS[:2])
STATS = {"mean": z(3, 4), "std": z(3, 4) + 1}
PREPARING = {"sizes": [Sizes(20, 40)], "pixels": PixelNorm(), "spatial_scale": 1 / 16}
PREPARING_RUN = {"sizes": [Sizes(20, 40)], "pixels": PixelNorm(), "steps": 1}
TINY = frcnn_jax.get_network("tiny")
MODEL = TINY.build(2)
SGD = optax.sgd(1)
KEY = jax.random.key(0)
BATCH = {"image": z(2, 32, 32, 3), "image_size": z(2, 2, dtype=int), "rois": z(2, 5, 4)}
BATCH |= {"roi_mask": z(2, 5, dtype=bool), "labels": z(2, 5, dtype=int), "box_targets": z(2, 5, 4)}
BATCH |= {"index": z(2, dtype=int)}
VARIABLES = {"params": {"backbone": {"conv1": {"bias": 0}}, "head": {"fc6": {"bias": 0}}}, "box_stats": STATS}
DETECTOR = Detector(MODEL, {}, class_names=DATASET.class_names)
EVALUATOR = Evaluator(MODEL, Dataset(("cat", "dog"), []), {}, sizes=[Sizes()])
LOSS = r"expected deltas \(\.\.\., K \+ 1, 4\), targets \(\.\.\., 4\) and labels \(\.\.\.,\), got"
NO_PROPOSALS = "no proposals for 1 of 1 records, such as 'a'"

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
    "batched_nms": Row(
        (BOXES, np.array([1, 3, 2], np.float32), np.array([0, 1, 0])),
        (0, 1),
        NMS,
        (
            ((z(3, 5), z(3), z(3, dtype=int)), NMS, r"boxes must be \(N, 4\), got \(3, 5\)"),
            ((z(3, 4), z(3), z(2, dtype=int)), NMS, r"classes must be integers \(3,\), one per box, got int64 \(2,\)"),
            ((z(3, 4), z(3), z(3)), NMS, r"classes must be integers \(3,\), one per box, got float32 \(3,\)"),
        ),
        [((z(0, 4), z(0), z(0, dtype=int)), (4,))],
        ((np.stack([*NAN_BOX, BOXES[2]]), np.array([5, NAN, 1]), np.zeros(3, int)), [2, 0, 0, 0]),
    ),
    "box_area": of_boxes(BOXES, empty=[((NO_BOXES,), (0,))], nan=((NAN_BOX,), [NAN, 81])),
    "box_convert": Row(
        (BOXES,),
        (0,),
        {"in_fmt": "xyxy", "out_fmt": "cxcywh"},
        (
            ((z(3, 5),), {"in_fmt": "xyxy", "out_fmt": "xywh"}, r"boxes must be \(\.\.\., 4\), got \(3, 5\)"),
            ((BOXES,), {"in_fmt": "yx", "out_fmt": "xywh"}, "in_fmt must be one of xyxy, xywh, cxcywh, got 'yx'"),
            ((BOXES,), {"in_fmt": "xyxy", "out_fmt": "yx"}, "out_fmt must be one of xyxy, xywh, cxcywh, got 'yx'"),
        ),
        [((NO_BOXES,), (0, 4))],
        ((NAN_BOX,), [[NAN, 4.5, NAN, 9], [9.5, 4.5, 9, 9]]),
    ),
    **{
        name: of_boxes(
            BOXES,
            BOXES[::-1],
            rank=2,
            empty=[((NO_BOXES, BOXES), (0, 3))],
            nan=((NAN_BOX, NAN_BOX), [[NAN, NAN], [NAN, 1]]),
        )
        for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
    },
    **{
        name: of_boxes(
            BOXES,
            BOXES[::-1],
            errors=(((BOXES, BOXES, "max"), {}, "reduction must be none, mean or sum, got 'max'"),),
            empty=[((NO_BOXES, NO_BOXES), (0,)), ((NO_BOXES, NO_BOXES, "mean"), ())],
            nan=((NAN_BOX, NAN_BOX), [NAN, 0]),
        )
        for name in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
    },
    "clip_boxes_to_image": Row(
        (BOXES,),
        (0,),
        {"size": (8, 12)},
        (
            ((z(3, 5),), {"size": (8, 12)}, r"boxes must be \(\.\.\., 4\), got \(3, 5\)"),
            ((BOXES,), {"size": 8}, r"size must be \(height, width\) that broadcast with boxes \(3, 4\), got 8"),
            ((BOXES,), {"size": (8, z(2))}, r"size must be \(height, width\) that broadcast with boxes \(3, 4\)"),
            ((BOXES,), {"size": ("8", 9)}, r"size must be \(height, width\) that broadcast with boxes \(3, 4\)"),
        ),
        [((NO_BOXES,), (0, 4))],
        ((NAN_BOX,), [[0, 0, NAN, 8], [5, 0, 12, 8]]),
    ),
    "remove_small_boxes": Row(
        (BOXES,),
        (0,),
        {"min_size": 10},
        (((z(3, 5),), {"min_size": 1}, r"boxes must be \(\.\.\., 4\), got \(3, 5\)"),),
        [((NO_BOXES,), (0,))],
        ((NAN_BOX,), [False, False]),
    ),
    "masks_to_boxes": Row(
        (np.eye(3),),
        (0,),
        errors=(((z(3),), {}, r"masks must be \(\.\.\., H, W\), got \(3,\)"),),
        empty=[((z(0, 3, 3),), (0, 4)), ((z(2, 0, 3),), (2, 4))],
        nan=((np.array([[NAN, 0]]),), [0, 0, 0, 0]),
    ),
    "sigmoid_focal_loss": Row(
        (z(3) + 1, z(3) + 1),
        (0, 1),
        errors=(
            ((z(3), z(2)), {}, r"inputs and targets must have one shape, got \(3,\) and \(2,\)"),
            ((z(3, dtype=bool), z(3)), {}, "inputs must be floating point or integers, got bool"),
            ((z(3), z(3), 0.25, 2, "max"), {}, "reduction must be none, mean or sum, got 'max'"),
        ),
        empty=[((z(0), z(0)), (0,))],
        nan=((np.array([NAN, 0]), z(2)), [NAN, 0.75 * np.log(2) / 4]),
    ),
    "multiscale_roi_align": Row(
        ([z(2, 8, 8, 3), z(2, 4, 4, 3)], np.stack([BOXES, BOXES])),
        (1,),
        {"strides": (4, 8)},
        (
            (([z(2, 8, 8, 3)], BOXES[None]), {"strides": (4,)}, r"rois must be \(2, R, 4\) for features"),
            (([], BOXES[None]), {"strides": ()}, "strides must be 0 numbers, one per level and at least one"),
            (([z(1, 8, 8, 3)], BOXES[None]), {"strides": (0,)}, "strides must be over 0"),
            (
                ([z(1, 8, 8, 3)], BOXES[None]),
                {"strides": (4,), "sampling_ratio": -1},
                "sampling_ratio must be at least 0",
            ),
        ),
        [(([z(1, 8, 8, 3), z(1, 4, 4, 3)], z(1, 0, 4)), (1, 0, 7, 7, 3))],
        (([z(1, 8, 8, 3) + 1, z(1, 4, 4, 3) + 1], NAN_BOX[None][:, :1]), z(1, 1, 7, 7, 3)),
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
    # Data
    "Record": Row(
        errors=(
            *of_rows(
                [((bad, LABELS, z(3, dtype=bool), None), text) for bad, text in wrong_boxes("image 'a': boxes")],
                "a",
                9,
                9,
            ),
            *of_rows(
                [((BOXES, bad, z(3, dtype=bool), None), text) for bad, text in wrong_labels("image 'a': labels")],
                "a",
                9,
                9,
            ),
            (("a", 9, 9, BOXES, LABELS, z(2, dtype=bool), None), {}, r"difficult must be \(3,\) bool, got \(2,\) bool"),
            (("a", 9, 9, BOXES, LABELS, z(3, dtype=int), None), {}, r"difficult must be \(3,\) bool, got \(3,\) int64"),
        )
    ),
    "Sizes": Row(
        errors=of_rows(
            (sizes, rf"expected 0 < shorter <= longer, got {sizes[0]} and {sizes[1]}")
            for sizes in ((0, 9), (-1, 9), (9, 8), (NAN, 9), (9, np.inf))
        )
    ),
    "load_image": Row(errors=((("missing.jpg",), {}, "missing.jpg: no such image"),)),
    "without_difficult": Row(errors=((([RECORD],), {}, "'list' object has no attribute"),)),
    "read_split": Row(
        errors=((("imagenet",), {"split": "val"}, "dataset must be one of synthetic, voc, .*got 'imagenet'"),)
    ),
    "read_synthetic": Row(
        errors=(
            ((), {"split": "trian", "images": 1}, "has the splits train, val, test, got 'trian'"),
            ((), {"split": "train", "images": 0}, "needs at least 1 image, got 0"),
        )
    ),
    "read_voc": Row(errors=((("missing",), {"split": "val"}, "missing: no such folder"),)),
    "read_dataset": Row(
        errors=(
            (("missing",), {}, "missing: no such folder"),
            ((".",), {"layout": "imagenet"}, "layout must be one of auto, voc, coco, .*got 'imagenet'"),
        )
    ),
    "read_xml_folder": Row(errors=((("missing",), {}, "missing: no such folder"),)),
    "read_coco": Row(errors=((("missing.json",), {"image_dir": "."}, "missing.json: no such file"),)),
    "read_tfds": Row(
        errors=(
            (("coco/2017",), {"split": "train"}, "name must be voc/2007 or voc/2012, got 'coco/2017'"),
            (("voc/2007",), {"split": "train", "data_dir": "missing"}, "missing/voc/2007: nothing prepared here"),
        )
    ),
    "prepare_image": Row(
        (IMAGE,),
        options={"size": Sizes(20, 40), "pixels": PixelNorm()},
        errors=of_rows([((bad,), text) for bad, text in WRONG_IMAGES], size=Sizes(20, 40), pixels=PixelNorm()),
    ),
    "prepare_test": Row(
        (IMAGE, BOXES),
        (1,),
        PREPARING,
        (
            *of_rows([((bad, BOXES), text) for bad, text in WRONG_IMAGES], **PREPARING),
            *of_rows([((IMAGE, bad), text) for bad, text in wrong_boxes("rois")], **PREPARING),
            ((IMAGE, BOXES), PREPARING | {"sizes": []}, "sizes must not be empty"),
        ),
        [((IMAGE, NO_BOXES), (1, 512, 4))],
    ),
    "prefetch": Row(
        errors=(
            (([1, 2],), {"stride": 0}, "slice step cannot be zero"),
            ((iter([1, 2]),), {}, r"has no len\(\)"),
        )
    ),
    "TestBatches": Row(errors=((([RECORD], {}, [Sizes()], PixelNorm(), 1 / 16), {}, NO_PROPOSALS),)),
    # Models
    "get_network": Row(errors=((("resnet",), {}, "network must be one of .*tiny.*got 'resnet'"),)),
    "Network.build": Row(
        errors=(
            ((TINY, 0), {}, "num_classes must be at least 1, got 0"),
            ((TINY, 2), {"fc_ranks": (5,)}, r"ranks must be 2 numbers, one per layer, got \(5,\)"),
            ((TINY, 2), {"classifier": "tree"}, "classifier must be softmax or svm, got 'tree'"),
        )
    ),
    "FunctionNetwork.build": Row(
        errors=(
            ((NETWORKS["resnet18"], 0), {}, "num_classes must be at least 1, got 0"),
            ((NETWORKS["resnet18"], 2), {"fc_ranks": (5, 5)}, "has the layers fc6 and fc7, got one with a ResNetHead"),
            ((NETWORKS["resnet18"], 2), {"classifier": "tree"}, "classifier must be softmax or svm, got 'tree'"),
            ((FunctionNetwork(lambda _: 3, name="m:f"), 2), {}, "network m:f: expected a FastRCNN, got int"),
        )
    ),
    "ResNet": Row(
        errors=(
            ((51,), {}, "depth must be one of 18, 34, 50, 101, got 51"),
            ((50, 5), {}, "stages must be 1 to 4, got 5"),
        )
    ),
    "fit_weights": Row(
        errors=(
            (
                (Weights({"layer1.0.conv3.weight": z(1, 1, 1, 1)}, None, True), NETWORKS["resnet50"].build(2), "f"),
                {},
                "f: weights of a ResNet that strides in its first 1x1 convolutions",
            ),
        )
    ),
    "FullyConnectedHead": Row(
        errors=(
            ((0,), {}, "num_classes must be at least 1, got 0"),
            ((2,), {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
            ((2, (8, 8), (1, 2, 3)), {}, r"ranks must be 2 numbers, one per layer, got \(1, 2, 3\)"),
        )
    ),
    "EfficientNetLite": Row(errors=(((), {"stage": 7}, "stage must be from 0 to 6, got 7"),)),
    "FastRCNN": Row(
        errors=(((None, None, None), {"classifier": "tree"}, "classifier must be softmax or svm, got 'tree'"),)
    ),
    "RoIPool.__call__": Row(
        errors=(((RoIPool(), z(1, 5, 6, 3), z(1, 3, 5)), {}, r"rois must be \(\.\.\., R, 4\), got"),)
    ),
    "PixelNorm": Row(
        errors=(
            (("GBR",), {}, "order must be RGB or BGR, got 'GBR'"),
            ((), {"std": (1, 0, 1)}, r"std must be three positive finite numbers, got \(1, 0, 1\)"),
            ((), {"std": (1, 1)}, r"std must be three positive finite numbers, got \(1, 1\)"),
            ((), {"mean": (1, NAN, 1)}, r"mean must be three finite numbers, got \(1, nan, 1\)"),
        )
    ),
    "init_variables": Row(errors=(((MODEL, 0), {}, "RNGs should be of shape"),)),
    "variable_shapes": Row(errors=(((TINY,), {}, "'Network' object has no attribute 'init'"),)),
    "read_weights": Row(
        errors=(
            (("missing.npz",), {}, "missing.npz: no such weights file"),
            (("weights.txt",), {}, "weights.txt: weights are read from .npz, .*files"),
        )
    ),
    "write_weights": Row(
        errors=((("weights.txt", {}), {}, "weights.txt: weights are written to .npz or .safetensors"),)
    ),
    "load_pretrained": Row(
        errors=(
            (({}, {}), {"roi_size": (6, 6), "source": "x", "keep_classifier": True}, "x: no cls_score in it"),
            (
                (VARIABLES["params"] | {"backbone": {"conv1": {"bias": z(8)}}}, {"conv1.bias": z(9)}),
                {"roi_size": (6, 6), "source": "x"},
                r"conv1.bias is \(9,\), not \(8,\)",
            ),
        )
    ),
    # Proposals
    "selective_search": Row(
        errors=(
            *of_rows([((bad,), text) for bad, text in WRONG_IMAGES]),
            ((IMAGE,), {"mode": "slow"}, "mode must be one of standard, fast, paper, quality, got 'slow'"),
            ((IMAGE,), {"size": 0}, "size of the searched image must be at least 1, got 0"),
            ((IMAGE,), {"max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        ),
    ),
    "search_images": Row(
        errors=(
            (
                ({"a": partial(frcnn_jax.load_image, "missing.jpg")},),
                {"cache_dir": "c", "workers": 1},
                "missing.jpg: no such",
            ),
        )
    ),
    "SelectiveSearch": Row(
        errors=(
            ((), {"mode": "slow"}, "mode must be one of standard, fast, paper, quality, got 'slow'"),
            ((), {"size": -1}, "size of the searched image must be at least 1, got -1"),
            ((), {"max_boxes": -1}, "max_boxes must be at least 1, got -1"),
        )
    ),
    "EdgeBoxes": Row(
        errors=(
            (("missing.yml",), {}, "edge_boxes:missing.yml: no such model file"),
            ((__file__,), {"size": 0}, "size of the searched image must be at least 1, got 0"),
            ((__file__,), {"max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        )
    ),
    "read_proposals": Row(
        errors=(
            (("missing.npz",), {}, "missing.npz: no such proposal file or folder"),
            (("missing.npz",), {"max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        )
    ),
    "load_proposals": Row(
        errors=(((DATASET,), {"source": "missing.npz", "cache_dir": "missing"}, "'missing.npz' is no proposal file"),)
    ),
    "write_proposals": Row(
        errors=(
            *of_rows(
                [(({"a": bad},), text) for bad, text in wrong_boxes("x.proposals: boxes of image 'a'")], "x.proposals"
            ),
            (("x.proposals", {"a": BOXES - 1}), {}, "boxes of image 'a' are not within 0 to 65535"),
            (("x.npz", {}), {}, "x.npz: proposals are written to .proposals files"),
        )
    ),
    # Training
    "assign": Row(
        (BOXES, BOXES[::-1], LABELS),
        (0, 1),
        errors=(
            *of_rows([((bad, BOXES, LABELS), text) for bad, text in wrong_boxes("proposals")]),
            *of_rows([((BOXES, bad, LABELS), text) for bad, text in wrong_boxes("gt_boxes")]),
            *of_rows([((BOXES, BOXES, bad), text) for bad, text in wrong_labels("gt_labels")]),
        ),
        empty=[((NO_BOXES, NO_BOXES, LABELS[:0]), (0, 4)), ((BOXES, NO_BOXES, LABELS[:0]), (3, 4))],
    ),
    "sample": Row(
        options={"count": 4},
        errors=(
            ((TARGETS, np.random.default_rng(0)), {"count": -1}, r"expected count >= 0 and .*got -1 and 0.25"),
            (
                (TARGETS, np.random.default_rng(0)),
                {"count": 4, "fg_fraction": 2},
                r"fg_fraction in \[0, 1\], got 4 and 2",
            ),
            ((SHORT, np.random.default_rng(0)), {"count": 4}, r"expected rois \(N, 4\), labels \(N,\)"),
            ((TARGETS, 0), {"count": 4}, "'int' object has no attribute 'permutation'"),
        ),
        empty=[((RoITargets(*(field[:0] for field in TARGETS)), np.random.default_rng(0)), (0, 4))],
    ),
    "target_statistics": Row(
        options={"num_classes": 2},
        errors=(
            (([TARGETS],), {"num_classes": 1}, "labels must be at most 1, got 2"),
            (([SHORT],), {"num_classes": 2}, r"expected rois \(N, 4\), labels \(N,\)"),
        ),
        empty=[(([],), (3, 4))],
    ),
    "TrainingBatches": Row(
        errors=tuple(
            (([RECORD][:count], proposals, stats), PREPARING_RUN | options, text)
            for count, proposals, stats, options, text in (
                (0, {}, STATS, {}, "records must not be empty"),
                (1, {}, STATS, {}, NO_PROPOSALS),
                (1, {"a": BOXES}, STATS, {"sizes": []}, "sizes must not be empty"),
                (1, {"a": BOXES}, STATS, {"steps": 0}, "steps must be at least 1, got 0"),
                (1, {"a": BOXES}, STATS, {"rois_per_image": -1}, "rois_per_image must be at least 1, got -1"),
                *(
                    (1, {"a": BOXES}, STATS, {"scale_jitter": v}, "scale_jitter must be")
                    for v in ((1,), (0, 1), (2, 1))
                ),
                *((1, {"a": BOXES}, STATS, {"color_jitter": v}, "color_jitter must be") for v in (-0.1, 1.1, NAN)),
                (
                    1,
                    {"a": BOXES},
                    STATS,
                    {"color_jitter": 0.1, "maps": int},
                    "scale_jitter and color_jitter need images",
                ),
                (1, {"a": BOXES}, STATS, {"scale_jitter": (1, 2), "maps": int}, "maps are of images as they are"),
                (1, {"a": BOXES}, {"mean": z(2, 4), "std": z(2, 4)}, {}, r"must be \(K \+ 1, 4\) with K of at least 2"),
            )
        )
    ),
    "box_loss": Row(
        (z(3, 4, 4), z(3, 4) + 2, LABELS),
        errors=(
            ((z(3, 4), z(3, 4), LABELS), {}, rf"{LOSS} \(3, 4\), \(3, 4\) and \(3,\)"),
            ((z(3, 4, 4), z(3, 5), LABELS), {}, rf"{LOSS} \(3, 4, 4\), \(3, 5\) and \(3,\)"),
            ((z(3, 4, 4), z(3, 4), LABELS[:1]), {}, rf"{LOSS} \(3, 4, 4\), \(3, 4\) and \(1,\)"),
            ((z(3, 4, 4), z(3, 4), z(3)), {}, "labels must be integers, got float32"),
        ),
        empty=[((z(0, 4, 4), z(0, 4), LABELS[:0]), (0,))],
        # NaN for a label above K, and where a foreground's delta is; 0 for background
        nan=(
            (np.stack([z(3, 4) + value for value in (NAN, NAN, 1, 1)]), z(4, 4), np.array([0, 1, 3, -1])),
            [0, NAN, NAN, 0],
        ),
    ),
    "step_schedule": Row(
        errors=(
            ((-1.0, ()), {}, "learning_rate must be finite and at least 0, got -1.0"),
            ((NAN, ()), {}, "learning_rate must be finite and at least 0, got nan"),
            ((1.0, (3, -5)), {}, "drops must be finite and at least 0, got -5"),
            ((1.0, ()), {"warmup_steps": -1}, "warmup_steps must be finite and at least 0, got -1"),
        )
    ),
    "cosine_schedule": Row(
        errors=(
            ((-1.0,), {"steps": 10}, "learning_rate must be finite and at least 0, got -1.0"),
            ((1.0,), {"steps": 0}, "steps must be over 0, got 0"),
            ((1.0,), {"steps": 10, "warmup_steps": -1}, "warmup_steps must be finite and at least 0, got -1"),
        )
    ),
    "adamw": Row(
        errors=(
            ((0.1,), {"momentum": 1}, "momentum must be below 1, got 1"),
            ((0.1,), {"weight_decay": -1}, "weight_decay must be finite and at least 0, got -1"),
        )
    ),
    "caffe_sgd": Row(
        errors=(
            ((0.1,), {"momentum": 2}, "momentum must be at most 1, got 2"),
            ((0.1,), {"momentum": -1}, "momentum must be finite and at least 0, got -1"),
            ((0.1,), {"weight_decay": -1}, "weight_decay must be finite and at least 0, got -1"),
        )
    ),
    "create_state": Row(
        errors=(((VARIABLES, SGD), {"frozen": ["conv9"]}, "no parameters match 'conv9'; the layers are conv1, fc6"),)
    ),
    "train_step": Row(
        errors=tuple(
            ((None, batch, KEY), {"model": MODEL, "optimizer": SGD} | options, text)
            for batch, options, text in (
                (
                    {"image": BATCH["image"]},
                    {},
                    "the batch lacks image_size, rois, roi_mask, labels, box_targets, index",
                ),
                (BATCH | {"rois": z(5, 4)}, {}, r"the batch's rois must be \(2, 5, 4\), got \(5, 4\)"),
                (BATCH | {"roi_mask": z(2, 1)}, {}, r"the batch's roi_mask must be \(2, 5\), got \(2, 1\)"),
                (BATCH | {"labels": z(2, 6)}, {}, r"the batch's labels must be \(2, 5\), got \(2, 6\)"),
                (BATCH | {"index": z(3)}, {}, r"the batch's index must be \(2,\), got \(3,\)"),
                (BATCH, {"accumulate": 0}, "accumulate must divide a device's 2 images, got 0"),
                (BATCH, {"accumulate": 3}, "accumulate must divide a device's 2 images, got 3"),
            )
        )
    ),
    "make_train_step": Row(errors=(((MODEL, SGD), {"momentum": 0.9}, "unexpected keyword argument 'momentum'"),)),
    "replicate": Row(
        errors=(((object(),), {}, "Cannot interpret value of type <class 'object'> as an abstract array"),)
    ),
    # Evaluation
    "DetectionOptions": Row(
        errors=(
            ((), {"candidates": 0}, "candidates must be 1 to 512, got 0"),
            ((), {"candidates": 513}, "candidates must be 1 to 512, got 513"),
            ((), {"nms_iou": -0.1}, r"nms_iou must be in \[0, 1\], got -0.1"),
            ((), {"nms_iou": NAN}, r"nms_iou must be in \[0, 1\], got nan"),
            ((), {"vote_iou": 1.1}, r"vote_iou must be in \[0, 1\], got 1\.1"),
        )
    ),
    "make_predict_step": Row(
        errors=(((MODEL, DetectionOptions()), {}, "takes 1 positional argument but 2 were given"),)
    ),
    "Detector": Row(
        errors=(((MODEL, {}), {"class_names": ["cat"]}, "class_names must be the network's 2 names, got 1"),)
    ),
    "Detector.__call__": Row(
        errors=(
            *of_rows([((bad, BOXES), text) for bad, text in WRONG_IMAGES], DETECTOR),
            *of_rows([((IMAGE, bad), text) for bad, text in wrong_boxes("rois")[:-1]], DETECTOR),
            ((DETECTOR, "missing.jpg"), {}, "missing.jpg: no such image"),
            ((DETECTOR, IMAGE, BOXES), {"nms_threshold": 2}, r"nms_iou must be in \[0, 1\], got 2"),
            ((DETECTOR, IMAGE, BOXES), {"max_detections": -1}, "max_detections must be at least 0, got -1"),
        )
    ),
    "Detector.from_workdir": Row(errors=((("missing",), {}, "missing"),)),
    "Evaluator": Row(
        errors=(
            ((MODEL, Dataset(("cat",), []), {}), {"sizes": [Sizes()]}, "the dataset has 1 classes, the network 2"),
            ((MODEL, DATASET, {}), {"sizes": [Sizes()]}, NO_PROPOSALS),
        )
    ),
    "Evaluator.__call__": Row(errors=(((EVALUATOR, {}), {"metric": "coco"}, "metric must be one of .*got 'coco'"),)),
}


def test_every_public_function_has_a_row():
    assert {name for name in ROWS if "." not in name} == public_names() - PLAIN
    assert all(row.errors for row in ROWS.values())


def cases(field):
    """(name, row) of rows that have the field."""
    return [pytest.param(name, row, id=name) for name, row in ROWS.items() if getattr(row, field)]


def first(result):
    """The first of several results, as NumPy; the RoIs of a batch."""
    return np.asarray(
        result["rois"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result
    )


def as_jax(args):
    return [jnp.asarray(arg) if isinstance(arg, np.ndarray | int) else arg for arg in args]


def call(name, *args, **options):
    """Call a public function, and run through what a generator yields."""
    result = public(name)(*args, **options)
    return list(result) if inspect.isgenerator(result) else result


# a wrong kind of object may raise what Python or Flax raise
RAISED = (ValueError, TypeError, AttributeError, flax.errors.FlaxError)


def assert_one_line(raised):
    text = str(raised.value)
    assert text.isprintable(), text
    assert len(text) < 200, text


@pytest.mark.parametrize(("name", "row"), cases("errors"))
def test_bad_arguments_raise_one_line(name, row):
    for args, options, text in row.errors:
        with pytest.raises(RAISED, match=text) as raised:
            call(name, *args, **options)
        assert_one_line(raised)


@pytest.mark.parametrize("name", [*ops.__all__, "box_loss"])
def test_bad_arguments_raise_while_tracing_too(name):
    for args, options, text in ROWS[name].errors:
        if all(isinstance(arg, np.ndarray) and arg.dtype.kind not in "iU" for arg in args):
            text = text.replace("complex128", "complex64")  # without x64
            with pytest.raises((ValueError, TypeError), match=text) as raised:
                jax.eval_shape(partial(public(name), **options), *args)
            assert_one_line(raised)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("name", "row"), cases("cast"))
def test_narrow_types_are_computed_in_float32(name, row, dtype):
    function = partial(public(name), **row.options)
    expected = function(*row.good)
    args = [np.asarray(arg).astype(dtype) if i in row.cast else arg for i, arg in enumerate(row.good)]
    for arrays in (args, as_jax(args)):
        for got, want in zip(jax.tree.leaves(function(*arrays)), jax.tree.leaves(expected), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["area", "iou", "encode", "decode", "clip", "flip", "scale", "rois_from_cells"])
def test_float64_and_jax_arrays_stay_what_they_are(name):
    function, (boxes, *others) = public(name), ROWS[name].good
    wide = function(boxes.astype(np.float64), *others)
    assert wide.dtype == np.float64
    assert isinstance(wide, np.ndarray)
    assert isinstance(function(jnp.asarray(boxes), *others), jax.Array)
    assert isinstance(function(boxes, *map(jnp.asarray, others)), jax.Array if others else np.ndarray)


@pytest.mark.parametrize(("name", "row"), cases("empty"))
def test_empty_arrays(name, row):
    for args, shape in row.empty:
        for arrays in (args, as_jax(args)):
            assert first(public(name)(*arrays, **row.options)).shape == shape


@pytest.mark.parametrize(("name", "row"), cases("nan"))
def test_nan_has_a_documented_result(name, row):
    args, expected = row.nan
    for arrays in (args, as_jax(args)):
        np.testing.assert_allclose(first(public(name)(*arrays, **row.options)), expected, atol=1e-5)


def test_nms_of_nothing_and_of_nan_has_no_valid_places():
    nan_scores = ops.nms(z(3, 4), np.full(3, NAN), **NMS)
    for indices, valid in (ops.nms(z(0, 4), z(0), **NMS), nan_scores, jax.jit(partial(ops.nms, **NMS))(z(0, 4), z(0))):
        assert indices.tolist() == [0] * 4
        assert valid.tolist() == [False] * 4
        assert indices.dtype == np.int32


# have the arguments of torchvision, in its order
AS_IN_TORCHVISION = {name for name in ops.__all__ if getattr(ops, name).__module__ == "frcnn_jax.ops._box_ops"}


@pytest.mark.parametrize(
    "name", [name for name in ROWS if not dataclasses.is_dataclass(public(name)) and name not in AS_IN_TORCHVISION]
)
def test_arrays_and_subjects_are_positional_and_all_else_is_keyword_only(name):
    for parameter in inspect.signature(public(name)).parameters.values():
        if parameter.kind == parameter.KEYWORD_ONLY:
            assert parameter.name not in ARRAYS or (name, parameter.name) == ("Detector", "proposals"), parameter
        else:
            assert parameter.kind == parameter.POSITIONAL_OR_KEYWORD, parameter
            assert parameter.name in ARRAYS | SUBJECTS, parameter


def test_dropout_without_a_key_is_flax_s_own_error():
    model, inputs = TINY._replace(dropout=0.5).build(2), (BATCH["image"], BATCH["image_size"], BATCH["rois"])
    variables = frcnn_jax.init_variables(model, KEY)
    with pytest.raises(flax.errors.InvalidRngError, match='head needs PRNG for "dropout"'):
        model.apply(variables, *inputs, train=True)


def test_a_batch_that_the_devices_cannot_share():
    step = frcnn_jax.make_train_step(MODEL, SGD, devices=jax.local_devices() * 3)
    with pytest.raises(ValueError, match="a batch must be a multiple of 3 images"):
        step(None, BATCH, KEY)


def test_boxes_may_be_lists():
    assert ops.iou([[0, 0, 9, 9]], [[0, 0, 9, 9], [20, 0, 29, 9]]).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="boxes must be an array of numbers, got list"):
        ops.iou([[0, 0, 9, 9], [1]], [[0, 0, 9, 9]])


def test_star_import_and_dir_give_the_public_names():
    names = {}
    exec("from frcnn_jax import *", names)
    assert set(frcnn_jax.__all__) <= names.keys() & set(dir(frcnn_jax))


def test_ops_are_flat():
    assert all(getattr(frcnn_jax, name) is getattr(ops, name) for name in set(frcnn_jax.__all__) & set(ops.__all__))
    assert "ops" in frcnn_jax.__all__
    assert {"iou", "nms", "roi_pool", "roi_align", "rois_from_cells"} <= set(ops.__all__)
