"""PASCAL VOC: the VOCdevkit, and folders of images with one VOC-style XML file each."""

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from defusedxml import ElementTree

from frcnn_jax.data.listing import Files, Pairs, check_is_folder, describe_files, image_ids, pair_images
from frcnn_jax.data.problems import CorrectedError, OnProblem, ReportTo, stop
from frcnn_jax.data.records import (
    IMAGE_SUFFIXES,
    Dataset,
    ImageFile,
    Record,
    clip_box,
    collect_records,
    image_path,
    is_moved,
    make_record,
    size_of,
    true_size,
    turned_edges,
)
from frcnn_jax.errors import InputError
from frcnn_jax.files import garbage_kept, read_bytes

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    voc_dir: str | Path,
    *,
    split: str,
    year: int = 2007,
    class_names: Sequence[str] = VOC_CLASSES,
    exif: str = "apply",
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read splits of a VOCdevkit (`VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`).

    Args:
        voc_dir: The VOCdevkit folder.
        split: Name of a split file, or several joined by "+", such as "2007_trainval+2012_trainval".
        year: The year of splits that name none.
        class_names: The names of labels 1 to K.
        exif: See `load_image`.
        on_problem: Receives missing or repeated images and annotations, malformed XML, unknown classes, and boxes that
            are reversed or exceed the image by more than a pixel; corrections of others, and of sizes that are not the
            image's.

    Raises:
        InputError: `voc_dir` is no folder, or a split file is missing or empty.
    """
    voc_dir, images = Path(voc_dir), []
    check_is_folder(voc_dir)
    for term in split.split("+"):
        named_year, name = re.fullmatch(r"(?s)(?:(\d{4})_)?(.*)", term).groups()  # type: ignore[union-attr]
        images += devkit_images(voc_dir / f"VOC{named_year or year}", name)
    return read_images(voc_dir, images, class_names, exif, on_problem, first=1)


class Annotated(NamedTuple):
    """An image and its annotation."""

    image_id: str
    annotation: Path
    find_image: Callable[[], Path]  # raises InputError if there is none


def devkit_images(root: Path, split: str) -> list[Annotated]:
    """Return the images of a split of one year's folder (`{Annotations,ImageSets/Main,JPEGImages}`).

    Raises:
        InputError: The split file is missing or empty.
    """
    annotations, images = root / "Annotations", root / "JPEGImages"
    find = _DevkitImages(images)
    ids = _split_file(root / "ImageSets" / "Main" / f"{split}.txt", annotations)
    return [Annotated(image_id, annotations / f"{image_id}.xml", partial(find, image_id)) for image_id in ids]


def _split_file(path: Path, annotations: Path) -> list[str]:
    """Return the ids in a split file; one of a class has a second column, -1, 0 or 1."""
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise InputError(f"{path}: no such split file; its folder has {', '.join(found[:9]) or 'none'}")
    lines = map(str.strip, read_bytes(path).decode("utf-8-sig", errors="replace").splitlines())
    image_ids = [_image_id(line, annotations) for line in lines if line]
    if not image_ids:
        raise InputError(f"{path}: lists no image")
    return image_ids


def _image_id(line: str, annotations: Path) -> str:
    """Return the id in a line of a split file: all of it, or without mark, suffix and folder if no annotation is so."""
    if os.path.isfile(annotations / f"{line}.xml"):  # too long is none
        return line
    shorter = re.sub(r"(\.\w{3,4})?(\s+(-1|0|1))?$", "", line, count=1) or line
    name = PurePosixPath(shorter).name
    return name if name != shorter and os.path.isfile(annotations / f"{name}.xml") else shorter


class _DevkitImages:
    """Finds images by id, whatever the suffix and its case; lists their folder if one is no .jpg."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, image_id: str) -> Path:
        try:
            return image_path(self._folder, f"{image_id}.jpg")
        except InputError:
            if image_id in self._others:
                return image_path(self._folder, self._others[image_id])
            raise

    @cached_property
    def _others(self) -> dict[str, str]:
        files = self._folder.iterdir() if self._folder.is_dir() else ()
        return {path.stem: path.name for path in files if path.suffix.lower() in IMAGE_SUFFIXES}


