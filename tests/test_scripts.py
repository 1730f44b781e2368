"""The command lines in scripts/ that work on a workdir; the others have their tests beside what they call."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from frcnn_jax.detect import Detector, load_variables, read_config
from frcnn_jax.proposal_files import read_proposals
from frcnn_jax.synthetic import CLASS_NAMES, draw_scene

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run(script, *arguments):
    return subprocess.run([sys.executable, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def image():
    return draw_scene(0, "test", 3).image


ROIS = np.array([[0, 0, 100, 80], [20, 30, 90, 140], [50, 5, 180, 60]], np.float32)


@pytest.mark.slow
def test_compress_makes_a_workdir_that_detects(workdir, tmp_path, image):
    done = run(
        "compress.py", "--workdir", workdir, "--out", tmp_path / "svd", "--fc6", 127, "--fc7", 127, "--images", 0
    )
    assert done.returncode == 0, done.stderr
    assert "fc6 and fc7 have 0.3 of 0.3 million parameters" in done.stdout
    full, factored = (Detector.from_workdir(w)(image, ROIS, score_threshold=0) for w in (workdir, tmp_path / "svd"))
    np.testing.assert_allclose(factored.scores[:5], full.scores[:5], atol=0.05)
    again = run("compress.py", "--workdir", workdir, "--out", tmp_path / "svd", "--images", 0)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "exists; name another folder" in again.stderr


@pytest.mark.slow
def test_compress_says_which_rank_is_out_of_range(workdir, tmp_path):
    done = run("compress.py", "--workdir", workdir, "--out", tmp_path / "svd", "--fc6", 1024, "--fc7", 0)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the rank of fc6 must be 1 to 127, got 1024"
    assert not (tmp_path / "svd").exists()


@pytest.mark.slow
def test_a_detector_goes_out_and_comes_back(workdir, tmp_path, image):
    """Its box layer then holds what was in the statistics, as files of the paper's code do."""
    out = run("convert_weights.py", workdir, tmp_path / "w.safetensors")
    assert out.returncode == 0, out.stderr
    options = ("--detector", "--network", "tiny", "--classes", ",".join(CLASS_NAMES))
    back = run("convert_weights.py", tmp_path / "w.safetensors", tmp_path / "w", *options)
    assert back.returncode == 0, back.stderr
    _, variables, _ = load_variables(tmp_path / "w", read_config(tmp_path / "w"))
    assert not np.asarray(variables["box_stats"]["mean"]).any()
    small = {"min_size": 144, "max_size": 192}
    config = tmp_path / "w" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **small}))
    ours, theirs = (Detector.from_workdir(w)(image, ROIS, score_threshold=0) for w in (workdir, tmp_path / "w"))
    assert len(ours.scores) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2), ours, theirs)


@pytest.mark.slow
def test_a_file_without_heads_is_no_detector(tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv1_1.weight": np.zeros((4, 3, 3, 3))})
    done = run("convert_weights.py", tmp_path / "w.npz", tmp_path / "w", "--detector")
    assert done.returncode == 1
    assert "not a whole detector: missing fc6.weight" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_make_proposals_in_shards_and_from_other_files(tmp_path):
    few = ("--config.val_images=5", "--config.max_proposals=100")
    done = run(
        "make_proposals.py", "--out", tmp_path / "p.proposals", "--shards", 2, "--recall", tmp_path / "r.png", *few
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{tmp_path}/p-2-of-2.proposals: 3 images, ")
    assert done.stdout.splitlines()[-1].startswith("      100  ")
    assert (tmp_path / "r.png").stat().st_size > 10_000
    found = read_proposals(tmp_path)
    assert [len(boxes) for boxes in found.values()] == [100] * 5
    np.savez(tmp_path / "p.npz", **found)
    (tmp_path / "q").mkdir()
    source = f"--config.proposals={tmp_path}/p.npz"
    done = run("make_proposals.py", "--out", tmp_path / "q" / "p.proposals", source, *few)
    assert done.returncode == 0, done.stderr
    for image_id, boxes in read_proposals(tmp_path / "q").items():
        np.testing.assert_array_equal(boxes, found[image_id])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--out", "p.npz"), "--out p.npz: a file *.proposals in a folder that exists is expected"),
        (("--out", "p.proposals", "--shards", "900"), "--shards must be 1 to the 200 images, got 900"),
        (("--out", "p.proposals", "--scheduler", "tcp://127.0.0.1:1"), "tcp://127.0.0.1:1: no Dask scheduler answers"),
        (("--out", "p.proposals", "--config.max_proposal=3"), "--config.max_proposal: no such field"),
    ],
)
def test_mistakes_of_make_proposals_are_one_line(options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("make_proposals.py", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {text}")
    assert done.stderr.count("\n") == 1
