"""What the readers of layouts share: what they return, and how annotated images become a `Dataset`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from frcnn_jax.data.listing import image_ids
from frcnn_jax.data.problems import CorrectedError, OnProblem, ReportTo
from frcnn_jax.data.records import (
    Dataset,
    ImageFile,
    Record,
    clip_box,
    collect_records,
    is_moved,
    make_record,
    true_size,
)
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_bytes

Box = tuple[float, float, float, float]
Read = Callable[[Sequence[str], str, OnProblem], Dataset]  # (class names, exif, on_problem) -> the split


class Split(NamedTuple):
    """A split that was found, not yet read."""

    images: int
    read: Read


class Found(NamedTuple):
    """A data set that was recognised.

    Attributes:
        title: The layout, such as "COCO, Roboflow layout".
        splits: The splits; a single one named "all" if the folder has none.
        find_classes: Returns the class names in label order, from the files that declare them or else from the objects.
        has_crowds: Whether difficult objects are regions of several objects, which are never trained on.
    """

    title: str
    splits: Mapping[str, Split]
    find_classes: Callable[[], Sequence[str]]
    has_crowds: bool = False


class Shape(NamedTuple):
    """An object as annotated."""

    name: str
    box: Box  # 0-based, inclusive
    difficult: bool = False


class Annotated(NamedTuple):
    """An image, and its objects as they stand in the file."""

    find_image: Callable[[], Path]  # relative to the data set's folder; raises InputError if there is none
    where: str  # the annotation, for messages
    size: tuple[int, int] | None  # height and width by the annotation, if it has them
    rows: Sequence[tuple[str, Any]]  # per object, where it stands, and what `ReadShape` takes


ReadShape = Callable[[Any, int, int], Shape]  # (row, height, width); raises InputError


def read_annotated(
    root: Path,
    images: Iterable[Annotated],
    read_shape: ReadShape,
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    """Read annotated images.

    Args:
        root: The data set's folder.
        images: The images of a split.
        read_shape: Reads an object; what it raises is reported with the place of the object.
        class_names: The names of labels 1 to K.
        exif: See `load_image`.
        on_problem: Receives images that are missing, unreadable or listed twice, unknown classes, and boxes that are
            reversed or exceed their image by more than a pixel; corrections of other boxes and of sizes.
    """
    found = []
    for image in images:
        with ReportTo(on_problem):
            found.append((image.find_image(), image))
    ids = image_ids([path for path, _ in found])
    labels = {name: label for label, name in enumerate(class_names, 1)}
    readers = [
        (image_id, partial(_read_image, image_id, root / path, image, read_shape, labels, exif, on_problem))
        for image_id, (path, image) in zip(ids, found, strict=True)
    ]
    return Dataset(tuple(class_names), collect_records(readers, root, on_problem))


def _read_image(
    image_id: str,
    path: Path,
    image: Annotated,
    read: ReadShape,
    labels: dict[str, int],
    exif: str,
    on_problem: OnProblem,
) -> Record:
    size = true_size(path, image.size, image.where, exif, on_problem)
    objects = []
    for where, row in image.rows:
        with ReportTo(on_problem, where):
            shape = read(row, *size)
            if shape.name not in labels:
                raise InputError(f"unknown class {shape.name!r}; the classes are {', '.join(labels)}")
            objects.append((_clipped(shape, *size, where, on_problem), labels[shape.name], shape.difficult))
    return make_record(image_id, *size, objects, ImageFile(str(path), size, exif))


def _clipped(shape: Shape, height: int, width: int, where: str, on_problem: OnProblem) -> list[float]:
    text = f"box of {shape.name!r} from ({_numbers(shape.box[:2])}) to ({_numbers(shape.box[2:])})"
    box = clip_box(shape.box, height, width)
    if box is None:
        raise InputError(f"{text} (pixels, 0-based): expected within the {width} x {height} image")
    if is_moved(box, shape.box):
        on_problem(CorrectedError("boxes clipped", f"{where}: {text} in a {width} x {height} image"))
    return box


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def inclusive(left: float, top: float, right: float, bottom: float) -> Box:
    """Return the inclusive box of continuous edges, at least one pixel wide and high.

    Raises:
        InputError: The edges are reversed or enclose nothing.
    """
    if not (left < right and top < bottom):
        edges = _numbers((left, top, right, bottom))
        raise InputError(f"box ({edges}): expected left < right and top < bottom")
    return left, top, max(right - 1, left), max(bottom - 1, top)


def outer_box(points: Sequence[tuple[float, float]]) -> Box:
    """Return the inclusive box around points of a continuous outline.

    Raises:
        InputError: They enclose nothing.
    """
    if not points:
        raise InputError("expected points, got none")
    xs, ys = zip(*points, strict=True)
    return inclusive(min(xs), min(ys), max(xs), max(ys))


def numbers(values: Iterable[Any], what: str) -> list[float]:
    """Return values as finite numbers; InputError if one is none."""
    values = list(values)
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        found = [float("nan")]
    if not all(abs(value) < 1e9 for value in found):
        raise InputError(f"{what}: expected numbers, got {', '.join(map(str, values))[:80]}")
    return found


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return different names in alphabetical order, without the empty one."""
    return sorted(set(names) - {""})


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a mark, UTF-16 with one, or else Latin-1.

    Raises:
        InputError: It can't be read.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_names(path: Path) -> list[str]:
    """Read class names, one per line.

    Raises:
        InputError: It can't be read, or a name comes twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    check_names(names, path)
    return names


def check_names(names: Sequence[str], source: object) -> None:
    """Raise InputError if a class name comes twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{source}: the class {twice[0]!r} comes twice")