def read_xml_folder(
    folder: str | Path,
    *,
    class_names: Sequence[str] = (),
    exif: str = "apply",
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read a folder of images and its sub-folders, each image with an annotation `<name>.xml` in VOC's format.

    The id of an image is its path in the folder, without its suffix. Where boxes begin at 0 and none ends at the width
    or height of its image, as other programs than VOC's write them, the first pixel is 0; else it is 1.

    Args:
        folder: The folder of both images and annotations.
        class_names: The names of labels 1 to K; by default every class found, in alphabetical order.
        exif: See `load_image`.
        on_problem: Receives what `read_voc` reports, images without an annotation, and annotations that fit two images.

    Raises:
        InputError: The folder is missing or holds no annotation.
    """
    files = Files(folder)
    annotations = files.ending(".xml")
    if not annotations:
        raise InputError(f"{folder}: no annotations (*.xml) in this folder; it holds {describe_files(files)}")
    names, first = survey(files.root / path for path in annotations)
    pairs = pair_images(files, annotations, files.image_of)
    return read_xml_pairs(files, pairs, class_names or names, exif, on_problem, first=first)


def read_xml_pairs(
    files: Files, pairs: Pairs, class_names: Sequence[str], exif: str, on_problem: OnProblem, *, first: int
) -> Dataset:
    """Read images that have an annotation each, with ids by `image_ids`; see `read_images`."""
    for _, problem in pairs.problems:
        on_problem(problem)
    ids = image_ids([image for _, image in pairs.pairs])
    images = [
        Annotated(image_id, files.root / annotation, partial(Path, files.root / image))
        for image_id, (annotation, image) in zip(ids, pairs.pairs, strict=True)
    ]
    return read_images(files.root, images, class_names, exif, on_problem, first=first)


class Survey(NamedTuple):
    """What annotations have in common."""

    class_names: list[str]  # of their objects, in alphabetical order
    first: int  # the number of the first pixel: 0 if boxes begin at 0 and none ends at the width or height, else 1


def survey(annotations: Iterable[Path]) -> Survey:
    """Look through annotations; what is wrong in them is reported when the images are read."""
    names: set[str] = set()
    from_0, paths = False, list(annotations)
    for path in paths:
        with suppress(InputError):
            tree = parse_xml(path)
            names.update(_text(node, "name") for node in tree.iter("object"))
            if not from_0 and any(_may_be_0(node) for side in ("xmin", "ymin") for node in tree.iter(side)):
                from_0 = any(0 <= min(box) < 1 for box, _ in _boxes_and_sides(tree))
    return Survey(sorted(names - {""}), 0 if from_0 and not any(map(_ends_at_border, paths)) else 1)


def _may_be_0(node: Any) -> bool:
    return (node.text or "").lstrip().startswith(("0", ".", "+", "-"))


def _ends_at_border(path: Path) -> bool:
    """Return whether a box ends at the stated width or height, where the first pixel is 1."""
    with suppress(InputError):
        boxes = _boxes_and_sides(parse_xml(path))
        return any(corner >= side for box, sides in boxes for corner, side in zip(box, sides, strict=True))
    return False


def _boxes_and_sides(tree: Any) -> Iterator[tuple[list[float], list[float]]]:
    """Yield the boxes of numbers in an annotation, each with the stated width and height twice, 0 if missing."""
    with suppress(ValueError):
        sides = [float(_text(tree, f"size/{side}") or 0) for side in ("width", "height")] * 2
        for node in tree.iter("object"):
            yield [float(_text(node, f"bndbox/{side}")) for side in _CORNERS], sides


def parse_xml(path: Path) -> Any:
    """Return the root of an XML file, in the encoding it declares or else UTF-8, UTF-16 with a mark or Latin-1.

    Raises:
        InputError: It is missing, unreadable or not XML, or declares entities.
    """
    try:
        data = read_bytes(path)
        with garbage_kept():
            try:
                return ElementTree.fromstring(data)
            except (ElementTree.ParseError, ValueError, LookupError):
                if (text := _decoded(data)) is None:
                    raise
                return ElementTree.fromstring(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except Exception as error:  # of many kinds, such as an encoding that is none
        raise InputError(f"{path}: {error}") from None


def _decoded(data: bytes) -> str | None:
    """Decode XML in an encoding that the parser does not know, or in undeclared Latin-1; None if it is UTF-8."""
    declared = re.match(rb"""<\?xml[^>]*encoding=["']([\w.-]+)""", data)
    name = declared[1].decode().lower() if declared else "utf-8"
    if codecs.lookup(name).name in ("punycode", "idna"):  # which take the square of the length
        raise LookupError(f"unknown encoding: {name}")
    try:
        text = data.decode(name)
        return None if name == "utf-8" else text
    except UnicodeDecodeError:
        return data.decode("latin-1") if name == "utf-8" and not data.startswith((b"\xff\xfe", b"\xfe\xff")) else None


def _text(node: Any, tag: str) -> str:
    return (node.findtext(tag) or "").strip()


def read_images(
    source: Path,
    images: Iterable[Annotated],
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
    *,
    first: int,
) -> Dataset:
    """Read the annotations of images; `source` names the data set in messages, `first` is the first pixel's number."""
    if first == 0:
        text = f"{source}: some begin at 0, and none ends at the width or height of its image"
        on_problem(CorrectedError("data sets whose boxes are read as 0-based", text))
    labels = {name: label for label, name in enumerate(class_names, 1)}
    readers = ((image.image_id, partial(_read_image, image, labels, exif, on_problem, first)) for image in images)
    return Dataset(tuple(class_names), collect_records(readers, source, on_problem))


def _read_image(annotated: Annotated, labels: dict[str, int], exif: str, on_problem: OnProblem, first: int) -> Record:
    path, image = annotated.annotation, annotated.find_image()
    tree = parse_xml(path)
    if tree.tag != "annotation" and tree.find("size") is None:
        raise InputError(f"{path}: expected VOC's <annotation>, got <{tree.tag}>")
    stated = size_of(_text(tree, "size/height"), _text(tree, "size/width"))
    size = true_size(image, stated, path, exif, on_problem)
    objects = []
    for node in tree.iter("object"):
        with ReportTo(on_problem, path):
            objects.append(_read_object(node, labels, *size, path, on_problem, first))
    return make_record(annotated.image_id, *size, objects, ImageFile(str(image), size, exif))


def _read_object(
    node: Any, labels: dict[str, int], height: int, width: int, path: Path, on_problem: OnProblem, first: int
) -> tuple[list[float], int, bool]:
    name = _text(node, "name")
    if name not in labels:
        raise InputError(f"unknown class {name!r}; the classes are {', '.join(labels)}")
    if node.find("bndbox") is None:
        raise InputError(f"the object {name!r} has no bndbox; it has {', '.join(child.tag for child in node)[:200]}")
    corners = [node.findtext(f"bndbox/{side}", "") for side in _CORNERS]
    if node.find("attributes") is not None and (degrees := _rotation(node)):
        corners = _turned(name, corners, degrees, height, width, first)
    box = voc_box(name, corners, height, width, first=first)
    if is_moved(box, [float(corner) - first for corner in corners]):
        on_problem(CorrectedError("boxes clipped", f"{path}: box of {name!r} ({', '.join(map(str.strip, corners))})"))
    return box, labels[name], _text(node, "difficult").lower() in ("1", "true", "yes")


def _rotation(node: Any) -> float:
    """Return by how many degrees CVAT says that a box is turned about its centre."""
    found = [_text(item, "value") for item in node.iter("attribute") if _text(item, "name") == "rotation"]
    with suppress(ValueError):
        if not found or abs(float(found[0])) < 1e9:
            return float(found[0]) if found else 0.0
    raise InputError(f"rotation must be a number, got {found[0]!r:.80}")


def _turned(name: str, corners: list[str], degrees: float, height: int, width: int, first: int) -> list[str]:
    x1, y1, x2, y2 = voc_box(name, corners, height, width, first=first)
    left, top, right, bottom = turned_edges((x1, y1, x2 + 1, y2 + 1), degrees, height, width)
    return [str(value + first) for value in (left, top, right - 1, bottom - 1)]


def voc_box(name: str, corners: Sequence[Any], height: int, width: int, *, first: int = 1) -> list[float]:
    """Return a 0-based box from VOC's (xmin, ymin, xmax, ymax), numbers or text, clipped by up to a pixel.

    The first pixel has the number `first`, VOC's 1 or 0.

    Raises:
        InputError: They are not four numbers, reversed or outside the image; the message names them and the class.
    """
    try:
        box = [float(corner) - first for corner in corners]
    except ValueError:
        raise InputError(f"box of {name!r}: expected four numbers, got {', '.join(map(repr, corners))}") from None
    if clipped := clip_box(box, height, width):
        return clipped
    right, bottom = width - 1 + first, height - 1 + first
    expected = f"{first} <= xmin <= xmax <= {right} and {first} <= ymin <= ymax <= {bottom}"
    raise InputError(f"box of {name!r} ({', '.join(str(corner).strip() for corner in corners)}): expected {expected}")
