"""VOC's XML: a devkit with ImageSets, or one XML per image in whatever folders."""

from functools import partial
from pathlib import Path

from frcnn_jax.data.layouts.common import Found, Split, read_names
from frcnn_jax.data.listing import Files, pair_images, split_of
from frcnn_jax.data.voc import classes_in, devkit_images, parse_xml, read_images, read_xml_pairs
from frcnn_jax.errors import InputError


def find_voc(files: Files) -> Found | None:
    """Find XML files of the kind that VOC, labelImg and RectLabel write; see `common.Found`."""
    annotations = files.ending(".xml")
    if not any(is_xml_of(files.root / path, "annotation") for path in annotations[:9]):
        return None
    declared = files.named("labels.txt", "classes.txt")

    def find_classes() -> list[str]:
        if declared:
            return read_names(files.root / declared[0])
        return classes_in(files.root / path for path in annotations)

    sets = [path for path in files.ending(".txt") if path.parts[-3:-1] == ("ImageSets", "Main")]
    if splits := _devkit_splits(files.root, sets):
        return Found("PASCAL VOC", splits, find_classes)
    pairs = pair_images(files, annotations, files.image_of)
    splits = {}
    for name in pairs.splits(annotations):
        own = pairs.of_split(name)
        splits[name] = Split(len(own.pairs), partial(read_xml_pairs, files, own))
    return Found("VOC XML", splits, find_classes)


def is_xml_of(path: Path, tag: str) -> bool:
    """Return whether a file is XML whose root has this tag."""
    try:
        return parse_xml(path).tag == tag
    except InputError:
        return False


def _devkit_splits(root: Path, sets: list[Path]) -> dict[str, Split]:
    """Return the splits that ImageSets/Main names; train is trainval if there is no train."""
    folders = sorted({path.parents[2] for path in sets})
    if len(folders) > 1:
        years = ", ".join(map(str, folders))
        raise InputError(f"{root}: holds several VOC folders, {years}; pass one of them, or use --config.dataset=voc")
    stems = {path.stem for path in sets if split_of(Path(path.stem), by_name=True) == path.stem.lower()}
    by_name = {split_of(Path(stem), by_name=True): stem for stem in sorted(stems)}
    if any(path.stem == "trainval" for path in sets):
        by_name.setdefault("train", "trainval")
    return {name: _devkit_split(root / folders[0], stem) for name, stem in by_name.items()}


def _devkit_split(root: Path, stem: str) -> Split:
    images = devkit_images(root, stem)
    return Split(len(images), partial(read_images, root, images))
