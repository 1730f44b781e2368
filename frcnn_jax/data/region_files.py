"""Files of boxes to classify or embed. Nothing in a file is executed.

| file | content | boxes |
|---|---|---|
| `.json` | `{image: [[x1, y1, x2, y2], ..]}` | 0-based, inclusive |
| `.json` | a COCO instances file, or a list of COCO results | (x, y, width, height) |
| `.npz` | an `(R, 4)` array per image | 0-based, inclusive |

A file names an image by its path, or by an end of it such as its name, with or without the suffix; COCO results, whose
ids are numbers, by the number that is its name, as in 000000000139.jpg and COCO_val2014_000000000139.jpg.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.data.coco import coco_id
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding, read_json, read_npz


def read_regions(path: str | Path, images: Sequence[Path]) -> list[np.ndarray]:
    """Read the boxes of each image, in the order of the file.

    Args:
        path: The file.
        images: Paths of images. Only COCO results may lack some of them, which then have no boxes.

    Returns:
        `(R, 4)` float32 boxes (x1, y1, x2, y2), 0-based and inclusive, for each image.

    Raises:
        InputError: The file is missing, malformed or of another kind, an image has no boxes in it, a name may mean
            several images, or a box is not four numbers.
    """
    path = Path(path)
    content = _read_file(path)
    is_coco = isinstance(content, list) or (isinstance(content, dict) and "annotations" in content)
    numbered = isinstance(content, list)  # COCO results
    found = _coco_boxes(content, path) if is_coco else content
    if not isinstance(found, Mapping):
        raise InputError(f'{path}: expected {{"image": [[x1, y1, x2, y2], ..]}}, a COCO file or a list of COCO results')
    names = _match(images, found, path, numbered)
    if None in names and not (numbered and any(names)):
        missing = images[names.index(None)]
        known = f"its first is {next(iter(found))!r}" if found else "it is empty"
        raise InputError(
            f"{path}: no boxes for {names.count(None)} of {len(images)} images, such as {missing}; {known}"
        )
    return [_checked([] if name is None else found[name], f"{path}: image {name!r}") for name in names]


def _read_file(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path, names_differ=True)
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected a .json or .npz file of boxes")
    with decoding(path, "not a readable .npz file of boxes"):
        return read_npz(path)


def _coco_boxes(content: Any, path: Path) -> dict[str, list[list[float]]]:
    images, entries = (
        (content.get("images", []), content["annotations"]) if isinstance(content, dict) else ([], content)
    )
    try:
        names = {coco_id(image["id"]): str(image["file_name"]) for image in images}
    except (TypeError, KeyError, InputError):
        raise InputError(f"{path}: images must be a list of objects with id and file_name") from None
    if len(set(names.values())) < len(images):
        raise InputError(f"{path}: two images have the same id or file_name")
    if not isinstance(entries, list):
        raise InputError(f"{path}: annotations must be a list, got {str(entries)[:60]}")
    boxes: dict[str, list[list[float]]] = defaultdict(list, {name: [] for name in names.values()})
    for i, entry in enumerate(entries):
        try:
            image_id, (x, y, width, height) = entry["image_id"], _four_numbers(entry["bbox"])
            name = names[coco_id(image_id)] if names else str(image_id)
        except (TypeError, KeyError, ValueError, OverflowError):
            raise InputError(
                f"{path}: entry {i}: expected a known image_id and a bbox of four numbers, got {str(entry)[:80]}"
            ) from None
        boxes[name].append([x, y, x + width - 1, y + height - 1])
    return boxes


def _match(images: Sequence[Path], found: Mapping[str, Any], path: Path, numbered: bool) -> list[str | None]:
    """Return the name that each image has in the file, None where it has none."""
    by_name: dict[str, str] = {}
    taken: dict[str, Path] = {}
    names: list[str | None] = []
    for name in found:
        if (first := by_name.setdefault(Path(name).as_posix(), name)) != name:
            raise InputError(f"{path}: {first!r} and {name!r} are names of one image")
    for image in images:
        matches = [by_name[name] for name in dict.fromkeys(_names(image, numbered)) if name in by_name]
        if len(matches) > 1:
            raise InputError(f"{path}: both {matches[0]!r} and {matches[1]!r} are names of {image}")
        for name in matches:
            if name in taken:
                raise InputError(f"{path}: {name!r} is a name of both {taken[name]} and {image}")
            taken[name] = image
        names.append(matches[0] if matches else None)
    return names


def _names(image: Path, numbered: bool) -> Iterator[str]:
    parts = image.absolute().parts
    for start in range(len(parts)):
        end = Path(*parts[start:])
        yield from (end.as_posix(), end.as_posix().removesuffix(image.suffix))
    if numbered and (number := re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", image.stem)):
        yield number[1]


def _four_numbers(box: Any) -> list[float]:
    if not isinstance(box, list) or [type(side) in (int, float) for side in box] != [True] * 4:
        raise ValueError
    return [float(side) for side in box]


def _checked(boxes: Any, where: str) -> np.ndarray:
    if isinstance(boxes, list):
        for i, box in enumerate(boxes):
            try:
                boxes[i] = _four_numbers(box)
            except (ValueError, OverflowError):
                raise InputError(f"{where}: box {i}: expected [x1, y1, x2, y2], got {str(box)[:60]}") from None
        boxes = np.array(boxes, np.float64).reshape(-1, 4)
    if not isinstance(boxes, np.ndarray):
        raise InputError(f"{where}: expected a list of boxes [x1, y1, x2, y2], got {str(boxes)[:60]}")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise InputError(f"{where}: expected (R, 4) numbers, got {boxes.shape} {boxes.dtype}")
    with np.errstate(over="ignore"):  # infinity is reported as a box that is not finite
        return boxes.astype(np.float32)
