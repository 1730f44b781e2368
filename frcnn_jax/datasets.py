"""One record type, and the readers that give it.

Boxes are `(G, 4)` float32 (x1, y1, x2, y2), 0-based and inclusive; labels are 1 to K. Every reader checks what it
reads, and hands an InputError that names the file and the box to its `on_problem`: by default that raises it; where it
returns, the object or the image is left out.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from PIL import Image, ImageOps

from frcnn_jax.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # a larger image is refused, unread

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """An image and its ground truth."""

    image_id: str
    height: int
    width: int
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int32
    difficult: np.ndarray  # (G,) bool: neither counted nor held against in evaluation
    load: Callable[[], np.ndarray]  # -> (height, width, 3) uint8 RGB; picklable


@dataclass(frozen=True)
class Dataset:
    """Records and the names of labels 1 to K."""

    class_names: tuple[str, ...]
    records: Sequence[Record]


def without_difficult(dataset: Dataset) -> Dataset:
    """The set with the objects left out that are marked difficult ("07 minus difficult", section 4.3)."""

    def easy(record: Record) -> Record:
        keep = ~record.difficult
        fields = {name: getattr(record, name)[keep] for name in ("boxes", "labels", "difficult")}
        return replace(record, **fields)

    return Dataset(dataset.class_names, [easy(record) for record in dataset.records])


def stop(problem: InputError) -> None:
    """The `on_problem` that raises."""
    raise problem


def load_image(path: Path, expected_size: tuple[int, int] | None = None, *, data: bytes | None = None) -> np.ndarray:
    """An image file as `(H, W, 3)` uint8 RGB, turned upright as its EXIF tag says, unless `expected_size` is that of
    the pixels as they are stored. Of 16-bit grey the upper 8 bits are taken; transparency is left out. With `data`, the
    file's content, `path` is but its name.

    Raises:
        InputError: no such file, not an image, truncated, over MAX_PIXELS, of 32-bit pixels, or not of `expected_size`
            (height, width).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data)) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise InputError(f"{path}: {file.width} x {file.height} pixels, at most {MAX_PIXELS} are read")
                if file.mode in ("I", "F"):
                    raise InputError(f"{path}: pixels of 32 bits; convert it to 8 bits a channel")
                stored = (file.height, file.width) == expected_size
                upright = file if stored else ImageOps.exif_transpose(file)
                if upright.mode.startswith("I;16"):
                    image = np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
                else:
                    image = np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: can't be read as an image ({error})") from None
    if expected_size and image.shape[:2] != expected_size:
        raise InputError(f"{path}: annotated as {expected_size} (rows, columns), the file has {image.shape[:2]}")
    return image


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


def why_no_image(path: Path) -> str:
    """What is wrong where no file is to be had; empty where one is."""
    try:
        return "" if path.is_file() else "no such image"
    except OSError as error:  # a name too long, a folder that lets nobody in
        return f"can't be read ({error.strerror})"


def leaves_folder(name: str) -> bool:
    """Whether a relative path points outside of the folder that it starts from."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


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


def make_record(image_id: str, height: int, width: int, objects: Sequence[tuple], image: Path) -> Record:
    """The record of an image file and its objects (box, label, difficult)."""
    return Record(
        image_id,
        height,
        width,
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int32),
        np.array([difficult for _, _, difficult in objects], bool),
        partial(load_image, image, (height, width)),
    )


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
