"""LabelMe: a JSON file per image; rectangles from any corner, and the outer boxes of other outlines.

Shapes labelled `__ignore__` are left out, as LabelMe's own converter to COCO does.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.coco import has_key
from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    numbers,
    outer_box,
    read_annotated,
    sorted_names,
)
from frcnn_jax.data.listing import Files, Pairs, pair_images
from frcnn_jax.data.problems import OnProblem
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json


def find_labelme(files: Files) -> Found | None:
    """Find JSON files with shapes; see `common.Found`."""
    sources = [path for path in files.ending(".json") if has_key(files.root / path, "shapes", r"\[")]
    if not sources:
        return None
    contents = {path: _content(files.root / path) for path in sources}
    if not files.images and has_key(files.root / sources[0], "imageData", '"'):
        raise InputError(
            f"{files.root}: the images are only within the JSON (imageData); write them beside it as files"
        )
    pairs = pair_images(files, sources, lambda path: _find_image(files, path, contents[path]))
    splits = {}
    for name in pairs.splits(sources):
        own = pairs.of_split(name)
        splits[name] = Split(len(own.pairs), partial(_read, files, own, contents))
    names = [_label(shape) for content in contents.values() for shape in content["shapes"]]
    return Found("LabelMe", splits, partial(sorted_names, [name for name in names if name != _IGNORED]))


_IGNORED = "__ignore__"


def _label(shape: dict[str, Any]) -> str:
    return str(shape.get("label", "")).strip()


def _content(path: Path) -> dict[str, Any]:
    """Read a file without its copy of the image."""
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise InputError(f"{path}: not a LabelMe file, expected a list of shapes")
    return {"shapes": shapes, **{key: content.get(key) for key in ("imagePath", "imageHeight", "imageWidth")}}


def _find_image(files: Files, path: Path, content: dict[str, Any]) -> Path:
    """Return the image with the stem of the file, or else the one that it names."""
    try:
        return files.image_of(path)
    except InputError:
        if not isinstance(content["imagePath"], str):
            raise
        return files.image_named(content["imagePath"], path)


def _read(
    files: Files,
    pairs: Pairs,
    contents: dict[Path, dict[str, Any]],
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    for _, problem in pairs.problems:
        on_problem(problem)
    images = []
    for path, image in pairs.pairs:
        content, where = contents[path], str(files.root / path)
        sides = content["imageHeight"], content["imageWidth"]
        size = sides if all(isinstance(side, int) for side in sides) else None
        shapes = enumerate(content["shapes"])
        rows = [(f"{where}: shape {i}", shape) for i, shape in shapes if _label(shape) != _IGNORED]
        images.append(Annotated(partial(Path, image), where, size, rows))
    return read_annotated(files.root, images, _read_shape, class_names, exif, on_problem)


def _read_shape(shape: dict[str, Any], height: int, width: int) -> Shape:
    kind, given = shape.get("shape_type", "polygon"), shape.get("points")
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 2 for point in given):
        raise InputError(f"points must be pairs of numbers, got {str(given)[:80]}")
    points = [(x, y) for x, y in (numbers(point, "points") for point in given)]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind not in ("rectangle", "polygon", "mask", "rotation"):
        raise InputError(f"a {kind} has no box; expected rectangles, polygons, masks or circles")
    return Shape(_label(shape), outer_box(points), shape.get("difficult") is True)
