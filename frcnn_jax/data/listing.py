"""The files of a data set's folder, and its images by the names that annotations give them.

Paths are relative to the folder. What operating systems leave (`._a.jpg`, `.DS_Store`, `__MACOSX`, `Thumbs.db`) and
whatever else is hidden is not listed.
"""

import os
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from frcnn_jax.data.records import IMAGE_SUFFIXES
from frcnn_jax.errors import InputError

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini"}
_MASKS = "segmentation"  # begin of the names of folders of masks
_IMAGE_FOLDERS = {"images", "jpegimages"}
_OF_FOLDERS = {"images", "image", "imgs", "img", "annotations", "annots", "labels", "xml", "set", "split", "data"}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Files:
    """The files below a folder.

    Attributes:
        root: The folder.
        paths: The files, sorted, relative to it.
        images: Those that are images, but not masks by the name of their folder, nor those in `masks` whose name is
            another image's too.

    Raises:
        InputError: `root` is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        check_is_folder(self.root)
        self.paths = sorted(_walk(self.root))
        pictures = [path for path in self.ending(*IMAGE_SUFFIXES) if not path.parent.name.lower().startswith(_MASKS)]
        known = {path.stem for path in pictures if path.parent.name.lower() != "masks"}
        self.images = [path for path in pictures if path.parent.name.lower() != "masks" or path.stem not in known]

    def ending(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes, in any case."""
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    def named(self, *names: str) -> list[Path]:
        """Return the files with one of these names, in any case."""
        return [path for path in self.paths if path.name.lower() in names]

    def image_of(self, annotation: Path) -> Path:
        """Return the image with the stem of an annotation, from the folder that fits best.

        Raises:
            InputError: There is none, or there are several.
        """
        stem = _key(annotation.stem)
        found = self._by_stem.get(stem) or self._by_name.get(stem, [])
        found = [path for path in found if path.stem == annotation.stem] or found
        return self._nearest(found, annotation, f"no image {annotation.stem}.*")

    def image_named(self, name: str, annotation: Path) -> Path:
        """Return the image that an annotation names: from the folder it says, or else from the one that fits best.

        Names may have backslashes, %20 for a space, accents in either form, folders of another machine and a query.

        Raises:
            InputError: There is none, or there are several.
        """
        parts = _parts(name)
        last = parts[-1] if parts else ""
        found = self._by_name.get(last) or self._by_stem.get(last, [])
        if not found and Path(last).suffix in IMAGE_SUFFIXES:  # converted since
            found = self._by_stem.get(Path(last).stem, [])
        for plain in () if found else (unquote(name), name.partition("?")[0]):
            if plain != name:
                return self.image_named(plain, annotation)
        if not found and (original := re.sub(r"^([0-9a-f]{8}-)+", "", last)) != last:  # of before Label Studio's upload
            return self.image_named(original, annotation)
        shared = [_shared_end(_parts(path), parts) for path in found]
        found = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
        found = [path for path in found if path.name == Path(name).name] or found
        return self._nearest(found, annotation, f"no image {name!r}")

    def _nearest(self, found: Sequence[Path], annotation: Path, missing: str) -> Path:
        """Return the one file whose folder is that of an annotation, or has most of its parts."""
        if not found:
            raise InputError(f"{self.root / annotation}: {missing} in {self.root}")
        own = set(annotation.parts[:-1])
        rank = [(path.parent == annotation.parent, len(own & set(path.parts[:-1]))) for path in found]
        best = [path for path, value in zip(found, rank, strict=True) if value == max(rank)]
        if len(best) > 1:
            raise InputError(
                f"{self.root / annotation}: does it annotate {best[0]} or {best[1]}? Image names must differ"
            )
        return best[0]

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped((_key(path.stem), path) for path in self.images)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((_key(path.name), path) for path in self.images)


def check_is_folder(path: Path) -> None:
    """Raise InputError unless `path` is a folder; the message says what it is."""
    if path.is_dir():
        return
    if path.is_file() and (path.suffix.lower() in ARCHIVES or zipfile.is_zipfile(path)):
        raise InputError(f"{path}: an archive; unpack it, and pass the folder")
    if path.is_file():
        raise InputError(f"{path}: a file, expected the folder that holds it")
    raise InputError(f"{path}: no such folder")


