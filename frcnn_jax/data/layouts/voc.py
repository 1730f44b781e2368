"""VOC's XML: a devkit with ImageSets, or one XML per image in whatever folders."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from frcnn_jax.data.layouts.common import Found, Split, read_names
from frcnn_jax.data.listing import Files, Pairs, pair_images, split_of
from frcnn_jax.data.problems import OnProblem
from frcnn_jax.data.records import Dataset
from frcnn_jax.data.voc import Annotated as AnnotatedXML
from frcnn_jax.data.voc import Survey, devkit_images, parse_xml, read_images, read_xml_pairs, survey
from frcnn_jax.errors import InputError


def find_voc(files: Files) -> Found | None:
    """Find XML files of the kind that VOC, labelImg and RectLabel write; see `common.Found`."""
    annotations = files.ending(".xml")
    if not any(is_xml_of(files.root / path, "annotation") for path in annotations[:9]):
        return None
    declared = files.named("labels.txt", "classes.txt")

    @cache
    def look_through() -> Survey:
        return survey(files.root / path for path in annotations)

    def find_classes() -> list[str]:
        return read_names(files.root / declared[0]) if declared else look_through().class_names

    def read_devkit(
        images: Sequence[AnnotatedXML], class_names: Sequence[str], exif: str, on_problem: OnProblem
    ) -> Dataset:
        return read_images(files.root, images, class_names, exif, on_problem, first=look_through().first)

    def read_pairs(pairs: Pairs, class_names: Sequence[str], exif: str, on_problem: OnProblem) -> Dataset:
        return read_xml_pairs(files, pairs, class_names, exif, on_problem, first=look_through().first)

    sets = [path for path in files.ending(".txt") if path.parts[-3:-1] == ("ImageSets", "Main")]
    if listed := _devkit_splits(files.root, sets):
        splits = {name: Split(len(images), partial(read_devkit, images)) for name, images in listed.items()}
        return Found("PASCAL VOC", splits, find_classes)
    pairs = pair_images(files, annotations, files.image_of)
    splits = {}
    for name in pairs.splits(annotations):
        own = pairs.of_split(name)
        splits[name] = Split(len(own.pairs), partial(read_pairs, own))
    return Found("VOC XML", splits, find_classes)


def is_xml_of(path: Path, tag: str) -> bool:
    """Return whether a file is XML whose root has this tag."""
    try:
        return parse_xml(path).tag == tag
    except InputError:
        return False


def _devkit_splits(root: Path, sets: list[Path]) -> dict[str, list[AnnotatedXML]]:
    """Return the images of the splits that ImageSets/Main names; train is trainval if there is no train."""
    folders = sorted({path.parents[2] for path in sets})
    if len(folders) > 1:
        years = ", ".join(map(str, folders))
        raise InputError(f"{root}: holds several VOC folders, {years}; pass one of them, or use --config.dataset=voc")
    stems = {path.stem for path in sets if split_of(Path(path.stem), by_name=True) == path.stem.lower()}
    by_name = {split_of(Path(stem), by_name=True): stem for stem in sorted(stems)}
    if any(path.stem == "trainval" for path in sets):
        by_name.setdefault("train", "trainval")
    return {name: devkit_images(root / folders[0], stem) for name, stem in by_name.items()}
