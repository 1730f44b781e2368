import json

import numpy as np
import pytest
from examples import run_command
from PIL import Image

from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.detector import Detector
from frcnn_jax.models.weight_files import write_weights
from frcnn_jax.models.weights import canonical_arrays

BOXES = {"0": [[0, 0, 100, 80], [20, 30, 90, 140]], "1": [], "2": [[5, 5, 60, 60]]}


@pytest.fixture
def given(tmp_path):
    """Three images, and a file of their boxes."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "test", i).image).save(path)
    (tmp_path / "b.json").write_text(json.dumps(BOXES))
    return paths, tmp_path / "b.json"


def test_a_row_per_box(workdir, given, tmp_path):
    paths, boxes = given
    done = run_command("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/f.npz: features of 3 boxes in 3 images\n"
    table = np.load(tmp_path / "f.npz", allow_pickle=False)
    assert list(table["images"]) == [str(path) for path in paths]
    assert (list(table["image"]), list(table["index"])) == ([0, 0, 2], [0, 1, 0])
    np.testing.assert_array_equal(table["boxes"], np.float32(BOXES["0"] + BOXES["2"]))
    expected = Detector.from_workdir(workdir).embed(list(paths), list(BOXES.values()))
    np.testing.assert_allclose(table["features"], np.concatenate(expected), atol=1e-5)
    assert not (tmp_path / "f.npz.parts").exists()


def test_an_interrupted_run_resumes(workdir, given, tmp_path):
    """The second image is broken at first; what the first one gave is kept, unless what it depends on changes."""
    paths, boxes = given
    good = paths[1].read_bytes()
    paths[1].write_bytes(b"no image")
    command = ("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.npz")
    done = run_command(*command)
    assert done.returncode == 1
    assert f"{paths[1]}: can't be read as an image" in done.stderr.splitlines()[-1]
    (part,) = (tmp_path / "f.npz.parts").iterdir()
    np.save(part, np.load(part) + 1)  # seen to be taken
    paths[1].write_bytes(good)
    assert run_command(*command).returncode == 0
    expected = Detector.from_workdir(workdir).embed(paths[0], BOXES["0"])
    features = np.load(tmp_path / "f.npz")["features"]
    np.testing.assert_allclose(features[:2], expected + 1, atol=1e-5)
    boxes.write_text(json.dumps(BOXES | {"0": BOXES["0"][::-1]}))
    assert run_command(*command).returncode == 0
    np.testing.assert_allclose(np.load(tmp_path / "f.npz")["features"][:2], expected[::-1], atol=1e-5)


def test_pretrained_weights(model_and_variables, given, tmp_path):
    paths, boxes = given
    arrays = canonical_arrays(model_and_variables[1]["params"], roi_size=(6, 6))
    write_weights(tmp_path / "w.npz", arrays)
    command = ("embed", "--weights", tmp_path / "w.npz", *paths, "--boxes", boxes, "--out", tmp_path / "f.npz")
    done = run_command(*command, "--network", "tiny", "--layer", "pooled")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "f.npz")["features"].shape == (3, 6 * 6 * 64)
    assert "--weights and --network belong together" in run_command(*command).stderr


def test_parquet(workdir, given, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths, boxes = given
    done = run_command("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.parquet")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["image"] == [str(paths[i]) for i in (0, 0, 2)]
    expected = Detector.from_workdir(workdir).embed(paths[2], BOXES["2"])
    np.testing.assert_allclose(table["features"][2], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"--out": "f.csv"}, "expected a file *.npz or *.parquet"),
        ({"--boxes": "missing.json"}, "missing.json: no such file"),
        ({"--layer": "fc8"}, "layer must be one of pooled, fc6, fc7, got 'fc8'"),
        ({"--workdir": "missing"}, "missing: no config.json"),
        ({"--out": "missing/f.npz"}, "missing"),
    ],
)
def test_mistakes(workdir, given, tmp_path, monkeypatch, changes, text):
    monkeypatch.chdir(tmp_path)
    paths, boxes = given
    options = {"--workdir": workdir, "--boxes": boxes, "--out": "f.npz"} | changes
    done = run_command("embed", *paths, *(part for option in options.items() for part in option))
    assert done.returncode == 1
    assert text in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "f.npz").exists()
