"""ResNets, their pyramid and their heads beside PyTorch modules of the same definition, with random weights."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN, variable_shapes
from frcnn_jax.models.foreign_names import fold_batch_norm
from frcnn_jax.models.heads import FullyConnectedHead
from frcnn_jax.models.networks import NETWORKS, get_network
from frcnn_jax.models.parameters import flatten, unflatten
from frcnn_jax.models.pools import RoIAlign, with_pool
from frcnn_jax.models.resnet import BLOCKS, FPN, ResNet, ResNetHead
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import Weights, canonical_arrays, canonical_names, described, fit_weights, merge_weights


def random_variables(model, rng, scale=1.0):
    """Variables with kernels whose products keep their size, and biases that show wherever padding leaks in."""
    leaves = {
        path: (
            rng.normal(0, scale * (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
            if path.endswith("kernel")
            else rng.normal(0.1, 0.3, leaf.shape)
        ).astype(np.float32)
        for path, leaf in flatten(variable_shapes(model)["params"]).items()
    }
    stats = {"mean": np.zeros((model.num_classes + 1, 4), np.float32)}
    return {"params": unflatten(leaves), "box_stats": stats | {"std": stats["mean"] + 1}}


@pytest.mark.parametrize("backbone", [ResNet(18, 2), ResNet(50, 2, stride_in_1x1=True), FPN(18, 8)])
@pytest.mark.parametrize("size", [(65, 99), (96, 64)])
def test_padding_changes_no_result(backbone, size, rng):
    rows, columns = size
    image = np.zeros((1, 96, 128, 3), np.float32)
    image[:, :rows, :columns] = rng.normal(0, 1, (1, rows, columns, 3))
    sizes = np.array([size], np.int32)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image, sizes)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    apply = jax.jit(backbone.apply)
    padded, alone = jax.tree.leaves(apply(params, image, sizes)), apply(params, image[:, :rows, :columns], sizes)
    for got, expected in zip(padded, jax.tree.leaves(alone), strict=True):
        height, width = expected.shape[1:3]
        np.testing.assert_allclose(got[:, :height, :width], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert not got[:, height:].any()
        assert not got[:, :, width:].any()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "tiny", "pyramid"])
def test_padding_changes_no_prediction_of_an_interpolating_pool(name, rng):
    """RoIs at the border, whose samples lie between the last cell and the padding."""
    if name == "pyramid":
        backbone = FPN(18, 8)
        pool = RoIAlign((3, 3), backbone.spatial_scale)
        model = FastRCNN(backbone, FullyConnectedHead(2, (8, 8), std=None), pool)
    else:
        model = with_pool(get_network(name).build(2), "align")
        model = model.clone(head=FullyConnectedHead(2, (8, 8), std=None))
    variables = random_variables(model, rng)
    rows, columns = 74, 91
    image, size = np.zeros((1, 96, 128, 3), np.float32), np.array([[rows, columns]], np.int32)
    image[:, :rows, :columns] = rng.normal(0, 1, (1, rows, columns, 3))
    rois = np.array([[[60, 50, 90, 73], [0, 0, 90, 73], [80, 3, 90, 20], [3, 60, 40, 73]]], np.float32)
    predict = jax.jit(model.apply)
    padded = predict(variables, image, size, rois)
    for got, expected in zip(padded, predict(variables, image[:, :rows, :columns], size, rois), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_maps_have_the_strides_and_channels_of_each_stage():
    shapes = jax.eval_shape(
        lambda: FPN(50).init_with_output(jax.random.key(0), np.zeros((1, 64, 96, 3)), np.array([[64, 96]]))
    )[0]
    assert [level.shape[1:] for level in shapes] == [(16, 24, 256), (8, 12, 256), (4, 6, 256), (2, 3, 256)]
    maps = jax.eval_shape(
        lambda: ResNet(34, 4, pyramid=True).init_with_output(
            jax.random.key(0), np.zeros((1, 64, 96, 3)), np.array([[64, 96]])
        )
    )[0]
    assert [level.shape[1:] for level in maps] == [(16, 24, 64), (8, 12, 128), (4, 6, 256), (2, 3, 512)]


@pytest.mark.parametrize(
    ("depth", "layer", "variance"),
    [
        (50, "conv1", 2),
        (50, "conv2", 2),
        (50, "conv3", 0.02),
        (50, "downsample", 1),
        (18, "conv1", 2),
        (18, "conv2", 0.02),
    ],
)
def test_initial_residuals_are_small(depth, layer, variance):
    """Without batch normalisation the sums would grow from block to block."""
    backbone = ResNet(depth, 2)
    inputs = np.zeros((1, 32, 32, 3), np.float32), np.array([[32, 32]], np.int32)
    params = jax.jit(backbone.init)(jax.random.key(0), *inputs)["params"]
    kernel = np.asarray(params["layer2"]["0"][layer]["kernel"])
    assert kernel.var() * np.prod(kernel.shape[:3]) == pytest.approx(variance, rel=0.1)


def test_folded_batch_norm_by_hand():
    kernel, bias = fold_batch_norm(
        np.full((1, 2, 1, 1), 3.0),
        np.array([5.0]),
        gamma=np.array([2.0]),
        beta=np.array([7.0]),
        mean=np.array([1.0]),
        variance=np.array([3.0]),
        epsilon=1.0,
    )
    assert kernel.ravel().tolist() == [3, 3]  # 3 * 2 / sqrt(3 + 1)
    assert bias.tolist() == [11]  # (5 - 1) * 2 / 2 + 7


@pytest.mark.parametrize("changes", [{"depth": 51}, {"stages": 5}, {"stages": 0}])
def test_unknown_depths_and_stages(changes):
    with pytest.raises(InputError, match=r"depth must be one of 18, 34, 50, 101|stages must be 1 to 4"):
        ResNet(**changes)


# ---- Names of other programs, without PyTorch: each file is made from random weights of this library's


def unfolded(arrays, rng, names, ending="weight"):
    """Tensors with batch normalisation that folds into `arrays`; `names` returns those of a layer and of its norm."""
    tensors = {}
    for name in [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]:
        kernel, bias = arrays[f"{name}.weight"].astype(np.float64), arrays[f"{name}.bias"].astype(np.float64)
        conv, norm, (gamma, beta, mean, variance) = names(name)
        own = rng.uniform(0.5, 2, (3, len(bias)))
        factor = own[0] / np.sqrt(own[1] + 1e-5)
        tensors[f"{conv}.{ending}"] = (kernel / factor[:, None, None, None]).astype(np.float32)
        values = own[0], bias + own[2] * factor, own[2], own[1]
        tensors |= {
            f"{norm}.{kind}": value.astype(np.float32)
            for kind, value in zip((gamma, beta, mean, variance), values, strict=True)
        }
    return tensors


def small_arrays(rng):
    """Arrays with the names of all convolutions of a ResNet-50, but small."""
    shapes = variable_shapes(get_network("resnet50").build(2))["params"]
    names = [n for n in canonical_names(shapes) if n.startswith(("conv", "layer"))]
    return {name: rng.normal(size=(2, 3, 1, 1) if name.endswith("weight") else 2).astype(np.float32) for name in names}


TORCH_NORM = ("weight", "bias", "running_mean", "running_var")


def torchvision_names(layer):
    if layer.endswith("downsample"):
        return f"{layer}.0", f"{layer}.1", TORCH_NORM
    return layer, layer.replace("conv", "bn"), TORCH_NORM


def huggingface_names(layer):
    if layer == "conv1":
        own = "resnet.embedder.embedder"
    else:
        stage, block, conv = layer.split(".")
        part = "shortcut" if conv == "downsample" else f"layer.{int(conv[-1]) - 1}"
        own = f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{part}"
    return f"{own}.convolution", f"{own}.normalization", TORCH_NORM


def detectron_names(layer):
    own = layer.replace("downsample", "shortcut")
    if layer == "conv1":
        own = "stem.conv1"
    else:
        stage, rest = own.split(".", 1)
        own = f"res{int(stage[-1]) + 1}.{rest}"
    return f"backbone.bottom_up.{own}", f"backbone.bottom_up.{own}.norm", TORCH_NORM


FAMILIES = {
    "torchvision": (torchvision_names, {"fc.weight": (3, 4), "bn1.num_batches_tracked": ()}, "resnet50"),
    "huggingface": (huggingface_names, {"classifier.1.weight": (3, 4)}, "resnet50"),
    "detectron2": (detectron_names, {"pixel_mean": (3, 1, 1)}, "resnet50_caffe"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_other_programs(family, tmp_path, rng):
    names, others, network = FAMILIES[family]
    model, convolutions = get_network(network).build(2), small_arrays(rng)
    tensors = unfolded(convolutions, rng, names) | {n: np.zeros(s, np.float32) for n, s in others.items()}
    write_weights(tmp_path / "w.npz", tensors)
    found = fit_weights(read_weights(tmp_path / "w.npz"), model, "w")
    assert found.keys() == convolutions.keys()
    for name, array in convolutions.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_shared_prefix_is_dropped(tmp_path, rng):
    write_weights(tmp_path / "w.npz", {"module.backbone.conv1.weight": np.ones((2, 3, 7, 7), np.float32)})
    assert list(read_weights(tmp_path / "w.npz")) == ["conv1.weight"]


def test_the_backbone_of_a_larger_network_is_taken(tmp_path, rng):
    """What else is there is another program's; two networks leave a choice."""
    conv = np.ones((2, 3, 7, 7), np.float32)
    block = {"layer1.0.conv1.weight": np.ones((2, 2, 1, 1), np.float32), "conv1.weight": conv}
    larger = {f"model.backbone.{name}": array for name, array in block.items()} | {"model.neck.weight": conv}
    write_weights(tmp_path / "w.npz", larger)
    assert sorted(read_weights(tmp_path / "w.npz")) == ["conv1.weight", "layer1.0.conv1.weight"]
    two = {f"{prefix}.{name}": array for prefix in ("encoder_q", "encoder_k") for name, array in block.items()}
    write_weights(tmp_path / "w.npz", {**two, "queue": conv})
    with pytest.raises(InputError, match=r"w\.npz: it holds several networks, encoder_k\., encoder_q\."):
        read_weights(tmp_path / "w.npz")


