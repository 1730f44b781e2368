"""The table of layouts, and the function that recognises a data set among them.

To add a layout, write a function in a module of its own that returns `common.Found`, or None if the files are of
another layout, and add a row to `LAYOUTS`.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from frcnn_jax.data.layouts.coco import find_coco
from frcnn_jax.data.layouts.common import Found, read_text
from frcnn_jax.data.layouts.createml import find_createml
from frcnn_jax.data.layouts.cvat import find_cvat
from frcnn_jax.data.layouts.kitti import find_kitti
from frcnn_jax.data.layouts.label_studio import find_label_studio
from frcnn_jax.data.layouts.labelme import find_labelme
from frcnn_jax.data.layouts.lists import with_listed_splits
from frcnn_jax.data.layouts.supervisely import find_supervisely
from frcnn_jax.data.layouts.tables import find_csv
from frcnn_jax.data.layouts.via import find_via
from frcnn_jax.data.layouts.voc import find_voc
from frcnn_jax.data.layouts.vott import find_vott
from frcnn_jax.data.layouts.yolo import find_yolo
from frcnn_jax.data.listing import ARCHIVES, Files, describe_files, split_of
from frcnn_jax.data.problems import CorrectedError, OnProblem, stop
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError

_UNREAD = ("tfrecord", "record", "parquet", "arrow", "mat", "h5", "manifest", "jsonl", "ndjson")
_ORDER = ("train", "val", "test", "all")


class Layout(NamedTuple):
    """A row of `LAYOUTS`."""

    find: Callable[[Files], Found | None]
    needs: str  # what a folder of this layout holds


LAYOUTS = {
    "voc": Layout(find_voc, "VOC's XML per image"),
    "coco": Layout(find_coco, "COCO's JSON per split"),
    "yolo": Layout(find_yolo, "YOLO's data.yaml and .txt per image"),
    "labelme": Layout(find_labelme, "LabelMe's JSON per image"),
    "cvat": Layout(find_cvat, "CVAT's annotations.xml"),
    "vott": Layout(find_vott, "VoTT's JSON"),
    "via": Layout(find_via, "VIA's JSON"),
    "label_studio": Layout(find_label_studio, "Label Studio's JSON"),
    "createml": Layout(find_createml, "CreateML's JSON"),
    "supervisely": Layout(find_supervisely, "Supervisely's JSON per image"),
    "kitti": Layout(find_kitti, "KITTI's .txt per image"),
    "csv": Layout(find_csv, "CSV with a row per box"),
}


def read_dataset(
    folder: str | Path,
    layout: str = "auto",
    *,
    class_names: Sequence[str] = (),
    exif: str = "apply",
    seed: int = 0,
    on_problem: OnProblem = stop,
) -> dict[str, Dataset]:
    """Read a data set in the layout of a labelling tool or an exporter, by split.

    A folder whose files name no splits, or train alone, is divided: a fifth of its images, drawn by `seed`, is
    "val", the rest "train".

    Args:
        folder: The data set's folder. Sub-folders are read.
        layout: A row of LAYOUTS; "auto" recognises it.
        class_names: The names of labels 1 to K; by default those that the data set declares or else those of its
            objects, in alphabetical order.
        exif: See `load_image`.
        seed: Seed of the division.
        on_problem: Receives what is missing, broken, unknown or outside an image, and each `CorrectedError`.

    Returns:
        The splits, "train", "val" and "test" as far as there are any. `Dataset.description` says what was recognised:
        "COCO, Roboflow layout: 3 splits, 1,204 images, 12 classes".

    Raises:
        InputError: The folder holds no data set in this layout, or several; the message says what it holds.
    """
    return open_dataset(folder, layout, class_names=class_names, exif=exif, seed=seed).read_all(on_problem)


class OpenDataset(NamedTuple):
    """A data set whose splits can be read."""

    folder: Path
    found: Found
    class_names: tuple[str, ...]
    exif: str
    seed: int
    drawn: Mapping[str, Collection[str]] | None  # ids by split, where a division was recorded

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return ["train", "val"] if self.is_divided else sorted(self.found.splits, key=_ORDER.index)

    @property
    def is_divided(self) -> bool:
        """Whether the folder has one split only, which is divided."""
        return len(self.found.splits) == 1 and next(iter(self.found.splits)) in ("all", "train")

    @property
    def description(self) -> str:
        """What was recognised, in one line."""
        images = sum(split.images for split in self.found.splits.values())
        counts = f"{_count(images, 'image')}, {_count(len(self.class_names), 'class', 'classes')}"
        if self.is_divided:
            how = "as recorded" if self.drawn else f"by seed {self.seed}"
            return f"{self.found.title}: {counts}; no val split, a fifth drawn {how}"
        return f"{self.found.title}: {_count(len(self.found.splits), 'split')}, {counts}"

    def read(self, split: str, on_problem: OnProblem) -> Dataset:
        """Read a split.

        Args:
            split: "train", "val" or "test", or another name for one of them, such as "valid" or "val2017".
            on_problem: See `read_dataset`; receives images that a recorded division has and the folder has not too,
                and those that it has not.

        Raises:
            InputError: There is no such split.
        """
        name = split if split in self.splits else split_of(Path(split), by_name=True)
        if name not in self.splits:
            raise InputError(
                f"{self.folder}: no split {split!r}; it has {', '.join(self.splits)}: choose one by "
                "--config.train_split or --config.val_split"
            )
        if not self.is_divided:
            return self._read(name, on_problem)
        return self._part(self._whole(on_problem), name, on_problem)

    def read_all(self, on_problem: OnProblem) -> dict[str, Dataset]:
        """Read all splits; see `read_dataset`."""
        if not self.is_divided:
            return {split: self._read(split, on_problem) for split in self.splits}
        whole = self._whole(on_problem)
        return {split: self._part(whole, split, on_problem) for split in self.splits}

    def _whole(self, on_problem: OnProblem) -> Dataset:
        (only,) = self.found.splits
        return self._read(only, on_problem)

    def _read(self, split: str, on_problem: OnProblem) -> Dataset:
        dataset = self.found.splits[split].read(self.class_names, self.exif, on_problem)
        return replace(dataset, description=self.description, has_crowds=self.found.has_crowds)

    def _part(self, whole: Dataset, split: str, on_problem: OnProblem) -> Dataset:
        """Return a part of a data set that is divided."""
        by_id = {record.image_id: record for record in whole.records}
        drawn = self.drawn or divide(list(by_id), self.seed)
        for image_id in drawn[split]:
            if image_id not in by_id:
                on_problem(InputError(f"{self.folder}: image {image_id!r} was in the {split} split, and is missing"))
        for image_id in by_id.keys() - {image_id for ids in drawn.values() for image_id in ids}:
            where = f"{self.folder}: image {image_id!r}"
            on_problem(CorrectedError("images that are newer than the recorded split left out", where))
        return replace(whole, records=[by_id[image_id] for image_id in drawn[split] if image_id in by_id])


def open_dataset(
    folder: str | Path,
    layout: str = "auto",
    *,
    class_names: Sequence[str] = (),
    exif: str = "apply",
    seed: int = 0,
    drawn: Mapping[str, Collection[str]] | None = None,
) -> OpenDataset:
    """Recognise a data set; see `read_dataset`.

    Args:
        folder: The data set's folder.
        layout: A row of LAYOUTS or "auto".
        class_names: The names of labels 1 to K.
        exif: See `load_image`.
        seed: Seed of the division.
        drawn: Image ids by split of an earlier division, which takes the place of the seed's.
    """
    files = Files(folder)
    found = with_listed_splits(files, _recognise(files, layout))
    names = tuple(class_names) or tuple(found.find_classes())
    return OpenDataset(files.root, found, names, exif, seed, drawn)


def _recognise(files: Files, layout: str) -> Found:
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout must be one of auto, {', '.join(LAYOUTS)}, got {layout!r}")
    rows = LAYOUTS if layout == "auto" else {layout: LAYOUTS[layout]}
    found = {name: result for name, row in rows.items() if (result := row.find(files))}
    if len(found) > 1:
        titles = " and ".join(result.title for result in found.values())
        choices = " or ".join(f"--config.dataset=auto:{name}" for name in found)
        raise InputError(f"{files.root}: holds {titles} annotations; choose one by {choices}")
    if not found or not files.images:
        titles = " and ".join(result.title for result in found.values())
        lack = f"{titles} annotations without images" if found else "no annotations found"
        needs = "" if found else f" images and annotations: {', '.join(row.needs for row in rows.values())}"
        hint = _advice(files) or f"expected a folder that holds both{needs}"
        raise InputError(f"{files.root}: {lack}; it holds {describe_files(files)}; {hint}")
    (one,) = found.values()
    if "all" in one.splits and len(one.splits) > 1:
        others = ", ".join(name for name in _ORDER if name in one.splits and name != "all")
        images = one.splits["all"].images
        what = _count(images, "image") if images else "annotations without images"
        raise InputError(f"{files.root}: {one.title} has {what} outside its splits {others}; move them into one")
    return one


def _advice(files: Files) -> str:
    """Return what to do with files of which none is read, if there is something to say."""
    if packed := [path for path in files.paths if path.suffix.lower() in ARCHIVES]:
        return f"unpack {packed[0]} and pass its folder"
    if unread := [path for path in files.paths if path.name.lower().partition(".")[2].startswith(_UNREAD)]:
        return f"{unread[0]} is not read: export COCO, VOC or YOLO from the tool that wrote it"
    if tables := files.ending(".csv", ".tsv"):
        head = read_text(files.root / tables[0]).partition("\n")[0].strip()[:200]
        return f"the columns of {tables[0]} are {head!r}, expected such as filename,xmin,ymin,xmax,ymax,class"
    return ""


def divide(image_ids: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Divide images: a fifth, at least one if there are two, is "val"; the order of `image_ids` does not matter."""
    drawn = sorted(image_ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).digest())
    count = max(round(len(drawn) / 5), int(len(drawn) > 1))
    return {"train": sorted(drawn[count:]), "val": sorted(drawn[:count])}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
