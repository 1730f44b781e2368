"""Statistics of a data set, and remarks on what in it looks wrong, each with what to do.

Shape letters: N objects of a split, M boxes of an example.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import Dataset, Record, without_difficult
from frcnn_jax.data.splits import Shared, describe_shared, repeated_images
from frcnn_jax.evaluation.recall import best_overlaps
from frcnn_jax.ops import boxes as box_ops

SMALL = 16  # pixels as the network sees them: objects below are hard to find; the paper's maps have a cell per 16
_MOST_SHRUNK = 0.5  # images resized by a smaller factor are far larger than what the network sees
_EXAMPLES = 12  # of a remark
_TWICE = 0.9  # IoU of two boxes around one object
_LONG = 10  # ratio of the sides of an unusually long box
_ENOUGH = 30  # objects from which a pattern in their places means something
_RECALL = 0.9  # recall at IoU 0.5 below which proposals limit the detector
_SIDES = (0, SMALL, 32, 96, np.inf)  # pixels as the network sees them: limits of the columns of recall


class Remark(NamedTuple):
    """What looks wrong and what to do, and examples: images with `(M, 4)` boxes, the most telling first."""

    text: str
    examples: Sequence[tuple[Record, np.ndarray]] = ()


class Table(NamedTuple):
    """Names of columns, and rows of as many texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Objects(NamedTuple):
    """The objects of a split, in the order of its records."""

    image: np.ndarray  # (N,) int: index of the record
    boxes: np.ndarray  # (N, 4) float64
    labels: np.ndarray  # (N,) int
    difficult: np.ndarray  # (N,) bool
    size: np.ndarray  # (N, 2) int: width and height of the image
    side: np.ndarray  # (N,) geometric mean of the box's sides, in pixels
    seen: np.ndarray  # (N,) the same as the network sees it
    overlap: np.ndarray  # (N,) greatest IoU with another object of the class in the image
    twin: np.ndarray  # (N,) greatest IoU with an earlier object of any class in the image


def gather_objects(dataset: Dataset, size: Sizes) -> Objects:
    """Return the objects of a split.

    Args:
        dataset: The split.
        size: How the network's images are resized.
    """
    records = dataset.records
    image = np.repeat(np.arange(len(records)), [len(r.labels) for r in records])
    boxes = np.concatenate([np.zeros((0, 4)), *(r.boxes.astype(np.float64) for r in records)])
    side = np.sqrt(box_ops.area(boxes))
    scale = np.array([size.scale(r.height, r.width) for r in records])[image] if records else np.zeros(0)
    overlaps = [_overlaps(r) for r in records]
    return Objects(
        image,
        boxes,
        np.concatenate([np.zeros(0, int), *(r.labels for r in records)]),
        np.concatenate([np.zeros(0, bool), *(r.difficult for r in records)]),
        np.array([(r.width, r.height) for r in records], int).reshape(-1, 2)[image],
        side,
        side * scale,
        np.concatenate([np.zeros(0), *(own for own, _ in overlaps)]),
        np.concatenate([np.zeros(0), *(twin for _, twin in overlaps)]),
    )


def _overlaps(record: Record) -> tuple[np.ndarray, np.ndarray]:
    boxes = record.boxes.astype(np.float64)
    iou = box_ops.iou(boxes, boxes) * ~np.eye(len(boxes), dtype=bool)
    same = record.labels[:, None] == record.labels
    return (iou * same).max(axis=1, initial=0), np.tril(iou).max(axis=1, initial=0)


