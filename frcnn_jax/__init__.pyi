from . import ops
from .data.batches import Sizes, TestBatches, prefetch, prepare_image, prepare_test
from .data.coco import read_coco
from .data.layouts.auto import read_dataset
from .data.readers import read_split
from .data.records import Dataset, ImageFile, Record, load_image, without_difficult
from .data.synthetic import read_synthetic
from .data.tfds import read_tfds
from .data.voc import VOC_CLASSES, read_voc, read_xml_folder
from .detector import Detector
from .errors import InputError
from .evaluation.evaluator import Evaluation, Evaluator
from .evaluation.predict import DetectionOptions, Detections, make_predict_step
from .evaluation.regions import RegionScores
from .models.backbones import FunctionBackbone, LayerBackbone
from .models.efficientnet import EfficientNetLite, LiteNeck
from .models.fast_rcnn import FastRCNN, init_variables, variable_shapes
from .models.heads import FullyConnectedHead
from .models.networks import NETWORKS, FunctionNetwork, Network, get_network
from .models.pixels import PixelNorm
from .models.pools import RoIAlign, RoIPool
from .models.resnet import FPN, ResNet, ResNetHead
from .models.weight_files import read_weights, write_weights
from .models.weights import Weights, fit_weights, load_pretrained
from .ops._nms import nms
from .ops._roi_align import roi_align, roi_align_flat
from .ops._roi_pool import roi_pool, roi_pool_flat, rois_from_cells, rois_from_torchvision
from .ops.boxes import decode, encode, iou
from .proposals.cache import search_images
from .proposals.edge_boxes import EdgeBoxes
from .proposals.files import read_proposals
from .proposals.load import load_proposals
from .proposals.search import SelectiveSearch, selective_search
from .proposals.shards import write_proposals
from .training.batches import TrainingBatches
from .training.losses import box_loss
from .training.sampling import assign, sample, target_statistics
from .training.solver import adamw, caffe_sgd, cosine_schedule, step_schedule
from .training.step import TrainState, create_state, make_train_step, replicate, train_step

__version__: str

__all__ = [
    "FPN",
    "NETWORKS",
    "VOC_CLASSES",
    "Dataset",
    "DetectionOptions",
    "Detections",
    "Detector",
    "EdgeBoxes",
    "EfficientNetLite",
    "Evaluation",
    "Evaluator",
    "FastRCNN",
    "FullyConnectedHead",
    "FunctionBackbone",
    "FunctionNetwork",
    "ImageFile",
    "InputError",
    "LayerBackbone",
    "LiteNeck",
    "Network",
    "PixelNorm",
    "Record",
    "RegionScores",
    "ResNet",
    "ResNetHead",
    "RoIAlign",
    "RoIPool",
    "SelectiveSearch",
    "Sizes",
    "TestBatches",
    "TrainState",
    "TrainingBatches",
    "Weights",
    "adamw",
    "assign",
    "box_loss",
    "caffe_sgd",
    "cosine_schedule",
    "create_state",
    "decode",
    "encode",
    "fit_weights",
    "get_network",
    "init_variables",
    "iou",
    "load_image",
    "load_pretrained",
    "load_proposals",
    "make_predict_step",
    "make_train_step",
    "nms",
    "ops",
    "prefetch",
    "prepare_image",
    "prepare_test",
    "read_coco",
    "read_dataset",
    "read_proposals",
    "read_split",
    "read_synthetic",
    "read_tfds",
    "read_voc",
    "read_weights",
    "read_xml_folder",
    "replicate",
    "roi_align",
    "roi_align_flat",
    "roi_pool",
    "roi_pool_flat",
    "rois_from_cells",
    "rois_from_torchvision",
    "sample",
    "search_images",
    "selective_search",
    "step_schedule",
    "target_statistics",
    "train_step",
    "variable_shapes",
    "without_difficult",
    "write_proposals",
    "write_weights",
]
