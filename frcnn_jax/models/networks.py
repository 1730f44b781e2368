"""The table of networks: S, M and L of the paper, S in AlexNet's order, and a tiny one.

To add a network, add a row to `NETWORKS`; tests/models/test_fast_rcnn.py then checks that padding changes none of its
results. Another kind of backbone or head needs no row: `FastRCNN` takes any.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import Layer, LayerBackbone
from frcnn_jax.models.fast_rcnn import FastRCNN, RoIPool
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.layers import Conv, Norm, Pool
from frcnn_jax.models.pixels import CAFFE_MEANS, PixelNorm


class Network(NamedTuple):
    """A row of `NETWORKS`, from which `build` makes a `FastRCNN`.

    Attributes:
        layers: Layers of the backbone.
        frozen: Names of layers that training does not change.
        roi_size: Rows and columns of bins.
        fc: Widths of fc6 and fc7.
        spatial_scale: Feature-map cells per pixel.
        pixels: How images are normalised.
        fc_std: Standard deviation of the initial fc6 and fc7 kernels; None for He initialisation.
        dropout: Fraction of activations dropped after fc6 and fc7 in training.
    """

    layers: tuple[Layer, ...]
    frozen: tuple[str, ...]
    roi_size: tuple[int, int]
    fc: tuple[int, int]
    spatial_scale: float = 1 / 16
    pixels: PixelNorm = PixelNorm()
    fc_std: float | None = 0.005
    dropout: float = 0.5

    def build(
        self,
        num_classes: int,
        *,
        dtype: Any = jnp.float32,
        fc_ranks: Sequence[int] = (),
        classifier: str = "softmax",
    ) -> FastRCNN:
        """Return the network for K classes.

        Args:
            num_classes: K.
            dtype: Type of the computation; parameters stay float32.
            fc_ranks: Ranks of fc6 and fc7 factored by truncated SVD, 0 for a full layer; both are full if empty.
            classifier: "softmax" or "svm"; see `FastRCNN`.

        Raises:
            InputError: `num_classes` is below 1, `fc_ranks` are not two, or the classifier is unknown.
        """
        return FastRCNN(
            LayerBackbone(self.layers, self.spatial_scale, dtype),
            FullyConnectedHead(num_classes, self.fc, tuple(fc_ranks) or (0, 0), self.fc_std, self.dropout, dtype),
            RoIPool(self.roi_size, self.spatial_scale),
            self.pixels,
            classifier,
        )

    def trained_from(self, name: str) -> "Network":
        """Return this network with exactly the layers before `name` frozen.

        "fc6" freezes all convolutions (section 4.5), "bbox_pred" all but the box layer (stage-wise training, section
        5.1).

        Raises:
            InputError: There is no such layer.
        """
        convolutions = (layer.name for layer in self.layers if isinstance(layer, Conv))
        names = (*convolutions, "fc6", "fc7", "cls_score", "bbox_pred")
        if name not in names:
            raise InputError(f"train_from must be one of {', '.join(names)}, got {name!r}")
        return self._replace(frozen=names[: names.index(name)])


def _blocks(*blocks: tuple[int, int]) -> tuple[Layer, ...]:
    """Return VGG's layers: blocks of (depth, features) 3x3 convolutions, with a 2/2 pool between blocks."""
    layers: list[Layer] = []
    for i, (depth, features) in enumerate(blocks, 1):
        layers += [Pool(2, 2)] if i > 1 else []
        layers += [Conv(f"conv{i}_{j}", features, 3, padding=1) for j in range(1, depth + 1)]
    return tuple(layers)


def _alexnet(*, pool_first: bool) -> tuple[Layer, ...]:
    between: tuple[Layer, ...] = (Pool(3, 2, 1), Norm(alpha=1e-4, k=1.0))
    between = between if pool_first else between[::-1]
    return (
        Conv("conv1", 96, 11, stride=4, padding=5),
        *between,
        Conv("conv2", 256, 5, padding=2, groups=2),
        *between,
        Conv("conv3", 384, 3, padding=1),
        Conv("conv4", 384, 3, padding=1, groups=2),
        Conv("conv5", 256, 3, padding=1, groups=2),
    )


NETWORKS = {
    # S: CaffeNet
    "caffenet": Network(_alexnet(pool_first=True), ("conv1",), (6, 6), (4096, 4096)),
    # S in AlexNet's order: normalise, then pool
    "alexnet": Network(_alexnet(pool_first=False), ("conv1",), (6, 6), (4096, 4096)),
    # M: VGG_CNN_M_1024
    "vgg_cnn_m_1024": Network(
        (
            Conv("conv1", 96, 7, stride=2),
            Norm(alpha=5e-4, k=2.0),
            Pool(3, 2),
            Conv("conv2", 256, 5, stride=2, padding=1),
            Norm(alpha=5e-4, k=2.0),
            Pool(3, 2),
            *(Conv(f"conv{i}", 512, 3, padding=1) for i in (3, 4, 5)),
        ),
        ("conv1",),
        (6, 6),
        (4096, 1024),
    ),
    # L: VGG16
    "vgg16": Network(
        _blocks((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
        (7, 7),
        (4096, 4096),
    ),
    # for the synthetic data set: trains from random weights in minutes on a CPU
    "tiny": Network(
        _blocks((1, 16), (2, 32), (2, 64)),
        (),
        (6, 6),
        (128, 128),
        spatial_scale=1 / 4,
        pixels=PixelNorm("BGR", tuple(CAFFE_MEANS.tolist()), (64.0, 64.0, 64.0)),
        fc_std=None,
        dropout=0.0,
    ),
}


def get_network(name: str) -> Network:
    """Return the row `name` of `NETWORKS`.

    Raises:
        InputError: There is no such row; the message lists the choices.
    """
    if name not in NETWORKS:
        raise InputError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]
