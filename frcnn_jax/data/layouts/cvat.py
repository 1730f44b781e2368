"""CVAT for images 1.1: one `annotations.xml` with all images, their boxes and polygons."""

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
from frcnn_jax.data.layouts.voc import is_xml_of
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.records import size_of
from frcnn_jax.data.voc import parse_xml
from frcnn_jax.errors import InputError

_DRAWN = ("box", "polygon", "polyline", "points", "mask", "cuboid", "ellipse", "skeleton")


def find_cvat(files: Files) -> Found | None:
    """Find the XML that CVAT writes; see `common.Found`."""
    sources = [path for path in files.ending(".xml") if _may_be(path) and is_xml_of(files.root / path, "annotations")]
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


def _may_be(path: Path) -> bool:
    return "annotation" in path.name.lower()


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
    if any(numbers([node.get("rotation") or 0], "rotation")):
        raise InputError(f"a {node.tag} rotated by {node.get('rotation')} degrees; expected upright boxes")
    if node.tag == "box":
        edges = numbers((node.get(side) for side in ("xtl", "ytl", "xbr", "ybr")), "box")
        return Shape(_label(node), inclusive(*edges))
    if node.tag == "polygon":
        pairs = [numbers(pair.split(","), "points") for pair in node.get("points", "").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError(f"points must be x,y;x,y;..., got {node.get('points', '')[:80]!r}")
        return Shape(_label(node), outer_box([(x, y) for x, y in pairs]))
    raise InputError(f"a {node.tag} has no box; expected boxes or polygons")
