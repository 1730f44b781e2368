"""KITTI, also NVIDIA TAO's input: a text file per image, with lines of a class, three numbers, a box and more numbers.

Regions of the class DontCare are left out.
"""

from functools import partial
from pathlib import Path

from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    numbers,
    read_annotated,
    read_text,
    sorted_names,
)
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.errors import InputError


def find_kitti(files: Files) -> Found | None:
    """Find text files of 15 or 16 columns; see `common.Found`."""
    stems = {image.stem for image in files.images}
    texts = [path for path in files.ending(".txt") if path.stem in stems]
    if not any(_is_label(files.root / path) for path in texts[:99]):
        return None
    images: dict[str, list[Annotated]] = {}
    labels: set[str] = set()
    for path in texts:
        where = files.root / path
        lines = [(f"{where}:{number}", line.split()) for number, line in enumerate(read_text(where).splitlines(), 1)]
        rows = [(place, words) for place, words in lines if words and words[0] != "DontCare"]
        labels |= {words[0] for _, words in rows}
        annotated = Annotated(partial(files.image_of, path), str(where), None, rows)
        images.setdefault(split_of(path), []).append(annotated)
    splits = {
        name: Split(len(own), partial(read_annotated, files.root, own, _read_shape)) for name, own in images.items()
    }
    return Found("KITTI", splits, partial(sorted_names, labels))


def _is_label(path: Path) -> bool:
    words = read_text(path).partition("\n")[0].split()
    try:
        numbers(words[1:], "columns")
    except InputError:
        return False
    return len(words) in (15, 16) and not words[0].replace(".", "").isdecimal()


def _read_shape(words: list[str], height: int, width: int) -> Shape:
    if len(words) not in (15, 16):
        raise InputError(f"expected 15 or 16 columns, got {len(words)}")
    x1, y1, x2, y2 = numbers(words[4:8], "box")
    return Shape(words[0], (x1, y1, x2, y2))
