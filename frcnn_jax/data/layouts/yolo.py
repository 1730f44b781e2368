"""YOLO: a text file per image, with lines `class x y width height` in fractions of the image's sides.

Lines of more values are outlines (class x1 y1 x2 y2 ...), whose outer boxes are taken. An image without such a file, or
with an empty one, has no objects.
"""

from collections.abc import Mapping, Sequence
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
from frcnn_jax.data.problems import OnProblem
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding

LARGEST_YAML = 1 << 20  # characters
LONGEST_VALUE = 1000  # characters
# files of class names, one per line, those of a row before those of the next
NAME_LISTS = (
    ("classes.txt", "obj.names"),
    ("_darknet.labels", "class.txt", "class_names.txt", "label_map.txt", "labels.txt", "names.txt"),
)
_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def find_yolo(files: Files) -> Found | None:
    """Find `data.yaml`, or label files next to a list of class names; see `common.Found`."""
    labels = _label_files(files)
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
        names = _names(content, files.root / path)
        images = _described_splits(files, path, content)
    elif labels:
        names = _listed_names(files)
        images = {}
        for image in files.images:
            images.setdefault(split_of(image), []).append(image)
    else:
        return None
    splits = {name: Split(len(own), partial(_read, files, own, names)) for name, own in images.items() if own}

    def find_classes() -> list[str]:
        if not names:
            raise InputError(
                f"{files.root}: YOLO labels ({labels[0]}) without class names: pass the folder that has data.yaml too, "
                "add classes.txt with a name per line, that of class 0 first, or set "
                "--config.class_names=\"('cat', 'dog')\""
            )
        return names

    return Found("YOLO", splits, find_classes)


def _listed_names(files: Files) -> list[str]:
    """Return the class names of the files that list them, one in each folder perhaps; empty if there is none."""
    first, second = (files.named(*row) for row in NAME_LISTS)
    lists = first or files.ending(".names") or second
    found = {path: read_names(files.root / path) for path in lists}
    for path in lists[1:]:
        if found[path] != found[lists[0]]:
            raise InputError(f"{files.root}: {lists[0]} and {path} list different classes; move one elsewhere")
    return found[lists[0]] if lists else []


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
    """Loader that refuses aliases, which can repeat a list in itself many times, and long values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise InputError("it has an alias (*), which is not read")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_VALUE:
            raise InputError(f"a value of {len(event.value)} characters, expected at most {LONGEST_VALUE}")
        return super().compose_node(parent, index)


def _names(content: dict[str, Any], path: Path) -> list[str]:
    given, count = content["names"], content.get("nc")
    if isinstance(given, dict):
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise InputError(f"{path}: names must have the numbers 0 to {len(given) - 1}, got {list(given)[:9]}")
        given = [given[i] for i in range(len(given))]
    if not isinstance(given, list) or not given:
        raise InputError(f"{path}: names must list the classes, got {given!r}")
    if count is not None and count != len(given):
        raise InputError(f"{path}: nc is {count}, but names has {len(given)}")
    names = [str(name).strip() for name in given]
    check_names(names, path)
    return names


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
    if not splits:
        for image in files.images:
            splits.setdefault(split_of(image), []).append(image)
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
                lines = read_text(files.root / folder).splitlines()
                return [files.image_named(line.strip(), folder) for line in lines if line.strip()]
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


def _read(
    files: Files,
    images: Sequence[Path],
    names: Sequence[str],
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    labels = _labels(files)
    read = partial(_read_shape, names or class_names)
    annotated = [_annotated(files.root, image, labels.get(image)) for image in images]
    for problem in _orphans(files, images, labels):
        on_problem(problem)
    return read_annotated(files.root, annotated, read, class_names, exif, on_problem)


def _label_path(image: Path) -> Path:
    """Return where the labels of an image are: in `labels` in place of the last `images`, or else next to it."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].lower() in ("images", "jpegimages"):
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _labels(files: Files) -> dict[Path, Path]:
    """Return the labels of each image that has some: those where YOLO looks, or, if none is there, those of its name.

    Raises:
        InputError: There are two files of an image's name, or two images of a file's.
    """
    texts = set(files.ending(".txt"))
    expected = ((image, path) for image in files.images for path in (image.with_suffix(".txt"), _label_path(image)))
    if found := {image: path for image, path in expected if path in texts}:
        return found
    for path in _label_files(files):
        if _is_label(files.root / path) and (other := found.setdefault(files.image_of(path), path)) != path:
            raise InputError(f"{files.root}: {other} and {path} have labels of the same image; move one elsewhere")
    return found


def _annotated(root: Path, image: Path, label: Path | None) -> Annotated:
    if label is None:
        return Annotated(lambda: image, str(root / image), None, ())
    lines = read_text(root / label).splitlines()
    rows = [(f"{root / label}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return Annotated(lambda: image, str(root / label), None, rows)


def _orphans(files: Files, images: Sequence[Path], labels: Mapping[Path, Path]) -> list[InputError]:
    """Return a problem per file of labels that has no image."""
    texts = files.ending(".txt")
    folders = {folder for image in images if "labels" in (folder := _label_path(image).parent).parts}
    folders |= {labels[image].parent for image in images if image in labels} - {image.parent for image in files.images}
    used = set(labels.values())
    return [
        InputError(f"{files.root / path}: no image {path.stem}.*")
        for path in texts
        if path.parent in folders and path not in used and path.name.lower() not in chain(*NAME_LISTS)
    ]


def _read_shape(names: Sequence[str], line: str, height: int, width: int) -> Shape:
    words = line.split()
    kind, *values = numbers(words, "labels")
    if not (kind.is_integer() and 0 <= kind < len(names)):
        raise InputError(f"class {words[0]}: expected 0 to {len(names) - 1}, the numbers of {', '.join(names)}")
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
