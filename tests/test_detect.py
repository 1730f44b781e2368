import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from examples import run_command
from PIL import Image

from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene
from frcnn_jax.data.voc import read_xml_folder
from frcnn_jax.detect import _find_images, _result_names, _search_pool
from frcnn_jax.detector import Detector


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


@pytest.mark.slow
def test_many_images_are_searched_in_worker_processes(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "test", i).image).save(path)
    with _search_pool(7) as few, _search_pool(8) as many:
        assert isinstance(few, ThreadPoolExecutor)
        assert isinstance(many, ProcessPoolExecutor)
    done = run_command("detect", "--workdir", workdir, *paths, "--out", tmp_path / "out", "--score-threshold", 0.2)
    assert done.returncode == 0, done.stderr
    detector = Detector.from_workdir(workdir)
    expected = {str(path): detector(path, score_threshold=0.2).to_records(CLASS_NAMES) for path in paths}
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == expected


def test_command_line_names_the_broken_image_and_writes_nothing(workdir, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    done = run_command("detect", "--workdir", workdir, tmp_path / "bad.jpg", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: can't be read as an image")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    for argument, text in (("none*.jpg", "no file fits this pattern"), ("empty", "no images in this folder")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = run_command("detect", "--workdir", workdir, tmp_path / argument, "--out", tmp_path / "out")
        assert done.stderr.startswith(f"error: {tmp_path / argument}: {text}")
    done = run_command("detect", "--workdir", workdir, "x.jpg", "--out", tmp_path / "out", "--write", "json,xml")
    assert done.stderr == "error: --write must be some of pictures, json, coco, voc, yolo, got 'xml'\n"
    done = run_command("detect", "--workdir", workdir, "x.jpg", "--out", tmp_path / "bad.jpg")
    assert done.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: expected a folder")
    done = run_command("detect", "--workdir", workdir, "x.jpg", "--out", tmp_path / "out", "--score-threshold", "nan")
    assert done.stderr == "error: --score-threshold must be finite, got nan\n"


def test_names_of_results(tmp_path):
    def names(*paths):
        return list(_result_names([Path(path) for path in paths]).values())

    assert names("a/x.jpg", "b/y.jpg") == ["x", "y"]
    assert names("a/x.jpg", "b/x.jpg", "b/c/y.jpg") == ["a/x", "b/x", "b/c/y"]
    assert names("a/x.jpg", "a/x.png", "b/x.jpg") == ["a/x.jpg", "a/x.png", "b/x"]
    assert names("photo.v1.jpg", "photo.v2.jpg") == ["photo.v1", "photo.v2"]


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "p/b.JPG",
        "p/a.png",
        "p/q/c.webp",
        "p/._a.png",
        "p/__MACOSX/a.png",
        "p/x.txt",
        "d/[1].jpg",
        "d/1.jpg",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    found = [str(path) for path in _find_images(["p", "p/*.png", "d/[1].jpg", "d/[0-9].jpg", "none.jpg"])]
    assert found == ["p/a.png", "p/b.JPG", "p/q/c.webp", "d/[1].jpg", "d/1.jpg", "none.jpg"]


@pytest.mark.slow
def test_a_folder_with_a_broken_image_in_all_formats(workdir, tmp_path):
    """The results are read back as data sets of the boxes that Python's detector finds."""
    images, out = tmp_path / "images", tmp_path / "out"
    for i, name in enumerate(("a/\u732b.png", "b/\u732b.png")):
        (images / name).parent.mkdir(parents=True)
        Image.fromarray(draw_scene(0, "test", i).image).save(images / name)
    (images / "b/broken.png").write_bytes((images / "a/\u732b.png").read_bytes()[:900])
    done = run_command(
        "detect", "--workdir", workdir, images, "--out", out, "--write", "pictures,json,coco,voc,yolo",
        "--score-threshold", 0.2,
    )  # fmt: skip
    assert done.returncode == 3
    first, last = done.stderr.splitlines()[-2:]
    assert first.startswith(f"{images}/b/broken.png: can't be read as an image")
    assert last == "1 of 3 images skipped"
    detector = Detector.from_workdir(workdir)
    expected = [detector(images / f"{folder}/\u732b.png", score_threshold=0.2) for folder in "ab"]
    assert [len(found) for found in json.loads((out / "detections.json").read_text()).values()] == [
        len(found.boxes) for found in expected
    ]
    assert sum(len(found.boxes) for found in expected) > 3
    coco = read_coco(out / "coco.json", image_dir=images)
    assert [r.load.path for r in coco.records] == [str(images / f"{folder}/\u732b.png") for folder in "ab"]
    assert coco.class_names == CLASS_NAMES
    for folder in "ab":
        (out / f"{folder}/\u732b.png").rename(tmp_path / f"{folder}.png")  # the picture
        (images / f"{folder}/\u732b.png").rename(out / f"{folder}/\u732b.png")
    voc = read_xml_folder(out, class_names=CLASS_NAMES)
    assert [record.image_id for record in voc.records] == ["a/\u732b", "b/\u732b"]
    for found, of_coco, of_voc in zip(expected, coco.records, voc.records, strict=True):
        for record, tolerance in ((of_coco, 1e-3), (of_voc, 0.51)):
            np.testing.assert_array_equal(record.labels, found.labels)
            np.testing.assert_allclose(record.boxes, found.boxes, atol=tolerance)
    assert (out / "labels/classes.txt").read_text().split("\n")[:-1] == list(CLASS_NAMES)
    for folder, found in zip("ab", expected, strict=True):
        rows = np.loadtxt(out / f"labels/{folder}/\u732b.txt", ndmin=2)
        np.testing.assert_array_equal(rows[:, 0] + 1, found.labels)
        centre, side = rows[:, 1:3] * (192, 144), rows[:, 3:] * (192, 144)
        np.testing.assert_allclose(np.hstack([centre - side / 2, centre + side / 2 - 1]), found.boxes, atol=1e-3)


@pytest.mark.slow
def test_given_boxes_are_classified_in_their_order(workdir, tmp_path):
    path, boxes = tmp_path / "0.png", [[20, 30, 90, 140], [0, 0, 100, 80], [20, 30, 90, 140]]
    Image.fromarray(draw_scene(0, "test", 0).image).save(path)
    (tmp_path / "b.json").write_text(json.dumps({"0.png": boxes}))
    command = ("detect", "--workdir", workdir, path, "--out", tmp_path / "out", "--boxes", tmp_path / "b.json")
    done = run_command(*command, "--score-threshold", 1.1)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / "out" / "0.png"))
    np.testing.assert_array_equal(picture, np.kron(Image.open(path), np.ones((3, 3, 1))))  # enlarged, no box is drawn
    assert done.stdout == f"3 boxes in 1 images: {tmp_path}/out/detections.json\n"
    found = json.loads((tmp_path / "out" / "detections.json").read_text())[str(path)]
    scores = Detector.from_workdir(workdir).classify(path, boxes)
    assert found[0] == found[2] != found[1]
    for record, own, moved in zip(found, scores.probabilities, scores.boxes, strict=True):
        best = own[1:].argmax()
        assert record["label"] == CLASS_NAMES[best]
        assert record["score"] == pytest.approx(own[best + 1], abs=1e-4)
        np.testing.assert_allclose(record["box"], moved[best], atol=0.06)
        assert list(record["probabilities"]) == ["background", *CLASS_NAMES]
        np.testing.assert_allclose(list(record["probabilities"].values()), own, atol=1e-4)


def test_a_box_outside_its_image_is_named_and_nothing_is_written(workdir, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(draw_scene(0, "test", 0).image).save(path)
    (tmp_path / "b.json").write_text(json.dumps({"0": [[20, 30, 90, 140]], "1": [[9, 9, 50, 50], [500, 0, 510, 10]]}))
    command = ("detect", "--workdir", workdir, *paths, "--out", tmp_path / "out", "--boxes", tmp_path / "b.json")
    problem = f"image {paths[1]}: box 1 (500, 0, 510, 10) is outside the image of 192 x 144"
    assert run_command(*command).stderr == f"error: {problem}\n"
    assert not (tmp_path / "out").exists()
