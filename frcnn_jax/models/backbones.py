"""Backbones: modules `(images (B, H, W, 3), image_size (B, 2)) -> (B, H', W', C)` with a `spatial_scale`.

Images lie at the top left of a canvas that is zero elsewhere; `image_size` holds their rows and columns. Zeroing the
canvas beyond each layer's own output size keeps the padding from changing any result.

Shape letters: B images, H rows, W columns, C channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.layers import Conv, Norm, Pool, convolve, local_response_norm, max_pool, output_size
from frcnn_jax.models.parameters import flatten, unflatten

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

    def map_size(self, image_size: jax.Array) -> jax.Array:
        """Return the rows and columns of each image's own map."""
        return functools.reduce(lambda size, layer: output_size(layer, size), self.layers, image_size)

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to `(B, H', W', C)`, zero beyond each image's own map."""
        x, size = images.astype(self.dtype), image_size
        for layer in self.layers:
            if isinstance(layer, Norm):  # squares and powers need at least float32
                x = local_response_norm(x.astype(jnp.promote_types(x.dtype, jnp.float32)), layer).astype(self.dtype)
                continue
            x = Convolution(layer, name=layer.name)(x) if isinstance(layer, Conv) else max_pool(x, layer)
            size = output_size(layer, size)
            x = masked(x, size)
        return x


class Convolution(nn.Module):
    """A convolution, its bias and its ReLU, if it has one.

    Attributes:
        layer: Its sizes.
        scale: Variance of the initial kernel by He's rule, which is 2.
    """

    layer: Conv
    scale: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(B, H, W, C)` to `(B, H', W', features)`."""
        layer = self.layer
        shape = (layer.kernel, layer.kernel, x.shape[-1] // layer.groups, layer.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal"), shape)
        bias = self.param("bias", nn.initializers.zeros, (layer.features,))
        x = convolve(x, kernel.astype(x.dtype), layer) + bias.astype(x.dtype)
        return nn.relu(x) if layer.relu else x


class FunctionBackbone(nn.Module):
    """A feature extractor of another library as a backbone: a pure function and its parameters.

    The function does not know each image's size, so that the canvas beyond an image, zero at first, takes part in its
    features near the right and lower border; train and test with `Sizes(..., exact=True)` to avoid that. Map cells
    beyond an image are zeroed at the end.

    Attributes:
        function: `(params, images (B, H, W, 3)) -> (B, H', W', C)`; with statistics `(params, statistics, images)`.
        params: Its initial parameters, a pytree of arrays, which are trained.
        spatial_scale: Feature-map cells per pixel.
        channels: C.
        statistics: Arrays that it needs and that are not trained, such as those of batch normalisation, or None.

    Raises:
        InputError: The trees hold something else than arrays, `params` integers; when called, if the function returns
            something else.
    """

    function: Callable[..., jax.Array]
    params: Any
    spatial_scale: float
    channels: int
    statistics: Any = None

    def __post_init__(self) -> None:
        for name in ("params", "statistics"):
            if not isinstance(value := getattr(self, name), _Held | None):
                object.__setattr__(self, name, _Held(value, name))
        for name, leaf in zip(*_named(self.params.tree)[:2], strict=True):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise InputError(f"params must be floating-point, {name} is {leaf.dtype}; constants go into statistics")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, image_size: jax.Array) -> jax.Array:
        """Map `(B, H, W, 3)` images of `(B, 2)` sizes to `(B, H', W', C)`, zero beyond each image's own map."""
        names, leaves, structure = _named(self.params.tree)
        first = unflatten(dict(zip(names, leaves, strict=True)))
        params = flatten({name: self.param(name, lambda _, value=value: value) for name, value in first.items()})
        inputs = [structure.unflatten([params[name] for name in names])]
        if self.statistics is not None:
            own = self.statistics.tree
            stored = self.variable("statistics", "function", lambda: jax.tree.map(_key_data, own)).value
            inputs.append(jax.tree.map(_as_key, stored, own))
        maps = self.function(*inputs, images)
        shape = getattr(maps, "shape", type(maps).__name__)
        if len(shape) != 4 or shape[3] != self.channels:
            raise InputError(f"the function must return (B, H', W', {self.channels}), got {shape}")
        return masked(maps, jnp.ceil(image_size * self.spatial_scale).astype(jnp.int32))


class _Held:
    """A pytree as a module's attribute: equal to itself alone, so that it can be hashed."""

    def __init__(self, tree: Any, name: str) -> None:
        names, leaves, _ = _named(tree)
        for path, leaf in zip(names, leaves, strict=True):
            try:
                jnp.asarray(leaf)
            except TypeError:
                raise InputError(f"{name} must be a tree of arrays, {path} is of type {type(leaf).__name__}") from None
        self.tree = jax.tree.map(jnp.asarray, tree)

    def __repr__(self) -> str:
        return f"<{len(jax.tree.leaves(self.tree))} arrays>"


def _named(tree: Any) -> tuple[list[str], list[Any], Any]:
    """Return the path of each leaf as a text, the leaves and the structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path, _ in leaves]
    return names, [leaf for _, leaf in leaves], structure


def _key_data(leaf: jax.Array) -> jax.Array:
    """Return a random key's integers, which checkpoints can hold; other arrays as they are."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _as_key(stored: jax.Array, own: jax.Array) -> jax.Array:
    """Return the inverse of `_key_data`, of an array of the kind of `own`."""
    is_key = jnp.issubdtype(own.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(own)) if is_key else stored


def masked(x: jax.Array, size: jax.Array | None) -> jax.Array:
    """Zero `(B, H, W, C)` beyond each image's `(B, 2)` rows and columns, if these are given."""
    if size is None:
        return x
    rows = jnp.arange(x.shape[1]) < size[:, :1]
    columns = jnp.arange(x.shape[2]) < size[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)
