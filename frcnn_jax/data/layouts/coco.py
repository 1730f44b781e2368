"""COCO's JSON as COCO, Roboflow, CVAT and Label Studio lay it out: one file per split, images wherever they lie."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.data.coco import check_categories, coco_id, id_order, image_name, read_coco
from frcnn_jax.data.layouts.common import Found, Split
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.problems import OnProblem
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.files import open_regular, read_json

_TITLES = {
    "_annotations.coco.json": "COCO, Roboflow layout",
    "instances_default.json": "COCO, CVAT layout",
    "result.json": "COCO, Label Studio layout",
}
_PEEK = 65_536  # bytes at either end of a file that show what it is
_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")


def find_coco(files: Files) -> Found | None:
    """Find COCO instances files; see `common.Found`."""
    found = [path for path in files.ending(".json") if has_key(files.root / path, "images", r"\[")]
    sources = [path for path in found if not path.name.startswith(_OTHER_TASKS)]
    sources = sources or [path for path in found if path.name.startswith("person_keypoints")]
    beside = {path.parent for path in sources if path.name.startswith("instances")}
    sources = [path for path in sources if path.parent not in beside or path.name.startswith("instances")]
    if not sources:
        return None
    by_split: dict[str, Path] = {}
    for path in sources:
        name = split_of(path, by_name=True)
        if (other := by_split.setdefault(name, path)) != path:
            raise InputError(
                f"{files.root}: which file is the split {name!r}, {other} or {path}? Pass the folder of one, or "
                "move one elsewhere"
            )
    title = _TITLES.get(sources[0].name.lower(), "COCO")
    contents = {name: _Contents(files, path) for name, path in by_split.items()}
    splits = {name: Split(len(found.images), found.read) for name, found in contents.items()}
    names = _class_names(list(contents.values()), "Roboflow" in title)
    return Found(title, splits, lambda: names, has_crowds=True)


def has_key(path: Path, key: str, value: str) -> bool:
    """Return whether a JSON file has a key with a value of this pattern, as far as its two ends show."""
    try:
        with open_regular(path) as file:
            ends = file.read(_PEEK)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(ends), size - _PEEK))
            ends += b"\n" + file.read()
    except (OSError, InputError):
        return False
    return bool(re.search(rf'"{key}"\s*:\s*{value}'.encode(), ends.replace(b"\0", b"")))  # UTF-16 has zeros


class _Contents:
    """What a file lists: its images and classes."""

    def __init__(self, files: Files, source: Path) -> None:
        self._path = files.root / source
        content = read_json(self._path)
        check_categories(content, self._path)
        try:
            self.images = list(content["images"])
            self.uses_0 = any(annotation.get("category_id") == 0 for annotation in content.get("annotations", ()))
            categories = [(coco_id(category["id"]), str(category["name"])) for category in content["categories"]]
            self.categories = sorted(categories, key=lambda category: id_order(category[0]))
            names = [str(image_name(image)) for image in self.images]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self._path}: not a COCO instances file ({type(error).__name__}: {error})") from None
        self._files, self._source = files, source
        self._present = set(files.images)
        self._folder = _image_folder(files, source, names)

    def read(self, class_names: Sequence[str], exif: str, on_problem: OnProblem) -> Dataset:
        """Read the split; see `common.Read`."""
        return read_coco(
            self._path,
            image_dir=self._files.root / self._folder,
            class_names=class_names,
            exif=exif,
            find_image=self._find,
            on_problem=on_problem,
        )

    def _find(self, name: str) -> str:
        """Return the path of an image, in the folder of most images or else where its name fits best."""
        path = self._folder / name
        return str(self._files.root / (path if path in self._present else self._files.image_named(name, self._source)))


def _class_names(contents: Sequence[_Contents], by_roboflow: bool) -> list[str]:
    """Return the names of all files in the order of ids; Roboflow's category 0 groups the others unless it is used."""
    categories = [category for found in contents for category in found.categories]
    grouping = [0] if by_roboflow and len(categories) > 1 and not any(found.uses_0 for found in contents) else []
    return list(dict.fromkeys(name for number, name in categories if number not in grouping))


def _image_folder(files: Files, source: Path, names: Sequence[str]) -> Path:
    """Return the folder to which a file's image names are relative: the one where most of the first names exist."""
    near = source.parent
    folders = {near, *near.parents, *(parent for image in files.images for parent in image.parents)}
    present = set(files.images)

    def rank(folder: Path) -> tuple[int, bool, bool]:
        exist = sum(folder / name in present for name in names[:20])
        return exist, split_of(folder / "_") == split_of(source, by_name=True), folder == near

    return max(sorted(folders), key=rank)
