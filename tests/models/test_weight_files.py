import contextlib
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_weights import assert_same_network, random_arrays

from frcnn_jax import files
from frcnn_jax.errors import InputError
from frcnn_jax.models.pixels import CAFFE_MEANS
from frcnn_jax.models.weight_files import read_weights, write_weights

# ---- Caffe: the wire format written by hand


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(array, old):
    data = message(5, array.astype("<f4").tobytes())
    if old:  # num, channels, height, width
        sizes = [1] * (4 - array.ndim) + list(array.shape)
        return b"".join(varint(i << 3) + varint(n) for i, n in enumerate(sizes, 1)) + data
    return message(7, message(1, b"".join(map(varint, array.shape)))) + data


def caffemodel(arrays, old):
    name_of, blobs_of, layers_of = (4, 6, 2) if old else (1, 7, 100)
    out = message(1, b"a net")  # fields that are skipped, one of each wire type
    out += varint(5 << 3) + varint(300) + varint(6 << 3 | 5) + b"1234" + varint(7 << 3 | 1) + b"12345678"
    for layer in dict.fromkeys(name.split(".")[0] for name in arrays):
        blobs = b"".join(message(blobs_of, blob(arrays[f"{layer}.{kind}"], old)) for kind in ("weight", "bias"))
        out += message(layers_of, message(name_of, layer.encode()) + blobs)
    return out + message(layers_of, message(name_of, b"relu"))


@pytest.mark.parametrize("old", [True, False])
def test_a_trained_caffemodel_is_read_completely(old, tmp_path, rng):
    arrays = random_arrays(rng)
    imagenet = {"fc8.weight": np.ones((2, 6)), "fc8.bias": np.ones(2)}
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(arrays | imagenet, old))
    read = read_weights(tmp_path / "w.caffemodel")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    assert_same_network(read, arrays, rng)


@pytest.mark.parametrize("count", [127, 128, 300])  # of one and of two digits
def test_blobs_of_doubles_and_of_single_floats(count, tmp_path):
    dims = message(7, message(1, varint(1) + varint(count)))
    values = np.arange(count) / 3
    doubles = message(8, values.astype("<f8").tobytes())
    singles = b"".join(varint(5 << 3 | 5) + value.tobytes() for value in values.astype("<f4"))  # not packed
    net = message(100, message(1, b"fc6") + message(7, dims + doubles) + message(7, dims + singles))
    (tmp_path / "w.caffemodel").write_bytes(net)
    read = read_weights(tmp_path / "w.caffemodel")
    np.testing.assert_array_equal(read["fc6.weight"], values[None].astype(np.float32))
    np.testing.assert_array_equal(read["fc6.bias"], values.astype(np.float32))


