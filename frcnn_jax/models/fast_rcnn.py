"""Fast R-CNN: a backbone run once per image, a pool that extracts a feature per RoI, and a head (section 2.1).

Shape letters: B images, R RoIs, K foreground classes, C channels.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import PixelNorm


class FastRCNN(nn.Module):
    """Backbone, pool and head as one network.

    The collection "box_stats" holds the mean and standard deviation, `(K + 1, 4)` each, of every class's regression
    targets; the head's deltas are normalised by them.

    Attributes:
        backbone: `(images (B, H, W, 3), image_size (B, 2)) -> (B, H', W', C)`, with a `spatial_scale`; or several
            maps, whatever the pool takes.
        head: `(pooled) -> (logits (B, R, K + 1), deltas (B, R, K + 1, 4))`, with a `num_classes`; in
            training also given `True` and, if it takes one, `image_index`.
        pool: `(features, rois (B, R, 4)) -> (B, R, rows, columns, C)`, features as the backbone returns them, RoIs in
            canvas pixels.
        pixels: How images are normalised before they enter the backbone.
        classifier: "softmax", or "svm" if the logits are the margins of one SVM per class (section 5.4).
        neck: Changes the backbone's maps before they are pooled: `(maps, image_size (B, 2)) -> maps` of the same size.

    Raises:
        InputError: The classifier is unknown.
    """

    backbone: nn.Module
    head: nn.Module
    pool: Callable[[jax.Array, jax.Array], jax.Array]
    pixels: PixelNorm = PixelNorm()
    classifier: str = "softmax"
    neck: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.classifier not in ("softmax", "svm"):
            raise InputError(f"classifier must be softmax or svm, got {self.classifier!r}")
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return self.head.num_classes  # type: ignore[attr-defined]

    @property
    def spatial_scale(self) -> Any:
        """Feature-map cells per pixel; of a pyramid one number per level."""
        return self.backbone.spatial_scale  # type: ignore[attr-defined]

    @property
    def rounding_scale(self) -> float | None:
        """Feature-map cells per pixel if the pool rounds RoIs to whole cells, so that near ones are one; or None."""
        return self.spatial_scale if getattr(self.pool, "rounds", False) else None

    @property
    def roi_size(self) -> tuple[int, ...]:
        """Rows and columns of the pooled features; () if the pool has no `output_size`."""
        size = getattr(self.pool, "output_size", ())
        return (size, size) if isinstance(size, int) else tuple(size)

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

    def features(self, images: jax.Array, image_size: jax.Array) -> Any:
        """Return the feature maps, `(B, H', W', C)` or several; arguments as in `__call__`.

        The neck has changed them. If the pool interpolates, the last row and column of each image's own map are
        repeated beyond it, up to the canvas's end, as if the map ended there; else the rest of the map is as the
        backbone leaves it, zero.
        """
        maps = self.maps(images, image_size)
        if not getattr(self.pool, "interpolates", False):
            return maps
        if not hasattr(maps, "shape"):
            return [
                _repeat_border(own, _cells(image_size, scale), images, scale)
                for own, scale in zip(maps, self.spatial_scale, strict=True)
            ]
        return _repeat_border(maps, self.map_size(image_size), images, self.spatial_scale)

    def maps(self, images: jax.Array, image_size: jax.Array) -> Any:
        """Return what backbone and neck return; arguments as in `__call__`."""
        maps = self.backbone(images, image_size)
        return maps if self.neck is None else self.neck(maps, image_size)

    def map_size(self, image_size: jax.Array) -> jax.Array:
        """Return the `(B, 2)` rows and columns of each image's own map: the backbone's `map_size`, or rounded up."""
        size_of = getattr(self.backbone, "map_size", partial(_cells, scale=self.spatial_scale))
        return size_of(image_size)

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


def _cells(image_size: jax.Array, scale: float) -> jax.Array:
    return jnp.maximum(jnp.ceil(image_size * scale), 1).astype(jnp.int32)


def _repeat_border(maps: jax.Array, size: jax.Array, images: jax.Array, scale: float) -> jax.Array:
    """Fill `(B, H', W', C)` beyond each image's `(B, 2)` cells with the last of these, to the end of the canvas."""
    more = [(0, max(math.ceil(images.shape[axis] * scale) - maps.shape[axis], 0)) for axis in (1, 2)]
    maps = jnp.pad(maps, ((0, 0), *more, (0, 0)))
    for axis in (1, 2):
        own = size[:, axis - 1, None, None, None]
        last = jnp.take_along_axis(maps, jnp.minimum(own, maps.shape[axis]) - 1, axis)
        place = jnp.arange(maps.shape[axis]).reshape(-1, *[1] * (3 - axis))
        maps = jnp.where(place < own, maps, last)
    return maps


