"""RoI pools: `(features, rois (B, R, 4)) -> (B, R, rows, columns, C)`, of one feature map or of a pyramid.

Shape letters: B images, R RoIs, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.ops._roi_align import multiscale_roi_align, roi_align
from frcnn_jax.ops._roi_pool import roi_pool


@dataclass(frozen=True)
class RoIPool:
    """RoI max pooling with fixed options (section 2.1); see `roi_pool`.

    Attributes:
        output_size: Rows and columns of bins.
        spatial_scale: Feature-map cells per pixel, the backbone's; of a pyramid one per level, as in `RoIAlign`.
    """

    output_size: tuple[int, int] = (7, 7)
    spatial_scale: float | tuple[float, ...] = 1 / 16

    @property
    def rounds(self) -> bool:
        """Whether RoIs are rounded to the cells of one map."""
        return not isinstance(self.spatial_scale, tuple)

    def __call__(self, features: Any, rois: jax.Array) -> jax.Array:
        """Pool `(B, H, W, C)` features, of a pyramid one per level, in `(B, R, 4)` RoIs."""
        if not isinstance(self.spatial_scale, tuple):
            return roi_pool(features, rois, output_size=self.output_size, spatial_scale=self.spatial_scale)
        level = pyramid_index(rois, self.spatial_scale)[..., None, None, None]
        pooled: Any = 0
        for i, (own, scale) in enumerate(zip(features, self.spatial_scale, strict=True)):
            of_level = roi_pool(own, rois, output_size=self.output_size, spatial_scale=scale)
            pooled = jnp.where(level == i, of_level, pooled)
        return pooled


def pyramid_index(rois: jax.Array, scales: Sequence[float]) -> jax.Array:
    """Return the level of inclusive `(B, R, 4)` RoIs by their area, 0 for the finest (Lin et al. 2017, equation 1)."""
    sides = rois[..., 2:] - rois[..., :2] + 1
    exponent = jnp.floor(4 + jnp.log2(jnp.sqrt(sides.prod(-1)) / 224 + 1e-6))
    first = round(-math.log2(scales[0]))
    return jnp.clip(exponent, first, first + len(scales) - 1).astype(jnp.int32) - first


@dataclass(frozen=True)
class RoIAlign:
    """RoIAlign with fixed options (Mask R-CNN, section 3), of one map or of a feature pyramid.

    RoIs are inclusive boxes, like all of the detector's: x2 and y2 are moved by one pixel to their right edge.

    Attributes:
        output_size: Rows and columns of bins.
        spatial_scale: Feature-map cells per pixel, the backbone's; of a pyramid one per level, each half of the one
            before. A RoI is then pooled from the level of its area (`ops.multiscale_roi_align`).
        sampling_ratio: Samples per bin along each axis; see `roi_align`.
        shift: Pixels, down and to the right, from the centre of a cell's square of the image to that of its receptive
            field. RoIs are moved back by as much.
    """

    output_size: tuple[int, int] = (7, 7)
    spatial_scale: float | tuple[float, ...] = 1 / 16
    sampling_ratio: int = 2
    shift: float = 0.0

    @property
    def interpolates(self) -> bool:
        """Whether cells beyond an image's own map take part: yes, so that `FastRCNN` repeats its border there."""
        return True

    def __call__(self, features: Any, rois: jax.Array) -> jax.Array:
        """Pool `(B, H, W, C)` features, of a pyramid one per level, in `(B, R, 4)` RoIs."""
        edges = rois + jnp.asarray([0, 0, 1, 1], rois.dtype) - self.shift
        options: dict[str, Any] = {"output_size": self.output_size, "sampling_ratio": self.sampling_ratio}
        if isinstance(self.spatial_scale, tuple):
            strides = [round(1 / scale) for scale in self.spatial_scale]
            return multiscale_roi_align(features, edges, strides=strides, aligned=True, **options)
        return roi_align(features, edges, spatial_scale=self.spatial_scale, **options)


POOLS = {"max": RoIPool, "align": RoIAlign}


def with_pool(model: FastRCNN, name: str) -> FastRCNN:
    """Return a model with the pool of another name in `POOLS`, of the same output size.

    Raises:
        InputError: There is no such pool, or the model's own has no size to take over.
    """
    if name not in POOLS:
        raise InputError(f"pool must be one of {', '.join(POOLS)}, got {name!r}")
    if not isinstance(model.pool, RoIPool | RoIAlign):
        raise InputError(f"pool can't be {name}: this network has a pool of its own, {type(model.pool).__name__}")
    if isinstance(model.pool, POOLS[name]):
        return model
    return model.clone(pool=POOLS[name](model.pool.output_size, model.pool.spatial_scale))
