from pathlib import Path
from unittest.mock import ANY, Mock, call

import numpy as np
import pytest
from examples import annotation, write_coco

from frcnn_jax.data.problems import ReportTo, problem_handler
from frcnn_jax.data.readers import FORMATS, read_split
from frcnn_jax.data.records import Dataset
from frcnn_jax.data.synthetic import CLASS_NAMES, read_synthetic
from frcnn_jax.errors import InputError


@pytest.fixture
def coco(tmp_path):
    """A split "train" with a good object, a crowd and a box outside the image."""
    (tmp_path / "train").mkdir()
    write_coco(tmp_path / "train", [annotation(), annotation(2, iscrowd=1), annotation(3, bbox=(60, 0, 5, 5))])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train" / "instances.json").rename(tmp_path / "annotations" / "instances_train.json")
    return tmp_path


def test_reads_or_skips_a_problem(coco, capsys):
    with pytest.raises(InputError, match=r"annotation 3: bbox \[60"):
        read_split("coco", split="train", folder=coco)
    said = r"annotation 3: .* \(frcnn check-dataset lists all; --config\.on_error=skip leaves them out\)$"
    with pytest.raises(InputError, match=said), problem_handler("stop", "train split") as on_problem:
        read_split("coco", split="train", folder=coco, on_problem=on_problem)
    assert not capsys.readouterr().err
    with problem_handler("skip", "train split") as on_problem:
        (record,) = read_split("coco", split="train", folder=coco, on_problem=on_problem).records
    assert list(record.difficult) == [False, True]
    said = capsys.readouterr().err
    assert said.startswith("train split: skipped 1 objects, boxes or images; the first: ")
    assert said.count("\n") == 1
    with (
        pytest.raises(InputError, match=r"^a\.json: a bad box \(frcnn check-dataset [^()]*\)$"),
        problem_handler("stop", "val split") as on_problem,
        ReportTo(on_problem, "a.json"),
        ReportTo(on_problem),
    ):
        raise InputError("a bad box")
    with pytest.raises(InputError, match=r"^no data$"), problem_handler("stop", "train split"):
        raise InputError("no data")  # nothing that could be skipped
    with problem_handler("skip", "train split"):
        pass
    assert not capsys.readouterr().err


def test_names_that_terminals_obey_are_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    path = write_coco(tmp_path / "train", [annotation()], categories=[{"id": 3, "name": "\x1b[2J"}])
    path.rename(tmp_path / "annotations" / "instances_train.json")
    with pytest.raises(InputError, match=r"the class '\\x1b\[2J' has a control character in its name"):
        read_split("coco", split="train", folder=tmp_path)


def test_without_difficult_objects_there_are_no_crowds(coco):
    (record,) = read_split(
        "coco", split="train", folder=coco, include_difficult=False, on_problem=lambda problem: None
    ).records
    assert len(record.boxes) == 1


def test_an_unknown_dataset_lists_the_choices():
    with pytest.raises(
        InputError,
        match=r"dataset must be one of synthetic, voc, xml, coco, auto, auto:voc\|coco\|.*, tfds:.*, got 'imagenet'",
    ):
        read_split("imagenet", split="val")


@pytest.mark.parametrize(
    ("dataset", "option"), [("voc", "voc_dir=VOCDEVKIT"), ("xml", "data_dir"), ("coco", "data_dir")]
)
def test_a_missing_folder_names_the_option(dataset, option):
    with pytest.raises(InputError, match=rf"dataset '{dataset}' needs --config\.{option}"):
        read_split(dataset, split="val")


def test_an_empty_split_names_the_first_problem(coco):
    problems = []
    (coco / "train" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"the split 'train' has no images; first problem: .*a\.jpg: no such image"):
        read_split("coco", split="train", folder=coco, on_problem=problems.append)
    assert len(problems) == 1
    write_coco(coco, [], categories=[]).rename(coco / "annotations" / "instances_val.json")
    with pytest.raises(InputError, match="the split 'val' has no classes"):
        read_split("coco", split="val", folder=coco, on_problem=problems.append)


def test_the_classes_must_be_those_of_the_dataset():
    for names in ((), CLASS_NAMES, list(CLASS_NAMES)):
        found = read_split("synthetic", split="val", images=2, class_names=names)
        expected = read_synthetic(split="val", images=2)
        assert found.class_names == expected.class_names
        np.testing.assert_array_equal(found.records[1].boxes, expected.records[1].boxes)
    with pytest.raises(InputError, match=r"synthetic has the classes striped, .*; leave class_names empty"):
        read_split("synthetic", split="val", images=2, class_names=("cat",))


@pytest.mark.parametrize(
    ("dataset", "reader", "expected"),
    [
        ("synthetic", "read_synthetic", call(split="s", images=7)),
        ("voc", "read_voc", call(Path("f"), split="s", year=2012, class_names=("cat",), exif="ignore", on_problem=ANY)),
        ("xml", "read_xml_folder", call(Path("f/s"), class_names=("cat",), exif="ignore", on_problem=ANY)),
        (
            "coco",
            "read_coco",
            call(
                Path("f/annotations/instances_s.json"),
                image_dir=Path("f/s"),
                class_names=("cat",),
                exif="ignore",
                on_problem=ANY,
            ),
        ),
        ("tfds:voc/2007", "read_tfds", call("voc/2007", split="s", data_dir=Path("f"), on_problem=ANY)),
        ("tfds:voc/2012", "read_tfds", call("voc/2012", split="s", data_dir=Path("f"), on_problem=ANY)),
    ],
)
def test_a_reader_gets_the_options_it_takes(monkeypatch, dataset, reader, expected):
    read = Mock(return_value=Dataset(("cat",), read_synthetic(split="val", images=1).records))
    monkeypatch.setattr(f"frcnn_jax.data.readers.{reader}", read)
    read_split(dataset, split="s", folder="f", year=2012, images=7, class_names=("cat",), exif="ignore")
    assert read.call_args == expected


def test_a_new_format_is_one_row(monkeypatch):
    """The reader gets what `read_split` was given."""
    given = []

    def read(source):
        given.append(source)
        return Dataset(("cat",), read_synthetic(split="val", images=1).records)

    monkeypatch.setitem(FORMATS, "new", FORMATS["synthetic"]._replace(read=read))
    assert read_split("new", split="a split", year=2012, images=7, class_names=("cat",)).class_names == ("cat",)
    assert given[0][:5] == ("a split", None, 2012, 7, ("cat",))
