"""Fast R-CNN (Girshick 2015) as a functional JAX library.

The names here are the public API. Importing this loads no TensorFlow, OpenCV, grain or matplotlib.
"""

from typing import TYPE_CHECKING, Any

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import NETWORKS, FastRCNN, Network, get_network
from frcnn_jax.ops._nms import nms
from frcnn_jax.ops._roi_align import roi_align, roi_align_flat
from frcnn_jax.ops._roi_pool import roi_pool, roi_pool_flat, rois_from_cells, rois_from_torchvision
from frcnn_jax.ops.boxes import decode, encode, iou
from frcnn_jax.proposals.search import selective_search

if TYPE_CHECKING:
    from frcnn_jax.detect import Detections, Detector

__all__ = [
    "NETWORKS",
    "Detections",
    "Detector",
    "FastRCNN",
    "InputError",
    "Network",
    "decode",
    "encode",
    "get_network",
    "iou",
    "nms",
    "roi_align",
    "roi_align_flat",
    "roi_pool",
    "roi_pool_flat",
    "rois_from_cells",
    "rois_from_torchvision",
    "selective_search",
]


def __getattr__(name: str) -> Any:
    if name in ("Detections", "Detector"):  # late: `python -m frcnn_jax.detect` runs this module itself
        from frcnn_jax import detect

        return getattr(detect, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
