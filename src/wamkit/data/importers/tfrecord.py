"""Read tfrecord files of ``tf.train.Example`` without TensorFlow.

A tfrecord is a row of records: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, all
little-endian. The data is a protocol buffer: Example{1: Features{1: map<string, Feature>}}, and a Feature is one of
1: BytesList, 2: FloatList, 3: Int64List, each with the repeated field 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wamkit.data.importers.base import ImportFailure

Value = list[bytes] | np.ndarray
"""A feature: bytes, or float32 or int64 ``[n]``."""

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK_DELTA = 0xA282EAD8


def _crc_tables() -> np.ndarray:
    """Tables for eight bytes at a time."""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ _POLYNOMIAL, table >> 1)
    tables = [table]
    for _ in range(7):
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 0xFF])
    return np.stack(tables)


_TABLES = [table.tolist() for table in _crc_tables()]


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    t0, t1, t2, t3, t4, t5, t6, t7 = _TABLES
    crc = 0xFFFFFFFF
    whole = len(data) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        word ^= crc
        crc = (
            t7[word & 0xFF]
            ^ t6[word >> 8 & 0xFF]
            ^ t5[word >> 16 & 0xFF]
            ^ t4[word >> 24 & 0xFF]
            ^ t3[word >> 32 & 0xFF]
            ^ t2[word >> 40 & 0xFF]
            ^ t1[word >> 48 & 0xFF]
            ^ t0[word >> 56]
        )
    for byte in data[whole:]:
        crc = t0[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """The checksum as tfrecord files store it: rotated by 15 bits and offset."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a tfrecord file, each checked against its checksums.

    Raises:
        ImportFailure: If the file is missing, truncated or damaged; it names the record.
    """
    if not path.is_file():
        raise ImportFailure(f"{path} is missing: restore the file.")
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            where = f"record {number} of {path}"
            if len(head) < 12:
                raise ImportFailure(f"{where} is cut off after {len(head)} bytes: the file is truncated; restore it.")
            length, checksum = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != checksum:
                raise ImportFailure(f"{where} has a damaged length (checksum differs): restore the file.")
            body = file.read(length + 4)
            if len(body) < length + 4:
                raise ImportFailure(
                    f"{where} is cut off after {len(body)} of {length + 4} bytes: the file is truncated; restore it."
                )
            data = body[:length]
            if masked_crc(data) != struct.unpack("<I", body[length:])[0]:
                raise ImportFailure(f"{where} is damaged (checksum differs): restore the file.")
            yield data
            number += 1


def parse_example(data: bytes) -> dict[str, Value]:
    """A serialised ``tf.train.Example``.

    Returns:
        Feature name -> list of bytes, float32 ``[n]`` or int64 ``[n]``.

    Raises:
        ImportFailure: If the bytes are not an Example.
    """
    features: dict[str, Value] = {}
    try:
        for field, message in _fields(memoryview(data)):
            if field != 1 or isinstance(message, int):
                continue
            for entry_field, entry in _fields(message):
                if entry_field != 1 or isinstance(entry, int):
                    continue
                pair = dict(_fields(entry))
                features[bytes(_message(pair[1])).decode()] = _feature(_message(pair.get(2, memoryview(b""))))
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise ImportFailure(f"a record is not a tf.train.Example ({error}): restore the file.") from error
    return features


def _feature(message: memoryview) -> Value:
    for kind, values in _fields(message):
        content = _message(values)
        if kind == 1:
            return [bytes(_message(value)) for field, value in _fields(content) if field == 1]
        if kind == 2:
            parts = [np.frombuffer(_message(value), "<f4") for field, value in _fields(content) if field == 1]
            return np.concatenate(parts) if parts else np.empty(0, np.float32)
        if kind == 3:
            numbers: list[int] = []
            for field, value in _fields(content):
                if field == 1:
                    numbers += [value] if isinstance(value, int) else _packed(value)
            return np.array(numbers, dtype=np.uint64).astype(np.int64)
    return []


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, varint or bytes) of a message; fixed 32-bit and 64-bit fields come as bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(message):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, message[position : position + length]
        position += length


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _packed(values: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(values):
        number, position = _varint(values, position)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
