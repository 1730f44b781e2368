"""Fast R-CNN (Girshick 2015) as a functional JAX library.

The names here are the public API. Importing this loads no TensorFlow, OpenCV, grain or matplotlib.
"""

from frcnn_jax.boxes import decode, encode, iou, nms
from frcnn_jax.detect import Detections, Detector
from frcnn_jax.errors import InputError
from frcnn_jax.losses import log_loss, smooth_l1
from frcnn_jax.models import NETWORKS, FastRCNN, Network, get_network
from frcnn_jax.proposals import selective_search
from frcnn_jax.roi_pool import roi_pool, roi_pool_flat

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
    "log_loss",
    "nms",
    "roi_pool",
    "roi_pool_flat",
    "selective_search",
    "smooth_l1",
]
