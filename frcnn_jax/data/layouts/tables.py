"""CSV files with a row per box: TensorFlow's object detection tutorials, VoTT, RetinaNet and Open Images.

| columns | boxes |
|---|---|
| `filename,width,height,class,xmin,ymin,xmax,ymax` in any order, TensorFlow's | 1-based, inclusive, as VOC's |
| `image,xmin,ymin,xmax,ymax,label` | edges in pixels |
| no header: path, x1, y1, x2, y2, class; path and five empty ones for no objects | edges in pixels |
| `ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...`, Open Images | edges in fractions of the image's sides |
"""

import csv
from collections.abc import Sequence
from functools import partial
from itertools import count
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

_COLUMNS = {
    "image": ("filename", "file_name", "image", "imageid", "image_id", "image_name", "image_path", "path", "file"),
    "label": ("class", "label", "labelname", "class_name", "name", "category"),
    **{f"{a}{end}": (f"{a}{end}", f"{a}_{end}", f"{a}{i}") for a in "xy" for i, end in ((1, "min"), (2, "max"))},
}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Row(NamedTuple):
    image: str
    label: str
    corners: tuple[str, ...]  # all empty for an image without objects
    size: tuple[str, str]  # height and width
    kind: str  # of `_KINDS`
    difficult: bool


class _Table(NamedTuple):
    kind: str
    rows: list[tuple[int, _Row]]  # the number of the line, and what it holds


def find_csv(files: Files) -> Found | None:
    """Find CSV files with a row per box; see `common.Found`."""
    texts = {path: _cells(files.root / path) for path in files.ending(".csv")}
    tables = {path: table for path, cells in texts.items() if (table := _table(cells))}
    if not tables:
        return None
    named = _class_lists([cells for path, cells in texts.items() if path not in tables])
    by_split: dict[str, list[Path]] = {}
    for path in tables:
        by_split.setdefault(split_of(path, by_name=True), []).append(path)
    splits = {}
    for name, paths in by_split.items():
        images = [image for path in paths for image in _annotated(files, path, tables[path], named)]
        splits[name] = Split(len(images), partial(_read, files, name, images))
    labels = (_name(row, named) for table in tables.values() for _, row in table.rows if any(row.corners))
    kinds = sorted({table.kind for table in tables.values()})
    ordered = named.values() if named and not any(name.startswith("/m/") for name in named) else ()
    found = sorted_names(labels)
    return Found(
        f"CSV, {' and '.join(kinds)}", splits, lambda: list(ordered) or found, has_crowds="Open Images" in kinds
    )


def _cells(path: Path) -> list[list[str]]:
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    with decoding(path, "not a CSV file"):
        return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]


def _table(cells: list[list[str]]) -> _Table | None:
    """Return a table of boxes; None if the file is none."""
    if not cells:
        return None
    head = [cell.lower() for cell in cells[0]]
    places = {key: next((head.index(name) for name in names if name in head), None) for key, names in _COLUMNS.items()}
    if None not in places.values():
        if "imageid" in head and "labelname" in head:
            kind = "Open Images"
        else:
            kind = "TensorFlow's object detection" if "class" in head else "corners"
        sizes = [head.index(name) if name in head else None for name in ("height", "width")]
        crowd = head.index("isgroupof") if "isgroupof" in head else None
        start = 1
    elif len(cells[0]) == 6 and _is_retinanet(cells[0]):
        places = dict(zip(("image", *_CORNERS, "label"), count(), strict=False))
        kind, sizes, crowd, start = "RetinaNet", [None, None], None, 0
    else:
        return None
    rows = []
    for number, row in enumerate(cells[start:], start + 1):
        if any(row):
            get = lambda i, row=row: row[i] if i is not None and i < len(row) else ""  # noqa: E731
            corners = tuple(get(places[name]) for name in _CORNERS)
            size = get(sizes[0]), get(sizes[1])
            rows.append(
                (number, _Row(get(places["image"]), get(places["label"]), corners, size, kind, get(crowd) == "1"))
            )
    return _Table(kind, rows)


def _is_retinanet(row: Sequence[str]) -> bool:
    try:
        return "." in row[0] and (not any(row[1:]) or all(float(value) >= 0 for value in row[1:5]))
    except ValueError:
        return False


def _class_lists(others: list[list[list[str]]]) -> dict[str, str]:
    """Return names by words of the tables, from files of two columns: `name,number`, or Open Images' `/m/..,name`."""
    names: dict[str, str] = {}
    for cells in others:
        rows = [row for row in cells if len(row) == 2]
        if rows and all(row[0].startswith("/m/") for row in rows):
            names |= dict(rows)
        elif rows and all(row[1].isdecimal() and len(row[1]) < 9 for row in rows):
            names |= {row[0]: row[0] for row in sorted(rows, key=lambda row: int(row[1]))}
    return names


def _name(row: _Row, named: dict[str, str]) -> str:
    return named.get(row.label, row.label)


def _annotated(files: Files, source: Path, table: _Table, named: dict[str, str]) -> list[Annotated]:
    by_image: dict[str, list[tuple[str, _Row]]] = {}
    for number, row in table.rows:
        where = f"{files.root / source}:{number}"
        by_image.setdefault(row.image, []).append((where, row._replace(label=_name(row, named))))
    found = []
    for name, rows in by_image.items():
        known = size_of(*rows[0][1].size)
        objects = [(where, row) for where, row in rows if any(row.corners)]
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
    corners = numbers(row.corners, f"box of {row.label!r}")
    if row.kind == "Open Images":
        sides = (width, height, width, height)
        return Shape(
            row.label, inclusive(*(value * side for value, side in zip(corners, sides, strict=True))), row.difficult
        )
    if max(corners) <= 1:
        raise InputError(f"box of {row.label!r} ({', '.join(row.corners)}): expected pixels, got fractions")
    if row.kind == "TensorFlow's object detection":
        x1, y1, x2, y2 = (value - 1 for value in corners)
        if x1 > x2 or y1 > y2:
            raise InputError(f"box of {row.label!r} ({', '.join(row.corners)}): expected xmin <= xmax and ymin <= ymax")
        return Shape(row.label, (x1, y1, x2, y2))
    return Shape(row.label, inclusive(*corners))
