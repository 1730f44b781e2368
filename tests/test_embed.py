import atexit
import json
import os
import signal
import time

import numpy as np
import pytest
from examples import run_command
from PIL import Image

from frcnn_jax import embed
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.detector import Detector
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import canonical_arrays
from frcnn_jax.workdir import load_variables, read_config

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


@pytest.fixture
def interrupted(workdir, given, tmp_path):
    """The command of a run that ended at a broken second image, which is whole again, and the first one's features."""
    paths, boxes = given
    arrays = canonical_arrays(load_variables(workdir, read_config(workdir))[1]["params"], roi_size=(6, 6))
    write_weights(tmp_path / "w.npz", arrays)
    good = paths[1].read_bytes()
    paths[1].write_bytes(b"no image")
    command = ("embed", "--weights", tmp_path / "w.npz", "--network", "tiny", *paths, "--boxes", boxes)
    command += ("--out", tmp_path / "f.npz")
    done = run_command(*command)
    assert done.returncode == 1
    assert f"{paths[1]}: can't be read as an image" in done.stderr.splitlines()[-1]
    paths[1].write_bytes(good)
    (part,) = (tmp_path / "f.npz.parts").iterdir()
    np.save(part, np.load(part) + 1)  # seen to be taken
    return command, np.load(part) - 1


def first_features(command):
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    out = command[command.index("--out") + 1]
    assert not out.with_name("f.npz.parts").exists()
    return np.load(out)["features"][:2]


def test_an_interrupted_run_resumes(interrupted):
    command, expected = interrupted
    np.testing.assert_allclose(first_features(command), expected + 1, atol=1e-5)


def other_boxes(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(BOXES | {"0": BOXES["0"][::-1]}))
    return lambda rows: rows[::-1]


def other_weights(tmp_path):
    arrays = read_weights(tmp_path / "w.npz")
    (tmp_path / "w.npz").unlink()
    write_weights(
        tmp_path / "w.npz", arrays | {f"fc7.{kind}": 2 * arrays[f"fc7.{kind}"] for kind in ("weight", "bias")}
    )
    return lambda rows: 2 * rows


def damage(tmp_path):
    (part,) = (tmp_path / "f.npz.parts").iterdir()
    part.write_bytes(part.read_bytes()[:-4])
    return lambda rows: rows


def replaced(make):
    """Return a change of the finished part, after which it is no features of two boxes."""

    def change(tmp_path):
        (part,) = (tmp_path / "f.npz.parts").iterdir()
        part.unlink()
        make(part)
        return lambda rows: rows

    return change


no_features = [
    lambda part: part.write_bytes(b"PK\3\4"),
    os.mkfifo,
    lambda part: np.save(part, np.ones((3, 128), np.float32)),
    lambda part: np.save(part, np.ones((2, 128))),
    lambda part: np.save(part, np.ones(2, np.float32)),
]


@pytest.mark.parametrize("change", [other_boxes, other_weights, damage, *map(replaced, no_features)])
def test_what_depends_on_a_change_is_computed_again(interrupted, tmp_path, change):
    command, features = interrupted
    expected = change(tmp_path)(features)
    np.testing.assert_allclose(first_features(command), expected, rtol=1e-5, atol=1e-5)


def test_features_of_another_width_are_said(interrupted, tmp_path):
    command, _ = interrupted
    (part,) = (tmp_path / "f.npz.parts").iterdir()
    np.save(part, np.ones((2, 3), np.float32))
    done = run_command(*command)
    assert done.returncode == 1
    assert "features of 128 numbers, others have 3; delete it" in done.stderr


def test_layers_and_invalid_boxes(interrupted, given):
    command, features = interrupted
    _, boxes = given
    assert first_features((*command, "--layer", "pooled")).shape == (2, 6 * 6 * 64)
    boxes.write_text(json.dumps(BOXES | {"0": [BOXES["0"][0], [300, 0, 310, 9]]}))
    done = run_command(*command)
    assert done.stderr.endswith("box 1 (300, 0, 310, 9) is outside the image of 192 x 144\n")
    found = first_features((*command, "--invalid", "nan"))
    np.testing.assert_allclose(found[0], features[0], atol=1e-5)
    assert np.isnan(found[1]).all()


def test_a_signal_ends_the_run_with_status_75(workdir, given, tmp_path, monkeypatch):
    paths, boxes = given

    def kill_after_one(*_, **__):
        yield np.ones((2, 128), np.float32)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(Detector, "embed_each", kill_after_one)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    done = run_command("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.npz")
    assert done.returncode == 75
    assert done.stderr.endswith("interrupted: run the same command to resume\n")
    assert len(list((tmp_path / "f.npz.parts").iterdir())) == 1


def test_a_signal_while_the_table_is_written_leaves_the_parts(workdir, given, tmp_path, monkeypatch):
    paths, boxes = given

    def kill(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(embed, "_write_npz", kill)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    done = run_command("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.npz")
    assert done.returncode == 75
    assert [path.name for path in tmp_path.glob("f.*")] == ["f.npz.parts"]
    assert len(list((tmp_path / "f.npz.parts").iterdir())) == 3


def test_parquet(workdir, given, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths, boxes = given
    monkeypatch.setattr(embed, "ROWS", 1)
    command = ("embed", "--workdir", workdir, *paths, "--boxes", boxes, "--out", tmp_path / "f.parquet")
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["image"] == [str(paths[i]) for i in (0, 0, 2)]
    assert table["index"] == [0, 1, 0]
    assert table["boxes"] == BOXES["0"] + BOXES["2"]
    expected = Detector.from_workdir(workdir).embed(list(paths), list(BOXES.values()))
    np.testing.assert_allclose(table["features"], np.concatenate(expected), atol=1e-5)
    monkeypatch.setattr(embed, "find_spec", {"pyarrow": None}.get)
    assert run_command(*command).stderr == "error: --out *.parquet needs pyarrow: pip install pyarrow\n"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"--out": "f.csv"}, "expected a file *.npz or *.parquet"),
        ({"--boxes": "missing.json"}, "missing.json: no such file"),
        ({"--layer": "fc8"}, "layer must be one of pooled, fc6, fc7, got 'fc8'"),
        ({"--workdir": "missing"}, "missing: no config.json"),
        ({"--out": "missing/f.npz"}, "missing/f.npz: the folder does not exist"),
        ({"--workdir": "W", "--network": "m:f"}, "W: no config.json"),
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
    assert not list(tmp_path.glob("f.*"))


@pytest.mark.parametrize("given_as", ["--boxes", "--weights", "image"])
def test_no_input_is_overwritten(given, tmp_path, given_as):
    paths, boxes = given
    options = {"--boxes": boxes, "--weights": "w.npz", "image": paths[0]} | {given_as: tmp_path / "f.npz"}
    (tmp_path / "f.npz").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path)
    image, out = options.pop("image"), tmp_path / "link" / "f.npz"
    command = ("embed", image, *(part for option in options.items() for part in option))
    done = run_command(*command, "--network", "tiny", "--out", out)
    assert done.stderr == f"error: --out {out}: would overwrite an input; use another file\n"
    assert (tmp_path / "f.npz").read_bytes() == b"mine"


def test_a_step_is_of_a_workdir(given):
    paths, boxes = given
    done = run_command(
        "embed", "--weights", "w", "--network", "tiny", "--step", 1, *paths, "--boxes", boxes, "--out", "f.npz"
    )
    assert done.stderr == "error: --step belongs to --workdir\n"
