"""From records and proposals to batches of static shapes.

The plan of an epoch (which images, mirrored or not, in which order and canvas) is a pure function of the seed and the
epoch, and a step's batch of the plan, so a checkpoint needs only the step. A batch holds images of one canvas; the
paper pads to the larger of two random images instead. Arrays are NumPy.

Shape letters: B images, R RoIs.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from frcnn_jax import boxes as box_ops
from frcnn_jax.datasets import Record
from frcnn_jax.sampling import assign, sample
from frcnn_jax.workers import end_with_parent

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
    batch = {**resized[0], "rois": _pad(scaled, count), "roi_mask": np.arange(count) < len(scaled)}
    if len(sizes) > 1:
        batch |= {name: tuple(at_size[name] for at_size in resized) for name in ("image", "image_size")}
        batch |= {"level": _pad(level, count), "scale": factors[_pad(level, count)]}
    return jax.tree.map(lambda value: value[None], batch)


def _pad(array: np.ndarray, count: int) -> np.ndarray:
    return np.pad(array, [(0, count - len(array))] + [(0, 0)] * (array.ndim - 1))


class Entry(NamedTuple):
    """An image in the plan."""

    record: int
    mirrored: bool
    size: Sizes


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The batches of a training run by step: a random-access sequence, each a pure function of the seed and the step.

    Args:
        records, proposals: the split, and by image id its `(N, 4)` boxes.
        box_stats: "mean" and "std" `(K + 1, 4)` by which targets are normalised.
        sizes: how images are resized; of several, one is drawn for each image and epoch.
        steps: the length of the sequence.
        images_per_batch, rois_per_image: B and R.
        fg_fraction, fg_iou, bg_iou: as `sampling.sample`.
        flip: mirrored images double the set.
        seed: of everything drawn.
        process: which of how many processes this is; each makes its share of every batch.
    """

    records: Sequence[Record]
    proposals: Mapping[str, np.ndarray]
    box_stats: Mapping[str, np.ndarray]
    sizes: Sequence[Sizes]
    steps: int
    images_per_batch: int = 2
    rois_per_image: int = 64
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou: tuple[float, float] = (0.1, 0.5)
    flip: bool = True
    seed: int = 0
    process: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return self.steps

    @lru_cache(maxsize=4)  # noqa: B019 - a run has one of these
    def plan(self, epoch: int) -> list[list[Entry]]:
        """The epoch's batches, every image once each way. Where a canvas's images are no multiple of B, its first ones
        fill the last batch."""
        by_canvas: dict[tuple[int, int], list[Entry]] = {}
        ways = (False, True) if self.flip else (False,)
        draws = np.random.default_rng((self.seed, epoch, 2)).integers(
            len(self.sizes), size=(len(self.records), len(ways))
        )
        for (i, record), drawn in zip(enumerate(self.records), draws, strict=True):
            for mirrored, draw in zip(ways, drawn, strict=True):
                size = self.sizes[draw]
                by_canvas.setdefault(size.canvas(record.height, record.width), []).append(Entry(i, mirrored, size))
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for _, entries in sorted(by_canvas.items()):
            order = rng.permutation(len(entries))
            for start in range(0, len(entries), self.images_per_batch):
                places = np.arange(start, start + self.images_per_batch) % len(entries)
                batches.append([entries[order[place]] for place in places])
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, step: int) -> Batch:
        """The process's share of a step's batch (design: a dict of static shapes); "index" `(B,)` numbers the images of
        the run."""
        per_epoch = len(self.plan(0))
        entries = self.plan(step // per_epoch)[step % per_epoch]
        process, processes = self.process
        share = range(process * len(entries) // processes, (process + 1) * len(entries) // processes)
        images = [self._image(entries[place], step * self.images_per_batch + place) for place in share]
        return {name: np.stack([image[name] for image in images]) for name in images[0]}

    def _image(self, entry: Entry, index: int) -> Batch:
        record = self.records[entry.record]
        image, proposals, gt_boxes = record.load(), self.proposals[record.image_id], record.boxes
        if entry.mirrored:
            image = image[:, ::-1]
            proposals, gt_boxes = (box_ops.flip(b, record.width) for b in (proposals, gt_boxes))
        drawn = sample(
            assign(proposals, gt_boxes, record.labels),
            np.random.default_rng((self.seed, index, 1)),
            count=self.rois_per_image,
            fg_fraction=self.fg_fraction,
            fg_iou=self.fg_iou,
            bg_iou=self.bg_iou,
        )
        batch = prepare_image(image, entry.size)
        foreground = drawn.labels[:, None] > 0
        normalised = (drawn.deltas - self.box_stats["mean"][drawn.labels]) / self.box_stats["std"][drawn.labels]
        batch["rois"] = _pad(box_ops.scale(drawn.rois, batch["scale"]), self.rois_per_image)
        batch["roi_mask"] = np.arange(self.rois_per_image) < len(drawn.rois)
        batch["labels"] = _pad(drawn.labels, self.rois_per_image)
        batch["box_targets"] = _pad(np.where(foreground, normalised, 0).astype(np.float32), self.rois_per_image)
        batch["index"] = np.int32(index)
        return batch


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
