"""openpi's wire format: msgpack with numpy arrays inside, read without trusting the other end.

An array is a map with the byte keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``, a numpy scalar one with
``__npgeneric__``, ``data`` and ``dtype``. Nothing is ever unpickled, and only booleans, integers and floats are arrays.
Needs numpy and msgpack alone, so a robot's computer can use it without the rest of wamkit's dependencies.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, cast

import msgpack
import numpy as np

from wamkit.errors import WamkitError

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 8
_MAX_ITEMS = 1 << 16
"""Entries of a list or a map: enough for any observation, too few to make a short message fill the memory."""


class WireError(WamkitError):
    """A message that is not what the protocol says; the text tells its sender what is wrong."""


def pack(value: Any) -> bytes:
    """A message: nested dicts and lists of scalars, strings, bytes and numpy arrays, as msgpack.

    Raises:
        WireError: Something in it has no place on the wire, such as an array of objects.
    """
    try:
        return cast("bytes", msgpack.packb(value, default=_packed, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"this cannot be sent: {error}.") from error


def unpack(message: bytes) -> Any:
    """What `pack`, or openpi's client, packed.

    Raises:
        WireError: It is not msgpack, is cut off, goes on after its end, or holds an array that contradicts itself.
    """
    try:
        return msgpack.unpackb(
            message,
            object_hook=_restored,
            raw=False,
            strict_map_key=True,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        detail = str(error) or type(error).__name__
        raise WireError(f"the message is no msgpack ({detail}): send one whole packed dictionary a frame.") from error


def encode_jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    """A picture, uint8 [H, W, 3] RGB, as the bytes of a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """The picture, uint8 [H, W, 3] RGB, in a JPEG that says that it has this size.

    Args:
        data: Of the file.
        size: (height, width); compared before anything is decoded, so no small file becomes a huge picture.

    Raises:
        WireError: It is no JPEG, is damaged, or has another size.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if (image.height, image.width) != tuple(size):
                raise WireError(f"the JPEG is {image.height}x{image.width}, not {size[0]}x{size[1]}.")
            if image.mode != "RGB":
                raise WireError(f"the JPEG holds {image.mode}, not RGB.")
            return np.array(image)
    except UnidentifiedImageError as error:
        raise WireError("these bytes are no JPEG; send an array uint8 [H, W, 3] or the bytes of a JPEG.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow says of damage
        raise WireError(f"the JPEG is damaged: {error}.") from error


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if not _DTYPE.fullmatch(value.dtype.str):
            raise TypeError(f"an array of {value.dtype} (booleans, integers and floats can be sent)")
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__}")


def _restored(found: dict[Any, Any]) -> Any:
    if _ARRAY in found:
        return _array(found)
    if _SCALAR in found:
        data = found.get(b"data")
        if not isinstance(data, bool | int | float):
            raise WireError("a numpy scalar in the message holds no number.")
        try:
            return _dtype(found.get(b"dtype")).type(data)
        except OverflowError as error:
            raise WireError(f"a numpy scalar in the message does not fit its type: {error}.") from error
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(found.get(b"dtype")), found.get(b"data"), found.get(b"shape")
    if not isinstance(data, bytes):
        raise WireError("an array in the message has no bytes.")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > _MAX_DIMENSIONS
        or not all(type(length) is int and length >= 0 for length in shape)
    ):
        raise WireError("an array in the message has no shape.")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array in the message says {list(shape)} of {dtype} and holds {len(data)} bytes.")
    array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    # A copy, because what lies in the message is read-only, which torch warns of.
    return array.reshape(shape).astype(dtype.newbyteorder("="))


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"an array in the message has the type {str(name)[:40]!r}: send booleans, integers or floats.")
    return np.dtype(name)
