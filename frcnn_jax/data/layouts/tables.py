"""CSV files with a row per box: TensorFlow's object detection tutorials, VoTT, RetinaNet, SKU-110K and Open Images.

| columns | boxes |
|---|---|
| `filename,width,height,class,xmin,ymin,xmax,ymax` in any order, TensorFlow's | 1-based, inclusive, as VOC's |
| `image,xmin,ymin,xmax,ymax,label` | edges |
| `image,x,y,width,height,label` | left and top edges, and sides |
| `image,x_center,y_center,width,height,label` | centres and sides |
| no header: path, x1, y1, x2, y2, class; path and five empty ones for no objects | edges |
| no header: name, x1, y1, x2, y2, class, width and height of the image, SKU-110K | edges |
| no header: class, x, y, width, height, name, width and height of the image, makesense.ai | as above |
| `ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...`, Open Images | edges in fractions of the image's sides |

Names of columns may differ in case, spaces and underscores. Where all values of a table are at most 1, they are
fractions of the image's sides.
"""

import csv
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    inclusive,
    numbers,
    read_annotated,
    read_text,
    sorted_names,
)
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.problems import CorrectedError, OnProblem
from frcnn_jax.data.records import Dataset, size_of
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding

_IMAGE = (
    *("filename", "image", "imageid", "imagename", "imagepath", "imagefile", "img", "imgfile", "imgname", "path"),
    *("filepath", "file", "location"),
)
_LABEL = ("class", "label", "labelname", "classname", "name", "category", "categoryname")
_WIDTH, _HEIGHT = ("width", "w", "bboxwidth"), ("height", "h", "bboxheight")
_SIDES, _CENTRES = "x, y, width, height", "centres"
_BOXES = {  # names of the four columns of a box
    "corners": (("xmin", "x1"), ("ymin", "y1"), ("xmax", "x2"), ("ymax", "y2")),
    _SIDES: (("x", "left", "bboxx", "xmin"), ("y", "top", "bboxy", "ymin"), _WIDTH, _HEIGHT),
    _CENTRES: (("xcenter", "centerx", "xcentre", "cx"), ("ycenter", "centery", "ycentre", "cy"), _WIDTH, _HEIGHT),
}
_BARE = {  # of tables without a header: the places of image, box, label, and the image's height and width
    "RetinaNet": (6, 0, (1, 2, 3, 4), 5, (None, None)),
    "SKU-110K": (8, 0, (1, 2, 3, 4), 5, (7, 6)),
    _SIDES: (8, 5, (1, 2, 3, 4), 0, (7, 6)),
}


class _Row(NamedTuple):
    image: str
    label: str
    box: tuple[str, ...]  # all empty for an image without objects
    size: tuple[str, str]  # height and width
    kind: str
    relative: bool  # to the image's sides
    difficult: bool
    split: str  # empty if the table has no such column


class _Table(NamedTuple):
    kind: str
    rows: list[tuple[int, _Row]]  # the number of the line, and what it holds


def find_csv(files: Files) -> Found | None:
    """Find CSV files with a row per box; see `common.Found`."""
    texts = {path: _cells(files.root / path) for path in files.ending(".csv", ".tsv")}
    tables = {path: table for path, cells in texts.items() if (table := _table(cells))}
    if not tables:
        return None
    named = _class_lists([cells for path, cells in texts.items() if path not in tables])
    by_split: dict[str, list[Annotated]] = {}
    for path, table in tables.items():
        for split in sorted({row.split for _, row in table.rows}):
            rows = [(number, row) for number, row in table.rows if row.split == split]
            name = split_of(Path(split) / "_") if split else split_of(path, by_name=True)
            by_split.setdefault(name, []).extend(_annotated(files, path, rows, named))
    splits = {}
    for name, images in by_split.items():
        splits[name] = Split(len(images), partial(_read, files, name, images))
    labels = (_name(row, named) for table in tables.values() for _, row in table.rows if any(row.box))
    kinds = sorted({table.kind for table in tables.values()})
    ordered = named.values() if named and not any(map(_is_open_images, named)) else ()
    found = sorted_names(labels)
    return Found(
        f"CSV, {' and '.join(kinds)}", splits, lambda: list(ordered) or found, has_crowds="Open Images" in kinds
    )


