"""Images resized onto canvases of static shapes, test batches, and prefetching.

A canvas has one of four shapes per `Sizes`, so that few programs are compiled. Arrays are NumPy.

Shape letters: B images, R RoIs.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import jax
import numpy as np

from frcnn_jax.data.records import Record, check_boxes, check_image
from frcnn_jax.data.workers import end_with_parent, held_signals
from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.ops import boxes as box_ops

ROI_MULTIPLE = 512  # at test, RoIs are padded to a multiple of this
_CANVAS_MULTIPLE = 16
FAR = 2.0**30  # pixels: RoIs are clipped to this distance, far beyond any image, so that no size overflows

Batch = dict[str, Any]  # of arrays


@dataclass(frozen=True)
class Sizes:
    """Rule for resizing images: to a given shorter side, unless the longer side would exceed its limit.

    Attributes:
        shorter: Pixels of the shorter side.
        longer: Limit of the longer side in pixels.
        exact: Whether the canvas is as large as the resized image, so that no feature sees padding, at the price of a
            compilation for each size; else one of four larger ones.
        canvases: Sizes whose canvases are used, so that images of many sizes share few; empty for its own.

    Raises:
        InputError: `shorter` is not positive, or exceeds `longer`.
    """

    shorter: int = 600
    longer: int = 1000
    exact: bool = False
    canvases: tuple["Sizes", ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.shorter <= self.longer < math.inf:
            raise InputError(f"expected 0 < shorter <= longer, got {self.shorter} and {self.longer}")

    def scale(self, height: int, width: int) -> float:
        """Return the factor by which an image of this size is resized."""
        scale = self.shorter / min(height, width)
        return scale if round(scale * max(height, width)) <= self.longer else self.longer / max(height, width)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the smallest canvas that holds the resized image.

        The four canvases of a size measure the shorter side by 4/3 of it or by `longer`, landscape and portrait,
        rounded up to multiples of 16.
        """
        scale = self.scale(height, width)
        rows, columns = (max(round(scale * side), 1) for side in (height, width))  # as cv2.resize rounds
        if self.exact:
            return rows, columns
        canvases = [canvas for sizes in self.canvases or (self,) for canvas in sizes._canvases()]
        return min((c for c in canvases if c[0] >= rows and c[1] >= columns), key=math.prod)

    def _canvases(self) -> tuple[tuple[int, int], ...]:
        short, middle, long = (
            math.ceil(side / _CANVAS_MULTIPLE) * _CANVAS_MULTIPLE
            for side in (self.shorter, min(self.shorter * 4 / 3, self.longer), self.longer)
        )
        return (short, middle), (middle, short), (short, long), (long, short)

    def scaled(self, factor: float) -> "Sizes":
        """Return these sizes times a factor, rounded to at least one pixel, with canvases of their own."""
        shorter, longer = (max(round(side * factor), 1) for side in (self.shorter, self.longer))
        return Sizes(shorter, longer, exact=self.exact)


