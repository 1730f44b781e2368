"""Text files that list the images of splits, as Darknet's `train.txt` and `val.txt`, beside any annotations."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from frcnn_jax.data.layouts.common import Found, Read, Split, read_text
from frcnn_jax.data.listing import Files, split_of
from frcnn_jax.data.problems import CorrectedError, OnProblem
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError

_NAMES = ("train.txt", "trainval.txt", "val.txt", "valid.txt", "validation.txt", "test.txt")


class _List(NamedTuple):
    images: Collection[Path]
    problems: Sequence[InputError]


def with_listed_splits(files: Files, found: Found) -> Found:
    """Return a data set whose folders name no splits in those of its lists, if there is a list of train.

    A line is an image's name, with or without folders and suffix; what follows a space may be something else. Of lists
    of one name the one nearest to the folder counts.
    """
    if found.splits.keys() not in ({"all"}, {"train"}):
        return found
    lists: dict[str, _List] = {}
    for path in sorted(files.named(*_NAMES), key=lambda path: (len(path.parts), path.stem == "trainval")):
        split = split_of(Path(path.stem), by_name=True) if path.stem != "trainval" else "train"
        if split not in lists and (own := _read_list(files, path)):
            lists[split] = own
    if "train" not in lists:
        return found
    (whole,) = found.splits.values()
    listed = {image for own in lists.values() for image in own.images}
    splits = {
        split: Split(len(own.images), partial(_read, whole.read, files, own, listed if split == "train" else None))
        for split, own in lists.items()
    }
    return found._replace(splits=splits)


def _read_list(files: Files, path: Path) -> _List | None:
    """Return the images of a list; None if its first line names none."""
    images, problems = {}, []
    for line in filter(None, map(str.strip, read_text(files.root / path).splitlines())):
        try:
            images[_image(files, path, line)] = True
        except InputError as error:
            if not images:
                return None
            problems.append(error)
    return _List(images.keys(), problems) if images else None


def _image(files: Files, path: Path, line: str) -> Path:
    try:
        return files.image_named(line, path)
    except InputError:
        if line.split()[0] == line:
            raise
        return files.image_named(line.split()[0], path)


def _read(
    read: Read,
    files: Files,
    own: _List,
    listed: Collection[Path] | None,
    class_names: Sequence[str],
    exif: str,
    on_problem: OnProblem,
) -> Dataset:
    """Read the images of one list; those that are in none are counted where `listed`, those of all lists, is given."""
    for error in own.problems:
        on_problem(error)
    whole = read(class_names, exif, on_problem)
    by_path = {Path(record.load.path).relative_to(files.root): record for record in whole.records}  # type: ignore[attr-defined]
    for path in by_path.keys() - listed if listed is not None else ():
        on_problem(CorrectedError("images that no list of a split names left out", f"{files.root / path}"))
    return replace(whole, records=[record for path, record in by_path.items() if path in own.images])
