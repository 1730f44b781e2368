"""The table of networks: S, M and L of the paper, S in AlexNet's order, a tiny one, residual ones; and users' own.

To add a network, add a row to `NETWORKS`; tests/models/test_fast_rcnn.py then checks that padding changes none of its
results. Another kind of backbone or head needs no row: `FastRCNN` takes any, and `get_network` any function that
returns one.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from frcnn_jax.errors import InputError
from frcnn_jax.models.backbones import Layer, LayerBackbone
from frcnn_jax.models.efficientnet import EfficientNetLite, LiteNeck
from frcnn_jax.models.fast_rcnn import FastRCNN, check_model
from frcnn_jax.models.heads import FullyConnectedHead, check_two_layers
from frcnn_jax.models.layers import Conv, Norm, Pool
from frcnn_jax.models.pixels import CAFFE_MEANS, CAFFE_RESNET, LITE, TORCHVISION, PixelNorm
from frcnn_jax.models.pools import RoIAlign, RoIPool
from frcnn_jax.models.resnet import BLOCKS, FPN, ResNet, ResNetHead


class Network(NamedTuple):
    """A row of `NETWORKS`, from which `build` makes a `FastRCNN`.

    Attributes:
        layers: Layers of the backbone.
        frozen: Names of layers that training does not change.
        roi_size: Rows and columns of bins.
        fc: Widths of fc6 and fc7.
        spatial_scale: Feature-map cells per pixel.
        pixels: How images are normalised.
        fc_std: Standard deviation of the initial fc6 and fc7 kernels; None for He initialisation.
        dropout: Fraction of activations dropped after fc6 and fc7 in training.
    """

    layers: tuple[Layer, ...]
    frozen: tuple[str, ...]
    roi_size: tuple[int, int]
    fc: tuple[int, int]
    spatial_scale: float = 1 / 16
    pixels: PixelNorm = PixelNorm()
    fc_std: float | None = 0.005
    dropout: float = 0.5

    def build(
        self,
        num_classes: int,
        *,
        dtype: Any = jnp.float32,
        fc_ranks: Sequence[int] = (),
        classifier: str = "softmax",
    ) -> FastRCNN:
        """Return the network for K classes.

        Args:
            num_classes: K.
            dtype: Type of the computation; parameters stay float32.
            fc_ranks: Ranks of fc6 and fc7 factored by truncated SVD, 0 for a full layer; both are full if empty.
            classifier: "softmax" or "svm"; see `FastRCNN`.

        Raises:
            InputError: `num_classes` is below 1, `fc_ranks` are not two, or the classifier is unknown.
        """
        model = FastRCNN(
            LayerBackbone(self.layers, self.spatial_scale, dtype),
            FullyConnectedHead(num_classes, self.fc, std=self.fc_std, dropout=self.dropout, dtype=dtype),
            RoIPool(self.roi_size, self.spatial_scale),
            self.pixels,
        )
        return _with_options(model, fc_ranks, classifier)


class FunctionNetwork(NamedTuple):
    """A network that a function makes.

    Attributes:
        make: Returns the network for K classes; given `dtype`, the type of the computation, if it takes one.
        frozen: Patterns (`models.parameters`) of the parameters that training does not change.
        name: Of a user's function, whose result is then checked.
    """

    make: Callable[..., FastRCNN]
    frozen: tuple[str, ...] = ()
    name: str = ""

    def build(
        self,
        num_classes: int,
        *,
        dtype: Any = jnp.float32,
        fc_ranks: Sequence[int] = (),
        classifier: str = "softmax",
    ) -> FastRCNN:
        """Return the network for K classes; see `Network.build`.

        Raises:
            InputError: As there, or the function returns something else than a network that fits together.
        """
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {num_classes}")
        takes_type = "dtype" in inspect.signature(self.make).parameters
        if not takes_type and dtype != jnp.float32:
            raise InputError(f"{self.name} computes in float32; for {dtype} its function must take dtype")
        options = {"dtype": dtype} if takes_type else {}
        if not self.name:
            return _with_options(self.make(num_classes, **options), fc_ranks, classifier)
        with _code_of(self.name, self.make.__module__):
            model = self.make(num_classes, **options)
            check_model(model, num_classes)
        return _with_options(model, fc_ranks, classifier)


AnyNetwork = Network | FunctionNetwork


def _with_options(model: FastRCNN, fc_ranks: Sequence[int], classifier: str) -> FastRCNN:
    if fc_ranks:
        check_two_layers(model.head)
        model = model.clone(head=model.head.clone(ranks=tuple(fc_ranks)))
    return model.clone(classifier=classifier)


def _blocks(*blocks: tuple[int, int]) -> tuple[Layer, ...]:
    """Return VGG's layers: blocks of (depth, features) 3x3 convolutions, with a 2/2 pool between blocks."""
    layers: list[Layer] = []
    for i, (depth, features) in enumerate(blocks, 1):
        layers += [Pool(2, 2)] if i > 1 else []
        layers += [Conv(f"conv{i}_{j}", features, 3, padding=1) for j in range(1, depth + 1)]
    return tuple(layers)


