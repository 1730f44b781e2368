"""Training batches, each a pure function of seed and step, so that a checkpoint needs only the step.

An epoch's plan sets the order, orientation and size of its images. A batch holds images of one canvas; the paper's
code pads to the larger of two random images instead. Arrays are NumPy.

Shape letters: B images, R RoIs, K foreground classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from frcnn_jax.data.batches import Batch, Sizes, check_proposals, pad, place_image, prepare_image
from frcnn_jax.data.records import Record
from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.training.sampling import assign, sample


class Entry(NamedTuple):
    """An image in the plan."""

    record: int
    mirrored: bool
    size: Sizes


@dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The batches of a training run, a random-access sequence by step.

    Attributes:
        records: The training split.
        proposals: `(N, 4)` boxes by image id.
        box_stats: "mean" and "std" of the regression targets, `(K + 1, 4)` each; see `target_statistics`.
        sizes: How images are resized; if several, one is drawn per image and epoch.
        pixels: How images are normalised.
        steps: Number of steps, the length of the sequence.
        images_per_batch: B, summed over all processes.
        rois_per_image: R, including padding.
        fg_fraction: Maximum fraction of foreground RoIs; see `sample`.
        fg_iou: Minimum IoU of foreground.
        bg_iou: Range [low, high) of the IoU of background; low is 0 in an image without objects, see `sample`.
        flip: Whether to add mirrored images.
        scale_jitter: Range (low, high) of a factor on the size of an image, drawn uniformly per image and epoch; empty
            for none. Canvases are those of the sizes themselves and of the largest.
        color_jitter: Greatest change of the factors of `jitter_colors`, in [0, 1], drawn per image; 0 for none.
        seed: Seed of all random draws.
        maps: Returns the feature map of a record, mirrored or not, at a size (`feature_maps.FeatureMaps`), which then
            takes the place of the image; None for images. Not with jitter.
        process: Index of this process and number of processes; each makes its share of every batch.

    Raises:
        InputError: `records` or `sizes` is empty, a record has no proposals, a number is out of range, `box_stats` has
            too few classes, or `maps` are to be jittered.
    """

    records: Sequence[Record]
    proposals: Mapping[str, np.ndarray]
    box_stats: Mapping[str, np.ndarray]
    sizes: Sequence[Sizes]
    pixels: PixelNorm
    steps: int
    images_per_batch: int = 2
    rois_per_image: int = 64
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou: tuple[float, float] = (0.1, 0.5)
    flip: bool = True
    seed: int = 0
    process: tuple[int, int] = (0, 1)
    maps: Callable[[Record, bool, Sizes], np.ndarray] | None = None
    scale_jitter: tuple[float, ...] = ()
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        check_proposals(self.records, self.proposals)
        for name in ("records", "sizes"):
            if not len(getattr(self, name)):
                raise InputError(f"{name} must not be empty")
        for name in ("steps", "images_per_batch", "rois_per_image"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.scale_jitter and not (len(self.scale_jitter) == 2 and 0 < self.scale_jitter[0] <= self.scale_jitter[1]):
            raise InputError(f"scale_jitter must be (low, high) with 0 < low <= high, got {self.scale_jitter}")
        if not 0 <= self.color_jitter <= 1:
            raise InputError(f"color_jitter must be from 0 to 1, got {self.color_jitter}")
        if self.maps and (self.scale_jitter or self.color_jitter):
            raise InputError("maps are of images as they are: scale_jitter and color_jitter need images")
        outputs = max((int(label) for record in self.records for label in record.labels), default=0) + 1
        shapes = [np.shape(self.box_stats[name]) for name in ("mean", "std")]
        if any(len(shape) != 2 or shape[0] < outputs or shape[1] != 4 for shape in shapes):
            raise InputError(f"box_stats must be (K + 1, 4) with K of at least {outputs - 1}, got {shapes}")

    def __len__(self) -> int:
        return self.steps

    @lru_cache(maxsize=4)  # noqa: B019 - a run has one of these
    def plan(self, epoch: int) -> list[list[Entry]]:
        """Return the batches of an epoch: every image once per orientation.

        If the last batch of a canvas is not full, the canvas's first images fill it.
        """
        by_canvas: dict[tuple[int, int], list[Entry]] = {}
        orientations = (False, True) if self.flip else (False,)
        shape = len(self.records), len(orientations)
        low, high = self.scale_jitter or (1, 1)
        draws = np.random.default_rng((self.seed, epoch, 2)).integers(len(self.sizes), size=shape)
        factors = np.random.default_rng((self.seed, epoch, 3)).uniform(low, high, size=shape)
        for (i, record), *drawn in zip(enumerate(self.records), draws, factors, strict=True):
            for mirrored, draw, factor in zip(orientations, *drawn, strict=True):
                size = self._jittered(self.sizes[draw], factor)
                by_canvas.setdefault(size.canvas(record.height, record.width), []).append(Entry(i, mirrored, size))
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for _, entries in sorted(by_canvas.items()):
            order = rng.permutation(len(entries))
            for start in range(0, len(entries), self.images_per_batch):
                places = np.arange(start, start + self.images_per_batch) % len(entries)
                batches.append([entries[order[place]] for place in places])
        return [batches[i] for i in rng.permutation(len(batches))]

    def _jittered(self, size: Sizes, factor: float) -> Sizes:
        if not self.scale_jitter:
            return size
        return replace(size.scaled(factor), canvases=(size, size.scaled(self.scale_jitter[1])))

    def __getitem__(self, step: int) -> Batch:
        """Return this process's share of a step's batch.

        Returns:
            A dict of arrays: "image" `(B, rows, columns, 3)`, "image_size" `(B, 2)`, "scale" `(B,)`, "original_size"
            `(B, 2)` (see `prepare_image`); "rois" `(B, R, 4)` in canvas pixels, "roi_mask" `(B, R)`, "labels" `(B, R)`
            int32, "box_targets" `(B, R, 4)`, normalised, 0 for background; "index" `(B,)`, the image's number in the
            run.

        Raises:
            IndexError: The run has no such step.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        per_epoch = len(self.plan(0))
        plan = self.plan(step // per_epoch)
        entries = plan[step % per_epoch % len(plan)]  # where sizes are drawn, epochs differ by a few batches
        process, processes = self.process
        share = range(process * len(entries) // processes, (process + 1) * len(entries) // processes)
        images = [self._image(entries[place], step * self.images_per_batch + place) for place in share]
        return {name: np.stack([image[name] for image in images]) for name in images[0]}

    def _image(self, entry: Entry, index: int) -> Batch:
        record = self.records[entry.record]
        proposals, gt_boxes = self.proposals[record.image_id], record.boxes
        if entry.mirrored:
            proposals, gt_boxes = (box_ops.flip(b, record.width) for b in (proposals, gt_boxes))
        drawn = sample(
            assign(proposals, gt_boxes, record.labels),
            np.random.default_rng((self.seed, index, 1)),
            count=self.rois_per_image,
            fg_fraction=self.fg_fraction,
            fg_iou=self.fg_iou,
            bg_iou=self.bg_iou,
        )
        if self.maps:
            batch = place_image(record.height, record.width, entry.size)
            batch["image"] = self.maps(record, entry.mirrored, entry.size)
        else:
            image = record.load()
            if self.color_jitter:
                image = jitter_colors(image, self.color_jitter, np.random.default_rng((self.seed, index, 4)))
            batch = prepare_image(image[:, ::-1] if entry.mirrored else image, size=entry.size, pixels=self.pixels)
        foreground = drawn.labels[:, None] > 0
        normalised = (drawn.deltas - self.box_stats["mean"][drawn.labels]) / self.box_stats["std"][drawn.labels]
        batch["rois"] = pad(box_ops.scale(drawn.rois, batch["scale"]), self.rois_per_image)
        batch["roi_mask"] = np.arange(self.rois_per_image) < len(drawn.rois)
        batch["labels"] = pad(drawn.labels, self.rois_per_image)
        batch["box_targets"] = pad(np.where(foreground, normalised, 0).astype(np.float32), self.rois_per_image)
        batch["index"] = np.int32(index)
        return batch


def jitter_colors(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation, in this order, by factors drawn from [1 - strength, 1 + strength].

    Args:
        image: `(H, W, 3)` uint8 RGB.
        strength: In [0, 1].
        rng: Source of the factors.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    picture = Image.fromarray(image)
    kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for kind, factor in zip(kinds, rng.uniform(1 - strength, 1 + strength, len(kinds)), strict=True):
        picture = kind(picture).enhance(factor)
    return np.asarray(picture)
