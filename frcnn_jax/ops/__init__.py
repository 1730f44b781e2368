"""Operations on boxes and regions of interest. They depend on jax and numpy alone."""

from frcnn_jax.ops._nms import nms
from frcnn_jax.ops._roi_align import roi_align, roi_align_flat
from frcnn_jax.ops._roi_pool import roi_pool, roi_pool_flat, rois_from_cells, rois_from_torchvision
from frcnn_jax.ops.boxes import area, clip, decode, encode, flip, iou, scale

__all__ = [
    "area",
    "clip",
    "decode",
    "encode",
    "flip",
    "iou",
    "nms",
    "roi_align",
    "roi_align_flat",
    "roi_pool",
    "roi_pool_flat",
    "rois_from_cells",
    "rois_from_torchvision",
    "scale",
]
