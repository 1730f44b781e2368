"""Fast R-CNN: a backbone run once per image, a pool that extracts a feature per RoI, and a head (section 2.1).

Shape letters: B images, R RoIs, K foreground classes, C channels.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.ops._roi_pool import roi_pool


@dataclass(frozen=True)
class RoIPool:
    """RoI max pooling with fixed options, the pool of `FastRCNN`; see `roi_pool`.

    Attributes:
        output_size: Rows and columns of bins.
        spatial_scale: Feature-map cells per pixel, the backbone's.
    """

    output_size: tuple[int, int] = (7, 7)
    spatial_scale: float = 1 / 16

    def __call__(self, features: jax.Array, rois: jax.Array) -> jax.Array:
        """Pool `(B, H, W, C)` features in `(B, R, 4)` RoIs to `(B, R, rows, columns, C)`."""
        return roi_pool(features, rois, output_size=self.output_size, spatial_scale=self.spatial_scale)


class FastRCNN(nn.Module):
    """Backbone, pool and head as one network.

    The collection "box_stats" holds the mean and standard deviation, `(K + 1, 4)` each, of every class's regression
    targets; the head's deltas are normalised by them.

    Attributes:
        backbone: `(images (B, H, W, 3), image_size (B, 2)) -> (B, H', W', C)`, with a `spatial_scale`.
        head: `(pooled) -> (logits (B, R, K + 1), deltas (B, R, K + 1, 4))`, with a `num_classes`; in
            training also given `True` and, if it takes one, `image_index`.
        pool: `(features (B, H', W', C), rois (B, R, 4)) -> (B, R, rows, columns, C)`, RoIs in canvas pixels.
        pixels: How images are normalised before they enter the backbone.
        classifier: "softmax", or "svm" if the logits are the margins of one SVM per class (section 5.4).

    Raises:
        InputError: The classifier is unknown.
    """

    backbone: nn.Module
    head: nn.Module
    pool: Callable[[jax.Array, jax.Array], jax.Array]
    pixels: PixelNorm = PixelNorm()
    classifier: str = "softmax"

    def __post_init__(self) -> None:
        if self.classifier not in ("softmax", "svm"):
            raise InputError(f"classifier must be softmax or svm, got {self.classifier!r}")
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return self.head.num_classes  # type: ignore[attr-defined]

    @property
    def spatial_scale(self) -> float:
        """Feature-map cells per pixel."""
        return self.backbone.spatial_scale  # type: ignore[attr-defined]

    def setup(self) -> None:
        """Declare the box statistics."""
        shape = (self.num_classes + 1, 4)
        self.box_mean = self.variable("box_stats", "mean", jnp.zeros, shape)
        self.box_std = self.variable("box_stats", "std", jnp.ones, shape)

    def __call__(
        self,
        images: jax.Array,
        image_size: jax.Array,
        rois: jax.Array,
        train: bool = False,
        image_index: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits `(B, R, K + 1)` and normalised deltas `(B, R, K + 1, 4)`.

        Args:
            images: `(B, H, W, 3)` canvases.
            image_size: `(B, 2)` rows and columns of each image in its canvas.
            rois: `(B, R, 4)` in canvas pixels.
            train: Whether to apply dropout, which needs `rngs={"dropout": key}`.
            image_index: `(B,)` integers folded into the dropout key; 0 to B - 1 if None.
        """
        pooled = self.pooled(images, image_size, rois)
        if train and "image_index" in inspect.signature(self.head.__call__).parameters:
            return self.head(pooled, train, image_index)
        return self.head(pooled, train)

    def pooled(self, images: jax.Array, image_size: jax.Array, rois: jax.Array) -> jax.Array:
        """Return each RoI's pooled feature, `(B, R, rows, columns, C)`; arguments as in `__call__`."""
        return self.pool(self.features(images, image_size), rois)

    def features(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Return the feature maps `(B, H', W', C)`; arguments as in `__call__`."""
        return self.backbone(images, image_size)

    def pooled_from(self, maps: Sequence[jax.Array], rois: jax.Array, level: jax.Array) -> jax.Array:
        """Pool each RoI from one of several scales (section 5.2).

        Args:
            maps: `(B, H', W', C)` features, per scale.
            rois: `(B, R, 4)` in canvas pixels of each RoI's scale.
            level: `(B, R)` integers, the index of each RoI's scale.
        """
        own = level[..., None, None, None]
        return sum(jnp.where(own == i, self.pool(features, rois), 0) for i, features in enumerate(maps))  # type: ignore[return-value]

    def predict(self, images: jax.Array, image_size: jax.Array, rois: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return scores and unnormalised deltas; arguments as in `__call__`.

        Returns:
            Scores `(B, R, K + 1)`, probabilities or an SVM's margins, and deltas `(B, R, K + 1, 4)`, the input
            of `decode`.
        """
        return self.outputs(self.pooled(images, image_size, rois))

    def predict_pyramid(
        self, images: Sequence[jax.Array], image_size: Sequence[jax.Array], rois: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return scores and deltas as `predict` does, each RoI pooled at one of several scales (section 5.2).

        Args:
            images: `(B, H, W, 3)` canvases, per scale.
            image_size: `(B, 2)` rows and columns, per scale.
            rois: `(B, R, 4)` in pixels of each RoI's scale.
            level: `(B, R)` integers, the index of each RoI's scale.
        """
        maps = [self.features(*scale) for scale in zip(images, image_size, strict=True)]
        return self.outputs(self.pooled_from(maps, rois, level))

    def outputs(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return scores and deltas as `predict` does, from pooled features."""
        logits, deltas = self.head(pooled)
        scores = logits if self.classifier == "svm" else jax.nn.softmax(logits)
        return scores, deltas * self.box_std.value + self.box_mean.value


def _example_inputs() -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = ((1, 64, 64, 3), jnp.float32), ((1, 2), jnp.int32), ((1, 1, 4), jnp.float32)
    return tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def init_variables(model: FastRCNN, key: jax.Array) -> Any:
    """Return freshly initialised variables: the collections "params" and "box_stats"."""
    images, sizes, rois = (jnp.zeros(x.shape, x.dtype) for x in _example_inputs())
    return jax.jit(model.init)(key, images, sizes + images.shape[1], rois)


def variable_shapes(model: FastRCNN) -> Any:
    """Return the shapes and dtypes of the variables, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0), *_example_inputs())
