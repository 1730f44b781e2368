"""YOLO: a text file per image, with lines `class x y width height` in fractions of the image's sides.

Lines of more values are outlines (class x1 y1 x2 y2 ...), whose outer boxes are taken; or boxes and keypoints, by
`kpt_shape` of `data.yaml`; or boxes and a confidence. An image without such a file, or with an empty one, has no
objects.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from frcnn_jax.data.layouts.common import (
    Annotated,
    Found,
    Shape,
    Split,
    check_names,
    inclusive,
    numbers,
    outer_box,
    read_annotated,
    read_names,
    read_text,
)
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.problems import OnProblem, ReportTo
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding

LARGEST_YAML = 1 << 20  # characters
LONGEST_VALUE = 1000  # characters
# files of class names, one per line, those of a row before those of the next
NAME_LISTS = (
    ("classes.txt", "obj.names"),
    ("class.txt", "class_names.txt", "label_map.txt", "labels.txt", "names.txt"),
)
_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def find_yolo(files: Files) -> Found | None:
    """Find `data.yaml`, or label files next to a list of class names; see `common.Found`."""
    labels, keypoints = _label_files(files), 0
    described = [
        (path, content)
        for path in files.ending(".yaml", ".yml")
        if (content := _description(files, path, among_labels=bool(labels)))
    ]
    if len(described) > 1:
        paths = " or ".join(str(path) for path, _ in described[:2])
        raise InputError(
            f"{files.root}: which file describes the data set, {paths}? Pass the folder of one, or move one elsewhere"
        )
    if described:
        path, content = described[0]
        names, keypoints = _names(content, files.root / path), _keypoint_values(content)
        images = _described_splits(files, path, content)
    elif labels:
        names = _listed_names(files)
        images = _splits_by_folder(files)
    else:
        return None
    texts = _Texts(files)
    if not any(image in texts.of for own in images.values() for image in own):
        raise InputError(f"{files.root}: no image has YOLO labels, such as {_label_path(files.images[0])}")
    splits = {
        name: Split(len(own), partial(_read, texts, own, names, keypoints)) for name, own in images.items() if own
    }

    def find_classes() -> list[str]:
        if not names:
            raise InputError(
                f"{files.root}: YOLO labels ({labels[0]}) without class names: pass the folder that has data.yaml too, "
                "add classes.txt with a name per line, that of class 0 first, or set --config.class_names=cat,dog"
            )
        return names

    return Found("YOLO", splits, find_classes)


def _listed_names(files: Files) -> list[str]:
    """Return the class names of the files that list them, one in each folder perhaps; empty if there is none."""
    first, second = (files.named(*row) for row in NAME_LISTS)
    lists = first or files.ending(".names", ".labels") or second
    return _common_names(files.root, lists) if lists else []


def _common_names(root: Path, lists: Sequence[Path]) -> list[str]:
    """Return the longest list of class names, with which the others begin: labelImg writes one per folder."""
    names = {path: read_names(root / path) for path in lists}
    longest = max(lists, key=lambda path: len(names[path]))
    for path, own in names.items():
        if own != names[longest][: len(own)]:
            first, second = (", ".join(some[:9]) for some in (own, names[longest]))
            raise InputError(f"{root / path}: its classes are {first}, those of {longest} {second}; remove one list")
    return names[longest]


def _splits_by_folder(files: Files) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for image in files.images:
        splits.setdefault(split_of(image), []).append(image)
    return splits


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _description(files: Files, path: Path, *, among_labels: bool) -> dict[str, Any] | None:
    """Return the content of a YAML file if it describes a data set: among labels, if it has class names."""
    try:
        with decoding(files.root / path, "not a YAML file"):
            text = read_text(files.root / path)
            if len(text) > LARGEST_YAML:
                raise InputError(f"{len(text)} characters, expected at most {LARGEST_YAML}")
            content = yaml.load(text, _PlainLoader)
    except InputError:
        if path.name.lower() not in ("data.yaml", "data.yml"):
            return None
        raise
    is_one = isinstance(content, dict) and "names" in content
    return content if is_one and (among_labels or any(key in content for key in (*_KEYS, "path", "nc"))) else None


class _PlainLoader(yaml.SafeLoader):
    """Loader that refuses aliases, which can repeat a list in itself many times, and long values that are no text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise InputError("it has an alias (*), which is not read")
        if isinstance(event, yaml.ScalarEvent) and not event.style and len(event.value) > LONGEST_VALUE:
            raise InputError(f"a value of {len(event.value)} characters, expected at most {LONGEST_VALUE}")
        return super().compose_node(parent, index)


