"""Every value of the defaults and of each recipe against the paper's, and two steps of each recipe."""

import json
import shutil

import jax
import numpy as np
import pytest
from examples import ROOT, run_command
from filelock import FileLock
from PIL import Image

from frcnn_jax.config import get_config, load_config, voc07_config
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.errors import InputError
from frcnn_jax.models.efficientnet import EfficientNetLite, LiteNeck
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.layers import Conv
from frcnn_jax.models.networks import LAYER_NETWORKS, NETWORKS, FunctionNetwork
from frcnn_jax.models.pools import RoIAlign
from frcnn_jax.models.resnet import FPN, ResNet
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import canonical_arrays, described
from frcnn_jax.training.logs import read_metrics
from frcnn_jax.workdir import load_variables, read_config

DEFAULTS = {
    # data and proposals
    "dataset": "synthetic", "voc_dir": "", "year": 2007, "data_dir": "", "train_split": "train", "val_split": "val",
    "on_error": "stop", "exif": "apply", "train_images": 600, "val_images": 200, "train_difficult": True,
    "class_names": (),
    "proposals": "standard", "proposal_size": 0, "max_proposals": 2000, "proposal_cache": "", "workers": 0,
    # network
    "network": "tiny", "pool": "", "weights": "", "train_from": "", "freeze": (), "feature_cache": "",
    "rate_multipliers": (), "compute_type": "float32", "fc_ranks": (), "classifier": "softmax", "min_size": 144,
    "max_size": 192, "buckets": "shared", "scales": (),
    # mini-batch
    "data_workers": 0, "images_per_batch": 2, "accumulate": 1, "rois_per_batch": 128, "fg_fraction": 0.25,
    "fg_iou": 0.5, "bg_iou_low": 0.0, "bg_iou_high": 0.5, "flip": True, "scale_jitter": (), "color_jitter": 0.0,
    "box_loss_weight": 1.0,
    # solver
    "reference_images": 2, "steps": 2000, "learning_rate": 0.01, "learning_rate_drops": (1700,), "momentum": 0.9,
    "epochs": 0.0, "optimizer": "sgd", "schedule": "step",
    "weight_decay": 0.0005, "decay_biases": False, "warmup_steps": 0, "seed": 0,
    # test
    "nms_iou": 0.3, "test_box_regression": True, "candidates_per_class": 100, "vote_iou": 0.0,
    # housekeeping
    "log_every": 20, "profile_steps": (), "checkpoint_every": 500, "keep_checkpoints": 2, "keep_best": 0,
    "eval_every": 0, "stop_after": 0, "eval_images": 0, "pictures": 12, "picture_threshold": 0.5,
}  # fmt: skip
PAPER = {
    "dataset": "voc", "train_split": "trainval", "val_split": "test", "min_size": 600, "max_size": 1000,
    "proposals": "paper", "bg_iou_low": 0.1, "learning_rate": 0.001, "steps": 40_000, "learning_rate_drops": (30_000,),
    "checkpoint_every": 2000,
}  # fmt: skip
S, M, L = ({"network": name} for name in ("caffenet", "vgg_cnn_m_1024", "vgg16"))
FIVE_SCALES = {"scales": (480, 576, 688, 864, 1200), "max_size": 2000}
LITE = {name: DEFAULTS[name] for name in PAPER} | {
    "dataset": "voc", "freeze": ("backbone", "neck"), "feature_cache": "workdir",
    "network": "efficientnet_lite0_dilated", "min_size": 480, "max_size": 640, "images_per_batch": 4,
    "reference_images": 4, "rois_per_batch": 512, "optimizer": "adamw", "schedule": "cosine", "learning_rate": 0.0005,
    "weight_decay": 0.05, "candidates_per_class": 300,
}  # fmt: skip
RECIPES = {
    "voc07_s": S,
    "voc07_m": M,
    "voc07_l": L,
    "voc07_s_five_scales": S | FIVE_SCALES,
    "voc07_m_five_scales": M | FIVE_SCALES,
    "voc0712_l": L | {"train_split": "2007_trainval+2012_trainval", "steps": 60_000},
    "voc07pp12_l": L
    | {
        "train_split": "2007_trainval+2007_test+2012_trainval",
        "steps": 100_000,
        "learning_rate_drops": (40_000, 80_000),
    },
    "voc12_l": L | {"train_split": "2012_trainval"},
    "coco_l": L
    | {
        "dataset": "coco",
        "train_split": "train2014",
        "val_split": "val2014",
        "steps": 240_000,
        "learning_rate_drops": (180_000,),
    },
    "voc07_l_svd": L,
    "voc07_l_svm": L,
    "voc07_l_stage_wise": L | {"train_from": "bbox_pred"},
    "voc07_l_no_difficult": L | {"train_difficult": False},
    "voc07_l_classes_only": L | {"box_loss_weight": 0.0, "test_box_regression": False},
    "voc07_l_no_box_regression": L | {"test_box_regression": False},
    "voc07_l_fc_only": L | {"train_from": "fc6"},
    "voc07_l_conv3_1": L | {"train_from": "conv3_1"},
    "voc07_l_conv2_1": L | {"train_from": "conv2_1"},
    "voc07_alexnet": {
        "network": "alexnet",
        "proposals": "standard",
        "train_split": "train",
        "val_split": "val",
        "steps": 2000,
        "learning_rate_drops": (1500,),
        "checkpoint_every": 500,
        "candidates_per_class": 300,
    },
    "voc07_lite0": LITE | {"weights": "lite0", "bg_iou_low": 0.1, "steps": 4000, "warmup_steps": 200},
    "voc07_resnet50": LITE
    | {
        "network": "resnet50_fc", "freeze": ("backbone",), "flip": False, "bg_iou_low": 0.1, "rois_per_batch": 256,
        "steps": 3000, "warmup_steps": 200,
    },
    "finetune": LITE
    | {
        "dataset": "auto", "weights": "pretrained", "steps": 600, "epochs": 10.0, "warmup_steps": 50,
        "learning_rate": 0.001, "vote_iou": 0.5,
    },
    "coco_r50_fpn": {name: DEFAULTS[name] for name in PAPER}
    | {
        "dataset": "coco", "train_split": "train2017", "val_split": "val2017", "network": "resnet50_fpn_caffe",
        "min_size": 800, "max_size": 1333, "images_per_batch": 16, "rois_per_batch": 8192, "reference_images": 16,
        "steps": 90_000, "learning_rate": 0.02, "learning_rate_drops": (60_000, 80_000), "warmup_steps": 1000,
        "weight_decay": 0.0001, "checkpoint_every": 5000, "max_proposals": 1000, "nms_iou": 0.5,
        "candidates_per_class": 300,
    },
}  # fmt: skip


