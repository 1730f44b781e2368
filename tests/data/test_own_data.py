"""The public kinds of data sets in shared/own_data: exactly the objects they say, or a clear line."""

import ast
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from examples import run_command

from frcnn_jax.data.layouts.auto import read_dataset
from frcnn_jax.data.problems import CorrectedError
from frcnn_jax.data.readers import read_split
from frcnn_jax.errors import InputError

OWN = SHARED / "own_data"
CASES = sorted(path.parent.name for path in OWN.glob("*/expected.json"))


def read(case, layout):
    """Read both splits by the command line's options; return them, and the problems."""
    options = {name.removeprefix("--config."): value for name, _, value in (flag.partition("=") for flag in layout)}
    folder = Path((options.get("data_dir") or options["voc_dir"]).format(dir=OWN / case / "data"))
    names, problems = ast.literal_eval(options.get("class_names", "()")), []
    if options["dataset"] == "auto":
        splits = read_dataset(folder, class_names=names, on_problem=problems.append)
    else:
        read_one = {"folder": folder, "class_names": names, "on_problem": problems.append}
        splits = {split: read_split(options["dataset"], split=split, **read_one) for split in ("train", "val")}
    for dataset in splits.values():
        for record in dataset.records:
            record.load()
    return splits, [problem for problem in problems if not isinstance(problem, CorrectedError)]


def as_told(dataset):
    """Return the paths of all images, and the objects as (path, class, x1, y1, x2, y2)."""
    return [record.load.path for record in dataset.records], [
        (record.load.path, dataset.class_names[label - 1], *box.tolist())
        for record in dataset.records
        for label, box, difficult in zip(record.labels, record.boxes, record.difficult, strict=True)
        if not (difficult and dataset.has_crowds)
    ]


def is_same(found, expected, tolerance):
    """Whether two lists of objects, one by paths and one by names, are the same in any order."""
    rest = list(found)
    for name, kind, *box in expected:
        fits = [
            row
            for row in rest
            if row[0].endswith(f"/{name}") and row[1] == kind and np.abs(np.subtract(row[2:], box)).max() <= tolerance
        ]
        if not fits:
            return False
        rest.remove(fits[0])
    return not rest


@pytest.mark.skipif(not CASES, reason=f"needs the data sets in {SHARED.name}/own_data beside the checkout")
@pytest.mark.parametrize("case", CASES)
def test_own_data(case):
    expected = json.loads((OWN / case / "expected.json").read_text())
    may = {expected["expect"], *expected["also_fine"]}
    try:
        splits, problems = read(case, expected["layout"])
        said = " ".join(map(str, problems))
    except InputError as error:
        splits, said = {}, str(error)
    if said:
        assert "one-line error" in may, said
        assert "\n" not in said
        assert all(word in said for word in expected["must_mention"]), said
        return
    assert may & {"reads", "remark"}
    if set(expected["objects"]) == {"all"}:
        whole = chain.from_iterable(dataset.records for dataset in splits.values())
        told = {"all": as_told(replace(splits["train"], records=list(whole)))}
    else:
        told = {split: as_told(dataset) for split, dataset in splits.items()}
    if expected["expect"] == "remark":
        options = [flag.format(dir=OWN / case / "data") for flag in expected["layout"]]
        checked = run_command("check-dataset", *options)
        assert all(word in checked.stdout + checked.stderr for word in expected["must_mention"])
    for split, (images, objects) in told.items():
        assert len(images) == len(expected["images"][split])
        assert all(any(path.endswith(f"/{name}") for path in images) for name in expected["images"][split])
        choices = [expected["objects"], expected.get("or_objects", expected["objects"])]
        assert any(is_same(objects, choice[split], expected["tolerance"]) for choice in choices), objects


@pytest.mark.skipif(not CASES, reason=f"needs the data sets in {SHARED.name}/own_data beside the checkout")
def test_the_command_line_says_what_it_took_and_what_is_wrong():
    done = run_command(
        "check-dataset", f"--config.data_dir={OWN / 'coco_roboflow' / 'data'}", "--config.val_split=test"
    )
    assert done.returncode == 0, done.stdout
    assert "COCO, Roboflow layout: 3 splits, 4 images, 3 classes" in done.stderr
    done = run_command("check-dataset", f"--config.data_dir={OWN / 'folders_zip' / 'data' / 'shapes.zip'}")
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 0)
    assert "shapes.zip: an archive; unpack it" in done.stdout
