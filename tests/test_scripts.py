"""Commands that work on a workdir; the others have their tests next to what they call."""

import json

import jax
import numpy as np
import pytest
from examples import annotation, run_command, write_coco
from PIL import Image

from frcnn_jax.build import build_model
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene, read_synthetic
from frcnn_jax.detector import Detector
from frcnn_jax.evaluation.coco_metrics import COCO_METRICS
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.weights import canonical_names
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.workdir import load_variables, read_config


@pytest.fixture(scope="module")
def image():
    return draw_scene(0, "test", 3).image


ROIS = np.array([[0, 0, 100, 80], [20, 30, 90, 140], [50, 5, 180, 60]], np.float32)


@pytest.mark.slow
def test_compress_makes_a_workdir_that_detects(workdir, tmp_path, image):
    done = run_command(
        "compress", "--workdir", workdir, "--out", tmp_path / "svd", "--fc6", 127, "--fc7", 127, "--images", 0
    )
    assert done.returncode == 0, done.stderr
    assert "fc6 and fc7 have 0.3 of 0.3 million parameters" in done.stdout
    full, factored = (Detector.from_workdir(w)(image, ROIS, score_threshold=0) for w in (workdir, tmp_path / "svd"))
    np.testing.assert_allclose(factored.scores[:5], full.scores[:5], atol=0.05)
    again = run_command(
        "compress", "--workdir", workdir, "--out", tmp_path / "svd", "--fc6", 127, "--fc7", 127, "--images", 0
    )
    assert again.returncode == 0, again.stderr
    again = run_command("compress", "--workdir", workdir, "--out", tmp_path / "svd", "--images", 0)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "exists; name another folder" in again.stderr


@pytest.mark.slow
def test_compress_says_which_rank_is_out_of_range(workdir, tmp_path):
    done = run_command("compress", "--workdir", workdir, "--out", tmp_path / "svd", "--fc6", 1024, "--fc7", 0)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the rank of fc6 must be 1 to 127, got 1024"
    assert not (tmp_path / "svd").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compress", "train-svm"])
def test_a_head_of_one_layer_has_no_fc7(command, workdir, tmp_path):
    network = tmp_path / "one.py"
    network.write_text(
        "from frcnn_jax import FastRCNN, FullyConnectedHead, get_network\n"
        "def make(num_classes: int) -> FastRCNN:\n"
        "    return get_network('tiny').build(num_classes).clone(head=FullyConnectedHead(num_classes, (8,)))\n"
    )
    config = json.loads((workdir / "config.json").read_text())
    config["network"] = f"{network}:make"
    variables = jax.tree.map(
        lambda v: np.zeros(v.shape, v.dtype), variable_shapes(build_model(config, len(CLASS_NAMES)))
    )
    save_model(tmp_path / "w", 7, variables)
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    done = run_command(command, "--workdir", tmp_path / "w", "--out", tmp_path / "out", "--network", config["network"])
    assert done.returncode == 1
    assert done.stderr.strip().endswith("layers fc6 and fc7, got one with a FullyConnectedHead with features=(8,)")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_detector_goes_out_and_comes_back(workdir, tmp_path, image):
    """Its box layer then holds what was in the statistics, as files of the paper's code do."""
    out = run_command("convert-weights", workdir, tmp_path / "w.safetensors")
    assert out.returncode == 0, out.stderr
    options = ("--detector", "--network", "tiny", "--classes", ",".join(CLASS_NAMES))
    back = run_command("convert-weights", tmp_path / "w.safetensors", tmp_path / "w", *options)
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
    arrays = {n: np.zeros(1) for n in canonical_names(variable_shapes(get_network("vgg16").build(20))["params"])}
    heads = ("fc", "cls", "bbox")
    np.savez(tmp_path / "w.npz", **{name: a for name, a in arrays.items() if not name.startswith(heads)})
    done = run_command("convert-weights", tmp_path / "w.npz", tmp_path / "w", "--detector")
    assert done.returncode == 1
    assert "not a complete detector: " in done.stderr
    assert all(f" {name}.{kind}" in done.stderr for name in ("fc6", "fc7") for kind in ("weight", "bias"))
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--network", "tiny"), "--network, --classes and --config need --detector"),
        (("--classes", "cat,dog"), "--network, --classes and --config need --detector"),
        (
            ("--detector", "--classes", "cat,dog, cat"),
            "--classes 'cat,dog, cat': expected unique, non-empty names",
        ),
        (("--detector", "--classes", "cat,"), "--classes 'cat,': expected unique, non-empty names"),
    ],
)
def test_mistakes_of_convert_weights_are_one_line(options, text, tmp_path):
    done = run_command("convert-weights", tmp_path / "none.npz", tmp_path / "w.npz", *options)
    assert (done.returncode, done.stderr) == (1, f"error: {text}\n")