def _cells(path: Path) -> list[list[str]]:
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    with decoding(path, "not a CSV file"):
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    if delimiter == ";":  # of a locale where 1.5 is 1,5
        rows = [[re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", cell) for cell in row] for row in rows]
    return rows


def _table(cells: list[list[str]]) -> _Table | None:
    """Return a table of boxes; None if the file is none."""
    if not cells:
        return None
    head = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in cells[0]]
    image, label = _place(head, _IMAGE), _place(head, _LABEL)
    kind, box = _box_columns(head)
    size: tuple[int | None, int | None] = _place(head, ("imageheight",)), _place(head, ("imagewidth",))
    crowd, split, start = _place(head, ("isgroupof",)), _place(head, ("split", "subset", "set")), 1
    if image is not None and label is not None and box:
        if kind == "corners":
            size = _place(head, ("height", "imageheight")), _place(head, ("width", "imagewidth"))
            if "imageid" in head and "labelname" in head:
                kind = "Open Images"
            elif "class" in head:
                kind = "TensorFlow's object detection"
    elif kind := _bare_kind(cells[0]):
        _, image, box, label, size = _BARE[kind]
        crowd, split, start = None, None, 0
    else:
        return None
    found = []
    for number, row in enumerate(cells[start:], start + 1):
        if any(row):
            get = lambda i, row=row: row[i] if i is not None and i < len(row) else ""  # noqa: E731
            values, sides = tuple(map(get, box)), (get(size[0]), get(size[1]))
            found.append(
                (number, _Row(get(image), get(label), values, sides, kind, False, get(crowd) == "1", get(split)))
            )
    relative = kind == "Open Images" or _are_fractions([row.box for _, row in found if any(row.box)])
    return _Table(kind, [(number, row._replace(relative=True)) for number, row in found] if relative else found)


def _place(head: Sequence[str], names: Sequence[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _box_columns(head: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Return the kind of a table's boxes and the places of their four columns, empty if there are none."""
    for kind, columns in _BOXES.items():
        places = tuple(_place(head, names) for names in columns)
        if None not in places:
            return kind, places  # type: ignore[return-value]
    return "", ()


def _bare_kind(row: Sequence[str]) -> str:
    """Return the kind of a table without a header, by its first row; empty if it is none."""
    for kind, (length, image, box, _, size) in _BARE.items():
        if len(row) == length and "." in row[image] and not _is_number(row[image]):
            values = [row[i] for i in (*box, *size) if i is not None]
            if all(map(_is_number, values)) or (kind == "RetinaNet" and not any(row[1:])):
                return kind
    return ""


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _are_fractions(boxes: Sequence[Sequence[str]]) -> bool:
    """Return whether the values of boxes are numbers up to 1, and not all whole."""
    values = [value for box in boxes for value in box]
    return all(_is_number(value) and float(value) <= 1 for value in values) and any(
        float(value) % 1 for value in values
    )


def _class_lists(others: list[list[list[str]]]) -> dict[str, str]:
    """Return names by words of the tables, from files of two columns: `name,number`, or Open Images' `/m/..,name`."""
    names: dict[str, str] = {}
    for cells in others:
        rows = [row for row in cells if len(row) == 2]
        if described := [row for row in rows if _is_open_images(row[0])]:
            names |= dict(described)
        elif rows and all(row[1].isdecimal() and len(row[1]) < 9 for row in rows):
            names |= {row[0]: row[0] for row in sorted(rows, key=lambda row: int(row[1]))}
    return names


def _is_open_images(word: str) -> bool:
    """Return whether a word is how Open Images names a class, such as "/m/01g317"."""
    return bool(re.match(r"/[a-z]/", word))


def _name(row: _Row, named: dict[str, str]) -> str:
    return named.get(row.label, row.label)


def _annotated(files: Files, source: Path, table: Sequence[tuple[int, _Row]], named: dict[str, str]) -> list[Annotated]:
    by_image: dict[str, list[tuple[str, _Row]]] = {}
    for number, row in table:
        where = f"{files.root / source}:{number}"
        by_image.setdefault(row.image, []).append((where, row._replace(label=_name(row, named))))
    found = []
    for name, rows in by_image.items():
        known = size_of(*rows[0][1].size)
        objects = [(where, row) for where, row in rows if any(row.box)]
        found.append(Annotated(partial(files.image_named, name, source), rows[0][0], known, objects))
    return found


def _read(
    files: Files, split: str, images: Sequence[Annotated], class_names: Sequence[str], exif: str, on_problem: OnProblem
) -> Dataset:
    found = read_annotated(files.root, images, _read_shape, class_names, exif, on_problem)
    listed = {record.load.path for record in found.records}  # type: ignore[attr-defined]
    for image in files.images:
        if split_of(image) == split and str(files.root / image) not in listed:
            on_problem(CorrectedError("images without a row left out", str(files.root / image)))
    return found


def _read_shape(row: _Row, height: int, width: int) -> Shape:
    text = f"box of {row.label!r} ({', '.join(row.box)})"
    a, b, c, d = numbers(row.box, f"box of {row.label!r}")
    if row.kind == "TensorFlow's object detection" and not row.relative:
        if a > c or b > d:
            raise InputError(f"{text}: expected xmin <= xmax and ymin <= ymax")
        return Shape(row.label, (a - 1, b - 1, c - 1, d - 1))
    if row.relative and row.kind == _SIDES:
        raise InputError(f"{text}: expected pixels; fractions may be of the left and top edges or of the centre")
    if not row.relative and max(a, b, c, d) <= 1:
        raise InputError(f"{text}: expected pixels, got fractions")
    if row.kind == _SIDES:
        a, b, c, d = a, b, a + c, b + d
    elif row.kind == _CENTRES:
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    across, down = (width, height) if row.relative else (1, 1)
    return Shape(row.label, inclusive(a * across, b * down, c * across, d * down), row.difficult)
