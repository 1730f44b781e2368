"""PASCAL VOC: the devkit's layout, and folders of images with an annotation in VOC's XML beside each."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException, ElementTree

from frcnn_jax.data.records import IMAGE_SUFFIXES, Dataset, Record, leaves_folder, make_record, stop, why_no_image
from frcnn_jax.errors import InputError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(
    voc_dir: Path,
    year: int,
    split: str,
    class_names: Sequence[str] = VOC_CLASSES,
    on_problem: Callable[[InputError], None] = stop,
) -> Dataset:
    """Splits of a VOCdevkit folder (`VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`).

    Args:
        voc_dir: the folder.
        year: of the splits that name none.
        split: the name of a split file, or several joined, such as "2007_trainval+2012_trainval".
        class_names: of labels 1 to K.
        on_problem: gets a missing or doubled annotation or image, a broken XML, an unknown class, a box that is
            reversed or not within the image.

    Raises:
        InputError: a missing split file.
    """
    images = []
    for term in split.split("+"):
        named_year, name = re.fullmatch(r"(?:(\d{4})_)?(.*)", term).groups()  # type: ignore[union-attr]
        root = Path(voc_dir) / f"VOC{named_year or year}"
        for image_id in _split_file(root / "ImageSets" / "Main" / f"{name}.txt"):
            images.append((image_id, root / "Annotations" / f"{image_id}.xml", root / "JPEGImages" / f"{image_id}.jpg"))
    return Dataset(tuple(class_names), list(_xml_records(images, class_names, on_problem)))


def _split_file(path: Path) -> list[str]:
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise InputError(f"{path}: no such split file; its folder has {', '.join(found[:9]) or 'none'}")
    image_ids = [line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not image_ids:
        raise InputError(f"{path}: names no image")
    return image_ids


def read_xml_folder(
    folder: Path, class_names: Sequence[str] = (), on_problem: Callable[[InputError], None] = stop
) -> Dataset:
    """A folder of images, each with an annotation of VOC's form beside it, `<name>.xml`.

    Args:
        folder: with the files.
        class_names: of labels 1 to K; empty for all that occur, in alphabetical order.
        on_problem: as in `read_voc`, an image without annotation, and two images with one.

    Raises:
        InputError: no such folder, or no annotation in it.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    annotations = sorted(Path(folder).glob("*.xml"))
    if not annotations:
        raise InputError(f"{folder}: no annotation (*.xml) in it")
    for name in sorted(found.keys() - {path.stem for path in annotations}):
        for path in found[name]:
            on_problem(InputError(f"{path}: has no annotation {name}.xml beside it"))
    images = []
    for path in annotations:
        first, *others = found.get(path.stem, [path.with_suffix(".jpg")])
        if others:
            on_problem(InputError(f"{path}: of {first.name} or of {others[0].name}? An image needs a name of its own"))
        else:
            images.append((path.stem, path, first))
    class_names = class_names or _xml_classes(annotations)
    return Dataset(tuple(class_names), list(_xml_records(images, class_names, on_problem)))


def _xml_classes(annotations: Iterable[Path]) -> list[str]:
    names: set[str] = set()
    for path in annotations:
        try:
            tree = ElementTree.fromstring(path.read_bytes())
        except (OSError, ElementTree.ParseError, DefusedXmlException, ValueError):
            continue  # named when the record is read
        names.update(node.findtext("name", "").strip() for node in tree.iter("object"))
    return sorted(names - {""})


def _xml_records(
    images: Iterable[tuple[str, Path, Path]], class_names: Sequence[str], on_problem: Callable[[InputError], None]
) -> Iterator[Record]:
    """Records of (id, annotation, image)."""
    labels = {name: label for label, name in enumerate(class_names, 1)}
    seen = set()
    for image_id, path, image in images:
        try:
            if leaves_folder(image_id):
                raise InputError(f"{path}: the image id {image_id!r} leaves the folder")
            if image_id in seen:
                raise InputError(f"{path}: the image {image_id!r} is named twice")
            seen.add(image_id)
            if reason := why_no_image(image):
                raise InputError(f"{image}: {reason}")
            yield _xml_record(image_id, path, image, labels, on_problem)
        except InputError as problem:
            on_problem(problem)


def _xml_record(
    image_id: str, path: Path, image: Path, labels: dict[str, int], on_problem: Callable[[InputError], None]
) -> Record:
    try:
        tree = ElementTree.fromstring(path.read_bytes())
        width, height = (_whole_number(tree, f"size/{side}") for side in ("width", "height"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(f"{path}: {error}") from None
    objects = []
    for node in tree.iter("object"):
        try:
            objects.append(_xml_object(node, labels, width, height))
        except InputError as problem:
            on_problem(InputError(f"{path}: {problem}"))
    return make_record(image_id, height, width, objects, image)


def _whole_number(tree: Any, path: str) -> int:
    text = tree.findtext(path, "").strip()
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 9):
        raise InputError(f"{path}: a whole number over 0 expected, got {text!r}")
    return int(text)


def _xml_object(node: Any, labels: dict[str, int], width: int, height: int) -> tuple[list[float], int, bool]:
    name = node.findtext("name", "").strip()
    if name not in labels:
        raise InputError(f"unknown class {name!r}; the classes are {', '.join(labels)}")
    sides = [node.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(side) - 1 for side in sides)  # 1-based in the file
    except ValueError:
        raise InputError(f"box of {name!r}: four numbers expected, got {', '.join(map(repr, sides))}") from None
    if not (0 <= x1 < x2 < width and 0 <= y1 < y2 < height):
        raise InputError(
            f"box of {name!r} ({', '.join(sides)}): 1 <= xmin < xmax <= {width} and 1 <= ymin < ymax <= {height} "
            "expected"
        )
    return [x1, y1, x2, y2], labels[name], node.findtext("difficult", "0").strip() == "1"
