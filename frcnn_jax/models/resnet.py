"""Residual networks (He et al. 2015) and the feature pyramid on them (Lin et al. 2017), for detection.

Batch normalisation is folded into the convolutions when pretrained weights are read: its statistics are fixed, its
scale becomes part of the kernel, and its shift the bias. Layers have torchvision's names.

Shape letters: B images, H rows, W columns, C channels, R RoIs, K foreground classes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import Convolution, masked
from frcnn_jax.models.heads import twin_outputs
from frcnn_jax.models.layers import Conv, Pool, max_pool, output_size

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # per stage, by depth
_POOL = Pool(3, 2, 1, round_up=False)
_PART = 16  # RoIs that go through stage 4 together at test, which a CPU's caches hold


class ResNet(nn.Module):
    """The convolutions of a ResNet as a backbone: C4, at stride 16, unless `stages` differs.

    Attributes:
        depth: 18, 34, 50 or 101.
        stages: Number of stages; the stride is 2^(stages + 1).
        pyramid: Whether it returns the map of each stage instead of the last.
        stride_in_1x1: Whether a stage of the deeper nets strides in its first 1x1 convolution, as in the paper, Caffe,
            Keras and Detectron2's MSRA models, or in its 3x3 one, as in torchvision and timm.
        dtype: Type of the computation; parameters stay float32.

    Raises:
        InputError: There is no such depth, or `stages` is not 1 to 4.
    """

    depth: int = 50
    stages: int = 3
    pyramid: bool = False
    stride_in_1x1: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise InputError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {self.depth}")
        if not 1 <= self.stages <= 4:
            raise InputError(f"stages must be 1 to 4, got {self.stages}")
        super().__post_init__()

    @property
    def spatial_scale(self) -> Any:
        """Feature-map cells per pixel; of a pyramid one number per stage."""
        scales = tuple(0.5 ** (stage + 1) for stage in range(1, self.stages + 1))
        return scales if self.pyramid else scales[-1]

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> Any:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to `(B, H', W', C)`, zero beyond each image's own map."""
        x, size = images.astype(self.dtype), image_size
        for layer in (Conv("conv1", 64, 7, stride=2, padding=3), _POOL):
            x = Convolution(layer, name=layer.name)(x) if isinstance(layer, Conv) else max_pool(x, layer)
            size = output_size(layer, size)
            x = masked(x, size)
        maps = []
        for stage in range(1, self.stages + 1):
            x, size = Stage(self.depth, stage, self.stride_in_1x1, name=f"layer{stage}")(x, size)
            maps.append(x)
        return maps if self.pyramid else x


class Stage(nn.Module):
    """Residual blocks at one stride; see `ResNet` for the attributes."""

    depth: int
    stage: int
    stride_in_1x1: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, size: Any = None) -> tuple[jax.Array, Any]:
        """Return the map and its size, which is None if that of `x` is."""
        features = 64 * 2 ** (self.stage - 1)
        for i in range(BLOCKS[self.depth][self.stage - 1]):
            x, size = _Block(_block(self, features, self.stage > 1 and i == 0), name=str(i))(x, size)
        return x, size


def _mean(stage: Stage, rois: jax.Array) -> jax.Array:
    """Return the mean over the cells of a stage's map: `(N, H, W, C)` to `(N, features)`."""
    return stage(rois)[0].mean(axis=(1, 2))


def _block(stage: Stage, features: int, strides: bool) -> tuple[Conv, ...]:
    """Return the convolutions of a residual block."""
    stride = 2 if strides else 1
    if stage.depth < 50:
        return (
            Conv("conv1", features, 3, stride=stride, padding=1),
            Conv("conv2", features, 3, padding=1, relu=False),
        )
    first, second = (stride, 1) if stage.stride_in_1x1 else (1, stride)
    return (
        Conv("conv1", features, 1, stride=first),
        Conv("conv2", features, 3, stride=second, padding=1),
        Conv("conv3", 4 * features, 1, relu=False),
    )


