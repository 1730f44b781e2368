"""The backbones of this library in PyTorch, for `torch_program`, with batch norm folded as there.

Tensors have the canonical names of `frcnn_jax.models.weights`.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from frcnn_jax.models.backbones import LayerBackbone
from frcnn_jax.models.efficientnet import STAGES, EfficientNetLite
from frcnn_jax.models.layers import Conv, Norm
from frcnn_jax.models.resnet import BLOCKS, ResNet


class Block(nn.Module):
    """A residual block; see `frcnn_jax.models.resnet`."""

    def __init__(self, depth: int, inputs: int, width: int, stride: int, stride_in_1x1: bool):
        super().__init__()
        outputs = width if depth < 50 else 4 * width
        if depth < 50:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        else:
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = nn.Conv2d(inputs, width, 1, first)
            self.conv2 = nn.Conv2d(width, width, 3, second, 1)
            self.conv3 = nn.Conv2d(width, outputs, 1)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.conv1(x))
        y = self.conv2(y)
        if hasattr(self, "conv3"):
            y = self.conv3(functional.relu(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(depth: int, number: int, stride_in_1x1: bool) -> nn.Sequential:
    """Return a stage of a ResNet."""
    width, wide = 64 * 2 ** (number - 1), 1 if depth < 50 else 4
    inputs = 64 if number == 1 else wide * width // 2
    blocks = [
        Block(depth, inputs if i == 0 else wide * width, width, 2 if i == 0 and number > 1 else 1, stride_in_1x1)
        for i in range(BLOCKS[depth][number - 1])
    ]
    return nn.Sequential(*blocks)


class TorchResNet(nn.Module):
    """The convolutions of a ResNet to one of its stages."""

    def __init__(self, net: ResNet):
        super().__init__()
        self.conv1, self.stages = nn.Conv2d(3, 64, 7, 2, 3), net.stages
        for number in range(1, net.stages + 1):
            self.add_module(f"layer{number}", stage(net.depth, number, net.stride_in_1x1))

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 3, 2, 1)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return x


class TorchLite(nn.Module):
    """EfficientNet-Lite0 to one of its stages."""

    def __init__(self, net: EfficientNetLite):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2)
        self.blocks, inputs = nn.ModuleList(), 32
        for own in STAGES[: net.stage + 1]:
            blocks = nn.ModuleList()
            for j in range(own.blocks):
                stride, wide, layers = own.stride if j == 0 else 1, own.expansion * inputs, nn.ModuleDict()
                if own.expansion > 1:
                    layers["conv_pw"] = nn.Conv2d(inputs, wide, 1)
                layers["conv_dw"] = nn.Conv2d(wide, wide, own.kernel, stride, groups=wide)
                layers["conv_pwl" if own.expansion > 1 else "conv_pw"] = nn.Conv2d(wide, own.features, 1)
                blocks.append(layers)
                inputs = own.features
            self.blocks.append(blocks)

    def forward(self, x: Any) -> Any:
        blocks: Any
        x = functional.relu6(padded(self.conv_stem, x))
        for blocks in self.blocks:
            for j, layers in enumerate(blocks.children()):
                *before, last = layers.values()
                y = x
                for conv in before:
                    y = functional.relu6(padded(conv, y))
                x = last(y) + x if j else last(y)
        return x


def padded(conv: nn.Conv2d, x: Any) -> Any:
    """Apply a convolution with the padding of the published network."""
    total = conv.kernel_size[0] - conv.stride[0]
    before, after = total // 2, total - total // 2
    return conv(functional.pad(x, (before, after, before, after)) if total else x)


def torch_layers(net: LayerBackbone) -> nn.Sequential:
    """Return the PyTorch form of a sequence of layers."""
    layers: dict[str, nn.Module] = {}
    channels = 3
    for i, layer in enumerate(net.layers):
        if isinstance(layer, Conv):
            options: dict[str, Any] = {"padding": layer.padding, "groups": layer.groups}
            layers[layer.name] = nn.Conv2d(channels, layer.features, layer.kernel, layer.stride, **options)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            channels = layer.features
        elif isinstance(layer, Norm):
            layers[f"norm{i}"] = nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        else:
            layers[f"pool{i}"] = nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=True)
    return nn.Sequential(OrderedDict(layers))


def torch_backbone(net: Any) -> nn.Module:
    """Return the PyTorch form of a backbone; of a ResNet or EfficientNet in the faster memory format."""
    if isinstance(net, LayerBackbone):
        return torch_layers(net)
    module = TorchResNet(net) if isinstance(net, ResNet) else TorchLite(net)
    return module.to(memory_format=torch.channels_last)