def _names(content: dict[str, Any], path: Path) -> list[str]:
    given, count = content["names"], content.get("nc")
    if isinstance(given, dict):
        given = {int(key) if str(key).isdecimal() else key: name for key, name in given.items()}
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise InputError(f"{path}: names must have the numbers 0 to {len(given) - 1}, got {list(given)[:9]}")
        given = [given[i] for i in range(len(given))]
    if not isinstance(given, list) or not given:
        raise InputError(f"{path}: names must list the classes, got {given!r}")
    if count is not None and str(count) != str(len(given)):
        raise InputError(f"{path}: nc is {count}, but names has {len(given)}")
    names = [str(name).strip() for name in given]
    check_names(names, path)
    return names


def _keypoint_values(content: dict[str, Any]) -> int:
    """Return how many values of a label are its keypoints'."""
    shape = content.get("kpt_shape")
    known = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 <= n < 1000 for n in shape)
    return shape[0] * shape[1] if known else 0  # type: ignore[index]


def _described_splits(files: Files, path: Path, content: dict[str, Any]) -> dict[str, list[Path]]:
    """Return the images of each split: those in its folders or lists; or those of all folders if none is named."""
    splits: dict[str, list[Path]] = {}
    for key, name in _KEYS.items():
        entries = content.get(key) or []
        if not isinstance(entries, str | list):
            raise InputError(f"{files.root / path}: {key} must be a folder or a list of folders, got {entries!r:.80}")
        for entry in [entries] if isinstance(entries, str) else entries:
            found = _images_of(files, path, str(content.get("path") or ""), str(entry))
            if not found and name != "test":  # exporters name a test folder whether they write it or not
                has = ", ".join(sorted({str(image.parent) for image in files.images})[:6]) or "none"
                raise InputError(
                    f"{files.root / path}: no images in {entry}; folders with images: {has}; correct the line "
                    f"{key!r}" + (", or delete it, and a fifth of train is val" if name == "val" else "")
                )
            splits.setdefault(name, []).extend(found)
    splits = splits or _splits_by_folder(files)
    return {name: sorted(set(images)) for name, images in splits.items()}


