"""Backbones that users bring: of Flax linen, Flax NNX and plain functions."""

import functools
import json
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples import ROOT, run_command
from flax import nnx

from frcnn_jax import Detector
from frcnn_jax.config import get_config
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import load_image
from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import FunctionBackbone
from frcnn_jax.models.fast_rcnn import FastRCNN, description, example_inputs, init_variables, variable_shapes
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.parameters import flatten, paths_before
from frcnn_jax.models.pools import RoIAlign
from frcnn_jax.models.resnet import ResNet
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import (
    Weights,
    canonical_arrays,
    fit_weights,
    keep_outputs,
    load_pretrained,
    merge_weights,
)
from frcnn_jax.training.checkpoint import load_model, save_model
from frcnn_jax.training.step import create_state, train_step
from frcnn_jax.workdir import assemble_detector, load_variables, read_config, workdir_weights

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
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)  # has a random key

        def __call__(self, images):
            return self.dropout(jax.nn.relu(self.norm(self.conv(images))))

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


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda _, images: images, r"\(1, 64, 64, 3\)"),
        (lambda _, images: images[..., 0], r"\(1, 64, 64\)"),
        (lambda _, images: None, "NoneType"),
        (lambda _, images: [images], "list"),
    ],
)
def test_a_function_that_returns_something_else(function, got):
    backbone = FunctionBackbone(function, {"w": np.ones(2)}, spatial_scale=1.0, channels=5)
    with pytest.raises(InputError, match=rf"the function must return \(B, H', W', 5\), got {got}"):
        init_variables(detector_of(backbone), jax.random.key(0))


def test_trees_that_cannot_be_trained():
    for params, statistics, text in (
        ({"a": {"n": np.arange(3)}}, None, "params must be floating-point, a/n is int32; constants go into statistics"),
        ({"mode": "same"}, None, "params must be a tree of arrays, mode is of type str"),
        ({}, ["same"], "statistics must be a tree of arrays, 0 is of type str"),
    ):
        with pytest.raises(InputError, match=text):
            FunctionBackbone(lambda *_: None, params, spatial_scale=1.0, channels=5, statistics=statistics)


def test_train_from_follows_the_order_in_which_a_function_uses_its_parameters(rng):
    """Not that of their names, and through other types, products of parameters, jit and scan."""

    def features(params, images):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        x = images.astype(jnp.bfloat16) @ params["stem"]
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["middle"])
        x = jax.jit(lambda x, p: x @ (p["gain"] * p["direction"]))(x, params["last"])
        return (x + params["a_bias"]).astype(jnp.float32)

    shapes = {"a_bias": (4,), "last": {"gain": (4,), "direction": (4, 4)}, "middle": (2, 4, 4), "stem": (3, 4)}
    shapes |= {"unused": (1,)}
    params = jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    model = detector_of(FunctionBackbone(features, params, spatial_scale=1.0, channels=4))
    for name, number in (("stem", 0), ("middle", 1), ("last", 2), ("a_bias", 4), ("fc6", 5)):
        before = ("stem", "middle", "last/gain", "last/direction", "a_bias")[:number]
        assert set(paths_before(model, example_inputs(), name)) == {f"backbone/{path}" for path in before}


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


