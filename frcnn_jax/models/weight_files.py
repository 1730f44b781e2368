"""Weight files of other programs, read safely, as arrays by canonical name.

Canonical are Caffe's layouts: `<layer>.weight`, OIHW for convolutions and (outputs, inputs) for fc layers, fc6's inputs
in C, H, W order; `<layer>.bias`; for BGR images of 0 to 255 less `pipeline.PIXEL_MEANS`. Layers are conv1 and so on, or
conv1_1, as in `models.NETWORKS`, fc6, fc7, cls_score and bbox_pred, whose rows are (class, coordinate).

Nothing in a file is executed: .npz without pickle, .pth through an unpickler that knows tensors only.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_npz, write_whole

Arrays = dict[str, np.ndarray]

_OUR_MEANS = np.array([102.9801, 115.9465, 122.7717])  # BGR
_VGG_CONVOLUTIONS = [f"conv{i}_{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1)]
_TORCHVISION = dict(
    zip((f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), _VGG_CONVOLUTIONS, strict=True)
) | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": None}  # the last: ImageNet's classes
_KERAS = {f"block{name[4]}_conv{name[6]}": name for name in _VGG_CONVOLUTIONS} | {"fc1": "fc6", "fc2": "fc7"}


_TORCH_VGG16 = "import torch, torchvision as t; torch.save(t.models.vgg16(weights='DEFAULT').state_dict(), 'vgg16.pth')"
WHERE = {  # by network: which ImageNet weights there are, as text
    "vgg16": "VGG_ILSVRC_16_layers.caffemodel (www.robots.ox.ac.uk/~vgg/research/very_deep), or torchvision's: "
    f'python -c "{_TORCH_VGG16}"',
    "caffenet": "bvlc_reference_caffenet.caffemodel (dl.caffe.berkeleyvision.org)",
    "vgg_cnn_m_1024": "VGG_CNN_M_1024.caffemodel (www.robots.ox.ac.uk/~vgg/software/deep_eval)",
    "alexnet": "bvlc_alexnet.caffemodel (dl.caffe.berkeleyvision.org)",
}


def read_weights(path: Path) -> Arrays:
    """The canonical arrays of a .npz, .safetensors, .caffemodel, .pth or .h5 file.

    .npz and .safetensors hold canonical names, or torchvision's of VGG16, as .pth does; .h5 holds Keras's of VGG16.
    Their first layer is changed to take our BGR pixels (exactly, but for the image's border: they pad with their mean
    colour, we with ours, less than one of 255 grey levels apart). ImageNet's last layer is left out.

    Raises:
        InputError: no such file, of another kind, broken, or that would run code; or the package for it is missing.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise InputError(f"{path}: weights are read from {', '.join(_READERS)} files")
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        arrays = _READERS[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # the readers' own, of many kinds: the file is not what its name says, or cut short
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file of plain arrays ({reason})") from None
    if "features.0.weight" in arrays:
        return _from_torchvision(arrays, path)
    return arrays


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A .npz or .safetensors file of the arrays. InputError for another ending."""
    if path.suffix == ".npz":
        write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    elif path.suffix == ".safetensors":
        content = _package("safetensors.numpy").save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        write_whole(path, lambda file: file.write(content))
    else:
        raise InputError(f"{path}: weights are written to .npz or .safetensors files")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("google", "protobuf")
        raise InputError(f"this file needs the package {package}: pip install 'frcnn_jax[weights]'") from None


def _read_safetensors(path: Path) -> Arrays:
    return dict(_package("safetensors.numpy").load_file(path))


_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
}


class _TensorUnpickler(pickle.Unpickler):
    """Of a torch state dict: ordered dictionaries of tensors; any other global is refused."""

    def __init__(self, file: io.BytesIO, storage: Callable[[str], bytes]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise InputError(f"its pickle asks for {module}.{name}, which is no tensor; nothing of it was run")

    def persistent_load(self, identity: Any) -> np.ndarray:
        _, dtype, key, _, _ = identity
        return np.frombuffer(self._storage(key), dtype)

    @staticmethod
    def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset < 0 or min(stride, default=0) < 0 or (0 not in size and reach >= len(storage)):
            raise InputError("a tensor reaches beyond its storage")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _read_pth(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a .pth file of torch 1.6 or later, or cut short")
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        unpickler = _TensorUnpickler(io.BytesIO(archive.read(pickled)), lambda key: archive.read(f"{folder}data/{key}"))
        try:
            state = unpickler.load()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(array, np.ndarray) for array in state.values()):
        raise InputError(f"{path}: not a state dict, tensors by name")
    return dict(state)


def _from_torchvision(arrays: Arrays, path: Path) -> Arrays:
    """RGB of 0 to 1, less (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)."""
    named = _renamed(arrays, _TORCHVISION, path)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rgb = _OUR_MEANS[::-1]
    return _for_our_pixels(
        named, order=[2, 1, 0], factor=(1 / (255 * std))[::-1], shift=((rgb / 255 - mean) / std)[::-1]
    )


def _read_h5(path: Path) -> Arrays:
    """Keras's VGG16: BGR of 0 to 255 less (103.939, 116.779, 123.68), kernels HWIO, fc6's inputs in H, W, C order."""
    arrays: Arrays = {}
    with _package("h5py").File(path, "r") as file:
        groups = file.get("model_weights", file)

        def collect(name: str, item: Any) -> None:
            if hasattr(item, "shape"):
                arrays[f"{name.split('/')[0]}.{'bias' if item.ndim == 1 else 'weight'}"] = item[()]

        groups.visititems(collect)
    arrays = _renamed({k: v for k, v in arrays.items() if not k.startswith("predictions.")}, _KERAS, path)
    for name, array in arrays.items():
        if array.ndim == 4:
            arrays[name] = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            arrays[name] = array.T
    if "fc6.weight" in arrays:
        weight = arrays["fc6.weight"].reshape(-1, 7, 7, 512)
        arrays["fc6.weight"] = weight.transpose(0, 3, 1, 2).reshape(len(weight), -1)
    return _for_our_pixels(arrays, order=[0, 1, 2], factor=np.ones(3), shift=_OUR_MEANS - [103.939, 116.779, 123.68])


def _renamed(arrays: Arrays, names: Mapping[str, str | None], path: Path) -> Arrays:
    """Tensors `<layer>.<kind>` under canonical names; a layer named None is left out."""
    unknown = sorted(name for name in arrays if name.rpartition(".")[0] not in names)
    if unknown:
        raise InputError(f"{path}: these tensors are not VGG16's: {', '.join(unknown)}")
    renamed = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        if names[layer]:
            renamed[f"{names[layer]}.{kind}"] = array
    return renamed


def _for_our_pixels(arrays: Arrays, *, order: list[int], factor: np.ndarray, shift: np.ndarray) -> Arrays:
    """conv1_1 for our BGR pixels x, where the file's takes the channels `order` of x * factor + shift."""
    if not {"conv1_1.weight", "conv1_1.bias"} <= set(arrays):
        return arrays  # what is missing is said when it is merged
    weight = arrays["conv1_1.weight"][:, order].astype(np.float64)
    bias = arrays["conv1_1.bias"] + (weight.sum(axis=(2, 3)) * shift).sum(axis=1)
    weight = weight * factor[:, None, None]
    return arrays | {"conv1_1.weight": weight.astype(np.float32), "conv1_1.bias": bias.astype(np.float32)}


def _caffe_net() -> Any:
    """The message class of a minimal schema of Caffe's NetParameter: layers by name with their blobs, of both kinds."""
    descriptor, pool, factory = (
        _package(f"google.protobuf.{name}") for name in ("descriptor_pb2", "descriptor_pool", "message_factory")
    )
    field = descriptor.FieldDescriptorProto
    optional, repeated = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    schema: dict[str, list[tuple[str, int, int, Any]]] = {
        "BlobShape": [("dim", 1, repeated, field.TYPE_INT64)],
        "BlobProto": [
            *(
                (name, i, optional, field.TYPE_INT32)
                for i, name in enumerate(("num", "channels", "height", "width"), 1)
            ),
            ("data", 5, repeated, field.TYPE_FLOAT),
            ("shape", 7, optional, "BlobShape"),
            ("double_data", 8, repeated, field.TYPE_DOUBLE),
        ],
        "V1LayerParameter": [("name", 4, optional, field.TYPE_STRING), ("blobs", 6, repeated, "BlobProto")],
        "LayerParameter": [("name", 1, optional, field.TYPE_STRING), ("blobs", 7, repeated, "BlobProto")],
        "NetParameter": [("layers", 2, repeated, "V1LayerParameter"), ("layer", 100, repeated, "LayerParameter")],
    }
    file = descriptor.FileDescriptorProto(name="frcnn_jax_caffe.proto", package="frcnn_jax_caffe", syntax="proto2")
    for message, fields in schema.items():
        added = file.message_type.add(name=message)
        for name, number, label, kind in fields:
            one = added.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                one.type, one.type_name = field.TYPE_MESSAGE, f".frcnn_jax_caffe.{kind}"
            else:
                one.type = kind
                one.options.packed = label == repeated
    names = pool.DescriptorPool()
    names.Add(file)
    return factory.GetMessageClass(names.FindMessageTypeByName("frcnn_jax_caffe.NetParameter"))


def _read_caffemodel(path: Path) -> Arrays:
    """Layers with blobs; the ImageNet classifier fc8 is left out. Files of trained Fast R-CNNs hold cls_score and
    bbox_pred, the latter for targets that are not normalised."""
    net = _caffe_net().FromString(path.read_bytes())
    arrays: Arrays = {}
    for layer in [*net.layers, *net.layer]:
        if layer.name == "fc8":
            continue
        for blob, kind in zip(layer.blobs, ("weight", "bias"), strict=False):
            shape = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
            array = np.array(blob.data or blob.double_data, np.float32).reshape(shape)
            if kind == "bias":
                array = array.reshape(-1)
            elif array.ndim == 4 and array.shape[:2] == (1, 1):  # how old files hold a fc layer's matrix
                array = array[0, 0]
            arrays[f"{layer.name}.{kind}"] = array
    if not arrays:
        raise InputError(f"{path}: not a .caffemodel: no layer with weights in it")
    return arrays


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": read_npz,
    ".safetensors": _read_safetensors,
    ".caffemodel": _read_caffemodel,
    ".pth": _read_pth,
    ".h5": _read_h5,
}