def test_every_default():
    assert get_config().to_dict() == DEFAULTS
    assert voc07_config("vgg16").to_dict() == DEFAULTS | PAPER | L


def test_every_recipe_has_its_row():
    assert {path.stem for path in (ROOT / "experiments").glob("*.py")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_a_recipe(name):
    assert load_config(name, []) == DEFAULTS | PAPER | RECIPES[name]
    assert f"--config {name} " in (ROOT / "experiments" / f"{name}.py").read_text()


def test_an_unknown_recipe_suggests_similar_ones_or_lists_all():
    with pytest.raises(InputError, match=r"--config coco_s: no such recipe or file; did you mean coco_l or voc07_s\?$"):
        load_config("coco_s", [])
    with pytest.raises(InputError, match=f"no such recipe or file; recipes: {', '.join(sorted(RECIPES))}$"):
        load_config("x", [])


BOX = (11, 6, 60, 45)  # 0-based


def write_voc(folder):
    """Write VOC2007 and VOC2012 with one image of 96 x 64 pixels per split; yield the image ids."""
    rng = np.random.default_rng(0)
    corners = "".join(f"<{s}>{v + 1}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
        for difficult, name in enumerate(("cat", "dog"))
    )
    for year, split in ((2007, "train"), (2007, "val"), (2007, "trainval"), (2007, "test"), (2012, "trainval")):
        root, name = folder / f"VOC{year}", f"{year}_{split}"
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        xml = f"<annotation><size><width>96</width><height>64</height></size>{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
        yield name


def write_coco(folder):
    """Write COCO's splits with one such image and VOC's classes, so that no other program is compiled."""
    (folder / "annotations").mkdir()
    x1, y1, x2, y2 = BOX
    for i, split in enumerate(("train2014", "val2014", "train2017", "val2017")):
        (folder / split).mkdir()
        Image.new("RGB", (96, 64), "teal").save(folder / split / "a.jpg")
        entry = {"id": 1, "image_id": i, "category_id": 2, "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1]}
        content = {
            "images": [{"id": i, "file_name": "a.jpg", "width": 96, "height": 64}],
            "annotations": [entry],
            "categories": [{"id": number, "name": name} for number, name in enumerate(VOC_CLASSES)],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        yield str(i)


@pytest.fixture(scope="session")
def data(common):
    """A folder of small data sets and their proposals."""
    folder = common / "recipes"
    with FileLock(common / "recipes.lock"):
        if not folder.exists():
            folder.mkdir()
            image_ids = [*write_voc(folder), *write_coco(folder)]
            corners = np.sort(np.random.default_rng(1).uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4)
            boxes = np.concatenate([corners * [95, 63, 95, 63], [np.add(BOX, (2, 0, 0, 3))]]).astype(np.float32)
            np.savez(folder / "proposals.npz", **dict.fromkeys(image_ids, boxes))
    return folder


def small(name):
    """A network with a narrow fc6 and fc7."""
    if name in LAYER_NETWORKS:
        return LAYER_NETWORKS[name]._replace(fc=(24, 16))
    build = {"efficientnet_lite0_dilated": small_lite, "resnet50_fc": small_resnet, "resnet50_fpn_caffe": small_pyramid}
    return FunctionNetwork(build[name], NETWORKS[name].frozen)


def small_lite(num_classes):
    backbone, head = EfficientNetLite(), FullyConnectedHead(num_classes, (24, 16), reduce=8)
    return FastRCNN(backbone, head, RoIAlign((3, 3), backbone.spatial_scale), neck=LiteNeck())


def small_resnet(num_classes):
    backbone, head = ResNet(18), FullyConnectedHead(num_classes, (24, 16), reduce=8)
    return FastRCNN(backbone, head, RoIAlign((3, 3), backbone.spatial_scale))


def small_pyramid(num_classes):
    backbone, head = FPN(18, 16), FullyConnectedHead(num_classes, (24, 16))
    return FastRCNN(backbone, head, RoIAlign((7, 7), backbone.spatial_scale))


@pytest.fixture(scope="session")
def weights(data):
    """Function from a network's name to a file of random weights for 20 classes."""

    def write(name):
        path = data / f"{name}.npz"
        with FileLock(data / f"{name}.lock"):
            if not path.exists():
                model = small(name).build(20)
                variables = jax.device_get(init_variables(model, jax.random.key(5)))
                write_weights(path, described(canonical_arrays(variables["params"], roi_size=model.roi_size), model))
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(name, data, weights, tmp_path, monkeypatch):
    """The recipe's command with small data, images and fc layers: exactly the layers change that it trains."""
    recipe = load_config(name, [])
    network = recipe["network"]
    file = weights(network)
    monkeypatch.setitem(NETWORKS, network, small(network))
    changes = {"weights": str(file), "proposals": str(data / "proposals.npz"), "steps": 2, "log_every": 1}
    changes |= {"data_dir" if recipe["dataset"] == "coco" else "voc_dir": str(data), "pictures": 0, "epochs": 0.0}
    changes |= {"dataset": "voc"} if recipe["dataset"] == "auto" else {}
    changes |= {"min_size": 64, "max_size": 96, "scales": (64, 80) if recipe["scales"] else ()}
    changes |= {"images_per_batch": 2, "rois_per_batch": 128, "reference_images": 2}
    fields = [f"--config.{field}={value}" for field, value in changes.items()]
    done = run_command("train", "--workdir", tmp_path / "w", "--config", name, *fields)
    assert done.returncode == 0, done.stderr
    config = read_config(tmp_path / "w")
    assert config == json.loads(json.dumps({**recipe, **changes, "class_names": VOC_CLASSES}))
    rows = read_metrics(tmp_path / "w")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["loss"] < np.inf and row["learning_rate"] > 0 for row in rows)
    assert recipe["warmup_steps"] or {row["learning_rate"] for row in rows} == {np.float32(0.001)}
    assert all(row["loss_box"] > 0 for row in rows)

    model, variables, step = load_variables(tmp_path / "w", config)
    assert step == 2
    before = read_weights(file)
    after = canonical_arrays(variables["params"], roi_size=model.roi_size)
    if network in LAYER_NETWORKS:
        layers = [layer.name for layer in LAYER_NETWORKS[network].layers if isinstance(layer, Conv)]
        layers += ["fc6", "fc7", "cls_score", "bbox_pred"]
        first = recipe["train_from"] or ("conv3_1" if network == "vgg16" else "conv2")
        trained = {f"{layer}.{kind}" for layer in layers[layers.index(first) :] for kind in ("weight", "bias")}
    elif recipe["freeze"]:
        heads = ("reduce", "fc6", "fc7", "cls_score", "bbox_pred") + ("blocks.5", "blocks.6") * (
            "neck" not in recipe["freeze"]
        )
        trained = {name for name in after if name.startswith(heads)}
    else:
        trained = {name for name in after if name.split(".")[0] not in ("conv1", "layer1")}
    if not recipe["box_loss_weight"]:
        trained.remove("bbox_pred.bias")  # it has no gradient and no decay
    changed = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    if network in LAYER_NETWORKS or recipe["freeze"]:
        assert changed == trained
    else:  # small images reach the finest level of the pyramid alone, and deep layers hardly move in two steps
        assert {"fc6.weight", "fpn_output2.weight", "fpn_lateral5.weight", "bbox_pred.weight"} <= changed <= trained
    shutil.rmtree(tmp_path / "w" / "checkpoints")
