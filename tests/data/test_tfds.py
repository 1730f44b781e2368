import importlib.util
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from examples import ROOT
from PIL import Image

from frcnn_jax.data.tfds import prepare_tfds, read_tfds
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError

OBJECT = (
    "<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult><bndbox>"
    "<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="preparing needs TensorFlow"
)


def prepare(*arguments):
    command = [sys.executable, ROOT / "scripts" / "prepare_voc.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    """Sizes and boxes of all kinds: odd, to the edges, of two pixels."""
    root, rng = tmp_path_factory.mktemp("d") / "VOCdevkit", np.random.default_rng(0)
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / "VOC2007" / name).mkdir(parents=True)
    for i, (width, height) in enumerate([(500, 333), (7, 11), (353, 500), (1999, 3), (64, 64)]):
        corners = [np.sort(rng.choice(np.arange(1, side + 1), 2, replace=False)) for side in (width, height) * 9]
        boxes = [(x[0], y[0], x[1], y[1]) for x, y in zip(corners[::2], corners[1::2], strict=True)]
        boxes += [(1, 1, width, height), (1, 1, 2, 2)]
        objects = [
            OBJECT.format(name=("dog", "tvmonitor", "aeroplane")[j % 3], difficult=j % 2, box=box)
            for j, box in enumerate(boxes * (i < 4))
        ]
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (root / f"VOC2007/Annotations/{i:06}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
            root / f"VOC2007/JPEGImages/{i:06}.jpg"
        )
    (root / "VOC2007/ImageSets/Main/train.txt").write_text("000000\n000001\n000002\n")
    (root / "VOC2007/ImageSets/Main/val.txt").write_text("000003\n000004\n")
    return root


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("year", [2007, 2012])
def test_boxes_come_back_to_the_pixel(devkit, year, tmp_path):
    """Of 2007 from a folder, of 2012 from a tar file."""
    source = devkit
    if year == 2012:
        (source := tmp_path / "tars").mkdir()
        with tarfile.open(source / "VOCtrainval_11-May-2012.tar", "w") as archive:
            archive.add(devkit / "VOC2007", "VOCdevkit/VOC2012")
    done = prepare(source, "--year", year, "--data-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = f"voc/{year}"
    found = {
        record.image_id: record for record in read_tfds(dataset, split="train+validation", data_dir=tmp_path).records
    }
    expected = [record for split in ("train", "val") for record in read_voc(devkit, split=split).records]
    assert found.keys() == {record.image_id for record in expected}
    for record in expected:
        other = found[record.image_id]
        assert (other.height, other.width) == (record.height, record.width)
        for name in ("boxes", "labels", "difficult"):
            np.testing.assert_array_equal(getattr(other, name), getattr(record, name))
            assert getattr(other, name).dtype == getattr(record, name).dtype
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)).load(), record.load())
    assert len(read_tfds(dataset, split="train[:2]", data_dir=tmp_path).records) == 2
    with pytest.raises(InputError, match=r"can't read the split 'test'"):
        read_tfds(dataset, split="test", data_dir=tmp_path)
    code = f"import sys; from frcnn_jax.data.tfds import read_tfds; print(len(read_tfds({dataset!r}, split='train', data_dir={str(tmp_path)!r}).records), 'tensorflow' in sys.modules)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "3 False\n"


@needs_tensorflow
@pytest.mark.slow
def test_a_source_that_cannot_be_prepared_is_one_line(tmp_path):
    done = prepare(tmp_path, "--data-dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("expected a folder VOC2007 or VOC*2007*.tar in it")
    (tmp_path / "VOCtrainval_06-Nov-2007.tar").write_bytes(b"no tar")
    done = prepare(tmp_path, "--data-dir", tmp_path / "out")
    assert "VOCtrainval_06-Nov-2007.tar: not a tar file, or truncated" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_data_and_packages(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"voc/2007: nothing prepared here; scripts/prepare_voc.py"):
        read_tfds("voc/2007", split="train", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"name must be voc/2007 or voc/2012, got 'coco/2017'"):
        read_tfds("coco/2017", split="train", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match="preparing needs TensorFlow"):
        prepare_tfds(tmp_path, 2007, tmp_path)
