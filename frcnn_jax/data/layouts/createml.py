"""CreateML's JSON: a list of images, with the centres and sides of their boxes in pixels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcnn_jax.data.layouts.common import Found, Shape, inclusive, numbers
from frcnn_jax.data.layouts.listed import Listed, find_listed
from frcnn_jax.data.listing import Files


def find_createml(files: Files) -> Found | None:
    """Find the JSON that CreateML takes; see `common.Found`."""
    mark = ("coordinates", r"\{")
    return find_listed(files, "CreateML", mark=mark, list_images=_images, label_of=_label, read_shape=_read_shape)


def _images(content: Any, source: Path) -> Iterator[Listed]:
    for image in content if isinstance(content, list) else ():  # else of another program
        yield Listed(str(image.get("image") or image["imagefilename"]), None, list(image["annotations"]))


def _label(item: Any) -> str:
    return str(item["label"]).strip()


def _read_shape(item: Any, height: int, width: int) -> Shape:
    x, y, w, h = numbers((item["coordinates"].get(key) for key in ("x", "y", "width", "height")), "coordinates")
    return Shape(_label(item), inclusive(x - w / 2, y - h / 2, x + w / 2, y + h / 2))
