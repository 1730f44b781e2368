"""CVAT for images 1.1: one `annotations.xml` with all images: boxes, and the outer boxes of outlines."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    inclusive,
    numbers,
    outer_box,
    read_annotated,
    sorted_names,
)
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.records import size_of, turned_edges
from frcnn_jax.data.voc import parse_xml
from frcnn_jax.errors import InputError
from frcnn_jax.files import open_regular

_DRAWN = ("box", "polygon", "polyline", "points", "mask", "cuboid", "ellipse", "skeleton")


def find_cvat(files: Files) -> Found | None:
    """Find the XML that CVAT writes; see `common.Found`."""
    sources = [path for path in files.ending(".xml") if _is_cvat(files.root / path)]
    if not sources:
        return None
    images: dict[str, list[Annotated]] = {}
    declared: dict[str, None] = {}
    used: set[str] = set()
    for source in sources:
        path = files.root / source
        tree = parse_xml(path)
        if tree.find("track") is not None:
            raise InputError(f"{path}: CVAT for video; export it as CVAT for images")
        declared |= dict.fromkeys((node.findtext("name") or "").strip() for node in tree.iter("label"))
        for node in tree.iter("image"):
            used |= {_label(child) for child in node}
            image = _annotated(files, source, node)
            images.setdefault(_split(source, node), []).append(image)
    splits = {
        name: Split(len(own), partial(read_annotated, files.root, own, _read_shape)) for name, own in images.items()
    }
    return Found("CVAT for images", splits, lambda: list(declared) or sorted_names(used))


def _is_cvat(path: Path) -> bool:
    """Return whether the first tag of an XML file is CVAT's, whether or not the rest can be read."""
    try:
        with open_regular(path) as file:
            head = file.read(1024).replace(b"\0", b"")  # UTF-16 has zeros
    except (OSError, InputError):
        return False
    tag = re.search(rb"<(\w+)", head)
    return bool(tag and tag[1] == b"annotations")


def _split(source: Path, node: Any) -> str:
    """Return the split by the folder of the file, or by CVAT's subset, or by the image's folder."""
    subset = str(node.get("subset", "")) + "/_"
    found = (split_of(source), split_of(Path(subset)), split_of(Path(node.get("name", "").replace("\\", "/"))))
    return next((split for split in found if split != "all"), "all")


def _label(node: Any) -> str:
    return (node.get("label") or "").strip() if node.tag in _DRAWN else ""


def _annotated(files: Files, source: Path, node: Any) -> Annotated:
    name, where = node.get("name", ""), f"{files.root / source}: image {node.get('name')!r}"
    size = size_of(node.get("height", ""), node.get("width", ""))
    rows = [(f"{where}: {child.tag} {i}", child) for i, child in enumerate(node) if child.tag in _DRAWN]
    return Annotated(partial(files.image_named, name, source), where, size, rows)


def _read_shape(node: Any, height: int, width: int) -> Shape:
    if node.tag == "box":
        edges = numbers((node.get(side) for side in ("xtl", "ytl", "xbr", "ybr")), "box")
        degrees = _rotation(node)
        return Shape(_label(node), inclusive(*(turned_edges(edges, degrees, height, width) if degrees else edges)))
    if node.tag == "ellipse":
        x, y, rx, ry = numbers((node.get(key) for key in ("cx", "cy", "rx", "ry")), "ellipse")
        cos, sin = math.cos(math.radians(_rotation(node))), math.sin(math.radians(_rotation(node)))
        across, down = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        left, top, right, bottom = x - across, y - down, x + across, y + down
        return Shape(_label(node), inclusive(max(left, 0), max(top, 0), min(right, width), min(bottom, height)))
    if node.tag == "mask":
        left, top, w, h = numbers((node.get(key) for key in ("left", "top", "width", "height")), "mask")
        return Shape(_label(node), inclusive(left, top, left + w, top + h))
    if node.tag == "polygon":
        pairs = [numbers(pair.split(","), "points") for pair in node.get("points", "").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(f"points must be x,y;x,y;..., got {node.get('points', '')[:80]!r}")
        return Shape(_label(node), outer_box([(x, y) for x, y in pairs]))
    raise InputError(f"a {node.tag} has no box; expected boxes, polygons, masks or ellipses")


def _rotation(node: Any) -> float:
    return numbers([node.get("rotation") or 0], "rotation")[0]
