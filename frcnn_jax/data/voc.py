"""PASCAL VOC: the VOCdevkit, and folders of images with one VOC-style XML file each."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException, ElementTree

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import IMAGE_SUFFIXES, Dataset, ImageFile, Record, collect_records, image_path, make_record
from frcnn_jax.errors import InputError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


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
            are reversed or not within the image.

    Raises:
        InputError: A split file is missing or empty.
    """
    voc_dir, images = Path(voc_dir), []
    for term in split.split("+"):
        named_year, name = re.fullmatch(r"(?s)(?:(\d{4})_)?(.*)", term).groups()  # type: ignore[union-attr]
        root = voc_dir / f"VOC{named_year or year}"
        for image_id in _split_file(root / "ImageSets" / "Main" / f"{name}.txt"):
            images.append((image_id, root / "Annotations" / f"{image_id}.xml", root / "JPEGImages", f"{image_id}.jpg"))
    return _read_images(images, class_names, voc_dir, exif, on_problem)


def _split_file(path: Path) -> list[str]:
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise InputError(f"{path}: no such split file; its folder has {', '.join(found[:9]) or 'none'}")
    image_ids = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not image_ids:
        raise InputError(f"{path}: lists no image")
    return image_ids


def read_xml_folder(
    folder: str | Path, *, class_names: Sequence[str] = (), exif: str = "apply", on_problem: OnProblem = stop
) -> Dataset:
    """Read a folder of images and its sub-folders, each image beside an annotation `<name>.xml` in VOC's format.

    The id of an image is its path in the folder, without its suffix.

    Args:
        folder: The folder of both images and annotations.
        class_names: The names of labels 1 to K; by default every class found, in alphabetical order.
        exif: See `load_image`.
        on_problem: Receives what `read_voc` reports, images without an annotation, and annotations that fit two images.

    Raises:
        InputError: The folder is missing or holds no annotation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if "__MACOSX" not in path.parts)
    annotations = [path for path in files if path.suffix == ".xml"]
    if not annotations:
        raise InputError(f"{folder}: no annotations (*.xml) in this folder")
    names = defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            names[path.with_suffix("")].append(path.name)
    images = []
    for path in annotations:
        stem = path.with_suffix("")
        first, *others = names.pop(stem, [f"{stem.name}.jpg"])
        if others:
            on_problem(InputError(f"{path}: does it annotate {first} or {others[0]}? Image names must differ"))
        else:
            images.append((stem.relative_to(folder).as_posix(), path, path.parent, first))
    for stem, unannotated in names.items():
        for name in unannotated:
            on_problem(InputError(f"{stem.parent / name}: its annotation {stem.name}.xml is missing"))
    return _read_images(images, class_names or _classes_in(annotations), folder, exif, on_problem)


def _classes_in(annotations: Iterable[Path]) -> list[str]:
    names: set[str] = set()
    for path in annotations:
        with suppress(InputError):  # reported when the record is read
            names.update(node.findtext("name", "").strip() for node in _parse(path).iter("object"))
    return sorted(names - {""})


def _parse(path: Path) -> Any:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{path}: {error}") from None


def _read_images(
    images: Iterable[tuple[str, Path, Path, str]],
    class_names: Sequence[str],
    source: Path,
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    """Read images given as (id, annotation, image folder, image name)."""
    labels = {name: label for label, name in enumerate(class_names, 1)}
    readers = ((image[0], partial(_read_image, *image, labels, exif, on_problem)) for image in images)
    return Dataset(tuple(class_names), collect_records(readers, source, on_problem))


def _read_image(
    image_id: str, path: Path, folder: Path, name: str, labels: dict[str, int], exif: str, on_problem: OnProblem
) -> Record:
    image = image_path(folder, name)
    tree = _parse(path)
    width, height = (_positive_integer(tree, f"size/{side}", path) for side in ("width", "height"))
    objects = []
    for node in tree.iter("object"):
        with ReportTo(on_problem, path):
            objects.append(_read_object(node, labels, height, width))
    return make_record(image_id, height, width, objects, ImageFile(str(image), (height, width), exif))


def _positive_integer(tree: Any, tag: str, path: Path) -> int:
    text = tree.findtext(tag, "").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) > 0):
        raise InputError(f"{path}: {tag} must be a positive integer, got {text!r}")
    return int(text)


def _read_object(node: Any, labels: dict[str, int], height: int, width: int) -> tuple[list[float], int, bool]:
    name = node.findtext("name", "").strip()
    if name not in labels:
        raise InputError(f"unknown class {name!r}; the classes are {', '.join(labels)}")
    corners = [node.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    return voc_box(name, corners, height, width), labels[name], node.findtext("difficult", "0").strip() == "1"


def voc_box(name: str, corners: Sequence[Any], height: int, width: int) -> list[float]:
    """Return a 0-based box from VOC's 1-based (xmin, ymin, xmax, ymax), numbers or text.

    Raises:
        InputError: They are not four numbers, reversed or outside the image; the message names them and the class.
    """
    try:
        x1, y1, x2, y2 = (float(corner) - 1 for corner in corners)
    except ValueError:
        raise InputError(f"box of {name!r}: expected four numbers, got {', '.join(map(repr, corners))}") from None
    if not (0 <= x1 < x2 < width and 0 <= y1 < y2 < height):
        expected = f"1 <= xmin < xmax <= {width} and 1 <= ymin < ymax <= {height}"
        raise InputError(f"box of {name!r} ({', '.join(map(str, corners))}): expected {expected}")
    return [x1, y1, x2, y2]