def test_a_truncated_caffemodel_is_refused(tmp_path, rng):
    """At every byte of its first layers; a cut between two layers leaves a file of fewer layers."""
    whole, path = caffemodel(random_arrays(rng), False), tmp_path / "w.caffemodel"
    for length in range(1000):
        path.write_bytes(whole[:length])
        try:
            assert set(read_weights(path)) <= {f"conv1_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
        except InputError as error:
            assert str(error).startswith(f"{path}: not a ")  # noqa: PT017
        else:
            assert whole[length : length + 2] == varint(100 << 3 | 2)


@given(st.binary(max_size=60))
def test_any_bytes_are_weights_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("c") / "w.caffemodel"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        read_weights(path)


# ---- torch: a state dict as torch writes it, without torch

CONVOLUTIONS = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)] + [
    (512, 512)
] * 5
PLACES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def save_pth(path, arrays, monkeypatch, extra=None, old=False):
    """Write the zip file of torch 1.6 and later, or the old format: five pickles, then the storages."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2, torch._utils = _rebuild_tensor_v2, utils
    for name in ("FloatStorage", "DoubleStorage", "HalfStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    kinds = {"f4": torch.FloatStorage, "f8": torch.DoubleStorage, "f2": torch.HalfStorage, "i8": torch.LongStorage}

    class Storage:
        def __init__(self, key, array):
            self.key, self.array = key, array

    class Tensor:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            array = self.array
            whole = array if array.base is None else array.base
            offset = (array.ctypes.data - whole.ctypes.data) // array.itemsize
            strides = tuple(stride // array.itemsize for stride in array.strides)
            storage = Storage(self.key, whole)
            return _rebuild_tensor_v2, (storage, offset, array.shape, strides, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                files[item.key] = item.array
                identity = "storage", kinds[item.array.dtype.str[1:]], item.key, "cpu", item.array.size
                return (*identity, None) if old else identity
            return None

    files = {}
    state = OrderedDict((name, Tensor(str(i), array)) for i, (name, array) in enumerate(arrays.items()))
    state.update(extra or {})
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(state)
    if old:
        header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
        parts = [*(pickle.dumps(item, 2) for item in header), pickled.getvalue(), pickle.dumps(list(files), 2)]
        for array in files.values():
            parts += [struct.pack("<q", array.size), array.tobytes()]
        path.write_bytes(b"".join(parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vgg/data.pkl", pickled.getvalue())
        for key, data in files.items():
            archive.writestr(f"vgg/data/{key}", data.tobytes())


def torchvision_arrays(rng, dense=False):
    arrays = {}
    for place, (inputs, outputs) in zip(PLACES, CONVOLUTIONS, strict=True):
        arrays[f"features.{place}.weight"] = rng.normal(0, 0.1, (outputs, inputs, 3, 3)).astype(np.float32)
        arrays[f"features.{place}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    for layer, shape in {"classifier.0": (3, 25088), "classifier.3": (4, 3), "classifier.6": (5, 4)}.items():
        if dense:
            arrays[f"{layer}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
            arrays[f"{layer}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    return arrays


def first_convolution(pixels, weight, bias):
    """Without padding, OIHW: `(H, W, 3)` -> `(O, H - 2, W - 2)`."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.float64), (3, 3), axis=(0, 1))
    return np.einsum("hwcij,ocij->ohw", windows, weight) + bias[:, None, None]


