"""Scores and features of given regions: row i is region i, nothing is merged, dropped, reordered or clipped away.

Shape letters: B images, R regions, K foreground classes, D features.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.data.batches import Batch, Sizes, prefetch, prepare_test
from frcnn_jax.data.records import check_image, float_boxes, read_image
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops.boxes import Array

CHUNK = 2048  # regions that one program takes: bounds the memory
POOLED = "pooled"

Rows = Any  # arrays with a row per region


class RegionScores(NamedTuple):
    """What the network says of given regions."""

    probabilities: Array  # (R, K + 1) float32, background first
    logits: Array  # (R, K + 1) float32
    boxes: Array  # (R, K, 4) float32: the region moved by each class's regression, clipped to the image


class RegionStep(NamedTuple):
    """Two jitted programs: the backbone, once per image, and the rest, for up to CHUNK regions."""

    maps: Callable[[Any, Batch], Any]
    rows: Callable[[Any, Any, Batch], Rows]


def classify_step(model: FastRCNN, *, box_regression: bool = True) -> RegionStep:
    """Return the step that gives `RegionScores`.

    Args:
        model: The network.
        box_regression: Whether deltas are applied; the boxes are the regions otherwise.

    Raises:
        InputError: The network's classifier are SVMs, whose margins are no probabilities.
    """
    if model.classifier != "softmax":
        raise InputError(f"this network's classifier, {model.classifier}, gives no probabilities")

    def rows(model: FastRCNN, pooled: jax.Array, batch: Batch) -> RegionScores:
        logits, deltas = model.head(pooled)  # type: ignore[operator]
        moves = (deltas * model.box_std.value + model.box_mean.value)[:, :, 1:]
        rois = jnp.broadcast_to(batch["rois"][:, :, None], moves.shape)
        boxes = box_ops.decode(rois, moves) if box_regression else rois
        height, width = batch["original_size"][0]
        scale = jnp.broadcast_to(batch["scale"].reshape(1, -1), rois.shape[:2])
        boxes = box_ops.clip(boxes / scale[..., None, None], height, width)
        return RegionScores(jax.nn.softmax(logits), logits, boxes)

    return _step(model, lambda variables, *inputs: model.apply(variables, *inputs, method=rows))


def embed_step(model: FastRCNN, *, layer: str = "fc7") -> RegionStep:
    """Return the step that gives the `(R, D)` features of a layer.

    Args:
        model: The network.
        layer: "pooled", or the name of an array that the head sows into "embeddings", as fc6 of `FullyConnectedHead`.
    """

    def features(variables: Any, pooled: jax.Array, _: Batch) -> jax.Array:
        if layer == POOLED:
            return pooled.reshape(*pooled.shape[:2], -1).astype(jnp.float32)
        _, sown = model.apply(variables, pooled, method=lambda model, x: model.head(x), mutable=["embeddings"])
        found = {
            [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]: array
            for path, array in jax.tree.leaves_with_path(sown)
        }
        if layer not in found:
            raise InputError(f"layer must be one of {', '.join((POOLED, *found))}, got {layer!r}")
        return found[layer].astype(jnp.float32)

    return _step(model, features)


def _step(model: FastRCNN, rows: Callable[..., Rows]) -> RegionStep:
    """Return a step whose second program calls `rows` with variables, pooled features and the batch."""

    @jax.jit
    def maps_of(variables: Any, batch: Batch) -> list[jax.Array]:
        images, sizes = batch["image"], batch["image_size"]
        scales = zip(images, sizes, strict=True) if isinstance(images, tuple) else [(images, sizes)]
        maps: Any = [model.apply(variables, *scale, method=FastRCNN.features) for scale in scales]
        return maps

    @jax.jit
    def rows_of(variables: Any, maps: list[jax.Array], batch: Batch) -> Rows:
        level = batch.get("level", jnp.zeros(batch["rois"].shape[:2], jnp.int32))
        pooled = model.apply(variables, maps, batch["rois"], level, method=FastRCNN.pooled_from)
        return jax.tree.map(lambda array: array[0], rows(variables, pooled, batch))

    return RegionStep(maps_of, rows_of)


def check_regions(
    boxes: Any, height: int, width: int, *, where: str, invalid: str = "raise"
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes as `(R, 4)` float32, and `(R,)` bool: which of them are usable.

    Raises:
        InputError: The array has another shape or does not hold numbers, or `invalid` is "raise" and a box is outside
            the image, of no area or not finite.
    """
    boxes = float_boxes(boxes, f"boxes of {where}")
    boxes = boxes.reshape(0, 4) if boxes.shape == (0,) else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes of {where} must be (R, 4), got {boxes.shape}")
    x1, y1, x2, y2 = boxes.T
    problems = np.full(len(boxes), "", object)
    problems[(x2 < 0) | (y2 < 0) | (x1 > width - 1) | (y1 > height - 1)] = f"is outside the image of {width} x {height}"
    problems[(x2 <= x1) | (y2 <= y1)] = "has no area"
    problems[~np.isfinite(boxes).all(axis=1)] = "is not finite"
    usable = problems == ""
    if invalid == "raise" and not usable.all():
        first = int(usable.argmin())
        corners = ", ".join(f"{v:g}" for v in boxes[first])
        raise InputError(f"{where}: box {first} ({corners}) {problems[first]}")
    return boxes, usable