def test_keras_names(tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    expected = small_arrays(rng)

    def names(layer):
        own = "conv1"
        if layer != "conv1":
            stage, block, conv = layer.split(".")
            number = 0 if conv == "downsample" else conv[-1]
            own = f"conv{int(stage[-1]) + 1}_block{int(block) + 1}_{number}"
        return f"{own}_conv", f"{own}_bn", ("gamma", "beta", "moving_mean", "moving_variance")

    with h5py.File(tmp_path / "w.h5", "w") as file:
        for name, array in unfolded(expected, rng, names, "kernel").items():
            layer, kind = name.split(".")
            file[f"{layer}/{layer}/{kind}:0"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        file["predictions/predictions/kernel:0"] = np.zeros((4, 3))
    found = read_weights(tmp_path / "w.h5")
    assert (found.pixels.order, found.stride_in_1x1) == ("BGR", True)
    for name, array in expected.items():  # its epsilon is 1.001e-5
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_imagenet_models_of_detectron(tmp_path, rng):
    arrays = {"conv1_w": rng.normal(size=(2, 3, 7, 7)), "res_conv1_bn_s": [2.0, 3], "res_conv1_bn_b": [4.0, 5]}
    arrays |= {"res2_0_branch2a_w": rng.normal(size=(2, 2, 1, 1)), "res2_0_branch2a_bn_s": [1.0, 2]}
    arrays |= {"res2_0_branch2a_bn_b": [6.0, 7], "res2_0_branch1_w": rng.normal(size=(8, 2, 1, 1))}
    arrays |= {"res2_0_branch1_bn_s": np.ones(8), "res2_0_branch1_bn_b": np.zeros(8), "fc1000_w": np.zeros((2, 2))}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"blobs": arrays, "model": "R-50"}))
    found = read_weights(tmp_path / "w.pkl")
    np.testing.assert_allclose(found["conv1.weight"], arrays["conv1_w"] * [[[[2]]], [[[3]]]], rtol=1e-6)
    assert found["layer1.0.conv1.bias"].tolist() == [6, 7]
    assert found["layer1.0.downsample.weight"].shape == (8, 2, 1, 1)
    assert found.stride_in_1x1
    assert found.pixels.order == "BGR"