class _Block(nn.Module):
    """Convolutions, and the sum with the input or, where its shape differs, with a 1x1 convolution of it."""

    convolutions: tuple[Conv, ...]

    @nn.compact
    def __call__(self, x, size):
        y = x
        shortcut = Conv("downsample", self.convolutions[-1].features, 1, relu=False)
        for conv in self.convolutions:
            # without batch norm a residual must start small, if no weights are given
            y = Convolution(conv, scale=2.0 if conv.relu else 0.02, name=conv.name)(y)
            size = None if size is None else output_size(conv, size)
            y = masked(y, size)
            shortcut = shortcut._replace(stride=shortcut.stride * conv.stride)
        if y.shape != x.shape:
            x = masked(Convolution(shortcut, scale=1.0, name="downsample")(x), size)
        return nn.relu(x + y), size


class FPN(nn.Module):
    """A feature pyramid: P2 to P5, at strides 4 to 32 (Lin et al. 2017, section 3), with Detectron2's names.

    Attributes:
        depth: Of the ResNet, 50 or 101.
        features: Channels of every level.
        stride_in_1x1, dtype: As in `ResNet`.
    """

    depth: int = 50
    features: int = 256
    stride_in_1x1: bool = False
    dtype: Any = jnp.float32

    @property
    def spatial_scale(self) -> tuple[float, ...]:
        """Feature-map cells per pixel of each level."""
        return (1 / 4, 1 / 8, 1 / 16, 1 / 32)

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> list[jax.Array]:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to four `(B, H', W', features)`, the finest first."""
        bottom = ResNet(self.depth, 4, pyramid=True, stride_in_1x1=self.stride_in_1x1, dtype=self.dtype)
        nn.share_scope(self, bottom)
        maps, levels = bottom(images, image_size), []
        above = None
        for number in (5, 4, 3, 2):
            size = -(-image_size // 2**number)
            x = self._convolve(f"fpn_lateral{number}", 1, maps[number - 2])
            if above is not None:
                x += above.repeat(2, axis=1).repeat(2, axis=2)[:, : x.shape[1], : x.shape[2]]
            above = masked(x, size)
            levels.append(masked(self._convolve(f"fpn_output{number}", 3, above), size))
        return levels[::-1]

    def _convolve(self, name, kernel, x):
        layer = Conv(name, self.features, kernel, padding=kernel // 2, relu=False)
        return Convolution(layer, scale=1.0, name=name)(x)


class ResNetHead(nn.Module):
    """Stage 4 of a ResNet on each RoI's features, their mean, and the twin output layers (He et al. 2015, appendix A).

    Attributes:
        num_classes: K, at least 1.
        depth, stride_in_1x1, dtype: As in `ResNet`.
    """

    num_classes: int
    depth: int = 50
    stride_in_1x1: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Classify RoIs and regress their boxes.

        Args:
            pooled: `(B, R, rows, columns, C)`.
            train: Without effect.

        Returns:
            Logits `(B, R, K + 1)` and normalised deltas `(B, R, K + 1, 4)`, float32, or float64 if `dtype` is.
        """
        stage = Stage(self.depth, 4, self.stride_in_1x1, name="layer4")
        rois = pooled.reshape(-1, *pooled.shape[2:])
        if train or len(rois) <= _PART:  # the gradients of a loop are slow
            x = _mean(stage, rois)
        else:  # a part at a time: all at once take gigabytes
            parts = jnp.pad(rois, ((0, -len(rois) % _PART), *[(0, 0)] * 3)).reshape(-1, _PART, *rois.shape[1:])
            by_parts = nn.scan(
                lambda stage, _, part: (None, _mean(stage, part)),
                variable_broadcast="params",
                split_rngs={"params": False},
            )
            _, x = by_parts(stage, None, parts)
            x = x.reshape(-1, x.shape[-1])[: len(rois)]
        x = x.reshape(*pooled.shape[:2], -1)
        if not self.is_initializing():
            self.sow("embeddings", "layers", {"layer4": x})
        return twin_outputs(x, self.num_classes, dtype=self.dtype)
