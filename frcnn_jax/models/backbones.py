"""Backbones: modules `(images (B, H, W, 3), image_size (B, 2)) -> (B, H', W', C)` with a `spatial_scale`.

Images lie at the top left of a canvas that is zero elsewhere; `image_size` holds their rows and columns. Zeroing the
canvas beyond each layer's own output size keeps the padding from changing any result.

Shape letters: B images, H rows, W columns, C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.models.layers import Conv, Norm, Pool, convolve, local_response_norm, max_pool, output_size

Layer = Conv | Pool | Norm


class LayerBackbone(nn.Module):
    """A sequence of convolutions, max pools and local response normalisations, run once per image (section 2.1).

    Attributes:
        layers: The layers, in order.
        spatial_scale: Feature-map cells per pixel: one over the product of the strides.
        dtype: Type of the computation; parameters stay float32.
    """

    layers: tuple[Layer, ...]
    spatial_scale: float = 1 / 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to `(B, H', W', C)`, zero beyond each image's own map."""
        x, size = images.astype(self.dtype), image_size
        for layer in self.layers:
            if isinstance(layer, Norm):  # squares and powers need float32
                x = local_response_norm(x.astype(jnp.float32), layer).astype(self.dtype)
                continue
            x = _Convolution(layer, name=layer.name)(x) if isinstance(layer, Conv) else max_pool(x, layer)
            size = output_size(layer, size)
            x = jnp.where(inside(size, x.shape[1:3]), x, 0)
        return x


class _Convolution(nn.Module):
    """A convolution, its bias and its ReLU."""

    layer: Conv

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        shape = (layer.kernel, layer.kernel, x.shape[-1] // layer.groups, layer.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (layer.features,))
        return nn.relu(convolve(x, kernel.astype(x.dtype), layer) + bias.astype(x.dtype))


def inside(size, canvas):
    """Return the `(B, H, W, 1)` mask of the canvas cells within each image's `(B, 2)` size."""
    rows = jnp.arange(canvas[0]) < size[:, :1]
    columns = jnp.arange(canvas[1]) < size[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[..., None]
