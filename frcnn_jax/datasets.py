"""One record type, and the readers that give it.

Boxes are `(G, 4)` float32 (x1, y1, x2, y2), 0-based and inclusive; labels are 1 to K. Every reader checks what it
reads: an InputError names the file and the box.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from PIL import Image, ImageOps

from frcnn_jax.errors import InputError

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


def load_image(path: Path, expected_size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as `(H, W, 3)` uint8 RGB, turned upright as its EXIF tag says.

    Raises:
        InputError: no such file, not an image, truncated, over MAX_PIXELS, or not of `expected_size` (height, width).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise InputError(f"{path}: {file.width} x {file.height} pixels, at most {MAX_PIXELS} are read")
                image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: can't be read as an image ({error})") from None
    if expected_size and image.shape[:2] != expected_size:
        raise InputError(f"{path}: annotated as {expected_size} (rows, columns), the file has {image.shape[:2]}")
    return image


def read_voc(voc_dir: Path, year: int, split: str, class_names: Sequence[str] = VOC_CLASSES) -> Dataset:
    """A split of a VOCdevkit folder (`VOC<year>/{Annotations,ImageSets/Main,JPEGImages}`).

    Raises:
        InputError: a missing split file, annotation or image, a broken XML, an unknown class, a box that is
            reversed or not within the image.
    """
    root = Path(voc_dir) / f"VOC{year}"
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not split_file.is_file():
        found = sorted(file.stem for file in split_file.parent.glob("*.txt"))
        raise InputError(f"{split_file}: no such split file; its folder has {', '.join(found[:9]) or 'none'}")
    image_ids = [line.split()[0] for line in split_file.read_text(errors="replace").splitlines() if line.strip()]
    if not image_ids:
        raise InputError(f"{split_file}: names no image")
    labels = {name: label for label, name in enumerate(class_names, 1)}
    return Dataset(tuple(class_names), [_voc_record(root, image_id, labels) for image_id in image_ids])


def _voc_record(root: Path, image_id: str, labels: dict[str, int]) -> Record:
    path = root / "Annotations" / f"{image_id}.xml"
    image = root / "JPEGImages" / f"{image_id}.jpg"
    if not image.is_file():
        raise InputError(f"{image}: no such image (named by a split file of {root})")
    try:
        tree = ElementTree.fromstring(path.read_bytes())
        width, height = (_whole_number(tree, f"size/{side}") for side in ("width", "height"))
        objects = [_voc_object(node, labels, width, height) for node in tree.iter("object")]
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation") from None
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    return Record(
        image_id,
        height,
        width,
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int32),
        np.array([difficult for _, _, difficult in objects], bool),
        partial(load_image, image, (height, width)),
    )


def _whole_number(tree, path: str) -> int:
    text = tree.findtext(path, "")
    if not text.strip().isdecimal():
        raise InputError(f"{path}: a whole number expected, got {text!r}")
    return int(text)


def _voc_object(node, labels: dict[str, int], width: int, height: int) -> tuple[list[float], int, bool]:
    name = node.findtext("name", "")
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