def _images_of(files: Files, path: Path, base: str, entry: str) -> list[Path]:
    """Return the images in a folder, or in a list of images, that `data.yaml` names; it may be moved since."""
    plain = entry.replace("\\", "/")
    parts = [part for part in PurePosixPath(plain).parts if part not in ("/", ".", "..") and not part.endswith(":")]
    base_parts = [part for part in PurePosixPath(base.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    for start in (path.parent / Path(*base_parts), path.parent, Path()):
        for i in range(max(len(parts), 1)):
            if i and [part.lower() for part in parts[i:]] == ["images"]:
                continue  # of whichever split
            folder = start / Path(*parts[i:])
            if folder in files.paths:
                return [files.image_named(line, folder) for line in _lines(files.root / folder)]
            if found := [image for image in files.images if folder in image.parents]:
                return found
    return []


def _label_files(files: Files) -> list[Path]:
    """Return text files that have the stem of an image and hold labels, or nothing."""
    stems = {image.stem for image in files.images}
    found = [path for path in files.ending(".txt") if path.stem in stems]
    return found if any(_is_label(files.root / path) for path in found) else []


def _is_label(path: Path) -> bool:
    words = read_text(path).split()[:5]
    try:
        return len(words) == 5 and int(words[0]) >= 0 and all(-0.1 <= float(word) <= 1.1 for word in words[1:])
    except ValueError:
        return False


class _Texts:
    """The label files of images: in their usual place or, if none is there, the nearest of an image's stem.

    Attributes:
        files: The data set's files.
        paths: Its text files.
        of: The label file by image, of those that have one.
        images: The images by label file: several if it is none's usual place, and nearest to all of them.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.paths = set(files.ending(".txt"))
        self.of = {image: label for image in files.images if (label := self._usual(image))}
        if not self.of:  # else they may be predictions
            others = defaultdict(list)
            for path in sorted(self.paths):
                others[path.stem].append(path)
            self.of = {i: label for i in files.images if (label := self._nearest(i, others.get(i.stem, ())))}
        self.images = defaultdict(list)
        for image, label in self.of.items():
            self.images[label].append(image)

    def _usual(self, image: Path) -> Path | None:
        return next((path for path in (_label_path(image), image.with_suffix(".txt")) if path in self.paths), None)

    def _nearest(self, image: Path, found: Sequence[Path]) -> Path | None:
        found = [path for path in found if split_of(path) in ("all", split_of(image))]
        found = [path for path in found if _is_label(self.files.root / path)]
        shared = [len(set(path.parts) & set(image.parts)) for path in found]
        nearest = [path for path, number in zip(found, shared, strict=True) if number == max(shared)]
        if len(nearest) > 1:
            raise InputError(
                f"{self.files.root}: {nearest[0]} and {nearest[1]} have labels of {image}; move one elsewhere"
            )
        return nearest[0] if nearest else None


def _read(
    texts: _Texts,
    images: Sequence[Path],
    names: Sequence[str],
    keypoints: int,
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    read_shape = partial(_read_shape, names or class_names, keypoints)
    annotated = []
    for image in images:
        with ReportTo(on_problem):
            annotated.append(_annotated(texts, image))
    for problem in _orphans(texts, images):
        on_problem(problem)
    return read_annotated(texts.files.root, annotated, read_shape, class_names, exif, on_problem)


def _label_path(image: Path) -> Path:
    """Return where the labels of an image are: in `labels` in place of the last `images`, or else next to it."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].lower() in ("images", "jpegimages"):
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _annotated(texts: _Texts, image: Path) -> Annotated:
    root, label = texts.files.root, texts.of.get(image)
    if label is None:
        return Annotated(lambda: image, str(root / image), None, ())
    if len(images := texts.images[label]) > 1 and label not in (_label_path(image), image.with_suffix(".txt")):
        raise InputError(f"{root / label}: are these the labels of {images[0]} or {images[1]}? Their names must differ")
    lines = read_text(root / label).splitlines()
    rows = [(f"{root / label}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return Annotated(lambda: image, str(root / label), None, rows)


def _orphans(texts: _Texts, images: Sequence[Path]) -> list[InputError]:
    """Return a problem per file of labels that has no image."""
    folders = {folder for image in images if "labels" in (folder := _label_path(image).parent).parts}
    folders |= {texts.of[image].parent for image in images if image in texts.of}
    folders -= {image.parent for image in texts.files.images}
    used = {label for image in texts.files.images for label in (_label_path(image), texts.of.get(image))}
    return [
        InputError(f"{texts.files.root / path}: no image {path.stem}.*")
        for path in sorted(texts.paths)
        if path.parent in folders and path not in used and path.name.lower() not in chain(*NAME_LISTS)
    ]


def _read_shape(names: Sequence[str], keypoints: int, line: str, height: int, width: int) -> Shape:
    words = line.split()
    kind, *values = numbers(words, "labels")
    if not (kind.is_integer() and 0 <= kind < len(names)):
        raise InputError(f"class {words[0]}: expected 0 to {len(names) - 1}, the numbers of {', '.join(names)}")
    if len(values) == 5 or (keypoints and len(values) == 4 + keypoints):
        values = values[:4]
    if any(abs(value) > 2 for value in values):
        raise InputError(f"expected fractions of the image's sides, got {line.strip()[:80]!r}")
    name = names[int(kind)]
    if len(values) == 4:
        x, y, w, h = values
        edges = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return Shape(name, inclusive(*edges))
    if len(values) >= 6 and len(values) % 2 == 0:
        points = [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]
        return Shape(name, outer_box(points))
    raise InputError(f"expected class x y width height, got {line.strip()[:80]!r}")
