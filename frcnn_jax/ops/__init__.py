"""Operations on boxes and regions of interest, as torchvision.ops has them. They depend on jax and numpy alone.

Boxes are continuous, as in torchvision, except where a function says inclusive: those are the detector's.
"""

from frcnn_jax.ops._box_ops import (
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    complete_box_iou_loss,
    distance_box_iou,
    distance_box_iou_loss,
    generalized_box_iou,
    generalized_box_iou_loss,
    masks_to_boxes,
    remove_small_boxes,
    sigmoid_focal_loss,
)
from frcnn_jax.ops._nms import batched_nms, nms
from frcnn_jax.ops._roi_align import multiscale_roi_align, roi_align, roi_align_flat
from frcnn_jax.ops._roi_pool import roi_pool, roi_pool_flat, rois_from_cells, rois_from_torchvision
from frcnn_jax.ops.boxes import area, clip, decode, encode, flip, iou, scale

__all__ = [
    "area",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip",
    "clip_boxes_to_image",
    "complete_box_iou",
    "complete_box_iou_loss",
    "decode",
    "distance_box_iou",
    "distance_box_iou_loss",
    "encode",
    "flip",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "iou",
    "masks_to_boxes",
    "multiscale_roi_align",
    "nms",
    "remove_small_boxes",
    "roi_align",
    "roi_align_flat",
    "roi_pool",
    "roi_pool_flat",
    "rois_from_cells",
    "rois_from_torchvision",
    "scale",
    "sigmoid_focal_loss",
]