def class_table(dataset: Dataset, objects: Objects, nms_iou: float) -> Table:
    """Return counts, sides, aspect ratios and overlaps per class."""
    header = (
        *("class", "images", "objects", "difficult", "side: min median max", f"seen under {SMALL} px"),
        *("width / height", f"IoU over {nms_iou:g}"),
    )
    ratio = _widths(objects) / _heights(objects)
    rows = []
    for label, name in enumerate(dataset.class_names, 1):
        own = objects.labels == label
        counts = (len(set(objects.image[own])), own.sum(), objects.difficult[own].sum())
        small, crowded = (objects.seen[own] < SMALL).sum(), (objects.overlap[own] > nms_iou).sum()
        sides, ratios = _spread(objects.side[own], "{:.0f}"), _spread(ratio[own], "{:.2g}")
        rows.append((name, *map(str, counts), sides, str(small), ratios, str(crowded)))
    return Table(header, rows)


def _widths(objects: Objects) -> np.ndarray:
    return objects.boxes[:, 2] - objects.boxes[:, 0] + 1


def _heights(objects: Objects) -> np.ndarray:
    return objects.boxes[:, 3] - objects.boxes[:, 1] + 1


def _spread(values: np.ndarray, form: str) -> str:
    return " ".join(form.format(v) for v in np.quantile(values, (0, 0.5, 1))) if len(values) else "-"


