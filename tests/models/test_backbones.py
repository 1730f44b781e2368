"""Backbones that users bring: of Flax linen, Flax NNX and plain functions."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples import ROOT, run_command
from flax import nnx

from frcnn_jax import Detector
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import load_image
from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import FunctionBackbone
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables, variable_shapes
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.parameters import flatten
from frcnn_jax.models.pools import RoIAlign
from frcnn_jax.models.resnet import ResNet
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import fit_weights, load_pretrained
from frcnn_jax.training.checkpoint import load_model, save_model
from frcnn_jax.training.step import create_state, train_step

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "backbones.md").read_text(), re.DOTALL | re.MULTILINE)


def plain(rng):
    kernels = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((3, 3, 3, 8), (3, 3, 8, 16))]

    def features(params, images):
        for kernel in params["kernels"]:
            images = jax.lax.conv_general_dilated(
                images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            images = jax.nn.relu(images)
        return images

    return FunctionBackbone(features, {"kernels": kernels}, spatial_scale=1 / 4, channels=16)


def of_nnx(rng):
    class Features(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 16, (3, 3), strides=4, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)

        def __call__(self, images):
            return jax.nn.relu(self.norm(self.conv(images)))

    graph, params, statistics = nnx.split(Features(nnx.Rngs(0)), nnx.Param, ...)

    def features(params, statistics, images):
        return nnx.merge(graph, params, statistics)(images)

    return FunctionBackbone(features, params, spatial_scale=1 / 4, channels=16, statistics=statistics)


def detector_of(backbone):
    head = FullyConnectedHead(3, (8, 8), std=None, dropout=0.0)
    return FastRCNN(backbone, head, RoIAlign((2, 2), backbone.spatial_scale))


def batch_of(rng):
    batch = {"image": rng.normal(0, 1, (1, 32, 48, 3)).astype(np.float32), "image_size": np.array([[32, 40]])}
    batch |= {"rois": np.array([[[0, 0, 20, 20], [4, 4, 30, 30.0]]], np.float32), "roi_mask": np.ones((1, 2), bool)}
    batch |= {"labels": np.array([[1, 0]]), "box_targets": np.ones((1, 2, 4), np.float32), "index": np.array([0])}
    return batch


@pytest.mark.parametrize("make", [plain, of_nnx])
def test_a_function_is_trained_frozen_and_restored_like_any_backbone(make, tmp_path, rng):
    backbone = make(rng)
    model, batch = detector_of(backbone), batch_of(rng)
    variables = init_variables(model, jax.random.key(0))
    paths = [path for path in flatten(variables["params"]) if path.startswith("backbone/")]
    assert len(paths) == len(jax.tree.leaves(backbone.params.tree))
    inputs = (
        (backbone.params.tree,) if backbone.statistics is None else (backbone.params.tree, backbone.statistics.tree)
    )
    expected = backbone.function(*inputs, batch["image"])
    image = batch["image"], batch["image_size"]
    got = np.asarray(model.apply(variables, *image, method=lambda model, *image: model.backbone(*image)))
    np.testing.assert_allclose(got[:, :, :10], expected[:, :, :10], rtol=1e-5, atol=1e-6)
    assert not got[:, :, 10:].any()  # 40 of 48 columns at a quarter

    optimizer = optax.sgd(0.1)
    for frozen, moves in (((), True), (("backbone",), False)):
        state = create_state(variables, optimizer, frozen=frozen)
        step = jax.vmap(
            lambda state, batch: train_step(state, batch, jax.random.key(1), model=model, optimizer=optimizer),
            (None, 0),
            axis_name="device",
        )
        state, metrics = step(state, jax.tree.map(lambda array: array[None], batch))
        after = {path: leaf[0] for path, leaf in flatten(state.variables["params"]).items() if path in paths}
        changed = [np.any(after[path] != flatten(variables["params"])[path]) for path in paths]
        assert any(changed) == moves
        assert np.isfinite(metrics["loss"]).all()
    save_model(tmp_path / "W", 7, jax.tree.map(np.asarray, variables))
    restored, step = load_model(tmp_path / "W", variable_shapes(model))
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_a_function_that_returns_another_shape(rng):
    backbone = FunctionBackbone(lambda params, images: images, {"w": np.ones(2)}, spatial_scale=1.0, channels=5)
    with pytest.raises(InputError, match=r"the function must return \(B, H', W', 5\), got \(1, 64, 64, 3\)"):
        init_variables(detector_of(backbone), jax.random.key(0))


def test_a_whole_network_in_nnx(rng):
    model = get_network("tiny").build(3)
    inputs = rng.normal(0, 1, (1, 48, 64, 3)).astype(np.float32), np.array([[48, 64]]), np.array([[[1, 2, 30, 40.0]]])
    inner = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(inner, *inputs)
    logits, deltas = inner(*inputs)
    assert (logits.shape, deltas.shape) == ((1, 1, 4), (1, 1, 4, 4))
    params = nnx.to_pure_dict(nnx.state(inner, nnx.Param))
    stats = init_variables(model, jax.random.key(0))["box_stats"]
    expected = model.apply({"params": {k: params[k] for k in ("backbone", "head")}, "box_stats": stats}, *inputs)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-6)


def test_the_network_of_the_docs_trains(tmp_path, monkeypatch):
    """The thirty lines of the page, by the command line, and a detector from what they leave."""
    (tmp_path / "my_backbone_of_docs.py").write_text(BLOCKS[0])
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 30
    monkeypatch.chdir(tmp_path)
    name = "my_backbone_of_docs:make_network"
    options = [
        f"--config.{field}" for field in ("train_images=6", "val_images=2", "steps=2", "pictures=0", "workers=1")
    ]
    arguments = ["train", "--workdir", "W", f"--config.network={name}", "--config.rate_multipliers=('backbone=0.1',)"]
    done = run_command(*arguments, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "W" / "results.json").read_text())["step"] == 2
    with pytest.raises(InputError, match=f"its network is code, {name}: if you trust it, pass --network={name}"):
        Detector.from_workdir("W")
    Detector.from_workdir("W", network=name)(np.zeros((90, 120, 3), np.uint8))
    done = run_command("eval-voc", "--workdir", "W", "--network", name, "--images", 1)
    assert done.returncode == 0, done.stderr
    done = run_command("eval-voc", "--workdir", "W")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_functions_of_other_kinds(tmp_path, monkeypatch):
    code = BLOCKS[0].replace("def make_network(num_classes: int) -> FastRCNN:", "{}")
    (tmp_path / "unannotated.py").write_text(code.format("def make_network(num_classes):"))
    (tmp_path / "other.py").write_text("def make_network(num_classes: int) -> int:\n    raise SystemExit")
    (tmp_path / "stride.py").write_text(
        BLOCKS[0].replace("spatial_scale: float = 1 / 8", "spatial_scale: float = 1 / 2")
    )
    (tmp_path / "rank.py").write_text(BLOCKS[0].replace("return nn.relu(nn.Conv(64, (3, 3))(x))", "return x.mean(3)"))
    (tmp_path / "head.py").write_text(BLOCKS[0].replace("FullyConnectedHead(num_classes,", "FullyConnectedHead(7,"))
    monkeypatch.chdir(tmp_path)
    for network, text in (
        (
            "unannotated.py:make_network",
            r"must be annotated as returning FastRCNN: def make_network\(num_classes: int\)",
        ),
        ("other.py:make_network", "must be annotated as returning FastRCNN"),
        ("missing.py:make_network", "network missing.py:make_network: no such file missing.py"),
        ("no_such_module:make_network", "no module named 'no_such_module'"),
        ("stride.py:nothing", "stride.py has no function 'nothing'"),
        ("stride.py:jax", "stride.py has no function 'jax'"),
        ("a b:c", "no module named 'a b'"),
        (":", "network must be module:function or FILE.py:function, got ':'"),
        ("stride.py:make_network", r"near 0.5 times the image's, got \(1, 24, 32, 64\) of images of 192 x 256 pixels"),
        ("head.py:make_network", r"for 3 classes the head must return logits \(B, R, 4\) .* got \[\(1, 1, 8\)"),
    ):
        with pytest.raises(InputError, match=text):
            get_network(network).build(3)
    with pytest.raises(InputError, match=r"stride.py:make_network computes in float32"):
        get_network("stride.py:make_network").build(3, dtype=jnp.bfloat16)


def test_a_backbone_that_does_not_mask_differs_near_the_border_alone(shared):
    """The figures of docs/backbones.md: a ResNet-50 that takes the canvas for the image."""
    model, path = get_network("resnet50_fc").build(2), shared / "weights" / "resnet50_imagenet_c4.npz"
    fresh = init_variables(model, jax.random.key(0))["params"]
    params = load_pretrained(fresh, fit_weights(read_weights(path), model, "w"), roi_size=(7, 7), source="w")
    features = jax.jit(lambda images, size: ResNet(50).apply({"params": params["backbone"]}, images, size))
    worst = np.zeros(38)
    for path in sorted((shared / "voc" / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"))[:2]:
        canvas = np.zeros((1, 480, 640, 3), np.float32)
        photograph = load_image(path)
        rows, columns = np.arange(480) * len(photograph) // 480, np.arange(600) * photograph.shape[1] // 600
        canvas[0, :, :600] = model.pixels(photograph[rows][:, columns])
        masked, not_masked = (np.asarray(features(canvas, np.array([[480, n]])))[0, :, :38] for n in (600, 640))
        difference = ((masked - not_masked) ** 2).mean((0, 2)) ** 0.5 / (masked**2).mean() ** 0.5
        worst = np.maximum(worst, difference)
    assert (worst[:30] < 1e-5).all()
    assert (worst[30:] < [0.02, 0.05, 0.2, 0.3, 0.3, 0.5, 0.7, 0.9]).all()
    assert worst[-1] > 0.5


def test_exact_sizes_have_no_padding():
    size = Sizes(60, 100, exact=True)
    assert size.canvas(30, 41) == (60, 82)
    assert size.canvas(1, 1000) == (1, 100)
    assert Sizes(60, 100).canvas(30, 41) != (60, 82)