def split_of(path: PurePath, *, by_name: bool = False) -> str:
    """Return "train", "val" or "test" by the folders of a path, "all" if they say none.

    Args:
        path: A path relative to the data set's folder.
        by_name: Whether the file's own name may say it, as in "instances_train2017.json".
    """
    words = [word for part in path.parts[:-1] for word in _words_of_folder(part)]
    words += re.findall(r"[a-z]+", path.stem.casefold()) if by_name else []
    return next((_SPLITS[word] for word in words if word in _SPLITS), "all")


def _words_of_folder(name: str) -> list[str]:
    """Return the words of a folder's name; none if it has others than splits' and such as "images"."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return words if len([word for word in words if word not in _OF_FOLDERS]) == 1 else []


def image_ids(images: Sequence[Path]) -> list[str]:
    """Return ids of different images: paths without suffix and without folders that name splits or are called images.

    An image whose id would be another's too keeps its whole path.
    """
    names = [_short_name(path) for path in images]
    counts = Counter(names)
    return [name if counts[name] == 1 else path.as_posix() for name, path in zip(names, images, strict=True)]


def _short_name(path: Path) -> str:
    kept = (part for part in path.parts[:-1] if part.lower() not in _IMAGE_FOLDERS and part.lower() not in _SPLITS)
    return PurePosixPath(*kept, path.stem).as_posix()


def describe_files(files: Files) -> str:
    """Return what a folder holds, in one line: "3 .xml (a.xml, b.xml, ...), 12 .jpg (1.jpg, ...)"."""
    groups = _grouped((path.suffix.lower() or "files without suffix", path) for path in files.paths)
    texts = []
    for suffix, paths in sorted(groups.items(), key=lambda item: -len(item[1]))[:6]:
        names = ", ".join(map(str, paths[:2])) + (", ..." if len(paths) > 2 else "")
        texts.append(f"{len(paths)} {suffix} ({names})")
    return ", ".join(texts) or "no files"


def _walk(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_left_behind(name))
        below = Path(folder).relative_to(root)
        yield from (below / name for name in names if not _is_left_behind(name))


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _grouped(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return dict(groups)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _parts(name: str | Path) -> list[str]:
    return [_key(part) for part in str(name).replace("\\", "/").split("/") if part not in ("", ".")]


def _shared_end(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class Pairs(NamedTuple):
    """Annotations of one image each, and their images."""

    pairs: list[tuple[Path, Path]]  # (annotation, image)
    problems: list[tuple[Path, InputError]]  # files without a counterpart

    def splits(self, annotations: Sequence[Path]) -> list[str]:
        """Return the splits of the pairs, and of annotations without an image."""
        lone = {path for path, _ in self.problems} & set(annotations)
        return sorted({*map(split_of_pair, self.pairs), *map(split_of, lone)})

    def of_split(self, split: str) -> "Pairs":
        """Return those of a split by their folders, the annotation's or else the image's."""
        pairs = [pair for pair in self.pairs if split_of_pair(pair) == split]
        return Pairs(pairs, [problem for problem in self.problems if split_of(problem[0]) == split])


def split_of_pair(pair: tuple[Path, Path]) -> str:
    """Return the split that the folder of an annotation says, or else that of its image."""
    return next((split for split in map(split_of, pair) if split != "all"), "all")


def pair_images(files: Files, annotations: Iterable[Path], find: Callable[[Path], Path]) -> Pairs:
    """Find the image of each annotation.

    Args:
        files: The files of the data set.
        annotations: Those that annotate one image each.
        find: Returns the image of one, or raises InputError.
    """
    pairs: list[tuple[Path, Path]] = []
    problems: list[tuple[Path, InputError]] = []
    owners: dict[Path, Path] = {}
    for annotation in annotations:
        try:
            image = find(annotation)
            if (owner := owners.setdefault(image, annotation)) != annotation:
                raise InputError(f"{files.root / annotation}: annotates {image}, as {owner} does")
            pairs.append((annotation, image))
        except InputError as problem:
            problems.append((annotation, problem))
    if problems and not pairs:
        names = ", ".join(str(path) for path, _ in problems[:3]) + (", ..." if len(problems) > 3 else "")
        text = f"{files.root}: {len(problems)} annotations without images: {names}; it holds {describe_files(files)}"
        return Pairs([], [(problems[0][0], InputError(text))])
    for image in files.images:
        if image not in owners:
            problems.append((image, InputError(f"{files.root / image}: its annotation is missing")))
    return Pairs(pairs, problems)
