"""Images resized into canvases of static shapes, batches for testing, and making them ahead of time.

Shape letters: B images, R RoIs.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from frcnn_jax.data.records import Record
from frcnn_jax.data.workers import end_with_parent
from frcnn_jax.ops import boxes as box_ops

PIXEL_MEANS = np.array([102.9801, 115.9465, 122.7717], np.float32)  # BGR


ROI_MULTIPLE = 512  # at test, RoIs are padded to a multiple of this


_CANVAS_MULTIPLE = 16


Batch = dict[str, Any]  # of arrays


@dataclass(frozen=True)
class Sizes:
    """The shorter side of a resized image, unless the longer one would be over `longer` (pixels)."""

    shorter: int = 600
    longer: int = 1000

    def scale(self, height: int, width: int) -> float:
        """The factor for an image of this size."""
        scale = self.shorter / min(height, width)
        return scale if round(scale * max(height, width)) <= self.longer else self.longer / max(height, width)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The smallest of the four canvases (shorter side by 4/3 of it or by `longer`, and upright) that holds the
        resized image."""
        scale = self.scale(height, width)
        rows, columns = round(scale * height), round(scale * width)
        short, middle, long = (
            math.ceil(side / _CANVAS_MULTIPLE) * _CANVAS_MULTIPLE
            for side in (self.shorter, min(self.shorter * 4 / 3, self.longer), self.longer)
        )
        canvases = ((short, middle), (middle, short), (short, long), (long, short))
        return min((c for c in canvases if c[0] >= rows and c[1] >= columns), key=math.prod)


def prepare_image(image: np.ndarray, sizes: Sizes) -> Batch:
    """`(H, W, 3)` uint8 RGB -> image (canvas, BGR float32, means subtracted before the resize), image_size, scale and
    original_size."""
    import cv2

    height, width = image.shape[:2]
    scale = sizes.scale(height, width)
    rows, columns = max(round(scale * height), 1), max(round(scale * width), 1)
    canvas = np.zeros((*sizes.canvas(height, width), 3), np.float32)
    centred = image[..., ::-1].astype(np.float32) - PIXEL_MEANS
    canvas[:rows, :columns] = cv2.resize(centred, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return {
        "image": canvas,
        "image_size": np.array([rows, columns], np.int32),
        "scale": np.float32(scale),
        "original_size": np.array([height, width], np.int32),
    }


def prepare_test(image: np.ndarray, rois: np.ndarray, *, sizes: Sequence[Sizes], spatial_scale: float | None) -> Batch:
    """A batch of one image and its RoIs, padded to a multiple of ROI_MULTIPLE.

    With several sizes, "image" and "image_size" are tuples, one entry a size, and "level" `(B, R)` says to which of
    them a RoI belongs (`boxes.pyramid_level`); "rois" are in that one's pixels and "scale" is `(B, R)`.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        rois: `(N, 4)` in the image's pixels; N may be 0.
        sizes: how the image is resized.
        spatial_scale: the network's; RoIs that fall in the same cells as an earlier one are left out. None keeps all.
    """
    resized = [prepare_image(image, size) for size in sizes]
    factors = np.array([at_size["scale"] for at_size in resized])
    level = box_ops.pyramid_level(rois, factors)
    scaled = rois * factors[level, None]
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
    """`(N, ...)` -> `(count, ...)`, zeros after the N."""
    return np.pad(array, [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1))


class RandomAccess(Protocol):
    """What can be read at any place."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Batch: ...


def prefetch(
    batches: RandomAccess, start: int = 0, *, stride: int = 1, threads: int = 2, workers: int = 0
) -> Generator:
    """The items `start`, `start + stride` and so on of a random-access sequence, in order, made ahead of time in
    `threads`, of this process or of each of `workers` processes. However many there are, the items are the same."""
    import grain
    from absl import flags

    items = grain.MapDataset.source(batches)[start::stride]
    ahead = items.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        ahead = ahead.mp_prefetch(options, lambda *_: end_with_parent())
    made = iter(ahead)
    try:
        yield from made
    finally:
        made.close()


@dataclass(frozen=True)
class TestBatches:
    """One batch an image, in the records' order: see `prepare_test`."""

    __test__ = False  # not a pytest class

    records: Sequence[Record]
    proposals: Mapping[str, np.ndarray]
    sizes: Sequence[Sizes]
    spatial_scale: float | None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Batch:
        record = self.records[i]
        return prepare_test(
            record.load(), self.proposals[record.image_id], sizes=self.sizes, spatial_scale=self.spatial_scale
        )
