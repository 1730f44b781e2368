"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variant has ReLU6 and no squeeze-and-excitation): a backbone, a neck.

Each convolution has the batch norm after it folded into its kernel and bias; see `foreign_names`.

Shape letters: B images, H rows, W columns, C channels.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import masked
from frcnn_jax.models.layers import depthwise


class Stage(NamedTuple):
    """Inverted residual blocks of equal output; the stride is the first one's."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 from the stem to one of its stages.

    Convolutions are padded as in the published network at its own size, 224x224, whatever the image's: with stride 2 by
    one row and column less at the top left. A map has `size // stride` cells, and at stride 16 the receptive field of
    the cell (i, j) is centred on the pixel (16 i + 15, 16 j + 15).

    Attributes:
        stage: The last stage, 0 to 6; stage 4 has 112 channels at stride 16, stage 6 has 320 at stride 32.
        dtype: Type of the computation; parameters stay float32.

    Raises:
        InputError: There is no such stage.
    """

    stage: int = 4
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.stage not in range(len(STAGES)):
            raise InputError(f"stage must be from 0 to {len(STAGES) - 1}, got {self.stage}")
        super().__post_init__()

    @property
    def spatial_scale(self) -> float:
        """Feature-map cells per pixel."""
        return 1 / (2 * math.prod(stage.stride for stage in STAGES[: self.stage + 1]))

    def map_size(self, image_size: jax.Array) -> jax.Array:
        """Return the rows and columns of each image's own map."""
        return jnp.maximum(image_size // round(1 / self.spatial_scale), 1)

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to `(B, H', W', C)`, zero beyond each image's own map."""
        size = image_size // 2
        x = masked(_Convolution(32, 3, 2, name="conv_stem")(images.astype(self.dtype)), size)
        for i, stage in enumerate(STAGES[: self.stage + 1]):
            for j in range(stage.blocks):
                x, size = _block(x, size, i, j, stride=1 if j else stage.stride)
        return x


class LiteNeck(nn.Module):
    """EfficientNet-Lite0's last two stages on the map of stage 4, still at stride 16.

    The first depthwise convolution of stage 5 does not stride, and those after it dilate by 2 (Chen et al. 2015), so
    that a cell sees what it would see at stride 32.

    Attributes:
        dtype: Type of the computation; parameters stay float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, image_size: jax.Array) -> jax.Array:
        """Map `(B, H', W', 112)` of `(B, 2)` image sizes to `(B, H', W', 432)`, of which the last 112 are the input."""
        size = jnp.maximum(image_size // 16, 1)
        x, _ = _block(maps.astype(self.dtype), size, 5, 0, stride=1)
        x = _interleaved(x)
        odd = jnp.array([(0, 0), (0, 1), (1, 0), (1, 1)])
        size = ((size[:, None] + 1 - odd) // 2).reshape(-1, 2)
        for i in (5, 6):
            for j in range(i == 5, STAGES[i].blocks):
                x, _ = _block(x, size, i, j, stride=1)
        x = _deinterleaved(x)[:, : maps.shape[1], : maps.shape[2]]
        return jnp.concatenate([x, maps.astype(x.dtype)], axis=-1)


def _interleaved(x: jax.Array) -> jax.Array:
    """Split `(B, H, W, C)` into `(4 B, H / 2, W / 2, C)`, its even and odd rows and columns, sides rounded up.

    A convolution of these is one of the whole with dilation 2.
    """
    images, rows, columns, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
    x = x.reshape(images, -(-rows // 2), 2, -(-columns // 2), 2, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(4 * images, *x.shape[1::2])


def _deinterleaved(x: jax.Array) -> jax.Array:
    """Undo `_interleaved`, but for the padding."""
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, 2, 2, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, 2 * rows, 2 * columns, channels)


def _block(x: jax.Array, size: jax.Array, i: int, j: int, *, stride: int) -> tuple[jax.Array, jax.Array]:
    """Apply block j of stage i as submodules of the calling module; return its maps and their own sizes."""
    stage, name, entering = STAGES[i], f"blocks.{i}.{j}", x
    wide = stage.expansion * x.shape[3]
    if stage.expansion > 1:
        x = masked(_Convolution(wide, 1, 1, name=f"{name}.conv_pw")(x), size)
    size = size // stride
    x = masked(_Convolution(wide, stage.kernel, stride, depthwise=True, name=f"{name}.conv_dw")(x), size)
    last = "conv_pwl" if stage.expansion > 1 else "conv_pw"
    x = masked(_Convolution(stage.features, 1, 1, relu=False, name=f"{name}.{last}")(x), size)
    return (x + entering if j else x), size


class _Convolution(nn.Module):
    """A convolution, its bias and, except at the end of a block, its ReLU6."""

    features: int
    kernel: int
    stride: int
    depthwise: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, 1 if self.depthwise else x.shape[3], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        total = self.kernel - self.stride
        padding = ((total // 2, total - total // 2),) * 2
        if self.depthwise:
            x = depthwise(x, kernel, stride=self.stride, padding=padding)
        elif self.kernel == 1:
            x = x @ kernel[0, 0]  # on CPU its gradients are faster than a convolution's
        else:
            numbers, strides = ("NHWC", "HWIO", "NHWC"), (self.stride, self.stride)
            x = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)
        return nn.relu6(x + bias) if self.relu else x + bias
