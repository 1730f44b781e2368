"""The command lines in scripts/ that work on a workdir; the others have their tests beside what they call."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from frcnn_jax.detect import Detector, load_variables, read_config
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
def test_a_killed_training_ends_with_the_same_bits(tmp_path):
    done = run("kill_test.py", "--out", tmp_path / "out", "--kills", 2, "--steps", 60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 kills: the same bits in \d+ arrays and 15 rows$", done.stdout, re.MULTILINE)