def test_a_pickle_that_would_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"stem.conv1.weight": Evil()}}))
    with pytest.raises(InputError, match=r"w.pkl: its pickle asks for builtins.print.*nothing was executed"):
        read_weights(tmp_path / "w.pkl")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_weights_keep_their_description(suffix, tmp_path, rng):
    model = get_network("resnet50_caffe").build(2)
    arrays = described({"conv1.weight": np.ones((64, 3, 7, 7), np.float32)}, model)
    write_weights(tmp_path / f"w{suffix}", arrays)
    found = read_weights(tmp_path / f"w{suffix}")
    assert (found.pixels, found.stride_in_1x1) == (model.pixels, True)
    np.testing.assert_array_equal(found["conv1.weight"], arrays["conv1.weight"])


def backbone_arrays(depth, rng):
    shapes = jax.eval_shape(
        ResNet(depth).init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), np.array([[64, 64]])
    )
    return canonical_arrays(
        {"backbone": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["params"])}, roi_size=()
    )


def test_weights_that_do_not_fit(rng):
    arrays = Weights(backbone_arrays(50, rng), None, False)
    for network, text in (
        ("resnet101", "f: weights of a ResNet-50, but the network is a ResNet-101"),
        ("resnet34", "f: weights of a ResNet-50, but the network is a ResNet-34"),
        ("resnet50_caffe", "f: weights of a ResNet that strides in its 3x3 convolutions; use a network without _caffe"),
    ):
        with pytest.raises(InputError, match=text):
            fit_weights(arrays, get_network(network).build(2), "f")
    model = get_network("resnet50_fc").build(2)
    shapes, options = variable_shapes(model)["params"], {"roi_size": model.roi_size, "source": "f"}
    with pytest.raises(InputError, match=r"missing 38 of layer3 .layer3.0.conv1.bias, \.\.\.") as caught:
        merge_weights(shapes, {n.replace("layer3", "stage3"): a for n, a in arrays.items() if ".4" not in n}, **options)
    assert "nearest to layer3.0.conv1.bias is stage3.0.conv1.bias" in str(caught.value)
    assert len(str(caught.value)) < 600
    turned = dict(arrays) | {"conv1.weight": arrays["conv1.weight"].transpose(2, 3, 1, 0)}
    with pytest.raises(InputError, match=r"conv1.weight is \(7, 7, 3, 64\), not \(64, 3, 7, 7\) \(transposed\?\)"):
        merge_weights(shapes, turned, **options)


