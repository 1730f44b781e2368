import io
import json
import os
import stat
import zipfile

import numpy as np
import pytest

from frcnn_jax import files
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_file, check_folder, read_json, read_npz, write_atomic, write_json, write_text


def broken(file):
    file.write(b"half")
    raise KeyError


def test_whole_or_not(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, lambda file: file.write(b"one"))
    with pytest.raises(KeyError):
        write_atomic(path, broken)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_they_may_any_file(tmp_path):
    write_atomic(tmp_path / "a", lambda file: None)
    (tmp_path / "b").touch()
    a, b = (stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in "ab")
    assert a == b


def test_an_error_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.a: can't be written \(No such file or directory\)"):
        write_atomic(tmp_path / "nowhere" / "a", lambda file: None)


def test_names_that_are_no_utf8_keep_their_bytes(tmp_path):
    write_text(tmp_path / "a", "é\udcff")
    assert (tmp_path / "a").read_bytes() == "é".encode() + b"\xff"


def test_a_writer_between_changes_nothing(tmp_path):
    """The second writer begins and ends while the first one writes."""
    path = tmp_path / "a"

    def slow(file):
        file.write(b"fi")
        write_atomic(path, lambda other: other.write(b"second"))
        file.write(b"rst")

    write_atomic(path, slow)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("place", "text"), [((6, 8), "encrypted"), ((8, 10), "another way than deflate")])
def test_npz_of_a_kind_that_is_not_read(tmp_path, place, text):
    """One byte of the flags, or of the method, is changed in the header of the member and in that of the directory."""
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for start, offset in zip((0, content.index(b"PK\1\2")), place, strict=True):
        content[start + offset] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=text):
        read_npz(tmp_path / "a.npz")


def test_npz_beyond_the_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**55, 4)})
    with pytest.raises(ValueError, match="of another size than the file"):
        read_npz(tmp_path / "a.npz")


def test_write_json_is_whole_or_not(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_outputs_are_checked_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    check_file(tmp_path / "file")
    check_folder(tmp_path / "a" / "b")
    with pytest.raises(InputError, match=r"nowhere.a: the folder does not exist"):
        check_file(tmp_path / "nowhere" / "a")
    with pytest.raises(InputError, match=r"expected a file, got a folder"):
        check_file(tmp_path)
    with pytest.raises(InputError, match=r"a: expected a folder, .*file is a file"):
        check_folder(tmp_path / "file" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_zip(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_compressed_by_what_has_no_bound(method, tmp_path):
    with pytest.raises(ValueError, match="another way than deflate"):
        read_npz(write_zip(tmp_path / "a.npz", method, a=npy(np.ones(3))))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_content_of_an_npz_is_bounded_by_its_size(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.npz", a=npy(np.zeros(10_000)))
    assert read_npz(path)["a"].shape == (10_000,)
    monkeypatch.setattr(files, "SMALL", 1000)
    with pytest.raises(ValueError, match="its content would take 0 MB, more than 100 times"):
        read_npz(path)
    assert read_npz(write_zip(path, zipfile.ZIP_STORED, a=npy(np.zeros(10_000))))["a"].shape == (10_000,)


ONES = npy(np.ones(3))


@pytest.mark.parametrize("content", [b"", b"text", ONES[:-1], ONES + b"1", ONES.replace(b"(3,)", b"((((")])
def test_members_that_are_no_arrays(content, tmp_path):
    with pytest.raises(ValueError, match=r"not a \.npy array|of another size"):
        read_npz(write_zip(tmp_path / "a.npz", a=content))


def test_arrays_can_be_changed_and_keep_their_order(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.asfortranarray(np.arange(6.0).reshape(2, 3)), b=np.array(1))
    arrays = read_npz(tmp_path / "a.npz")
    arrays["a"] += 1
    assert arrays["a"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert arrays["b"] == 1


def test_neither_a_pipe_nor_a_device_is_read(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name in ("a.json", "b.json"):
        with pytest.raises(InputError, match=rf"{name}: not a regular file"):
            read_json(tmp_path / name)


def test_any_exception_of_a_decoder_is_one_line_with_the_name():
    for error, text in ((KeyError("x"), "a.x: damaged ('x')"), (RecursionError(), "a.x: damaged (RecursionError)")):
        with pytest.raises(InputError) as raised, files.decoding("a.x", "damaged"):
            raise error
        assert str(raised.value) == text
    with pytest.raises(InputError, match=r"^a\.x: no such file$"), files.decoding("a.x", "damaged"):
        raise FileNotFoundError
    with pytest.raises(InputError, match=r"^a\.x: why$"), files.decoding("a.x", "damaged"):
        raise InputError("why")


def test_a_pipe_or_a_device_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "b.npz").symlink_to("/dev/zero")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(InputError, match=rf"{name}: not a regular file"):
            read_npz(tmp_path / name)


def test_no_more_memory_is_prepared_than_a_file_has(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with files.open_regular(tmp_path / "a") as file:
        assert file.read(1) == b"a"
        assert file.read(1 << 62) == b"bc"  # more than an address space