def example_inputs(rows: int = 64, columns: int = 64) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes and dtypes of images `(1, rows, columns, 3)`, their size and one RoI."""
    shapes = ((1, rows, columns, 3), jnp.float32), ((1, 2), jnp.int32), ((1, 1, 4), jnp.float32)
    return tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def init_variables(model: FastRCNN, key: jax.Array) -> Any:
    """Return freshly initialised variables: the collections "params" and "box_stats", and any of the backbone's own."""
    images, sizes, rois = (jnp.zeros(x.shape, x.dtype) for x in example_inputs())
    return jax.jit(model.init)(key, images, sizes + images.shape[1], rois)


def variable_shapes(model: FastRCNN) -> Any:
    """Return the shapes and dtypes of the variables, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0), *example_inputs())


def description(*parts: Any) -> bytes:
    """Return the attributes of modules as text for digests, the same in every process: functions have no addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(parts)).encode()


def check_model(model: Any, num_classes: int) -> None:
    """Raise InputError unless a model is a `FastRCNN` for K classes whose parts fit together. It is traced, not run."""
    if not isinstance(model, FastRCNN):
        raise InputError(f"expected a FastRCNN, got {type(model).__name__}")
    for part, attribute in (("backbone", "spatial_scale"), ("head", "num_classes")):
        if not hasattr(found := getattr(model, part), attribute):
            raise InputError(f"the {part} must have the attribute {attribute}, {type(found).__name__} has none")
    inputs, scale = example_inputs(192, 256), model.spatial_scale

    def trace(*inputs: jax.Array, **method: Any) -> Any:
        return model.init_with_output(jax.random.key(0), *inputs, **method)[0]

    maps = jax.eval_shape(partial(trace, method=lambda model, *image: model.backbone(*image)), *inputs[:2])
    if not isinstance(scale, Sequence):
        _check_map(maps, inputs[0].shape, scale)
    elif isinstance(maps, Sequence):
        for own, own_scale in zip(maps, scale, strict=False):
            _check_map(own, inputs[0].shape, own_scale)
    pool_scale = getattr(model.pool, "spatial_scale", scale)
    if np.shape(pool_scale) != np.shape(scale) or not np.allclose(pool_scale, scale):
        raise InputError(f"the pool's spatial_scale must be the backbone's, {scale}, got {pool_scale}")
    outputs = jax.eval_shape(trace, *inputs)
    shapes = [getattr(output, "shape", None) for output in outputs] if isinstance(outputs, tuple) else outputs
    if shapes != [(1, 1, num_classes + 1), (1, 1, num_classes + 1, 4)]:
        raise InputError(
            f"for {num_classes} classes the head must return logits (B, R, {num_classes + 1}) and deltas "
            f"(B, R, {num_classes + 1}, 4), got {shapes} for one RoI"
        )


def _check_map(found: Any, images: tuple[int, ...], scale: float) -> None:
    """Raise InputError unless a backbone returns one map of so many cells per pixel of `(B, H, W, 3)` images."""
    expected = f"the backbone must return (B, H', W', C), with H' and W' near {scale:g} times the image's"
    shape = getattr(found, "shape", None)
    if shape is None:
        raise InputError(f"{expected}, got {type(found).__name__}")
    if len(shape) != 4:
        raise InputError(f"{expected}, got {len(shape)} axes {shape}")
    if any(abs(images[axis] * scale - shape[axis]) > 2 for axis in (1, 2)):
        raise InputError(f"{expected}, got {shape} of images of {images[1]} x {images[2]} pixels")
