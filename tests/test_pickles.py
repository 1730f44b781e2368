"""Pickles that are small and would take for ever; `check_pickle` alone is called, so that nothing does."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from frcnn_jax.errors import InputError
from frcnn_jax.pickles import DEEPEST, check_pickle, load_numbers

TUPLES = b")" + b"2\x86" * 40  # a tuple that is twice in the next, and so on


def lists(count):
    """Lists by their numbers in the memo, each twice in the next."""
    return b"]\x940" + b"".join(b"]\x94(h%ch%ce0" % (i, i) for i in range(count)) + b"h%c" % count


@pytest.mark.parametrize(
    "body",
    [
        b"}" + TUPLES + b"Ns",
        b"\x8f(" + TUPLES + b"\x90",
        lists(60),
        b"(" + TUPLES + TUPLES + b"t",
        b"cbuiltins\nset\n" + lists(60) + b"\x85R",
        b"](" + b"\x8e" + (100_000).to_bytes(8, "little") + bytes(100_000) + b"\x94" + b"h\0" * 50_000 + b"e",
    ],
)
def test_what_is_repeated_counts_anew(body):
    with pytest.raises(InputError, match="more than 100 times"):
        check_pickle(b"\x80\x04" + body + b".")


@pytest.mark.parametrize(
    "body", [b")" + b"\x85" * 200, b"]" * 200 + b"a" * 199, b"(" * 200 + b"t" * 200, b"(" * 150 + b"l" * 150]
)
def test_depth(body):
    with pytest.raises(InputError, match=f"deeper than {DEEPEST}"):
        check_pickle(b"\x80\x04" + body + b".")


@pytest.mark.parametrize("body", [b"]\x94h\0a", b"}\x94K\1h\0s", b"]\x94]\x94h\0ah\1ah\0h\1a"])
def test_a_container_within_itself(body):
    with pytest.raises(InputError, match="into a container that it repeats"):
        check_pickle(b"\x80\x04" + body + b".")


@pytest.mark.parametrize(
    "body", [b"\x8a\x0b" + bytes(10) + b"\1", b"\x8b" + (200).to_bytes(4, "little") + bytes(199) + b"\1"]
)
def test_an_integer_of_many_bytes(body):
    with pytest.raises(InputError, match="more than 64 bits"):
        check_pickle(b"\x80\x04" + body + b".")


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, -(2**63)])
@pytest.mark.parametrize("protocol", [0, 2])
def test_integers_of_64_bits(number, protocol):
    assert load_numbers(pickle.dumps([number], protocol)) == [number]


def test_integers_that_may_have_one_hash():
    with pytest.raises(InputError, match="more than 64 bits"):
        check_pickle(pickle.dumps({2**61 * i: i for i in range(9, 30)}))


@pytest.mark.parametrize("body", [b"(cos\nsystem\no", b"(icos\nsystem\n", b"\x82\1", b"P1\n"])
def test_operations_of_other_pickles(body):
    with pytest.raises(InputError, match="has the operation"):
        check_pickle(b"\x80\x02" + body + b".")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_usual_pickles_pass_wherever_they_begin(protocol):
    shared = np.arange(3.0)
    content = {
        "a": [shared, shared[:2], np.float32(3), np.ones((2, 3), order="F")], 3: (1, 2.5, None, True, b"x", -(2**40)),
        "c": {"d", "e"}, "f": OrderedDict(g=[]), **{f"k{i}": ["k", "k", shared] for i in range(100)},
    }  # fmt: skip
    check_pickle(b"before" + pickle.dumps(content, protocol) + b"behind", 6)
    plain = {"a": [np.arange(3)], "b": {1: "x", "y": (2.0, None)}}
    assert load_numbers(pickle.dumps(plain, protocol))["b"] == plain["b"]


def test_pickles_are_checked_before_they_are_loaded():
    with pytest.raises(InputError, match="deeper"):
        load_numbers(b"\x80\x04" + b"]" * 200 + b"a" * 199 + b".")
