"""What the readers of proposal files return, and the box formats of files.

| format | numbers of a box, in 0-based pixels |
|---|---|
| `xyxy-inclusive` | x1, y1, x2, y2; the last column is x2, as inside this library |
| `xyxy` | x1, y1, x2, y2; the last column is x2 - 1 |
| `xywh` | x1, y1, width, height |
| `cxcywh` | centre x, centre y, width, height; the centre of pixel 0 is at 0.5 |
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.errors import InputError

BOX_FORMATS = ("xyxy-inclusive", "xyxy", "xywh", "cxcywh")


class Entry(NamedTuple):
    """The boxes of one image, best first: `(N, 4)`, 0-based and inclusive. `file_name` is "" if the file has none.

    `order` has the place of each box among those of its image in the file, None if they come in the file's order.
    """

    image_id: str
    boxes: np.ndarray
    file_name: str = ""
    order: np.ndarray | None = None


class Content(NamedTuple):
    """What a file was taken for, its images as `Entry` or the same tuples, and the `Options` that it needed."""

    kind: str
    entries: Iterable[tuple]
    needed: tuple[str, ...] = ()


class Options(NamedTuple):
    """What some files do not say: the format of their boxes, and the (id, file name) of their images in order."""

    box_format: str | None = None
    ids: Sequence[tuple[str, str]] | None = None


def to_inclusive(boxes: np.ndarray, box_format: str) -> np.ndarray:
    """Convert `(N, 4)` boxes of one of BOX_FORMATS to inclusive corners, at least one pixel wide and high."""
    if box_format == "xyxy-inclusive":
        return boxes
    first, second = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    begin = first - second / 2 if box_format == "cxcywh" else first
    end = second if box_format == "xyxy" else begin + second
    # a box without width or height stays reversed, which is reported
    return np.concatenate([begin, np.where(end > begin, np.maximum(end - 1, begin), end - 1)], axis=1)


def best_first(image_id: str, boxes: np.ndarray, scores: Any, file_name: str = "") -> Entry:
    """Return an image's boxes by descending score; equal ones keep their order."""
    scores = np.asarray(scores, np.float64)
    if scores.shape != boxes.shape[:1]:
        raise InputError(f"{boxes.shape} boxes and {scores.shape} scores")
    if np.isnan(scores).any():
        raise InputError(f"score {np.isnan(scores).argmax()} is nan")
    order = np.argsort(-scores, kind="stable")
    return Entry(image_id, boxes[order], file_name, order if (order[1:] < order[:-1]).any() else None)


def split_scores(image_id: str, array: np.ndarray, box_format: str, file_name: str = "") -> Entry:
    """Return an image's boxes from an `(N, 4)` array, or from an `(N, 5)` one with the score last, best first."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] not in (4, 5):
        raise InputError(f"expected (N, 4) boxes, or (N, 5) with the score last, got {array.shape} {array.dtype}")
    boxes = to_inclusive(array[:, :4], box_format)
    if array.shape[1] == 4:
        return Entry(image_id, boxes, file_name)
    return best_first(image_id, boxes, array[:, 4], file_name)