def test_a_backbone_alone_fills_any_network_of_its_depth(rng):
    arrays = backbone_arrays(50, rng)
    arrays = Weights({name: array + 1 for name, array in arrays.items()}, None, False)
    arrays["layer4.0.conv1.weight"] = np.ones((512, 1024, 1, 1), np.float32)
    for network in ("resnet50_fc",):
        model = get_network(network).build(2)
        params = merge_weights(
            variable_shapes(model)["params"], fit_weights(arrays, model, "f"), roi_size=model.roi_size, source="f"
        )
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(params["backbone"]))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("resnet")])
def test_every_residual_network_has_its_parts(name):
    model = get_network(name).build(20)
    depth = int(name[6:].split("_")[0])
    assert model.backbone.depth == depth
    assert model.backbone.stride_in_1x1 == name.endswith("_caffe") == (model.pixels.order == "BGR")
    assert model.roi_size == ((14, 14) if name in (f"resnet{depth}", f"resnet{depth}_caffe") else (7, 7))
    assert model.pool.spatial_scale == model.backbone.spatial_scale
    assert get_network(name).frozen == ("conv1", "layer1")
    assert depth in BLOCKS
    assert model.rounding_scale is None


def test_the_head_takes_rois_in_parts(rng):
    """Each RoI has the outputs that it has alone; four times the RoIs need no more memory, their inputs apart."""
    head = ResNetHead(2, depth=18)
    pooled = rng.normal(0, 1, (1, 37, 4, 4, 256)).astype(np.float32)
    variables = jax.jit(head.init)(jax.random.key(0), pooled)
    alone = [head.apply(variables, pooled[:, i : i + 1]) for i in range(37)]
    for got, expected in zip(head.apply(variables, pooled), zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(got, np.concatenate(expected, axis=1), atol=1e-5)
    _, found = head.apply(variables, pooled, mutable=["embeddings"])
    assert found["embeddings"]["layers"][0]["layer4"].shape == (1, 37, 512)

    def memory(rois):
        compiled = jax.jit(head.apply).lower(variables, jnp.ones((1, rois, 14, 14, 256))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(256) < memory(64) + 192 * 512 * 4 * 4


def test_pixels_are_adapted_where_no_padding_is_seen(rng):
    """A caffe network with torchvision's weights, its stride apart, has the same first features."""
    arrays = Weights(
        {
            "conv1.weight": rng.normal(size=(64, 3, 7, 7)).astype(np.float32),
            "conv1.bias": rng.normal(size=64).astype(np.float32),
        },
        get_network("resnet18").build(2).pixels,
    )
    image, maps = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8), []
    for network in ("resnet18", "resnet50_caffe"):
        model = get_network(network).build(2)
        found = fit_weights(arrays, model, "f")
        pixels = model.pixels(image).astype(np.float64)
        window = pixels[2:9, 3:10]
        maps.append(np.einsum("oihw,hwi->o", found["conv1.weight"], window) + found["conv1.bias"])
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-3)