def assert_takes_our_pixels(read, theirs, weight, bias, rng):
    """conv1_1 as read, on our BGR pixels, against the foreign one on `theirs(rgb)`."""
    rgb = rng.integers(0, 256, (8, 9, 3)).astype(np.float64)
    ours = rgb[..., ::-1] - CAFFE_MEANS
    expected = first_convolution(theirs(rgb), weight, bias)
    got = first_convolution(ours, read["conv1_1.weight"], read["conv1_1.bias"])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def imagenet_rgb(rgb):
    return (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_vgg16(suffix, tmp_path, monkeypatch, rng):
    arrays, path = torchvision_arrays(rng, dense=True), tmp_path / f"vgg16{suffix}"
    if suffix == ".pth":
        save_pth(path, arrays, monkeypatch)
    else:
        write_weights(path, arrays)
    read = read_weights(path)
    assert len(read) == 2 * 15
    np.testing.assert_array_equal(read["conv5_3.weight"], arrays["features.28.weight"])
    np.testing.assert_array_equal(read["conv2_1.bias"], arrays["features.5.bias"])
    np.testing.assert_array_equal(read["fc6.weight"], arrays["classifier.0.weight"])  # torch flattens C, H, W as Caffe
    assert_takes_our_pixels(read, imagenet_rgb, arrays["features.0.weight"], arrays["features.0.bias"], rng)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_a_tensor_may_be_a_view_of_its_storage(dtype, old, tmp_path, monkeypatch):
    """Rows 1 to 3 and every other column of a matrix, transposed."""
    matrix = np.arange(24, dtype=dtype).reshape(4, 6).copy()
    save_pth(tmp_path / "w.pth", {"a": matrix[1:, 1::2].T}, monkeypatch, old=old)
    read = read_weights(tmp_path / "w.pth")["a"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, [[7, 13, 19], [9, 15, 21], [11, 17, 23]])


def test_an_old_file_cut_anywhere_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    save_pth(path, {"a": np.arange(3, dtype=np.float32), "b": np.arange(2)}, monkeypatch, old=True)
    whole = path.read_bytes()
    assert set(read_weights(path)) == {"a", "b"}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"w\.pth: (not a|truncated)") as error:
            read_weights(path)
        assert "\n" not in str(error.value)
    keys = whole.index(pickle.dumps(["0", "1"], 2))
    path.write_bytes(whole[:keys] + pickle.dumps(["0"], 2) + struct.pack("<q3f", 3, 0, 1, 2))
    with pytest.raises(InputError, match=r"w\.pth: it lacks the values of some tensors"):
        read_weights(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_would_run_code_is_refused(old, tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return exec, ("import pathlib; pathlib.Path('owned').write_text('')",)

    monkeypatch.chdir(tmp_path)
    save_pth(tmp_path / "evil.pth", {}, monkeypatch, extra={"a": Evil()}, old=old)
    with pytest.raises(InputError, match=r"evil\.pth: its pickle asks for \w+\.exec, which is not a tensor"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path, monkeypatch):
    save_pth(tmp_path / "w.pth", {"a": np.zeros((2, 3), np.float32)}, monkeypatch)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        pickled = archive.read("vgg/data.pkl")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("vgg/data.pkl", pickled)
        archive.writestr("vgg/data/0", struct.pack("<5f", *range(5)))
    with pytest.raises(InputError, match=r"w\.pth: a tensor reaches beyond its storage"):
        read_weights(tmp_path / "w.pth")


# ---- Keras


@pytest.mark.parametrize("top", [True, False])
def test_keras_vgg16(top, tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    from frcnn_jax.models.foreign_names import _VGG_CONVOLUTIONS

    kernels = {}
    with h5py.File(tmp_path / "vgg16.h5", "w") as file:

        def layer(name, kernel):
            kernels[name] = kernel, rng.normal(0, 0.1, kernel.shape[-1]).astype(np.float32)
            for kind, array in zip("Wb", kernels[name], strict=True):
                file.create_group(name, track_order=True) if name not in file else None
                file[name][f"{name}_{kind}_1:0"] = array

        for name, (inputs, outputs) in zip(_VGG_CONVOLUTIONS, CONVOLUTIONS, strict=True):
            layer(f"block{name[4]}_conv{name[6]}", rng.normal(0, 0.1, (3, 3, inputs, outputs)).astype(np.float32))
        if top:
            for name, shape in {"fc1": (25088, 3), "fc2": (3, 4), "predictions": (4, 5)}.items():
                layer(name, rng.normal(0, 0.1, shape).astype(np.float32))
    read = read_weights(tmp_path / "vgg16.h5")
    assert len(read) == 2 * (15 if top else 13)
    kernel, bias = kernels["block1_conv1"]
    less_means = lambda rgb: rgb[..., ::-1] - [103.939, 116.779, 123.68]  # noqa: E731
    assert_takes_our_pixels(read, less_means, kernel.transpose(3, 2, 0, 1), bias, rng)
    np.testing.assert_array_equal(read["conv4_2.weight"][5, 6, 1, 2], kernels["block4_conv2"][0][1, 2, 6, 5])
    if top:
        pooled = rng.normal(0, 1, (7, 7, 512))  # Keras flattens H, W, C, we C, H, W
        expected = pooled.reshape(-1) @ kernels["fc1"][0]
        np.testing.assert_allclose(read["fc6.weight"] @ pooled.transpose(2, 0, 1).reshape(-1), expected, rtol=1e-5)
        np.testing.assert_array_equal(read["fc7.weight"], kernels["fc2"][0].T)
        np.testing.assert_array_equal(read["fc7.bias"], kernels["fc2"][1])


# ---- other files


def test_damaged_files_and_files_of_other_kinds(tmp_path):
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "object.npz", a=np.array([{}], object))
    np.savez(tmp_path / "cut.npz", a=np.zeros(999))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("text.pth", "text.safetensors", "text.h5", "text.caffemodel"):
        (tmp_path / name).write_text("no weights at all")
    (tmp_path / "empty.caffemodel").write_bytes(b"")
    (tmp_path / "w.bin").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=f"{path.name}: ") as error:
            read_weights(path)
        assert "\n" not in str(error.value)
        assert "allow_pickle" not in str(error.value)
    with pytest.raises(InputError, match=r"object\.npz: .*\(an array of Python objects"):
        read_weights(tmp_path / "object.npz")
    with pytest.raises(InputError, match="no such weights file"):
        read_weights(tmp_path / "none.npz")


def test_tensors_of_another_network_are_named(tmp_path, rng):
    arrays = torchvision_arrays(rng) | {"layer1.0.conv1.weight": np.zeros(3, np.float32)}
    write_weights(tmp_path / "w.safetensors", arrays)
    with pytest.raises(InputError, match=r"w\.safetensors: these tensors are not VGG16's: layer1\.0\.conv1\.weight"):
        read_weights(tmp_path / "w.safetensors")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "w.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"needs the package h5py: pip install 'frcnn_jax\[weights\]'"):
        read_weights(tmp_path / "w.h5")


def test_other_endings_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"w\.pth: weights are written to \.npz or \.safetensors files"):
        write_weights(tmp_path / "w.pth", {})


