"""VoTT: one JSON file `<project>-export.json` with all images (`assets`) and their regions."""

from functools import partial
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.coco import has_key
from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    inclusive,
    numbers,
    read_annotated,
    sorted_names,
)
from frcnn_jax.data.listing import Files
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json


def find_vott(files: Files) -> Found | None:
    """Find the JSON file that VoTT exports; see `common.Found`."""
    sources = [path for path in files.ending(".json") if has_key(files.root / path, "assets", r"\{")]
    if not sources:
        return None
    if len(sources) > 1:
        raise InputError(f"{files.root}: which file is the data set, {sources[0]} or {sources[1]}? Move one elsewhere")
    (source,) = sources
    path = files.root / source
    content = read_json(path)
    try:
        names = [str(tag["name"]).strip() for tag in content.get("tags", ())]
        images = [_annotated(files, source, item) for item in content["assets"].values()]
        names = names or sorted_names(tag for image in images for _, region in image.rows for tag in region["tags"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an export of VoTT ({type(error).__name__}: {error})") from None
    read = partial(read_annotated, files.root, images, _read_shape)
    return Found("VoTT", {"all": Split(len(images), read)}, lambda: names)


def _annotated(files: Files, source: Path, item: dict[str, Any]) -> Annotated:
    name, size = str(item["asset"]["name"]), item["asset"].get("size") or {}
    where = f"{files.root / source}: image {name!r}"
    sides = size.get("height"), size.get("width")
    rows = [(f"{where}: region {i}", region) for i, region in enumerate(item.get("regions") or ())]
    known = all(isinstance(side, int) for side in sides)
    return Annotated(partial(files.image_named, name, source), where, sides if known else None, rows)  # type: ignore[arg-type]


def _read_shape(region: dict[str, Any], height: int, width: int) -> Shape:
    tags, box = (region.get(key) if isinstance(region, dict) else None for key in ("tags", "boundingBox"))
    if not isinstance(tags, list) or len(tags) != 1:
        raise InputError(f"expected one tag, got {tags!r:.80}")
    if not isinstance(box, dict):
        raise InputError(f"expected a boundingBox, got {box!r:.80}")
    left, top, w, h = numbers((box.get(key) for key in ("left", "top", "width", "height")), "boundingBox")
    return Shape(str(tags[0]).strip(), inclusive(left, top, left + w, top + h))
