"""The networks: a table of layers, and the modules that read it.

Images are `(B, H, W, 3)` float32, BGR, means subtracted, in a canvas that is zero outside each image; `image_size`
`(B, 2)` int32 holds the true rows and columns. After every convolution and pool whatever lies beyond that layer's own
output size for the image is zeroed, so the canvas changes no result.

Shape letters: B images, R RoIs, K foreground classes, C channels.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.layers import Conv, Norm, Pool, convolve, local_response_norm, max_pool, output_size
from frcnn_jax.ops._roi_pool import roi_pool


class Network(NamedTuple):
    """One row of the table."""

    layers: tuple[Conv | Pool | Norm, ...]
    frozen: tuple[str, ...]  # layers that training leaves as they are
    roi_size: tuple[int, int]
    fc: tuple[int, int]  # fc6, fc7
    spatial_scale: float = 1 / 16
    input_scale: float = 1.0  # of the pixels, for networks that start at random
    fc_std: float | None = 0.005  # of fc6 and fc7 where they start at random, with bias 0.1; He's where None
    dropout: float = 0.5  # after fc6 and fc7
    fc_ranks: tuple[int, int] = (0, 0)  # of fc6 and fc7 where they are two layers each (section 3.1); 0: one
    classifier: str = "softmax"  # "svm": scores are the margins that cls_score gives (section 5.4)

    @property
    def convolutions(self) -> list[str]:
        """Names, in order."""
        return [layer.name for layer in self.layers if isinstance(layer, Conv)]

    def trained_from(self, name: str) -> "Network":
        """The row with all layers before `name` frozen and no others: "fc6" leaves all convolutions as they are
        (section 4.5), "bbox_pred" trains nothing but the box head (stage-wise training, section 5.1).

        Raises:
            InputError: no such layer.
        """
        names = [*self.convolutions, "fc6", "fc7", "cls_score", "bbox_pred"]
        if name not in names:
            raise InputError(f"train_from must be one of {', '.join(names)}, got {name!r}")
        return self._replace(frozen=tuple(names[: names.index(name)]))


def _blocks(*blocks: tuple[int, int]) -> tuple[Conv | Pool | Norm, ...]:
    """VGG: blocks of (convolutions, features) of 3x3, a 2/2 pool between blocks."""
    layers: list[Conv | Pool | Norm] = []
    for i, (depth, features) in enumerate(blocks, 1):
        layers += [Pool(2, 2)] if i > 1 else []
        layers += [Conv(f"conv{i}_{j}", features, 3, padding=1) for j in range(1, depth + 1)]
    return tuple(layers)


def _alexnet(*, pool_first: bool) -> tuple[Conv | Pool | Norm, ...]:
    between: tuple[Conv | Pool | Norm, ...] = (Pool(3, 2, 1), Norm(alpha=1e-4, k=1.0))
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
    # for the synthetic set, on a CPU in minutes, from random weights
    "tiny": Network(
        _blocks((1, 16), (2, 32), (2, 64)),
        (),
        (6, 6),
        (128, 128),
        spatial_scale=1 / 4,
        input_scale=1 / 64,
        fc_std=None,
        dropout=0.0,
    ),
}


def get_network(name: str) -> Network:
    """The table's row `name`; InputError with the choices for an unknown one."""
    if name not in NETWORKS:
        raise InputError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name]


class Convolution(nn.Module):
    """A row's convolution, its bias and its ReLU."""

    layer: Conv

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        shape = (layer.kernel, layer.kernel, x.shape[-1] // layer.groups, layer.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (layer.features,))
        return nn.relu(convolve(x, kernel.astype(x.dtype), layer) + bias.astype(x.dtype))


class Backbone(nn.Module):
    """The convolutions up to the RoI layer, run once an image (section 2.1), computed in `dtype`."""

    network: Network
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, image_size):
        """`(B, H, W, 3)` images and `(B, 2)` sizes -> `(B, H', W', C)`, zero beyond each image's own map."""
        x, size = (images * self.network.input_scale).astype(self.dtype), image_size
        for layer in self.network.layers:
            if isinstance(layer, Norm):  # squares and powers, in float32
                x = local_response_norm(x.astype(jnp.float32), layer).astype(self.dtype)
                continue
            x = Convolution(layer, name=layer.name)(x) if isinstance(layer, Conv) else max_pool(x, layer)
            size = output_size(layer, size)
            x = jnp.where(_inside(size, x.shape[1:3]), x, 0)
        return x


