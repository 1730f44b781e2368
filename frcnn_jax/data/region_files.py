"""Files of boxes to classify or embed. Nothing in a file is executed.

| file | content | boxes |
|---|---|---|
| `.json` | `{image: [[x1, y1, x2, y2], ..]}` | 0-based, inclusive |
| `.json` | a COCO instances file, or a list of COCO results | (x, y, width, height) |
| `.npz` | an `(R, 4)` array per image | 0-based, inclusive |

An image is named by its path, its name, or its name without the ending; in COCO results, whose ids are numbers, by
the number in its name.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json, read_npz
from frcnn_jax.ops.boxes import as_float


def read_regions(path: str | Path) -> dict[str, np.ndarray]:
    """Read boxes by image, in the order of the file.

    Returns:
        `(R, 4)` float32 boxes (x1, y1, x2, y2) by name of the image, 0-based and inclusive.

    Raises:
        InputError: The file is missing, malformed or of another kind, or an image's boxes are not `(R, 4)` numbers.
    """
    path = Path(path)
    if path.suffix == ".npz":
        try:
            found: Mapping[str, Any] = read_npz(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable .npz file of boxes ({error})") from None
    elif path.suffix == ".json":
        content = read_json(path)
        is_coco = isinstance(content, list) or (isinstance(content, dict) and "annotations" in content)
        found = _coco_boxes(content, path) if is_coco else content
    else:
        raise InputError(f"{path}: expected a .json or .npz file of boxes")
    if not isinstance(found, Mapping):
        raise InputError(f'{path}: expected {{"image": [[x1, y1, x2, y2], ..]}}, a COCO file or a list of COCO results')
    return {name: _checked(boxes, f"{path}: image {name!r}") for name, boxes in found.items()}


def _checked(boxes: Any, where: str) -> np.ndarray:
    try:
        array = as_float(np.asarray(boxes) if len(boxes) else np.zeros((0, 4)), "boxes")
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected a list of boxes [x1, y1, x2, y2]") from None
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{where}: expected (R, 4) boxes, got {array.shape}")
    return np.asarray(array, np.float32)


def _coco_boxes(content: Any, path: Path) -> dict[str, list[list[float]]]:
    images = content.get("images", []) if isinstance(content, dict) else []
    entries = content["annotations"] if isinstance(content, dict) else content
    try:
        names = {image["id"]: str(image["file_name"]) for image in images}
        boxes: dict[str, list[list[float]]] = defaultdict(list, {name: [] for name in names.values()})
    except (TypeError, KeyError):
        raise InputError(f"{path}: images must be a list of objects with id and file_name") from None
    for i, entry in enumerate(entries if isinstance(entries, list) else ()):
        try:
            image_id = entry["image_id"]
            x, y, width, height = map(float, entry["bbox"])
            name = names[image_id] if names else str(image_id)
        except (TypeError, KeyError, ValueError, OverflowError):
            raise InputError(
                f"{path}: entry {i}: expected a known image_id and a bbox of four numbers, got {str(entry)[:80]}"
            ) from None
        boxes[name].append([x, y, x + width - 1, y + height - 1])
    return dict(boxes)


def regions_of_images(
    images: Sequence[Path], regions: Mapping[str, np.ndarray], source: str | Path
) -> list[np.ndarray]:
    """Return the boxes of each image.

    Args:
        images: Paths.
        regions: Boxes by name, from `read_regions`.
        source: The file, for messages.

    Raises:
        InputError: An image has no boxes, or two names match it.
    """
    by_number = {str(int(name)): name for name in regions if name.isdecimal()}
    found, missing = [], []
    for image in images:
        names = dict.fromkeys((str(image), image.name, image.stem))
        matches = [name for name in names if name in regions]
        digits = "".join(filter(str.isdecimal, image.stem.rpartition("_")[2]))
        if not matches and digits and str(int(digits)) in by_number:
            matches = [by_number[str(int(digits))]]
        if len(matches) > 1:
            raise InputError(f"{source}: both {matches[0]!r} and {matches[1]!r} are names of {image}")
        missing += [image] * (not matches)
        found += [regions[name] for name in matches]
    if missing:
        known = f"its first is {next(iter(regions))!r}" if regions else "it is empty"
        raise InputError(
            f"{source}: no boxes for {len(missing)} of {len(images)} images, such as {missing[0]}; {known}"
        )
    return found
