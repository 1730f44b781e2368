"""Annotation formats, and the function that reads a split in any of them.

To add a format, write a reader in a new file of this package (`coco.read_coco` is an example): it returns a `Dataset`
and passes each problem to `on_problem`. Then add a row to `FORMATS`. No other code changes, unless the
format needs a folder option of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.layouts.auto import LAYOUTS, open_dataset
from frcnn_jax.data.listing import Files, check_is_folder, describe_files
from frcnn_jax.data.problems import OnProblem, noting, stop
from frcnn_jax.data.records import Dataset, without_difficult
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.data.tfds import read_tfds
from frcnn_jax.data.voc import VOC_CLASSES, read_voc, read_xml_folder
from frcnn_jax.errors import CONTROL, InputError


class Source(NamedTuple):
    """Arguments of `read_split`; each reader uses those it needs."""

    split: str
    folder: Any  # a Path; None only if the format needs none
    year: int
    images: int
    class_names: Sequence[str]
    exif: str
    on_problem: OnProblem
    seed: int = 0
    drawn: Mapping[str, Collection[str]] | None = None


class Format(NamedTuple):
    """A row of `FORMATS`."""

    read: Callable[[Source], Dataset]
    needs: str = ""  # the option that names its folder, if required
    expects: Callable[[Source], Path] | None = None  # what that folder holds


def _read_layout(layout: str, s: Source) -> Dataset:
    opened = open_dataset(s.folder, layout, class_names=s.class_names, exif=s.exif, seed=s.seed, drawn=s.drawn)
    return opened.read(s.split, s.on_problem)


FORMATS = {
    "synthetic": Format(lambda s: read_synthetic(split=s.split, images=s.images)),
    "voc": Format(
        lambda s: read_voc(
            s.folder,
            split=s.split,
            year=s.year,
            class_names=s.class_names or VOC_CLASSES,
            exif=s.exif,
            on_problem=s.on_problem,
        ),
        needs="--config.voc_dir=VOCDEVKIT, the folder that holds VOC<year>",
    ),
    "xml": Format(
        lambda s: read_xml_folder(s.folder / s.split, class_names=s.class_names, exif=s.exif, on_problem=s.on_problem),
        needs="--config.data_dir=FOLDER, with images and <name>.xml in FOLDER/<split>",
        expects=lambda s: s.folder / s.split,
    ),
    "coco": Format(
        lambda s: read_coco(
            s.folder / "annotations" / f"instances_{s.split}.json",
            image_dir=s.folder / s.split,
            class_names=s.class_names,
            exif=s.exif,
            on_problem=s.on_problem,
        ),
        needs="--config.data_dir=FOLDER, with annotations/instances_<split>.json and the images in FOLDER/<split>",
        expects=lambda s: s.folder / "annotations" / f"instances_{s.split}.json",
    ),
    "auto": Format(partial(_read_layout, "auto"), needs="--config.data_dir=FOLDER, the data set"),
    **{
        f"auto:{name}": Format(partial(_read_layout, name), needs=f"--config.data_dir=FOLDER, with {layout.needs}")
        for name, layout in LAYOUTS.items()
    },
    "tfds:voc/2007": Format(lambda s: read_tfds("voc/2007", split=s.split, data_dir=s.folder, on_problem=s.on_problem)),
    "tfds:voc/2012": Format(lambda s: read_tfds("voc/2012", split=s.split, data_dir=s.folder, on_problem=s.on_problem)),
}


def read_split(
    dataset: str,
    *,
    split: str,
    folder: str | Path | None = None,
    year: int = 2007,
    images: int = 600,
    class_names: Sequence[str] = (),
    include_difficult: bool = True,
    exif: str = "apply",
    seed: int = 0,
    drawn: Mapping[str, Collection[str]] | None = None,
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read a split of a dataset.

    Args:
        dataset: A row of `FORMATS`.
        split: Name of the split in that dataset, such as "2007_trainval+2012_trainval" for "voc".
        folder: Folder of the dataset; "synthetic" needs none, and tensorflow-datasets has a default.
        year: For "voc", the year of splits that name none.
        images: For "synthetic", the number of images, at least 1.
        class_names: Names of labels 1 to K; by default those of the dataset.
        include_difficult: Whether to keep objects marked difficult and COCO's crowd regions; False to train on COCO.
        exif: Whether to apply an EXIF orientation of which the annotated size can't tell, "apply" or "ignore"; see
            `load_image`. Not for tensorflow-datasets.
        seed: For "auto", seed of the division of a data set without splits.
        drawn: For "auto", image ids by split of an earlier division, which takes the place of the seed's.
        on_problem: Receives every problem of the reader; see `frcnn_jax.data.problems`.

    Raises:
        InputError: The dataset or its split is unknown, the folder is missing, no image or class remains, or the
            classes of the dataset differ from `class_names`.
    """
    if dataset not in FORMATS:
        choices = ", ".join(FORMATS).replace(", auto:", "|").replace("|", ", auto:", 1)
        raise InputError(f"dataset must be one of {choices}, got {dataset!r}")
    if FORMATS[dataset].needs and folder is None:
        raise InputError(f"the dataset {dataset!r} needs {FORMATS[dataset].needs}")
    problems: list[InputError] = []
    handler = noting(problems, on_problem)
    source = Source(split, folder and Path(folder), year, images, class_names, exif, handler, seed, drawn)
    _check_folder(dataset, source)
    found = FORMATS[dataset].read(source)
    if not found.records or not found.class_names:
        what = "images" if found.class_names else "classes"
        first = f"; first problem: {problems[0]}" if problems else ""
        raise InputError(f"the split {split!r} has no {what}{first}")
    if odd := [name for name in found.class_names if CONTROL.search(name)]:  # which are printed
        raise InputError(f"{folder}: the class {odd[0]!r} has a control character in its name")
    if class_names and found.class_names != tuple(class_names):
        raise InputError(f"{dataset} has the classes {', '.join(found.class_names)}; leave class_names empty")
    return found if include_difficult else without_difficult(found)


def _check_folder(dataset: str, source: Source) -> None:
    """Raise InputError if the folder has another layout; the message says what it holds."""
    folder, expects = source.folder, FORMATS[dataset].expects
    if folder and folder.is_file():
        check_is_folder(folder)
    if expects and folder.is_dir() and not (path := expects(source)).exists():
        raise InputError(f"{path}: no such {'file' if path.suffix else 'folder'}; {_holds(folder)}")


def _holds(folder: Path) -> str:
    try:
        return f"{folder} holds {open_dataset(folder).description}; did you mean --config.dataset=auto?"
    except InputError:
        return f"{folder} holds {describe_files(Files(folder))}"
