"""Supervisely: a file `ann/<name of the image>.json` per image; rectangles, and the outer boxes of polygons."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.common import Found, Shape, numbers
from frcnn_jax.data.layouts.listed import Listed, find_listed, whole_sides
from frcnn_jax.data.listing import Files
from frcnn_jax.errors import InputError


def find_supervisely(files: Files) -> Found | None:
    """Find the JSON of a Supervisely project; see `common.Found`."""
    return find_listed(
        files,
        "Supervisely",
        mark=("objects", r"\["),
        list_images=_images,
        label_of=_label,
        read_shape=_read_shape,
        by_name=False,
    )


def _images(content: Any, source: Path) -> Iterator[Listed]:
    size, objects = (content.get(key) if isinstance(content, dict) else None for key in ("size", "objects"))
    if not (isinstance(size, dict) and isinstance(objects, list)):
        return  # of another program
    if not objects or (isinstance(objects[0], dict) and "classTitle" in objects[0]):
        yield Listed(source.stem, whole_sides(size.get("height"), size.get("width")), objects)


def _label(item: Any) -> str:
    return str(item["classTitle"]).strip()


def _read_shape(item: Any, height: int, width: int) -> Shape:
    kind = item.get("geometryType", "rectangle")
    if kind not in ("rectangle", "polygon"):
        raise InputError(f"a {kind} has no box; expected rectangles or polygons")
    points = [numbers(point, "points") for point in item["points"]["exterior"]]  # pixels, the last one included
    xs, ys = zip(*points, strict=True)
    return Shape(_label(item), (min(xs), min(ys), max(xs), max(ys)))