@dataclass(frozen=True)
class RegionBatches:
    """One batch per image, with all its regions; see `prepare_test`.

    Attributes:
        images: Paths, PIL images or arrays; see `read_image`.
        boxes: `(R, 4)` regions per image, in its pixels.
        sizes: How images are resized; several make an image pyramid.
        pixels: How images are normalised.
        invalid: "raise", or "nan" to give rows of NaN to regions that are outside the image, of no area or not finite.

    Raises:
        InputError: `images` and `boxes` differ in length, or `invalid` is unknown.
    """

    images: Sequence[Any]
    boxes: Sequence[Any]
    sizes: Sequence[Sizes]
    pixels: PixelNorm
    invalid: str = "raise"

    def __post_init__(self) -> None:
        if len(self.images) != len(self.boxes):
            raise InputError(f"expected boxes for each of {len(self.images)} images, got {len(self.boxes)} arrays")
        if self.invalid not in ("raise", "nan"):
            raise InputError(f'invalid must be "raise" or "nan", got {self.invalid!r}')

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Batch, np.ndarray]:
        """Return the batch of an image, and which of its regions are usable."""
        given = self.images[i]
        where = f"image {given if isinstance(given, str) or hasattr(given, '__fspath__') else i}"
        image = check_image(read_image(given))
        boxes, usable = check_regions(self.boxes[i], *image.shape[:2], where=where, invalid=self.invalid)
        boxes = np.where(usable[:, None], boxes, np.array([0, 0, 1, 1], np.float32))
        return prepare_test(image, boxes, sizes=self.sizes, pixels=self.pixels, spatial_scale=None), usable


def run_regions(step: RegionStep, variables: Any, batches: RegionBatches) -> Iterator[Rows]:
    """Yield the rows of each image's regions, in order, as NumPy arrays; the next images are decoded meanwhile.

    Memory does not grow with the number of regions, but for the rows.
    """
    ahead = prefetch(batches) if len(batches) > 1 else map(batches.__getitem__, range(len(batches)))
    for batch, usable in ahead:
        maps = step.maps(variables, {name: batch[name] for name in ("image", "image_size")})
        yield _join(_parts(step, variables, maps, batch), usable)


def _parts(step: RegionStep, variables: Any, maps: Any, batch: Batch) -> Iterator[Rows]:
    """Yield the rows of one chunk of regions after another; the next chunk runs meanwhile."""
    running: deque[Rows] = deque()
    for start in range(0, batch["rois"].shape[1], CHUNK):
        running.append(step.rows(variables, maps, _chunk(batch, slice(start, start + CHUNK))))
        if len(running) > 1:
            yield jax.device_get(running.popleft())
    yield jax.device_get(running.popleft())


def _join(parts: Iterable[Rows], usable: np.ndarray) -> Rows:
    """Return the rows of all chunks, NaN where a region isn't usable, holding no chunk beside them."""
    rows: Rows = None
    for i, part in enumerate(parts):
        if rows is None:
            rows = jax.tree.map(lambda own: np.empty((len(usable), *own.shape[1:]), own.dtype), part)
        for whole, own in zip(jax.tree.leaves(rows), jax.tree.leaves(part), strict=True):
            place = whole[i * CHUNK : (i + 1) * CHUNK]
            place[:] = own[: len(place)]
    for whole in jax.tree.leaves(rows):
        whole[~usable] = np.nan
    return rows


def _chunk(batch: Mapping[str, np.ndarray], part: slice) -> Batch:
    chunk = {"rois": batch["rois"][:, part], "scale": batch["scale"], "original_size": batch["original_size"]}
    if "level" in batch:
        chunk |= {name: batch[name][:, part] for name in ("level", "scale")}
    return chunk