# ---- Beside PyTorch, where the extra peers is installed


def random_torch(module, torch):
    """Fill a module with random weights whose activations keep their size, batch norm's statistics among them."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.ndim == 4:
            tensor.normal_(0, (1.5 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            tensor.uniform_(0.2, 0.6) if name.endswith("weight") else tensor.uniform_(-0.3, 0.3)
    return module.eval()


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_features_are_those_of_torchvision(depth, tmp_path, rng):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    peer = random_torch(getattr(torchvision.models, f"resnet{depth}")(), torch)
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    model = get_network(f"resnet{depth}").build(2)
    params = merge_weights(
        random_variables(model, rng)["params"],
        fit_weights(read_weights(tmp_path / "w.pth"), model, "w"),
        roi_size=model.roi_size,
        source="w",
    )
    image, size = rng.normal(0, 1, (1, 97, 130, 3)).astype(np.float32), np.array([[97, 130]], np.int32)
    with torch.no_grad():
        x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(torch.tensor(image.transpose(0, 3, 1, 2))))))
        maps = peer.layer3(peer.layer2(peer.layer1(x)))
        rois = torch.tensor([[0, 3.0, 4, 80, 90], [0, 50, 20, 130, 97]])
        pooled = torchvision.ops.roi_align(maps, rois, (14, 14), 1 / 16, 2, aligned=True)
        means = peer.layer4(pooled).mean((2, 3))
    variables = {"params": params, "box_stats": random_variables(model, rng)["box_stats"]}
    got = model.apply(variables, image, size, method=FastRCNN.features)
    expected = maps.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    inclusive = rois.numpy()[None, :, 1:] - [0, 0, 1, 1]
    _, sown = model.apply(variables, image, size, inclusive.astype(np.float32), mutable=["embeddings"])
    (layers,) = sown["embeddings"]["head"]["layers"]
    np.testing.assert_allclose(layers["layer4"][0], means, rtol=1e-4, atol=1e-4 * float(means.abs().max()))


def torch_fast_rcnn_fpn(torch, torchvision, classes):
    """Detectron2's Fast R-CNN with FPN in PyTorch, with its names: MSRA's ResNet-50, P2 to P5, two fc layers."""
    nn = torch.nn

    class Conv(nn.Conv2d):
        def __init__(self, *args, **options):
            super().__init__(*args, bias=False, **options)
            self.norm = nn.BatchNorm2d(self.out_channels)

        def forward(self, x):
            return self.norm(super().forward(x))

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1 = Conv(inputs, width, 1, stride=stride)
            self.conv2 = Conv(width, width, 3, padding=1)
            self.conv3 = Conv(width, 4 * width, 1)
            self.shortcut = Conv(inputs, 4 * width, 1, stride=stride) if inputs != 4 * width else None

        def forward(self, x):
            y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
            return (y + (x if self.shortcut is None else self.shortcut(x))).relu()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            bottom = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": Conv(3, 64, 7, stride=2, padding=3)})})
            inputs = 64
            for stage, count in enumerate(BLOCKS[50]):
                width = 64 * 2**stage
                blocks = [
                    Block(inputs if i == 0 else 4 * width, width, 2 if stage and i == 0 else 1) for i in range(count)
                ]
                bottom[f"res{stage + 2}"], inputs = nn.Sequential(*blocks), 4 * width
            self.backbone = nn.ModuleDict({"bottom_up": bottom})
            for level in range(2, 6):
                self.backbone[f"fpn_lateral{level}"] = nn.Conv2d(64 * 2**level, 256, 1)
                self.backbone[f"fpn_output{level}"] = nn.Conv2d(256, 256, 3, padding=1)
            fc = {"fc1": nn.Linear(256 * 49, 1024), "fc2": nn.Linear(1024, 1024)}
            outputs = {"cls_score": nn.Linear(1024, classes + 1), "bbox_pred": nn.Linear(1024, 4 * classes)}
            self.roi_heads = nn.ModuleDict({"box_head": nn.ModuleDict(fc), "box_predictor": nn.ModuleDict(outputs)})

        def forward(self, images, rois):
            x = self.backbone.bottom_up.stem.conv1(images).relu()
            x, stages = nn.functional.max_pool2d(x, 3, 2, 1), {}
            for level in range(2, 6):
                x = stages[level] = self.backbone.bottom_up[f"res{level}"](x)
            above, maps = None, {}
            for level in (5, 4, 3, 2):
                x = self.backbone[f"fpn_lateral{level}"](stages[level])
                above = x if above is None else x + nn.functional.interpolate(above, scale_factor=2, mode="nearest")
                maps[level] = self.backbone[f"fpn_output{level}"](above)
            sides = (rois[:, 2:] - rois[:, :2]).prod(1).sqrt()
            levels = torch.floor(4 + torch.log2(sides / 224 + 1e-8)).clamp(2, 5)
            pooled = torch.zeros(len(rois), 256, 7, 7)
            for level in range(2, 6):
                own = levels == level
                boxes = torch.cat([torch.zeros(int(own.sum()), 1), rois[own]], 1)
                pooled[own] = torchvision.ops.roi_align(maps[level], boxes, (7, 7), 0.5**level, 0, aligned=True)
            x = self.roi_heads.box_head.fc1(pooled.flatten(1)).relu()
            x = self.roi_heads.box_head.fc2(x).relu()
            outputs = self.roi_heads.box_predictor
            return maps, levels, outputs.cls_score(x), outputs.bbox_pred(x)

    return Model()


def test_a_fast_rcnn_with_fpn_of_detectron2(tmp_path, rng):
    """Maps, levels, logits and deltas from a checkpoint in Detectron2's format, on a whole image."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    classes = 5
    peer = random_torch(torch_fast_rcnn_fpn(torch, torchvision, classes), torch)
    for layer in (peer.roi_heads.box_head.fc1, peer.roi_heads.box_head.fc2, *peer.roi_heads.box_predictor.values()):
        torch.nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
    checkpoint = {"model": {name: t.numpy() for name, t in peer.state_dict().items()}, "__author__": "Detectron2"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(checkpoint))
    model = get_network("resnet50_fpn_caffe").build(classes)
    params = merge_weights(
        variable_shapes(model)["params"],
        fit_weights(read_weights(tmp_path / "model_final.pkl"), model, "w"),
        roi_size=model.roi_size,
        source="w",
    )
    image = rng.uniform(-120, 150, (1, 320, 448, 3)).astype(np.float32)
    corners = rng.uniform(0, 1, (60, 2, 2)) * [448, 320]
    sides = np.exp(rng.uniform(np.log(4), np.log(400), (60, 2)))
    rois = np.concatenate([corners[:, 0], np.minimum(corners[:, 0] + sides, [447, 319])], 1)
    rois = np.concatenate([rois, [[0, 0, 447, 319], [5, 6, 400, 300], [-300, -200, 500, 500]]])
    rois = rois[(rois[:, 2:] > rois[:, :2] + 1).all(1)].astype(np.float32)
    with torch.no_grad():
        maps, levels, logits, deltas = peer(torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(rois))
    assert set(levels.tolist()) == {2, 3, 4, 5}
    variables = {"params": params, "box_stats": random_variables(model, rng)["box_stats"]}
    size, inclusive = np.array([[320, 448]], np.int32), (rois - [0, 0, 1, 1]).astype(np.float32)[None]
    for got, level in zip(model.apply(variables, image, size, method=FastRCNN.features), range(2, 6), strict=True):
        expected = maps[level].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    got_logits, got_deltas = jax.jit(model.apply)(variables, image, size, inclusive)
    expected = logits.numpy()
    np.testing.assert_allclose(
        got_logits[0], np.roll(expected, 1, axis=1), rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )
    expected = deltas.numpy().reshape(-1, classes, 4) / [10, 10, 5, 5]
    np.testing.assert_allclose(got_deltas[0, :, 1:], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert not np.asarray(got_deltas[0, :, 0]).any()