def test_a_trained_network_of_ones_own_from_another_folder(tmp_path, monkeypatch):
    """Frozen without weights, as a function may bring its own; then a file of it, and training on from that."""
    (tmp_path / "my.py").write_text(BLOCKS[0])
    monkeypatch.chdir(tmp_path)
    fields = ("train_images=6", "val_images=2", "steps=2", "pictures=0", "workers=1", "freeze=backbone")
    options = ["train", "--workdir", "W", *(f"--config.{field}" for field in fields)]
    done = run_command(*options, "--config.network=my.py:make_network", "--config.rate_multipliers=nothing=2")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no parameters match 'nothing'; the layers are Conv_0" in done.stderr
    assert not (tmp_path / "W").exists()
    done = run_command(*options, "--config.network=my.py:make_network")
    assert done.returncode == 0, done.stderr

    (tmp_path / "sub").mkdir()
    (tmp_path / "my.py").rename(tmp_path / "sub" / "my.py")
    name, image, boxes = "sub/my.py:make_network", np.full((90, 120, 3), 99, np.uint8), [[9, 9, 60, 50]]
    done = run_command(*options, f"--config.network={name}", "--config.steps=3")
    assert done.returncode == 0, done.stderr
    fresh = init_variables(get_network(name).build(6), jax.random.key(0))["params"]["backbone"]
    _, variables, step = load_variables(tmp_path / "W", read_config(tmp_path / "W", network=name))
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["backbone"], fresh)
    done = run_command("convert-weights", "W", "w.safetensors", "--network", name)
    assert done.returncode == 0, done.stderr
    one, other = Detector.from_workdir("W", network=name), Detector.load("w.safetensors", network=name)
    for ours, theirs in zip(one.classify(image, boxes), other.classify(image, boxes), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    done = run_command(*options, f"--config.network={name}", "--config.momentum=0.8")
    assert "error: W was trained with another config: momentum was 0.9, is now 0.8; steps" in done.stderr
    done = run_command(*options, "--config.network=tiny")
    assert f"network was '{name}', is now 'tiny'" in done.stderr


def test_digests_of_partial_functions_are_those_of_other_processes(rng):
    """Else kept maps and features would never be found again."""
    backbones = (plain(rng) for _ in range(2))
    first, second = (detector_of(own.clone(function=functools.partial(own.function))) for own in backbones)
    assert repr(first) != repr(second)
    assert description(first) == description(second)


def test_a_file_of_a_function_keeps_its_statistics(rng):
    model = detector_of(of_nnx(rng))
    variables = init_variables(model, jax.random.key(0))
    arrays = canonical_arrays(variables["params"], roi_size=model.roi_size)
    config = {**get_config().to_dict(), "class_names": ["a", "b", "c"]}
    with mock.patch("frcnn_jax.workdir.build_model", return_value=model):
        _, again = assemble_detector(arrays, config, "w")
    jax.tree.map(np.testing.assert_array_equal, again, variables)


OWN_PARTS = """
import flax.linen as nn
from frcnn_jax import FastRCNN, RoIAlign


class Backbone(nn.Module):
    spatial_scale: float = 1 / 4
    depth: int = 50  # of a ResNet's name, but none of the package

    @nn.compact
    def __call__(self, images, image_size):
        return nn.Conv(8, (3, 3), strides=4)(images)


class Neck(nn.Module):
    @nn.compact
    def __call__(self, maps, image_size):
        return nn.Conv(8, (3, 3))(maps)


class Head(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, pooled, train=False):
        x, outputs = nn.Conv(1, (1, 1))(pooled), self.num_classes + 1
        x = x.reshape(*x.shape[:2], -1)
        return nn.Dense(outputs)(x), nn.Dense(4 * outputs)(x).reshape(*x.shape[:2], outputs, 4)


def make(num_classes: int) -> FastRCNN:
    return FastRCNN(Backbone(), Head(num_classes), RoIAlign(3, 1 / 4), neck=Neck())
"""


def test_parts_whose_layers_have_the_same_names(tmp_path):
    """As automatic names often are: a file lost all but one of them."""
    (tmp_path / "parts.py").write_text(OWN_PARTS)
    model = get_network(f"{tmp_path}/parts.py:make").build(2)
    assert model.roi_size == (3, 3)
    params, other = (init_variables(model, jax.random.key(seed))["params"] for seed in (0, 1))
    arrays = canonical_arrays(params, roi_size=model.roi_size)
    assert len(arrays) == len(jax.tree.leaves(params))
    assert {"backbone.Conv_0.weight", "neck.Conv_0.bias", "head.Conv_0.weight", "Dense_1.bias"} < arrays.keys()
    again = merge_weights(other, arrays, roi_size=model.roi_size, source="w")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(InputError, match=r"w: does not fit the network: .*extra layer1\.0\.conv1\.weight"):
        load_pretrained(other, fit_weights(RESNET, model, "w"), roi_size=model.roi_size, source="w")


RESNET = Weights({"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1))}, stride_in_1x1=True)


def test_heads_with_other_output_layers(tmp_path):
    """They train from weights of the backbone; what needs the output layers by their names says so."""
    (tmp_path / "parts.py").write_text(OWN_PARTS)
    name = f"{tmp_path}/parts.py:make"
    model = get_network(name).build(1)
    variables = jax.tree.map(np.asarray, init_variables(model, jax.random.key(0)))
    arrays = canonical_arrays(variables["params"], roi_size=model.roi_size)
    arrays = {key: array for key, array in arrays.items() if not key.startswith(("head.", "Dense"))}
    params = load_pretrained(variables["params"], arrays, roi_size=model.roi_size, source="w")
    stats = {"mean": np.zeros((2, 4)), "std": np.ones((2, 4))}
    assert keep_outputs(params, Weights(arrays), class_names=["cat"], **stats) == (params, [])
    save_model(tmp_path / "W", 1, variables)
    config = {**get_config().to_dict(), "network": name, "class_names": ["cat"]}
    (tmp_path / "W" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="head has the layers cls_score and bbox_pred, got Conv_0, Dense_0, Dense_1"):
        workdir_weights(tmp_path / "W", network=name)


PLAIN = """
import jax
import numpy as np
from frcnn_jax import FastRCNN, FullyConnectedHead, FunctionBackbone, RoIAlign


def features(params, images):
    return jax.image.resize(images, (*images.shape[:1], images.shape[1] // 8, images.shape[2] // 8, 3), "linear")


def make_network(num_classes: int) -> FastRCNN:
    backbone = FunctionBackbone(features, {"w": np.ones(2)}, spatial_scale=1 / 8, channels=3)
    return FastRCNN(backbone, FullyConnectedHead(num_classes, (8, 8)), RoIAlign((2, 2), 1 / 8))
"""
DOCS_LAST = "return nn.relu(nn.Conv(64, (3, 3))(x))"


def test_functions_of_other_kinds(tmp_path, monkeypatch):
    """One line each that names the function, and where its code raised, the line."""
    monkeypatch.chdir(tmp_path)
    annotated = "must be annotated as returning FastRCNN: def make_network\\(num_classes: int\\)"
    last = 1 + BLOCKS[0].splitlines().index(f"        {DOCS_LAST}")
    near = "the backbone must return .*near 0.125 times the image's, got"
    changes = {  # a change of the docs' file or of PLAIN, and the message
        "unannotated": (" -> FastRCNN:", ":", annotated),
        "stride": (
            "spatial_scale: float = 1 / 8",
            "spatial_scale: float = 1 / 2",
            r"near 0.5 .*got \(1, 24, 32, 64\) of",
        ),
        "rank": (DOCS_LAST, "return x.mean(3)", rf"{near} 3 axes \(1, 24, 32\)"),
        "nothing": (DOCS_LAST, "pass", f"{near} NoneType"),
        "two": (DOCS_LAST, "return x, x", f"{near} tuple"),
        "scaleless": ("spatial_scale: float = 1 / 8", "scale = 8", "line .* of scaleless.py raised AttributeError"),
        "headless": (
            "FullyConnectedHead(num_classes, features=(128, 128), std=None, dropout=0.0)",
            "None",
            "head must have .* num_cl",
        ),
        "classes": ("FullyConnectedHead(num_classes,", "FullyConnectedHead(7,", r"for 3 classes .* got \[\(1, 1, 8\)"),
        "pool": (
            "spatial_scale=backbone.spatial_scale",
            "spatial_scale=1 / 16",
            "pool's .* backbone's, 0.125, got 0.0625",
        ),
        "returns": ("return FastRCNN(", "FastRCNN(", "expected a FastRCNN, got NoneType"),
        "raises": (DOCS_LAST, "raise ValueError('no\\nmore')", f"line {last} of raises.py raised ValueError: no more"),
        "imports": (
            "import jax\n",
            "import jaxx\n",
            "line 2 of imports.py raised ModuleNotFoundError: No module named 'jaxx'",
        ),
        "opens": ("import jax\n", "open('x')\n", "line 2 of opens.py raised FileNotFoundError: .*'x'"),
        "syntax": ("import jax\n", "import\n", r"SyntaxError: .*syntax.py, line 2"),
        "arguments": (
            "make_network(num_classes: int)",
            "make_network()",
            r"TypeError: make_network\(\) takes 0 positional",
        ),
        "norm": ("mean=(127, 127, 127)", "mean=(127,)", "mean must be three finite numbers"),
        "f_params": ('{"w": np.ones(2)}', '{"w": 3}', "params must be floating-point, w is int32"),
        "f_raises": ('"linear")', '"no")', "line 8 of f_raises.py raised ValueError: .*no"),
        "f_pool": ("RoIAlign((2, 2), 1 / 8)", "RoIAlign((2, 2), 8)", "pool's .* backbone's, 0.125, got 8"),
        "f_scale": ("spatial_scale=1 / 8", "spatial_scale=1 / 16", "near 0.0625 times"),
    }
    for name, (old, new, text) in changes.items():
        code = (PLAIN if name.startswith("f_") else BLOCKS[0]).replace("model = make_network(num_classes=3)\n", "")
        assert old in code
        (tmp_path / f"{name}.py").write_text(code.replace(old, new))
        with pytest.raises(InputError, match=rf"^network {name}.py:make_network: .*{text}"):
            get_network(f"{name}.py:make_network").build(3)
    (tmp_path / "other.py").write_text("def make_network(num_classes: int) -> int:\n    raise SystemExit")
    (tmp_path / "importing.py").write_text("from raises import make_network")
    for network, text in (
        ("other.py:make_network", annotated),
        ("missing.py:make_network", "network missing.py:make_network: no such file missing.py"),
        ("no_such_module:make_network", "no module named 'no_such_module'"),
        ("imports:make_network", "line 2 of imports.py raised ModuleNotFoundError: No module named 'jaxx'"),
        ("importing:make_network", f"network importing:make_network: line {last} of raises.py raised ValueError"),
        ("stride.py:nothing", "stride.py has no function 'nothing'"),
        ("stride.py", "module:function or FILE.py:function, got 'stride.py'"),
        ("a b:c", "no module named 'a b'"),
        (":", "network must be module:function or FILE.py:function, got ':'"),
        (".stride:make_network", "network must be module:function or FILE.py:function, got"),
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
