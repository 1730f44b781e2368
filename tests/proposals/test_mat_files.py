import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from frcnn_jax.errors import InputError
from frcnn_jax.proposals import mat_files
from frcnn_jax.proposals.mat_files import read_mat


def element(order, kind, data):
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(order, array_class, shape, name, data):
    flags = element(order, 6, struct.pack(f"{order}II", array_class, 0))
    dims = element(order, 5, struct.pack(f"{order}{len(shape)}i", *shape))
    return element(order, 14, flags + dims + element(order, 1, name) + data)


def mat(order, *variables):
    return b"by hand".ljust(124) + struct.pack(f"{order}HH", 0x100, 0x4D49) + b"".join(variables)


@pytest.mark.parametrize("order", ["<", ">"])
def test_by_hand(order, tmp_path):
    small = struct.pack(f"{order}I2H", 4 << 16 | 4, 7, 8)  # two uint16 in a small element
    text = matrix(order, 4, (1, 2), b"", element(order, 4, "ab".encode("utf-16-le" if order == "<" else "utf-16-be")))
    numbers = matrix(order, 6, (3, 2), b"x", element(order, 9, struct.pack(f"{order}6d", *range(6))))
    cells = matrix(order, 1, (1, 3), b"c", text + matrix(order, 11, (1, 2), b"", small) + element(order, 14, b""))
    (tmp_path / "a.mat").write_bytes(mat(order, numbers, cells))
    content = read_mat(tmp_path / "a.mat")
    assert set(content) == {"x", "c"}
    np.testing.assert_array_equal(content["x"], [[0, 3], [1, 4], [2, 5]])  # column after column
    assert content["c"].shape == (1, 3)
    assert content["c"][0, 0] == "ab"
    np.testing.assert_array_equal(content["c"][0, 1], [[7, 8]])
    assert content["c"][0, 2].shape == (0, 0)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes(compressed, tmp_path, rng):
    numbers = {f"x_{t}": rng.uniform(0, 100, (3, 5)).astype(t) for t in ("f8", "f4", "i1", "u2", "i4", "u8")}
    others = {"text": "000005", "z": np.zeros((2, 2), complex), "s": {"a": 1}, "empty": np.zeros((0, 4))}
    savemat(tmp_path / "a.mat", {**numbers, **others}, do_compression=compressed)
    content = read_mat(tmp_path / "a.mat")
    for name, array in numbers.items():
        np.testing.assert_array_equal(content[name], array)
    assert content["text"] == "000005"
    assert content["empty"].shape == (0, 4)
    assert content["z"] is None
    assert content["s"] is None


def test_what_matlab_writes(shared):
    path = shared / "voc" / "demo" / "000004_boxes.mat"
    np.testing.assert_array_equal(read_mat(path)["boxes"], loadmat(path)["boxes"])


def test_other_files(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"x": np.ones(3)}, format="4")
    with pytest.raises(InputError, match="expected level 5"):
        read_mat(path)
    path.write_bytes(mat("<", matrix("<", 6, (3, 2), b"x", element("<", 9, bytes(48))))[:-8])
    with pytest.raises(InputError, match="cut short"):
        read_mat(path)


def compressed(data):
    packed = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(packed)) + packed


def test_a_compressed_element_is_bounded_by_the_size_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mat_files, "SMALL", 1000)
    numbers = matrix("<", 6, (10_000, 4), b"boxes", element("<", 9, bytes(320_000)))
    (tmp_path / "a.mat").write_bytes(mat("<", compressed(numbers)))
    with pytest.raises(InputError, match="more than 100 times as large as the file"):
        read_mat(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(mat("<", numbers))
    assert read_mat(tmp_path / "a.mat")["boxes"].shape == (10_000, 4)


def test_the_elements_of_a_file_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(mat_files, "MOST_ELEMENTS", 1000)
    cells = matrix("<", 1, (600, 1), b"a", element("<", 14, b"") * 600)
    (tmp_path / "a.mat").write_bytes(mat("<", cells))
    assert read_mat(tmp_path / "a.mat")["a"].shape == (600, 1)
    (tmp_path / "a.mat").write_bytes(mat("<", cells, cells))
    with pytest.raises(InputError, match="more than 1000 elements"):
        read_mat(tmp_path / "a.mat")
