import json

import pytest
from examples import run_command
from PIL import Image

from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene


@pytest.mark.slow
def test_command_line(workdir, tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "test", i).image).save(path)
    done = run_command("detect", "--workdir", workdir, *paths, "--out", tmp_path / "out", "--score-threshold", 0.2)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert list(results) == [str(path) for path in paths]
    for detection in results[str(paths[0])]:
        assert detection["label"] in CLASS_NAMES
        assert 0.2 <= detection["score"] <= 1
        assert len(detection["box"]) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "detections.json"}


def test_command_line_names_the_broken_image_and_writes_nothing(workdir, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    done = run_command("detect", "--workdir", workdir, tmp_path / "bad.jpg", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: can't be read as an image")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    done = run_command("detect", "--workdir", workdir, "a/x.jpg", "b/x.jpg", "--out", tmp_path / "out")
    assert done.stderr.startswith("error: pictures of images with the same name")
    done = run_command("detect", "--workdir", workdir, "x.jpg", "--out", tmp_path / "bad.jpg")
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: expected a folder")
    done = run_command("detect", "--workdir", workdir, "x.jpg", "--out", tmp_path / "out", "--score-threshold", "nan")
    assert done.stderr == "error: --score-threshold must be finite, got nan\n"
