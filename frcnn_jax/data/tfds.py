"""VOC through tensorflow-datasets; preparing it needs TensorFlow, reading does not.

Its boxes are (ymin, xmin, ymax, xmax): VOC's 1-based values as fractions of the annotated size.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import Dataset, Record, collect_records, load_image, make_record, open_image
from frcnn_jax.data.voc import read_voc, voc_box
from frcnn_jax.errors import InputError

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # by the name in tensorflow-datasets, the name in VOC


def _tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets

    return tensorflow_datasets


def _load(examples: Sequence[Mapping[str, Any]], index: int, name: str, size: tuple[int, int]) -> np.ndarray:
    return load_image(name, expected_size=size, data=examples[index]["image"])


def read_tfds(name: str, *, split: str, data_dir: str | Path | None = None, on_problem: OnProblem = stop) -> Dataset:
    """Read a split of VOC that `prepare_tfds`, or tensorflow-datasets itself, prepared in the ArrayRecord format.

    Args:
        name: "voc/2007" or "voc/2012".
        split: Name in tensorflow-datasets' form, such as "train+validation" or "test[:10%]".
        data_dir: Folder it was prepared in; by default tensorflow-datasets' own, ~/tensorflow_datasets.
        on_problem: Receives boxes that are reversed or not within the image, and repeated images.

    Raises:
        InputError: The name or split is unknown, nothing is prepared in `data_dir`, or it is in another file format.
    """
    if name not in ("voc/2007", "voc/2012"):
        raise InputError(f"tensorflow-datasets' name must be voc/2007 or voc/2012, got {name!r}")
    tfds = _tfds()
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
    versions = sorted(path for path in root.glob("*.*.*") if (path / "dataset_info.json").is_file())
    if not versions:
        raise InputError(f"{root}: nothing prepared here; scripts/prepare_voc.py prepares a VOCdevkit folder")
    source = versions[-1]
    try:
        builder = tfds.builder_from_directory(source)
        names = tuple(builder.info.features["objects"]["label"].names)
        examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError, AttributeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: can't read the split {split!r} ({reason})") from None
    readers = (
        (
            Path(example["image/filename"].decode()).stem,
            partial(_read_image, i, example, names, examples, source, on_problem),
        )
        for i, example in enumerate(examples)
    )
    return Dataset(names, collect_records(readers, source, on_problem))


def _read_image(
    index: int, example: Mapping[str, Any], names: Sequence[str], examples: Any, source: Path, on_problem: OnProblem
) -> Record:
    file_name = example["image/filename"].decode()
    with open_image(f"{source}/{file_name}", example["image"]) as image:
        width, height = image.size
    objects = []
    columns = (example["objects"][field] for field in ("bbox", "label", "is_difficult"))
    for fractions, label, difficult in zip(*columns, strict=True):
        with ReportTo(on_problem, f"{source}: {file_name}"):
            y1, x1, y2, x2 = np.round(np.asarray(fractions, np.float64) * [height, width, height, width])
            objects.append((voc_box(names[label], (x1, y1, x2, y2), height, width), label + 1, difficult))
    load = partial(_load, examples, index, f"{source}/{file_name}", (height, width))
    return make_record(Path(file_name).stem, height, width, objects, load)


def prepare_tfds(source: Path, year: int, data_dir: Path | None = None) -> Path:
    """Prepare VOC with tensorflow-datasets' own builder, without network.

    Args:
        source: A VOCdevkit folder, or a folder with the official tar files.
        year: 2007 or 2012.
        data_dir: Folder to write to; by default ~/tensorflow_datasets.

    Returns:
        The folder of the prepared dataset.

    Raises:
        InputError: TensorFlow is not installed, `source` lacks that year, or `read_voc` finds a problem in it.
    """
    tfds = _tfds()
    try:
        import importlib_resources  # noqa: F401 - the builder needs it, and tensorflow-datasets does not install it
        import tensorflow  # noqa: F401 - the builder needs it
    except ImportError:
        raise InputError("preparing needs TensorFlow and importlib_resources: pip install 'frcnn_jax[tfds]'") from None
    with tempfile.TemporaryDirectory() as temporary:
        root = _devkit(Path(source), year, Path(temporary))
        splits = {
            name: voc
            for name, voc in _SPLITS.items()
            if (root / f"VOC{year}/ImageSets/Main/{voc}.txt").is_file() and (name, year) != ("test", 2012)
        }
        if not splits:
            raise InputError(f"{source}: no split file in VOC{year}/ImageSets/Main")
        for voc in splits.values():
            read_voc(root, split=voc, year=year)
        builder = _local_builder(tfds, root, splits)(
            config=str(year), data_dir=str(data_dir) if data_dir else None, file_format="array_record"
        )
        try:
            builder.download_and_prepare()
        except AttributeError as error:  # a tag that the builder requires and read_voc does not
            raise InputError(f"{source}: an annotation lacks pose, truncated or difficult ({error})") from None
    return Path(builder.data_dir)


def _devkit(source: Path, year: int, temporary: Path) -> Path:
    """Return the VOCdevkit folder in `source`, unpacking tar files."""
    for root in (source, source / "VOCdevkit"):
        if (root / f"VOC{year}").is_dir():
            return root.absolute()
    archives = sorted(path for path in source.glob("*.tar") if re.search(rf"VOC.*{year}|VOC{year}", path.name))
    if not archives:
        raise InputError(f"{source}: expected a folder VOC{year} or VOC*{year}*.tar in it")
    for path in archives:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path}: not a tar file, or truncated ({error})") from None
    return temporary / "VOCdevkit"


def _local_builder(tfds: Any, root: Path, splits: Mapping[str, str]) -> Any:
    """Return the builder's class, reading `splits` from a folder instead of downloading."""

    class Local:
        def download_and_extract(self, urls: Mapping[str, str]) -> dict[str, str]:
            return dict.fromkeys(urls, str(root.parent))

    with tfds.core.registered.skip_registration():

        class Voc(tfds.object_detection.Voc):
            def _split_generators(self, dl_manager: Any) -> list:
                return [split for split in super()._split_generators(Local()) if str(split.name) in splits]

    return Voc