def _inside(size, canvas):
    """`(B, H, W, 1)` bool: the cells of the canvas within each image's `(B, 2)` size."""
    rows = jnp.arange(canvas[0]) < size[:, :1]
    columns = jnp.arange(canvas[1]) < size[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """`(B, ...)` with a fraction `rate` of its elements zeroed and the rest scaled up; one key an image, so that the
    mask does not depend on how images are spread over devices. Without keys, x."""
    if keys is None or not rate:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


class RoIHead(nn.Module):
    """fc6, fc7 and the twin output layers (section 2.1)."""

    network: Network
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled, dropout_keys=None):
        """`(B, R, rows, columns, C)` and `(B,)` keys, or None for no dropout -> logits `(B, R, K + 1)` and normalised
        deltas `(B, R, K + 1, 4)`, float32."""
        x = pooled.reshape(*pooled.shape[:2], math.prod(pooled.shape[2:]))
        for i, (features, rank) in enumerate(zip(self.network.fc, self.network.fc_ranks, strict=True)):
            if rank:
                x = nn.Dense(rank, use_bias=False, dtype=self.dtype, name=f"fc{6 + i}_reduce")(x)
            x = nn.relu(self._dense(features, self.network.fc_std, 0.1, f"fc{6 + i}")(x))
            keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, i)
            x = dropout(x, keys, self.network.dropout)
        outputs = self.num_classes + 1
        logits = self._dense(outputs, 0.01, 0.0, "cls_score")(x)
        deltas = self._dense(4 * outputs, 0.001, 0.0, "bbox_pred")(x)
        deltas = deltas.reshape(*deltas.shape[:2], outputs, 4)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32)

    def _dense(self, features, std, bias, name):
        return nn.Dense(
            features,
            kernel_init=nn.initializers.he_normal() if std is None else nn.initializers.normal(std),
            bias_init=nn.initializers.constant(bias),
            dtype=self.dtype,
            name=name,
        )


class FastRCNN(nn.Module):
    """The whole network, computed in `dtype` with float32 parameters. Its collection "box_stats" holds the mean and
    standard deviation `(K + 1, 4)` of each class's regression targets, by which the deltas are normalised."""

    network: Network
    num_classes: int
    dtype: Any = jnp.float32

    def setup(self):
        self.backbone = Backbone(self.network, self.dtype)
        self.head = RoIHead(self.network, self.num_classes, self.dtype)
        shape = (self.num_classes + 1, 4)
        self.box_mean = self.variable("box_stats", "mean", jnp.zeros, shape)
        self.box_std = self.variable("box_stats", "std", jnp.ones, shape)

    def __call__(self, images, image_size, rois, dropout_keys=None):
        """`(B, H, W, 3)` images, `(B, 2)` sizes, `(B, R, 4)` RoIs in canvas pixels -> logits `(B, R, K + 1)` and
        normalised deltas `(B, R, K + 1, 4)`."""
        return self.head(self._pool(images, image_size, rois), dropout_keys)

    def _pool(self, images, image_size, rois):
        features = self.backbone(images, image_size)
        return roi_pool(features, rois, output_size=self.network.roi_size, spatial_scale=self.network.spatial_scale)

    def predict(self, images, image_size, rois):
        """-> scores `(B, R, K + 1)`, probabilities or an SVM's margins, and deltas `(B, R, K + 1, 4)` as
        `boxes.decode` takes them."""
        return self._outputs(self._pool(images, image_size, rois))

    def predict_pyramid(self, images, image_size, rois, level):
        """As `predict`, for images at several scales: `images` and `image_size` are sequences, one a scale, and each
        RoI, in the pixels of its own scale, is pooled from the map of its `level` `(B, R)`."""
        pooled = [self._pool(*scale, rois) for scale in zip(images, image_size, strict=True)]
        own = level[..., None, None, None]
        return self._outputs(sum(jnp.where(own == i, of_scale, 0) for i, of_scale in enumerate(pooled)))

    def _outputs(self, pooled):
        logits, deltas = self.head(pooled)
        scores = logits if self.network.classifier == "svm" else jax.nn.softmax(logits)
        return scores, deltas * self.box_std.value + self.box_mean.value