def write_xml_folder(folder, split, count):
    """Synthetic images as somebody's own: a PNG and an XML each."""
    (folder / split).mkdir(parents=True)
    dataset = read_synthetic(split=split, images=count)
    for record in dataset.records:
        name = record.image_id.replace("/", "_")
        Image.fromarray(record.load()).save(folder / split / f"{name}.png")
        objects = "".join(
            f"<object><name>{dataset.class_names[label - 1]}</name><bndbox>"
            + "".join(
                f"<{side}>{v + 1:.0f}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            + "</bndbox></object>"
            for box, label in zip(record.boxes, record.labels, strict=True)
        )
        size = f"<size><width>{record.width}</width><height>{record.height}</height></size>"
        (folder / split / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


@pytest.mark.slow
def test_own_images_from_a_folder_to_a_detector(tmp_path):
    """The README's walk-through, without splits."""
    write_xml_folder(tmp_path / "own", "train", 37)
    (tmp_path / "own/train").rename(tmp_path / "own/images")
    data = (f"--config.data_dir={tmp_path / 'own'}",)
    checked = run_command("check-dataset", "--recall", tmp_path / "p", "--config.max_proposals=200", *data)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.endswith("0 problems\n")
    assert "30 images, 192 to 192 pixels wide, 144 to 144 high" in checked.stdout
    assert "recall of the proposals of the val split:\nproposals  IoU 0.5" in checked.stdout
    workdir = tmp_path / "w"
    options = ("--config.steps=30", "--config.learning_rate_drops=(25,)", "--config.max_proposals=200")
    trained = run_command("train", "--workdir", workdir, *data, *options)
    assert trained.returncode == 0, trained.stderr
    assert set(read_config(workdir)["class_names"]) <= set(CLASS_NAMES)
    assert "VOC XML: 37 images, 6 classes; no val split, a fifth drawn by seed 0\n" in trained.stderr
    split = json.loads((workdir / "split.json").read_text())
    assert {name: len(ids) for name, ids in split.items()} == {"train": 30, "val": 7}
    drawn = {"train": split["train"] + split["val"][1:], "val": split["val"][:1]}
    (workdir / "split.json").write_text(json.dumps(drawn))
    scored = run_command("eval-voc", "--workdir", workdir, "--json", tmp_path / "scores.json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 1
    assert list((workdir / "pictures").glob("*.png"))


@pytest.mark.slow
def test_check_dataset_names_every_problem(tmp_path):
    write_xml_folder(tmp_path, "train", 12)
    write_xml_folder(tmp_path, "val", 2)
    first, second, third, *_ = sorted((tmp_path / "train").glob("*.xml"))
    first.write_text(first.read_text().replace("<xmin>", "<xmin>9"))
    second.write_text("<annotation>")
    picture = third.with_suffix(".png")
    picture.write_bytes(picture.read_bytes()[:-900])
    done = run_command("check-dataset", "--config.dataset=xml", f"--config.data_dir={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    for name in (first.name, second.name, picture.name):
        assert any(name in line for line in lines), name
    assert lines[-1] == "3 problems; to train without what is broken: --config.on_error=skip"


@pytest.mark.slow
def test_check_dataset_prints_no_thousand_lines(tmp_path):
    write_xml_folder(tmp_path, "train", 35)
    write_xml_folder(tmp_path, "val", 2)
    for path in sorted((tmp_path / "train").glob("*.xml"))[:34]:
        path.write_text("<annotation>")
    report = tmp_path / "r.html"
    data = ("--config.dataset=xml", f"--config.data_dir={tmp_path}", f"--config.class_names={','.join(CLASS_NAMES)}")
    done = run_command("check-dataset", "--report", report, *data)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert sum(".xml: " in line for line in lines) == 30
    assert lines[-2] == "... and 4 more; --report writes all"
    assert lines[-1].startswith("34 problems")
    assert report.read_text().count(".xml: ") == 34


def test_check_dataset_counts_what_images_may_hide(tmp_path):
    for split, count in (("train", 12), ("val", 3)):
        write_xml_folder(tmp_path, split, count)
    for suffix in ("png", "xml"):
        (tmp_path / f"val/copy.{suffix}").write_bytes((tmp_path / f"train/train_000001.{suffix}").read_bytes())
    Image.open(tmp_path / "train/train_000002.png").resize((100, 80)).save(tmp_path / "val/smaller.jpg")
    (tmp_path / "val/smaller.xml").write_text("<annotation/>")
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.open(tmp_path / "val/val_000000.png")
    picture.save(tmp_path / "val/val_000000.png", exif=exif)
    done = run_command("check-dataset", "--config.dataset=xml", f"--config.data_dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert "1 of the 5 val images are in the train split too, such as 'copy': " in done.stdout
    assert "1 of the 5 val images look like a train image, such as 'smaller' like 'train_000002': " in done.stdout
    assert "1 images have an EXIF orientation untold by their size: turned upright; see --config.exif" in done.stdout
    done = run_command("check-dataset", "--config.dataset=xml", "--config.exif=ignore", f"--config.data_dir={tmp_path}")
    assert "untold by their size: read as stored" in done.stdout


def test_check_dataset_writes_a_report_in_pictures(tmp_path):
    for split, count in (("train", 12), ("val", 2)):
        write_xml_folder(tmp_path, split, count)
    picture = tmp_path / "train/train_000000.png"
    picture.write_bytes(picture.read_bytes()[:-900])
    for suffix in ("png", "xml"):
        (tmp_path / f"val/copy.{suffix}").write_bytes((tmp_path / f"train/train_000001.{suffix}").read_bytes())
    data = ("--config.dataset=xml", f"--config.data_dir={tmp_path}", "--config.max_proposals=50")
    done = run_command("check-dataset", "--report", tmp_path / "r", "--recall", tmp_path / "p", *data)
    assert done.returncode == 1
    assert done.stdout.endswith("1 problem; to train without what is broken: --config.on_error=skip\n")
    assert f"report: {tmp_path}/r/index.html" in done.stderr
    remark = "- 1 of the 3 val images are in the train split too, such as 'copy': "
    few = "- few train objects of "
    assert all(any(line.startswith(text) for line in done.stdout.splitlines()) for text in (remark, few))
    assert "recall at IoU 0.5 by class and by side" in done.stdout
    page = (tmp_path / "r/index.html").read_text()
    for text in (
        "in the train split too",
        "Problems: 1",
        "train_000000.png: can&#x27;t be read",
        "Recall of the",
        "<svg",
    ):
        assert text in page
    assert page.count("<img ") > 6
    done = run_command("check-dataset", "--report", tmp_path / "own.HTML", *data)
    assert (tmp_path / "own.HTML").read_text().count("in the train split too") == 1
    for path, text in ((tmp_path / "no/r.html", "the folder does not exist"), (tmp_path / "own.HTML/r", "is a file")):
        refused = run_command("check-dataset", "--report", path, *data)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert text in refused.stderr


def test_eval_voc_of_other_classes(tmp_path):
    """A devkit of one's own classes, and result files of another program, of which one class has none."""
    root = tmp_path / "kit/VOC2012"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    Image.new("RGB", (50, 40)).save(root / "JPEGImages/a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("gate", "barn"))
    size = "<size><width>50</width><height>40</height></size>"
    (root / "Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (tmp_path / "comp4_det_val_gate.txt").write_bytes(b"a 1e-3 1 1 20 20\r\n")
    command = ("eval-voc", "--detections", tmp_path, "--voc", tmp_path / "kit", "--year", 2012, "--split", "val")
    done = run_command(*command, "--classes", "barn,gate")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["barn", "0.0000"], ["gate", "1.0000"], ["mAP", "0.5000"],
    ]  # fmt: skip
    assert done.stderr == f"{tmp_path}/comp4_det_val_barn.txt: no such result file; the class has no detections\n"
    assert "unknown class 'gate'" in run_command(*command).stderr


@pytest.mark.slow
def test_check_dataset_continues_if_a_split_is_missing(tmp_path):
    write_xml_folder(tmp_path, "val", 2)
    first, second = sorted((tmp_path / "val").glob("*.xml"))
    first.write_text("<annotation>")
    size = "<size><width>192</width><height>144</height></size>"
    second.write_text(f"<annotation>{size}</annotation>")
    data = ("--config.dataset=xml", f"--config.data_dir={tmp_path}", "--config.class_names=('cat',)")
    done = run_command("check-dataset", "--recall", tmp_path / "p", *data)
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 0)
    assert "val split, val:\n" in done.stdout
    assert "1 images, 192 to 192 pixels wide, 144 to 144 high" in done.stdout
    assert "recall of the proposals of the val split:\nno objects" in done.stdout
    missing, broken, count = done.stdout.splitlines()[-3:]
    assert missing.startswith(f"{tmp_path}/train: no such folder; {tmp_path} holds VOC XML: 1 split, 2 images, ")
    assert broken.startswith(str(first))
    assert count == "2 problems"
    refused = run_command("check-dataset", "--recall", second, *data)
    assert refused.returncode == 1
    assert refused.stderr == f"error: {second}: expected a folder, {second} is a file\n"


@pytest.mark.slow
def test_eval_voc_writes_a_report_and_result_files(workdir, tmp_path):
    out = ("--report", tmp_path / "report", "--comp4", tmp_path / "files")
    overrides = (f"--config.proposal_cache={tmp_path / 'proposals'}", "--config.year=2012")
    done = run_command("eval-voc", "--workdir", workdir, "--images", 2, *out, *overrides)
    assert done.returncode == 0, done.stderr
    assert "step 7" in (tmp_path / "report" / "index.html").read_text()
    files = sorted((tmp_path / "files" / "results" / "VOC2012" / "Main").iterdir())
    assert [path.name for path in files] == sorted(f"comp4_det_val_{name}.txt" for name in CLASS_NAMES)
    assert files[0].read_text().startswith("val_00000")
    refused = run_command("eval-voc", "--detections", tmp_path / "files", "--comp4", tmp_path / "again")
    assert refused.returncode == 1
    assert "need --workdir" in refused.stderr
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_eval_coco_on_any_data_set_and_on_files(workdir, tmp_path):
    overrides = (f"--config.proposal_cache={tmp_path / 'p'}", "--config.max_proposals=100")
    done = run_command("eval-coco", "--workdir", workdir, "--images", 2, "--json", tmp_path / "m.json", *overrides)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "m.json").read_text())) == {*COCO_METRICS, "ap50"}
    (tmp_path / "c").mkdir()
    truth = write_coco(tmp_path / "c", [annotation(area=200, iscrowd=0)])
    (tmp_path / "r.json").write_text(json.dumps([{k: v for k, v in annotation().items() if k != "id"} | {"score": 1}]))
    done = run_command("eval-coco", "--detections", tmp_path / "r.json", "--annotations", truth)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["AP", "1.0000"]
    done = run_command("eval-coco", "--detections", truth, "--annotations", truth)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {truth}: expected a list of results")


@pytest.mark.slow
def test_make_proposals_in_shards_and_from_other_files(tmp_path):
    few = ("--config.val_images=5", "--config.max_proposals=100")
    done = run_command(
        "proposals", "--out", tmp_path / "p.proposals", "--shards", 2, "--recall", tmp_path / "r.png", *few
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
    done = run_command("proposals", "--out", tmp_path / "q" / "p.proposals", source, *few)
    assert done.returncode == 0, done.stderr
    for image_id, boxes in read_proposals(tmp_path / "q").items():
        np.testing.assert_array_equal(boxes, found[image_id])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--out", "p.npz"), "--out p.npz: expected a file *.proposals in an existing folder"),
        (("--out", "p.proposals", "--shards", "900"), "--shards must be 1 to 200, the number of images, got 900"),
        (("--out", "p.proposals", "--scheduler", "tcp://127.0.0.1:1"), "tcp://127.0.0.1:1: no Dask scheduler answers"),
        (("--out", "p.proposals", "--recall", "p.xyz"), "--recall p.xyz: expected a file (.eps, "),
        (("--out", "p.proposals", "--recall", "none/p.png"), "--recall none/p.png: expected a file (.eps, "),
        (
            ("--out", "p.proposals", "--rec", "p.png"),
            "unknown argument '--rec'; set fields with --config.FIELD=VALUE",
        ),
        (("--out", "p.proposals", "--config.max_proposal=3"), "--config.max_proposal: no such field"),
    ],
)
def test_mistakes_of_make_proposals_are_one_line(options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("proposals", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {text}")
    assert done.stderr.count("\n") == 1