@pytest.mark.parametrize("old", [False, True])
def test_tensors_larger_than_their_storage(old, tmp_path, monkeypatch):
    repeated = np.broadcast_to(np.ones(1, np.float32), (1000, 1000))  # with strides of 0
    save_pth(tmp_path / "a.pth", {"fc6.weight": repeated}, monkeypatch, old=old)
    with pytest.raises(InputError, match=r"a\.pth: a tensor is larger than its storage"):
        read_weights(tmp_path / "a.pth")


def test_many_tensors_of_one_storage(tmp_path, monkeypatch):
    base = np.ones(1000, np.float32)
    state = {f"fc{i}.weight": base[:999] for i in range(200)}
    with monkeypatch.context() as patched:
        patched.setattr(files, "SMALL", 1000)
        patched.setattr(files, "GROWTH", 2)
        save_pth(tmp_path / "a.pth", state, monkeypatch)
        assert len(read_weights(tmp_path / "a.pth")) == 200  # each is stored by this writer
    content = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    (tmp_path / "a.pth").write_bytes(content.getvalue())
    monkeypatch.setattr(files, "SMALL", 1000)
    monkeypatch.setattr(files, "GROWTH", 2)
    with pytest.raises(InputError, match=r"a\.pth: .*more than 2 times the file's"):
        read_weights(tmp_path / "a.pth")


def test_a_pickle_of_torch_is_checked_before_it_is_loaded(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".")
    with pytest.raises(InputError, match=r"a\.pth: its pickle is nested deeper"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("array", [np.array(["a"]), np.ones(2, bool), np.ones(2, complex)])
def test_arrays_of_other_types(array, tmp_path):
    np.savez(tmp_path / "a.npz", **{"fc6.bias": array})
    with pytest.raises(InputError, match=r"a\.npz: expected arrays of numbers by name, 'fc6.bias' is of type"):
        read_weights(tmp_path / "a.npz")


BIAS = "block1_conv1/block1_conv1/bias:0"


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (lambda g, h5py: g.create_dataset(BIAS, (64,), "f4"), "has no values"),
        (lambda g, h5py: g.create_dataset(BIAS, (10**5, 10**4), "f4", chunks=(9, 9))[0, 0:1].sum(), "has no values"),
        (lambda g, h5py: g.create_dataset(BIAS, (4,), "u1", external=[("/etc/hostname", 0, 4)]), "in another file"),
        (lambda g, h5py: g.create_dataset(BIAS, data=["a", "b"]), "expected numbers"),
        (lambda g, h5py: g.create_virtual_dataset(BIAS, h5py.VirtualLayout((4,), "f4")), "in another file"),
    ],
)
def test_hdf5_that_lies_elsewhere_or_nowhere(fill, text, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file.create_group("model_weights"), h5py)
    with pytest.raises(InputError, match=rf"a\.h5: .*{text}"):
        read_weights(tmp_path / "a.h5")


def test_hdf5_that_is_larger_than_its_file(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(BIAS, (10**6, 1000), "f4", chunks=(100, 100))[0, 0] = 1
    with pytest.raises(InputError, match=r"a\.h5: .*would take 4000 MB"):
        read_weights(tmp_path / "a.h5")


@pytest.mark.parametrize("kind", ["ExternalLink", "SoftLink"])
def test_hdf5_with_links(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "/") if kind == "ExternalLink" else h5py.SoftLink("/x")
    with pytest.raises(InputError, match=r"a\.h5: model_weights is a link"):
        read_weights(tmp_path / "a.h5")


@pytest.mark.parametrize("std", [10**400, "a", None, [1], 0])
def test_a_description_of_no_pixels(tmp_path, std):
    pixels = {"order": "RGB", "mean": [0, 0, 0], "std": [1, 1, std]}
    text = json.dumps({"pixels": pixels, "stride_in_1x1": None, "detector": {}})
    np.savez(tmp_path / "a.npz", frcnn_jax=np.array(text), a=np.ones(3))
    with pytest.raises(InputError, match=r"a\.npz: .*its description is not one that frcnn convert-weights wrote"):
        read_weights(tmp_path / "a.npz")
