"""The wire format: what goes in comes out, and what lies about itself is refused in words."""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wamkit.serving.wire import WireError, decode_jpeg, encode_jpeg, pack, unpack

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
dtypes = st.sampled_from(["b1", "u1", "i2", "<i8", ">f4", "f2", "f8"])
tensors = arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
values = st.recursive(
    scalars | st.binary() | tensors,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        equal = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        return one.dtype == other.dtype and equal
    return type(one) is type(other) and one == other


@given(values)
def test_what_is_packed_is_unpacked(value):
    def native(item):
        if isinstance(item, np.ndarray):
            return item.astype(item.dtype.newbyteorder("="))
        if isinstance(item, list):
            return [native(entry) for entry in item]
        return {key: native(entry) for key, entry in item.items()} if isinstance(item, dict) else item

    assert same(native(value), unpack(pack(value)))


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.int8(-3), np.bool_(True), np.float64(0.1)])
def test_numpy_scalars(scalar):
    back = unpack(pack({"x": scalar}))["x"]
    assert back == scalar
    assert np.asarray(back).dtype == scalar.dtype


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(message):
    with contextlib.suppress(WireError):  # anything else fails the test
        unpack(message)


@given(values, st.data())
def test_a_message_cut_anywhere_is_an_error(value, data):
    message = pack({"value": value})
    cut = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(WireError):
        unpack(message[:cut])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({b"data": None}, "no bytes"),
        ({b"data": "text"}, "no bytes"),
        ({b"data": b"\0" * 7}, "holds 7 bytes"),
        ({b"shape": None}, "no shape"),
        ({b"shape": [-2]}, "no shape"),
        ({b"shape": [True, 2]}, "no shape"),
        ({b"shape": [1] * 9}, "no shape"),
        ({b"shape": [1 << 62, 1 << 62]}, "holds 8 bytes"),
        ({b"dtype": "|O"}, "has the type"),
        ({b"dtype": "|V8"}, "has the type"),
        ({b"dtype": "<U2"}, "has the type"),
        ({b"dtype": "f4,f4"}, "has the type"),
        ({b"dtype": 4}, "has the type"),
        ({b"dtype": None}, "has the type"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(WireError, match=said):
        unpack(_array(changes))


def _array(changes: dict) -> bytes:
    whole = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]} | changes
    return msgpack.packb({key: value for key, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    "message",
    [
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
        msgpack.packb({1: 2}),
        msgpack.packb(msgpack.ExtType(5, b"\0" * 9)),
        msgpack.packb([0] * 70_000),
        b"\x91" * 5000,
        pack({}) + b"\0",
    ],
    ids=["scalar of text", "scalar too large", "number as key", "extension", "long list", "deep list", "two messages"],
)
def test_what_no_client_of_ours_sends_is_refused(message):
    with pytest.raises(WireError):
        unpack(message)


@pytest.mark.parametrize("value", [object(), np.array(["a"]), np.array([None]), np.zeros(2, "c8"), {"x": {1, 2}}])
def test_what_has_no_place_on_the_wire_is_not_packed(value):
    with pytest.raises(WireError, match="cannot be sent"):
        pack(value)


def test_jpeg_keeps_the_picture_and_its_channels():
    rows, columns = np.mgrid[:48, :64]
    picture = np.stack([4 * columns, 5 * rows, np.full_like(rows, 30)], -1).clip(0, 255).astype(np.uint8)
    back = decode_jpeg(encode_jpeg(picture, 95), (48, 64))
    assert back.shape == picture.shape
    assert np.abs(back.astype(int) - picture).mean() < 3


def test_a_jpeg_that_is_none_or_another_is_refused():
    whole = encode_jpeg(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(WireError, match="48x64, not 48x48"):
        decode_jpeg(whole, (48, 48))
    with pytest.raises(WireError, match="damaged"):
        decode_jpeg(whole[: len(whole) // 2], (48, 64))
    with pytest.raises(WireError, match="no JPEG"):
        decode_jpeg(b"GIF89a", (48, 64))


def test_a_gray_jpeg_is_refused():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (8, 6)).save(buffer, "JPEG")
    with pytest.raises(WireError, match="holds L, not RGB"):
        decode_jpeg(buffer.getvalue(), (6, 8))
