"""COCO: its instances files, its result files, and its metrics through pycocotools.

Boxes there are (x, y, width, height), 0-based, width = x2 - x1 + 1.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from frcnn_jax.data.records import Dataset, Record, leaves_folder, make_record, stop, why_no_image
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json


def read_coco(
    annotations: Path,
    image_dir: Path,
    class_names: Sequence[str] = (),
    on_problem: Callable[[InputError], None] = stop,
) -> Dataset:
    """A COCO instances file (`{"images": [..], "annotations": [..], "categories": [..]}`).

    A crowd region counts as difficult. Boxes (x, y, width, height) become (x, y, x + width - 1, y + height - 1), one
    pixel wide at least.

    Args:
        annotations: the JSON file.
        image_dir: where its file_names are.
        class_names: of labels 1 to K; empty for its categories, in the order of their ids.
        on_problem: gets a missing or doubled image, a doubled annotation, an unknown category, a box of no size or over
            the image's edge by more than a pixel.

    Raises:
        InputError: the file is missing, or not of this form.
    """
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
    ids = set()
    for i, entry in enumerate(entries):
        own = repr(entry.get("id"))  # what stands there may be of any type
        if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in objects:
            on_problem(InputError(f"{annotations}: annotation {i}: no image of id {entry.get('image_id')!r}"))
        elif own in ids:
            on_problem(InputError(f"{annotations}: annotation {i}: the id {own} is there twice"))
        else:
            objects[entry["image_id"]].append(entry)
        ids |= {own} - {"None"}
    records, seen = [], set()
    for image in content["images"]:
        try:
            number = int(image["id"])
            if number in seen:
                raise InputError(f"{annotations}: the image {number} is there twice")
            seen.add(number)
            records.append(_coco_record(image, objects[number], labels, Path(image_dir), annotations, on_problem))
        except InputError as problem:
            on_problem(problem)
    return Dataset(class_names, records)


def _coco_record(
    image: dict,
    entries: Sequence[dict],
    labels: dict[int, int],
    image_dir: Path,
    source: Path,
    on_problem: Callable[[InputError], None],
) -> Record:
    name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    where = f"{source}: image {image['id']}"
    if not isinstance(name, str) or leaves_folder(name):
        raise InputError(f"{where}: file_name must be a path within the folder, got {name!r}")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise InputError(f"{where}: height and width must be whole numbers over 0, got {height!r} and {width!r}")
    if reason := why_no_image(image_dir / name):
        raise InputError(f"{image_dir / name}: {reason} (named by {source})")
    objects = []
    for entry in entries:
        try:
            objects.append(_coco_object(entry, labels, height, width))
        except InputError as problem:
            on_problem(InputError(f"{where} ({name}): annotation {entry.get('id')}: {problem}"))
    return make_record(str(image["id"]), height, width, objects, image_dir / name)


def _coco_object(entry: dict, labels: dict[int, int], height: int, width: int) -> tuple[list[float], int, bool]:
    category = entry.get("category_id")
    if not isinstance(category, int) or category not in labels:
        raise InputError(f"unknown category {category!r}; the categories are {', '.join(map(str, labels))}")
    box = entry.get("bbox")
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"bbox must be four numbers, got {box!r}") from None
    if not (w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise InputError(f"bbox {box}: x, y, width > 0, height > 0 within the {width} x {height} image expected")
    x1, y1 = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x2, y2 = min(max(x + w - 1, x1), width - 1), min(max(y + h - 1, y1), height - 1)
    return [x1, y1, x2, y2], labels[category], bool(entry.get("iscrowd", 0))