def format_table(table: Table) -> str:
    """Format a table as text, indented by two spaces: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in (table.header, *table.rows)
    )
    return "\n".join(f"  {line}" for line in lines)


def totals(dataset: Dataset) -> str:
    """Return numbers and sizes of the images of a split, and its objects, in one line."""
    records = dataset.records
    if not records:
        return "no images"
    heights, widths = [r.height for r in records], [r.width for r in records]
    return (
        f"{len(records)} images, {min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high; "
        f"{sum(len(r.labels) for r in records)} objects, {sum(int(r.difficult.sum()) for r in records)} of them "
        f"difficult; {sum(not len(r.labels) for r in records)} images without objects"
    )


def split_remarks(dataset: Dataset, objects: Objects, *, size: Sizes, nms_iou: float) -> list[Remark]:
    """Return remarks on a split.

    Args:
        dataset: The split.
        objects: Its objects.
        size: How the network's images are resized.
        nms_iou: IoU above which non-maximum suppression drops a box.
    """
    if dataset.has_crowds:  # regions of several objects
        dataset = without_difficult(dataset)
        objects = gather_objects(dataset, size)
    return [
        *_repeated(dataset),
        *_labelled_twice(dataset, objects),
        *_overlapping(dataset, objects, nms_iou),
        *_shifted(dataset, objects),
        *_scaled(dataset, objects),
        *_odd_shapes(dataset, objects),
        *_large_images(dataset, size),
        *_small_objects(dataset, objects, size),
    ]


def _examples(
    dataset: Dataset, objects: Objects, indices: np.ndarray, beside: float = 1.0
) -> list[tuple[Record, np.ndarray]]:
    """Return the first objects, at most one per image, each with those that overlap it by more than `beside`."""
    _, firsts = np.unique(objects.image[indices], return_index=True)
    found = []
    for i in indices[np.sort(firsts)[:_EXAMPLES]]:
        record = dataset.records[objects.image[i]]
        near = box_ops.iou(objects.boxes[[i]], record.boxes.astype(np.float64))[0] > beside
        found.append((record, np.concatenate([objects.boxes[[i]], record.boxes[near]])))
    return found


def _of(count: int, total: int, what: str) -> str:
    percent = 100 * count / total
    return f"{count} of {total} {what} ({f'{percent:.0f}' if percent >= 0.5 else 'under 1'} %)"


def _repeated(dataset: Dataset) -> Iterator[Remark]:
    if pairs := repeated_images(dataset.records):
        copy, original = pairs[0]
        yield Remark(
            f"{len(pairs)} images are copies of others, such as {copy.image_id!r} of {original.image_id!r}: remove "
            "them, and compare their boxes, which may differ",
            [(record, record.boxes) for pair in pairs for record in pair],
        )


def _labelled_twice(dataset: Dataset, objects: Objects) -> Iterator[Remark]:
    (twice,) = np.nonzero(objects.twin > _TWICE)
    if len(twice):
        yield Remark(
            f"{_of(len(twice), len(objects.boxes), 'objects')} have the box of another (IoU over {_TWICE}), such as in "
            f"{dataset.records[objects.image[twice[0]]].image_id!r}: delete one of the two, or the wrong class",
            _examples(dataset, objects, twice, beside=_TWICE),
        )


def _overlapping(dataset: Dataset, objects: Objects, nms_iou: float) -> Iterator[Remark]:
    (lost,) = np.nonzero((objects.overlap > nms_iou) & (objects.overlap <= _TWICE))
    if len(lost) > 0.05 * len(objects.boxes):
        lost = lost[np.argsort(-objects.overlap[lost], kind="stable")]
        yield Remark(
            f"{_of(len(lost), len(objects.boxes), 'objects')} overlap another of their class by more than "
            f"--config.nms_iou={nms_iou:g}, which then removes one of the two detections: raise it, to "
            f"{min(nms_iou + 0.2, _TWICE):g} for example, and compare the mAP",
            _examples(dataset, objects, lost, beside=nms_iou),
        )


def _shifted(dataset: Dataset, objects: Objects) -> Iterator[Remark]:
    """Compare how many boxes end at the border with how many end one pixel before it.

    Objects cut off by the border end there exactly. After a shift these boxes all end a pixel before it on one side.
    """
    if len(objects.boxes) < _ENOUGH:
        return
    gaps = np.round(np.stack([objects.boxes[:, :2], objects.size - 1 - objects.boxes[:, 2:]]))  # (2, N, 2)
    at, before = (np.sum(gaps == gap, axis=(1, 2)) for gap in (0, 1))
    off = (before >= max(5, 0.02 * len(objects.boxes))) & (before > 4 * at)  # left and top, right and bottom
    for side, (end, borders, way, base, advice) in enumerate(
        (
            ("begin", "left or top", "right and down", "from 1 where 0 is expected", "subtract 1 from"),
            ("end", "right or bottom", "left and up", "from 0 where 1 is expected", "add 1 to"),
        )
    ):
        if off[side] and not off[1 - side]:
            yield Remark(
                f"{before[side]} boxes {end} one pixel from the {borders} border and {at[side]} at it: they seem "
                f"shifted by one pixel, {way}, as if they counted {base}: {advice} their coordinates",
                _examples(dataset, objects, np.flatnonzero((gaps[side] == 1).any(axis=1))),
            )


def _scaled(dataset: Dataset, objects: Objects) -> Iterator[Remark]:
    """Find images, all or those of one size, whose boxes all lie in the upper left part."""
    sizes = [objects.size == own for own in np.unique(objects.size, axis=0)] if len(objects.size) else []
    groups = [own for both in sizes if (own := both.all(axis=1)).sum() >= _ENOUGH]
    for own in groups or [np.full(len(objects.boxes), len(objects.boxes) >= _ENOUGH)]:
        if not own.any():
            continue
        reach = ((objects.boxes[own, 2:] + 1) / objects.size[own]).max(axis=0)
        begins = (objects.boxes[own, :2] / objects.size[own]).min(axis=0)
        if (reach < 0.8).all() and (begins < (1 - reach) / 2).all():
            where = (
                "images" if len(groups) != 1 and not groups else "x".join(map(str, objects.size[own][0])) + " images"
            )
            yield Remark(
                f"none of {own.sum()} boxes in {where} reaches beyond {100 * reach[0]:.0f} % of the width and "
                f"{100 * reach[1]:.0f} % of the height: they may belong to images of another size. Label or export the "
                "images in the size that they have here",
                _examples(dataset, objects, np.flatnonzero(own)),
            )


def _odd_shapes(dataset: Dataset, objects: Objects) -> Iterator[Remark]:
    width, height = _widths(objects), _heights(objects)
    (tiny,) = np.nonzero(np.minimum(width, height) <= 2)
    if len(tiny):
        yield Remark(
            f"{_of(len(tiny), len(width), 'boxes')} are at most 2 pixels wide or high, such as in "
            f"{dataset.records[objects.image[tiny[0]]].image_id!r}: clicks by mistake? Delete or correct them",
            _examples(dataset, objects, tiny),
        )
    ratio = np.maximum(width / height, height / width)
    (long,) = np.nonzero((ratio > _LONG) & (np.minimum(width, height) > 2))
    long = long[np.argsort(-ratio[long], kind="stable")]
    if len(long):
        yield Remark(
            f"{_of(len(long), len(width), 'boxes')} are more than {_LONG} times as long as wide, such as in "
            f"{dataset.records[objects.image[long[0]]].image_id!r}: are they right? Proposals find few such",
            _examples(dataset, objects, long),
        )


def _large_images(dataset: Dataset, size: Sizes) -> Iterator[Remark]:
    scales = np.array([size.scale(r.height, r.width) for r in dataset.records])
    large = np.argsort(scales, kind="stable")[: (scales < _MOST_SHRUNK).sum()]
    if len(large):
        first = dataset.records[large[0]]
        yield Remark(
            f"{_of(len(large), len(scales), 'images')} are more than twice as large as the network sees them, such as "
            f"{first.image_id!r}, {first.width} x {first.height} pixels, at {100 * scales[large[0]]:.0f} %: shrink "
            "them, with their boxes, to read them faster; if objects are small, raise --config.min_size and max_size, "
            "or cut the images into tiles",
            [(dataset.records[i], dataset.records[i].boxes) for i in large],
        )


def _small_objects(dataset: Dataset, objects: Objects, size: Sizes) -> Iterator[Remark]:
    small = np.argsort(objects.seen, kind="stable")[: (objects.seen < SMALL).sum()]
    if not len(small):
        return
    names = [dataset.class_names[label - 1] for label in objects.labels[small]]
    most = ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names), key=lambda n: -names.count(n))[:3])
    factor = SMALL / np.quantile(objects.seen, 0.05)
    larger = [int(np.ceil(side * factor / 10) * 10) for side in (size.shorter, size.longer)]
    raised = f"--config.min_size={larger[0]} --config.max_size={larger[1]} would leave 5 %" if factor > 1 else ""
    advice = (
        raised if raised and larger[1] <= 2000 else "cut the images into tiles, or train at a larger --config.min_size"
    )
    yield Remark(
        f"{_of(len(small), len(objects.seen), 'objects')} are under {SMALL} pixels at the config's size, "
        f"{size.shorter} by at most {size.longer} ({most}), and hard to find: "
        + (advice if len(small) > 0.05 * len(objects.seen) else "expect to miss them, or train at a larger size"),
        _examples(dataset, objects, small),
    )


def class_remarks(datasets: Mapping[str, tuple[Dataset, Objects]]) -> list[Remark]:
    """Return remarks on the classes of some splits: names that may be the same class, and numbers of objects.

    Args:
        datasets: Splits with their objects by name; of "train" and "val" the numbers are compared.
    """
    names = next(iter(datasets.values()))[0].class_names if datasets else ()
    counts = {split: np.bincount(o.labels, minlength=len(names) + 1)[1:] for split, (_, o) in datasets.items()}
    total = sum(counts.values(), np.zeros(len(names), int))
    remarks = []
    same = [
        (names[i], names[j])
        for i, j in combinations(range(len(names)), 2)
        if _are_alike(names[i], names[j], rare=min(total[i], total[j]) <= 0.1 * max(total[i], total[j]))
    ]
    if same:
        pairs = ", ".join(f"{one!r} and {other!r}" for one, other in same[:5]) + (" and more" if len(same) > 5 else "")
        remarks.append(Remark(f"these may be one class: {pairs}: rename the objects of one of the two"))
    if unused := [name for name, count in zip(names, total, strict=True) if not count]:
        remarks.append(Remark(f"no objects of {_listed(unused)}: label some, or leave these out of the classes"))
    if counts.keys() >= {"train", "val"}:
        for of, other, advice in (
            ("val", "train", "they can't be learned; move images to the train split"),
            ("train", "val", "their AP can't be measured; move images to the val split"),
        ):
            if lacking := [n for n, own, o in zip(names, counts[of], counts[other], strict=True) if own and not o]:
                remarks.append(Remark(f"only the {of} split has objects of {_listed(lacking)}: {advice}"))
    if "train" in counts and (few := [f"{n} ({c})" for n, c in zip(names, counts["train"], strict=True) if 0 < c < 20]):
        remarks.append(Remark(f"few train objects of {_listed(few)}: label more, some 50 at least, or leave these out"))
    return remarks


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _are_alike(one: str, other: str, *, rare: bool) -> bool:
    """Return whether two names differ in case, spaces and punctuation alone, or a rare one by about a letter."""
    one, other = (re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) for name in (one, other))
    if one == other:
        return bool(one)
    digits = [re.sub(r"\D", "", name) for name in (one, other)]
    return (
        rare
        and digits[0] == digits[1]
        and min(len(one), len(other)) > 3
        and SequenceMatcher(None, one, other).ratio() > 0.85
    )


def shared_remarks(shared: Shared, val_set: Dataset) -> list[Remark]:
    """Return remarks on the images that the train and the val split have in common."""
    by_id = {record.image_id: record for record in val_set.records}
    found = [ids for ids in shared if ids]
    lines = describe_shared(shared, len(val_set.records))
    return [Remark(line, [(by_id[i], by_id[i].boxes) for i in ids]) for line, ids in zip(lines, found, strict=True)]


def copy_remarks(copies: Mapping[str, str], val_set: Dataset) -> list[Remark]:
    """Return a remark on val images that look like train images, by id, if there are any."""
    found = [record for record in val_set.records if record.image_id in copies]
    if not found:
        return []
    one = found[0].image_id
    text = (
        f"{len(found)} of the {len(val_set.records)} val images look like a train image, such as {one!r} like "
        f"{copies[one]!r}: copies in another size or quality, or pictures of one scene, belong in one split"
    )
    return [Remark(text, [(record, record.boxes) for record in found])]


def recall_by_class(
    dataset: Dataset, proposals: Mapping[str, np.ndarray], objects: Objects, max_boxes: int
) -> tuple[Table, list[Remark]]:
    """Return the recall of proposals at IoU 0.5 by class and by side as the network sees it, and remarks on it.

    Args:
        dataset: The split.
        proposals: `(N, 4)` boxes by image id.
        objects: The split's objects; difficult ones do not count.
        max_boxes: Maximum number of proposals per image.
    """
    best = best_overlaps(dataset, proposals, max_boxes)
    counts, missed = ~objects.difficult, ~objects.difficult & (best < 0.5)
    columns = [(objects.seen >= low) & (objects.seen < high) for low, high in pairwise(_SIDES)]
    groups = {name: objects.labels == label for label, name in enumerate(dataset.class_names, 1)}
    rows = []
    for name, own in {**groups, "all": np.full(len(best), True)}.items():
        cells = [counts & own & column for column in (np.full(len(best), True), *columns)]
        rows.append((name, *(f"{np.mean(best[c] >= 0.5):.3f} of {c.sum()}" if c.any() else "-" for c in cells)))
    header = ("class", "all", f"under {SMALL} px", f"{SMALL} to 32", "32 to 96", "over 96")
    remarks = []
    if missed.sum() > (1 - _RECALL) * counts.sum():
        remarks.append(
            Remark(
                f"{_of(int(missed.sum()), int(counts.sum()), 'objects')} have no proposal with IoU 0.5 and can't be "
                "found: try --config.proposals=quality, a larger --config.proposal_size or --config.max_proposals",
                _examples(dataset, objects, np.flatnonzero(missed)),
            )
        )
    return Table(header, rows), remarks
