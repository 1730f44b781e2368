"""Proposals in the pickles of Detectron2 and mmdetection, read without executing anything in them.

| content | boxes | score |
|---|---|---|
| Detectron2's dict of `ids`, `boxes`, `objectness_logits` (or `indexes`, `scores`), `bbox_mode` | its mode | logits |
| mmdetection 3's dict of InstanceData or dicts with `bboxes` and `scores` by `folder/name.jpg` | `xyxy` | `scores` |
| mmdetection 2's list of `(N, 4)` or `(N, 5)` arrays, which names no images | `xyxy` | fifth column |
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_bytes
from frcnn_jax.pickles import NumberArray, load_numbers
from frcnn_jax.proposals.entries import Content, Entry, Options, best_first, split_scores, to_inclusive


class _Instances:
    """A pickled InstanceData of mmengine: created empty, then given its attributes."""

    fields: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = dict(state)


_KNOWN = {
    ("detectron2.structures.boxes", "BoxMode"): int,
    ("mmengine.structures.instance_data", "InstanceData"): _Instances,
    ("mmengine.data.instance_data", "InstanceData"): _Instances,
}


def read_pickle(path: Path, options: Options) -> Content:
    """Read a pickle of one of the kinds in this module; malformed files raise errors of many kinds."""
    data = read_bytes(path)
    content = load_numbers(data, _KNOWN)
    if isinstance(content, list):
        return Content("mmdetection 2 list", _bounded(_listed(content, options), len(data)), ("ids",))
    if not isinstance(content, dict):
        raise InputError(f"expected a dict or a list, got a {type(content).__name__}")
    if content and all(isinstance(value, _Instances | dict) for value in content.values()):
        return Content("mmdetection 3 instances", _bounded(_instances(content), len(data)))
    return Content("Detectron2 proposals", _bounded(_detectron(content), len(data)))


def _bounded(entries: Iterator[Entry], size: int) -> Iterator[Entry]:
    """Refuse pickles that hold the same boxes many times, and so would take unbounded memory."""
    for entry in entries:
        size -= entry.boxes.size
        if size < 0:
            raise InputError("it holds more boxes than bytes")
        yield entry


def _detectron(content: Mapping[Any, Any]) -> Iterator[Entry]:
    names = (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))
    lists = [content.get(name, content.get(former)) for name, former in names]
    mode = content.get("bbox_mode", 0)
    if any(values is None for values in lists):
        raise InputError(
            "expected Detectron2's ids, boxes and objectness_logits, or mmdetection's bboxes and scores by image, got "
            + ", ".join(str(name)[:60] for name in list(content)[:9] if isinstance(name, str | int))
        )
    if mode not in (0, 1):
        raise InputError(f"bbox_mode must be XYXY_ABS (0) or XYWH_ABS (1), got {mode!r}")
    lists = [values.array if isinstance(values, NumberArray) else values for values in lists]
    if len({len(values) for values in lists}) > 1:
        raise InputError("expected as many ids as boxes and logits, got " + ", ".join(str(len(v)) for v in lists))
    for image_id, boxes, logits in zip(*lists, strict=True):
        yield _entry(image_id, boxes, logits, "xywh" if mode else "xyxy")


def _instances(content: Mapping[Any, Any]) -> Iterator[Entry]:
    for name, instances in content.items():
        fields = instances.fields if isinstance(instances, _Instances) else instances
        if fields.get("bboxes") is None:
            raise InputError(f"image {_text(name)!r}: expected bboxes")
        yield _entry(name, fields["bboxes"], fields.get("scores"), "xyxy")


def _listed(arrays: list, options: Options) -> Iterator[Entry]:
    if any(isinstance(array, dict) for array in arrays):
        raise InputError("a list of dicts; expected a dict of them by file name, or a list of arrays of boxes")
    if options.ids is None:
        raise InputError(
            "a list of mmdetection 2, which names no images: give their ids in order, as ids=FILE"
            " (frcnn proposals convert --ids FILE), a text file of one per line or a COCO annotation file"
        )
    if len(options.ids) != len(arrays):
        raise InputError(f"it has {len(arrays)} images, and there are {len(options.ids)} ids")
    for (image_id, file_name), array in zip(options.ids, arrays, strict=True):
        try:
            yield split_scores(image_id, _numbers(array), "xyxy", file_name)
        except InputError as error:
            raise InputError(f"image {image_id!r}: {error}") from None


def _entry(image_id: Any, boxes: Any, scores: Any, box_format: str) -> Entry:
    image_id = _text(image_id)
    try:
        boxes = _numbers(boxes)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"expected (N, 4) boxes, got {boxes.shape}")
        boxes = to_inclusive(boxes, box_format)
        if scores is not None:
            scores = _numbers(scores)
            return best_first(image_id, boxes, scores if scores.size else np.zeros(0))
    except InputError as error:
        raise InputError(f"image {image_id!r}: {error}") from None
    return Entry(image_id, boxes)


def _text(image_id: Any) -> str:
    if isinstance(image_id, NumberArray):
        image_id = image_id.array.item()
    if not isinstance(image_id, str | int | np.integer):
        raise InputError(f"expected an image id, a text or a number, got a {type(image_id).__name__}")
    return str(image_id)


def _numbers(values: Any) -> np.ndarray:
    """Return an array, or a list of numbers or short rows, as an array; `(0, 4)` if it holds nothing."""
    if isinstance(values, NumberArray):
        array = values.array
    elif isinstance(values, list | tuple):
        rows = [row.array.tolist() if isinstance(row, NumberArray) and row.array.size <= 5 else row for row in values]
        flat = [n for row in rows for n in (row if isinstance(row, list | tuple) and len(row) <= 5 else [row])]
        if not all(isinstance(n, int | float) for n in flat):  # nested deeper, it could be exponentially large
            raise InputError("expected rows of 4 or 5 numbers; if it has an array per class, concatenate them")
        array = np.asarray(rows)
    else:
        raise InputError(f"expected an array, got a {type(values).__name__}")
    return array if array.size else np.zeros((0, 4))
