"""The detector in the package, on the photograph of Grace Hopper that matplotlib ships."""

import json

import numpy as np
import pytest
from examples import ROOT, run_command
from matplotlib.cbook import get_sample_data

from frcnn_jax.data.records import load_image
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.models import weight_files
from frcnn_jax.ops.boxes import iou

pytestmark = pytest.mark.slow
PERSON = np.array([[30, 40, 511, 599]])  # of 512 x 600 pixels


@pytest.fixture(scope="module")
def path():
    return get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.fixture(scope="module")
def detector():
    return Detector.pretrained()


def test_a_person_is_found(detector, path):
    found = detector(path, score_threshold=0.5)
    assert detector.class_names == VOC_CLASSES
    assert VOC_CLASSES[found.labels[0] - 1] == "person"
    assert iou(found.boxes[:1].astype(float), PERSON.astype(float))[0, 0] > 0.7


def test_given_boxes(detector, path):
    boxes = [*PERSON.tolist(), [5, 5, 6, 6], [0, 0, 100, 60]]
    scores = detector.classify(path, boxes)
    assert scores.probabilities[0].argmax() == 1 + VOC_CLASSES.index("person")
    assert scores.probabilities[2].argmax() == 0
    assert detector.embed(path, boxes).shape == (3, 512)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (640, 480)])
def test_images_without_anything(shape, detector):
    assert not len(detector(np.full((*shape, 3), 128, np.uint8), score_threshold=0.5).boxes)


def test_grey_and_upside_down(detector, path):
    image = load_image(path)
    grey = image.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
    assert "person" in {VOC_CLASSES[label - 1] for label in detector(grey, score_threshold=0.3).labels}
    assert np.isfinite(detector(image[::-1], score_threshold=0).scores).all()


def test_the_command_needs_no_workdir(path, tmp_path):
    done = run_command("detect", path, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "detections.json").read_text()).values()
    assert found[0]["label"] == "person"
    done = run_command("detect", path, "--out", tmp_path, "--step", 3)
    assert (done.returncode, done.stderr) == (1, "error: step and network belong to a workdir\n")


def test_a_damaged_file_is_one_line(path, tmp_path, monkeypatch):
    damaged = tmp_path / "voc07_lite0.safetensors"
    damaged.write_bytes(weight_files.PRETRAINED.read_bytes()[:-1000])
    monkeypatch.setattr(weight_files, "PRETRAINED", damaged)
    with pytest.raises(InputError, match=f"^{damaged}: not a readable .safetensors file"):
        Detector.pretrained()
    done = run_command("detect", path, "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_it_fits_into_the_wheel():
    assert weight_files.PRETRAINED.stat().st_size <= 12_000_000
    assert '"pretrained/*"' in (ROOT / "pyproject.toml").read_text()
