"""VIA, the VGG Image Annotator: annotations as JSON, or its project file; outlines are taken by their outer boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.common import Found, Shape, inclusive, numbers, outer_box
from frcnn_jax.data.layouts.listed import Listed, find_listed
from frcnn_jax.data.listing import Files
from frcnn_jax.errors import InputError

_LABELS = ("name", "class", "label", "type", "category", "object")  # attributes that are taken where there are several


def find_via(files: Files) -> Found | None:
    """Find JSON of VIA 1 or 2; see `common.Found`. Regions without attributes are of the class "object"."""
    mark = ("file_attributes", r"\{")
    return find_listed(files, "VIA", mark=mark, list_images=_images, label_of=_label, read_shape=_read_shape)


def _images(content: Any, source: Path) -> Iterator[Listed]:
    for image in content.get("_via_img_metadata", content).values():
        regions = image["regions"]  # a list, or by number
        yield Listed(str(image["filename"]), None, list(regions.values() if isinstance(regions, dict) else regions))


def _label(region: Any) -> str:
    given = {str(key).strip().lower(): value for key, value in region["region_attributes"].items()}
    if not given:
        return "object"
    key = next(iter(given)) if len(given) == 1 else next((key for key in _LABELS if key in given), "")
    value = given.get(key, "")
    if isinstance(value, dict):  # of a checkbox: the options that are chosen
        value = ", ".join(str(option) for option, chosen in value.items() if chosen)
    return str(value).strip()


def _read_shape(region: Any, height: int, width: int) -> Shape:
    shape, label = region["shape_attributes"], _label(region)
    if not label:
        raise InputError(f"expected a class in one of {', '.join(_LABELS)}, got {region['region_attributes']!r:.200}")
    kind = shape.get("name")
    if kind == "rect":
        x, y, w, h = numbers((shape.get(key) for key in ("x", "y", "width", "height")), "rect")
        return Shape(label, inclusive(x, y, x + w, y + h))
    if kind in ("polygon", "polyline"):
        xs, ys = (numbers(shape.get(f"all_points_{axis}") or (), "points") for axis in "xy")
        return Shape(label, outer_box(list(zip(xs, ys, strict=True))))
    if kind in ("circle", "ellipse"):
        x, y = numbers((shape.get("cx"), shape.get("cy")), "centre")
        rx, ry = numbers((shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))), "radius")
        return Shape(label, inclusive(x - rx, y - ry, x + rx, y + ry))
    raise InputError(f"a {kind} has no box; expected rectangles, polygons, circles or ellipses")
