"""COCO instances files.

Boxes there are (x, y, width, height), 0-based, width = x2 - x1 + 1.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import Dataset, Record, collect_records, image_path, load_image, make_record
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json


def read_coco(
    annotations: str | Path,
    *,
    image_dir: str | Path,
    class_names: Sequence[str] = (),
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read a COCO instances file (`{"images": [..], "annotations": [..], "categories": [..]}`).

    Crowd regions count as difficult. Boxes (x, y, width, height) become (x, y, x + width - 1, y + height - 1), at least
    one pixel wide and high.

    Args:
        annotations: The JSON file.
        image_dir: The folder that its file names are relative to.
        class_names: The names of labels 1 to K; by default its categories, by ascending id.
        on_problem: Receives missing or repeated images, repeated annotations, unknown categories, and boxes that are
            empty or exceed the image by more than one pixel.

    Raises:
        InputError: The file is missing or not in this format.
    """
    annotations = Path(annotations)
    content = read_json(annotations)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: int(c["id"]))}
        objects: dict[int, list[dict]] = {int(image["id"]): [] for image in content["images"]}
        entries = [dict(entry) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{annotations}: not a COCO instances file ({type(error).__name__}: {error})") from None
    for what, values in (("id", [c["id"] for c in content["categories"]]), ("name", list(categories.values()))):
        if len(set(values)) < len(values):
            raise InputError(f"{annotations}: two categories have the same {what}")
    class_names = tuple(class_names or categories.values())
    labels = {number: class_names.index(name) + 1 for number, name in categories.items() if name in class_names}
    seen = set()
    for i, entry in enumerate(entries):
        own, image_id = repr(entry.get("id")), entry.get("image_id")  # both may have any type
        if not isinstance(image_id, int) or image_id not in objects:
            on_problem(InputError(f"{annotations}: annotation {i}: no image has the id {image_id!r}"))
        elif own in seen:
            on_problem(InputError(f"{annotations}: annotation {i}: its id {own} is used twice"))
        else:
            objects[image_id].append(entry)
            seen |= {own} - {"None"}
    folder = Path(image_dir)
    readers = (
        (str(number), partial(_read_image, image, objects[number], labels, folder, annotations, on_problem))
        for image in content["images"]
        for number in [int(image["id"])]
    )
    return Dataset(class_names, collect_records(readers, annotations, on_problem))


def _read_image(
    image: dict, entries: Sequence[dict], labels: dict[int, int], folder: Path, source: Path, on_problem: OnProblem
) -> Record:
    name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    where = f"{source}: image {image['id']}"
    if not isinstance(name, str):
        raise InputError(f"{where}: file_name must be a string, got {name!r}")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise InputError(f"{where}: height and width must be positive integers, got {height!r} and {width!r}")
    path = image_path(folder, name)
    objects = []
    for entry in entries:
        with ReportTo(on_problem, f"{where} ({name}): annotation {entry.get('id')}"):
            objects.append(_read_object(entry, labels, height, width))
    return make_record(
        str(int(image["id"])), height, width, objects, partial(load_image, path, expected_size=(height, width))
    )


def _read_object(entry: dict, labels: dict[int, int], height: int, width: int) -> tuple[list[float], int, bool]:
    category = entry.get("category_id")
    if not isinstance(category, int) or category not in labels:
        raise InputError(f"unknown category {category!r}; the categories are {', '.join(map(str, labels))}")
    box = entry.get("bbox")
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"bbox must be four numbers, got {box!r}") from None
    if not (w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise InputError(f"bbox {box}: expected x, y, width > 0, height > 0 within the {width} x {height} image")
    x1, y1 = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x2, y2 = min(max(x + w - 1, x1), width - 1), min(max(y + h - 1, y1), height - 1)
    return [x1, y1, x2, y2], labels[category], bool(entry.get("iscrowd", 0))
