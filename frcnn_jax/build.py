"""What a config describes, built: the network, how images are resized and tested, the splits and their proposals.

Command lines call these; everything below takes plain arguments.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from frcnn_jax.config import Config
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.readers import read_split
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import TestOptions
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.networks import Network, get_network


def build_network(config: Config) -> Network:
    """Return the row of the table of networks, with the layers frozen that the config names."""
    network = get_network(config["network"])
    return network.trained_from(config["train_from"]) if config["train_from"] else network


def build_model(config: Config, num_classes: int) -> FastRCNN:
    """Return the network for K classes."""
    return build_network(config).build(
        num_classes,
        dtype=jnp.dtype(config["compute_type"]),
        fc_ranks=config["fc_ranks"],
        classifier=config["classifier"],
    )


def image_sizes(config: Config) -> tuple[Sizes, ...]:
    """Return how images are resized: one size, or several for an image pyramid."""
    return tuple(Sizes(shorter, config["max_size"]) for shorter in config["scales"] or (config["min_size"],))


def test_options(config: Config) -> TestOptions:
    """Return how scores and deltas become detections."""
    return TestOptions(config["nms_iou"], config["candidates_per_class"], config["test_box_regression"])