def _alexnet(*, pool_first: bool) -> tuple[Layer, ...]:
    between: tuple[Layer, ...] = (Pool(3, 2, 1), Norm(alpha=1e-4, k=1.0))
    between = between if pool_first else between[::-1]
    return (
        Conv("conv1", 96, 11, stride=4, padding=5),
        *between,
        Conv("conv2", 256, 5, padding=2, groups=2),
        *between,
        Conv("conv3", 384, 3, padding=1),
        Conv("conv4", 384, 3, padding=1, groups=2),
        Conv("conv5", 256, 3, padding=1, groups=2),
    )


def _resnet(num_classes: int, dtype: Any, *, depth: int, caffe: bool, fc: bool) -> FastRCNN:
    backbone = ResNet(depth, stride_in_1x1=caffe, dtype=dtype)
    if fc:
        head: Any = FullyConnectedHead(num_classes, (1024, 1024), std=None, dropout=0.0, dtype=dtype, reduce=256)
    else:
        head = ResNetHead(num_classes, depth, caffe, dtype)
    pool = RoIAlign((7, 7) if fc else (14, 14), backbone.spatial_scale)
    return FastRCNN(backbone, head, pool, CAFFE_RESNET if caffe else TORCHVISION)


def _resnet_fpn(num_classes: int, dtype: Any, *, depth: int, caffe: bool) -> FastRCNN:
    backbone = FPN(depth, stride_in_1x1=caffe, dtype=dtype)
    head = FullyConnectedHead(num_classes, (1024, 1024), std=None, dropout=0.0, dtype=dtype)
    pool = RoIAlign((7, 7), backbone.spatial_scale, sampling_ratio=0)
    return FastRCNN(backbone, head, pool, CAFFE_RESNET if caffe else TORCHVISION)


def _lite0(num_classes: int, dtype: Any) -> FastRCNN:
    backbone = EfficientNetLite(dtype=dtype)
    head = FullyConnectedHead(num_classes, (1024, 1024), std=None, dtype=dtype)
    return FastRCNN(backbone, head, RoIAlign((7, 7), backbone.spatial_scale), LITE)


def _lite0_dilated(num_classes: int, dtype: Any) -> FastRCNN:
    backbone = EfficientNetLite(dtype=dtype)
    head = FullyConnectedHead(num_classes, (512, 512), std=None, dtype=dtype, reduce=96)
    pool = RoIAlign((7, 7), backbone.spatial_scale, shift=7.5)
    return FastRCNN(backbone, head, pool, LITE, neck=LiteNeck(dtype))


def _residual_networks() -> dict[str, FunctionNetwork]:
    """Return ResNets on C4 with stage 4 as head, or `_fc` with two small fully connected layers, and on FPN.

    Names that end in `_caffe` are for weights of Caffe's kind, as Detectron2's MSRA models: BGR pixels, stride in the
    first 1x1 convolution. The others are for torchvision's and timm's.
    """
    frozen, rows = ("conv1", "layer1"), {}
    for depth in BLOCKS:
        for caffe in (False, True) if depth >= 50 else (False,):
            ending = "_caffe" if caffe else ""
            makers: dict[str, Callable[..., FastRCNN]] = {
                "": partial(_resnet, fc=False),
                "_fc": partial(_resnet, fc=True),
            }
            if depth >= 50:
                makers["_fpn"] = _resnet_fpn
            for kind, make in makers.items():
                maker = partial(make, depth=depth, caffe=caffe)
                rows[f"resnet{depth}{kind}{ending}"] = FunctionNetwork(maker, frozen)
    return rows


