"""Heads: modules `(pooled (B, R, rows, columns, C), train) -> (logits (B, R, K + 1), deltas (B, R, K + 1, 4))`.

`Detector.embed` returns by name what a head sows into the collection "embeddings": an array `(B, R, D)`, or a dict of
them.

Shape letters: B images, R RoIs, K foreground classes, C channels.
"""

import math
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frcnn_jax.errors import InputError


class FullyConnectedHead(nn.Module):
    """The paper's head: fc6 and fc7, each with ReLU and dropout, then the twin output layers (section 2.1).

    Attributes:
        num_classes: K, at least 1.
        features: Widths of the layers fc6, fc7 and so on; the paper has two.
        ranks: Rank of each layer factored by truncated SVD (section 3.1); 0 for a full layer. All are full if empty.
        std: Standard deviation of the initial fc6 and fc7 kernels; None for He initialisation. Biases start at 0.1.
        dropout: Fraction of activations dropped after each layer in training.
        dtype: Type of the computation; parameters stay float32.
        reduce: Channels to which a 1x1 convolution and ReLU reduce the pooled features first; 0 for none. Fewer new
            weights learn from fewer images.
        class_agnostic: Whether one box is regressed for all classes.

    Raises:
        InputError: `num_classes` is below 1, `dropout` is outside [0, 1), or `ranks` and `features` differ in length.
    """

    num_classes: int
    features: tuple[int, ...] = (4096, 4096)
    ranks: tuple[int, ...] = ()
    std: float | None = 0.005
    dropout: float = 0.5
    dtype: Any = jnp.float32
    reduce: int = 0
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {self.num_classes}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")
        if len(self.ranks) not in (0, len(self.features)):
            raise InputError(f"ranks must be {len(self.features)} numbers, one per layer, got {self.ranks}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, pooled: jax.Array, train: bool = False, image_index: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Classify RoIs and regress their boxes.

        Args:
            pooled: `(B, R, rows, columns, C)`.
            train: Whether to apply dropout, which draws from the rng "dropout".
            image_index: `(B,)` integers folded into the rng, so that masks do not depend on how images are distributed
                over devices; 0 to B - 1 if None.

        Returns:
            Logits `(B, R, K + 1)` and normalised deltas `(B, R, K + 1, 4)`, float32, or float64 if `dtype` is.
        """
        keys = _image_keys(self, len(pooled), image_index) if train and self.dropout else None
        if self.reduce:
            pooled = nn.relu(self._dense(self.reduce, None, 0.0, "reduce")(pooled))
        x = pooled.reshape(*pooled.shape[:2], math.prod(pooled.shape[2:]))
        layers = {}
        for i, (features, rank) in enumerate(zip(self.features, self.ranks or (0,) * len(self.features), strict=True)):
            if rank:
                x = nn.Dense(rank, use_bias=False, dtype=self.dtype, name=f"fc{6 + i}_reduce")(x)
            x = nn.relu(self._dense(features, self.std, 0.1, f"fc{6 + i}")(x))
            layers[f"fc{6 + i}"] = x
            if keys is not None:
                x = _drop(x, jax.vmap(jax.random.fold_in, (0, None))(keys, i), self.dropout)
        if not self.is_initializing():
            self.sow("embeddings", "layers", layers)
        return twin_outputs(x, self.num_classes, class_agnostic=self.class_agnostic, dtype=self.dtype)

    def _dense(self, features, std, bias, name):
        return _dense(features, std, bias, self.dtype, name)


def check_two_layers(head: nn.Module) -> None:
    """Check that a head is the paper's, with the layers fc6 and fc7.

    Raises:
        InputError: It is another.
    """
    if not isinstance(head, FullyConnectedHead) or len(head.features) != 2:
        widths = f" with features={head.features}" if isinstance(head, FullyConnectedHead) else ""
        raise InputError(
            f"expected a network whose head has the layers fc6 and fc7, got one with a {type(head).__name__}{widths}"
        )


def check_outputs(layers: Collection[str]) -> None:
    """Check that a head, given by the names of its layers, has the twin output layers under their names.

    Raises:
        InputError: It has others, which nothing is known of.
    """
    if not {"cls_score", "bbox_pred"} <= set(layers):
        raise InputError(
            f"expected a network whose head has the layers cls_score and bbox_pred, got {', '.join(layers)}"
        )


def twin_outputs(
    x: jax.Array, num_classes: int, *, class_agnostic: bool = False, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Apply the twin output layers cls_score and bbox_pred, as layers of the calling module (section 2.1).

    Args:
        x: `(B, R, D)`.
        num_classes: K.
        class_agnostic: Whether one box is regressed for all classes.
        dtype: Type of the computation.

    Returns:
        Logits `(B, R, K + 1)` and normalised deltas `(B, R, K + 1, 4)`, float32, or float64 if `dtype` is.
    """
    outputs, exact = num_classes + 1, jnp.promote_types(dtype, jnp.float32)
    logits = _dense(outputs, 0.01, 0.0, dtype, "cls_score")(x)
    deltas = _dense(4 if class_agnostic else 4 * outputs, 0.001, 0.0, dtype, "bbox_pred")(x)
    deltas = deltas.reshape(*deltas.shape[:2], -1, 4)
    shape = (*deltas.shape[:2], outputs, 4)
    return logits.astype(exact), jnp.broadcast_to(deltas.astype(exact), shape)


def _dense(features: int, std: float | None, bias: float, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        kernel_init=nn.initializers.he_normal() if std is None else nn.initializers.normal(std),
        bias_init=nn.initializers.constant(bias),
        dtype=dtype,
        name=name,
    )


def _image_keys(module: nn.Module, images: int, image_index: jax.Array | None) -> jax.Array:
    """Return `(B,)` keys: the "dropout" rng that `apply` was given, folded with each image's index.

    `make_rng` would also fold in the module's path and a call count.
    """
    if not module.has_rng("dropout"):
        module.make_rng("dropout")  # raises Flax's own error
    key = module.scope.rngs["dropout"].rng  # type: ignore[union-attr]
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images) if image_index is None else image_index)


def _drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zero a fraction `rate` of the `(B, ...)` activations, one key per image, and scale up the rest."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)
