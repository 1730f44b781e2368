"""Label Studio's own JSON, whole (`JSON`) or short (`JSON-MIN`): rectangles, and the outer boxes of other outlines.

Lengths are percentages of the image's sides. Where a task has several annotations, the one marked as ground truth
counts, or else the last that is not cancelled; tasks without any are left out.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.common import Box, Found, Shape, numbers, outer_box
from frcnn_jax.data.layouts.listed import Listed, find_listed, whole_sides
from frcnn_jax.data.listing import Files
from frcnn_jax.data.records import IMAGE_SUFFIXES
from frcnn_jax.errors import InputError

_OF_IMAGE = ("original_height", "original_width", "image_rotation")


def find_label_studio(files: Files) -> Found | None:
    """Find the JSON that Label Studio exports; see `common.Found`."""
    mark = ("original_width", r"\d")
    return find_listed(files, "Label Studio", mark=mark, list_images=_images, label_of=_label, read_shape=_read_shape)


def _images(content: Any, source: Path) -> Iterator[Listed]:
    for task in content if isinstance(content, list) else ():  # else of another program
        if "annotations" in task:
            done = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
            done = [annotation for annotation in done if annotation.get("ground_truth")] or done
            if not done:
                continue
            given = [region for region in done[-1]["result"] if isinstance(region.get("value"), dict)]
            regions, data = (
                [{**{key: region.get(key) for key in _OF_IMAGE}, **region["value"]} for region in given],
                task["data"],
            )
        else:
            lists = [value for value in task.values() if isinstance(value, list)]
            regions, data = [region for value in lists for region in value if isinstance(region, dict)], task
        labelled = [region for region in regions if _label(region)]
        sides = [whole_sides(region.get("original_height"), region.get("original_width")) for region in labelled]
        yield Listed(_image_name(data), sides[0] if sides else None, labelled)


def _image_name(data: dict[str, Any]) -> str:
    """Return the name of a task's image, which may be an address, or a path in a local storage."""
    for value in data.values():
        name = value.rpartition("?d=")[2].partition("?")[0] if isinstance(value, str) else ""
        if name.lower().endswith(IMAGE_SUFFIXES):
            return name
    raise ValueError(f"no image among {', '.join(map(str, data))}")


def _label(region: dict[str, Any]) -> str:
    """Return the class of a region, empty if it has none, as a choice or a text of the whole image."""
    found = [value for key, value in region.items() if key.endswith("labels") and isinstance(value, list) and value]
    return str(found[0][0]).strip() if found else ""


def _read_shape(region: dict[str, Any], height: int, width: int) -> Shape:
    label = _label(region)
    if region.get("image_rotation"):
        raise InputError(f"an image turned by {region['image_rotation']} degrees; expected it as it is stored")
    if "points" in region:
        points = [(x / 100 * width, y / 100 * height) for x, y in (numbers(p, "points") for p in region["points"])]
        return Shape(label, outer_box(points))
    if "radiusX" in region:
        x, y, rx, ry = numbers((region.get(key) for key in ("x", "y", "radiusX", "radiusY")), "ellipse")
        edges = ((x - rx) / 100 * width, (y - ry) / 100 * height), ((x + rx) / 100 * width, (y + ry) / 100 * height)
        return Shape(label, outer_box(edges))
    if "width" not in region or "height" not in region:
        raise InputError(f"{label!r} has no box; expected rectangles, polygons or ellipses")
    return Shape(label, _outer_rectangle(region, height, width))


def _outer_rectangle(region: dict[str, Any], height: int, width: int) -> Box:
    """Return the box around a rectangle, which is turned about its first corner; within the image if it is turned."""
    x, y, w, h, degrees = numbers(
        (region.get("x"), region.get("y"), region["width"], region["height"], region.get("rotation") or 0), "rectangle"
    )
    x, y, w, h = x / 100 * width, y / 100 * height, w / 100 * width, h / 100 * height
    if not degrees:
        return outer_box([(x, y), (x + w, y + h)])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a in (0, w) for b in (0, h)]
    return outer_box([(min(max(u, 0), width), min(max(v, 0), height)) for u, v in corners])