LAYER_NETWORKS = {
    # S: CaffeNet
    "caffenet": Network(_alexnet(pool_first=True), ("conv1",), (6, 6), (4096, 4096)),
    # S in AlexNet's order: normalise, then pool
    "alexnet": Network(_alexnet(pool_first=False), ("conv1",), (6, 6), (4096, 4096)),
    # M: VGG_CNN_M_1024
    "vgg_cnn_m_1024": Network(
        (
            Conv("conv1", 96, 7, stride=2),
            Norm(alpha=5e-4, k=2.0),
            Pool(3, 2),
            Conv("conv2", 256, 5, stride=2, padding=1),
            Norm(alpha=5e-4, k=2.0),
            Pool(3, 2),
            *(Conv(f"conv{i}", 512, 3, padding=1) for i in (3, 4, 5)),
        ),
        ("conv1",),
        (6, 6),
        (4096, 1024),
    ),
    # L: VGG16
    "vgg16": Network(
        _blocks((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2"),
        (7, 7),
        (4096, 4096),
    ),
    # for the synthetic data set: trains from random weights in minutes on a CPU
    "tiny": Network(
        _blocks((1, 16), (2, 32), (2, 64)),
        (),
        (6, 6),
        (128, 128),
        spatial_scale=1 / 4,
        pixels=PixelNorm("BGR", tuple(CAFFE_MEANS.tolist()), (64.0, 64.0, 64.0)),
        fc_std=None,
        dropout=0.0,
    ),
}
_LITE0_FROZEN = ("conv_stem", "blocks.0.*", "blocks.1.*")
NETWORKS: dict[str, AnyNetwork] = {
    **LAYER_NETWORKS,
    **_residual_networks(),
    "efficientnet_lite0": FunctionNetwork(_lite0, _LITE0_FROZEN),
    "efficientnet_lite0_dilated": FunctionNetwork(_lite0_dilated, _LITE0_FROZEN),
}


CHOICES = (
    f"one of {', '.join(LAYER_NETWORKS)}, efficientnet_lite0, resnet18, 34, 50, 101 (_fc, _fpn, _caffe) or "
    "module:function or FILE.py:function"
)


def get_network(name: str) -> AnyNetwork:
    """Return the row `name` of `NETWORKS`, or the network of a function, "module:function" or "FILE.py:function".

    The function takes the number of classes K and, if it likes, `dtype`. The annotation of what it returns must be
    `FastRCNN`: nothing else is called. Modules are found as by `import`, and in the current folder.

    Raises:
        InputError: There is no such row, module or function; the message lists the choices.
    """
    if is_custom(name):
        return FunctionNetwork(_named_function(name), name=name)
    if name not in NETWORKS:
        raise InputError(f"network must be {CHOICES}, got {name!r}")
    return NETWORKS[name]


def is_custom(name: str) -> bool:
    """Whether a name is that of a function, and so of code to import, and not a row of `NETWORKS`."""
    return ":" in name


def _named_function(name: str) -> Callable[..., FastRCNN]:
    module_name, _, function_name = name.rpartition(":")
    function = getattr(_module(module_name, name), function_name, None)
    if not callable(function):
        raise InputError(f"network {name}: {module_name} has no function {function_name!r}")
    try:
        returned = typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        returned = None
    if returned is not FastRCNN:
        raise InputError(
            f"network {name}: the function must be annotated as returning FastRCNN: "
            f"def {function_name}(num_classes: int) -> FastRCNN"
        )
    return function


def _module(module_name: str, name: str) -> Any:
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise InputError(f"network {name}: no such file {path}")
        spec = importlib.util.spec_from_file_location(f"frcnn_jax_network_{path.stem}", path)
        assert spec
        assert spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        with _code_of(name, spec.name):
            spec.loader.exec_module(module)
        return module
    if not all(module_name.split(".")):
        raise InputError(f"network must be module:function or FILE.py:function, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    with _code_of(name, module_name):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if f"{module_name}.".startswith(f"{error.name}."):
                raise InputError(f"no module named {error.name!r}") from None
            raise


@contextlib.contextmanager
def _code_of(name: str, module: str) -> Iterator[None]:
    """Turn whatever a user's code raises into an InputError that names the network and the line of its module."""
    try:
        yield
    except InputError as error:
        raise InputError(f"network {name}: {error}") from error
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        own = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_globals.get("__name__") == module]
        where = f"line {own[-1][1]} of {Path(own[-1][0]).name} raised " if own else ""
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"network {name}: {where}{type(error).__name__}: {reason}") from error