def prepare_image(image: np.ndarray, *, size: Sizes, pixels: PixelNorm) -> Batch:
    """Normalise an image, resize it bilinearly and put it at the top left of its canvas, which is zero elsewhere.

    Samples are 1 / factor pixels apart, as in the paper's code and as for the boxes: the factor is not that between
    the two sizes, whose new one is rounded.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        size: How it is resized.
        pixels: How it is normalised, before the resize as in the paper's code.

    Returns:
        A dict: "image" `(rows, columns, 3)` float32, the canvas; "image_size" `(2,)` int32, the resized image's rows
        and columns; "scale" float32, the factor; "original_size" `(2,)` int32.

    Raises:
        InputError: `image` has the wrong shape or type, or is empty.
    """
    import cv2

    image = check_image(image)
    height, width = image.shape[:2]
    placed = place_image(height, width, size)
    scale, (rows, columns) = size.scale(height, width), placed["image_size"]
    fx, fy = max(scale, 1 / width), max(scale, 1 / height)  # at least one pixel
    canvas = np.zeros((*size.canvas(height, width), 3), np.float32)
    canvas[:rows, :columns] = cv2.resize(pixels(image), None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return {"image": canvas, **placed}


def place_image(height: int, width: int, size: Sizes) -> Batch:
    """Return what `prepare_image` does, without the image.

    Args:
        height, width: The image's rows and columns.
        size: How it is resized.
    """
    scale = size.scale(height, width)
    return {
        "image_size": np.array([max(round(scale * side), 1) for side in (height, width)], np.int32),  # as cv2.resize
        "scale": np.float32(scale),
        "original_size": np.array([height, width], np.int32),
    }


def prepare_test(
    image: np.ndarray, rois: np.ndarray, *, sizes: Sequence[Sizes], pixels: PixelNorm, spatial_scale: float | None
) -> Batch:
    """Return a batch of one image and its RoIs, padded to a multiple of 512.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        rois: `(N, 4)` in the image's pixels; N may be 0.
        sizes: How the image is resized; several make an image pyramid (section 5.2).
        pixels: How it is normalised.
        spatial_scale: Feature-map cells per pixel; RoIs that cover the same cells as an earlier one are dropped. None
            keeps all.

    Returns:
        The arrays of `prepare_image` with a leading axis of 1, "rois" `(1, R, 4)` and "roi_mask" `(1, R)`. With several
        sizes "image" and "image_size" are tuples with one entry per size, "level" `(1, R)` is the size at which each
        RoI is pooled (`boxes.pyramid_level`), "rois" are in its pixels and "scale" is `(1, R)`.

    Raises:
        InputError: `image` or `rois` have the wrong shape or type or are not finite, or `sizes` is empty.
    """
    if not sizes:
        raise InputError("sizes must not be empty")
    rois = check_boxes(rois, "rois")
    resized = [prepare_image(image, size=size, pixels=pixels) for size in sizes]
    factors = np.array([at_size["scale"] for at_size in resized])
    level = box_ops.pyramid_level(rois, factors)
    with np.errstate(over="ignore"):
        scaled = np.clip(rois * factors[level, None], -FAR, FAR)
    if spatial_scale is not None:
        kept = box_ops.unique_rois(scaled, spatial_scale, level)
        scaled, level = scaled[kept], level[kept]
    count = max(math.ceil(len(scaled) / ROI_MULTIPLE), 1) * ROI_MULTIPLE
    batch = {**resized[0], "rois": pad(scaled, count), "roi_mask": np.arange(count) < len(scaled)}
    if len(sizes) > 1:
        batch |= {name: tuple(at_size[name] for at_size in resized) for name in ("image", "image_size")}
        batch |= {"level": pad(level, count), "scale": factors[pad(level, count)]}
    return jax.tree.map(lambda value: value[None], batch)


def pad(array: np.ndarray, count: int) -> np.ndarray:
    """Append zeros to `(N, ...)` to make `(count, ...)`."""
    return np.pad(array, [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1))


def check_proposals(records: Sequence[Record], proposals: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless every record has proposals."""
    known = set(proposals)
    missing = [record.image_id for record in records if record.image_id not in known]
    if missing:
        raise InputError(f"no proposals for {len(missing)} of {len(records)} records, such as {missing[0]!r}")


@dataclass(frozen=True)
class TestBatches:
    """One batch per image, in the records' order; see `prepare_test`."""

    __test__ = False  # not a pytest class

    records: Sequence[Record]
    proposals: Mapping[str, np.ndarray]
    sizes: Sequence[Sizes]
    pixels: PixelNorm
    spatial_scale: float | None

    def __post_init__(self) -> None:
        check_proposals(self.records, self.proposals)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Batch:
        record = self.records[i]
        return prepare_test(
            record.load(),
            self.proposals[record.image_id],
            sizes=self.sizes,
            pixels=self.pixels,
            spatial_scale=self.spatial_scale,
        )


class RandomAccess(Protocol):
    """A sequence with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


def prefetch(
    batches: RandomAccess, *, start: int = 0, stride: int = 1, threads: int = 2, workers: int = 0
) -> Generator:
    """Yield the items `start`, `start + stride`, ... in order, prepared ahead of time.

    Args:
        batches: A random-access sequence whose items depend only on their index.
        start: Index of the first item.
        stride: Difference between successive indices.
        threads: Number of threads that prepare items, in this process or in each worker.
        workers: Number of processes that prepare items; 0 for threads of this process. It does not change the items.
    """
    import grain
    from absl import flags

    items = grain.MapDataset.source(batches)[start::stride]
    ahead = items.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own absl flags
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        ahead = ahead.mp_prefetch(options, lambda *_: end_with_parent())
    made = iter(ahead)
    try:
        with held_signals() if workers else nullcontext():
            first = list(islice(made, 1))  # starts the threads that start the workers
        yield from first
        yield from made
    finally:
        made.close()
