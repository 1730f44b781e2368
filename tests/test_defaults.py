"""The default of every number and option of the public functions: the paper's, or what docs and callers rely on."""

import importlib
import inspect
import pkgutil

import pytest

from frcnn_jax import detector
from frcnn_jax.data import batches, coco, listing, readers, records, synthetic, voc
from frcnn_jax.data.layouts import auto
from frcnn_jax.data.layouts import common as layouts_common
from frcnn_jax.data.layouts import listed as layouts_listed
from frcnn_jax.evaluation import (
    calibration,
    coco_metrics,
    dataset_check,
    dataset_report,
    evaluator,
    metrics,
    pictures,
    predict,
    regions,
    report,
    scores,
)
from frcnn_jax.models import backbones, efficientnet, fast_rcnn, heads, layers, networks, pixels, pools, resnet, weights
from frcnn_jax.ops import _box_ops, _roi_align, _roi_pool, boxes
from frcnn_jax.proposals import cache, cluster, edge_boxes, entries, files, load, search
from frcnn_jax.training import batches as training_batches
from frcnn_jax.training import checkpoint, loop, sampling, solver, step, svm

POOL = {"output_size": (7, 7), "spatial_scale": 1 / 16}
ALIGN = {**POOL, "sampling_ratio": 2, "aligned": True, "differentiable_boxes": False}
LOSS = {"reduction": "none", "eps": 1e-7}
SAMPLE = {"fg_fraction": 0.25, "fg_iou": 0.5, "bg_iou": (0.1, 0.5)}
SEARCH = {"mode": "standard", "max_boxes": 2000}
DEFAULTS = {
    _box_ops.distance_box_iou: {"eps": 1e-7},
    _box_ops.complete_box_iou: {"eps": 1e-7},
    _box_ops.generalized_box_iou_loss: LOSS,
    _box_ops.distance_box_iou_loss: LOSS,
    _box_ops.complete_box_iou_loss: LOSS,
    _box_ops.sigmoid_focal_loss: {"alpha": 0.25, "gamma": 2, "reduction": "none"},
    _roi_align.roi_align: ALIGN,
    _roi_align.roi_align_flat: ALIGN,
    _roi_align.multiscale_roi_align: {"output_size": 7, "sampling_ratio": 2, "aligned": False},
    _roi_pool.roi_pool: {**POOL, "method": "auto"},
    _roi_pool.roi_pool_flat: {**POOL, "method": "auto"},
    boxes.unique_rois: {"level": 0},
    boxes.check_boxes: {"rank": 1},
    backbones.LayerBackbone: {"spatial_scale": 1 / 16},
    efficientnet.EfficientNetLite: {"stage": 4},
    fast_rcnn.example_inputs: {"rows": 64, "columns": 64},
    pools.RoIPool: POOL,
    pools.RoIAlign: {**POOL, "sampling_ratio": 2, "shift": 0.0},
    resnet.ResNet: {"depth": 50, "stages": 3, "pyramid": False, "stride_in_1x1": False},
    resnet.Stage: {"stride_in_1x1": False},
    resnet.FPN: {"depth": 50, "features": 256, "stride_in_1x1": False},
    resnet.ResNetHead: {"depth": 50, "stride_in_1x1": False},
    resnet.ResNetHead.__call__: {"train": False},
    backbones.Convolution: {"scale": 2.0},
    networks.FunctionNetwork: {"frozen": (), "name": ""},
    heads.twin_outputs: {"class_agnostic": False},
    fast_rcnn.FastRCNN: {"pixels": pixels.PixelNorm(), "classifier": "softmax"},
    fast_rcnn.FastRCNN.__call__: {"train": False},
    heads.FullyConnectedHead: {"features": (4096, 4096), "ranks": (), "std": 0.005, "dropout": 0.5}
    | {"reduce": 0, "class_agnostic": False},
    heads.FullyConnectedHead.__call__: {"train": False},
    layers.Conv: {"stride": 1, "padding": 0, "groups": 1, "relu": True},
    layers.Pool: {"padding": 0, "round_up": True},
    layers.Norm: {"size": 5, "beta": 0.75},
    networks.Network: {"spatial_scale": 1 / 16, "pixels": pixels.PixelNorm(), "fc_std": 0.005, "dropout": 0.5},
    pixels.PixelNorm: {"order": "BGR", "mean": (102.9801, 115.9465, 122.7717), "std": (1.0, 1.0, 1.0)},
    weights.load_pretrained: {"keep_classifier": False},
    batches.Sizes: {"shorter": 600, "longer": 1000, "exact": False, "canvases": ()},
    batches.prefetch: {"start": 0, "stride": 1, "threads": 2, "workers": 0},
    records.load_image: {"exif": "apply"},
    coco_metrics.coco_metrics: {"truth_name": "", "results_name": ""},
    records.read_image_size: {"exif": "apply"},
    records.ImageFile: {"exif": "apply"},
    coco.read_coco: {"class_names": (), "exif": "apply"},
    readers.Format: {"needs": ""},
    readers.read_split: {"year": 2007, "images": 600, "class_names": (), "include_difficult": True}
    | {"exif": "apply", "seed": 0},
    readers.Source: {"seed": 0},
    auto.read_dataset: {"layout": "auto", "class_names": (), "exif": "apply", "seed": 0},
    auto.open_dataset: {"layout": "auto", "class_names": (), "exif": "apply", "seed": 0},
    layouts_common.Found: {"has_crowds": False},
    layouts_listed.find_listed: {"by_name": True},
    layouts_common.Shape: {"difficult": False},
    listing.split_of: {"by_name": False},
    records.Dataset: {"description": "", "has_crowds": False},
    synthetic.read_synthetic: {"seed": 0},
    voc.read_voc: {"year": 2007, "class_names": voc.VOC_CLASSES, "exif": "apply"},
    voc.voc_box: {"first": 1},
    voc.read_xml_folder: {"class_names": (), "exif": "apply"},
    cluster.dask_executor: {"timeout": 30},
    entries.Entry: {"file_name": ""},
    entries.Content: {"needed": ()},
    entries.best_first: {"file_name": ""},
    entries.split_scores: {"file_name": ""},
    files.Proposals: {"kinds": ()},
    load.load_proposals: {"source": "standard", "max_boxes": 2000},
    load.make_search: {"max_boxes": 2000},
    search.Mode: {"colors": (), "thresholds": (), "similarities": (), "sigma": 0.8},
    search.selective_search: SEARCH,
    search.SelectiveSearch: SEARCH,
    edge_boxes.EdgeBoxes: {"max_boxes": 2000},
    cache.search_images: {"search": search.SelectiveSearch("standard", None, 2000)},
    training_batches.TrainingBatches: {
        "images_per_batch": 2, "rois_per_image": 64, **SAMPLE, "flip": True, "seed": 0, "process": (0, 1),
        "scale_jitter": (), "color_jitter": 0.0,
    },
    checkpoint.Checkpoints: {"keep": 2, "keep_best": 0},
    loop.Schedule: {"log_every": 20, "checkpoint_every": 500, "eval_every": 0, "profile": (), "stop_after": 0},
    loop.train: {"data_workers": 0},
    sampling.sample: SAMPLE,
    sampling.target_statistics: {"fg_iou": 0.5, "flip": True},
    solver.step_schedule: {"factor": 0.1, "warmup_steps": 0},
    solver.cosine_schedule: {"warmup_steps": 0},
    solver.adamw: {"momentum": 0.9, "weight_decay": 0.01, "decay_biases": False},
    solver.caffe_sgd: {"momentum": 0.9, "weight_decay": 0.0005, "decay_biases": False},
    step.create_state: {"frozen": (), "step": 0},
    step.train_step: {"box_loss_weight": 1.0, "accumulate": 1, "axis_name": "device"},
    step.make_train_step: {"box_loss_weight": 1.0, "accumulate": 1},
    svm.HardNegativeSVMs: {"seed": 0},
    svm.train_svms: {"seed": 0},
    detector.Detector: {"sizes": (batches.Sizes(),), "options": predict.DetectionOptions(), "proposals": "standard"}
    | {"max_proposals": 2000},
    detector.Detector.__call__: {"score_threshold": 0.05, "max_detections": 100},
    evaluator.Evaluator: {"options": predict.DetectionOptions()},
    evaluator.Evaluator.__call__: {"metric": "voc07_11point", "iou_threshold": 0.5},
    evaluator.save_pictures: {"pictures": 12, "score_threshold": 0.5},
    metrics.match: {"iou_threshold": 0.5},
    metrics.precision_recall: {"iou_threshold": 0.5},
    metrics.average_precision: {"metric": "voc07_11point"},
    pictures.draw_boxes: {"min_side": 400},
    pictures.crop_boxes: {"width": 320, "height": 240},
    predict.DetectionOptions: {"nms_iou": 0.3, "candidates": 100, "box_regression": True, "vote_iou": 0.0},
    predict.decode_and_suppress: {"options": predict.DetectionOptions()},
    predict.make_predict_step: {"options": predict.DetectionOptions()},
    predict.image_detections: {"max_detections": 100},
    calibration.scored_hits: {"score_threshold": 0.05},
    calibration.reliability: {"bins": 15},
    regions.classify_step: {"box_regression": True},
    regions.embed_step: {"layer": "fc7"},
    regions.check_regions: {"invalid": "raise"},
    regions.RegionBatches: {"invalid": "raise"},
    dataset_check.Remark: {"examples": ()},
    dataset_report.write_dataset_report: {"remarks": (), "problems": (), "pictures": 4},
    report.write_report: {"pictures": 4},
    scores.score: {"metric": "voc07_11point", "iou_threshold": 0.5},
}  # fmt: skip


PLAIN = (int, float, bool, str, tuple, pixels.PixelNorm, predict.DetectionOptions, search.SelectiveSearch)


def defaults(function):
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a type or an exception
        return {}
    return {name: parameter.default for name, parameter in parameters.items() if type(parameter.default) in PLAIN}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__qualname__)
def test_defaults(function):
    assert defaults(function) == DEFAULTS[function]


def test_no_function_is_left_out():
    """But for those with a leading underscore, methods, and helpers of the modules."""
    helpers = {"check_batched", "partitioned", "ReportTo"}
    found = set()
    for package in ("ops", "models", "data", "data.layouts", "proposals", "training", "evaluation"):
        for info in pkgutil.iter_modules(importlib.import_module(f"frcnn_jax.{package}").__path__):
            module = importlib.import_module(f"frcnn_jax.{package}.{info.name}")
            for name, value in vars(module).items():
                own = callable(value) and getattr(value, "__module__", "") == module.__name__
                if own and not name.startswith("_") and name not in helpers and defaults(value):
                    found.add(value)
    assert found <= set(DEFAULTS)
